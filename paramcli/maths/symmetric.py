"""Symmetric and skew-symmetric matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Constraint, Parametrization, first_of_batch, one_entry, square
from .facts import length_of
from .numbers import SMALL, relative


def worst_pair(off: Tensor, W: Tensor) -> str:
    """'entries (0, 5) and (5, 0) are 1.2 and 1.3', where `off` is largest; of a batch its number, counted from 0."""
    matrix, place = divmod(int(off.abs().reshape(-1).argmax()), off.shape[-2:].numel())
    i, j = divmod(place, off.size(-1))
    M = W.reshape(-1, *W.shape[-2:])[matrix]
    where = f" in matrix {matrix} of {W.shape[:-2].numel()}, counted from 0" if W.ndim > 2 else ""
    if i == j:
        return f"entry ({i}, {i}) is {M[i, i].item():.6g}{where}"
    return f"entries ({i}, {j}) and ({j}, {i}) are {M[i, j].item():.6g} and {M[j, i].item():.6g}{where}"


def first_lines(W: Tensor) -> tuple[Tensor, Tensor]:
    """The first rows and the first columns of a square matrix, of a batch its first: so many that what one is off the
    other is, in a random matrix, a twelfth of its size or more.
    """
    M = first_of_batch(W).reshape(W.shape[-2:])
    count = 1 + M.size(0) // 256
    return M[:count], M[:, :count]


def share_of_first(part: Tensor, W: Tensor) -> float:
    """||part||_F / ||W||_F of the first matrix; 0 where that is too small to tell."""
    size = length_of(first_of_batch(W).reshape(W.shape[-2:]))
    return torch.linalg.vector_norm(part).item() / size if size > SMALL else 0.0


def asymmetry_at_least(W: Tensor) -> float:
    """A number that `asymmetry` is not below."""
    rows, columns = first_lines(W)
    longest = torch.linalg.vector_norm(first_of_batch(W), dim=-1).amax().item()
    off = torch.linalg.vector_norm(rows - columns.mH, dim=-1).amax().item()
    return off / longest if longest > SMALL else 0.0


class SymmetricMatrices(Constraint):
    r"""{A : A = A^T}. Residual ||A - A^T||_F / ||A||_F; nearest point (A + A^T) / 2.

    Tolerance 0: equal numbers are rounded to equal numbers.
    """

    name = "symmetric"

    def residual(self, W: Tensor) -> Tensor:
        return relative(W - W.mT, W)

    def at_least(self, W: Tensor) -> float:
        rows, columns = first_lines(W)
        return share_of_first(rows - columns.mT, W)

    def detail(self, W: Tensor) -> str | None:
        return worst_pair(W - W.mT, W)

    def project(self, W: Tensor) -> Tensor:
        return (W + W.mT) / 2

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        return {"one entry": one_entry(W), "skew": W.triu(1) - W.triu(1).mT} if W.size(-1) > 1 else {}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()]


class SkewMatrices(Constraint):
    r"""{A : A = -A^T}. Residual ||A + A^T||_F / ||A||_F; nearest point (A - A^T) / 2.

    Tolerance 0: rounding x and -x gives a number and its negative.
    """

    name = "skew"

    def residual(self, W: Tensor) -> Tensor:
        return relative(W + W.mT, W)

    def at_least(self, W: Tensor) -> float:
        rows, columns = first_lines(W)
        return share_of_first(rows + columns.mT, W)

    def detail(self, W: Tensor) -> str | None:
        return worst_pair(W + W.mT, W)

    def project(self, W: Tensor) -> Tensor:
        return (W - W.mT) / 2

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        I = torch.eye(W.size(-1), dtype=W.dtype, device=W.device)
        return {"one entry": one_entry(W), "diagonal": W + 0.1 * (1 + torch.linalg.vector_norm(W)) * I}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()]


class Symmetric(Parametrization):
    r"""X to the symmetric A = triu(X) + triu(X, 1)^T.

    In plain words, the upper triangle decides and is mirrored.

    Shapes:  (..., n, n) -> (..., n, n).
    Inverse: A itself, since triu(A) + triu(A, 1)^T = A. The tutorial's `triu` is another one; keeping A whole
             makes `remove --no-bake` give back exactly what was there.
    Cost:    one pass over the matrix.
    Source:  PyTorch's Parametrizations Tutorial.
    """

    stacks = True

    @classmethod
    def threads_matter(cls, **arguments: Any) -> bool:
        return False

    def map(self, X: Tensor) -> Tensor:
        return X.triu() + X.triu(1).mT


class Skew(Parametrization):
    r"""X to the skew-symmetric A = triu(X, 1) - triu(X, 1)^T.

    In plain words, the part above the diagonal decides; the diagonal is zero.

    Shapes:  (..., n, n) -> (..., n, n).
    Inverse: A itself. torch's `orthogonal` takes the lower triangle instead, which flips the sign.
    Cost:    one pass over the matrix.
    Source:  PyTorch's Parametrizations Tutorial.
    """

    stacks = True

    @classmethod
    def threads_matter(cls, **arguments: Any) -> bool:
        return False

    def map(self, X: Tensor) -> Tensor:
        A = X.triu(1)
        return A - A.mT
