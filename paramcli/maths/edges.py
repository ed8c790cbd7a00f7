"""Edges of images whose matrices have positive eigenvalues or singular values: the points that keep away from zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Edge
from .decompositions import eigh, svd


def eigenvalue_edge(A: Tensor, count: int | None = None, floor: float = 0.0, hint: str | None = None) -> Edge:
    """Of symmetric (Hermitian) matrices whose `count` largest eigenvalues, all by default, are above `floor`.

    The nearest with at least floor + 4 share * largest has those below raised to that, in their own directions: what is
    stored is rounded by up to half of the first share tried, and other kernels round another way.
    """
    l, Q = eigh(A)
    first = l.size(-1) - (l.size(-1) if count is None else count)
    l, Q = l[..., first:], Q[..., first:]

    def moved(more: Tensor) -> Tensor:
        made = A + (Q * more.unsqueeze(-2)) @ Q.mH
        return (made + made.mH) / 2

    return _edge(A, l, l[..., :1], l[..., -1:], floor, moved, lambda l: f"its smallest eigenvalue is {l:.3g}", hint)


def singular_value_edge(W: Tensor, count: int, floor: float = 0.0, hint: str | None = None) -> Edge:
    """Of matrices whose `count` largest singular values are above `floor`."""
    U, S, Vh = svd(W)
    U, S, Vh = U[..., :count], S[..., :count], Vh[..., :count, :]

    def moved(more: Tensor) -> Tensor:
        return W + (U * more.unsqueeze(-2)) @ Vh

    return _edge(
        W, S, S[..., -1:], S[..., :1], floor, moved, lambda s: f"its singular value number {count} is {s:.3g}", hint
    )


def _edge(
    W: Tensor,
    values: Tensor,
    least: Tensor,
    largest: Tensor,
    floor: float,
    moved: Callable[[Tensor], Tensor],
    says: Callable[[float], str],
    hint: str | None,
) -> Edge:
    def inside(noise: Tensor) -> Tensor:
        share = noise.unsqueeze(-1)
        more = torch.where(share > 0, (floor + 4 * share * largest - values).clamp(min=0), torch.zeros_like(values))
        return torch.where((more > 0).any(-1)[..., None, None], moved(more), W)

    return Edge(least.squeeze(-1), says, inside, hint, begins=((least - floor) / (4 * largest)).squeeze(-1))
