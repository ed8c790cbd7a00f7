"""Small files with something changed: never a traceback, never a hang, never a file that the library itself rejects.

Seeds are fixed. A few hundred mutations run always; 10,000 of each container with -m slow.
"""

from __future__ import annotations

import json
import pickle
import random
import resource
import signal
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import save, save_file

from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.cli.app import run as run_command
from paramcli.errors import InputRefused
from paramcli.spelling.opened import open_groups

# CPU time, whatever else the machine does; the worst that was seen of a few kilobytes is 0.2.
HANG_CPU_SECONDS = 5

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half(), "n": torch.tensor([1, 2])}


class Part:
    """What of a checkpoint is changed: `data`, and `build`, which makes the checkpoint of another one and says what to
    open.
    """

    def __init__(self, data: bytes, build: Callable[[bytes], Path]):
        self.data, self.build = data, build


def made(folder: Path, name: str) -> Callable[[bytes], Path]:
    """The whole file is the part."""

    def build(data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return build


WRAPPED = {
    "state_dict": STATE,
    "epoch": 3,
    "opt": {"state": {0: {"m": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
}


def _safetensors(folder: Path) -> Part:
    return Part(save(STATE, {"format": "pt", "note": "x"}), made(folder, "made.safetensors"))


def _header(folder: Path) -> Part:
    """The JSON of a safetensors header, whose length is set right."""
    data = save(STATE, {"format": "pt"})
    size = int.from_bytes(data[:8], "little")
    build = made(folder, "made.safetensors")
    return Part(data[8 : 8 + size], lambda text: build(struct.pack("<Q", len(text)) + text + data[8 + size :]))


def _record(folder: Path) -> Part:
    """The record of a parametrized tensor, in a header that is sound."""
    tensor = {"state": "parametrized", "chain": "skew,cayley", "view": "blocks=2", "constraint": "special_orthogonal"}
    record = {"schema": 1, "version": "0.1.0", "tensors": {"fc.weight": tensor, "b": {**tensor, "state": "baked"}}}
    state = {"fc.parametrizations.weight.original": torch.zeros(4, 2), "b": torch.eye(4)}

    def build(text: bytes) -> Path:
        save_file(state, folder / "made.safetensors", {"paramcli": text.decode("utf-8", "replace")})
        return folder / "made.safetensors"

    return Part(json.dumps(record).encode(), build)


def _index(folder: Path) -> Part:
    save_file({"a": torch.zeros(2)}, folder / "a.safetensors")
    save_file({"b": torch.zeros(2)}, folder / "b.safetensors")
    index = {"metadata": {"total_size": 16}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    return Part(json.dumps(index).encode(), made(folder, "model.safetensors.index.json"))


def _zip(folder: Path) -> Part:
    torch.save(WRAPPED, folder / "seed.pt")
    return Part((folder / "seed.pt").read_bytes(), made(folder, "made.pt"))


def _legacy(folder: Path) -> Part:
    torch.save(WRAPPED, folder / "seed.pt", _use_new_zipfile_serialization=False)
    return Part((folder / "seed.pt").read_bytes(), made(folder, "made.pt"))


def _pickle(folder: Path) -> Part:
    """The pickle of a torch file, in an archive that is sound."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    torch.save({"model": model, "names": OrderedDict(a=("b", {1: 2.5})), "step": 7}, folder / "seed.pt")
    with zipfile.ZipFile(folder / "seed.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in entries if name.endswith("data.pkl"))

    def build(data: bytes) -> Path:
        with zipfile.ZipFile(folder / "made.pt", "w") as archive:
            for name, entry in {**entries, pickled: data}.items():
                archive.writestr(name, entry)
        return folder / "made.pt"

    return Part(entries[pickled], build)


def _arrays(folder: Path) -> Part:
    """A plain pickle of numpy arrays, one of which stays in the file."""
    arrays = {
        "fc.weight": numpy.arange(6.0).reshape(2, 3),
        "b": numpy.arange(3, dtype=">i2"),
        "n": numpy.zeros((700, 2)),
    }
    data = pickle.dumps({"model": arrays, "__author__": "x", "step": numpy.float32(7)}, protocol=4)
    return Part(data, made(folder, "made.pkl"))


def _dcp(folder: Path) -> Part:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(dict(STATE), checkpoint_id=folder / "dcp", no_dist=True)
    data = (folder / "dcp" / ".metadata").read_bytes()

    def build(data: bytes) -> Path:
        (folder / "dcp" / ".metadata").write_bytes(data)
        return folder / "dcp"

    return Part(data, build)


KINDS = {
    "safetensors": _safetensors,
    "header": _header,
    "record": _record,
    "index": _index,
    "zip": _zip,
    "legacy": _legacy,
    "pickle": _pickle,
    "arrays": _arrays,
    "dcp": _dcp,
}
# A record, and most of a pickle, say nothing of what the bytes of a tensor are: much of what is changed there reads.
MOSTLY_REFUSED = {"safetensors", "zip", "legacy", "index"}
NUMBERS = [
    0,
    1,
    2,
    7,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    1 << 31,
    (1 << 32) - 1,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]


def mutate(data: bytes, chance: random.Random) -> bytes:
    """One to three of: bits flipped, a byte set, a cut, a piece repeated, removed or moved, a number field changed, two
    files spliced.
    """
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at = chance.randrange(len(data) + 1)
        how = chance.randrange(9)
        piece = data[at : at + chance.choice((1, 2, 4, 8, 16, 64))]
        if how <= 1 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
        elif how == 2 and at < len(data):
            data = (
                data[:at]
                + bytes([chance.choice((0, 0xFF, 0x22, 0x7B, 0x2E, 0x28, 0x52, 0x71, chance.randrange(256)))])
                + data[at + 1 :]
            )
        elif how == 3:
            data = data[:at]
        elif how == 4:
            data = data[:at] + piece * chance.choice((2, 3, 50)) + data[at + len(piece) :]
        elif how == 5:
            data = data[:at] + data[at + len(piece) :]
        elif how == 6:
            there = chance.randrange(len(data) + 1)
            data = data[:there] + piece + data[there:]
        elif how == 7:
            width = chance.choice((1, 2, 4, 8))
            value = chance.choice(NUMBERS) & ((1 << 8 * width) - 1)
            data = data[:at] + value.to_bytes(width, chance.choice(("little", "big"))) + data[at + width :]
        else:
            data = data[:at] + data[chance.randrange(len(data) + 1) :]
    return data


class Hang(BaseException):
    pass


def outcome(path: Path) -> str:
    """'read' or 'refused'; anything else is an error of the test. Every tensor of what opens is read."""

    def alarm(number, frame):
        raise Hang

    before = signal.signal(signal.SIGPROF, alarm)
    signal.setitimer(signal.ITIMER_PROF, HANG_CPU_SECONDS)
    try:
        with open_groups(path) as opened:
            for name in opened.source.tensors:
                opened.source.read_bytes(name)
        return "read"
    except InputRefused as error:
        assert "\n" not in error.message and error.message.isprintable()
        return "refused"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def carried(path: Path, out: Path) -> None:
    """What reads can be written, and read back with each key and byte, or is refused by name with nothing written."""
    out.unlink(missing_ok=True)
    code = run_command(["convert", str(path), "-o", str(out), "--quiet"])
    assert code in (0, 2, 3) and out.exists() == (code == 0)
    if code == 0:
        with open_checkpoint(path) as before, open_checkpoint(out) as after:
            assert set(before.tensors) == set(after.tensors)
            assert all(before.read_bytes(name) == after.read_bytes(name) for name in before.tensors)
        assert accepted_by_the_library(out)


def accepted_by_the_library(path: Path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            for name in list(file.keys()):
                file.get_slice(name)
        return True
    except Exception:
        return False


def compare_with_torch(path: Path, what: str) -> None:
    """Where torch reads the file too, its tensors are ours, byte for byte."""
    try:
        theirs = torch.load(path, weights_only=True, map_location="cpu")
    except Exception:
        return  # classes that torch stops at are read past here
    with open_checkpoint(path) as source:
        for key in source.root_path:
            theirs = theirs[key]
        for name in source.tensors:
            assert source.read_bytes(name) == theirs[name].contiguous().flatten().view(torch.uint8).numpy().tobytes(), (
                f"{what}: {name} differs from torch's"
            )


def run(kind: str, part: Part, mutants: Iterator[tuple[str, bytes]], out: Path | None = None) -> dict[str, int]:
    assert outcome(part.build(part.data)) == "read"
    counts = {"read": 0, "refused": 0}
    for what, data in mutants:
        path = part.build(data)
        try:
            result = outcome(path)
            if result == "read" and out is not None:
                carried(path, out)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            pytest.fail(f"{kind}, {what}: {type(error).__name__}: {error}; {data[:2000].hex()}")
        counts[result] += 1
        if result == "read" and kind in ("safetensors", "header"):
            assert accepted_by_the_library(path), f"{what}: accepted, and safetensors rejects it: {data.hex()}"
        if result == "read" and kind in ("zip", "legacy"):
            compare_with_torch(path, what)
    return counts


def randomly(seed: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(count):
        yield f"mutation {number}", mutate(seed, random.Random(number))


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_hundred_mutations(kind, tmp_path):
    """100 of each container: refused in one line, or read as the library reads it."""
    part = KINDS[kind](tmp_path)
    counts = run(kind, part, randomly(part.data, 100))
    assert counts["refused"] > (50 if kind in MOSTLY_REFUSED else 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_mutations(kind, tmp_path, capfd):
    """Of each container: what reads is carried into another file whole; no memory is taken for what is not there."""
    part, before = KINDS[kind](tmp_path), peak_memory()
    counts = run(kind, part, randomly(part.data, 10_000), tmp_path / "out.safetensors")
    with capfd.disabled():
        print(kind, counts)
    assert counts["refused"] > (5000 if kind in MOSTLY_REFUSED else 0) and peak_memory() - before < 500 << 20


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


WHOLE = ["safetensors", "zip", "legacy", "index", "arrays"]


@pytest.mark.parametrize("kind", WHOLE)
def test_every_truncation_is_refused(kind, tmp_path):
    """Cut at any byte (of the larger containers at every third), a file is refused."""
    part = KINDS[kind](tmp_path)
    step = 1 if len(part.data) < 1000 else 3 if len(part.data) < 3000 else 7
    counts = run(kind, part, ((f"cut at {n}", part.data[:n]) for n in range(0, len(part.data), step)))
    assert counts["read"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_and_flip(kind, tmp_path):
    """Cut at every byte, and one bit of every byte flipped. A header that lacks the spaces at its end is one still, and
    the library's too.
    """
    part = KINDS[kind](tmp_path)
    data, out = part.data, tmp_path / "out.safetensors"
    counts = run(kind, part, ((f"cut at {n}", data[:n]) for n in range(len(data))))
    assert counts["read"] == (len(data) - len(data.rstrip(b" ")) if kind == "header" else 0)
    run(
        kind,
        part,
        ((f"flip at {n}", data[:n] + bytes([data[n] ^ (1 << n % 8)]) + data[n + 1 :]) for n in range(len(data))),
        out,
    )


@pytest.mark.parametrize("field", NUMBERS)
def test_a_length_field_of_any_number(field, tmp_path):
    """The header's length, and the first storage's count of a legacy file, set to anything."""
    part = KINDS["safetensors"](tmp_path)
    run("safetensors", part, iter([(f"length {field}", struct.pack("<Q", field) + part.data[8:])]))
    part = KINDS["legacy"](tmp_path)
    at = part.data.rindex(struct.pack("<Q", 2) + bytes(8))
    run("legacy", part, iter([(f"count {field}", part.data[:at] + struct.pack("<Q", field) + part.data[at + 8 :])]))
