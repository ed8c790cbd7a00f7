"""Adapters from the command line: minLoRA's own keys, and a bake that is the merged weight."""

import math

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrize


class MinLoRA(nn.Module):
    """What minLoRA registers, written from its description: W + (B A) alpha / rank, or A B for an embedding."""

    def __init__(self, fan_in: int, fan_out: int, embedding: bool, rank: int, alpha: float):
        super().__init__()
        self.embedding, self.scaling = embedding, alpha / rank
        a, b, ones = (rank, fan_in), (fan_out, rank), (1, fan_in)
        self.lora_A = nn.Parameter(torch.randn(a[::-1] if embedding else a))
        self.lora_B = nn.Parameter(torch.randn(b[::-1] if embedding else b))
        self.register_buffer("lora_dropout_mask", torch.ones(ones[::-1] if embedding else ones))

    def forward(self, X):
        product = self.lora_A @ self.lora_B if self.embedding else self.lora_B @ self.lora_A
        return X + product.view(X.shape) * self.scaling


def test_minlora_checkpoints_bake_given_their_scale(tmp_path, paramcli):
    """Linear, convolution and embedding: inspect names the chain that fits, and with it the bake is the
    merged weight.
    """
    torch.manual_seed(0)
    m = nn.ModuleDict({"fc": nn.Linear(8, 6), "conv": nn.Conv2d(3, 6, 3), "emb": nn.Embedding(10, 6)})
    parametrize.register_parametrization(m["fc"], "weight", MinLoRA(8, 6, False, 4, 8))
    parametrize.register_parametrization(m["conv"], "weight", MinLoRA(27, 6, False, 4, 8))
    parametrize.register_parametrization(m["emb"], "weight", MinLoRA(10, 6, True, 4, 8))
    torch.save(m.state_dict(), tmp_path / "m.pt")
    told = paramcli("inspect", tmp_path / "m.pt").out
    assert (
        told.count("minlora:rank=4:alpha=X fits") == 2 and told.count("minlora:rank=4:alpha=X:embedding=true fits") == 1
    )
    paramcli(
        "remove",
        tmp_path / "m.pt",
        "-t",
        "fc.weight",
        "-t",
        "conv.weight",
        "--chain",
        "minlora:rank=4:alpha=8",
        "-o",
        tmp_path / "a.safetensors",
    )
    paramcli(
        "remove",
        tmp_path / "m.pt",
        "-t",
        "emb.weight",
        "--chain",
        "minlora:rank=4:alpha=8:embedding=true",
        "-o",
        tmp_path / "b.safetensors",
    )
    for file, name in (("a", "fc"), ("a", "conv"), ("b", "emb")):
        made = load_file(tmp_path / f"{file}.safetensors")[f"{name}.weight"]
        torch.testing.assert_close(made, m[name].weight.detach(), rtol=1e-6, atol=1e-6)
    assert paramcli(
        "remove", tmp_path / "m.pt", "-t", "fc.weight", "--chain", "minlora:rank=3:alpha=8", code=3
    ).err.startswith("error: ")


def test_adapters_start_from_the_weight_as_it_is(tmp_path, paramcli):
    """lora, dora and oft keep the weight to rounding, and A is drawn as torch starts a linear layer."""
    W = torch.randn(6, 8)
    torch.save({"w": W}, tmp_path / "w.pt")
    for chain in ("lora:rank=2", "dora:rank=2", "oft:blocks=3", "minlora:rank=2"):
        out = tmp_path / f"{chain[:4]}.safetensors"
        paramcli("add", tmp_path / "w.pt", "-t", "w", "--chain", chain, "-o", out)
        paramcli("diff", tmp_path / "w.pt", out)
        if "lora" in chain:
            A = load_file(out)["parametrizations.w.0.lora_A"]
            assert 0.5 / math.sqrt(8) < A.abs().max() <= 1 / math.sqrt(8)
