"""What a plan will cost, from headers alone: bytes written, peak memory, arithmetic. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..fitting.costs import operations
from ..text import size_text
from .plan import Plan, Step

# Anonymous memory of the interpreter with paramcli alone, and with torch; measured on Linux with torch 2.13.
BARE, WITH_TORCH = 25_000_000, 160_000_000
# Copies in double precision of one tensor that an edit holds at its peak, measured on projections and residuals.
COPIES = 6


@dataclass(frozen=True)
class Forecast:
    """`operations` counts multiplications and additions of the maps themselves; projections and checks come on top."""

    bytes_written: int
    peak_memory: int
    operations: int

    def __str__(self) -> str:
        return f"about {size_text(self.peak_memory)} of memory, {amount_text(self.operations)} operations"


def forecast(plan: Plan) -> Forecast:
    computed = [step for step in plan.steps if step.computes]
    held = max(map(held_by, computed), default=0)
    base = WITH_TORCH if computed else BARE
    return Forecast(
        plan.nbytes, base + held, sum(operations(step.group.shape, step.chain, step.view) for step in computed)
    )


def held_by(step: Step) -> int:
    """Bytes that a step's tensors take at its peak: those of the whole, or of three blocks of rows, as one is read and
    one written meanwhile.
    """
    entries = math.prod(step.group.shape)
    if not step.ranges:
        return step.nbytes + COPIES * 8 * entries
    share = max(end - first for first, end in step.ranges) / step.group.shape[0]
    return int(share * (3 * step.nbytes + COPIES * 8 * entries))


def amount_text(count: int) -> str:
    """1234567 -> '1.2 million'."""
    for size, word in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if count >= size:
            return f"{count / size:.1f} {word}"
    return str(count)
