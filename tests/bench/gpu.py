"""Large matrices on a GPU: a projection in products, and commands on bfloat16 matrices beside torch's own modules."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from safetensors.torch import save_file

from .harness import Bench, Claim, Contender, Figures, Result, Skipped, interleave, paramcli, remove, script

SIDE = 4096
# Seconds of each matrix beyond what torch and the device take to start.
ADD, VERIFY = 0.25, 0.05
PRODUCTS = 60
CHAINS = ("skew,matrix_exp", "orthogonal")


def gpu(bench: Bench) -> Result:
    """As many bfloat16 matrices of 4096 x 4096 as --size holds, on a CUDA device."""
    if not torch.cuda.is_available():
        raise Skipped("torch finds no CUDA device here")
    return on(bench, "cuda", SIDE)


def on(bench: Bench, device: str, side: int) -> Result:
    """The same on any device, with matrices of any side."""
    count = max(1, bench.size // (2 * side * side))
    source, added, out = (bench.place(f"{name}.safetensors") for name in ("plain", "added", "out"))
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            f"l.{number:02}.weight": (torch.randn(side, side, generator=generator) / side**0.5).bfloat16()
            for number in range(count)
        },
        source,
    )
    where = ("--device", device, "-q")
    contenders = {"torch and the device start": Contender(script("on_device", device))}
    for chain in CHAINS:
        made = bench.place(f"{chain.replace(',', '-')}.safetensors")
        contenders[f"add {chain}"] = Contender(
            paramcli("add", source, "-t", "*", "--chain", chain, "-o", added, *where), added
        )
        # What `verify` is asked of is made once, before all rounds.
        made_by = paramcli("add", source, "-t", "*", "--chain", chain, "-o", made, *where)
        interleave({"made": Contender(made_by)}, 1, lambda _: None)
        contenders[f"verify {chain}"] = Contender(paramcli("verify", made, "--device", device))
        contenders[f"bake {chain}"] = Contender(paramcli("remove", made, "-o", out, *where), out)
    contenders["torch's orthogonal, registered and removed"] = Contender(
        script("orthogonal_loop", source, out, device), out
    )
    figures = bench.interleave(contenders)
    start = figures["torch and the device start"].median
    claims = [
        Claim(f"{name}: seconds of a matrix", (figures[name].median - start) / count, limit, "s")
        for chain in CHAINS
        for name, limit in ((f"add {chain}", ADD), (f"verify {chain}", VERIFY))
    ]
    figures.update(_projection(device, side, bench.rounds))
    projection, product = figures["nearest orthogonal, float64"], figures["one product, float64"]
    claims.append(Claim("a projection in products", projection.median / product.median, PRODUCTS))
    for path in bench.folder.glob("*.safetensors"):
        remove(path)
    notes = [torch.cuda.get_device_name(device) if device.startswith("cuda") else device]
    return Result(f"{count} matrices of {side} x {side}", figures, "torch and the device start", claims, notes)


def _projection(device: str, side: int, rounds: int) -> dict[str, Figures]:
    """In this process: the nearest orthogonal matrix, and what a product takes."""
    from paramcli.fitting import measure

    W = torch.randn(side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    work: dict[str, Callable[[], object]] = {
        "one product, float64": lambda: W @ W,
        "nearest orthogonal, float64": lambda: measure.nearest("orthogonal", W, None),
    }
    figures = {name: Figures() for name in work}
    for number in range(rounds + 1):
        for name, function in work.items():
            _wait(device)
            began = time.perf_counter()
            # Of a product several, which is soon done.
            times = [function() for _ in range(10 if "product" in name else 1)]
            _wait(device)
            if number:  # the first round warms up
                figures[name].seconds.append((time.perf_counter() - began) / len(times))
    return {name: Figures(seconds=[statistics.median(f.seconds)]) for name, f in figures.items()}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
