"""Random members and near-misses of every constraint, from numpy-free first principles: QR, eigenbases, sorting."""

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


def members(name: str, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(6, 6, generator=g, dtype=torch.float64)
    return {
        "any": lambda: X,
        "symmetric": lambda: X + X.T,
        "skew": lambda: X - X.T,
        "orthogonal": lambda: rotation(6, seed, sign=-1),
        "special_orthogonal": lambda: rotation(6, seed),
        "positive_definite": lambda: spd(6, seed, 1.0),
        "positive_determinant": lambda: spd(6, seed, 1.0) @ rotation(6, seed),
        "unit_spectral_norm": lambda: rotation(6, seed) * torch.linspace(1, 0.2, 6, dtype=torch.float64),
        "sparse": lambda: X * (X.abs() > X.abs().flatten().sort().values[17]),
    }[name]()


def near_misses(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Labelled tensors that are close to members and are none."""
    Y = members(name, seed)
    row = Y.clone()
    row[2] *= 1.05
    entry = Y.clone()
    entry[0, 1] += 0.2 * Y.norm()
    misses = {
        "any": {"nan": torch.where(torch.eye(6).bool(), torch.nan, Y)},
        "symmetric": {"one entry": entry, "skew": Y.triu(1) - Y.triu(1).T},
        "skew": {"one entry": entry, "diagonal": Y + torch.eye(6) * Y.norm() * 0.1},
        "orthogonal": {"times 1.05": 1.05 * Y, "zero": 0 * Y, "row times 1.05": row},
        "special_orthogonal": {"times 1.05": 1.05 * Y, "zero": 0 * Y, "row times 1.05": row, "det -1": rotation(6, seed, sign=-1)},
        "positive_definite": {"negative": -Y, "zero": 0 * Y, "one negative": Y - 1.2 * torch.linalg.eigvalsh(Y)[1] * torch.eye(6)},
        "positive_determinant": {"negative": Y[[1, 0, 2, 3, 4, 5]], "zero": 0 * Y},
        "unit_spectral_norm": {"times 1.06": 1.06 * Y, "times 0.94": 0.94 * Y, "zero": 0 * Y},
        "sparse": {"one entry back": torch.where(Y == 0, 1.0, Y)},
    }
    return misses[name]


SPECS = {"sparse": "sparse:amount=18"}
