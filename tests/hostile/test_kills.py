"""SIGKILL and stop signals at random moments: the input intact, the output old or whole, the next run sound.

Two kills of each kind of run always, twenty with -m slow. Each run is a fork of this process, so that torch is loaded
once.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paramcli.checkpoint.disk.interrupts import Interrupted
from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.cli import app

ADD = ["-t", "l.*.weight", "--chain", "symmetric", "-q"]
# name: (command, input, output); the output "" is the input, in place.
RUNS = {
    "add": (["add", *ADD], "m.safetensors", "out.safetensors"),
    "add to a torch file": (["add", *ADD], "m.safetensors", "out.pt"),
    "add to shards": (["add", *ADD], "shards", "out"),
    "add in place": (["add", *ADD, "--in-place"], "m.safetensors", ""),
    "add to shards in place": (["add", *ADD, "--in-place"], "shards", ""),
    "remove": (["remove", "-q"], "w.safetensors", "out.safetensors"),
    "remove in place": (["remove", "-q", "--in-place"], "w.safetensors", ""),
    "migrate": (["migrate", "--to", "old", "-q"], "w.safetensors", "out.safetensors"),
    "convert": (["convert", "-q"], "m.pt", "out.safetensors"),
    "convert to shards": (["convert", "-q"], "m.pt", "out"),
    "add to a DCP folder": (["add", *ADD], "shards", "out.dcp"),
    "add without waiting": (["add", *ADD, "--no-sync"], "m.safetensors", "out.safetensors"),
    "add to shards without waiting": (["add", *ADD, "--no-sync"], "shards", "out"),
}


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def quietly(arguments: list[str], folder: Path) -> int:
    """The pid of a fork that runs the command line in the folder."""
    # Signals wait outside of the command, from the first moment on: what surrounds it here is this test's, not the
    # tool's.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return child
    code = 99
    try:
        os.chdir(folder)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        work = app._dispatch

        def dispatch(arguments: list[str]) -> int:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
            try:
                return work(arguments)
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
                # Threads that live on (the disk's, torch's) do not block it, and would have it raised here.
                signal.signal(signal.SIGINT, signal.SIG_IGN)

        app._dispatch = dispatch
        for number in STOPS:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        code = app.run(arguments)
    finally:
        os._exit(code)


def wait(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def tensors(path: Path) -> dict[str, bytes] | None:
    """Every tensor's bytes, by a reader that refuses what is not whole; None where nothing is."""
    if not os.path.lexists(path):
        return None
    with open_checkpoint(path) as source:
        return {name: bytes(source.read_bytes(name)) for name in source.tensors}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    state = {f"l.{n}.weight": torch.randn(160, 160) for n in range(6)} | {
        f"other.{n}": torch.randn(5000) for n in range(6)
    }
    save_file(state, folder / "m.safetensors", {"format": "pt"})
    torch.save(state, folder / "m.pt")
    for command in (
        ["convert", "m.safetensors", "-o", "shards", "--max-shard-size", "300KB"],
        ["add", "m.safetensors", "-t", "l.*.weight", "--chain", "weight_norm", "-o", "w.safetensors"],
    ):
        assert wait(quietly(command, folder)) == 0
    return folder


# What an undisturbed run of each kind takes, starts from and ends with.
undisturbed: dict[str, tuple] = {}


def stopped(what: str, models: Path, folder: Path, how: int, chance: random.Random, moments: int) -> int:
    """Stop runs at random moments until that many were hit before their end; returns how many were."""
    command, source, output = RUNS[what]
    hits = 0

    def fresh(name: str) -> Path:
        place = folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        original = models / source
        (shutil.copytree if original.is_dir() else shutil.copy)(original, place / source)
        return place

    arguments = [command[0], source, *command[1:], *(["-o", output] if output else [])]
    if what not in undisturbed:
        reference = fresh("reference")
        start = time.perf_counter()
        assert wait(quietly(arguments, reference)) == 0
        undisturbed[what] = (
            time.perf_counter() - start,
            tensors(models / source),
            tensors(reference / (output or source)),
            bytes_of(reference),
        )
    duration, old, new, whole = undisturbed[what]

    for _ in range(moments if how != signal.SIGKILL else 4 * moments):
        if hits == moments:
            break
        place = fresh("run")
        before = bytes_of(place)
        child = quietly(arguments, place)
        time.sleep(chance.uniform(0, duration * 1.1))
        with suppress(ProcessLookupError):
            os.kill(child, how)
        code = wait(child)
        hits += code != 0
        after = bytes_of(place)
        there = tensors(place / (output or source))
        if output:
            assert {name: after.get(name) for name in before} == before, f"{what}: the input changed"
            assert there is None or there == new, f"{what}: a partial output"
        else:
            assert there in (old, new), f"{what}: neither old nor new"
        left = {name for name in after if Path(name).name.startswith(".paramcli-") or ".paramcli-" in name}
        if how != signal.SIGKILL:
            assert not left, f"{what}: {left} stayed after signal {how} (exit {code})"
            assert code in (0, 128 + how), f"{what}: exit {code}"
        # The next run works, and trips over nothing.
        if output or there == old:
            assert wait(quietly([*arguments, "-f"], place)) == 0
        assert tensors(place / (output or source)) == new
        final = bytes_of(place)
        if output and not (place / output).is_dir():
            assert final[output] == whole[output]
        now = {name for name in final if ".paramcli-" in name}
        assert now <= left, f"{what}: the next run left {now - left}"
    return hits


@pytest.mark.parametrize("what", RUNS)
def test_a_few_kills(what, models, tmp_path):
    """Two kills of every kind of run: old or whole, and the next run works."""
    stopped(what, models, tmp_path, signal.SIGKILL, random.Random(what), 2)


@pytest.mark.slow
@pytest.mark.parametrize("what", RUNS)
def test_two_hundred_kills(what, models, tmp_path):
    """Twenty kills of each kind of run that really hit a running one."""
    hits = stopped(what, models, tmp_path, signal.SIGKILL, random.Random(f"slow {what}"), 20)
    print(what, hits)
    assert hits == 20


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("what", ["add", "add to shards", "add in place"])
def test_stop_signals_leave_nothing(what, how, models, tmp_path):
    """INT, TERM and HUP at random moments: exit 128 + signal or done, the folder as before or with the whole result."""
    stopped(what, models, tmp_path, how, random.Random(f"{what} {how}"), 1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("what", RUNS)
def test_many_stop_signals_leave_nothing(what, how, models, tmp_path):
    """The same, twenty times for every kind of run."""
    stopped(what, models, tmp_path, how, random.Random(f"many {what} {how}"), 20)


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (Interrupted(signal.SIGTERM), 143)])
def test_a_stop_while_a_class_is_made_is_a_stop(stop, code, monkeypatch, capfd):
    """Python 3.11 has a RuntimeError of it; what came is its cause."""

    def dispatch(arguments):
        raise RuntimeError("Error calling __set_name__ on 'Field' instance") from stop

    monkeypatch.setattr(app, "_dispatch", dispatch)
    assert app.run(["inspect", "x"]) == code
    assert "bug" not in capfd.readouterr().err
