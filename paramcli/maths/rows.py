"""Blocks of rows (dimension 0) in which a tensor is read and computed, and dimensions beside them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Entries at whose multiples blocks of rows begin: what the widest vector unit takes of the narrowest dtype in one turn.
ROW_STEP = 64
# A product of fewer rows than these is computed by other kernels, which round otherwise (below 4 in MKL).
FEW = 8


class Share(NamedTuple):
    """What a tensor has of the weight's rows: `size` entries of dimension `dim` for each so many rows."""

    each: int = 1
    size: int = 1
    dim: int = 0

    def of(self, rows: int) -> int:
        return -(-rows * self.size // self.each)

    def part(self, tensor: Tensor, begin: int, end: int) -> Tensor:
        """What belongs to rows [begin, end) of the weight, of which `begin` is a multiple of `each`."""
        first = self.of(begin)
        return tensor.narrow(self.dim, first, self.of(end) - first)


def row_blocks(shape: tuple[int, ...] | torch.Size, entries: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Row ranges of about so many entries each, every one beginning at a multiple of ROW_STEP entries, and of so many
    rows; a few that are left over belong to the last. Of a matrix none has fewer than FEW rows, however wide they are,
    as products of fewer round otherwise; a row of a tensor of more dimensions may be a matrix itself, and is enough.
    """
    rows, width = shape[0], math.prod(shape[1:])
    step = math.lcm(ROW_STEP // math.gcd(ROW_STEP, width), multiple)
    count = max(entries // width // step, -(-FEW // step) if len(shape) == 2 else 1) * step
    ranges = [(begin, min(begin + count, rows)) for begin in range(0, rows, count)]
    if len(ranges) > 1 and rows - ranges[-1][0] < min(count, FEW):
        ranges[-2:] = [(ranges[-2][0], rows)]
    return ranges


def within_row(shape: tuple[int, ...] | torch.Size, dim: int | None) -> bool:
    """Does dimension `dim` of a tensor of this shape run within its rows?"""
    return dim is not None and dim % len(shape) != 0


def is_row(shape: tuple[int, ...] | torch.Size, dim: int | None) -> bool:
    """Is `dim` the dimension that counts the rows?"""
    return dim is not None and dim % len(shape) == 0
