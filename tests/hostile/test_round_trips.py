"""Random state dicts of every dtype through every command that writes: what is not edited keeps every byte."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from paramcli.cli.app import run
from paramcli.dtypes import CODE_OF_TORCH

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8).filter(
    lambda name: name != "__metadata__" and "parametrizations" not in name and "_" not in name
)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
DTYPES = [getattr(torch, name) for name in CODE_OF_TORCH]
EDITED = "edited.weight"
EXAMPLES = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@st.composite
def states(draw) -> dict[str, torch.Tensor]:
    """Up to five tensors of random bytes, NaN payloads and -0 among them, and one square matrix to edit."""
    state = {}
    for name in draw(st.lists(NAMES, max_size=5, unique=True)):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(SHAPES)
        size = torch.empty(shape, dtype=dtype).nbytes
        raw = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
        state[name] = (
            (raw % 2 == 1).reshape(shape)
            if dtype is torch.bool
            else raw.view(dtype).reshape(shape)
            if size
            else torch.empty(shape, dtype=dtype)
        )
    side = draw(st.integers(1, 4))
    floating = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    numbers = draw(
        st.lists(
            st.floats(-4, 4, width=16).filter(lambda x: x == 0 or abs(x) > 0.01),
            min_size=side * side,
            max_size=side * side,
        )
    )
    numbers[0] = numbers[0] or 1.0  # a weight norm has no direction at zero
    return state | {EDITED: torch.tensor(numbers, dtype=torch.float64).reshape(side, side).to(floating)}


def raw(state: dict[str, torch.Tensor]) -> dict[str, tuple]:
    return {
        name: (
            t.dtype,
            tuple(t.shape),
            t.contiguous().flatten().view(torch.uint8).numpy().tobytes() if t.numel() else b"",
        )
        for name, t in state.items()
    }


def in_folder(check) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        check(folder)
    finally:
        shutil.rmtree(folder)


def do(*arguments: object) -> None:
    assert run([*map(str, arguments), "-q", "--check"]) == 0


@EXAMPLES
@given(states())
def test_untouched_tensors_keep_every_byte(state):
    """add, remove, assign and migrate in both containers, and shards: every other tensor comes out bit for bit."""

    def check(folder: Path) -> None:
        save_file(state, folder / "in.safetensors", {"format": "pt"})
        others = {name: value for name, value in raw(state).items() if name != EDITED}
        a, b, c, d, e = (folder / f"{n}.safetensors" for n in "abcde")
        do("add", folder / "in.safetensors", "-t", EDITED, "--chain", "weight_norm:dim=none", "--init", "raw", "-o", a)
        do("remove", a, "-o", b)
        do("migrate", a, "--to", "old", "-o", c)
        do("assign", folder / "in.safetensors", "-t", EDITED, "--with", "ones", "-o", d)
        do("add", folder / "in.safetensors", "-t", EDITED, "--chain", "symmetric", "-o", folder / "f.pt")
        do("convert", folder / "in.safetensors", "-o", folder / "shards", "--max-shard-size", "16")
        do("add", folder / "shards", "-t", EDITED, "--chain", "skew", "--in-place")
        do("convert", folder / "shards", "-o", e)
        torch_state = torch.load(folder / "f.pt", weights_only=True)
        for result in (*map(load_file, (a, b, c, d, e)), torch_state):
            assert {name: value for name, value in raw(result).items() if not name.startswith("edited.")} == others

    in_folder(check)


@EXAMPLES
@given(states())
def test_containers_and_spellings_round_trip(state):
    """safetensors -> pt -> safetensors, and new -> old -> new of a weight norm, give back the bytes."""

    def check(folder: Path) -> None:
        save_file(state, folder / "in.safetensors", {"format": "pt"})
        do("convert", folder / "in.safetensors", "-o", folder / "a.pt")
        do("convert", folder / "a.pt", "-o", folder / "b.safetensors")
        assert (folder / "b.safetensors").read_bytes() == (folder / "in.safetensors").read_bytes()
        do(
            "add",
            folder / "in.safetensors",
            "-t",
            EDITED,
            "--chain",
            "weight_norm:dim=none",
            "--init",
            "raw",
            "--spelling",
            "old",
            "-o",
            folder / "old.safetensors",
        )
        do("migrate", folder / "old.safetensors", "--to", "new", "-o", folder / "new.safetensors")
        do("migrate", folder / "new.safetensors", "--to", "old", "-o", folder / "again.safetensors")
        assert raw(load_file(folder / "again.safetensors")) == raw(load_file(folder / "old.safetensors"))

    in_folder(check)


@EXAMPLES
@given(states(), st.sampled_from(["symmetric", "skew", "skew,cayley", "symmetric,matrix_exp"]))
def test_adding_raw_and_taking_off_is_the_identity(state, chain):
    """add --init raw, then remove --no-bake: the original is the weight that was there, bit for bit, of every floating
    dtype.
    """

    def check(folder: Path) -> None:
        save_file(state, folder / "in.safetensors", {"format": "pt"})
        do(
            "add",
            folder / "in.safetensors",
            "-t",
            EDITED,
            "--chain",
            chain,
            "--init",
            "raw",
            "-o",
            folder / "a.safetensors",
        )
        do("remove", folder / "a.safetensors", "--no-bake", "-o", folder / "b.safetensors")
        assert raw(load_file(folder / "b.safetensors")) == raw(state)

    in_folder(check)
