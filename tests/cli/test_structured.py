"""Structured chains end to end on files: originals of other shapes than the weight included."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

CHAINS = [
    "lower_triangular:diag=softplus",
    "banded:b=2",
    "toeplitz_compact",
    "kronecker:p=4:q=3",
    "factored:rank=3",
    "rank_one",
    "svd_vals",
    "polar",
    "qr",
]


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def checkpoint(request, tmp_path):
    g = torch.Generator().manual_seed(0)
    tensors = {"a": torch.randn(8, 12, generator=g), "conv": torch.randn(4, 6, 3, 3, generator=g)}
    save_file(
        {name: (0.1 * t).to(request.param) for name, t in tensors.items()},
        tmp_path / "s.safetensors",
        metadata={"format": "pt"},
    )
    return tmp_path / "s.safetensors"


@pytest.mark.parametrize("chain", CHAINS)
def test_structured_chains_go_the_whole_way(checkpoint, paramcli, chain):
    """add, verify, assign, bake, verify and diff agree for one original, two, and ones of another shape."""
    added, assigned, baked = (checkpoint.with_name(f"{name}.safetensors") for name in ("added", "assigned", "baked"))
    paramcli("add", checkpoint, "-t", "a", "--chain", chain, "-o", added)
    paramcli("verify", added)
    paramcli("assign", added, "-t", "a", "--with", "xavier_uniform", "-o", assigned)
    for source in (added, assigned):
        paramcli("verify", source)
        paramcli("remove", source, "--bake", "-o", baked, "-f")
        paramcli("diff", source, baked)
        assert load_file(baked)["a"].shape == (8, 12)
    if chain != "svd_vals":
        paramcli("verify", baked)


@pytest.mark.parametrize("chain", ["kronecker:p=2:q=9", "factored:rank=2", "svd_vals", "toeplitz_compact"])
def test_the_record_keeps_the_shape_that_the_originals_do_not_tell(checkpoint, paramcli, chain):
    """A convolution seen flat is stored as factors; inspect, verify and bake know its four dimensions."""
    added, baked = checkpoint.with_name("added.safetensors"), checkpoint.with_name("baked.safetensors")
    paramcli("add", checkpoint, "-t", "conv", "--chain", chain, "--view", "flatten", "-o", added)
    shapes = {t["tensor"]: t["shape"] for t in paramcli("inspect", added, "--json").json["tensors"]}
    assert shapes["conv"] == [4, 6, 3, 3]
    paramcli("verify", added)
    paramcli("remove", added, "--bake", "-o", baked)
    assert load_file(baked)["conv"].shape == (4, 6, 3, 3)


def test_a_factor_does_not_take_the_weights_place(checkpoint, paramcli):
    """remove --no-bake of singular values alone is refused: they are not of the weight's shape."""
    added = checkpoint.with_name("added.safetensors")
    paramcli("add", checkpoint, "-t", "a", "--chain", "svd_vals", "-o", added)
    got = paramcli("remove", added, "--no-bake", "-o", checkpoint.with_name("o.safetensors"), code=3)
    assert "the weight 8x12" in got.err and "try: --bake keeps the value" in got.err
    with safe_open(added, "pt") as file:
        assert sorted(file.keys()) == [
            "conv",
            "parametrizations.a.0.U",
            "parametrizations.a.0.V",
            "parametrizations.a.original",
        ]


def test_shapes_come_from_the_originals_where_no_record_tells_them(checkpoint, paramcli, tmp_path):
    """Without a record --chain alone reads two vectors as the matrix they stand for."""
    bare, baked = tmp_path / "bare.safetensors", tmp_path / "baked.safetensors"
    save_file({"w.parametrizations.weight.original": torch.tensor([1.0, 2, 3])}, bare)
    paramcli("remove", bare, "--bake", "--chain", "circulant_compact", "-o", baked)
    assert load_file(baked)["w.weight"].tolist() == [[1, 3, 2], [2, 1, 3], [3, 2, 1]]
    save_file(
        {
            "w.parametrizations.weight.original0": torch.tensor([1.0, 2]),
            "w.parametrizations.weight.original1": torch.tensor([1.0, 5, 7]),
        },
        bare,
    )
    paramcli("remove", bare, "--bake", "--chain", "toeplitz_compact", "-o", baked, "-f")
    assert load_file(baked)["w.weight"].tolist() == [[1, 5, 7], [2, 1, 5]]
    paramcli("remove", bare, "--bake", "--chain", "rank_one", "-o", baked, "-f")
    assert load_file(baked)["w.weight"].tolist() == [[1, 5, 7], [2, 10, 14]]


@pytest.mark.parametrize("chain", ["symmetric,svd_vals", "skew,circulant_compact", "symmetric,factored:rank=2"])
def test_originals_of_another_shape_come_first(checkpoint, paramcli, chain):
    """A chain cannot hand a matrix to an entry that stores something else."""
    assert "only be the first of a chain" in paramcli("add", checkpoint, "-t", "a", "--chain", chain, code=2).err


@pytest.mark.parametrize(
    "command",
    [["verify"], ["remove", "-o", "o.safetensors"], ["diff", "h.safetensors"], ["discover"]],
    ids=lambda c: c[0],
)
def test_two_short_vectors_do_not_fill_memory(paramcli, tmp_path, monkeypatch, command):
    """A 2 MiB file whose record makes a matrix of 256 GiB out of it is refused before anything of that size is asked
    for.
    """
    monkeypatch.chdir(tmp_path)
    entry = {
        "state": "parametrized",
        "chain": "rank_one",
        "view": None,
        "constraint": "low_rank:rank=1",
        "shape": [1 << 18, 1 << 18],
    }
    record = json.dumps({"schema": 1, "version": "0.1.0", "tensors": {"w": entry}})
    vector = torch.ones(1 << 18)
    for name in ("h", "other"):
        tensors = {"parametrizations.w.original0": vector, "parametrizations.w.original1": vector + (name == "other")}
        save_file(tensors, f"{name}.safetensors", metadata={"format": "pt", "paramcli": record})
    got = paramcli(*command[:1], "other.safetensors", *command[1:], code=None)
    assert "256.0 GiB" in got.out + got.err and "a bug" not in got.err
    assert not (tmp_path / "o.safetensors").exists()
