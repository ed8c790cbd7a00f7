"""Folders of shards through commands: pairs over two shards, splits kept, made and merged, exact indexes."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations

from paramcli import load
from paramcli.errors import InputRefused

INDEX = "model.safetensors.index.json"


def shard_of(number: int, suffix: str) -> str:
    return f"{'pytorch_model' if suffix == 'bin' else 'model'}-{number:05d}-of-00004.{suffix}"


@pytest.fixture(params=["safetensors", "bin"])
def folder(request, tmp_path):
    """(a model in four shards, g and v of one weight in the first and the last; its state dict; the weight)."""
    torch.manual_seed(0)
    layer = parametrizations.weight_norm(nn.Linear(6, 4, bias=False))
    state = {f"layer.{i}.weight": torch.randn(5, 5).bfloat16() for i in range(10)} | {"ids": torch.arange(7)}
    g, v = (layer.state_dict()[f"parametrizations.weight.original{i}"] for i in (0, 1))
    state |= {"head.weight_g": g, "head.weight_v": v}
    home = {name: 1 + 4 * i // len(state) for i, name in enumerate(state)} | {"head.weight_g": 1, "head.weight_v": 4}
    path = tmp_path / "model"
    path.mkdir()
    for number in range(1, 5):
        part = {name: state[name] for name in state if home[name] == number}
        place = path / shard_of(number, request.param)
        torch.save(part, place) if request.param == "bin" else save_file(part, place, {"format": "pt"})
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: shard_of(home[name], request.param) for name in state},
    }
    (path / (INDEX if request.param == "safetensors" else "pytorch_model.bin.index.json")).write_text(json.dumps(index))
    (path / "config.json").write_text('{"hidden_size": 6}')
    (path / "tokenizer.json").write_text("{}")
    return path, state, layer.weight.detach()


def check_index(path) -> None:
    """The index names the union of the shards' headers, and total_size is the sum of their tensors' bytes."""
    index = json.loads((path / INDEX).read_text())
    union, size = {}, 0
    for shard in sorted(path.glob("*.safetensors")):
        with safe_open(shard, "pt") as opened:
            union.update(dict.fromkeys(opened.keys(), shard.name))
        size += sum(tensor.numel() * tensor.element_size() for tensor in load_file(shard).values())
    assert index["weight_map"] == union and index["metadata"]["total_size"] == size


def test_a_pair_over_two_shards_bakes_and_merges(folder, tmp_path, paramcli):
    """One group: verified, baked into the shard of its first key; everything else stays where it was; config comes
    along.
    """
    path, state, weight = folder
    paramcli("verify", path)
    paramcli("remove", path)
    out = tmp_path / "model.baked"
    check_index(out)
    assert sorted(p.name for p in out.iterdir() if p.suffix != ".json") == [
        shard_of(i, "safetensors") for i in range(1, 5)
    ]
    assert (out / "config.json").read_text() == '{"hidden_size": 6}' and (out / "tokenizer.json").exists()
    paramcli("convert", out, "-o", tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    assert torch.equal(merged.pop("head.weight"), weight)
    assert set(merged) == set(state) - {"head.weight_g", "head.weight_v"} and all(
        torch.equal(merged[name], state[name]) for name in merged
    )
    assert paramcli("diff", path, tmp_path / "merged.safetensors", "--exact", "--json").json["equal"]
    paramcli("convert", path, "-o", tmp_path / "merged.pt")
    single = torch.load(tmp_path / "merged.pt", weights_only=True)
    assert set(single) == set(state) and all(torch.equal(single[name], state[name]) for name in state)


def test_a_split_is_kept_unless_a_size_is_given(folder, tmp_path, paramcli):
    """convert to a folder keeps the shards; --max-shard-size makes others, a tensor larger than it has one
    to itself.
    """
    path, state, _ = folder
    paramcli("convert", path, "-o", tmp_path / "same")
    check_index(tmp_path / "same")
    assert len(list((tmp_path / "same").glob("*.safetensors"))) == 4
    for size, count in (("1B", len(state)), ("100", None), ("1KB", 1)):
        out = tmp_path / f"split{size}"
        paramcli("convert", path, "-o", out, "--max-shard-size", size)
        check_index(out)
        shards = list(out.glob("*.safetensors"))
        assert count in (None, len(shards)) and (out / "config.json").exists()
        assert all(
            sum(t.numel() * t.element_size() for t in load_file(s).values()) <= 100 or len(load_file(s)) == 1
            for s in shards
            if size != "1KB"
        )
        assert paramcli("diff", path, out, "--exact", "--json").json["equal"]


def test_stale_shards_do_not_stay(folder, tmp_path, paramcli):
    """Fewer shards over more: the old ones go, and nothing but the new checkpoint can be read."""
    path, state, _ = folder
    out = tmp_path / "out"
    paramcli("convert", path, "-o", out, "--max-shard-size", "1B")
    paramcli("convert", path, "-o", out, "--max-shard-size", "300B", "--force")
    check_index(out)
    assert len(list(out.glob("*.safetensors"))) < len(state)
    paramcli("remove", path, "-o", out, "--force")
    check_index(out)
    paramcli("remove", tmp_path / "out", "--json", code=3)


def test_convert_without_an_output_says_what_it_needs(folder, tmp_path, paramcli):
    """A folder, and a file that is safetensors already, have no default name to go to."""
    path, _, _ = folder
    assert "convert needs -o" in paramcli("convert", path, code=2).err
    paramcli("convert", path, "-o", tmp_path / "m.safetensors")
    assert (
        "is safetensors already: convert needs -o"
        in paramcli("convert", tmp_path / "m.safetensors", "--force", code=2).err
    )
    for name in ("x.safetensors", "x.pth.tar", "x.bin"):
        assert (
            "folder of shards"
            in paramcli("convert", path, "-o", tmp_path / name, "--max-shard-size", "1KB", code=2).err
        )


def test_a_shard_has_the_record_of_its_own_tensors(folder, tmp_path, paramcli):
    """Headers together grow with the checkpoint, not with its square; the folder and each shard alone verify."""
    path, _, _ = folder
    added = tmp_path / "added"
    paramcli("add", path, "-t", "layer.*.weight", "--chain", "skew", "--max-change", "2", "-o", added, "--check")
    named = []
    for shard in sorted(added.glob("*.safetensors")):
        with safe_open(shard, "pt") as opened:
            keys, text = set(opened.keys()), opened.metadata().get("paramcli", '{"tensors": {}}')
        tensors = json.loads(text)["tensors"]
        assert {f"{name.removesuffix('.weight')}.parametrizations.weight.original" for name in tensors} <= keys
        named += tensors
    assert sorted(named) == sorted(f"layer.{i}.weight" for i in range(10))
    assert len(paramcli("verify", added, "-t", "layer.*", "--json").json["tensors"]) == 10
    assert paramcli("verify", added / shard_of(2, "safetensors"), "--json").json["tensors"]
    # A group over two shards has its record in both.
    paramcli("add", path, "-t", "layer.1.weight", "--chain", "weight_norm", "-o", tmp_path / "pair.safetensors")
    paramcli("convert", tmp_path / "pair.safetensors", "-o", tmp_path / "split", "--max-shard-size", "1")
    with_record = [
        shard for shard in (tmp_path / "split").glob("*.safetensors") if b"weight_norm" in shard.read_bytes()
    ]
    assert len(with_record) == 2
    assert (
        paramcli("inspect", tmp_path / "split", "-t", "layer.1.weight", "--json").json["tensors"][0]["chain"]
        == "weight_norm:dim=0"
    )


def test_the_record_follows_names_that_change(folder, tmp_path, paramcli):
    """A stripped prefix, into shards and into one file; a torch file has no place for it, and that is told."""
    path, _, _ = folder
    added = tmp_path / "added"
    paramcli("add", path, "-t", "layer.*.weight", "--chain", "skew", "--max-change", "2", "-o", added)
    for output in ("stripped", "stripped.safetensors"):
        paramcli("convert", added, "--keep", "layer.*", "--strip-prefix", "layer", "-o", tmp_path / output)
        tensors = paramcli("verify", tmp_path / output, "--json").json["tensors"]
        assert sorted(entry["tensor"] for entry in tensors) == [f"{i}.weight" for i in range(10)]
    assert "metadata: format, paramcli" in paramcli("inspect", added).out
    assert "no place for the record" in paramcli("convert", added, "-o", tmp_path / "x.pt").err
    lost = paramcli("convert", added, "--ignore-record", "-o", tmp_path / "y.pt", "--json").json["dropped"]
    assert "metadata paramcli" in lost


HALVES = [
    ("weight_norm", "original0"),
    ("weight_norm", "original1"),
    ("spectral_norm", "original"),
    ("spectral_norm", "0._u"),
    ("lora:rank=2:alpha=4", "original"),
    ("lora:rank=2:alpha=4", "0.lora_A"),
    ("mask", "0.mask"),
]


@pytest.mark.parametrize(("chain", "role"), HALVES)
def test_a_shard_with_a_part_of_a_tensor_is_not_read_as_the_whole(chain, role, tmp_path, paramcli):
    """Its record says what the tensor is, and the file has less: said by inspect, verify, remove and load, and nothing
    guessed.
    """
    torch.manual_seed(0)
    save_file({"fc.weight": torch.randn(16, 16), "other": torch.randn(3, 3)}, tmp_path / "m.safetensors")
    paramcli("add", tmp_path / "m.safetensors", "-t", "fc.weight", "--chain", chain, "-o", tmp_path / "p.safetensors")
    paramcli("convert", tmp_path / "p.safetensors", "-o", tmp_path / "split", "--max-shard-size", "1")
    assert paramcli("inspect", tmp_path / "split").code == 0
    key = f"fc.parametrizations.weight.{role}"
    shard = next(path for path in (tmp_path / "split").glob("*.safetensors") if key in load_file(path))
    groups = paramcli("inspect", shard, "--json").json["tensors"]
    # Without torch a table tells it, which knows no sizes of lora; the original alone then looks like one.
    assert (chain, role) == HALVES[4] or "this file lacks its" in groups[0]["problem"]
    named = (shard, "-t", "fc.weight")
    for command in (
        ("verify", shard),
        ("remove", shard, "-o", tmp_path / "x.safetensors"),
        ("spectrum", *named),
        ("verify", *named, "--chain", chain),
    ):
        got = paramcli(*command, code=None)
        assert got.code == 3 and "fc.weight" in got.err
    assert not (tmp_path / "x.safetensors").exists()
    model = nn.Module()
    model.fc = nn.Linear(16, 16, bias=False)
    before = model.fc.weight.detach().clone()
    with pytest.raises(InputRefused):
        load(model, shard, strict=False)
    assert torch.equal(model.fc.weight, before)


@pytest.mark.parametrize("asked", ["hub", "hub/", "."])
def test_the_result_of_a_folder_with_one_file_lies_beside_the_folder(asked, tmp_path, paramcli, monkeypatch):
    """Two files in it would be two checkpoints: what comes next, and the folder itself, can be given as they stand."""
    (tmp_path / "hub").mkdir()
    monkeypatch.chdir(tmp_path / "hub" if asked == "." else tmp_path)
    save_file({"w": torch.randn(4, 4)}, tmp_path / "hub" / "model.safetensors")
    made = asked
    for command, *options in (["add", "-t", "w", "--chain", "symmetric"], ["remove"]):
        told = paramcli(command, made, *options).err
        *_, made = shlex.split(next(line for line in told.splitlines() if line.startswith("next: ")))
        paramcli("verify", made)
        paramcli("inspect", asked)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "hub",
        "hub.baked.safetensors",
        "hub.parametrized.safetensors",
    ]
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["model.safetensors"]
    assert "exists already" in paramcli("add", asked, "-t", "w", "--chain", "symmetric", code=4).err
    paramcli("add", asked, "-t", "w", "--chain", "symmetric", "--in-place")
    paramcli("verify", asked)


def test_one_of_several_checkpoints_is_offered_by_its_path(tmp_path, paramcli, monkeypatch):
    """The hint is a path that can be pasted."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my hub").mkdir()
    for name in ("a b", "c"):
        save_file({"w": torch.eye(2)}, tmp_path / "my hub" / f"{name}.safetensors")
    told = paramcli("inspect", "my hub", code=3).err
    paramcli("inspect", shlex.split(told.rpartition("mean: ")[2])[0])
