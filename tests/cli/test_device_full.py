"""A GPU without the memory that a tensor needs: one line that names the tensor and the way out, exit 3, nothing
written.
"""

import os

import pytest
import torch
from safetensors.torch import save_file

from paramcli.cli import app
from paramcli.fitting import measure

# As the allocator, the driver, MPS and the libraries for linear algebra say it.
ERRORS = [
    torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.19 GiB.\n"
        "See the documentation"
    ),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB, max allowed: 9.07 GB)."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]
COMMANDS = {
    "add": ["add", "plain.safetensors", "-t", "fc.weight", "--chain", "skew,cayley", "-o", "out.safetensors"],
    "add to many": ["add", "plain.safetensors", "-t", "*.weight", "--chain", "skew,cayley", "-o", "out.safetensors"],
    "assign": ["assign", "made.safetensors", "-t", "fc.weight", "--with", "orthogonal", "-o", "out.safetensors"],
    "bake": ["remove", "made.safetensors", "--bake", "-o", "out.safetensors"],
    "bake in place": ["remove", "made.safetensors", "--bake", "--in-place"],
    "verify": ["verify", "made.safetensors", "--report", "r.html"],
    "discover": ["discover", "plain.safetensors", "-t", "fc.weight", "--report", "r.html"],
    "spectrum": ["spectrum", "plain.safetensors", "-t", "fc.weight", "--svg", "s.svg"],
}


@pytest.fixture
def files(tmp_path, paramcli, monkeypatch):
    """A plain file and one with a chain, in the working folder; returns what lies there."""
    monkeypatch.chdir(tmp_path)
    save_file({f"{name}.weight": torch.randn(8, 8) for name in ("fc", "gc")}, "plain.safetensors")
    paramcli("add", "plain.safetensors", "-t", "fc.weight", "--chain", "skew,cayley", "-o", "made.safetensors")
    return lambda: {name: open(name, "rb").read() for name in os.listdir(tmp_path)}


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:12])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_tensor_and_the_way_out_are_named(command, error, files, paramcli, monkeypatch):
    """No command goes on without the tensor either: it is not the tensor that is wrong."""

    def full(*arguments):
        raise error

    monkeypatch.setattr(measure, "all_finite", full)
    before = files()
    told = paramcli(*COMMANDS[command], code=3)
    name = COMMANDS[command][1]
    assert told.err == (
        f"error: fc.weight: the device is out of memory (in {name})\n"
        "  try: --device cpu, or end what else uses the device\n"
    )
    assert told.out == "" and files() == before


def test_the_document_names_it_too(files, paramcli, monkeypatch):
    """Scripts tell a full device from a refused input by its code."""

    def full(*arguments):
        raise ERRORS[0]

    monkeypatch.setattr(measure, "all_finite", full)
    told = paramcli("verify", "made.safetensors", "--json", code=3).json["error"]
    assert (told["code"], told["tensor"], told["path"]) == ("device_full", "fc.weight", "made.safetensors")


def test_a_stack_that_does_not_fit_is_computed_one_by_one(files, paramcli, monkeypatch):
    """Small tensors are computed together where there is room, and alone where there is none: the same bytes."""
    from paramcli.surgery import execute

    line = ["add", "plain.safetensors", "-t", "*.weight", "--chain", "skew,cayley", "-o"]
    paramcli(*line, "together.safetensors")
    asked = []

    def full(*arguments):
        asked.append(arguments)
        raise ERRORS[0]

    monkeypatch.setattr(execute, "by_parts", full)
    paramcli(*line, "alone.safetensors")
    assert asked and files()["alone.safetensors"] == files()["together.safetensors"]


def fails_with(error, monkeypatch):
    """Every command raises this error before it has looked at a file."""

    def dispatch(arguments):
        raise error

    monkeypatch.setattr(app, "_dispatch", dispatch)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:12])
def test_a_device_that_is_full_before_any_tensor_is_told_too(error, capsys, monkeypatch):
    """Its context alone takes some hundred megabytes."""
    fails_with(error, monkeypatch)
    assert app.run(["verify", "x"]) == 3
    assert capsys.readouterr().err.startswith("error: the device is out of memory\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_a_machine_without_memory_is_no_bug(error, capsys, monkeypatch):
    """Python's own error and torch's are told alike."""
    fails_with(error, monkeypatch)
    assert app.run(["verify", "x"]) == 70
    assert capsys.readouterr().err.startswith("error: out of memory\n")


def test_other_errors_of_a_device_stay_what_they_are(capsys, monkeypatch):
    """An assertion on the device is a bug, and is told as one."""

    def dispatch(arguments):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(app, "_dispatch", dispatch)
    assert app.run(["verify", "x"]) == 70
    assert "a bug in paramcli" in capsys.readouterr().err
