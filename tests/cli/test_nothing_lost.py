"""Every key of every input is in the output or named on stderr, whatever the command and the container."""

from __future__ import annotations

import argparse
import json
import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

torch.manual_seed(0)
W, G, V = torch.randn(4, 4), torch.rand(4, 1) + 0.5, torch.randn(4, 4)
PAIR = {"p.weight_g": G, "p.weight_v": V}
MANY = {f"extra_{i:02}": i for i in range(40)}


class Unknown:
    """A class that no reader of the file has."""


def optimizer() -> dict:
    parameter = nn.Parameter(W.clone())
    made = torch.optim.Adam([parameter])
    parameter.sum().backward()
    made.step()
    return made.state_dict()


# label -> (what torch.save gets, the keys to its state dict)
FILES = {
    "bare": ({"w.weight": W, **PAIR}, ()),
    "tied": ({"w.weight": W, "v.weight": W, **PAIR}, ()),
    "mixed into the state dict": (
        {"w.weight": W, **PAIR, "config": {"x": 1}, "step": 3, 7: "seven", "nothing": None},
        (),
    ),
    "training": ({"state_dict": {"w.weight": W, **PAIR}, "optimizer": optimizer(), **MANY}, ("state_dict",)),
    "Lightning": (
        {
            "state_dict": {"w.weight": W, **PAIR},
            "optimizer_states": [optimizer()],
            "hyper_parameters": argparse.Namespace(lr=1),
            "callbacks": {},
        },
        ("state_dict",),
    ),
    "nested twice": (
        {"model": {"state_dict": {"w.weight": W, **PAIR}, "model_args": {"n": 1}}, "history": [1.0]},
        ("model", "state_dict"),
    ),
    "unknown classes": ({"net": {"w.weight": W, **PAIR, "w.extra_state": Unknown()}, "args": Unknown()}, ("net",)),
}
COMMANDS = {
    "convert": ["convert"],
    "convert, dropping": ["convert", "--drop", "p.*"],
    "convert, keeping": ["convert", "--keep", "w.weight", "--dtype", "float16"],
    "add": ["add", "-t", "w.weight", "--chain", "symmetric", "--tied", "separate"],
    "bake": ["remove"],
    "migrate": ["migrate", "--to", "new"],
}


def named(key: object, message: str) -> bool:
    """Is the key there as a word of its own?"""
    return (
        re.search(
            rf"(?<![\w.]){re.escape(str(key))}(?![\w])",
            message.replace("state_dict.", "").replace("model.", "").replace("net.", ""),
        )
        is not None
    )


def spelt(key: str) -> set[str]:
    """The keys that hold this key's tensor after an edit."""
    module, _, leaf = key.rpartition(".")
    leaf = leaf.removesuffix("_g").removesuffix("_v")
    return {key, f"{module}.{leaf}", *(f"{module}.parametrizations.{leaf}.original{i}" for i in ("", 0, 1))}


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("file", FILES)
def test_every_key_is_in_the_output_or_named(file, command, suffix, tmp_path, paramcli):
    """Tensors by name, and everything beside them level by level."""
    value, path = FILES[file]
    torch.save(value, tmp_path / "in.pt")
    verb, *options = COMMANDS[command]
    out = tmp_path / f"out.{suffix}"
    message = paramcli(verb, tmp_path / "in.pt", *options, "-o", out).err
    tree = load_file(out) if suffix == "safetensors" else torch.load(out, weights_only=False)
    for step in path:
        for key in value:
            assert key == step or (suffix == "pt" and key in tree) or named(key, message), key
        value = value[step]
        tree = tree[step] if suffix == "pt" else tree
    for key, item in value.items():
        there = key in tree or (isinstance(item, torch.Tensor) and spelt(key) & set(tree))
        assert there or named(key, message), key
    skipped = {"unknown classes": f"{__name__}.Unknown", "Lightning": "argparse.Namespace"}.get(file, "")
    assert skipped in message


def test_metadata_is_carried_or_named(tmp_path, paramcli):
    """Metadata of a safetensors file goes to safetensors, and is named where a torch file has no place for it."""
    save_file({"w": W}, tmp_path / "a.safetensors", {"format": "pt", "author": "x", "license": "y"})
    assert (
        "not carried over" not in paramcli("convert", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors").err
    )
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "author": "x", "license": "y"}
    assert (
        "not carried over: metadata author, metadata license"
        in paramcli("convert", tmp_path / "a.safetensors", "-o", tmp_path / "b.pt").err
    )


def folder_of_shards(folder, state: dict, **index_metadata: object) -> None:
    """One tensor a shard."""
    folder.mkdir()
    names = {key: f"model-{i:05d}-of-{len(state):05d}.safetensors" for i, key in enumerate(state, 1)}
    for key, tensor in state.items():
        save_file({key: tensor}, folder / names[key], {"format": "pt"})
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    document = {"metadata": {"total_size": total, **index_metadata}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(document))


def test_an_index_keeps_its_other_metadata(tmp_path, paramcli):
    """What still holds is carried, what may not is named."""
    folder_of_shards(tmp_path / "m", {"w.weight": W, **PAIR}, total_parameters=36, made_by="someone", odd=[1])
    index = "model.safetensors.index.json"
    message = paramcli("convert", tmp_path / "m", "-o", tmp_path / "same").err
    assert json.loads((tmp_path / "same" / index).read_text())["metadata"] == {
        "total_size": 144,
        "total_parameters": 36,
        "made_by": "someone",
    }
    assert "index metadata odd" in message and "index metadata made_by" not in message
    message = paramcli("remove", tmp_path / "m", "-o", tmp_path / "baked").err
    assert json.loads((tmp_path / "baked" / index).read_text())["metadata"] == {"total_size": 128, "made_by": "someone"}
    assert "index metadata total_parameters" in message
    message = paramcli("convert", tmp_path / "m", "-o", tmp_path / "one.safetensors").err
    assert all(f"index metadata {key}" in message for key in ("total_parameters", "made_by", "odd"))


def test_files_that_stay_behind_are_named(tmp_path, paramcli):
    """Training state and folders beside the shards are not part of the new checkpoint, and stderr says so."""
    folder_of_shards(tmp_path / "m", {"w.weight": W, **PAIR})
    for name in ("config.json", "optimizer.pt", ".hidden"):
        (tmp_path / "m" / name).write_text("{}")
    (tmp_path / "m" / "1_Pooling").mkdir()
    message = paramcli("remove", tmp_path / "m").err
    assert "left where they are: optimizer.pt, 1_Pooling/\n" in message
    assert (tmp_path / "m.baked/config.json").exists() and not (tmp_path / "m.baked/optimizer.pt").exists()
    assert "left where" not in paramcli("remove", tmp_path / "m", "--in-place").err


def test_ties_that_safetensors_cannot_hold_are_named(tmp_path, paramcli):
    """Each name gets the tensor, and stderr says that they were one."""
    torch.save({"a": W, "b": W, "c": V}, tmp_path / "t.pt")
    message = paramcli("convert", tmp_path / "t.pt", "-o", tmp_path / "t.safetensors").err
    assert "stored once for each name" in message and "a = b" in message
    assert set(load_file(tmp_path / "t.safetensors")) == {"a", "b", "c"}
    assert "a = b" not in paramcli("convert", tmp_path / "t.pt", "--drop", "a", "-o", tmp_path / "d.safetensors").err
    assert "a = b" not in paramcli("convert", tmp_path / "t.pt", "-o", tmp_path / "d.pt").err


@pytest.mark.parametrize("state", ["optimizer", "list", "pair"])
@pytest.mark.parametrize("command", ["add", "migrate", "convert, dropping"])
def test_a_stale_optimizer_is_named(state, command, tmp_path, paramcli):
    """One optimizer, Lightning's list, a GAN's pair: each is kept in a torch result with a warning."""
    kept = {"optimizer": optimizer(), "list": [optimizer()], "pair": {"G": optimizer(), "D": optimizer()}}[state]
    torch.save({"state_dict": {"w.weight": W, **PAIR}, "optim": kept}, tmp_path / "t.ckpt")
    verb, *options = COMMANDS[command]
    assert (
        "warning: optim belongs to the tensors as they were"
        in paramcli(verb, tmp_path / "t.ckpt", *options, "-o", tmp_path / "o.ckpt").err
    )
    assert "optim" in torch.load(tmp_path / "o.ckpt", weights_only=True)
    assert "warning" not in paramcli("convert", tmp_path / "t.ckpt", "-o", tmp_path / "same.ckpt").err


def adam(*tensors: torch.Tensor) -> dict:
    """The state of an optimizer that has made a step on these."""
    parameters = [nn.Parameter(tensor.clone()) for tensor in tensors]
    made = torch.optim.AdamW(parameters)
    sum(parameter.sum() for parameter in parameters).backward()
    made.step()
    return made.state_dict()


OTHER = torch.randn(3, 5)
# label -> (what torch.save gets, --root, the optimizers that an edit of it makes stale)
SEVERAL = {
    "in a dict with its model": (
        {"g": {"model": PAIR, "optimizer": adam(G, V)}, "d": {"model": {"w": OTHER}, "optimizer": adam(OTHER)}},
        "g.model",
        "g.optimizer",
    ),
    "side by side": (
        {"generator": PAIR, "critic": {"w": OTHER}, "optim_1": adam(OTHER), "optim_2": adam(G, V)},
        "generator",
        "optim_2",
    ),
    "of the other model alone": ({"generator": PAIR, "critic": {"w": OTHER}, "optim": adam(OTHER)}, "generator", None),
    "told by name": ({"a": PAIR, "b": dict(PAIR), "a_optim": adam(G, V), "b_optim": adam(G, V)}, "b", "b_optim"),
    "told by its beginning": (
        {"generator": PAIR, "dual": dict(PAIR), "optim_d": adam(G, V), "optim_g": adam(G, V)},
        "generator",
        "optim_g",
    ),
    "a pair": ({"g": PAIR, "d": {"w": OTHER}, "optim": {"x": adam(OTHER), "y": adam(G, V)}}, "g", "optim.y"),
    "a list": ({"g": PAIR, "d": {"w": OTHER}, "optim": [adam(G, V), adam(OTHER)]}, "g", "optim.0"),
    "nobody can tell": (
        {"g": PAIR, "d": {"w": OTHER}, "opt1": {"state": {}, "param_groups": []}, "opt2": adam(torch.ones(7))},
        "g",
        "opt1, opt2",
    ),
    "one level up": ({"net": {"ema": PAIR, "raw": {"w": OTHER}}, "optimizer": adam(G, V)}, "net.ema", "optimizer"),
}


@pytest.mark.parametrize("label", SEVERAL)
def test_the_stale_optimizer_is_the_edited_models(label, tmp_path, paramcli):
    """Of several it is the one whose moments have the shapes of the edited state dict, or that its name speaks of."""
    saved, root, stale = SEVERAL[label]
    torch.save(saved, tmp_path / "t.pt")
    told = paramcli("remove", tmp_path / "t.pt", "--root", root, "-o", tmp_path / "o.pt").err
    warned = [line for line in told.splitlines() if line.startswith("warning: ")]
    assert warned == (
        [f"warning: {stale} belongs to the tensors as they were: start the optimizer anew, or restore it by hand"]
        if stale
        else []
    )


def test_a_model_beside_its_optimizer_is_no_optimizer_state(tmp_path, paramcli):
    """inspect calls a dict with a model and an optimizer in it a dict."""
    torch.save(SEVERAL["in a dict with its model"][0], tmp_path / "t.pt")
    told = paramcli("inspect", tmp_path / "t.pt", "--root", "g.model").out
    assert "d (dict of 2)" in told and "g.optimizer (optimizer state)" in told


def test_a_cast_that_overflows_says_so(tmp_path, paramcli):
    """Values beyond float16 become infinite: which tensor, and how many; others are cast in silence."""
    save_file(
        {"big": torch.tensor([1e6, 1.0, -1e6]), "small": W, "inf": torch.tensor([float("inf")])},
        tmp_path / "b.safetensors",
    )
    result = paramcli("convert", tmp_path / "b.safetensors", "--dtype", "float16", "-o", tmp_path / "h.safetensors")
    assert (
        "big: 2 values of 3 too large for float16" in result.err
        and "small" not in result.err
        and "inf:" not in result.err
    )
    assert torch.equal(load_file(tmp_path / "h.safetensors")["big"], torch.tensor([1e6, 1.0, -1e6]).half())
    assert (
        "too large"
        not in paramcli(
            "convert", tmp_path / "b.safetensors", "--dtype", "bfloat16", "-o", tmp_path / "b16.safetensors"
        ).err
    )


def test_a_cast_leaves_what_is_no_float(tmp_path, paramcli):
    """Integers, bool, complex, fp8 and packed 4-bit values keep their bytes under --dtype, and masks and norms are cast
    with their tensors.
    """
    odd = {
        "i64": torch.tensor([2**40]),
        "u8": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True]),
        "c64": torch.randn(2, dtype=torch.complex64),
        "f8": torch.arange(4, dtype=torch.uint8).view(torch.float8_e5m2),
        "f4": torch.arange(4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    }
    torch.save({**odd, **PAIR, "h": W.half(), "d": W.double()}, tmp_path / "o.pt")
    for out in ("o.safetensors", "p.pt"):
        paramcli("convert", tmp_path / "o.pt", "--dtype", "bfloat16", "-o", tmp_path / out)
    got = torch.load(tmp_path / "p.pt", weights_only=True)
    for name, tensor in odd.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8))
    assert all(got[name].dtype == torch.bfloat16 for name in (*PAIR, "h", "d")) and torch.equal(
        got["d"], W.double().bfloat16()
    )
    paramcli("diff", tmp_path / "p.pt", tmp_path / "o.safetensors", "--exact")
