"""What a person sees: command lines run in this process, on a real pseudo-terminal or into a pipe.

One process for all of them, as `import torch` alone takes longer than most commands.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import runpy
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
# The environment variables that decide what rich and click draw.
DECIDING = (
    "COLUMNS",
    "LINES",
    "TERM",
    "COLORTERM",
    "NO_COLOR",
    "FORCE_COLOR",
    "PY_COLORS",
    "GITHUB_ACTIONS",
    "TERMINAL_WIDTH",
)


@contextmanager
def stage(folder: Path, columns: int | None, colour: bool) -> Iterator[Callable[[], str]]:
    """stdin, stdout and stderr are a terminal of so many columns, or with None a file; yields what gives the text so
    far.

    The text is known whole once the context is left.
    """
    saved = {name: os.environ.pop(name) for name in DECIDING if name in os.environ}
    os.environ["TERM"] = "xterm-256color"
    if not colour:
        os.environ["NO_COLOR"] = "1"
    master, reader, chunks = None, None, []
    if columns is None:
        slave = os.open(folder.parent / "piped", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    else:
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        reader = threading.Thread(target=_drain, args=(master, chunks), daemon=True)
        reader.start()
    sys.stdout.flush(), sys.stderr.flush()
    kept, streams, where = [os.dup(fd) for fd in range(3)], (sys.stdin, sys.stdout, sys.stderr), os.getcwd()
    for fd in range(3):
        os.dup2(slave, fd)
    os.close(slave)
    # Unbuffered, so that stdout and stderr come in the order in which they were written.
    sys.stdin, sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(fd, mode, closefd=False), encoding="utf-8", newline="\n", write_through=True)
        for fd, mode in enumerate("rww")
    )
    os.chdir(folder)
    try:
        yield lambda: _text(b"".join(chunks) if master is not None else (folder.parent / "piped").read_bytes())
    finally:
        os.chdir(where)
        sys.stdout.flush(), sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = streams
        for fd, old in enumerate(kept):
            os.dup2(old, fd)
            os.close(old)
        if reader is not None:
            reader.join()
            os.close(master)
        for name in DECIDING:
            os.environ.pop(name, None)
        os.environ.update(saved)


def _drain(master: int, chunks: list[bytes]) -> None:
    """Read until the last writer has closed the terminal."""
    while True:
        try:
            data = os.read(master, 1 << 16)
        except OSError:
            return
        if not data:
            return
        chunks.append(data)


def _text(data: bytes) -> str:
    return data.decode().replace("\r\n", "\n")


def run_line(
    line: str, folder: Path, columns: int | None = 100, colour: bool = False, before: int = 0
) -> tuple[int, str]:
    """(exit code, all it printed) of one line of shell in that folder.

    `paramcli`, `python FILE` and `echo $?` joined by && and ; run in this process, any other line in bash.
    `before`: the exit code that $? stands for.
    """
    with stage(folder, columns, colour) as seen:
        code = _run(line, before)
    return code, seen()


def plain(text: str) -> str:
    """Without the terminal's control sequences, and without blanks at line ends."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return "\n".join(line.rstrip() for line in text.split("\n"))


def _run(line: str, code: int) -> int:
    parser = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    parser.whitespace_split = True
    steps, join = [[]], [";"]
    for word in parser:
        if word in ("&&", ";"):
            steps.append([])
            join.append(word)
        else:
            steps[-1].append(word)
    if not all(_is_ours(step) for step in steps):
        return _in_bash(line)
    for how, step in zip(join, steps, strict=True):
        if how == ";" or code == 0:
            code = _in_process(step, code)
    return code


def _is_ours(step: list[str]) -> bool:
    if any(set(word) <= set(";&|<>") for word in step) or not step:
        return False
    # A plug-in changes the table for good: in a process of its own.
    return (
        (step[0] == "paramcli" and "--plugin" not in step)
        or (step[0] == "python" and len(step) == 2 and "add_family" not in Path(step[1]).read_text())
        or step == ["echo", "$?"]
    )


def _in_process(step: list[str], code: int) -> int:
    from paramcli.cli.app import run

    if step[0] == "echo":
        print(code)
        return 0
    # How long a run takes decides whether progress is shown; no document may depend on it.
    with warnings.catch_warnings(), mock.patch("paramcli.show.progress.PATIENCE_SECONDS", 1e6):
        warnings.simplefilter("ignore")
        if step[0] == "paramcli":
            return run(step[1:])
        try:
            runpy.run_path(step[1], run_name="__main__")
        except Exception:
            traceback.print_exc()
            return 1
    return 0


def _in_bash(line: str) -> int:
    """With paramcli of this clone and this Python on the path, whether or not others are installed."""
    with tempfile.TemporaryDirectory() as folder:
        # As in this process: no document may depend on how long a run takes.
        patient = "from paramcli.show import progress; progress.PATIENCE_SECONDS = 1e6"
        ours = f"-c '{patient}; from paramcli.cli.app import main; main()' "
        for name, what in (("paramcli", ours), ("python", "")):
            command = Path(folder) / name
            command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {what}"$@"\n')
            command.chmod(0o755)
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": path}
        return subprocess.run(["bash", "-c", line], env=environment, check=False).returncode
