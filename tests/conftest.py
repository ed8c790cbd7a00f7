"""Fixtures that many tests share: paths, small checkpoints, and the command line as a function."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
# A run in the background (nohup, a shell's &) ignores these, its children do too, and tests of signals would wait for
# ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Values must not depend on how many cores a machine has.
torch.set_num_threads(1)


@pytest.fixture
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture
def adapters(fixtures) -> Path:
    """Adapters that PEFT saved, and the bases that they are of."""
    return fixtures / "adapters"


class Result:
    """What one command line did."""

    def __init__(self, code: int, out: str, err: str):
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> dict:
        return json.loads(self.out, parse_constant=lambda text: pytest.fail(f"not strict JSON: {text}"))


@pytest.fixture
def paramcli(capfd):
    """Run a command line in this process; returns Result. Any traceback is a test failure."""
    from paramcli.cli.app import run

    def call(*arguments: object, code: int | None = 0) -> Result:
        capfd.readouterr()
        got = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err + out
        if code is not None:
            assert got == code, f"exit {got}, wanted {code}\n{out}\n{err}"
        return Result(got, out, err)

    return call


@pytest.fixture
def shell(tmp_path):
    """Run a command line in a new process, in tmp_path; returns Result."""

    def call(*arguments: object, code: int | None = 0, **environment: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "paramcli", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr
        if code is not None:
            assert done.returncode == code, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def fc_checkpoint(tmp_path) -> Path:
    """ckpt.pt of a live model: a square fc.weight, a rectangular out.weight, biases, a conv kernel."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {"fc": torch.nn.Linear(16, 16), "out": torch.nn.Linear(16, 4), "conv": torch.nn.Conv2d(3, 8, 3)}
    )
    torch.save(model.state_dict(), tmp_path / "ckpt.pt")
    return tmp_path / "ckpt.pt"
