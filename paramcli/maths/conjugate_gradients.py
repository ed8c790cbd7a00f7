"""Systems of equations whose matrix is applied and never made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# What a step of Newton's method takes at most; four to ten are enough for random matrices.
INNER = 1000


def conjugate_gradients(apply: Callable[[Tensor], Tensor], diagonal: Tensor, wanted: Tensor, left: float) -> Tensor:
    """x with ||wanted - V x|| <= left, or what INNER steps give; V is positive definite and has this diagonal."""
    x, residual = torch.zeros_like(wanted), wanted
    direction = preconditioned = residual / diagonal
    product = residual @ preconditioned
    for _ in range(INNER):
        image = apply(direction)
        share = product / (direction @ image)
        x, residual = x + share * direction, residual - share * image
        if torch.linalg.vector_norm(residual).item() <= left:
            break
        preconditioned = residual / diagonal
        last, product = product, residual @ preconditioned
        direction = preconditioned + product / last * direction
    return x
