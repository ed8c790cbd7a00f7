"""Is a baked weight the product of codes and scales, rounded? Asked of its bits, not within a tolerance.

The product E is that in float32, which of a code and one scale is the nearest to the exact one. A weight M is rounded
once where every entry is the nearest to E of its dtype, or either of two that are as near: then a change of a scale is
found as soon as it changes one nearest number. Other tools round elsewhere, and each gives one tensor only: its bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ..fitting.evaluate import chain_of, weight_of
from ..maths.base import Check
from ..spelling.forms import Group
from ..text import count_text
from .verdict import PRODUCT

HALVES = (torch.bfloat16, torch.float16)
Blocks = Iterable[tuple[Group, dict[str, Tensor], Tensor]]


def product_of(group: Group, state: dict[str, Tensor]) -> Tensor:
    """What the codes stand for, in float32."""
    return weight_of(replace(group, dtype="F32"), state, chain_of(group), group.view)


def unrounded(M: Tensor, E: Tensor, dtype: torch.dtype | None = None) -> int:
    """How many entries of M are not E rounded once to the dtype, by default that of M: not the nearest of its numbers,
    nor of two as near the other. What is not finite is none. One pass.
    """
    dtype = dtype or M.dtype
    R = E.to(dtype).to(M.dtype)
    missed = (M != R) | ~torch.isfinite(M)
    if not missed.any():
        return 0
    # Differences of a half and a float32 beside it are exact in float64, which Metal has not.
    m, r, e = (X[missed].cpu().double() for X in (M, R, E))
    tie = ((m - e).abs() == (r - e).abs()) & torch.isfinite(m) & (m.to(dtype) == m)
    return int((~tie).sum())


def another_way(blocks: Blocks) -> str | None:
    """How another tool came to the weight, where the whole of it is what that gives; None where it is of none.

    `blocks`: the parts of the weight, each with what it is decoded from and its baked value. A product for each way.
    """
    left = [(way, half) for way in _WAYS for half in HALVES]
    for group, state, M in blocks:
        left = [(way, half) for way, half in left if way(group, state, M, half)]
        if not left:
            return None
    return next((f"{_WAYS[way]} {str(half).removeprefix('torch.')}" for way, half in left), None)


def product_check(missed: int, count: int, way: str | None = None) -> Check:
    """Of so many entries that are not rounded once; `way`: what the weight is nevertheless."""
    if not missed or way is not None:
        return Check(PRODUCT, 0.0, 0.0, way)
    off = (
        f"{count_text(missed, 'weight')} of {count} {'is' if missed == 1 else 'are'} not code times scale, rounded once"
    )
    return Check(PRODUCT, missed / count, 0.0, f"{off}: a scale is another, or it was changed")


def _rounded_first(group: Group, state: dict[str, Tensor], M: Tensor, half: torch.dtype) -> bool:
    return unrounded(M, product_of(group, state), half) == 0


def _multiplied_in(group: Group, state: dict[str, Tensor], M: Tensor, half: torch.dtype) -> bool:
    """As code that has scales in the half and multiplies in it: the product of two halves is exact in float32."""
    R = product_of(group, {role: _in_half(role, T, half) for role, T in state.items()}).to(half).to(M.dtype)
    return bool(((M == R) & torch.isfinite(M)).all())


def _in_half(role: str, tensor: Tensor, half: torch.dtype) -> Tensor:
    """What codes are decoded with, as numbers of the half; codes, and scales of 8-bit floats, are such already."""
    if role.startswith("original") or not tensor.is_floating_point() or tensor.element_size() == 1:
        return tensor
    return tensor.to(half).to(tensor.dtype)


_WAYS = {_rounded_first: "rounded first to", _multiplied_in: "multiplied, its scales rounded first, in"}
