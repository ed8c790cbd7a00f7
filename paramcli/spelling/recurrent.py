"""Kernels of recurrent layers, by torch's names and shapes: which stack one matrix for each gate under one another.

weight_hh_l0, weight_hh       4n x n of an LSTM, 3n x n of a GRU, n x n of a plain layer
weight_ih_l0, weight_ih       as many rows, n of them for each gate, whatever is fed in
weight_hr_l0                  p x n where an LSTM projects: weight_hh is 4n x p then
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from ..text import listing
from ..wording import given

GATES = (4, 3)
_KERNEL = re.compile(r"(|.+\.)weight_(?:hh|ih)((?:_l[0-9]+(?:_reverse)?)?)")


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def gates(name: str, tensors: Mapping[str, Shaped]) -> int | None:
    """How many matrices this tensor of them stacks, 4 or 3; None for what is no such kernel."""
    found = _KERNEL.fullmatch(name)
    if found is None:
        return None
    rows, columns = (_shape(f"{found[1]}weight_{of}{found[2]}", tensors) for of in ("hh", "hr"))
    own = _shape(name, tensors)
    width = columns[1] if columns else rows[1] if rows else 0
    count = own[0] // width if own and width and own[0] % width == 0 else 0
    return count if count in GATES else None


def _shape(name: str, tensors: Mapping[str, Shaped]) -> tuple[int, ...] | None:
    shape = tuple(tensors[name].shape) if name in tensors else ()
    return shape if len(shape) == 2 else None


def stacked(names: Sequence[str], tensors: Mapping[str, Shaped], does: str) -> Iterator[str]:
    """What to say of those of the names that stack gates: what the view of one matrix for each `does`."""
    counts = {name: gates(name, tensors) for name in names}
    for count in GATES:
        kernels = [name for name in names if counts[name] == count]
        if kernels:
            verb = "stacks" if len(kernels) == 1 else "stack"
            view = given("view", f"blocks={count}")
            yield f"{listing(kernels, 2)} {verb} a matrix for each of {count} gates: {view} {does}"
