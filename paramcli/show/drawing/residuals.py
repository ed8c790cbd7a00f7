"""Residuals against their tolerances, as one SVG: a row each, on a log scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .panels import ticks
from .svg import power, text

# More rows than this are no picture: the worst are shown.
MOST = 40
_LABEL, _WIDTH, _ROW, _TOP = 330, 420, 20, 22


@dataclass(frozen=True)
class Row:
    """One measured number; `limit` is None where it is compared with nothing."""

    label: str
    residual: float
    limit: float | None
    ok: bool

    @property
    def excess(self) -> float:
        if math.isnan(self.residual):
            return math.inf
        return self.residual / self.limit if self.limit else self.residual


def worst(rows: Sequence[Row]) -> list[Row]:
    """The rows that are drawn: what fails first, then the nearest to their limits."""
    return sorted(rows, key=lambda row: (row.ok, -row.excess))[:MOST]


def plot(rows: Sequence[Row]) -> str:
    """The picture of these rows; "" where none has a number to show."""
    numbers = [v for row in rows for v in (row.residual, row.limit) if v and math.isfinite(v)]
    if not numbers:
        return ""
    low, high = math.floor(math.log10(min(numbers))) - 0.3, math.ceil(math.log10(max(numbers))) + 0.3
    tall = _TOP + _ROW * len(rows) + 8

    def at(value: float) -> float:
        """Zero stands at the left edge, what is not finite at the right."""
        if not math.isfinite(value):
            return _LABEL + _WIDTH
        return _LABEL + (math.log10(value) - low) / (high - low) * _WIDTH if value else _LABEL

    parts = []
    for exponent in ticks(low, high, 8):
        place = f"{at(10.0**exponent):.1f}"
        parts.append(
            f'<path class="grid" d="M{place} {_TOP - 4}V{tall - 6}"/><text x="{place}" y="12" '
            f'text-anchor="middle">{power(exponent)}</text>'
        )
    for i, row in enumerate(rows):
        y = _TOP + _ROW * i + _ROW / 2
        shown = row.label if len(row.label) <= 54 else "…" + row.label[-53:]
        parts.append(
            f'<text class="title" x="{_LABEL - 10}" y="{y + 4:.1f}" '
            f'text-anchor="end">{text(shown)}<title>{text(row.label)}</title></text>'
        )
        x = at(row.residual)
        if row.limit:
            limit = at(row.limit)
            parts.append(
                f'<path class="limit" d="M{min(x, limit):.1f} {y:.1f}H{max(x, limit):.1f}"/><path class="mark" '
                f'd="M{limit:.1f} {y - 6:.1f}v12"/>'
            )
        kind = "now" if row.ok else "bad"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    wide = _LABEL + _WIDTH + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {wide} {tall}" width="{wide}" '
        f'height="{tall}" role="img">{"".join(parts)}</svg>'
    )
