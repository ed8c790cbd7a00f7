"""The files that a reader of the documents is taken to have: small stand-ins, the same on every run."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

ROOT = Path(__file__).resolve().parent.parent


class Generator(nn.Module):
    """A vocoder in small: one convolution in, one transposed one up, one out, all with weight norm as papers' code has
    it.
    """

    def __init__(self):
        super().__init__()
        self.conv_pre = nn.Conv1d(8, 16, 7)
        self.ups = nn.ModuleList([nn.ConvTranspose1d(16, 8, 4, 2)])
        self.conv_post = nn.Conv1d(8, 1, 7)


class Tagger(nn.Module):
    """An LSTM and a linear layer on its last state."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(12, 16, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


def vocoder(folder: Path) -> None:
    """vocoder.pth: {"generator": state dict with weight_g and weight_v}."""
    torch.manual_seed(0)
    model = Generator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for layer in (model.conv_pre, model.ups[0], model.conv_post):
            nn.utils.weight_norm(layer)
    torch.save({"generator": model.state_dict()}, folder / "vocoder.pth")


def tagger(folder: Path) -> None:
    """tagger.pt: the state dict of an LSTM tagger."""
    torch.manual_seed(0)
    torch.save(Tagger().state_dict(), folder / "tagger.pt")


def checkpoints(folder: Path) -> None:
    """ckpt.pt, a plain state dict; training.ckpt, one inside a training checkpoint; old.pt, old spellings; model/,
    shards.
    """
    for name, copy in (("ckpt.pt", "ckpt.pt"), ("nested.ckpt", "training.ckpt"), ("old_norms.pt", "old.pt")):
        shutil.copy(ROOT / "fixtures" / name, folder / copy)
    shutil.copytree(ROOT / "fixtures" / "sharded", folder / "model")


def quantized(folder: Path) -> None:
    """fp8/, a model in two shards whose matrices are 8-bit floats in blocks of 16 x 16."""
    chance, place = torch.Generator().manual_seed(0), folder / "fp8"
    place.mkdir()
    tensors = {"model.norm.weight": torch.ones(40), "model.router.bias": torch.randn(4, generator=chance)}
    for name in ("model.up.weight", "model.down.weight"):
        shape = (48, 40) if "up" in name else (40, 48)
        tensors[name] = (torch.randn(shape, generator=chance) * 100).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = torch.rand(3, 3, generator=chance) / 1000
    home = {name: f"model-{1 + ('down' in name):05d}-of-00002.safetensors" for name in tensors}
    for file in sorted(set(home.values())):
        save_file({name: T for name, T in tensors.items() if home[name] == file}, place / file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))
    config = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    (place / "config.json").write_text(json.dumps({"dtype": "float16", "quantization_config": config}))


def adapter(folder: Path) -> None:
    """model.safetensors, my_lora/, PEFT's adapter of it, and wrapped.safetensors, the same model under longer names;
    half.safetensors and half_lora/, another pair in bfloat16; pipeline.safetensors and its U-Net, unet.safetensors,
    with style.safetensors, kohya's adapter of the whole.
    """
    shutil.copy(ROOT / "fixtures" / "adapters" / "llama_bf16.safetensors", folder / "half.safetensors")
    shutil.copytree(ROOT / "fixtures" / "adapters" / "lora_bf16", folder / "half_lora")
    kohya = ROOT / "fixtures" / "kohya"
    shutil.copy(kohya / "base.safetensors", folder / "pipeline.safetensors")
    shutil.copy(kohya / "lora.safetensors", folder / "style.safetensors")
    whole = load_file(kohya / "base.safetensors")
    save_file({n: T for n, T in whole.items() if n.startswith("model.diffusion_model.")}, folder / "unet.safetensors")
    shutil.copy(ROOT / "fixtures" / "adapters" / "llama.safetensors", folder / "model.safetensors")
    shutil.copytree(ROOT / "fixtures" / "adapters" / "lora", folder / "my_lora")
    names = {
        n: n.replace("model.layers", "model.language_model.layers") for n in load_file(folder / "model.safetensors")
    }
    tensors = load_file(folder / "model.safetensors")
    save_file({new: tensors[old] for old, new in names.items()}, folder / "wrapped.safetensors")


def tuned(folder: Path) -> None:
    """pretrained.safetensors; lora/, PEFT's adapter of it; merged.safetensors, both; and tuned.safetensors, which has
    another norm too.
    """
    shutil.copy(ROOT / "fixtures" / "adapters" / "llama.safetensors", folder / "pretrained.safetensors")
    tensors = load_file(folder / "pretrained.safetensors")
    shutil.copytree(ROOT / "fixtures" / "adapters" / "lora", folder / "lora")
    tensors |= load_file(ROOT / "fixtures" / "adapters" / "lora" / "merged.safetensors")
    save_file(tensors, folder / "merged.safetensors")
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"] * 1.1}, folder / "tuned.safetensors")


def recipe(folder: Path) -> None:
    """recipe.toml: one edit of ckpt.pt."""
    (folder / "recipe.toml").write_text('[[edit]]\ncommand = "add"\ntensor = ["fc.weight"]\nchain = "skew,cayley"\n')


def encoder(folder: Path) -> None:
    """encoder.safetensors: twelve equal layers."""
    torch.manual_seed(0)
    layers = [
        nn.ModuleDict({"query": nn.Linear(16, 16), "up": nn.Linear(16, 64), "down": nn.Linear(64, 16)})
        for _ in range(12)
    ]
    model = nn.ModuleDict({"embed": nn.Embedding(100, 16), "layers": nn.ModuleList(layers), "head": nn.Linear(16, 100)})
    save_file(model.state_dict(), folder / "encoder.safetensors", {"format": "pt"})


def distributed(folder: Path) -> None:
    """dcp/: a folder of torch.distributed.checkpoint, written by one process."""
    from torch.distributed import checkpoint

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(nn.Linear(8, 8).state_dict(), checkpoint_id=folder / "dcp", no_dist=True)


def claims(folder: Path) -> None:
    """layer.safetensors, parametrized; plain.pt, orthogonal to rounding; broken.safetensors, baked and then changed by
    5 %.
    """
    from paramcli.live import register, save

    torch.manual_seed(0)
    model = nn.ModuleDict({"fc": nn.Linear(16, 16)})
    register(model["fc"], "weight", "skew,cayley")
    save(model, folder / "layer.safetensors")
    torch.save(
        {"fc.weight": model["fc"].weight.detach().clone(), "fc.bias": model["fc"].bias.detach()}, folder / "plain.pt"
    )
    torch.save(
        {"fc.weight": model["fc"].weight.detach() * 1.05, "fc.bias": model["fc"].bias.detach()}, folder / "broken.pt"
    )
