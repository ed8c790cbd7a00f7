"""Every hostile, broken and odd file: refused in one line with the right code, or read; nothing runs, nothing leaks,
nothing grows.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors import safe_open

from paramcli.errors import CODES

from ..pace import HANG_SECONDS
from .cases import CASES, KINDS
from .limits import CONSTANT, MOST_STEPS

ROOT = Path(__file__).resolve().parents[2]
LIGHT = [case for case in CASES if not case.heavy]


def state_of(folder: Path) -> dict[str, object]:
    """Every name in the folder with what is under it, without opening what could block."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else os.lstat(path).st_mode
        for path in folder.rglob("*")
    }


def is_printable(text: str) -> bool:
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text.replace("\n", ""))


def check_one_line(err: str, what: str) -> None:
    """Exactly one error line, a hint at most, and before them only notes."""
    lines = err.splitlines()
    errors = [n for n, line in enumerate(lines) if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0] >= len(lines) - 2, f"{what}: {err}"
    assert "bug in paramcli" not in err and "Traceback" not in err, f"{what}: {err}"


def test_there_are_cases_of_every_kind():
    """At least 120 files, over every container and place a file can lie in."""
    assert len(CASES) >= 120
    assert {"header", "names", "zip", "pickle", "legacy", "record", "index", "path"} == set(KINDS)
    assert len({(case.kind, case.name) for case in CASES}) >= len(CASES) - 1


@pytest.mark.parametrize("case", LIGHT, ids=str)
def test_refused_in_one_line_or_read(case, tmp_path, paramcli, monkeypatch):
    """convert refuses with exit 3 and writes nothing, or writes exactly the tensors there are; inspect never fails
    otherwise.
    """
    monkeypatch.chdir(tmp_path)
    path = case.make(tmp_path)
    before = state_of(tmp_path)
    for command in (
        ["inspect", path],
        ["inspect", path, "--json"],
        ["convert", path, "-o", tmp_path / "out.safetensors"],
    ):
        result = paramcli(*command, code=None)
        assert is_printable(result.out) and is_printable(result.err), f"{case}: {result.out!r} {result.err!r}"
        if result.code == 0:
            if "--json" in command:
                assert result.json["tensors"]
            continue
        assert result.code == 3, f"{case}: exit {result.code}: {result.err}"
        check_one_line(result.err, str(case))
        if "--json" in command:
            assert result.json["error"]["code"] in CODES[3]
    if case.tensors is None:
        assert result.code == 3, f"{case}: was accepted"
        assert state_of(tmp_path) == before
    else:
        assert result.code == 0, f"{case}: {result.err}"
        with safe_open(tmp_path / "out.safetensors", "pt") as file:
            assert case.tensors == {"*"} or set(file.keys()) == case.tensors
    assert not (tmp_path / "CANARY").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_within_a_loop_s_time_and_its_size_plus_a_constant(kind, tmp_path):
    """In a process with limited memory each file of a kind costs a bounded number of steps, and its own size plus a
    constant.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.hostile.limits", kind, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=2 * HANG_SECONDS)
    assert done.returncode == 0, done.stderr[-1000:]
    *results, last = map(json.loads, done.stdout.splitlines())
    assert last == {"canary": []}
    cases = [case for case in CASES if case.kind == kind]
    assert [result["case"] for result in results] == [case.name for case in cases]
    for case, result in zip(cases, results, strict=True):
        assert result["code"] == (3 if case.tensors is None else 0), f"{case}: {result}"
        assert result["steps"] < MOST_STEPS and result["grown"] < CONSTANT and not result["leaked"], f"{case}: {result}"
        if result["code"]:
            check_one_line(result["err"], str(case))


# SECURITY: what the libraries themselves accept, as measured with the versions named; paramcli refuses each of these.
LIBRARY_ACCEPTS = {
    "legacy": ["no storages listed: memory as weights"],
    "zip": ["a flipped bit in a weight", "deflated tensor", "a tensor marked as a folder: memory as weights"],
    "pickle": [
        "FloatTensor(n)",
        "a state dict key of bytes",
        "a state dict key of None",
        "1 beside '1'",
        "a dict in itself",
    ],
    "header": ["a name twice", "a name twice, one escaped", "metadata key twice", "an entry as a list"],
}


@pytest.mark.parametrize("kind, what", [(kind, what) for kind, names in LIBRARY_ACCEPTS.items() for what in names])
def test_the_libraries_accept_what_is_refused_here(kind, what, tmp_path, paramcli):
    """The checks are needed: torch 2.13 or safetensors 0.8 reads the file that paramcli refuses."""
    case = next(case for case in CASES if (case.kind, case.name) == (kind, what))
    assert case.tensors is None
    path = case.make(tmp_path)
    paramcli("convert", path, "-o", tmp_path / "out.safetensors", code=3)
    if kind == "header" and safetensors.__version__.startswith("0.8."):
        with safe_open(path, "pt") as file:
            assert file.keys() is not None
    elif kind != "header" and torch.__version__.startswith("2.13"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(path.read_bytes()), weights_only=True, map_location="cpu")
