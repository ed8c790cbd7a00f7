"""One tensor that no result can hold does not lock the file: it is listed with the reason, and refused if carried."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

torch.manual_seed(0)
W, V, G = torch.randn(3, 3), torch.randn(3, 3), torch.rand(3, 1) + 0.5


class Tagged(torch.Tensor):
    """A subclass that only its author's code can read."""


# label: (the tensor, what it is called, its shape and dtype as listed)
ODD = {
    "sparse": (lambda: W.to_sparse(), "a sparse tensor", [3, 3], "float32"),
    "csr": (lambda: W.to_sparse_csr(), "a sparse tensor", [3, 3], "float32"),
    "meta": (lambda: torch.empty(5, 2, device="meta"), "a meta tensor", [5, 2], "float32"),
    "quantized": (lambda: torch.quantize_per_tensor(W, 0.1, 0, torch.qint8), "a quantized tensor", [3, 3], "qint8"),
    "by channel": (
        lambda: torch.quantize_per_channel(W, torch.ones(3), torch.zeros(3), 0, torch.quint8),
        "a quantized tensor",
        [3, 3],
        "quint8",
    ),
    "complex32": (lambda: torch.ones(2, dtype=torch.complex32), "complex32", [2], "complex32"),
    "complex128": (lambda: torch.ones(2, dtype=torch.complex128), "complex128", [2], "complex128"),
    "conj": (lambda: torch.ones(2, 2, dtype=torch.complex64).conj(), "a lazy view (conj)", [2, 2], "complex64"),
    "neg": (lambda: torch.ones(2, dtype=torch.complex64).conj().imag, "a lazy view (neg)", [2], "float32"),
    "subclass": (lambda: Tagged([1.0, 2.0]), "Tagged, a tensor subclass", [2], "float32"),
    "nested": (lambda: torch.nested.nested_tensor([W]), "a nested tensor", [], "unknown"),
    "uninitialised": (lambda: nn.UninitializedParameter(), "an uninitialised parameter", [], "unknown"),
}


def listed(paramcli, path, *arguments: object) -> dict[str, dict]:
    return {tensor["tensor"]: tensor for tensor in paramcli("inspect", path, *arguments, "--json").json["tensors"]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", ODD)
def test_it_is_listed_and_left_out_and_never_carried(kind, legacy, tmp_path, paramcli):
    """`inspect` gives the reason, selection and --drop pass it by; a result that would hold it is refused by name."""
    make, said, shape, dtype = ODD[kind]
    torch.save({"w.weight": W, "odd": make(), "b": V}, tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    tensor = listed(paramcli, tmp_path / "a.pt")["odd"]
    assert said in tensor["problem"] and (tensor["shape"], tensor["dtype"]) == (shape, dtype)
    assert list(listed(paramcli, tmp_path / "a.pt", "-t", "w.*")) == ["w.weight"]
    for arguments in (
        ["convert"],
        ["add", "-t", "w.weight", "--chain", "symmetric"],
        ["add", "-t", "odd", "--chain", "mask"],
    ):
        result = paramcli(*arguments, tmp_path / "a.pt", "-o", tmp_path / "o.safetensors", code=3)
        assert said in result.err and "odd is" in result.err and not (tmp_path / "o.safetensors").exists()
    assert "--drop odd" in paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / "o.safetensors", code=3).err
    for out, load in (("o.safetensors", load_file), ("o.pt", torch.load)):
        left = paramcli("convert", tmp_path / "a.pt", "--drop", "odd", "-o", tmp_path / out).err
        got = load(tmp_path / out)
        assert set(got) == {"w.weight", "b"} and torch.equal(got["w.weight"], W) and "not carried over: odd" in left
    paramcli("verify", tmp_path / "a.pt", "-t", "w.weight", "--constraint", "unit_spectral_norm", code=1)
    assert said in paramcli("verify", tmp_path / "a.pt", "-t", "odd", "--constraint", "orthogonal", code=3).err
    assert said in paramcli("diff", tmp_path / "a.pt", tmp_path / "a.pt", code=3).err
    paramcli("diff", tmp_path / "a.pt", tmp_path / "o.pt", "-t", "w.weight", "-t", "b")
    assert f"odd: odd is {said}" in (told := paramcli("discover", tmp_path / "a.pt").err) or said in told


@pytest.mark.parametrize("name", ["__metadata__", "a\ud800b"])
def test_a_name_that_no_result_can_have(name, tmp_path, paramcli):
    """The tensor is read and compared as any other; only a result under that name is refused."""
    torch.save({"w.weight": W, name: V}, tmp_path / "a.pt")
    assert sum("problem" in tensor for tensor in listed(paramcli, tmp_path / "a.pt").values()) == 1
    assert "is a name that" in paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / "o.safetensors", code=3).err
    paramcli("convert", tmp_path / "a.pt", "--keep", "w.*", "-o", tmp_path / "o.safetensors")
    assert list(load_file(tmp_path / "o.safetensors")) == ["w.weight"]
    paramcli("diff", tmp_path / "a.pt", tmp_path / "a.pt", "--exact")


def test_keys_that_are_no_names(tmp_path, paramcli):
    """Whole numbers, None, bytes and tuples as keys beside names: each is listed once, under a word of its own."""
    torch.save({"w.weight": W, 7: V, None: V, b"x": V, (1, 2): V, "7": G}, tmp_path / "a.pt")
    tensors = listed(paramcli, tmp_path / "a.pt")
    assert len(tensors) == 6 and sum("no text" in t.get("problem", "") for t in tensors.values()) == 4
    assert "a key that is no text (7)" in tensors["int_7"]["problem"] and "problem" not in tensors["7"]
    said = paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / "o.safetensors", code=3).err
    assert "int_7" in said and "3 more tensors refused too" in said
    paramcli("convert", tmp_path / "a.pt", "--keep", "w.weight", "--keep", "7", "-o", tmp_path / "o.pt")
    assert list(torch.load(tmp_path / "o.pt")) == ["w.weight", "7"]


def test_half_a_pair_that_is_odd_is_said_to_be(tmp_path, paramcli):
    """A weight norm with a sparse g is no half pair: its own key is named."""
    torch.save({"l.weight_g": G.to_sparse(), "l.weight_v": V, "m.weight_g": G, "m.weight_v": V}, tmp_path / "a.pt")
    problem = listed(paramcli, tmp_path / "a.pt")["l.weight"]["problem"]
    assert "l.weight_g is a sparse tensor" in problem and "half" not in problem
    assert "l.weight_g is a sparse" in paramcli("remove", tmp_path / "a.pt", "-o", tmp_path / "o.pt", code=3).err
    assert "l.weight is not verified" in paramcli("verify", tmp_path / "a.pt", code=3).err
    paramcli("convert", tmp_path / "a.pt", "--drop", "l.weight", "-o", tmp_path / "k.pt")
    paramcli("remove", tmp_path / "k.pt", "-o", tmp_path / "o.pt")
    assert torch.equal(torch.load(tmp_path / "o.pt")["m.weight"], torch._weight_norm(V, G, 0))


def test_one_shard_with_an_odd_tensor(tmp_path, paramcli):
    """A folder of torch shards opens, and its other tensors come out."""
    shards = {
        "pytorch_model-00001-of-00002.bin": {"a": W, "odd": W.to_sparse()},
        "pytorch_model-00002-of-00002.bin": {"b": V},
    }
    os.mkdir(tmp_path / "m")
    for shard, state in shards.items():
        torch.save(state, tmp_path / "m" / shard)
    places = {name: shard for shard, state in shards.items() for name in state}
    (tmp_path / "m/pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert "sparse" in listed(paramcli, tmp_path / "m")["odd"]["problem"]
    assert "odd is a sparse tensor" in paramcli("convert", tmp_path / "m", "-o", tmp_path / "o.safetensors", code=3).err
    paramcli("convert", tmp_path / "m", "--drop", "odd", "-o", tmp_path / "o.safetensors")
    assert set(load_file(tmp_path / "o.safetensors")) == {"a", "b"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex32], ids=str)
def test_a_dcp_folder_with_an_odd_tensor(dtype, tmp_path, paramcli):
    """torch.distributed.checkpoint's folder opens, and its other tensors come out."""
    import torch.distributed.checkpoint as checkpoint

    checkpoint.save({"w": W, "odd": torch.ones(2, dtype=dtype)}, checkpoint_id=tmp_path / "m", no_dist=True)
    assert "odd is" in listed(paramcli, tmp_path / "m")["odd"]["problem"]
    paramcli("convert", tmp_path / "m", "--drop", "odd", "-o", tmp_path / "o.safetensors")
    assert torch.equal(load_file(tmp_path / "o.safetensors")["w"], W)


def test_every_odd_tensor_is_named_together(tmp_path, paramcli):
    """The first in full, the others by name."""
    torch.save({"w": W, "x": W.to_sparse(), "y": W.to("meta")}, tmp_path / "a.pt")
    said = paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / "o.safetensors", code=3).err
    assert "x is a sparse tensor (1 more tensor refused too: y)" in said


def test_a_live_model_is_not_given_what_cannot_be_read(tmp_path):
    """paramcli.load refuses by the tensor's name, and reads a file whose odd one the model does not have."""
    import paramcli

    torch.save({"weight": W, "bias": torch.ones(3).to_sparse()}, tmp_path / "a.pt")
    with pytest.raises(paramcli.ParamcliError, match="bias is a sparse tensor"):
        paramcli.load(nn.Linear(3, 3), tmp_path / "a.pt")


def test_safetensors_has_none(tmp_path, paramcli):
    """A plain file lists no problem."""
    save_file({"w": W}, tmp_path / "a.safetensors")
    assert "problem" not in listed(paramcli, tmp_path / "a.safetensors")["w"]
