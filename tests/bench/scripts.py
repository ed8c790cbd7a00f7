"""What a user would write without paramcli, as commands: python -m tests.bench.scripts NAME ARGUMENT..."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize


class Skew(nn.Module):
    """As in PyTorch's Parametrizations Tutorial."""

    def forward(self, X):
        A = X.triu(1)
        return A - A.transpose(-1, -2)


class CayleyMap(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("Id", torch.eye(n), persistent=False)

    def forward(self, X):
        return torch.linalg.solve(self.Id - X, self.Id + X)


def load(path: str) -> dict[str, torch.Tensor]:
    if path.endswith(".pt"):
        return torch.load(path, weights_only=True)
    from safetensors.torch import load_file

    parts = sorted(Path(path).glob("*.safetensors")) if Path(path).is_dir() else [path]
    return {key: value for part in parts for key, value in load_file(part).items()}


def edit(source: str, target: str, name: str) -> None:
    """One tensor made symmetric by a registered parametrization and stored as its value."""
    from safetensors.torch import save_file

    state = load(source)
    state[name] = state[name].triu() + state[name].triu(1).mT
    save_file(state, target, metadata={"format": "pt"})


def bake(source: str, target: str) -> None:
    """Every weight norm removed, by torch's own functions on a bare module."""
    from safetensors.torch import save_file

    state, baked = load(source), {}
    for key, value in state.items():
        if not key.endswith("_v"):
            continue
        name = key.removesuffix("_v")
        host = nn.Module()
        host.weight = nn.Parameter(torch.empty(value.shape), requires_grad=False)
        parametrizations.weight_norm(host)
        host.load_state_dict(
            {"parametrizations.weight.original0": state[f"{name}_g"], "parametrizations.weight.original1": value}
        )
        parametrize.remove_parametrizations(host, "weight")
        baked[name] = host.weight.detach()
    save_file(baked, target, metadata={"format": "pt"})


def cayley_loop(source: str, threads: str) -> None:
    """Prints the seconds of registering skew and cayley on each tensor and removing them again, without files."""
    state = load(source)
    if threads != "default":
        torch.set_num_threads(int(threads))
    started = time.perf_counter()
    for value in state.values():
        host = nn.Module()
        host.weight = nn.Parameter(value, requires_grad=False)
        parametrize.register_parametrization(host, "weight", Skew())
        parametrize.register_parametrization(host, "weight", CayleyMap(value.shape[0]))
        parametrize.remove_parametrizations(host, "weight")
    print(time.perf_counter() - started)


def register_loop(source: str) -> None:
    """Weight norm registered on each tensor, without files."""
    for value in load(source).values():
        host = nn.Module()
        host.weight = nn.Parameter(value, requires_grad=False)
        parametrizations.weight_norm(host)


def on_device(device: str) -> None:
    """A number put on a device, and nothing else."""
    torch.zeros(1).to(device).add(1).item()


def orthogonal_loop(source: str, target: str, device: str) -> None:
    """torch's `orthogonal` registered on each tensor, moved to the nearest one by an SVD first, and removed again."""
    from safetensors.torch import save_file

    made = {}
    for name, value in load(source).items():
        host = nn.Linear(*value.shape[::-1], bias=False, device=device)
        U, _, Vh = torch.linalg.svd(value.to(device).double(), full_matrices=False)
        host.weight = nn.Parameter((U @ Vh).float(), requires_grad=False)
        parametrizations.orthogonal(host)
        parametrize.remove_parametrizations(host, "weight")
        made[name] = host.weight.detach().to(value.dtype).cpu()
    save_file(made, target, metadata={"format": "pt"})


if __name__ == "__main__":
    {
        "register_loop": register_loop,
        "edit": edit,
        "bake": bake,
        "cayley_loop": cayley_loop,
        "on_device": on_device,
        "orthogonal_loop": orthogonal_loop,
    }[sys.argv[1]](*sys.argv[2:])
