"""The nearest matrix of low rank, as the two thin factors that an adapter stores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .numbers import scale_of, wide
from .rows import row_blocks

# Up to so many products (rows x columns x the smaller of the two) a matrix is decomposed as it is, in double precision:
# 0.6 s on one core, as 1024 x 1024 is. Of 2048 x 2048 that takes 4 s, and a sketch of rank 16 takes 0.1 s.
EXACT = 1 << 30
# Columns of a sketch beyond the rank, and its power iterations. Source: Halko, Martinsson and Tropp 2011,
# arXiv:0909.4061, sections 4.3 and 4.5.
OVERSAMPLED, POWERS = 10, 2
# The rank that is tried first where it is to be found, and is doubled until it does.
FIRST = 32
# Entries whose products are in double precision at once, when what is lost is measured.
_BLOCK = 1 << 20
# Squares of what is larger are numbers of float32.
_SMALL = 1e-12


@dataclass(frozen=True)
class Wanted:
    """How near: the rank there is to be, or the largest share of the norm that may be lost by the least rank."""

    rank: int | None = None
    lost: float | None = None


@dataclass(frozen=True)
class Factors:
    """D = B A but for `lost`, which is ||D - B A||_F / ||D||_F of these very tensors. A is (rank, columns)."""

    A: Tensor
    B: Tensor
    lost: float

    @property
    def rank(self) -> int:
        return self.A.size(0)


def most(rows: int, columns: int) -> int:
    """The largest rank whose factors have fewer entries than the matrix."""
    return max((rows * columns - 1) // (rows + columns), 0)


def nearest(D: Tensor, wanted: Wanted, stored: torch.dtype) -> Factors | None:
    r"""A = S^{1/2} V^T and B = U S^{1/2} of the largest singular values of D, which is finite and not zero.

    No other B A of this rank is nearer to D (Eckart and Young 1936); of a sketch, which is what large matrices get, the
    expected distance is a few per cent more where singular values fall slowly, and the same where they fall fast. None
    where factors would save nothing, which is above the rank `most`.

    Shapes: (rows, columns) -> (rank, columns), (rows, rank).
    Cost:   an SVD; of a sketch of r columns 6 passes of O(rows columns r), again for each doubling of an unknown r.
    Source: Halko, Martinsson and Tropp 2011, arXiv:0909.4061.
    """
    limit = most(*D.shape)
    if not limit or (wanted.rank or 0) > limit:
        return None
    # A power of two: squares of D / scale neither overflow nor vanish. Mostly none is needed, and no second D made.
    scale = scale_of(D, (0, 1)).item()
    scale = 1.0 if _SMALL < scale < 1 / _SMALL else scale
    D = D if scale == 1 else D / scale
    if math.prod(D.shape) * min(D.shape) <= EXACT:
        return _kept(D, _decomposed(D), wanted, limit, scale, stored)
    columns = wanted.rank or FIRST
    while True:
        columns = min(columns, limit)
        found = _kept(D, _sketched(D, columns + OVERSAMPLED), wanted, columns, scale, stored)
        if found is not None or columns == limit:
            return found
        columns *= 2


def _decomposed(D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(D.to(wide(D.dtype, D.device)), full_matrices=False)
    return U, S, Vh


def _sketched(D: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V^T of the part of D that lies in the span of so many columns, which are drawn the same each time."""
    chance = torch.Generator().manual_seed(0)
    Y = D @ torch.randn(D.size(1), min(columns, *D.shape), generator=chance, dtype=D.dtype, device="cpu").to(D.device)
    for _ in range(POWERS):
        Y = D @ torch.linalg.qr(D.mT @ torch.linalg.qr(Y).Q).Q
    Q = torch.linalg.qr(Y).Q
    U, S, Vh = torch.linalg.svd(Q.mT @ D, full_matrices=False)
    return Q @ U, S, Vh


def _kept(
    D: Tensor,
    parts: tuple[Tensor, Tensor, Tensor],
    wanted: Wanted,
    limit: int,
    scale: float,
    stored: torch.dtype,
) -> Factors | None:
    """Factors of the wanted rank, or of the least that loses no more than is allowed; None where that is above the
    limit.
    """
    U, S, Vh = parts
    size = _norm(rows for _, rows in _blocks(D))
    rank = wanted.rank if wanted.lost is None else _least(S, size, wanted.lost)
    root = S.sqrt() * math.sqrt(scale)
    while rank is not None and rank <= min(limit, len(S)):
        A = (root[:rank].unsqueeze(1) * Vh[:rank]).to(stored)
        B = (U[:, :rank] * root[:rank]).to(stored)
        lost = _distance(D, A, B, scale) / size
        if wanted.lost is None or lost <= wanted.lost:
            return Factors(A, B, lost)
        rank += max(rank // 8, 1)  # what rounding adds to what is left
    return None


def _least(S: Tensor, size: float, lost: float) -> int | None:
    """The least rank beyond which no more than this share of the norm is left; None where none of S's is."""
    squares = S.cpu().double().square()
    beyond = max(size**2 - squares.sum().item(), 0.0)
    # What is left behind each rank, summed from the smallest up so that nothing small is lost.
    left = [*squares.flip(0).cumsum(0).flip(0)[1:].tolist(), 0.0]
    return next((rank for rank, rest in enumerate(left, 1) if rest + beyond <= (lost * size) ** 2), None)


def _distance(D: Tensor, A: Tensor, B: Tensor, scale: float) -> float:
    """||D - B A / scale||_F in double precision."""
    double = wide(D.dtype, D.device)
    A, B = A.to(double) / scale, B.to(double)
    return _norm(torch.addmm(rows, B[begin : begin + len(rows)], A, alpha=-1) for begin, rows in _blocks(D))


def _norm(parts: Iterable[Tensor]) -> float:
    return math.hypot(*(torch.linalg.vector_norm(part).item() for part in parts))


def _blocks(D: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, some rows in double precision)"""
    for begin, end in row_blocks(D.shape, _BLOCK):
        yield begin, D[begin:end].to(wide(D.dtype, D.device))
