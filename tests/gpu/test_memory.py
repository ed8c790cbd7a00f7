"""A GPU that is really out of memory: exit 3, the tensor named, nothing written, and the next command works."""

import os
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from . import DEVICE, NEEDS_GPU

pytestmark = NEEDS_GPU
# big.weight takes 4 MiB as it is stored, for which torch asks the device for 20.
SIDE, ROOM = 1024, 8 << 20
COMMANDS = {
    "add": ["add", "plain.safetensors", "-t", "*.weight", "--chain", "skew,cayley", "-o", "out.safetensors"],
    "bake": ["remove", "made.safetensors", "--bake", "-o", "out.safetensors"],
    "bake in place": ["remove", "made.safetensors", "--bake", "--in-place"],
    "assign": ["assign", "made.safetensors", "-t", "big.weight", "--with", "orthogonal", "-o", "out.safetensors"],
    "verify": ["verify", "made.safetensors", "--report", "r.html"],
    "discover": ["discover", "plain.safetensors", "--report", "r.html"],
    "spectrum": ["spectrum", "made.safetensors", "-t", "*.weight", "--svg", "s.svg"],
}


@contextmanager
def room_for(nbytes: int):
    """Within the block this process gets so much more of the device's memory."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + nbytes) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@pytest.fixture
def files(tmp_path, paramcli, monkeypatch):
    """A small and a large weight, plain and as rotations, in the working folder; returns what lies there."""
    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    save_file(
        {
            "small.weight": torch.randn(8, 8, generator=g),
            "big.weight": torch.randn(SIDE, SIDE, generator=g) / SIDE**0.5,
        },
        "plain.safetensors",
    )
    paramcli(
        "add",
        "plain.safetensors",
        "-t",
        "*.weight",
        "--chain",
        "skew,cayley",
        "--init",
        "raw",
        "--device",
        DEVICE,
        "-o",
        "made.safetensors",
    )
    return lambda: {name: open(name, "rb").read() for name in os.listdir(tmp_path)}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_tensor_that_does_not_fit_is_named(command, files, paramcli):
    """One error line and the way out; a file in place stays as it was; with room again the command does its work."""
    before = files()
    with room_for(ROOM):
        told = paramcli(*COMMANDS[command], "--device", DEVICE, code=3)
    errors = [line for line in told.err.splitlines() if line.startswith("error:")]
    assert (
        len(errors) == 1
        and errors[0].startswith("error: big.weight: the device is out of memory")
        and "--device cpu" in told.err
    )
    assert files() == before
    paramcli(*COMMANDS[command], "--device", DEVICE)
