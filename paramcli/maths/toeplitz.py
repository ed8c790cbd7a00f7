"""Matrices that are constant along their diagonals: Toeplitz, and circulant where the diagonals wrap around."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Constraint, Parametrization, first_of_batch, matrix, one_entry, square
from .facts import length_of
from .numbers import SMALL, relative


def diagonal_sums(X: Tensor) -> Tensor:
    """(..., n, k) -> (..., n + k - 1): sum of the entries with j - i = d - (n - 1), at place d.

    A row longer by n, read as rows longer by n - 1, is shifted by one place more than the row before it: that
    turns diagonals into columns, without an index.
    """
    n, k = X.shape[-2:]
    padded = torch.nn.functional.pad(X.flip(-2), (0, n)).flatten(-2)
    return padded[..., : n * (n + k - 1)].unflatten(-1, (n, n + k - 1)).sum(-2)


def from_diagonals(v: Tensor, n: int, k: int) -> Tensor:
    """(..., n + k - 1) -> (..., n, k) with v at place j - i + n - 1 as entry (i, j)."""
    return v.unfold(-1, k, 1).flip(-2)


def diagonal_means(X: Tensor) -> Tensor:
    n, k = X.shape[-2:]
    i = torch.arange(n + k - 1, device=X.device)
    lengths = torch.minimum(torch.minimum(i + 1, n + k - 1 - i), torch.full_like(i, min(n, k)))
    return diagonal_sums(X) / lengths


def wrapped_means(X: Tensor) -> Tensor:
    """(..., n, n) -> (..., n): mean of the entries with j - i = m modulo n, at place m."""
    n = X.size(-1)
    sums = diagonal_sums(X)
    return (sums[..., n - 1 :] + torch.nn.functional.pad(sums[..., : n - 1], (1, 0))) / n


def from_wrapped(w: Tensor) -> Tensor:
    """(..., n) -> (..., n, n) with w at place (j - i) modulo n as entry (i, j)."""
    n = w.size(-1)
    return from_diagonals(torch.cat([w[..., 1:], w], dim=-1), n, n)


class ToeplitzMatrices(Constraint):
    r"""{T : T_ij depends on j - i only}. Residual ||T - its nearest point||_F / ||T||_F; nearest point: the mean of
    each diagonal.

    Tolerance 0: equal numbers are rounded to equal numbers. Means are taken of the differences from the first entry of
    each diagonal, which are exact zeros in a member, where the mean of equal numbers may be off by a rounding.
    """

    name = "toeplitz"

    def residual(self, W: Tensor) -> Tensor:
        off = W - self.first_entries(W)
        return relative(off - self._means(off), W)

    def at_least(self, W: Tensor) -> float:
        """How far pairs of the first rows are from equal diagonals, as a share of all entries.

        Neighbours a and b on a diagonal are at least |a - b| / sqrt(2) from two equal numbers.
        """
        W = first_of_batch(W).reshape(W.shape[-2:])
        size, count = length_of(W), 2 * (1 + W.size(0) // 64)
        if size < SMALL or 4 * count > len(W):
            return 0.0
        off = W[1:count:2, 1:] - W[: count - 1 : 2, :-1]
        return torch.linalg.vector_norm(off).item() / (2**0.5 * size)

    def first_entries(self, W: Tensor) -> Tensor:
        """The member with W's first row and first column."""
        return from_diagonals(torch.cat([W[..., 1:, 0].flip(-1), W[..., 0, :]], dim=-1), *W.shape[-2:])

    def _means(self, W: Tensor) -> Tensor:
        return from_diagonals(diagonal_means(W), *W.shape[-2:])

    def project(self, W: Tensor) -> Tensor:
        first = self.first_entries(W)
        return first + self._means(W - first)

    def check_shape(self, shape: torch.Size) -> None:
        matrix(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        if min(W.shape[-2:]) < 2:
            return {}
        first = W.clone()
        first[..., 0, 0] += 0.2 * torch.linalg.vector_norm(W)
        return {"one entry": first, "rows reversed": W.flip(-2)} if min(W.shape[-2:]) > 2 else {"one entry": first}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()] if W.ndim >= 2 and min(W.shape[-2:]) > 1 else []


class CirculantMatrices(ToeplitzMatrices):
    r"""{C : C_ij depends on (j - i) modulo n only}. Residual and tolerance as `toeplitz`; nearest point: the mean of
    each wrapped diagonal.
    """

    name = "circulant"

    def first_entries(self, W: Tensor) -> Tensor:
        return from_wrapped(W[..., 0, :])

    def _means(self, W: Tensor) -> Tensor:
        return from_wrapped(wrapped_means(W))

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        if W.size(-1) < 2:
            return {}
        return {"one entry": one_entry(W), **super().near_misses(W)}


class Toeplitz(Parametrization):
    r"""X to T with T_ij = the mean of X along the diagonal j - i.

    In plain words, a convolution of the input with one kernel, written as a matrix: n + k - 1 free numbers.

    Shapes:  (..., n, k) -> (..., n, k); the original keeps the weight's shape, and each of its entries carries its
             share of the diagonal's gradient. `toeplitz_compact` stores a column and a row alone.
    Inverse: X itself: the map is the projection onto its image.
    Cost:    a few passes over the matrix.
    Source:  structured layers; Sindhwani, Sainath and Kumar, 2015, arXiv:1510.01722.
    """

    is_projection = True

    def map(self, X: Tensor) -> Tensor:
        return from_diagonals(diagonal_means(X), *X.shape[-2:])


class Circulant(Parametrization):
    r"""X to C with C_ij = the mean of X along the wrapped diagonal (j - i) modulo n.

    In plain words, a convolution that wraps around: the Fourier basis diagonalises it; n free numbers.

    Shapes, inverse and cost as `Toeplitz`, square only.
    Source:  Cheng et al., 2015, arXiv:1502.03436; CirCNN, Ding et al., 2017, arXiv:1708.08917.
    """

    is_projection = True

    def map(self, X: Tensor) -> Tensor:
        return from_wrapped(wrapped_means(X))


class ToeplitzCompact(Parametrization):
    r"""(c, r) to T with T_ij = c_{i-j} on and below the diagonal, r_{j-i} above it.

    In plain words, the first column and the first row: n + k numbers in place of n k. r_0 is not used.

    Shapes:  c (..., n), r (..., k) -> (..., n, k).
    Inverse: the mean of each diagonal (nearest); the corner's is stored in both.
    Cost:    one pass over the matrix.
    Source:  scipy.linalg.toeplitz(c, r), with its convention for the corner.
    """

    stored_originals = ()

    @classmethod
    def check_shape(cls, shape: torch.Size) -> None:
        matrix(shape, "toeplitz_compact")

    def map(self, c: Tensor, r: Tensor) -> Tensor:
        return from_diagonals(torch.cat([c.flip(-1), r[..., 1:]], dim=-1), c.size(-1), r.size(-1))

    def inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        n, means = W.size(-2), diagonal_means(W)
        return means[..., :n].flip(-1), means[..., n - 1 :].contiguous()

    def outline(self, W: Tensor) -> tuple[Tensor, Tensor]:
        return W.new_empty(W.shape[:-1]), W.new_empty(*W.shape[:-2], W.size(-1))

    @classmethod
    def weight_shape(cls, c: tuple[int, ...], r: tuple[int, ...], **arguments: Any) -> tuple[int, ...]:
        return *c, r[-1]


class CirculantCompact(Parametrization):
    r"""c to C with C_ij = c_{(i - j) modulo n}: its first column decides.

    Shapes:  c (..., n) -> (..., n, n).
    Inverse: the mean of each wrapped diagonal (nearest).
    Cost:    one pass over the matrix.
    Source:  scipy.linalg.circulant(c).
    """

    stored_originals = ()

    def map(self, c: Tensor) -> Tensor:
        return from_wrapped(c.flip(-1).roll(1, -1))

    def inverse(self, W: Tensor) -> Tensor:
        return wrapped_means(W).flip(-1).roll(1, -1)

    def outline(self, W: Tensor) -> Tensor:
        return W.new_empty(W.shape[:-1])

    @classmethod
    def weight_shape(cls, c: tuple[int, ...], **arguments: Any) -> tuple[int, ...]:
        return *c, c[-1]
