"""Progress: on stderr, for a person, and only when there is something to wait for."""

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from paramcli.show import progress
from paramcli.show.progress import Meter

from ..pace import HANG_SECONDS


def on_a_terminal(arguments, cwd, **environment):
    """(exit code, stdout, what the terminal at stderr showed) of a command line whose stdout is a pipe."""
    main, side = pty.openpty()
    code = (
        "import sys; from paramcli.show import progress; progress.PATIENCE_SECONDS = float(sys.argv[1]); "
        "from paramcli.cli.app import run; sys.exit(run(sys.argv[2:]))"
    )
    env = {**os.environ, "COLUMNS": "100", "TERM": "xterm", **environment}
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=side,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env=env,
    )
    os.close(side)
    shown = []

    def read():
        try:
            while chunk := os.read(main, 65536):
                shown.append(chunk)
        except OSError:
            pass  # Linux answers EIO when the other side has closed

    reader = threading.Thread(target=read)
    reader.start()
    out = process.communicate(timeout=HANG_SECONDS)[0].decode()
    reader.join()
    os.close(main)
    return process.returncode, out, b"".join(shown).decode()


@pytest.fixture
def work(tmp_path):
    torch.manual_seed(0)
    save_file({f"w{i}": torch.randn(200, 200) for i in range(12)}, tmp_path / "a.safetensors")
    return tmp_path


def test_a_long_run_shows_tensors_bytes_and_rate(work):
    """With patience taken away the line appears, is cleared at the end, and stdout holds the table alone."""
    code, out, shown = on_a_terminal(["0", "add", "a.safetensors", "-t", "*", "--chain", "orthogonal"], work)
    assert code == 0 and "w11" in out and "\x1b" not in out
    assert re.search(r"\d+/12 tensors", shown) and "B/s" in shown and "MiB" in shown
    assert "wrote a.parametrized.safetensors" in shown.splitlines()[-2]


def test_a_short_run_and_a_quiet_one_show_nothing(work):
    """What is over within the second draws no line; -q silences it whatever it takes."""
    for arguments in (
        ["1e6", "verify", "a.safetensors", "-t", "w0", "--constraint", "any"],
        ["0", "add", "a.safetensors", "-t", "*", "--chain", "skew", "-q"],
    ):
        assert "tensors" not in re.sub("1 tensor in.*", "", on_a_terminal(arguments, work)[2])


def test_no_terminal_no_line(work, monkeypatch, paramcli):
    """A pipe at stderr gets messages only, without waiting."""
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0)
    for command in (("discover",), ("diff", work / "a.safetensors"), ("spectrum", "-t", "w1")):
        result = paramcli(command[0], work / "a.safetensors", *command[1:])
        assert "/12" not in result.err and "B/s" not in result.err and "\x1b" not in result.err


def test_an_error_takes_the_line_away_first(monkeypatch):
    """The meter is gone before the message of what went wrong is written, and its threads with it."""
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0)
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    before = threading.active_count()
    with pytest.raises(ValueError), Meter(console, "add", 3, 300) as meter:
        meter.advance(100)
        raise ValueError
    deadline = time.monotonic() + HANG_SECONDS
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before
    assert Meter(None, "add", 1, 1).__enter__().advance(5) is None
