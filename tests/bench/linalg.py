"""The maps of orthogonal matrices against one matrix product."""

from __future__ import annotations

import time
from collections.abc import Callable

from .harness import Bench, Figures, Result


def linalg(bench: Bench) -> Result:
    """The maps on one n x n matrix against one matrix product of the same dtype, in this process."""
    import torch

    from paramcli.chain import parse_chain
    from paramcli.fitting import measure
    from paramcli.fitting.originals import loaded, value_of
    from paramcli.view import IDENTITY

    n = bench.side
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(n, n, generator=generator) / n**0.5
    rotation = torch.linalg.qr(W.double()).Q.float()
    near = rotation + 1e-3 * torch.randn(n, n, generator=generator) / n**0.5

    def through(text: str) -> Callable[[], object]:
        parts = loaded(parse_chain(text), IDENTITY, (n, n), {"original": W})
        return lambda: value_of(parts, torch.float32, torch.float32)

    work = {
        "one product, float32": lambda: W @ W,
        "one product, float64": (lambda D: lambda: D @ D)(W.double()),
        "skew,cayley": through("skew,cayley"),
        "skew,matrix_exp": through("skew,matrix_exp"),
        "nearest orthogonal, a random matrix": lambda: measure.nearest("orthogonal", W.double(), None),
        "nearest orthogonal, one that is off by 1e-3": lambda: measure.nearest("orthogonal", near.double(), None),
        "verify orthogonal": lambda: measure.check("orthogonal", rotation),
    }
    figures = {name: Figures() for name in work}
    for number in range(bench.rounds + 1):
        for name, function in work.items():
            began = time.perf_counter()
            with torch.no_grad():
                function()
            if number:  # the first round warms up
                figures[name].seconds.append(time.perf_counter() - began)
        bench.log(f"  round {number}/{bench.rounds}")
    return Result(
        f"Linear algebra, n = {n}", figures, "one product, float32", notes=[f"{torch.get_num_threads()} threads"]
    )
