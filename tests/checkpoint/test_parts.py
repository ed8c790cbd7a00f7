"""Shards without an index, and parts alone: never taken for the whole."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.errors import InputRefused


def shard(number: int, total: int, stem: str = "model-", suffix: str = ".safetensors") -> str:
    return f"{stem}{number:05d}-of-{total:05d}{suffix}"


def write(folder, total: int, numbers, **name):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        path = folder / shard(number, total, **name)
        tensors = {f"l{number}.weight": torch.full((2, 3), float(number))}
        save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return folder


@pytest.mark.parametrize(
    ("total", "numbers", "name", "missing"),
    [
        (2, [1], {}, "1 of its 2 parts: model-00002-of-00002.safetensors"),
        (
            3,
            [1, 3],
            {"stem": "diffusion_pytorch_model.fp16-"},
            "diffusion_pytorch_model.fp16-00002-of-00003.safetensors",
        ),
        (3, [0, 2], {}, "model-00001-of-00003.safetensors"),
        (72, [5], {"stem": "pytorch_model_", "suffix": ".bin"}, "71 of its 72 parts: pytorch_model_00001-of-00072.bin"),
        (99999, [7], {}, "99998 of its 99999 parts: model-00001-of-99999.safetensors"),
    ],
)
def test_a_set_that_is_not_whole_is_refused_by_name(total, numbers, name, missing, tmp_path, paramcli):
    """Whatever the prefix, the container and the first number: the missing are named, and nothing is written."""
    folder = write(tmp_path / "m", total, numbers, **name)
    for command in (["inspect", folder], ["convert", folder, "-o", tmp_path / "o.safetensors"]):
        err = paramcli(*command, code=3).err
        assert f"{folder} lacks" in err and missing in err and err.count("\n") == 2
    assert os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("name", [{}, {"stem": "pytorch_model-", "suffix": ".bin"}], ids=["safetensors", "torch"])
@pytest.mark.parametrize("first", [0, 1])
def test_a_whole_set_without_an_index_is_one_checkpoint(name, first, tmp_path, paramcli):
    """It is told, every tensor is there, and a result has the same split and an index."""
    folder = write(tmp_path / "m", 3, range(first, first + 3), **name)
    (folder / "config.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"x")
    told = paramcli("convert", folder, "-o", tmp_path / "o").err
    assert "has no index: its 3 shards are taken together by name" in told
    index = json.loads((tmp_path / "o" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {f"l{n}.weight": shard(n, 3) for n in range(first, first + 3)}
    assert (tmp_path / "o" / "config.json").exists()
    paramcli("convert", folder, "-o", tmp_path / "o.safetensors")
    made = load_file(tmp_path / "o.safetensors")
    assert {key: value[0, 0].item() for key, value in made.items()} == {
        f"l{n}.weight": n for n in range(first, first + 3)
    }


def test_in_place_a_set_gets_its_index_and_loses_what_is_left_empty(tmp_path, paramcli):
    """A pair folded into the first shard's tensor leaves the second without any: it goes, and the folder opens."""
    folder = tmp_path / "m"
    folder.mkdir()
    save_file({"fc.weight_g": torch.ones(2, 1), "a": torch.ones(1)}, folder / shard(1, 2))
    save_file({"fc.weight_v": torch.ones(2, 2)}, folder / shard(2, 2))
    paramcli("remove", folder, "--in-place")
    assert sorted(os.listdir(folder)) == [shard(1, 2), "model.safetensors.index.json"]
    with open_checkpoint(folder) as source:
        assert sorted(source.tensors) == ["a", "fc.weight"] and not source.notes


def test_several_sets_and_loose_files_are_several_checkpoints(tmp_path):
    """Sets of two sizes, a set beside a single file, and one that counts from 0 and from 1: the user says which."""
    for other in (shard(2, 3), "model.safetensors", shard(0, 2)):
        folder = write(tmp_path / other, 2, [1, 2])
        save_file({"x": torch.ones(1)}, folder / other)
        with pytest.raises(InputRefused, match="several checkpoints"):
            open_checkpoint(folder)


def test_two_shards_with_one_tensor_are_refused(tmp_path):
    """Without an index nothing says which of two is meant."""
    folder = write(tmp_path / "m", 2, [1, 2])
    save_file({"l1.weight": torch.zeros(1)}, folder / shard(2, 2))
    with pytest.raises(InputRefused, match=r"is in model-00001-of-00002.safetensors and in model-00002") as caught:
        open_checkpoint(folder)
    assert caught.value.tensor == "l1.weight"


def test_an_index_that_leaves_out_a_shard_of_its_set_is_refused(tmp_path):
    """A shard beside the others that the index does not name is a part of the model; one of another set is none."""
    folder = write(tmp_path / "m", 2, [1, 2])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"l1.weight": shard(1, 2)}}))
    with pytest.raises(InputRefused, match=r"does not name model-00002-of-00002.safetensors"):
        open_checkpoint(folder)
    os.rename(folder / shard(2, 2), folder / shard(2, 3))
    with open_checkpoint(folder) as source:
        assert list(source.tensors) == ["l1.weight"]


def test_an_index_names_all_that_are_missing(tmp_path):
    """Not the first alone."""
    folder = write(tmp_path / "m", 3, [1])
    weight_map = {f"l{n}.weight": shard(n, 3) for n in (1, 2, 3)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputRefused, match=r"names the shards model-00002.*, model-00003.*, which are not there"):
        open_checkpoint(folder)


def test_one_part_by_its_own_name_is_read_and_told(tmp_path, paramcli):
    """A shard, and a share of model parallelism: stderr says what is not read; an epoch is no part."""
    folder = write(tmp_path / "m", 3, [1, 2])
    told = paramcli("inspect", folder / shard(1, 3)).err
    assert f"{shard(1, 3)} is one of 3 shards; not read: {shard(2, 3)}, {shard(3, 3)}" in told
    for rank in (0, 1):
        torch.save({"w": torch.ones(2)}, tmp_path / f"consolidated.{rank:02d}.pth")
        (tmp_path / f"mp_rank_{rank:02d}").mkdir()
        torch.save({"model": {"w": torch.ones(2)}}, tmp_path / f"mp_rank_{rank:02d}" / "model_optim_rng.pt")
    for name in ("consolidated.00.pth", "mp_rank_01/model_optim_rng.pt"):
        assert "is one of 2 shares of a model" in paramcli("inspect", tmp_path / name).err
    torch.save({"w": torch.ones(2)}, tmp_path / "epoch-1-of-10.pt")
    assert paramcli("inspect", tmp_path / "epoch-1-of-10.pt").err == ""


def test_one_of_one_is_the_whole(tmp_path, paramcli):
    """model-00001-of-00001.safetensors is what many hubs have: opened by itself and in its folder, with no word."""
    folder = write(tmp_path / "m", 1, [1])
    assert paramcli("inspect", folder).err == "" and paramcli("inspect", folder / shard(1, 1)).err == ""
