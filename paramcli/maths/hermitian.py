"""Complex matrices: Hermitian, skew-Hermitian and unitary ones. Real tensors have `symmetric`, `skew` and
`orthogonal`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Constraint, Parametrization, one_entry, square
from .exponential import PositiveDefinite
from .numbers import relative
from .orthogonal import OrthogonalMatrices
from .symmetric import first_lines, share_of_first, worst_pair


class HermitianMatrices(Constraint):
    r"""{A : A = A^H}. Residual ||A - A^H||_F / ||A||_F; nearest point (A + A^H) / 2. Tolerance 0, as of `symmetric`."""

    name = "hermitian"

    def residual(self, W: Tensor) -> Tensor:
        return relative(W - W.mH, W)

    def at_least(self, W: Tensor) -> float:
        rows, columns = first_lines(W)
        return share_of_first(rows - columns.mH, W)

    def detail(self, W: Tensor) -> str | None:
        return worst_pair(W - W.mH, W)

    def project(self, W: Tensor) -> Tensor:
        return (W + W.mH) / 2

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        I = torch.eye(W.size(-1), dtype=W.dtype, device=W.device)
        misses = {"one entry": one_entry(W, 0.2j), "diagonal not real": W + 0.1j * torch.linalg.vector_norm(W) * I}
        return {**misses, "symmetric": W.triu() + W.triu(1).mT} if W.size(-1) > 1 else misses

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()] if W.is_complex() else []


class SkewHermitianMatrices(Constraint):
    r"""{A : A = -A^H}. Residual ||A + A^H||_F / ||A||_F; nearest point (A - A^H) / 2. Tolerance 0, as of `skew`."""

    name = "skew_hermitian"

    def residual(self, W: Tensor) -> Tensor:
        return relative(W + W.mH, W)

    def at_least(self, W: Tensor) -> float:
        rows, columns = first_lines(W)
        return share_of_first(rows + columns.mH, W)

    def detail(self, W: Tensor) -> str | None:
        return worst_pair(W + W.mH, W)

    def project(self, W: Tensor) -> Tensor:
        return (W - W.mH) / 2

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        I = torch.eye(W.size(-1), dtype=W.dtype, device=W.device)
        misses = {"one entry": one_entry(W), "diagonal not imaginary": W + 0.1 * torch.linalg.vector_norm(W) * I}
        return {**misses, "skew": W.triu() - W.triu(1).mT} if W.size(-1) > 1 else misses

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()] if W.is_complex() else []


class UnitaryMatrices(OrthogonalMatrices):
    r"""{Q complex and square : Q^H Q = I}: the square members of `orthogonal`, with its residual and nearest point."""

    name = "unitary"

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()] if W.is_complex() else []


class HermitianPositiveDefinite(PositiveDefinite):
    r"""{A complex : A = A^H, x^H A x > 0 for x != 0}. Residual and nearest point as `positive_definite`."""

    name = "hermitian_positive_definite"

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()] if W.is_complex() else []


class Hermitian(Parametrization):
    r"""X to the Hermitian A = triu(X, 1) + triu(X, 1)^H + Re diag(X).

    In plain words, the upper triangle decides and is mirrored with its sign of i turned; the diagonal is real.

    Shapes:  (..., n, n) -> (..., n, n), complex.
    Inverse: A itself.
    Cost:    one pass over the matrix.
    Source:  `symmetric` of PyTorch's Parametrizations Tutorial, with ^H for ^T.
    """

    def map(self, X: Tensor) -> Tensor:
        U, D = X.triu(1), torch.diag_embed(X.diagonal(dim1=-2, dim2=-1))
        return U + U.mH + (D + D.conj()) / 2


class SkewHermitian(Parametrization):
    r"""X to the skew-Hermitian A = triu(X, 1) - triu(X, 1)^H + i Im diag(X).

    In plain words, i times a Hermitian matrix: its exponential and its Cayley transform are unitary. The n^2
    real numbers of the upper triangle are as many as a unitary matrix has.

    Shapes:  (..., n, n) -> (..., n, n), complex.
    Inverse: A itself. torch's `orthogonal` takes the lower triangle of a complex tensor instead.
    Cost:    one pass over the matrix.
    Source:  `skew` of PyTorch's Parametrizations Tutorial, with ^H for ^T.
    """

    def map(self, X: Tensor) -> Tensor:
        U, D = X.triu(1), torch.diag_embed(X.diagonal(dim1=-2, dim2=-1))
        return U - U.mH + (D - D.conj()) / 2
