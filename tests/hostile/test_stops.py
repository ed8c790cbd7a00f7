"""Stops at the moments that belong to others: while torch is imported, and while the interpreter ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_a_stop_waits_until_torch_is_imported(tmp_path):
    """An exception amid torch's C++ would abort the process, which then cleans nothing up."""
    (tmp_path / "torch.py").write_text("import os, signal\nfor n in (15, 2): os.kill(os.getpid(), n)\nloaded = True\n")
    code = (
        "import sys\n"
        "from paramcli.checkpoint.interrupts import Interrupted, import_torch, signals_as_exceptions\n"
        "with signals_as_exceptions():\n"
        "    try: import_torch()\n"
        "    except Interrupted as stop: assert stop.signal == 15 and sys.modules['torch'].loaded; print('held')\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}, timeout=60)
    assert said.stdout == "held\n", said.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_that_comes_when_all_is_done_changes_nothing(number):
    """The result is out and its exit code is known; no traceback of what ends beside the interpreter."""
    code = f"import atexit, os\natexit.register(os.kill, os.getpid(), {int(number)})\nfrom paramcli.cli.app import main\nmain(['registry', 'skew'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr and "skew" in done.stdout
