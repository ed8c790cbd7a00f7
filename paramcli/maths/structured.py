"""Matrices with zeros in fixed places: triangular, diagonal, banded, block diagonal."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputRefused
from ..wording import LEAVE_OUT, given
from .base import CannotReach, Constraint, Parametrization, Singular, first_of_batch, matrix
from .facts import length_of
from .numbers import SMALL, relative
from .softplus import inverse_softplus

# The diagonals that are positive are an open set: an entry that is not is raised to this share of the largest entry.
DIAGONAL_FLOOR = 1e-3


def places(W: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column numbers of the last two dimensions, shaped to be compared."""
    i, j = (torch.arange(size, device=W.device) for size in W.shape[-2:])
    return i.unsqueeze(-1), j


class Pattern(Constraint):
    r"""{W : zero outside fixed places}. Residual ||W outside||_F / ||W||_F; nearest point: zeros put there.

    A zero stays zero in every dtype, so the tolerance is 0.
    """

    def free(self, i: Tensor, j: Tensor, shape: torch.Size) -> Tensor:
        """True at the places in row i and column j that are free, in matrices of this shape."""
        raise NotImplementedError

    def keep(self, W: Tensor) -> Tensor:
        """True at the places that are free, for matrices of W's shape."""
        return self.free(*places(W), W.shape)

    def residual(self, W: Tensor) -> Tensor:
        return relative(W.masked_fill(self.keep(W), 0), W)

    def at_least(self, W: Tensor) -> float:
        """What the first and the last rows have outside, as a share of all."""
        W = first_of_batch(W).reshape(W.shape[-2:])
        n, size = W.size(0), length_of(W)
        count = 2 + n // 32
        if size < SMALL or 4 * count > n:
            return 0.0
        i, j = places(W)
        rows, i = (torch.cat([X[:count], X[-count:]]) for X in (W, i))
        return torch.linalg.vector_norm(rows.masked_fill(self.free(i, j, W.shape), 0)).item() / size

    def project(self, W: Tensor) -> Tensor:
        return W.masked_fill(~self.keep(W), 0)

    def detail(self, W: Tensor) -> str | None:
        outside = W.masked_fill(self.keep(W), 0)
        return f"{int((outside != 0).sum())} entries outside are not zero, the largest {outside.abs().max().item():.3g}"

    def check_shape(self, shape: torch.Size) -> None:
        matrix(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        outside = (~self.keep(W)).nonzero()
        if not len(outside):
            return {}
        row, column = outside[-1].tolist()
        off = W.clone()
        off[..., row, column] = 0.01 * torch.linalg.vector_norm(W)
        return {"one entry outside": off, "full": torch.ones_like(W)}


class LowerTriangularMatrices(Pattern):
    r"""{L : zero above the diagonal}, with diag=unit ones on it, with diag=positive positive (and real) numbers.

    Residual: ||above the diagonal||_F / ||L||_F, + max |L_ii - 1|, or + the share of the diagonal that is not positive.
    Nearest point: zeros above, ones on the diagonal; one that is not positive is raised to 0.001 of the largest entry.
    """

    name = "lower_triangular"

    def __init__(self, diag: str = "free"):
        self.diag = diag
        self.projection = "inside" if diag == "positive" else "nearest"

    def free(self, i: Tensor, j: Tensor, shape: torch.Size) -> Tensor:
        return j <= i

    def residual(self, W: Tensor) -> Tensor:
        D = W.diagonal(dim1=-2, dim2=-1)
        wrong = super().residual(W)
        if self.diag == "unit":
            wrong = wrong + (D - 1).abs().amax(-1)
        if self.diag == "positive":
            wrong = wrong + ((D.real <= 0) | ((D - D.real).abs() > 0)).to(wrong.dtype).mean(-1)
        return wrong

    def project(self, W: Tensor) -> Tensor:
        W = super().project(W)
        if self.diag == "free":
            return W
        D = W.diagonal(dim1=-2, dim2=-1)
        if self.diag == "unit":
            return with_diagonal(W, torch.ones_like(D))
        largest = W.abs().amax((-2, -1)).unsqueeze(-1)
        if bool((largest == 0).any()):
            raise Singular("the zero matrix has no triangular matrix with a positive diagonal near it", hint=LEAVE_OUT)
        return with_diagonal(W, torch.where(D.real > 0, D.real, DIAGONAL_FLOOR * largest))

    def detail(self, W: Tensor) -> str | None:
        if self.diag == "free" or bool((super().residual(W) > 0).any()):
            return super().detail(W)
        D = W.diagonal(dim1=-2, dim2=-1)
        if self.diag == "unit":
            return f"the diagonal is up to {(D - 1).abs().max().item():.3g} from 1"
        return f"the smallest entry on the diagonal is {D.real.min().item():.3g}"

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        W = super().sample(shape, generator, dtype)
        if self.diag != "positive":
            return W
        D = W.diagonal(dim1=-2, dim2=-1)
        return with_diagonal(W, D.abs() + 0.1)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        misses = super().near_misses(W)
        if self.diag != "free":
            D = W.diagonal(dim1=-2, dim2=-1)
            first = torch.zeros_like(D).index_fill(-1, torch.tensor([0], device=W.device), 1)
            misses["diagonal entry zero"] = with_diagonal(W, D - D * first)
            misses["diagonal entry negative"] = with_diagonal(W, D - 1.05 * D * first)
        if self.diag == "unit":
            misses["diagonal entry 1.05"] = with_diagonal(W, D + 0.05 * first)
        return misses

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        if W.ndim < 2 or min(W.shape[-2:]) < 2:
            return []
        D = W.diagonal(dim1=-2, dim2=-1)
        return (
            [cls("unit")]
            if bool((D == 1).all())
            else [cls("positive")]
            if bool((D.real > 0).all() and (D.real == D).all())
            else [cls()]
        )


class UpperTriangularMatrices(LowerTriangularMatrices):
    r"""{R : zero below the diagonal}; otherwise as `lower_triangular`."""

    name = "upper_triangular"

    def free(self, i: Tensor, j: Tensor, shape: torch.Size) -> Tensor:
        return j >= i


class BandedMatrices(Pattern):
    r"""{W : W_ij = 0 where |i - j| > b}."""

    name = "banded"

    def __init__(self, b: int):
        self.b = b

    def free(self, i: Tensor, j: Tensor, shape: torch.Size) -> Tensor:
        return (i - j).abs() <= self.b

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        """The band that holds every entry, where it leaves half of the diagonals or more empty; 0 is `diagonal`."""
        if W.ndim < 2 or min(W.shape[-2:]) < 2:
            return []
        # The first row or the first column may reach too far, and the longer of them most of all.
        rows, columns = W.shape[-2:]
        if bool((W[..., 0, -1] if columns >= rows else W[..., -1, 0]).any()):
            return []
        i, j = places(W)
        reach = max(int((j * (W[..., 0, :] != 0)).max()), int((i[:, 0] * (W[..., :, 0] != 0)).max()))
        if 2 * reach >= max(rows, columns):
            return []
        b = int(((i - j).abs() * (W != 0)).max())
        return [cls(b)] if 0 < 2 * b < max(W.shape[-2:]) else []


class DiagonalMatrices(BandedMatrices):
    r"""{W : W_ij = 0 where i != j}, square or not."""

    name = "diagonal"

    def __init__(self) -> None:
        super().__init__(0)

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()] if W.ndim >= 2 and min(W.shape[-2:]) > 1 else []


class BlockDiagonalMatrices(Pattern):
    r"""{W : zero outside g equal blocks along the diagonal}: g groups of outputs, each of its own group of inputs."""

    name = "block_diagonal"

    def __init__(self, g: int):
        self.g = g

    def free(self, i: Tensor, j: Tensor, shape: torch.Size) -> Tensor:
        return i // (shape[-2] // self.g) == j // (shape[-1] // self.g)

    def check_shape(self, shape: torch.Size) -> None:
        super().check_shape(shape)
        if shape[-2] % self.g or shape[-1] % self.g:
            sides = math.gcd(*shape[-2:])
            fits = min((g for g in range(1, sides + 1) if sides % g == 0), key=lambda g: abs(g - self.g), default=1)
            raise InputRefused(
                f"{self.name}:g={self.g} needs rows and columns that divide by {self.g}; "
                f"the maths sees {shape[-2]}x{shape[-1]}",
                hint=f"{self.name}:g={fits}" if fits > 1 else LEAVE_OUT,
            )

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        """The most blocks that hold every entry; as many as rows and columns is `diagonal`."""
        if W.ndim < 2:
            return []
        common = math.gcd(*W.shape[-2:])
        # The first row may have entries only in the first block.
        if bool(W[..., 0, -1].any()):
            return []
        reach = int((torch.arange(1, W.size(-1) + 1, device=W.device) * (W[..., 0, :] != 0)).max())
        sizes = (g for g in range(common, 1, -1) if common % g == 0 and g < max(W.shape[-2:]))
        fitting = [cls(g) for g in sizes if reach <= W.size(-1) // g]
        return next(([one] for one in fitting if not bool((W.masked_fill(one.keep(W), 0) != 0).any())), [])


def with_diagonal(W: Tensor, D: Tensor) -> Tensor:
    """W with D on its main diagonal, square or not."""
    i, j = places(W)
    padding = (0, W.size(-1) - D.size(-1), 0, W.size(-2) - D.size(-1))
    return W.masked_fill(i == j, 0) + torch.nn.functional.pad(torch.diag_embed(D), padding)


class Masked(Parametrization):
    """X with zeros put outside the places of a set: the projection onto it, so that any weight is its own original."""

    is_projection = True

    def __init__(self, pattern: Pattern):
        super().__init__()
        self.pattern = pattern

    def map(self, X: Tensor) -> Tensor:
        return X.masked_fill(~self.pattern.keep(X), 0)


class Diagonal(Masked):
    r"""X to W_ij = X_ij where i = j, else 0.

    Inverse: X itself; what lies outside keeps its old values underneath until it is baked.
    Cost:    one pass over the matrix.
    """

    def __init__(self) -> None:
        super().__init__(DiagonalMatrices())


class Banded(Masked):
    r"""X to W_ij = X_ij where |i - j| <= b, else 0. Inverse and cost as `Diagonal`."""

    def __init__(self, b: int):
        super().__init__(BandedMatrices(b))


class BlockDiagonal(Masked):
    r"""X to its g equal blocks along the diagonal, zeros elsewhere, as a linear layer of g groups. Inverse and cost as
    `Diagonal`.
    """

    def __init__(self, g: int):
        super().__init__(BlockDiagonalMatrices(g))


class LowerTriangular(Masked):
    r"""X to L = tril(X), the diagonal as it is (free), all ones (unit) or softplus of X's (softplus).

    In plain words, each output depends on the inputs up to its own place; with a unit or positive diagonal L is
    invertible and its determinant is the product of that diagonal.

    Shapes:  (..., n, k) -> (..., n, k), square or not.
    Inverse: X itself (free, unit); with softplus log(e^d - 1) on the diagonal, for d > 0.
    Cost:    one pass over the matrix.
    Source:  the LU layers of Kingma and Dhariwal, 2018, arXiv:1807.03039 (Glow).
    """

    set_class = LowerTriangularMatrices

    def __init__(self, diag: str = "free"):
        super().__init__(self.set_class("positive" if diag == "softplus" else diag))
        self.diag = diag
        self.is_projection = diag != "softplus"

    def map(self, X: Tensor) -> Tensor:
        L = super().map(X)
        D = X.diagonal(dim1=-2, dim2=-1)
        if self.diag == "unit":
            return with_diagonal(L, torch.ones_like(D))
        if self.diag == "softplus":
            return with_diagonal(L, torch.nn.functional.softplus(D.real, threshold=40))
        return L

    def inverse(self, W: Tensor) -> Tensor:
        if self.diag != "softplus":
            return W
        D = W.diagonal(dim1=-2, dim2=-1)
        if bool((D.real <= 0).any()):
            raise CannotReach(
                f"a softplus diagonal is positive, and this tensor has {D.real.min().item():.3g} on it",
                hint=f"{given('init', 'project')} raises it; diag=free keeps it",
            )
        return with_diagonal(W, inverse_softplus(D.real))


class UpperTriangular(LowerTriangular):
    r"""X to R = triu(X); otherwise as `LowerTriangular`."""

    set_class = UpperTriangularMatrices
