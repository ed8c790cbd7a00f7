"""What the tests of merges share: adapters that PEFT saved, what it merged of them, and adapters that are spoilt."""

import json
import shutil

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

MOVED = {"pissa", "olora"}
REFUSED = MOVED | {"vblora_top", "vera_unsaved"}


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def merged(folder):
    """(the base's file, what PEFT's merge changes)"""
    path = folder / "merged.safetensors"
    with safe_open(path, "pt") as file:
        base = file.metadata()["base"]
    return folder.parent / f"{base}.safetensors", load_file(path)


def require_merged(got, base, want):
    """Changed tensors are PEFT's, rounded once; all others are the base's, bit for bit."""
    assert got.keys() == base.keys()
    for name, tensor in got.items():
        if name not in want:
            assert torch.equal(tensor, base[name]) and tensor.dtype == base[name].dtype, name
        elif tensor.dtype == torch.bfloat16:
            assert torch.equal(tensor, want[name]), name
        else:
            assert (tensor.double() - want[name].double()).norm() <= 1e-6 * want[name].double().norm(), name


def sharded(tensors, folder):
    """Three shards; neighbours lie in different ones."""
    folder.mkdir()
    home = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        part = dict(list(tensors.items())[number::3])
        save_file(part, folder / file)
        home.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": home}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    return folder


def how(name):
    """PEFT itself holds an adapter in half precision only where it is told to."""
    return ["--like", "peft-bf16"] if name.endswith("_half") else []


def spoilt(adapters, tmp_path, change=lambda tensors: tensors, **config):
    """A copy of the plain adapter with other tensors, or another configuration."""
    folder = tmp_path / "spoilt"
    shutil.copytree(adapters / "lora", folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({key: T.contiguous() for key, T in change(tensors).items()}, folder / "adapter_model.safetensors")
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, **config}))
    return folder


def first_A(tensors):
    return next(key for key in tensors if "lora_A" in key)
