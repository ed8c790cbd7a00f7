"""One tensor of two checkpoints side by side, plain ones that are large in blocks of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..checkpoint.source import Source
from ..dtypes import nbytes_of
from ..errors import error_context
from ..maths.rows import row_blocks
from ..spelling.forms import Group
from .blocks import LARGE, block_entries
from .evaluate import effective
from .measure import Moved, require_finite_parts


class Pair:
    """The effective weights of two groups of one shape, of floating point. One of them, and `before`, what it was."""

    def __init__(self, source: Source, group: Group, before_source: Source, before: Group):
        self.sides = (source, group), (before_source, before)
        plain = all(one.is_plain and one.infos["value"].run is not None for one in (group, before))
        large = nbytes_of(group.dtype, group.shape) >= LARGE and all(group.shape)
        self._ranges = row_blocks(group.shape, block_entries(group.dtype)) if plain and large else []

    @property
    def dtype(self) -> torch.dtype:
        """In which they are subtracted."""
        return torch.float64 if {group.dtype for _, group in self.sides} == {"F64"} else torch.float32

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(now, before), block by block."""
        if not self._ranges:
            yield self._whole
        for begin, end in self._ranges:
            now, before = (source.read_rows(group.keys["value"], begin, end) for source, group in self.sides)
            yield now, before

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor]:
        """Evaluated once."""
        (source, group), (before_source, before) = self.sides
        now = effective(source, group)
        with error_context(path=before_source.path):
            return now, effective(before_source, before)

    def alike(self, holds: Callable[[Tensor, Tensor], bool]) -> bool:
        """Does it hold of every part? What was read is what was stored, by the checksums that its file has."""
        found = all(holds(now, before) for now, before in self.parts())
        if self._ranges:
            for source, group in self.sides:
                source.check_storage(group.infos["value"].storage)
        return found

    def differs(self) -> bool:
        """Is there an entry that is another number? (0 and -0 are one, and NaN of the same bits.)"""
        return not self.alike(_same)

    def moved(self) -> float:
        """||now - before|| / ||before||. InputRefused where the difference is NaN or infinite somewhere."""
        moved = Moved()
        require_finite_parts(self._seen(moved), "the change")
        return moved.result()[0]

    def _seen(self, moved: Moved) -> Iterator[Tensor]:
        for now, before in self.parts():
            moved.add(now, before)
            yield now.to(self.dtype) - before

    def difference(self) -> Tensor:
        """now - before, in float32 or wider. What was evaluated for it is given up."""
        (source, group), (before_source, before) = self.sides
        if self._ranges:
            D = source.read(group.keys["value"]).to(self.dtype)
            return D.sub_(before_source.read(before.keys["value"]))
        now, then = self._whole
        del self._whole
        return now.to(self.dtype) - then


def _same(now: Tensor, before: Tensor) -> bool:
    bits = (W.contiguous().reshape(-1).view(torch.uint8) for W in (now, before))
    return (now.dtype == before.dtype and torch.equal(*bits)) or bool((now == before).all())
