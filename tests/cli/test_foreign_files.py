"""Everything people give in place of a checkpoint: each has its own line, its next step, and exit code 3."""

from __future__ import annotations

import gzip
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

W = torch.arange(6.0).reshape(2, 3)


def saved(path: Path, value: object, keep: int | None = None, **how) -> None:
    """torch.save, cut after `keep` bytes."""
    torch.save(value, path, **how)
    path.write_bytes(path.read_bytes()[:keep])


def torchscript(path: Path) -> None:
    torch.jit.ScriptModule().save(path)


def package(path: Path) -> None:
    from torch.package import PackageExporter

    with PackageExporter(str(path)) as exporter:
        exporter.save_pickle("weights", "weights.pkl", {"w": W})


def dcp(path: Path) -> None:
    import torch.distributed.checkpoint as checkpoint

    checkpoint.save({"w": W}, checkpoint_id=path, no_dist=True)
    (path / ".metadata").unlink()


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/model.pt", b"x")
        archive.writestr("README.md", b"x")


def tarred(path: Path) -> None:
    (path.parent / "inner").write_bytes(b"x")
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "inner", "inner")


def partitioned(path: Path) -> None:
    weight = torch.nn.Parameter(torch.zeros(2))
    weight.ds_tensor, weight.ds_shape = torch.ones(3), torch.Size([2, 3])
    torch.save({"fc.weight": weight}, path)


def deepspeed_folder(path: Path) -> None:
    path.mkdir()
    (path / "zero_to_fp32.py").write_text("")


def keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", b"\x89HDF")


def saved_model(path: Path) -> None:
    path.mkdir()
    (path / "saved_model.pb").write_bytes(b"\x08\x01")


def orbax(path: Path) -> None:
    (path / "ocdbt.process_0").mkdir(parents=True)


def flax_folder(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "flax_model.msgpack").write_bytes(b"\x81")


EMPTY = {"fc.weight": torch.empty(0), "fc.bias": torch.empty(0), "norm.weight": torch.ones(4)}
# label: (how to make it, what it is called, the next step)
FOREIGN = {
    "TorchScript": (torchscript, "a TorchScript archive", "torch.jit.load"),
    "torch.package": (package, "a torch.package archive", "torch.package"),
    "DCP folder": (dcp, "a torch.distributed.checkpoint folder", "copy the whole folder"),
    "LFS pointer": (
        lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "a Git LFS pointer",
        "git lfs pull",
    ),
    "HTML": (lambda p: p.write_text("\n <!DOCTYPE html>\n<html>"), "a web page", "download it again"),
    "S3's error page": (
        lambda p: p.write_text("<?xml version='1.0'?><Error>AccessDenied</Error>"),
        "a web page",
        "download it again",
    ),
    "JSON": (lambda p: p.write_text('{"error": "not found"}'), "a JSON text", "weights file"),
    "text": (lambda p: p.write_text("Entry not found, café"), "a text", "weights file"),
    "ONNX": (lambda p: p.write_bytes(b"\x08\x08\x12\x07pytorch\x1a\x052.4.0"), "an ONNX model", "export"),
    "GGUF": (lambda p: p.write_bytes(b"GGUF\x03\0\0\0" + bytes(16)), "a GGUF model", "convert it"),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(16)), "an HDF5 file", "h5py"),
    "Flax": (lambda p: p.write_bytes(b"\x82\xa6params\x81\xa6kernel\xc7" + bytes(16)), "a Flax checkpoint", "flax"),
    "TensorFlow's index": (
        lambda p: p.write_bytes(bytes(100) + 0xDB4775248B80FB57.to_bytes(8, "little")),
        "a TensorFlow checkpoint",
        "tf.train.load_checkpoint",
    ),
    "TensorFlow Lite": (lambda p: p.write_bytes(bytes(4) + b"TFL3" + bytes(16)), "a TensorFlow Lite", "torch.save"),
    "ExecuTorch": (lambda p: p.write_bytes(bytes(4) + b"ET12" + bytes(16)), "an ExecuTorch program", "torch.save"),
    "MXNet": (lambda p: p.write_bytes((0x112).to_bytes(8, "little") + bytes(16)), "an MXNet file", "safetensors"),
    "Keras 3": (keras, "a Keras model", "Keras"),
    "SavedModel folder": (saved_model, "a TensorFlow SavedModel", "tf.saved_model.load"),
    "Orbax folder": (orbax, "an Orbax checkpoint", "orbax"),
    "folder of a Flax model": (flax_folder, "flax_model.msgpack is a Flax checkpoint", "flax"),
    "npy": (lambda p: numpy.save(p.open("wb"), numpy.ones(2)), "a numpy array", "safetensors.numpy"),
    "npz": (lambda p: numpy.savez(p.open("wb"), a=numpy.ones(2)), "a numpy archive", "safetensors.numpy"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"w": 1})), "a pickle", "torch.save"),
    "pickle of protocol 0": (
        lambda p: p.write_bytes(pickle.dumps({"w": 1}, 0)),
        "a pickle of protocol 0",
        "torch.save",
    ),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x")), "gzip-compressed", "gunzip"),
    "tar": (tarred, "a tar archive", "unpack"),
    "zip": (zipped, "a zip archive, but not one that torch.save writes", "unpack"),
    "nothing": (lambda p: p.write_bytes(b""), "empty", "download it again"),
    "noise": (lambda p: p.write_bytes(bytes(range(128, 256))), "not a checkpoint paramcli knows", "torch.save"),
    "cut torch zip": (lambda p: saved(p, {"w": W}, -9), "cut short", "download the file again"),
    "cut legacy file": (
        lambda p: saved(p, {"w": W}, -9, _use_new_zipfile_serialization=False),
        "cut short",
        "download the file again",
    ),
    "cut safetensors": (
        lambda p: (save_file({"w": W}, p), p.write_bytes(p.read_bytes()[:-9])),
        "cut short",
        "download the file again",
    ),
    "ZeRO-3, torch": (
        lambda p: torch.save({"module": EMPTY, "ds_version": "0.14"}, p),
        "fc.weight is an empty placeholder of DeepSpeed ZeRO-3",
        "zero_to_fp32.py",
    ),
    "ZeRO-3, safetensors": (
        lambda p: save_file(EMPTY, p),
        "fc.weight is an empty placeholder of DeepSpeed ZeRO-3",
        "zero_to_fp32.py",
    ),
    "ZeRO-3, partitioned parameter": (
        partitioned,
        "fc.weight is one process's part of a DeepSpeed ZeRO-3 parameter",
        "zero_to_fp32.py",
    ),
    "ZeRO optimizer": (
        lambda p: torch.save({"optimizer_state_dict": {"zero_stage": 3, "fp32_flat_groups": [W]}}, p),
        "one process's part of a DeepSpeed ZeRO optimizer",
        "zero_to_fp32.py",
    ),
    "DeepSpeed folder": (deepspeed_folder, "a DeepSpeed checkpoint folder", "zero_to_fp32.py"),
    "optimizer alone": (
        lambda p: torch.save(torch.optim.SGD([W]).state_dict(), p),
        "it is an optimizer state",
        "state_dict()",
    ),
    "list of tensors": (
        lambda p: torch.save([W, W], p),
        "it holds tensors but no state dict (name -> tensor): it is a list of 2",
        "state_dict()",
    ),
    "one tensor": (lambda p: torch.save(W, p), "it is a tensor 2x3", "state_dict()"),
    "nothing but sparse tensors": (
        lambda p: torch.save({"fc.weight": W.to_sparse()}, p),
        "fc.weight is a sparse tensor",
        "dense",
    ),
    "nothing but quantized tensors": (
        lambda p: torch.save({"model": {"q": torch.quantize_per_tensor(W, 0.1, 0, torch.qint8)}}, p),
        "q is a quantized tensor",
        "dense",
    ),
    "nothing but nested tensors": (
        lambda p: torch.save({"n": torch.nested.nested_tensor([W])}, p),
        "n is a nested tensor",
        "dense",
    ),
    "nothing but meta tensors": (lambda p: torch.save({"m": W.to("meta")}, p), "m is a meta tensor", "dense"),
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("kind", FOREIGN)
def test_each_is_named_with_its_next_step(kind, tmp_path, paramcli):
    """One line says what it is, one what to do; nothing is written."""
    make, what, step = FOREIGN[kind]
    make(tmp_path / "given.pt")
    result = paramcli("convert", tmp_path / "given.pt", "-o", tmp_path / "out.safetensors", code=3)
    error, hint = result.err.splitlines()
    assert error.startswith("error: ") and "given.pt" in error and what in error
    assert hint.startswith("  try: ") and step in hint
    assert result.out == "" and not (tmp_path / "out.safetensors").exists()


def test_empty_tensors_that_are_no_placeholders_pass(tmp_path, paramcli):
    """A layer without inputs, an empty buffer and an empty index are data like any other."""
    state = {"fc.weight": torch.empty(3, 0), "ids.weight": torch.empty(0, dtype=torch.int64), "history": torch.empty(0)}
    save_file(state, tmp_path / "e.safetensors")
    paramcli("convert", tmp_path / "e.safetensors", "-o", tmp_path / "e.pt")
    got = torch.load(tmp_path / "e.pt", weights_only=True)
    assert all(got[name].shape == state[name].shape and got[name].dtype == state[name].dtype for name in state)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("flax_model.msgpack", "Flax"),
        ("model.ckpt-100.data-00000-of-00001", "TensorFlow"),
        ("model.ckpt.meta", "TensorFlow"),
        ("model_state.pdparams", "PaddlePaddle"),
        ("inference.pdiparams", "PaddlePaddle"),
        ("saved_model.pb", "SavedModel"),
        ("model.onnx_data", "ONNX"),
        ("net.mlmodel", "Core ML"),
    ],
)
def test_what_has_no_first_bytes_of_its_own_is_told_by_its_name(name, what, tmp_path, paramcli):
    """Raw data, protobufs and pickles of arrays are named by their endings, and a torch file is read under any name."""
    content = pickle.dumps({"w": numpy.ones(2)}, 4) if name.endswith(".pdparams") else bytes(range(200, 250))
    (tmp_path / name).write_bytes(content)
    error, hint = paramcli("inspect", tmp_path / name, code=3).err.splitlines()
    assert what in error and hint.startswith("  try: ")
    torch.save({"w": W}, tmp_path / name)
    assert paramcli("inspect", tmp_path / name, "--json").json["tensors"][0]["tensor"] == "w"


@pytest.mark.parametrize("mark", [b"05", b"\x1b["])
def test_an_archive_with_a_mark_in_front_is_read(mark, tmp_path, paramcli):
    """GPT-SoVITS writes a version over the PK of torch.save's archive: every tensor is read, and the mark told and not
    carried.
    """
    state = {"dec.weight": W, "enc.bias": torch.arange(3)}
    torch.save({"weight": state, "info": "8epoch"}, tmp_path / "voice.pth")
    plain = (tmp_path / "voice.pth").read_bytes()
    (tmp_path / "voice.pth").write_bytes(mark + plain[2:])
    told = paramcli("convert", tmp_path / "voice.pth", "-o", tmp_path / "out.pt")
    shown = mark.decode().replace("\x1b", "\\x1b")
    assert f"its first two bytes are '{shown}'" in told.err and f"the first two bytes '{shown}'" in told.err
    made = torch.load(tmp_path / "out.pt")
    assert made["info"] == "8epoch" and all(torch.equal(made["weight"][name], state[name]) for name in state)
    paramcli("convert", tmp_path / "voice.pth", "-o", tmp_path / "out.safetensors")
    # Anywhere else such a header is a broken one.
    at = plain.index(b"PK\x03\x04", 4)
    (tmp_path / "voice.pth").write_bytes(mark + plain[2:at] + mark + plain[at + 2 :])
    paramcli("inspect", tmp_path / "voice.pth", code=3)
