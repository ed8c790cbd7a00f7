"""Matrices made of smaller ones: Kronecker products, low-rank factors, and singular values in a frozen basis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import InputRefused
from .base import Check, Constraint, Parametrization, matrix
from .decompositions import svd
from .numbers import eps, norm, ratio, wide
from .orthogonal import gram_error


def rearranged(W: Tensor, p: int, q: int) -> Tensor:
    """(..., n, k) -> (..., p q, (n/p) (k/q)): each row one block of the p x q grid, so that A kron B becomes vec(A)
    vec(B)^T.
    """
    return W.unflatten(-1, (q, -1)).unflatten(-3, (p, -1)).transpose(-3, -2).flatten(-4, -3).flatten(-2)


def kronecker_product(A: Tensor, B: Tensor) -> Tensor:
    """A kron B for each matrix of a batch."""
    blocks = A[..., :, None, :, None] * B[..., None, :, None, :]
    return blocks.flatten(-2).flatten(-3, -2)


def check_grid(shape: torch.Size | tuple[int, ...], p: int, q: int, who: str) -> None:
    matrix(shape, who)
    if shape[-2] % p or shape[-1] % q:
        raise InputRefused(
            f"{who}:p={p}:q={q} needs rows that divide by {p} and columns that divide by {q}; "
            f"the maths sees {shape[-2]}x{shape[-1]}"
        )


class KroneckerProducts(Constraint):
    r"""{A kron B : A of size p x q}, B as large as is left.

    Residual: max ||row of W - P|| / ||row of W||, over columns too, with P a nearest point but for one step of
    alternating least squares, which gives small blocks their digits. A singular value would hide one wrong row among
    many.
    Tolerance: every entry of a Kronecker product is one product, off by at most u = eps / 2 of itself, and so is a row;
    P takes part of that to itself, so rows may be off by 2 u. P is a sum of n^2 / 4 products in double precision: 9,
    160, 1800 eps of that were measured at n = 64, 512, 1024. Nearest point: the best approximation of rank 1 of the
    rearranged tensor (Van Loan and Pitsianis).
    """

    name = "kronecker"
    # A matrix times a vector is another kernel than the same in a batch.
    stacks = False

    def __init__(self, p: int, q: int):
        self.p, self.q = p, q

    def residual(self, W: Tensor) -> Tensor:
        R = rearranged(W, self.p, self.q)
        b = torch.linalg.svd(R, full_matrices=False).Vh[..., 0, :].conj().unsqueeze(-1)
        a = R @ b
        size = norm(a, (-2, -1), keepdim=True)
        a = a / torch.where(size > 0, size, torch.ones_like(size))
        b = a.mH @ R
        P = kronecker_product(
            a.unflatten(-2, (self.p, self.q)).squeeze(-1),
            b.unflatten(-1, (W.size(-2) // self.p, W.size(-1) // self.q)).squeeze(-3),
        )
        by_row, by_column = (ratio(norm(W - P, (dim,)), norm(W, (dim,))).amax(-1) for dim in (-1, -2))
        return torch.maximum(by_row, by_column)

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        n = max(shape[-2:])
        return max(eps(stored), eps(computed)) + (4 + 0.4 * n + 0.002 * n * n) * eps(torch.float64)

    def project(self, W: Tensor) -> Tensor:
        return kronecker_product(*nearest_kronecker(W, self.p, self.q))

    def check_shape(self, shape: torch.Size) -> None:
        check_grid(shape, self.p, self.q, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        if min(rearranged(W, self.p, self.q).shape[-2:]) < 2:
            return {}
        # One block of the grid with the entries of B moved round by one.
        turned = W.clone()
        block = turned[..., : W.size(-2) // self.p, : W.size(-1) // self.q]
        block.copy_(block.flatten(-2).roll(1, -1).unflatten(-1, block.shape[-2:]))
        I = torch.eye(*W.shape[-2:], dtype=W.dtype, device=W.device)
        return (
            {"plus identity": W + 0.3 * torch.linalg.vector_norm(W) * I}
            if min(W.shape[-2:]) > 1
            else {"one block turned": turned}
        )


def nearest_kronecker(W: Tensor, p: int, q: int) -> tuple[Tensor, Tensor]:
    """(A, B) of equal norms with A kron B nearest to W, the largest entry of A positive."""
    U, S, Vh = torch.linalg.svd(rearranged(W, p, q), full_matrices=False)
    a, b, size = U[..., 0], Vh[..., 0, :], S[..., :1].sqrt()
    largest = a.gather(-1, a.abs().argmax(-1, keepdim=True))
    phase = largest / largest.abs()
    return (size * a / phase).unflatten(-1, (p, q)), (size * b * phase).unflatten(
        -1, (W.size(-2) // p, W.size(-1) // q)
    )


def low_rank_factors(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(A, B) with A B nearest to W, the root of each singular value on either side."""
    U, S, Vh = svd(W)
    roots = S[..., :rank].sqrt()
    return (U[..., :rank] * roots.unsqueeze(-2)).contiguous(), (roots.unsqueeze(-1) * Vh[..., :rank, :]).contiguous()


class Kronecker(Parametrization):
    r"""(A, B) to W = A kron B: a p x q grid of blocks, block (i, j) equal to A_ij B.

    In plain words, one small pattern B repeated, scaled by the entries of A.

    Shapes:  A (..., p, q), B (..., n/p, k/q) -> W (..., n, k): p q + n k / (p q) numbers in place of n k.
    Inverse: the first singular pair of the rearranged weight, its size shared equally; A and -A, B and -B give the
             same, and the largest entry of A is made positive.
    Cost:    one pass over the matrix; the inverse an SVD of a p q x (n k / p q) matrix.
    Source:  Van Loan and Pitsianis, 1993, Approximation with Kronecker products; LoKr, Yeh et al., 2023,
             arXiv:2309.14859.
    """

    stored_originals = ()

    def __init__(self, p: int, q: int):
        super().__init__()
        self.p, self.q = p, q

    @classmethod
    def check_shape(cls, shape: torch.Size, p: int, q: int) -> None:
        check_grid(shape, p, q, "kronecker")

    def map(self, A: Tensor, B: Tensor) -> Tensor:
        return kronecker_product(A, B)

    def inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        return nearest_kronecker(W, self.p, self.q)

    def outline(self, W: Tensor) -> tuple[Tensor, Tensor]:
        batch, (n, k) = W.shape[:-2], W.shape[-2:]
        return W.new_empty(*batch, self.p, self.q), W.new_empty(*batch, n // self.p, k // self.q)

    @classmethod
    def weight_shape(cls, A: tuple[int, ...], B: tuple[int, ...], **arguments: Any) -> tuple[int, ...]:
        return *A[:-2], A[-2] * B[-2], A[-1] * B[-1]


class Factored(Parametrization):
    r"""(A, B) to W = A B with `rank` columns of A.

    In plain words, a linear layer of `rank` units in between; where rank (n + k) < n k the file is smaller.

    Shapes:  A (..., n, r), B (..., r, k) -> W (..., n, k).
    Inverse: the r largest singular values, the root of each on either side, exact where the rank is at most r.
    Cost:    one product; the inverse an SVD.
    Source:  Eckart and Young, 1936. `low_rank` has the same image with orthonormal factors and separate singular
             values.
    """

    stored_originals = ()

    def __init__(self, rank: int):
        super().__init__()
        self.rank = rank

    @classmethod
    def check_shape(cls, shape: torch.Size, rank: int) -> None:
        matrix(shape, "factored")
        if rank > min(shape[-2:]):
            raise InputRefused(
                f"factored:rank={rank} is no restriction on a matrix that the maths sees as {shape[-2]}x{shape[-1]}",
                hint=f"a rank up to {min(shape[-2:])}",
            )

    def map(self, A: Tensor, B: Tensor) -> Tensor:
        return A @ B

    def inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        return low_rank_factors(W, self.rank)

    def outline(self, W: Tensor) -> tuple[Tensor, Tensor]:
        batch, (n, k) = W.shape[:-2], W.shape[-2:]
        return W.new_empty(*batch, n, self.rank), W.new_empty(*batch, self.rank, k)

    @classmethod
    def weight_shape(cls, A: tuple[int, ...], B: tuple[int, ...], **arguments: Any) -> tuple[int, ...]:
        return *A[:-1], B[-1]


class RankOne(Parametrization):
    r"""(x, y) to W = x y^T: `factored:rank=1` with vectors for originals, as torch's documentation has it.

    Shapes:  x (..., n), y (..., k) -> W (..., n, k).
    Inverse: the largest singular value, its root on either side.
    Cost:    one pass over the matrix; the inverse an SVD.
    Source:  `RankOne` in the documentation of torch.nn.utils.parametrize.register_parametrization: same tensors.
    """

    stored_originals = ()

    @classmethod
    def check_shape(cls, shape: torch.Size) -> None:
        matrix(shape, "rank_one")

    def map(self, x: Tensor, y: Tensor) -> Tensor:
        return x.unsqueeze(-1) @ y.unsqueeze(-2)

    def inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        A, B = low_rank_factors(W, 1)
        return A[..., 0], B[..., 0, :]

    def outline(self, W: Tensor) -> tuple[Tensor, Tensor]:
        return W.new_empty(W.shape[:-1]), W.new_empty(*W.shape[:-2], W.size(-1))

    @classmethod
    def weight_shape(cls, x: tuple[int, ...], y: tuple[int, ...], **arguments: Any) -> tuple[int, ...]:
        return *x, y[-1]


class SingularValues(Parametrization):
    r"""s to W = U diag(s) V^H, with U and V stored as buffers: only the singular values train.

    In plain words, the weight keeps its directions and learns how much of each to use.

    Shapes:  s (..., r), U (..., n, r), V (..., k, r) -> W (..., n, k) with r = min(n, k).
    Inverse: the SVD of the weight; an assignment sets U and V anew, as torch's `orthogonal` does with its base. They
             are buffers, since that is what torch calls a tensor that is kept with the weights and not trained.
    Cost:    one product; the inverse an SVD.
    Source:  SVDiff: Han et al., 2023, arXiv:2303.11305.
    """

    stored_originals = ()
    U: Tensor
    V: Tensor

    def __init__(self, U: Tensor, V: Tensor):
        super().__init__()
        self.register_buffer("U", U)
        self.register_buffer("V", V)

    @classmethod
    def check_shape(cls, shape: torch.Size) -> None:
        matrix(shape, "svd_vals")

    @classmethod
    def make(cls, value: Tensor) -> SingularValues:
        n, k = value.shape[-2:]
        return cls(value.new_zeros(*value.shape[:-1], min(n, k)), value.new_zeros(*value.shape[:-2], k, min(n, k)))

    def map(self, s: Tensor) -> Tensor:
        # In the dtype of s: a half-precision basis widens with it.
        return (self.U.to(s.dtype) * s.unsqueeze(-2)) @ self.V.to(s.dtype).mH

    def inverse(self, W: Tensor) -> Tensor:
        U, S, Vh = svd(W.to(wide(W.dtype, W.device)))
        # A product's rounding depends on its factors' layout, and a file has but one.
        self.U, self.V = U.contiguous(), Vh.mH.resolve_conj().contiguous()
        return S.to(W.dtype)

    def right_inverse(self, W: Tensor) -> Tensor | tuple[Tensor, ...]:
        s = super().right_inverse(W)
        self.U, self.V = self.U.to(W.dtype), self.V.to(W.dtype)
        return s

    def outline(self, W: Tensor) -> Tensor:
        return W.new_empty(*W.shape[:-2], min(W.shape[-2:]))

    @classmethod
    def weight_shape(cls, s: tuple[int, ...], **arguments: Any) -> None:
        """U and V tell it, the original does not."""
        return

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        worst = max(gram_error(self.U).max().item(), gram_error(self.V).max().item())
        # Rounded once, after an SVD in double precision.
        tolerance = 4 * eps(self.stored_dtype) + 4 * (max(value.shape[-2:]) + 64) * eps(torch.float64)
        return [Check("orthonormal_u_v", worst, tolerance)]
