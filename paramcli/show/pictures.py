"""spectrum --svg and --png: the pictures as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..text import printable
from .drawing.panels import panels
from .reports import write_page

if TYPE_CHECKING:
    from ..answers.spectrum import SpectrumResult


def write_pictures(result: SpectrumResult, svg: Path | None, png: Path | None, force: bool) -> None:
    """Every matrix a panel, what belongs together in a row."""
    found = result.tensors
    shown = [panel for s in found for panel in panels(s, title=printable(s.tensor) if len(found) > 1 else None)]
    # In a row what belongs together: a matrix before and after its chain has three panels.
    across = 3 if any(m.of != "value" for s in found for m in s.matrices) else 4
    title = f"{printable(found[0].tensor)}  {found[0].title}" if len(found) == 1 else ""
    if svg is not None:
        from .drawing.svg import grid

        write_page(svg, grid(shown, across, alone=True, title=title).encode(), force)
    if png is not None:
        from .drawing.png import png as draw

        write_page(png, draw(shown, across, title), force)
