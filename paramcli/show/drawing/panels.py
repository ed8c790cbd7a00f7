"""What a picture of a spectrum shows, whatever it is drawn with: curves of singular values, points of eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...answers.spectrum import Spectra

# Below the largest by more than this many decades, a singular value is drawn on the floor.
DECADES = 12


@dataclass(frozen=True)
class Curve:
    """Singular values in descending order, on a log scale; `before` where the tensor has a chain."""

    title: str
    after: Sequence[float]
    before: Sequence[float] | None
    low: float  # log10 of the axis
    high: float


@dataclass(frozen=True)
class Plane:
    """Eigenvalues in the complex plane, shown from -reach to reach both ways: a plane for before, one for after."""

    title: str
    values: Sequence[complex]
    reach: float
    then: bool = False


def panels(spectra: Spectra, planes: bool = True, title: str | None = None) -> list[Curve | Plane]:
    """The panels of one tensor: for each matrix a curve and, where it is square, a plane. All curves share one axis."""
    after = [s for s in spectra.matrices if s.of == "value"]
    before = {s.block: s for s in spectra.matrices if s.of != "value"}
    low, high = axis([v for s in spectra.matrices for v in s.singular])
    found: list[Curve | Plane] = []
    for s in after:
        b = before.get(s.block)
        words = " ".join(word for word in (title, f"block {s.block}" if s.block is not None else "") if word)
        found.append(Curve(words, s.singular, b.singular if b else None, low, high))
        for one in (b, s) if planes and s.eigen is not None else ():
            if one is not None and one.eigen is not None:
                label = f"{words} {one.of}".strip() if b else words
                found.append(Plane(label, one.eigen, 1.08 * (one.radius or 1.0), then=one is b))
    return found


def axis(values: Sequence[float]) -> tuple[float, float]:
    """log10 limits: whole decades where the values span any, else half a decade around them."""
    positive = [v for v in values if v > 0]
    if not positive:
        return -1.0, 1.0
    high, low = math.log10(max(positive)), math.log10(min(positive))
    low = max(low, high - DECADES)
    if high - low < 0.5:
        middle = (high + low) / 2
        return middle - 0.5, middle + 0.5
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def ticks(low: float, high: float, most: int) -> list[int]:
    """Whole decades between the limits, at most so many of them."""
    found = list(range(math.ceil(low), math.floor(high) + 1))
    return found[:: -(-len(found) // most)] if found else []


def log(value: float, low: float) -> float:
    """log10, with zero and what is far below the axis on its floor."""
    return max(math.log10(value), low) if value > 0 else low


def sampled(values: Sequence[float], low: float, count: int) -> list[float]:
    """`count` heights along the curve, interpolated between the values' logarithms."""
    if len(values) == 1:
        return [log(values[0], low)] * count
    heights = []
    for i in range(count):
        place = i * (len(values) - 1) / max(count - 1, 1)
        left = min(int(place), len(values) - 2)
        a, b = log(values[left], low), log(values[left + 1], low)
        heights.append(a + (b - a) * (place - left))
    return heights
