"""Two thousand matrices of 64 x 64: what an edit costs each, in CPU seconds beyond importing torch."""

from __future__ import annotations

import statistics

import torch
from safetensors.torch import save_file

from .harness import IMPORT_TORCH, Bench, Claim, Contender, Figures, Result, paramcli, remove, run, script

COUNT, SIDE = 2000, 64
# What `add` may take; `verify` and `remove --bake` 1 each.
CHAINS = {
    "weight_norm": 0.6,
    "symmetric": 0.6,
    "spectral_norm": 2.0,
    "skew,cayley": 1.5,
    "skew,matrix_exp": 4.0,
    "orthogonal": 3.0,
    "polar": 2.0,
    "low_rank:rank=8": 3.0,
    "lora:rank=8": 1.0,
    "mask": 1.0,
}


def small(bench: Bench) -> Result:
    """Ten chains, each put on, verified and baked by a command; and torch's registration of one, in a loop."""
    source = bench.place("small.safetensors")
    weights = torch.randn(COUNT, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) / SIDE**0.5
    save_file({f"l.{number}.weight": W.clone() for number, W in enumerate(weights)}, source)
    added, out = bench.place("added.safetensors"), bench.place("out.safetensors")
    figures = {name: Figures() for name in ("import torch", "torch's registration, a loop")}
    for number in range(bench.rounds):
        _note(figures["import torch"], IMPORT_TORCH)
        _note(figures["torch's registration, a loop"], Contender(script("register_loop", source)))
        for chain in CHAINS:
            remove(added)
            put = paramcli("add", source, "-t", "*", "--chain", chain, "-o", added, "-q")
            for name, contender in {
                f"add {chain}": Contender(put),
                f"verify {chain}": Contender(paramcli("verify", added)),
                f"bake {chain}": Contender(paramcli("remove", added, "-o", out, "-q"), out),
            }.items():
                _note(figures.setdefault(name, Figures()), contender)
        bench.log(f"  round {number + 1}/{bench.rounds}")
    for path in (source, added):
        remove(path)
    alone = statistics.median(figures["import torch"].cpu)
    claims = [
        Claim(f"{name}: CPU beyond torch's import", statistics.median(figures[name].cpu) - alone, limit, "s")
        for chain, most in CHAINS.items()
        for name, limit in ((f"add {chain}", most), (f"verify {chain}", 1.0), (f"bake {chain}", 1.0))
    ]
    return Result(f"{COUNT} matrices of {SIDE} x {SIDE}", figures, "import torch", claims)


def _note(figures: Figures, contender: Contender) -> None:
    seconds, cpu, peak = run(contender)
    figures.seconds.append(seconds)
    figures.cpu.append(cpu)
    figures.peak_anonymous = max(figures.peak_anonymous, peak)
