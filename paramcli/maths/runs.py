"""Numbers of which each stands for a run of so many entries of a row-major tensor, rows or no rows. Without torch: the
table of entries asks it too.
"""

from __future__ import annotations

import math


def rows_for_one(each: int, shape: tuple[int, ...]) -> int:
    """The least number of rows (indices of dimension 0) that are whole runs of `each` entries; 0 where no number of the
    tensor's rows is, or the last of such groups is short.
    """
    if not shape or not all(shape):
        return 0
    rows = each // math.gcd(each, math.prod(shape[1:]))
    return 0 if shape[0] % rows else rows


def runs_shape(each: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that such numbers are read in: a row for every `rows_for_one` of the tensor, else all in one."""
    rows = rows_for_one(each, shape)
    return (shape[0] // rows, rows * math.prod(shape[1:]) // each) if rows else (math.ceil(math.prod(shape) / each),)


def pairs_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of bytes that hold two entries each: a row is one where it fills whole bytes, else all are one row."""
    if shape and shape[-1] % 2 == 0:
        return (*shape[:-1], shape[-1] // 2)
    return (math.ceil(math.prod(shape) / 2),)
