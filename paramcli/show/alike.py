"""Rows that say the same of many layers, made one: what a person reads of a model of a thousand tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Row = TypeVar("Row")
_NUMBER = re.compile(r"(\d+)")


def alike(
    rows: Sequence[Row], name: Callable[[Row], str], look: Callable[[Row], Hashable]
) -> list[tuple[str, list[Row]]]:
    """(name, rows): rows of equal looks whose names differ in numbers only are together, where the first of them was.

    Of several the name has a star for every number that is not one and the same.
    """
    groups: dict[tuple[str, Hashable], list[Row]] = {}
    for row in rows:
        groups.setdefault((_NUMBER.sub("#", name(row)), look(row)), []).append(row)
    return [(_common([name(row) for row in group]), group) for group in groups.values()]


def _common(names: Sequence[str]) -> str:
    return "".join(parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*map(_NUMBER.split, names), strict=True))
