"""verify --base --adapter as a page: the verdicts, the strengths that rounding allows, what else the merge holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..evidence import Evidence
from ..text import count_text, shape_text
from .html import Cell, note, number, page, section, table
from .tables import MERGE_LEGEND

if TYPE_CHECKING:
    from ..answers.merge_verdict import MergeResult

COLOURS = {True: "good", False: "bad", None: ""}


def merge_page(path: str, result: MergeResult, evidence: Evidence, facts: Sequence[tuple[str, str]]) -> bytes:
    headings = ("tensor", "chain", "shape", "dtype", "residual", "of rounding", "differing", "strength", "verdict")
    rows: list[list[Cell | str]] = [
        [
            v.tensor,
            v.chain,
            shape_text(v.shape),
            v.dtype,
            number(v.residual),
            number(v.of_rounding),
            number(v.differing),
            v.allowed,
            Cell(v.said + (f": {v.detail}" if v.detail else ""), kind=COLOURS[v.ok]),
        ]
        for v in result
    ]
    others: list[list[Cell | str]] = [[name, Cell(what, kind="bad")] for name, what in result.kept.wrong]
    asked = [("base", str(result.base))]
    asked += [("adapter", f"{name} at strength {strength:g}") for name, strength in result.adapters]
    same = count_text(result.untouched, "other tensor")
    return page(
        "verify",
        path,
        result.summary(),
        result.ok,
        evidence,
        (*facts, *asked, ("equal to the base", same)),
        section("Changed tensors", note(MERGE_LEGEND), table(headings, rows, ("residual", "of rounding", "differing"))),
        section("Others", table(("tensor", "verdict"), others)) if others else "",
    )
