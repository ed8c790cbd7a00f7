"""docs/screens: what each command shows, as text, at two widths, with and without colour, and in a pipe.

Each session is a few command lines in a folder of their own: the help, a typical run, a mistake. In the coloured ones
the control sequences of the terminal are written out (`\\e[1m`).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from . import doc_files
from .terminal import ROOT, plain, run_line

FOLDER = ROOT / "docs" / "screens"
# Folder -> (columns, or None for a pipe; colour).
MODES = {
    "80": (80, False),
    "80-colour": (80, True),
    "140": (140, False),
    "140-colour": (140, True),
    "piped": (None, False),
}
SESSIONS = {
    "paramcli": ["paramcli --help", "paramcli ad ckpt.pt"],
    "inspect": [
        "paramcli inspect -h",
        "paramcli inspect encoder.safetensors",
        "paramcli inspect vocoder.pth",
        "paramcli inspect ckpt.pt --flat",
        "paramcli inspect chkpt.pt",
    ],
    "registry": ["paramcli registry -h", "paramcli registry cayley", "paramcli registry", "paramcli registry caley"],
    "add": [
        "paramcli add -h",
        "paramcli add ckpt.pt -t fc.weight --chain skew,cayley",
        "paramcli add fixtures/silero_vad_16k.safetensors -t lstm_cell.weight_hh --view blocks=4 --chain skew,cayley "
        "-n",
        "paramcli add ckpt.pt -t out.weight --chain skew,cayley -f",
        "paramcli add ckpt.pt -t fc.wieght --chain skew -f",
    ],
    "assign": [
        "paramcli assign -h",
        "paramcli assign layer.safetensors -t fc.weight --with orthogonal",
        "paramcli assign layer.safetensors -t fc.weight --with ortogonal",
    ],
    "remove": [
        "paramcli remove -h",
        "paramcli remove vocoder.pth",
        "paramcli remove vocoder.pth --no-bake",
        "paramcli remove ckpt.pt",
    ],
    "merge": [
        "paramcli merge -h",
        "paramcli merge model.safetensors --adapter my_lora",
        "paramcli merge wrapped.safetensors --adapter my_lora",
        "paramcli merge model.safetensors",
    ],
    "extract": [
        "paramcli extract -h",
        "paramcli extract tuned.safetensors --base pretrained.safetensors --rank 2",
        "paramcli extract tuned.safetensors --base pretrained.safetensors",
        "paramcli extract pretrained.safetensors --base pretrained.safetensors --rank 2",
    ],
    "verify": [
        "paramcli verify -h",
        "paramcli verify layer.safetensors",
        "paramcli verify broken.pt -t fc.weight --constraint orthogonal",
        "paramcli verify ckpt.pt",
    ],
    "migrate": ["paramcli migrate -h", "paramcli migrate old.pt --to new", "paramcli migrate ckpt.pt --to new"],
    "convert": [
        "paramcli convert -h",
        "paramcli convert training.ckpt",
        "paramcli convert ckpt.pt --dtype float8 -o x.safetensors",
    ],
    "diff": [
        "paramcli diff -h",
        "paramcli diff layer.safetensors plain.pt",
        "paramcli diff ckpt.pt training.ckpt",
        "paramcli diff ckpt.pt encoder.safetensors --tol x",
    ],
    "discover": ["paramcli discover -h", "paramcli discover plain.pt", "paramcli discover ckpt.pt -t nothing"],
    "spectrum": ["paramcli spectrum -h", "paramcli spectrum layer.safetensors", "paramcli spectrum ckpt.pt"],
    "apply": [
        "paramcli apply -h",
        "paramcli apply recipe.toml ckpt.pt",
        "paramcli apply recipe.toml ckpt.pt -n",
        "paramcli apply wrong.toml ckpt.pt",
    ],
    "snippet": ["paramcli snippet -h", "paramcli snippet layer.safetensors", "paramcli snippet nothing.safetensors"],
}


def screens() -> dict[Path, str]:
    """File -> its text, for every session in every mode."""
    return {FOLDER / mode / f"{name}.txt": screen(name, mode) for mode in MODES for name in SESSIONS}


def screen(name: str, mode: str) -> str:
    columns, colour = MODES[mode]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "work"
        shutil.copytree(ROOT / "fixtures", folder / "fixtures")
        makers = (doc_files.checkpoints, doc_files.vocoder, doc_files.encoder, doc_files.claims, doc_files.recipe)
        for make in (*makers, doc_files.adapter, doc_files.tuned):
            make(folder)
        (folder / "wrong.toml").write_text((folder / "recipe.toml").read_text().replace("chain", "chian"))
        parts = []
        for line in SESSIONS[name]:
            code, printed = run_line(line, folder, columns, colour)
            shown = printed.replace("\x1b", "\\e") if colour else plain(printed)
            parts.append(f"$ {line}\n{shown.rstrip()}\n" + (f"[exit {code}]\n" if code else ""))
    return "\n".join(parts)
