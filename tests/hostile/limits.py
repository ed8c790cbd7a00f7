"""Run in a process of its own: every case of one kind through `convert`, under limits; one JSON line each."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import shutil
import sys
from pathlib import Path

from paramcli.checkpoint.pickle.pickle_data import MAX_OPCODES

from ..pace import steps

SECRET = b"PLANTED-SECRET-IN-THE-HEAP!"
# What the process may grow by beyond the file itself: the constant of "its own size plus a constant".
CONSTANT = 900 << 20
# What it may take, in steps of a plain Python loop: fifty for each opcode of the longest pickle there may be.
MOST_STEPS = 50 * MAX_OPCODES


def high_water() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def plant() -> None:
    """Leave the secret in freed memory, where uninitialised tensors would find it."""
    held = [bytearray(SECRET * (size // len(SECRET) + 1)) for size in (64, 1000, 16_000, 64_000) for _ in range(300)]
    del held


def main(kind: str, folder: Path) -> None:
    importlib.import_module("torch")  # the limit is for what the files cause

    from paramcli.cli.app import run

    from .cases import CASES

    os.chdir(folder)
    soft = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (3 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    code, err = 0, io.StringIO()
    for number, case in enumerate(case for case in CASES if case.kind == kind):
        place = folder / str(number)
        place.mkdir()
        path = case.make(place)
        before = high_water()
        size = sum(f.stat().st_size for f in place.rglob("*") if f.is_file() and not f.is_symlink())
        plant()
        made = place / "out.safetensors"

        def convert(path: Path = path, made: Path = made) -> None:
            nonlocal code, err
            made.unlink(missing_ok=True)
            err = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
                code = run(["convert", str(path), "-o", str(made)])

        took = steps(convert, MOST_STEPS)
        leaked = made.exists() and SECRET[:12] in made.read_bytes()
        told = {
            "case": case.name,
            "code": code,
            "steps": took,
            "grown": high_water() - before - size,
            "err": err.getvalue(),
            "leaked": leaked,
        }
        print(json.dumps(told), flush=True)
        shutil.rmtree(place)
    print(json.dumps({"canary": [str(p) for p in folder.rglob("CANARY*")]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
