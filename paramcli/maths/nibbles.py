"""Two codes of four bits in each byte, and the sixteen values that they stand for."""

from __future__ import annotations

import torch
from torch import Tensor


def decoded(codes: Tensor, table: Tensor, high_first: bool = False) -> Tensor:
    """uint8 (..., n) -> the table's values (..., 2 n), of each byte first that of its lower four bits, or of its upper.

    One look-up for a byte: of a table of all pairs.
    """
    lower, upper = table.repeat(16), table.repeat_interleave(16)
    both = torch.stack((upper, lower) if high_first else (lower, upper), -1)
    # A pair as one number of twice the width is one copy, and not two.
    wide = {4: torch.float64, 8: torch.complex128}[table.element_size()]
    found = both.view(wide).flatten().index_select(0, codes.flatten().int())
    return found.view(table.dtype).view(*codes.shape[:-1], 2 * codes.size(-1))


def encoded(values: Tensor, table: Tensor, high_first: bool = False) -> Tensor:
    """(..., 2 n) -> uint8 (..., n): the codes of the table's nearest values. The table ascends, or its upper half has
    the negatives of its ascending lower half, as floats have; a zero then keeps its sign.
    """
    signed, half = bool((table[8:] == -table[:8]).all()), table[:8].sort()
    ascending, order = half if signed else table.sort()
    place = torch.bucketize(values.abs() if signed else values, (ascending[1:] + ascending[:-1]) / 2)
    codes = order[place].to(torch.uint8)
    if signed:
        codes |= values.signbit().to(torch.uint8) << 3
    first, second = codes.unflatten(-1, (-1, 2)).unbind(-1)
    return first << 4 | second if high_first else second << 4 | first


def halves_swapped(codes: Tensor) -> Tensor:
    """uint8 whose upper four bits are the lower ones, and the other way round."""
    return codes << 4 | codes >> 4
