r"""Which strengths of a change the rounding of every single entry allows: an interval, and no estimate.

A merge stores M = round(W + k D), W the base's entry, D the adapter's change and k its strength. Whatever the dtype,
one entry says

    |M - (W + k D)| <= t,      so      (M - W - t) / |D| <= +-k <= (M - W + t) / |D|,

where t is all that rounding can have done to this entry. What all entries allow is the intersection of these intervals:
a merge at strength k lies in it, and where it is empty no strength explains the tensor. Nothing is averaged, so neither
a wrong row among a thousand nor a bias hides, and the interval narrows with the number of entries: of n whose change is
about one step of the dtype, some lie so near to the edge between two numbers that k is known to a few 1/n. A least
squares k has no such bound: W lies on the grid of the dtype itself, so changes below half a step vanish rather than
average out, and k comes out too small by up to all of it.

t, entry by entry, is the sum of what the merge's arithmetic can have done (u the unit roundoff of a dtype, s its
spacing at a number; each step of arithmetic is off by at most u times its result, or by half a spacing):

    s(M) / 2                     M is rounded to the dtype that it is stored in
    s'(M) / 2                    the sum was rounded to another dtype before that
    u |W + k D|                  the sum in the dtype that computes (float32 or wider)
    8 |k| (max |D32 - D|         the products and their sums: what float32 makes of this very tensor, against double
           + u max |D|)          precision, and a rounding of the largest entry, which transforms (FFT) spread over all;
                                 eight times, as other kernels add in another order
    4 u_h |k D|                  the change in half precision: the product, the strength, the scale and the scale's own
                                 value, rounded one after another (sd-scripts in fp16 or bf16; peft with the adapter in
                                 half memory has two of them)

Where the change depends on the weight (DoRA, OFT), E(k) stands for W + k D and its derivative for D; what is computed
in half precision throughout has four roundings of E itself (sum, norm, factor, product).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..maths.numbers import eps, smallest, unit_roundoff

# Entries that are compared at once.
PART = 1 << 15
# Where half precision shows, it sends an entry beyond the tolerance of single precision one time in four at least. Of
# so many entries one in STRAYS or more will be, but for one case in ten thousand.
TELLING, STRAYS = 64, 16
# Below this share of its tolerance a change says nothing of its strength.
SILENT = 1e-9
# Of a merge of which nothing else was rounded.
ONCE = "rounded once"
_EXPONENT = 0x7FF0000000000000


def half_spacing(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Half the distance of neighbours in `dtype` at numbers of this size, in double precision: what rounding to it is
    off by at most.
    """
    # 2^floor(log2 |x|) are a double's bits of the exponent alone.
    power = (values.to(torch.float64).view(torch.int64) & _EXPONENT).view(torch.float64)
    return (power * (eps(dtype) / 2)).clamp_(min=smallest(dtype) / 2)


@dataclass(frozen=True)
class Arithmetic:
    """What of a merge was rounded on its way, beside the last rounding.

    `sum`: the dtype that the base was cast to, and the sum rounded to; `change`: the one that the change was rounded
    to, if to any; `cast`: the adapter's tensors were, too; `throughout`: so was everything between, where the change
    depends on the weight.
    """

    sum: torch.dtype
    change: torch.dtype | None = None
    cast: bool = False
    throughout: bool = False

    def text(self, stored: torch.dtype) -> str:
        """What it does that one rounding would not do."""
        said = []
        if self.change is not None:
            what = "all" if self.throughout else "the change"
            said.append(f"as when {what} is computed in {name_of(self.change)}")
        if self.sum != stored:
            said.append(f"as when the sum is in {name_of(self.sum)}, and stored in {name_of(stored)}")
        return "; ".join(said) or ONCE

    @property
    def computed(self) -> torch.dtype:
        """The dtype in which it computes what is not in half precision."""
        return torch.float64 if self.sum == torch.float64 and self.change is None else torch.float32


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


HALVES = (torch.float16, torch.bfloat16)


def arithmetics(base: torch.dtype, merged: torch.dtype, factors: torch.dtype, adds: bool) -> list[Arithmetic]:
    """How a merge of these dtypes may have been computed, from the narrowest tolerance to the widest; `factors`: the
    widest dtype of the adapter's tensors; `adds`: does the change not depend on the weight?
    """
    sums = sorted({base, merged}, key=lambda dtype: -dtype.itemsize)
    found = [Arithmetic(dtype) for dtype in sums]
    singles = (torch.float32,) if torch.float64 in sums else ()
    for change in (*singles, *HALVES):
        for dtype in sums:
            found.append(Arithmetic(dtype, change))
            if eps(factors) < eps(change):
                found.append(Arithmetic(dtype, change, cast=True))
            if change == dtype and not adds:
                found.append(Arithmetic(dtype, change, throughout=True))
                if eps(factors) < eps(change):
                    found.append(Arithmetic(dtype, change, cast=True, throughout=True))
    return found


@dataclass
class Allowed:
    """The strengths that every entry seen so far allows, under one arithmetic.

    `about`: the strength that the gaps were measured at; `farthest`: the largest gap, as a share of what rounding
    explains of it; `astray`: how many entries are farther; `unmoved`: the base itself is within that; `coarse`: of each
    half precision, of the change and throughout, how many entries it would have shown in, and how many of these are
    astray.
    """

    about: float
    low: float = -math.inf
    high: float = math.inf
    farthest: float = 0.0
    astray: int = 0
    unmoved: bool = True
    coarse: dict[tuple[torch.dtype, bool], tuple[int, int]] = field(
        default_factory=lambda: {(half, throughout): (0, 0) for half in HALVES for throughout in (False, True)}
    )

    @property
    def within(self) -> bool:
        """Is every entry what it should be at `about`?"""
        return self.farthest <= 1

    @property
    def any(self) -> bool:
        """Is there a strength that all entries allow?"""
        return self.low <= self.high

    def rules_out(self, how: Arithmetic) -> bool:
        """Was it not computed so? Half precision would have sent many entries astray which are not."""
        if how.change not in HALVES:  # of float32 in a sum of doubles what holds of both halves
            return how.change is not None and all(self.rules_out(Arithmetic(how.sum, half)) for half in HALVES)
        shown, astray = self.coarse[how.change, how.throughout]
        return shown >= TELLING and astray < shown / STRAYS

    def has(self, strength: float) -> bool:
        return self.low <= strength <= self.high

    @property
    def doubtful(self) -> bool:
        """Does it leave open whether the adapter is in it at all, or twice?"""
        return self.unmoved or self.has(0.0) or self.has(2.0)

    @property
    def strengths(self) -> tuple[float, float] | None:
        """The interval; None where no entry says anything of the strength."""
        return (self.low, self.high) if math.isfinite(self.low) or math.isfinite(self.high) else None

    def add(self, gap: Tensor, slope: Tensor | None, tolerance: Tensor, moved: Tensor) -> None:
        """Entries, flat and in double precision: M - E, the derivative of E by the strength, t, and M - W."""
        if not len(gap):
            return
        self.astray += int((gap.abs() > tolerance).sum())
        self.farthest = max(self.farthest, (gap.abs() / tolerance).max().item())
        self.unmoved = self.unmoved and bool((moved.abs() <= tolerance).all())
        if slope is None:
            return
        size = slope.abs()
        says = size > SILENT * tolerance
        if bool((says | (gap.abs() <= tolerance * (1 + 1e-6))).all()):
            size = torch.where(says, size, math.inf)
            middle, reach = gap * slope.sign() / size, tolerance / size
            reach = torch.where(says, reach, math.inf)
            self.low = max(self.low, self.about + (middle - reach).max().item())
            self.high = min(self.high, self.about + (middle + reach).min().item())
        else:
            self.low, self.high = math.inf, -math.inf  # an entry that no strength moves is off


def simplest(low: float, high: float) -> float:
    """The number of fewest digits in an interval: 0.4998 to 0.5003 -> 0.5."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return low if math.isfinite(low) else high
    middle = (low + high) / 2
    for digits in range(1, 17):
        rounded = float(f"{middle:.{digits}g}")
        if low <= rounded <= high:
            return rounded
    return middle


def roundoff(dtype: torch.dtype | None) -> float:
    return 0.0 if dtype is None else unit_roundoff(dtype)
