"""Factored matrices: positive definite by Cholesky, correlation matrices, and LU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..wording import LEAVE_OUT, given
from .base import CannotReach, Constraint, Edge, Parametrization, Part, square, started
from .edges import eigenvalue_edge, singular_value_edge
from .eigenvalues import TIE, eigenvalue_tolerance, symmetric_tolerance
from .nearest_correlation import nearest_correlation
from .numbers import asymmetry, eps, ratio
from .softplus import inverse_softplus

# A singular correlation matrix has no Cholesky factor with a positive diagonal: this share of the identity is mixed in.
# Such a one has a pivot below THIN, or none.
SINGULAR, THIN = 1e-10, 1e-13
# What the diagonal of L L^T is off 1 by as it is computed from rows of length 1, in eps: 2 at n = 8, 6 at 64, 14 at
# 512.
DIAGONAL, DIAGONAL_GROWTH = 4.0, 0.8


class Correlation(Constraint):
    r"""{C : C = C^T, positive semidefinite, diagonal 1}.

    Residual: max_i ||row i of C - C^T|| / max_i ||row i of C||, max |diagonal - 1|, and max(0, -lambda_min) / max
    |lambda|.
    Tolerance: `symmetric_tolerance`; for the diagonal what a map that scales rows leaves, as 1 is stored exactly;
    `eigenvalue_tolerance`.
    Nearest point: Newton's method on the dual (`nearest_correlation`).
    """

    name = "correlation"

    def residual(self, W: Tensor) -> Tensor:
        return torch.stack([part.residual for part in self.parts(W, W.dtype, W.dtype)]).amax(0)

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return eigenvalue_tolerance(shape[-1], stored, computed)

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        values = torch.linalg.eigvalsh((W + W.mT) / 2)
        negative = ratio((-values[..., 0]).clamp(min=0), values.abs().amax(-1))
        # What is nearly 1 in a wider dtype is 1 in a narrower one.
        diagonal = (
            (DIAGONAL + DIAGONAL_GROWTH * W.size(-1) ** 0.5) * eps(computed) if eps(computed) >= eps(stored) else 0.0
        )
        # Products in float64 were up to 3 eps off symmetry at n = 64 and 23 at 512; in float32 and narrower, none were.
        growth = 1 + W.size(-1) / 10 if computed == torch.float64 else None
        return [
            Part("eigenvalues", negative, self.tolerance(W.shape, stored, computed)),
            Part("diagonal", (W.diagonal(dim1=-2, dim2=-1) - 1).abs().amax(-1), diagonal),
            Part(
                "symmetric", asymmetry(W), symmetric_tolerance(W.size(-1), stored, computed, growth, tie=TIE / 2)
            ),  # entries below 1 are eps / 2 apart
        ]

    def project(self, W: Tensor) -> Tensor:
        return nearest_correlation((W + W.mT) / 2)

    def detail(self, W: Tensor) -> str | None:
        diagonal = W.diagonal(dim1=-2, dim2=-1)
        least = torch.linalg.eigvalsh((W + W.mT) / 2)[..., 0].amin().item()
        return (
            f"diagonal from {diagonal.amin().item():.4g} to {diagonal.amax().item():.4g}, "
            f"smallest eigenvalue {least:.3g}"
        )

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        misses = {"times 1.05": 1.05 * W, "zero": 0 * W}
        if W.size(-1) > 1:
            lopsided, indefinite = W.clone(), W.clone()
            lopsided[..., 0, -1] += 0.1 * torch.linalg.matrix_norm(W)
            indefinite[..., 0, -1] = indefinite[..., -1, 0] = 1.5
            misses |= {"one entry": lopsided, "a correlation of 1.5": indefinite}
        return misses

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        if W.ndim < 2 or W.size(-1) != W.size(-2) or W.size(-1) < 2:
            return []
        return [cls()] if bool(((W.diagonal(dim1=-2, dim2=-1) - 1).abs() < 0.05).all()) else []


def lower_factor(X: Tensor) -> Tensor:
    """tril(X) with softplus of the diagonal."""
    return X.tril(-1) + softplus(X.diagonal(dim1=-2, dim2=-1)).diag_embed()


def lower_factor_inverse(L: Tensor) -> Tensor:
    return L.tril(-1) + inverse_softplus(L.diagonal(dim1=-2, dim2=-1)).diag_embed()


class CholeskyDefinite(Parametrization):
    r"""X to A = L L^T + eps I, L = tril(X, -1) + diag(softplus(diag X)): positive definite, eigenvalues above eps.

    Shapes:  (..., n, n) -> (..., n, n); the part of X above the diagonal is not used.
    Inverse: the Cholesky factor of A - eps I; an eigenvalue of eps or less is refused.
    Cost:    one product; the inverse one Cholesky factorization.
    Source:  torch.distributions (LowerCholeskyTransform, PositiveDefiniteTransform).
    """

    def __init__(self, eps: float = 0.0):
        super().__init__()
        self.eps = eps

    def map(self, X: Tensor) -> Tensor:
        L = lower_factor(X)
        return L @ L.mT + self.eps * torch.eye(X.size(-1), dtype=X.dtype, device=X.device)

    def inverse(self, A: Tensor) -> Tensor:
        A = (A + A.mT) / 2
        L, failed = torch.linalg.cholesky_ex(A - self.eps * torch.eye(A.size(-1), dtype=A.dtype, device=A.device))
        if bool(failed.any()):
            least = torch.linalg.eigvalsh(A)[..., 0].amin().item()
            raise CannotReach(
                f"spd_cholesky:eps={self.eps:g} reaches eigenvalues above {self.eps:g}, "
                f"and this tensor has {least:.3g}",
                hint=self._otherwise(),
            )
        return lower_factor_inverse(L)

    def edge(self, A: Tensor) -> Edge:
        return eigenvalue_edge(A, floor=self.eps, hint=self._otherwise())

    def _otherwise(self) -> str:
        if self.eps:
            return f"{given('chain', 'spd_cholesky')} without eps reaches every positive one"
        return f"{given('chain', 'psd')} takes zeros"


class CholeskyCorrelation(Parametrization):
    r"""X to C = L L^T, L = tril(X, -1) + diag(softplus(diag X)) with its rows scaled to length 1.

    Shapes:  (..., n, n) -> (..., n, n); the part of X above the diagonal is not used.
    Inverse: the Cholesky factor of C. A singular C has none with a positive diagonal: 1e-10 of the identity is mixed
    in.
    Cost:    one product; the inverse one Cholesky factorization.
    Source:  torch.distributions (CorrCholeskyTransform reaches the same factors by another map).
    """

    def map(self, X: Tensor) -> Tensor:
        L = lower_factor(X)
        L = L / torch.linalg.vector_norm(L, dim=-1, keepdim=True)
        return L @ L.mT

    def inverse(self, C: Tensor) -> Tensor:
        C = started(Correlation(), C)
        C = (C + C.mT) / 2
        L, failed = torch.linalg.cholesky_ex(C)
        # Whether rounding lets a singular matrix have a factor is chance; a pivot that small is none to build on.
        thin = (failed != 0) | (L.diagonal(dim1=-2, dim2=-1).amin(-1).square() < THIN)
        if bool(thin.any()):
            eye = torch.eye(C.size(-1), dtype=C.dtype, device=C.device)
            mixed = torch.linalg.cholesky((1 - SINGULAR) * C + SINGULAR * eye)
            L = torch.where(thin[..., None, None], mixed, L)
        return lower_factor_inverse(L)


class LU(Parametrization):
    r"""X to W = P L (U + diag s): L = tril(X, -1) + I, U = triu(X, 1), s = sign * exp(diag X).

    In plain words, an LU decomposition with its row order P and the signs of its pivots kept as buffers, so that W is
    invertible whatever X is, and log |det W| = trace X. The sign of the determinant never changes.

    Shapes:  (..., n, n) -> (..., n, n); buffers `rows` (row i of W is row rows[i] of L (U + diag s)) and `signs`.
    Inverse: the LU decomposition with partial pivoting; a singular W is refused.
    Cost:    one product; the inverse one LU decomposition.
    Source:  Glow: Kingma and Dhariwal, 2018, arXiv:1807.03039; nflows.
    """

    def __init__(self, rows: Tensor, signs: Tensor):
        super().__init__()
        self.register_buffer("rows", rows)
        self.register_buffer("signs", signs)

    @classmethod
    def make(cls, value: Tensor) -> LU:
        n = value.size(-1)
        rows = torch.arange(n, device=value.device).expand(value.shape[:-1]).contiguous()
        return cls(rows, torch.ones(value.shape[:-1], dtype=value.dtype, device=value.device))

    @classmethod
    def check_shape(cls, shape: torch.Size) -> None:
        square(shape, "lu")

    def map(self, X: Tensor) -> Tensor:
        diagonal = X.diagonal(dim1=-2, dim2=-1)
        L = X.tril(-1) + torch.eye(X.size(-1), dtype=X.dtype, device=X.device)
        U = X.triu(1) + (self.signs * diagonal.exp()).diag_embed()
        return (L @ U).take_along_dim(self.rows.long().unsqueeze(-1), dim=-2)

    def inverse(self, W: Tensor) -> Tensor:
        P, L, U = torch.linalg.lu(W)
        pivots = U.diagonal(dim1=-2, dim2=-1)
        if bool((pivots.abs() <= 1e-12 * W.abs().amax((-2, -1)).unsqueeze(-1)).any()):
            raise CannotReach(
                "lu reaches invertible matrices, and this one is singular: "
                f"its smallest pivot is {pivots.abs().amin().item():.2g}",
                hint=LEAVE_OUT,
            )
        self.rows, self.signs = P.argmax(-1), pivots.sign()
        return L.tril(-1) + U.triu(1) + pivots.abs().log().diag_embed()

    def edge(self, W: Tensor) -> Edge:
        return singular_value_edge(W, W.size(-1))
