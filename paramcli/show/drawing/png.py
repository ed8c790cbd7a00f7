"""Panels as PNG, by matplotlib: the optional extra `plot`."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import UsageError
from ...wording import given
from .panels import Curve, Plane, log

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def png(shown: Sequence[Curve | Plane], across: int, title: str) -> bytes:
    """The picture as bytes of a PNG file; UsageError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(
            f"{given('png')} needs matplotlib, which is not installed",
            hint=f"pip install 'paramcli[plot]', or {given('svg')}, which needs nothing",
            option="png",
        ) from None
    across = max(min(across, len(shown)), 1)
    down = -(-len(shown) // across)
    figure = Figure(figsize=(3.2 * across, 2.7 * down), layout="constrained")
    figure.suptitle(title, fontsize=10, parse_math=False)
    for place, panel in enumerate(shown):
        axes = figure.add_subplot(down, across, place + 1)
        _curve(axes, panel) if isinstance(panel, Curve) else _plane(axes, panel)
        axes.tick_params(labelsize=7)
    made = io.BytesIO()
    # No version or date in the file: same picture, same bytes.
    figure.savefig(made, format="png", dpi=130, metadata={"Software": None})
    return made.getvalue()


def _curve(axes: Axes, panel: Curve) -> None:
    if panel.before is not None:
        axes.semilogy(
            range(1, len(panel.before) + 1),
            [10 ** log(v, panel.low) for v in panel.before],
            "--",
            color="#b35900",
            linewidth=1,
            label="original",
        )
    marker = "." if len(panel.after) < 30 else ""
    axes.semilogy(
        range(1, len(panel.after) + 1),
        [10 ** log(v, panel.low) for v in panel.after],
        marker=marker,
        color="#0b63ce",
        linewidth=1.3,
        label="value",
    )
    axes.set_ylim(10**panel.low, 10**panel.high)
    axes.grid(True, linewidth=0.4, alpha=0.5)
    axes.set_title(f"singular values {panel.title}".strip(), fontsize=8, parse_math=False)
    if panel.before is not None:
        axes.legend(fontsize=7, frameon=False)


def _plane(axes: Axes, panel: Plane) -> None:
    from matplotlib.patches import Circle

    axes.add_patch(Circle((0, 0), 1, fill=False, color="#bbbbbb", linewidth=0.8))
    axes.axhline(0, color="#dddddd", linewidth=0.6)
    axes.axvline(0, color="#dddddd", linewidth=0.6)
    color = "#b35900" if panel.then else "#0b63ce"
    axes.plot([z.real for z in panel.values], [z.imag for z in panel.values], ".", markersize=4, color=color)
    axes.set_xlim(-panel.reach, panel.reach)
    axes.set_ylim(-panel.reach, panel.reach)
    axes.set_aspect("equal")
    axes.set_title(f"eigenvalues {panel.title}".strip(), fontsize=8, parse_math=False)
