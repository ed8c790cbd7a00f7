"""Every parametrization put on one large matrix, against one product and one SVD of that size."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from paramcli.chain import Chain, parse_chain
from paramcli.errors import ParamcliError
from paramcli.fitting import measure
from paramcli.fitting.fit import fit
from paramcli.registry import PARAMETRIZATIONS, constraint
from paramcli.view import IDENTITY

from .harness import Bench, Claim, Figures, Result

# What an edit of one matrix may cost, in products of its size in double precision; and in SVDs, where the nearest point
# takes iterations.
PRODUCTS, SVDS = 40.0, 10.0
ITERATIVE = ("correlation", "doubly_stochastic", "alpha_stable", "aol", "rank_one", "factored")
# Repeated by turns until so many seconds are spent on an entry, at least once.
SECONDS = 60.0
T = TypeVar("T")
PRODUCT, SVD = "one product, float64", "one SVD, float64"


def entries(bench: Bench) -> Result:
    """`add` (right inverse, value, measure) and `verify` of every entry that takes a square matrix, beyond reading: in
    products and SVDs that are timed beside it, in this process.
    """
    n = bench.side
    W = torch.randn(n, n, generator=torch.Generator().manual_seed(0))
    D = W.double()
    figures = {PRODUCT: Figures(), SVD: Figures()}
    claims, notes = [], [f"{n} x {n} float32, {torch.get_num_threads()} threads"]
    D @ D  # the first one starts the threads
    units: dict[str, Callable[[], object]] = {PRODUCT: lambda: D @ D, SVD: lambda: torch.linalg.svd(D)}
    for text in _chains():
        chain = parse_chain(text)
        unit, limit = (SVD, SVDS) if text.partition(":")[0] in ITERATIVE else (PRODUCT, PRODUCTS)
        beside = functools.partial(_timed, figures[unit], units[unit])
        try:
            share = _rounds(bench, text, chain, _weight(chain, W), beside, figures)
        except ParamcliError as error:
            figures.pop(f"add {text}")
            notes.append(f"{text}: {error}")
            continue
        bench.log(f"  {text}: {share:.1f} of {unit}")
        claims.append(Claim(f"add {text}", share, limit, "SVDs" if unit == SVD else "products"))
    claims.sort(key=lambda claim: claim.value / claim.limit, reverse=True)
    return Result(f"Every entry, n = {n}", figures, PRODUCT, claims, notes)


def _chains() -> list[str]:
    """Chains that take any square matrix: not those of codes and adapters."""
    return [
        text
        for entry in PARAMETRIZATIONS.values()
        if not (entry.same_as or entry.decodes) and entry.family not in ("adapter", "quantized")
        for text in entry.examples or (entry.name,)
        if all(link.real for link in parse_chain(text).links)
    ]


def _weight(chain: Chain, W: Tensor) -> Tensor:
    """A random weight, or a member where the set has no point near one."""
    if chain.constraint is None or constraint(chain.constraint).projection != "none":
        return W
    return constraint(chain.constraint).sample(W.shape, torch.Generator().manual_seed(0)).float()


def _rounds(
    bench: Bench, text: str, chain: Chain, W: Tensor, beside: Callable[[], float], figures: dict[str, Figures]
) -> float:
    """The median of an add's seconds over those of what is timed before and after it."""
    shares, began = [], time.perf_counter()
    before = beside()
    for _ in range(bench.rounds):
        seconds, fitted = _result(figures.setdefault(f"add {text}", Figures()), lambda: fit(W, chain, IDENTITY))
        after = beside()
        shares.append(2 * seconds / (before + after))
        before = after
        if chain.constraint is not None:
            verifying = functools.partial(measure.check, chain.constraint, fitted.value)
            _timed(figures.setdefault(f"verify {chain.constraint}", Figures()), verifying)
        if time.perf_counter() - began > SECONDS:
            break
    return statistics.median(shares)


def _timed(figures: Figures, work: Callable[[], object]) -> float:
    return _result(figures, work)[0]


def _result(figures: Figures, work: Callable[[], T]) -> tuple[float, T]:
    cpu, began = time.process_time(), time.perf_counter()
    result = work()
    figures.seconds.append(time.perf_counter() - began)
    figures.cpu.append(time.process_time() - cpu)
    return figures.seconds[-1], result
