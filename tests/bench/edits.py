"""Edits of one tensor, and of names, against copying the file."""

from __future__ import annotations

import os
from pathlib import Path

from . import files
from .harness import IMPORT_TORCH, MB, Bench, Claim, Contender, Result, paramcli, remove, script


def edit_safetensors(bench: Bench) -> Result:
    """One tensor of a safetensors file."""
    source = files.write_safetensors(bench.place("model.safetensors"), files.plain_slots(bench.size))
    try:
        return _edit(bench, "One-tensor edit, safetensors", source, bench.place("out.safetensors"), 1.15)
    finally:
        remove(source)


def edit_zip(bench: Bench) -> Result:
    """One tensor of a torch zip checkpoint, whose checksums are compared on the way."""
    made = files.write_safetensors(bench.place("made.safetensors"), files.plain_slots(bench.size))
    source = files.write_zip(bench.place("model.pt"), made)
    remove(made)
    try:
        return _edit(bench, "One-tensor edit, torch zip", source, bench.place("out.safetensors"), 1.25)
    finally:
        remove(source)


def edit_shards(bench: Bench) -> Result:
    """One tensor of four shards."""
    source = files.write_shards(bench.place("model"), files.plain_slots(bench.size), 4)
    try:
        return _edit(bench, "One-tensor edit, four shards", source, bench.place("out"), 1.15)
    finally:
        remove(source)


def migrate(bench: Bench) -> Result:
    """Every tensor renamed, no byte of one changed."""
    source = files.write_safetensors(bench.place("model.safetensors"), files.weight_norm_slots(bench.size))
    copied, target = bench.place("copy"), bench.place("out.safetensors")
    command = paramcli("migrate", source, "--to", "new", "-o", target, "-q")
    figures = bench.interleave(
        {
            "cp": Contender(["cp", str(source), str(copied)], copied),
            "cp, then fsync": Contender(["cp", str(source), str(copied)], copied, synced=True),
            "paramcli migrate": Contender(command, target),
            "paramcli migrate --no-sync": Contender([*command, "--no-sync"], target),
        }
    )
    remove(source)
    ours, quick = figures["paramcli migrate"], figures["paramcli migrate --no-sync"]
    claims = [
        Claim("wall / cp", ours.median / figures["cp"].median, 1.1),
        Claim("wall / (cp, fsync)", ours.median / figures["cp, then fsync"].median, 1),
        Claim("--no-sync: wall / cp", quick.median / figures["cp"].median, 1.1),
    ]
    return Result("Rename every tensor", figures, "cp", claims)


def _edit(bench: Bench, title: str, source: Path, target: Path, limit: float) -> Result:
    copied, name = bench.place("copy"), files.layers(bench.size)[1]
    cp = ["cp", "-r", str(source), str(copied)]
    add = paramcli("add", source, "-t", name, "--chain", "symmetric", "-o", target, "-q")
    contenders = {
        "cp": Contender(cp, copied),
        "cp, then fsync": Contender(cp, copied, synced=True),
        "import torch": IMPORT_TORCH,
        "paramcli add, one tensor": Contender(add, target),
        "paramcli add --no-sync": Contender([*add, "--no-sync"], target),
    }
    if not source.is_dir():
        contenders["load, edit, save_file"] = Contender(script("edit", source, target, name), target)
        contenders.update(_brainsurgery(source, target, name))
    figures = bench.interleave(contenders)
    ours, torch = figures["paramcli add, one tensor"], figures["import torch"]
    quick, copy = figures["paramcli add --no-sync"], figures["cp"]
    claims = [
        Claim("(wall - import of torch) / cp", (ours.median - torch.median) / copy.median, limit),
        Claim("wall / (cp, fsync)", ours.median / figures["cp, then fsync"].median, 1),
        Claim("--no-sync: (wall - import of torch) / cp", (quick.median - torch.median) / copy.median, 1.1),
        Claim(
            "peak beyond importing torch and 3 x the tensor",
            (ours.peak_anonymous - torch.peak_anonymous - 3 * files.EACH) / MB,
            60,
            "MB",
        ),
    ]
    return Result(title, figures, "cp", claims)


def _brainsurgery(source: Path, target: Path, name: str) -> dict[str, Contender]:
    """The other tool that edits checkpoints from the command line, where BRAINSURGERY names its executable."""
    tool = os.environ.get("BRAINSURGERY")
    if not tool or source.suffix != ".safetensors":
        return {}
    plan = source.with_suffix(".yaml")
    plan.write_text(
        f"inputs:\n  - {source}\ntransforms:\n  - scale_: {{target: '{name}', by: 2.0}}\noutput:\n  path: {target}\n"
    )
    return {"brainsurgery, one tensor": Contender([tool, str(plan)], target)}
