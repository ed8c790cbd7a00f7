"""Random rotations and positive definite matrices, made independently of the package."""

from __future__ import annotations

import torch
from torch import Tensor


def rotation(n: int, seed: int, batch: tuple[int, ...] = (), sign: int = 1) -> Tensor:
    """A Haar-random orthogonal matrix with the given determinant."""
    g = torch.Generator().manual_seed(seed)
    Q, R = torch.linalg.qr(torch.randn(*batch, n, n, generator=g, dtype=torch.float64))
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    flip = torch.linalg.det(Q) * sign < 0
    Q[..., 0] = torch.where(flip[..., None], -Q[..., 0], Q[..., 0])
    return Q


def spd(n: int, seed: int, spread: float = 2.0) -> Tensor:
    """A symmetric positive definite matrix with eigenvalues within exp(+-spread)."""
    g = torch.Generator().manual_seed(seed + 1000)
    Q = rotation(n, seed)
    values = ((torch.rand(n, generator=g, dtype=torch.float64) * 2 - 1) * spread).exp()
    return (Q * values) @ Q.T
