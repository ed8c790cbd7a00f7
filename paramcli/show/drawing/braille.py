"""Panels as characters: braille dots for what is now, a middle dot for what was before.

Every character stands for 2 x 4 dots. It reads without colour: before and after differ in shape, and
where both fall on one cell the after is shown.
"""

from __future__ import annotations

from collections.abc import Sequence

from .panels import Curve, Plane, sampled, ticks

# A panel's width and height in characters; three of them and two gaps fill 80 columns.
WIDTH, HEIGHT, GAP = 25, 9, 2
_LABEL = 8
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
BEFORE = "·"


class Canvas:
    """A grid of braille cells, with other characters laid under the dots."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.cells = [[0] * width for _ in range(height)]
        self.under = [[" "] * width for _ in range(height)]

    def dot(self, x: int, y: int) -> None:
        """One dot; (0, 0) is at the bottom left, there are 2 in a cell across and 4 up."""
        if 0 <= x < 2 * self.width and 0 <= y < 4 * self.height:
            row = 4 * self.height - 1 - y
            self.cells[row // 4][x // 2] |= _DOTS[row % 4][x % 2]

    def line(self, x: int, y: int, to: int) -> None:
        """The dots of one column from y to `to`, the last left out unless it is the first."""
        for height in range(min(y, to), max(y, to) + 1):
            if height != to or y == to:
                self.dot(x, height)

    def put(self, column: int, row: int, character: str) -> None:
        if 0 <= column < self.width and 0 <= row < self.height:
            self.under[row][column] = character

    def rows(self) -> list[str]:
        return [
            "".join(chr(0x2800 + cell) if cell else under for cell, under in zip(cells, unders, strict=True))
            for cells, unders in zip(self.cells, self.under, strict=True)
        ]


def draw(panel: Curve | Plane) -> list[str]:
    """The panel as lines of WIDTH characters."""
    return _curve(panel) if isinstance(panel, Curve) else _plane(panel)


def _curve(panel: Curve) -> list[str]:
    canvas = Canvas(WIDTH - _LABEL, HEIGHT)
    span = panel.high - panel.low

    def row(value: float) -> int:
        return round((panel.high - value) / span * (HEIGHT - 1))

    if panel.before is not None:
        rows = [row(value) for value in sampled(panel.before, panel.low, canvas.width)]
        for column, (at, after) in enumerate(zip(rows, [*rows[1:], rows[-1]], strict=True)):
            for between in range(at, max(after, at + 1)):
                canvas.put(column, between, BEFORE)
    heights = [
        round((value - panel.low) / span * (4 * HEIGHT - 1))
        for value in sampled(panel.after, panel.low, 2 * canvas.width)
    ]
    for x, height in enumerate(heights):
        canvas.line(x, height, heights[x + 1] if x + 1 < len(heights) else height)
    labels = {row(exponent): f"1e{exponent}" for exponent in ticks(panel.low, panel.high, 4)}
    if len(labels) < 2:
        labels = {row(value): _label(10**value) for value in (panel.low, (panel.low + panel.high) / 2, panel.high)}
    lines = [_fit(f"sigma {panel.title}")]
    lines += [f"{labels.get(i, ''):>{_LABEL - 2}} │{cells}" for i, cells in enumerate(canvas.rows())]
    lines.append(" " * _LABEL + "1" + str(len(panel.after)).rjust(canvas.width - 1))
    return lines


def _label(value: float) -> str:
    """Two digits in the characters there are beside an axis, one where its exponent needs the room: 0.0009, 1.1e-4."""
    for text in (f"{value:.2g}", f"{value:.1e}", f"{value:.0e}"):
        number, e, exponent = text.partition("e")
        if len(text := number + e + (str(int(exponent)) if e else "")) <= _LABEL - 2:
            return text
    return text


def _plane(panel: Plane) -> list[str]:
    width = 2 * HEIGHT + 1
    canvas = Canvas(width, HEIGHT)
    for row in range(HEIGHT):
        canvas.put(HEIGHT, row, "│")
    for column in range(width):
        canvas.put(column, HEIGHT // 2, "┼" if column == HEIGHT else "─")
    scale = (2 * HEIGHT - 0.5) / panel.reach
    for value in panel.values:
        # In dots from the middle of the canvas, which is the middle of a cell.
        canvas.dot(round(width - 0.5 + value.real * scale), round(2 * HEIGHT - 0.5 + value.imag * scale))
    left = (WIDTH - width) // 2
    lines = [_fit(" " * left + f"eig {panel.title}")]
    lines += [(" " * left + row).ljust(WIDTH) for row in canvas.rows()]
    lines.append(f"re, im to ±{panel.reach:.2g}".center(WIDTH))
    return lines


def _fit(title: str) -> str:
    """A title of exactly a panel's width; a long one loses its beginning, for names differ at the end."""
    return title.ljust(WIDTH) if len(title) <= WIDTH else "…" + title[1 - WIDTH :]


def lay_out(panels: Sequence[Curve | Plane], columns: int, together: int = 1) -> list[str]:
    """Panels side by side, as many as fit, `together` of them never parted; lines without padding at their ends."""
    across = max((columns + GAP) // (WIDTH + GAP), 1)
    across = across // together * together or across
    lines: list[str] = []
    for start in range(0, len(panels), across):
        drawn = [draw(panel) for panel in panels[start : start + across]]
        lines += [(" " * GAP).join(parts).rstrip() for parts in zip(*drawn, strict=True)]
        lines.append("")
    return lines[:-1]
