"""Many small matrices in one call: what surrounds the maths of a 64 x 64 matrix costs ten times the maths.

Tensors of one shape, dtype, chain and view become one batch, for chains all of whose links say that they stack. Up
to SIDE the batched kernels give every matrix the bits that it gets alone; above it there is nothing to gain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..chain import Chain
from ..errors import CheckFailed
from ..maths.base import MEMBER, CannotReach, Check, compute_dtype, wide
from ..registry import constraint, target_class
from ..view import View
from . import measure
from .claims import checks_of_each, holds
from .fit import Fitted
from .originals import EXACT
from .reach import NOTED

SIDE = 128
# Of a batch every matrix has to begin where one alone may: before a multiple of so many bytes LAPACK's kernels take
# entries by other code, which rounds otherwise. (With an odd side, in float64 from 9 on and in float32 from 17 on.)
ALIGNED = 16


def stackable(chain: Chain, view: View, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Can tensors of this kind be computed together?"""
    seen = view.shape(shape)
    if len(seen) < 2 or not 0 < max(seen[-2:]) <= SIDE or 0 in seen or not dtype.is_floating_point:
        return False
    if seen[-2] * seen[-1] * compute_dtype(dtype).itemsize % ALIGNED:
        return False
    if chain.constraint is not None and constraint(chain.constraint).whole:
        return False
    return all(target_class(link.entry).stacks for link in chain.links)


def evaluate_stack(chain: Chain, X: Tensor, compute: str = "same") -> Tensor:
    """The chain's values from stacked originals as the view shows them: as `originals.evaluate`, on each."""
    value = X.to(compute_dtype(X.dtype, compute))
    for link in chain.links:
        value = link.make(value).map(value)
    return value.to(X.dtype)


def bake_stack(
    tensors: Sequence[Tensor], chain: Chain, view: View, device: object, compute: str
) -> list[tuple[Tensor, Check | None]]:
    """(value, its check) of each original."""
    with torch.no_grad():
        shape = tensors[0].shape
        X = torch.stack([view.into(X) for X in tensors]).to(device)
        measure.require_finite(X)
        values = evaluate_stack(chain, X, compute)
        measure.require_finite(values)
        return [
            (view.back(value, shape), check) for value, check in zip(values, checks_of_each(chain, values, compute))
        ]


def fit_stack(
    tensors: Sequence[Tensor],
    chain: Chain,
    view: View,
    *,
    init: str,
    max_change: float | None,
    device: object,
    compute: str,
) -> list[Fitted]:
    """`fit` of each tensor; raises where one of them needs to be told something."""
    with torch.no_grad():
        shape, dtype = tensors[0].shape, tensors[0].dtype
        W = torch.stack([view.into(W) for W in tensors]).to(device)
        measure.require_finite(W)
        target = Y = W.to(wide(dtype, W.device))
        if chain.constraint is not None:
            residuals = _worst_of_each(constraint(chain.constraint).residual(Y))
            if init == "strict" and not all(check.ok for check in checks_of_each(chain, W, "same")):
                raise CheckFailed("one of them is not on the constraint")
            off = [index for index, residual in enumerate(residuals) if residual > MEMBER]
            if off:
                target = Y = Y.clone()
                Y[off], assumed = measure.nearest(chain.constraint, Y[off], dtype)
                if assumed is not None:
                    raise CannotReach(f"of one of them: {assumed}")
        for link in reversed(chain.links):
            part, wanted = link.make(Y), Y
            Y = part.inverse(wanted)
            if not all(error <= EXACT for error in measure.moved_of_each(part.map(Y), wanted)):
                raise CannotReach("one of them has no preimage")
        X = Y.to(dtype)
        values = evaluate_stack(chain, X, compute)
        if not all(missed <= NOTED for missed in measure.moved_of_each(values, target)):
            raise CannotReach("rounding the originals of one of them puts its value visibly away")
        fits = [
            Fitted({"original": view.back(x, shape)}, view.back(value, shape), change, check)
            for x, value, change, check in zip(
                X, values, measure.moved_of_each(values, W), checks_of_each(chain, values, compute)
            )
        ]
    if any(not holds(f.check, chain) or (max_change is not None and not f.moved <= max_change) for f in fits):
        raise CheckFailed("one of them is off, or would move too far")
    return fits


def _worst_of_each(residuals: Tensor) -> list[float]:
    return residuals.reshape(len(residuals), -1).amax(-1).tolist()
