"""Panels as SVG, by hand: a few shapes, classes for colours, no script, no font, nothing from outside.

Text that comes from a file is escaped here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ...text import printable
from .panels import Curve, Plane, log, ticks

WIDTH, HEIGHT = 240, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 26, 24
# One sheet for a picture on its own and for the report, light and dark.
STYLE = """
.plot{--ink:#1f2328;--quiet:#6e7781;--line:#d8dee4;--now:#0b63ce;--then:#b35900;--bad:#c62828;\
font:11px system-ui,sans-serif}
.plot text{fill:var(--quiet)}.plot .title{fill:var(--ink);font-size:12px}
.plot .grid{stroke:var(--line);stroke-width:1;fill:none}
.plot .now{stroke:var(--now);stroke-width:1.6;fill:none}\
.plot .then{stroke:var(--then);stroke-width:1.3;stroke-dasharray:4 3;fill:none}
.plot circle.now{fill:var(--now);stroke:none;fill-opacity:.75}.plot circle.then{stroke-width:.8;stroke-dasharray:none}
.plot .mark{stroke:var(--ink);stroke-width:2}.plot .bad{fill:var(--bad)}\
.plot .limit{stroke:var(--quiet);stroke-width:1;stroke-dasharray:2 3}
@media (prefers-color-scheme:dark){.plot{--ink:#e6edf3;--quiet:#9198a1;--line:#30363d;--now:#6cb6ff;\
--then:#f0a35e;--bad:#ff8a80}}
@media print{.plot{--ink:#000;--quiet:#444;--line:#ccc;--now:#0b63ce;--then:#b35900;--bad:#c62828}}
""".strip()


def text(value: object) -> str:
    """Escaped for a terminal's eyes and for markup."""
    return escape(printable(value))


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def power(exponent: int) -> str:
    """10^exponent with a raised exponent."""
    return f'10<tspan dy="-4" font-size="8">{exponent}</tspan>'


def panel(shown: Curve | Plane, x: int = 0, y: int = 0) -> str:
    """One panel as a group at (x, y)."""
    inner = _curve(shown) if isinstance(shown, Curve) else _plane(shown)
    return f'<g transform="translate({x} {y})">{inner}</g>'


def _title(words: str) -> str:
    shown = words if len(words) <= 36 else "…" + words[-35:]
    return f'<text class="title" x="4" y="14">{text(shown)}<title>{text(words)}</title></text>'


def _curve(shown: Curve) -> str:
    wide, high = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
    span = shown.high - shown.low

    def place(values: Sequence[float]) -> str:
        step = max(len(values) // 300, 1)
        kept = sorted({*range(0, len(values), step), len(values) - 1})
        last = max(len(values) - 1, 1)
        at = [(i / last if len(values) > 1 else 0.5, log(values[i], shown.low)) for i in kept]
        if len(at) == 1:
            at = [(0.0, at[0][1]), (1.0, at[0][1])]
        return " ".join(f"{_number(_LEFT + a * wide)},{_number(_TOP + (shown.high - b) / span * high)}" for a, b in at)

    parts = [_title(f"singular values {shown.title}".strip())]
    marks = ticks(shown.low, shown.high, 5)
    for exponent in marks:
        at = _number(_TOP + (shown.high - exponent) / span * high)
        parts.append(
            f'<path class="grid" d="M{_LEFT} {at}h{wide}"/><text x="{_LEFT - 5}" y="{at}" dy="4" '
            f'text-anchor="end">{power(exponent)}</text>'
        )
    if not marks:
        parts.append(f'<text x="{_LEFT - 5}" y="{_TOP + 6}" text-anchor="end">{10**shown.high:.2g}</text>')
        parts.append(f'<text x="{_LEFT - 5}" y="{_TOP + high}" text-anchor="end">{10**shown.low:.2g}</text>')
    parts.append(f'<path class="grid" d="M{_LEFT} {_TOP}v{high}h{wide}"/>')
    if shown.before is not None:
        parts.append(f'<polyline class="then" points="{place(shown.before)}"/>')
    parts.append(f'<polyline class="now" points="{place(shown.after)}"/>')
    parts.append(
        f'<text x="{_LEFT}" y="{HEIGHT - 8}">1</text><text x="{WIDTH - _RIGHT}" y="{HEIGHT - 8}" '
        f'text-anchor="end">{len(shown.after)}</text>'
    )
    return "".join(parts)


def _plane(shown: Plane) -> str:
    radius = (HEIGHT - _TOP - _BOTTOM) / 2
    cx, cy = WIDTH / 2, _TOP + radius
    unit = radius / shown.reach
    parts = [_title(f"eigenvalues {shown.title}".strip())]
    parts.append(
        f'<path class="grid" d="M{_number(cx - radius)} {_number(cy)}h{_number(2 * radius)}M{_number(cx)} '
        f'{_number(cy - radius)}v{_number(2 * radius)}"/>'
    )
    if 2 < unit <= radius:
        parts.append(f'<circle class="grid" cx="{_number(cx)}" cy="{_number(cy)}" r="{_number(unit)}"/>')
    # Far more points than pixels say nothing.
    for value in shown.values[:: max(len(shown.values) // 3000, 1)]:
        at = f'cx="{_number(cx + value.real * unit)}" cy="{_number(cy - value.imag * unit)}"'
        parts.append(f'<circle class="{"then" if shown.then else "now"}" {at} r="1.8"/>')
    parts.append(f'<text x="{_number(cx)}" y="{HEIGHT - 8}" text-anchor="middle">re, im to ±{shown.reach:.2g}</text>')
    return "".join(parts)


def grid(shown: Sequence[Curve | Plane], across: int, alone: bool = False, title: str = "") -> str:
    """Panels in rows of `across`, as one <svg>; `alone` carries the style sheet with it, and a line of title."""
    across = max(min(across, len(shown)), 1)
    head = 24 if title else 0
    wide, high = across * WIDTH, head + -(-len(shown) // across) * HEIGHT
    body = "".join(panel(p, i % across * WIDTH, head + i // across * HEIGHT) for i, p in enumerate(shown))
    if title:
        body = f'<text class="title" x="4" y="16">{text(title)}</text>' + body
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {wide} {high}" width="{wide}" '
        f'height="{high}" role="img">'
    )
    return f"{opening}{f'<style>{STYLE}</style>' if alone else ''}{body}</svg>"
