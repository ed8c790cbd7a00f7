"""A hint is in the words of whoever asks, and can be pasted whatever is in the file."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

import paramcli as library
from paramcli.errors import PATH, InputRefused, Known, UsageError
from paramcli.wording import LEAVE_OUT, call, given, in_python, in_shell, shell_path, shell_word, words

ROOT = Path(__file__).resolve().parent.parent
NAMES = [
    "fc.weight",
    "a b",
    "a$(touch PWN)",
    "`touch PWN`",
    "it's",
    'say "x"',
    "a;b|c&d>e",
    "-w",
    "--force",
    "~root",
    "*",
    "re:.*",
    "",
    "\\",
    "a\nb",
    "\x1b[31m\u202e",
    "'\x07'$",
    "caf\u00e9 \u4e2d",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_reads_back_the_word(name, tmp_path):
    """What bash makes of a word is the name, character for character, and nothing else happens; no control character
    is in it.
    """
    word = shell_word(name)
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {word}"], capture_output=True, cwd=tmp_path, check=True)
    assert done.stdout == os.fsencode(name) + b"\0" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_python_reads_back_the_literal(name):
    """The same of a keyword in Python."""
    said = in_python(given("root", name))
    assert said.isprintable()
    assert ast.literal_eval(said.removeprefix("root=")) == name


def test_options_and_calls_in_both_words():
    """The table in the module's docstring, and what begins with a dash."""
    spoken = {
        given("force", True): ("--force", "force=True"),
        given("bake", False): ("--no-bake", "bake=False"),
        given("tensor"): ("-t", "tensor=..."),
        given("tensor", "-w"): ("--tensor=-w", 'tensor="-w"'),
        given("from", "a.pt"): ("--from a.pt", 'from_="a.pt"'),
        given("tol", 0.5): ("--tol 0.5", "tolerance=0.5"),
        given("tol", 0.123456789): ("--tol 0.123456789", "tolerance=0.123456789"),
        given("rank", 1234567): ("--rank 1234567", "rank=1234567"),
        given("rename", {"a b": "c"}): ("--rename 'a b=c'", 'rename={"a b": "c"}'),
        given("max-shard-size", "5GB"): ("--max-shard-size 5GB", 'max_shard_size="5GB"'),
        call("inspect", PATH): ("paramcli inspect ./-m.pt", 'paramcli.inspect("-m.pt")'),
        call("inspect"): ("paramcli inspect", "paramcli.inspect"),
        call("registry", "skew"): ("paramcli registry skew",) * 2,
        call("add", PATH, tensor="a b", mask=f"{PATH}:m"): (
            "paramcli add ./-m.pt -t 'a b' --mask=-m.pt:m",
            'paramcli.add("-m.pt", tensor="a b", mask="-m.pt:m")',
        ),
        words(["a", "b c", "d"], 2): ("a, 'b c' and 1 more", "a, b c and 1 more"),
    }
    for said, (typed, called) in spoken.items():
        assert (in_shell(said, "-m.pt"), in_python(said, "-m.pt")) == (typed, called)


def test_the_root_that_was_asked_for_is_in_the_call():
    """Where a file has several state dicts, a call on it says which; a call on another file does not."""
    assert in_shell(call("verify", PATH), "m.pt", "g.model") == "paramcli verify m.pt --root g.model"
    assert in_python(call("verify", PATH), "m.pt", "-g") == 'paramcli.verify("m.pt", root="-g")'
    assert in_shell(call("verify", "other.pt"), "m.pt", "g") == "paramcli verify other.pt"


def test_a_name_cannot_imitate_what_is_said():
    """A name that holds the control characters of a text, or is `PATH`, stays a name."""
    for name in ("\x04[]\x05", "\x04", "x\x01\x03\x05"):
        assert ast.literal_eval(in_python(given("root", name), "m.pt").removeprefix("root=")) == name
    assert in_shell(InputRefused("it", hint=words(["\x04x\x05"])).advice) == r"$'\x04x\x05'"


def test_an_error_speaks_to_its_caller():
    """`hint` and `str` are for Python, `advised` and `in_words` for who prints; a Known stays one."""
    error = UsageError(
        f"{given('in-place', True)} is too much", hint=Known(f"there: {LEAVE_OUT}"), option="max-shard-size"
    )
    assert str(error) == "in_place=True is too much" and error.hint == "there: leave it out with tensor=..."
    assert error.in_words(in_shell) == "--in-place is too much"
    assert error.advised(in_shell) == "there: leave it out with -t" and isinstance(error.advised(in_shell), Known)
    assert (error.option, error.keyword) == ("max-shard-size", "max_shard_size")


def test_the_library_speaks_python(tmp_path, fc_checkpoint, paramcli):
    """The same refusal, called and typed."""
    out = tmp_path / "x.safetensors"
    out.write_bytes(b"x")
    with pytest.raises(library.OutputFailed) as caught:
        library.convert(fc_checkpoint, out)
    assert caught.value.hint == "force=True replaces it, or write elsewhere with output=..."
    told = paramcli("convert", fc_checkpoint, "-o", out, code=4).err
    assert "try: --force replaces it, or write elsewhere with -o\n" in told
    with pytest.raises(library.OutputFailed) as caught:
        library.save(torch.nn.Linear(2, 2), out)
    assert caught.value.hint == "overwrite=True replaces it"


_OPTION = re.compile(r"(?<![\w-])(--[a-z][\w-]+|-[a-zA-Z])(?![\w-])|\bparamcli [a-z]+ ")
# Options of others, and what is no hint.
_OTHERS = ("--nproc-per-node", "ulimit", "--plugin")


def test_no_hint_is_spelt_out_for_one_of_them():
    """Outside the command line's own rooms no hint or advice has an option in it but by `given` and `call`."""
    found = []
    for path in sorted((ROOT / "paramcli").rglob("*.py")):
        if path.is_relative_to(ROOT / "paramcli" / "cli"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            values = [node.value] if isinstance(node, ast.keyword) and node.arg in ("hint", "advice") else []
            if isinstance(node, ast.Assign) and any("hint" in ast.unparse(target).lower() for target in node.targets):
                values.append(node.value)
            for part in (inner for value in values for inner in ast.walk(value)):
                text = part.value if isinstance(part, ast.Constant) else None
                if isinstance(text, str) and _OPTION.search(text) and not any(word in text for word in _OTHERS):
                    found.append(f"{path.name}:{part.lineno}: {text}")
    assert not found, "\n".join(found)


def hinted(err: str) -> str:
    """The command after `try:` or `next:`."""
    return next(line for line in err.splitlines() if line.strip().startswith(("try: ", "next: "))).split(": ", 1)[1]


@pytest.mark.parametrize("name", ["a$(touch PWN)", "-x y", "it's", "--force", "*"])
def test_a_root_can_be_pasted(name, tmp_path, paramcli, monkeypatch):
    """The state dict that a refusal offers is read by what it says, word for word."""
    monkeypatch.chdir(tmp_path)
    torch.save({name: {"w.weight": torch.ones(2, 2)}, "~later": {"w.weight": torch.ones(2, 2)}}, "-m.pt")
    told = hinted(paramcli("inspect", "--", "-m.pt", code=3).err).partition(" for that one")[0]
    shown = paramcli("inspect", "./-m.pt", *shlex.split(told))
    assert "w.weight" in shown.out and not (tmp_path / "PWN").exists()
    offered = paramcli("inspect", "./-m.pt", "--root", "nothing", code=2).err
    assert shell_word(name) in offered


@pytest.mark.parametrize("folder", ["my folder", "$(touch PWN)", "-q"])
def test_what_comes_next_can_be_pasted(folder, tmp_path, paramcli, monkeypatch):
    """`next: paramcli verify ...` of an odd folder runs as it stands."""
    monkeypatch.chdir(tmp_path)
    Path(folder).mkdir()
    torch.save({"fc.weight": torch.ones(2, 2)}, Path(folder, "-m.pt"))
    told = hinted(paramcli("add", f"./{folder}/-m.pt", "-t", "fc.weight", "--chain", "symmetric").err)
    command, *arguments = shlex.split(told)
    assert command == "paramcli" and arguments[0] == "verify"
    paramcli(*arguments)
    told = hinted(paramcli("remove", *arguments[1:], "--bake").err)
    paramcli(*shlex.split(told)[1:])
    assert not (tmp_path / "PWN").exists()
    assert shell_path(f"{folder}/x") in (f"'{folder}/x'", f"./{folder}/x")
