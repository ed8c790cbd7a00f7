"""Small files with something changed: never a traceback, never a hang, never a file that the library itself rejects.

Seeds are fixed. A few hundred mutations run always; 10,000 with -m slow.
"""

from __future__ import annotations

import json
import random
import signal
import struct
from collections.abc import Iterator

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.errors import InputRefused

from ..pace import HANG_SECONDS

STATE = {"fc.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half(), "n": torch.tensor([1, 2])}


def make_seed(kind: str, folder) -> bytes:
    if kind == "safetensors":
        return save(STATE, {"format": "pt", "note": "x"})
    if kind == "index":
        save_file({"a": torch.zeros(2)}, folder / "a.safetensors")
        save_file({"b": torch.zeros(2)}, folder / "b.safetensors")
        return json.dumps(
            {"metadata": {"total_size": 16}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
        ).encode()
    path = folder / "seed.pt"
    wrapped = {
        "state_dict": STATE,
        "epoch": 3,
        "opt": {"state": {0: {"m": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(wrapped, path, _use_new_zipfile_serialization=kind == "zip")
    return path.read_bytes()


NAMES = {
    "safetensors": "made.safetensors",
    "zip": "made.pt",
    "legacy": "made.pt",
    "index": "model.safetensors.index.json",
}
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


def outcome(path) -> str:
    """'read' or 'refused'; anything else is an error of the test. Every tensor of what opens is read."""

    def alarm(number, frame):
        raise Hang

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(HANG_SECONDS)
    try:
        with open_checkpoint(path) as source:
            for name in source.tensors:
                source.read_bytes(name)
        return "read"
    except InputRefused as error:
        assert "\n" not in error.message and error.message.isprintable()
        return "refused"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def accepted_by_the_library(path) -> bool:
    try:
        with safe_open(path, "pt") as file:
            for name in list(file.keys()):
                file.get_slice(name)
        return True
    except Exception:
        return False


def compare_with_torch(path, what: str) -> None:
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


def run(kind: str, folder, mutants: Iterator[tuple[str, bytes]]) -> dict[str, int]:
    counts = {"read": 0, "refused": 0}
    for what, data in mutants:
        path = folder / NAMES[kind]
        path.write_bytes(data)
        try:
            result = outcome(path)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            pytest.fail(f"{kind}, {what}: {type(error).__name__}: {error}; {data[:2000].hex()}")
        counts[result] += 1
        if result == "read" and kind == "safetensors":
            assert accepted_by_the_library(path), f"{what}: accepted, and safetensors rejects it: {data.hex()}"
        if result == "read" and kind in ("zip", "legacy"):
            compare_with_torch(path, what)
    return counts


def randomly(seed: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(count):
        yield f"mutation {number}", mutate(seed, random.Random(number))


@pytest.mark.parametrize("kind", NAMES)
def test_a_few_hundred_mutations(kind, tmp_path):
    """100 of each container: refused in one line, or read as the library reads it."""
    counts = run(kind, tmp_path, randomly(make_seed(kind, tmp_path), 100))
    assert counts["refused"] > 50


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_ten_thousand_mutations(kind, tmp_path):
    """2500 of each container."""
    counts = run(kind, tmp_path, randomly(make_seed(kind, tmp_path), 2500))
    print(kind, counts)
    assert counts["refused"] > 1500


@pytest.mark.parametrize("kind", [*NAMES])
def test_every_truncation_is_refused(kind, tmp_path):
    """Cut at any byte (of the larger containers at every third), a file is refused."""
    seed = make_seed(kind, tmp_path)
    step = 1 if len(seed) < 1000 else 3 if len(seed) < 3000 else 7
    counts = run(kind, tmp_path, ((f"cut at {n}", seed[:n]) for n in range(0, len(seed), step)))
    assert counts["read"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", NAMES)
def test_every_truncation_and_flip(kind, tmp_path):
    """Cut at every byte, and one bit of every byte flipped."""
    seed = make_seed(kind, tmp_path)
    assert run(kind, tmp_path, ((f"cut at {n}", seed[:n]) for n in range(len(seed))))["read"] == 0
    run(
        kind,
        tmp_path,
        ((f"flip at {n}", seed[:n] + bytes([seed[n] ^ (1 << n % 8)]) + seed[n + 1 :]) for n in range(len(seed))),
    )


@pytest.mark.parametrize("field", NUMBERS)
def test_a_length_field_of_any_number(field, tmp_path):
    """The header's length, and the first storage's count of a legacy file, set to anything."""
    seed = make_seed("safetensors", tmp_path)
    run("safetensors", tmp_path, iter([(f"length {field}", struct.pack("<Q", field) + seed[8:])]))
    seed = make_seed("legacy", tmp_path)
    at = seed.rindex(struct.pack("<Q", 2) + bytes(8))
    run("legacy", tmp_path, iter([(f"count {field}", seed[:at] + struct.pack("<Q", field) + seed[at + 8 :])]))
