"""What rounding does to the eigenvalues and singular values of a matrix, and to its symmetry."""

from __future__ import annotations

import torch
from torch import Tensor

from .facts import largest_singular_value
from .numbers import eps, ratio, with_added

# ||E||_2 / ||A||_2 of the rounding error E of a matrix A, in eps: at most 1/2 for entries of one sign, 1 for a I + b J,
# and some room.
MATRIX_ROUNDED = 1.1
# For each root of n what a product of two orthonormal frames is off by, in eps of the dtype it is computed in
# (measured: up to 1.6 eps at n = 512). What eigenvalues in double precision are for each root of n and each n (up to 11
# eps at n = 512, 40 at 1024), and singular values for each n: of a matrix of few numbers 12 eps of it at n = 64, 140 at
# 512.
FRAMES_COMPUTED, MEASURED, MEASURED_LARGE, MEASURED_SINGULAR = 0.07, 0.5, 0.03, 0.3
# A pair of a matrix that is no less than its diagonal allows has at most 0.71 of its row's norm.
TIE = 0.75
# Where a strict bound is missed by nothing that can be measured, the residual is this.
EDGE = 1e-300
# In sets with a strict inequality (full rank, eigenvalues above a bound) nothing is nearest to a tensor outside:
# the nearest with at least this share of the largest value, and twice the bound, is taken.
MARGIN = 1e-6
# Below this share of the largest, a singular value in double precision is rounding of zero.
NO_VALUE = 1e-14


def measuring(n: int, singular: bool = False) -> float:
    """How far eigenvalues, or singular values, are off as they are computed in double precision, as a share of the
    largest.
    """
    return (1.5 + (MEASURED_SINGULAR * n if singular else MEASURED * n**0.5 + MEASURED_LARGE * n)) * eps(torch.float64)


def surely_positive(A: Tensor, off: Tensor | float = 0.0) -> Tensor:
    r"""Which symmetric (Hermitian) matrices are positive definite whatever rounding did: those whose entries are right
    but for an error E of norm `off`.

    A Cholesky factorization that ends is that of A + E', |E'| <= g |R^H| |R| with g = (n + 1) u / (1 - (n + 1) u), and
    the norm of that is at most g ||R||_F^2 = g trace(A) (Higham, 2002, Accuracy and Stability, theorem 10.3). So it is
    a proof where A - d I has one, d = 4 (n + 1) u trace(A) + off. Where that has none, nothing is said.

    Cost: half a product.
    """
    n, trace = A.size(-1), A.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    less = 2 * (n + 1) * eps(A.dtype) * trace.abs() + off
    _, failed = torch.linalg.cholesky_ex(with_added(A, -less))
    return (failed == 0) & (trace > 0)


def certain_excess(A: Tensor, values: Tensor, vectors: Tensor, beyond: Tensor, rounded: float = 0.0) -> Tensor:
    r"""The largest of `beyond`, one number for each eigenvalue, less what computing that eigenvalue in double precision
    and rounding A by shares of up to `rounded` may have put into it, at least 0, as a share of ||A||_2.

    An eigenvalue of a matrix that is not normal moves by k = 1 / |y^H x| times its error, x and y being its
    eigenvectors of length 1: by k times some eps sqrt(n) ||A||_2 as it is computed, and to first order by k |y|^H |A|
    |x| times the share where every entry is rounded by it. (Of a triangular matrix that is the share of the eigenvalue
    itself, and of a normal one it is counted up to ||A||_2.) A defective eigenvalue has no k: no rounding is believed
    to have made it.
    """
    # Rows of V^{-1} are the left eigenvectors, over y^H x.
    inverse, _ = torch.linalg.inv_ex(vectors)
    inverse = inverse.nan_to_num(nan=torch.inf)
    most, size = eps(torch.float64) ** -0.5, largest_singular_value(A).unsqueeze(-1)
    k = (
        (torch.linalg.vector_norm(inverse, dim=-1) * torch.linalg.vector_norm(vectors, dim=-2))
        .nan_to_num(nan=torch.inf)
        .clamp(1, most)
    )
    moved = ((inverse.abs() @ A.abs()) * vectors.abs().mT).sum(-1).nan_to_num(nan=torch.inf)
    moved = rounded * torch.where(k < most, torch.minimum(moved, size), torch.zeros_like(moved))
    excess = beyond - 8 * measuring(A.size(-1)) * k * size - moved
    return ratio(excess.clamp(min=0).amax(-1), size.squeeze(-1))


def eigenvalue_tolerance(n: int, stored: torch.dtype, computed: torch.dtype, singular: bool = False) -> float:
    r"""What rounding explains of a shift of an eigenvalue, or `singular` value, as a share of the largest.

    By Weyl's inequality none moves by more than ||E||_2, and |E_ij| <= u |A_ij| with u = eps / 2. For entries of one
    sign
    ||E||_2 <= u ||A||_2. Of two numbers, as in a I + b J, errors line up to 2 u = eps. Otherwise they are as good as
    independent, of size 0.4 u |A_ij|, and ||E||_2 is at most 0.4 u (sqrt(n) + sqrt(k)) times the root mean square of A:
    0.1 to 0.3 eps were measured. A product of frames that is computed in its own dtype is off by sums of n roundings,
    which grow with the root of n.
    """
    return MATRIX_ROUNDED * eps(stored) + FRAMES_COMPUTED * n**0.5 * eps(computed) + measuring(n, singular)


def symmetric_tolerance(
    n: int, stored: torch.dtype, computed: torch.dtype, growth: float | None = None, tie: float = TIE
) -> float:
    """What rounding explains of `asymmetry`. Equal entries are rounded to equal ones, so it is 0 for a member; but a
    map computes a pair in different ways, and what falls on either side of a tie differs by eps of the stored dtype.
    `growth`: the error of a row as it is computed, in eps, sqrt(n) / 5 for a product; `tie`: what one such pair makes
    of a row.
    """
    return tie * eps(stored) + (n**0.5 / 5 if growth is None else growth) * eps(computed)


def beyond_zero(value: Tensor, largest: Tensor, explained: float) -> Tensor:
    """How far values are from being above what rounding may leave of a zero, as a share of the largest; 0 where they
    are.
    """
    lacking = explained - torch.where(value > 0, ratio(value, largest), -ratio(value, largest))
    return torch.where((value > 0) & (lacking < 0), torch.zeros_like(lacking), lacking.clamp(min=EDGE))
