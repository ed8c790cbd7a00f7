"""Stops at the moments that belong to others: while torch is imported, and while the interpreter ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ..pace import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]


def test_a_stop_waits_until_torch_is_imported(tmp_path):
    """An exception amid torch's C++ would abort the process, which then cleans nothing up."""
    (tmp_path / "torch.py").write_text("import os, signal\nfor n in (15, 2): os.kill(os.getpid(), n)\nloaded = True\n")
    code = (
        "import sys\n"
        "from paramcli.checkpoint.disk.interrupts import Interrupted, import_torch, signals_as_exceptions\n"
        "with signals_as_exceptions():\n"
        "    try: import_torch()\n"
        "    except Interrupted as stop: assert stop.signal == 15 and sys.modules['torch'].loaded; print('held')\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        timeout=HANG_SECONDS,
    )
    assert said.stdout == "held\n", said.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_that_comes_when_all_is_done_changes_nothing(number):
    """The result is out and its exit code is known; no traceback of what ends beside the interpreter."""
    code = (
        f"import atexit, os\natexit.register(os.kill, os.getpid(), {int(number)})\n"
        "from paramcli.cli.app import main\nmain(['registry', 'skew'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0 and not done.stderr and "skew" in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        "add a.safetensors -t w --chain symmetric -o o.safetensors",
        "convert a.safetensors --dtype bfloat16 -o o.safetensors",
        "verify a.safetensors -t w --constraint any",
        "discover a.safetensors",
        "spectrum a.safetensors -t w",
        "diff a.safetensors b.safetensors",
    ],
)
def test_every_command_imports_torch_with_stops_held(command, tmp_path):
    """The first import of it in a process is that one."""
    for name in ("a", "b"):
        save_file({"w": torch.rand(3, 3)}, tmp_path / f"{name}.safetensors")
    code = (
        "import sys, paramcli.checkpoint.disk.interrupts as module\n"
        "real, seen = module.import_torch, []\n"
        "module.import_torch = lambda: (seen.append('torch' in sys.modules), real())\n"
        "from paramcli.cli.app import run\n"
        f"run({command.split()!r})\n"
        "assert seen and not seen[0] and 'torch' in sys.modules, seen\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr
