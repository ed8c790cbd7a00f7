"""The exit code is the verdict's, whoever reads the output and for how long."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

# Runs a command line in so many children, each writing to a pipe whose reader takes one line, or leaves at once.
PIPES = """
import os, sys
import torch
from paramcli.cli.app import main

lines, times, *arguments = sys.argv[1:]
codes = []
for _ in range(int(times)):
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.close(ours)
        os.dup2(theirs, 1)
        if "--messages" in arguments:
            os.dup2(theirs, 2)
        main([argument for argument in arguments if argument != "--messages"])
    os.close(theirs)
    reader = os.fdopen(ours)
    for _ in range(int(lines)):
        reader.readline()
    reader.close()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(sorted(set(codes)))
"""


def codes(tmp_path, lines: int, times: int, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PIPES, str(lines), str(times), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Good and bad, each with output that stays within a pipe's buffer and with output that fills it."""
    folder = tmp_path_factory.mktemp("pipes")
    torch.manual_seed(0)
    for size, count in (("small", 1), ("large", 900)):
        names = [f"layer{i}.{'x' * 60}" for i in range(count)]
        save_file({name: torch.eye(4) for name in names}, folder / f"good-{size}.safetensors")
        save_file({name: torch.randn(4, 4) for name in names}, folder / f"bad-{size}.safetensors")
    return folder


@pytest.mark.parametrize("size, lines", [("small", 0), ("large", 1)])
@pytest.mark.parametrize("file, code", [("good", 0), ("bad", 1)])
def test_verify_into_a_pipe_that_closes(files, file, code, size, lines):
    """20 of 20 times verify exits with its verdict, though nobody reads the table to its end."""
    assert (
        codes(files, lines, 20, "verify", f"{file}-{size}.safetensors", "-t", "*", "--constraint", "orthogonal")
        == f"[{code}]"
    )


@pytest.mark.parametrize("how", [["--json"], ["--messages"]])
def test_other_answers_into_a_pipe_that_closes(files, how):
    """So it is for a JSON document, for messages in the same pipe, and for diff."""
    names = "bad-large.safetensors", "-t", "*", "--constraint", "orthogonal"
    assert codes(files, 0, 3, "verify", *names, *how) == "[1]"
    assert codes(files, 0, 3, "diff", "good-large.safetensors", "bad-large.safetensors", *how) == "[1]"
    assert codes(files, 0, 3, "diff", "good-large.safetensors", "good-large.safetensors", *how) == "[0]"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_is_no_verdict(files):
    """An answer that does not fit on its disk is exit 4 and one line; messages that do not fit leave the verdict as it
    is.
    """
    command = [
        sys.executable,
        "-m",
        "paramcli",
        "verify",
        "bad-small.safetensors",
        "-t",
        "*",
        "--constraint",
        "orthogonal",
    ]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=files)
        assert (
            done.returncode == 4
            and "error: stdout could not be written" in done.stderr
            and "Exception ignored" not in done.stderr
        )
        assert subprocess.run(command, stdout=subprocess.DEVNULL, stderr=full, cwd=files).returncode == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 4),
        (("verify", "--help"), 4),
        (("--version",), 4),
        (("verify", "nosuch.pt", "--json"), 3),
        (("registry", "nosuch"), 2),
    ],
)
def test_a_full_disk_hides_no_other_mistake(arguments, code, tmp_path):
    """Help that could not be shown is exit 4, and an error keeps its own code though its document could not be."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "paramcli", *arguments], stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
    assert done.returncode == code and done.stderr.startswith("error: ") and "Traceback" not in done.stderr


def test_an_ascii_stdout_gets_other_characters_escaped(tmp_path):
    """An answer is printed whole where its stream has no character for a part of it."""
    save_file({"größe.weight": torch.eye(4)}, tmp_path / "m.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "paramcli", "inspect", "m.safetensors"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=300,
    )
    assert done.returncode == 0 and "gr\\xf6\\xdfe.weight" in done.stdout, done


@pytest.mark.parametrize("command", [["inspect", "m.pt"], ["add", "m.pt", "-t", "w", "--chain", "skew"], ["registry"]])
def test_a_working_folder_that_was_removed_is_named(tmp_path, command):
    """No traceback of Python's start, and no fault of a library that torch loads."""
    gone = tmp_path / "gone"
    gone.mkdir()
    line = 'cd "$0" && rmdir "$0" && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", line, gone, sys.executable, "-m", "paramcli", *command],
        capture_output=True,
        text=True,
        timeout=300,
    )
    told = "error: the working folder is there no more\n  try: cd to one that is\n"
    assert (done.returncode, done.stdout, done.stderr) == (3, "", told)
