"""A folder of one file, as transformers and diffusers save small models: what is written of it is such a folder."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

import paramcli as library

INDEX = "model.safetensors.index.json"
CONFIG = '{"hidden_size": 4}'
COMMANDS = {
    "add": ("-t", "fc.weight", "--chain", "weight_norm"),
    "assign": ("-t", "fc.weight", "--with", "orthogonal"),
    "convert": (),
    "merge": ("--adapter", "lora"),
    "migrate": ("--to", "new"),
    "remove": (),
}
IN_PYTHON = {
    "add": {"tensor": "fc.weight", "chain": "weight_norm"},
    "assign": {"tensor": "fc.weight", "with_": "orthogonal"},
    "merge": {"adapter": "lora"},
    "migrate": {"to": "new"},
}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The working folder: a model of one file with its configuration and training state, a sharded one, an adapter."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tensors = {"fc.weight": torch.randn(4, 4), "n.weight_g": torch.rand(4, 1), "n.weight_v": torch.randn(4, 4)}
    for folder in ("model", "shards"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(CONFIG)
        (tmp_path / folder / "tokenizer.json").write_text("{}")
        (tmp_path / folder / "optimizer.pt").write_bytes(b"x")
    save_file(tensors, "model/model.safetensors", {"format": "pt"})
    home = {key: f"model-{i:05d}-of-00003.safetensors" for i, key in enumerate(tensors, 1)}
    for key, name in home.items():
        save_file({key: tensors[key]}, f"shards/{name}", {"format": "pt"})
    (tmp_path / "shards" / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": home}))
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["fc"]})
    )
    lora = {
        "base_model.model.fc.lora_A.weight": torch.randn(2, 4),
        "base_model.model.fc.lora_B.weight": torch.ones(4, 2),
    }
    save_file(lora, "lora/adapter_model.safetensors")
    return tmp_path


def tensors_in(folder) -> dict[str, torch.Tensor]:
    return {key: T for part in folder.glob("*.safetensors") for key, T in load_file(part).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", ["out", "out/", "Model-3.2-1B", "out.v2"])
@pytest.mark.parametrize("given", ["model", "model/", "shards", f"shards/{INDEX}"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_makes_a_folder(command, given, name, place, paramcli):
    """One file or several, a name that is no file's is a folder, with what lay beside the weights; the tensors are
    those of the result that is one file, and training state is told to stay.
    """
    told = paramcli(command, given, *COMMANDS[command], "-o", name).err
    out = place / name
    single = (
        ["model.safetensors"]
        if given.startswith("model")
        else [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    )
    made = {path.name for path in out.iterdir()}
    assert made - set(single) == {"config.json", "tokenizer.json", INDEX} and made & set(single)
    assert (out / "config.json").read_text() == CONFIG
    assert "left where they are: optimizer.pt\n" in told
    paramcli(command, given, *COMMANDS[command], "-o", "one.safetensors")
    assert stat.S_ISREG(os.stat("one.safetensors").st_mode) and same(tensors_in(out), load_file("one.safetensors"))
    index = json.loads((out / INDEX).read_text())
    assert index["weight_map"].keys() == load_file("one.safetensors").keys()
    paramcli("inspect", name)


@pytest.mark.parametrize("size", ["1GB", "80"])
@pytest.mark.parametrize("given", ["model", "shards"])
def test_other_shards_keep_what_lies_beside(given, size, place, paramcli):
    """convert --max-shard-size, of one file as of several."""
    paramcli("convert", given, "-o", "out", "--max-shard-size", size)
    assert (place / "out/config.json").read_text() == CONFIG and (place / "out/tokenizer.json").exists()
    assert same(tensors_in(place / "out"), load_file("model/model.safetensors"))
    assert len(list((place / "out").glob("*.safetensors"))) == (1 if size == "1GB" else 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_makes_a_folder_where_a_slash_says_so(command, place, paramcli):
    """`out/` is a folder of any input; of a file it has the weights alone, for whose the files beside that are is not
    known. `out` is a file as before, but for convert's, which are shards.
    """
    paramcli(command, "model/model.safetensors", *COMMANDS[command], "-o", "out/")
    assert {path.name for path in (place / "out").iterdir()} == {"model.safetensors", INDEX}
    paramcli(command, "model/model.safetensors", *COMMANDS[command], "-o", "plain")
    assert (place / "plain").is_dir() == (command == "convert")
    paramcli(command, "model/model.safetensors", *COMMANDS[command], "-o", "one.safetensors")
    assert same(load_file("out/model.safetensors"), load_file("one.safetensors"))


@pytest.mark.parametrize("command", IN_PYTHON)
def test_the_library_takes_the_same_names(command, place):
    """A str with a slash is a folder; a Path of a folder's model too, by its name."""
    edit = getattr(library, command)
    edit("model/model.safetensors", **IN_PYTHON[command], output="out/")
    edit("model", **IN_PYTHON[command], output=place / "carried")
    assert same(load_file("out/model.safetensors"), load_file("carried/model.safetensors"))
    assert not (place / "out/config.json").exists() and (place / "carried/config.json").read_text() == CONFIG


@pytest.mark.parametrize("name", ["diffusion_pytorch_model", "adapter_model"])
def test_the_file_keeps_the_name_that_loaders_go_by(name, place, paramcli):
    """diffusers and PEFT look for theirs; the index is called after it."""
    os.rename("model/model.safetensors", f"model/{name}.safetensors")
    paramcli("remove", "model", "-o", "out")
    assert {path.name for path in (place / "out").iterdir()} == {
        "config.json",
        "tokenizer.json",
        f"{name}.safetensors",
        f"{name}.safetensors.index.json",
    }
    paramcli("inspect", "out")


def test_a_folder_that_is_there_needs_force(place, paramcli):
    """And then its other files stay; one that holds the input is refused, under any name."""
    (place / "out").mkdir()
    (place / "out/mine.txt").write_text("mine")
    assert "exists already" in paramcli("remove", "model", "-o", "out", code=4).err
    for given in ("model", "model/model.safetensors"):
        paramcli("remove", given, "-o", "out", "-f")
        assert (place / "out/model.safetensors").exists() and (place / "out/mine.txt").read_text() == "mine"
        before = (place / "model/model.safetensors").read_bytes()
        for name in ("model", "model/", "./model/."):
            assert "is the input itself" in paramcli("remove", given, "-o", name, "-f", code=2).err
        assert (place / "model/model.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["out.safetensors/", "out.pt/"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_s_name_with_a_slash_is_refused(command, name, place, paramcli):
    before = sorted(os.listdir(place))
    told = paramcli(command, "model", *COMMANDS[command], "-o", name, code=2).err
    assert "has a file's ending, and a folder's slash behind it" in told and told.count("\n") == 2
    assert sorted(os.listdir(place)) == before
