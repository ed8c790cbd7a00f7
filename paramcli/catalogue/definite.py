"""Factored square matrices: positive definite, correlation, LU."""

from __future__ import annotations

from ..spec import Argument
from .entry import ConstraintEntry, Entry
from .norms import LARGEST

CONSTRAINTS = (
    ConstraintEntry(
        "correlation",
        "C = C^T, positive semidefinite, diagonal 1",
        "definite:Correlation",
        ("symmetric",),
        residual="row of C - C^T / row of C, the largest; max |diagonal - 1|; max(0, -lambda_min) / max |lambda|",
    ),
)

PARAMETRIZATIONS = (
    Entry(
        "spd_cholesky",
        "definite",
        "positive definite by its Cholesky factor",
        "W = L L^T + eps I, L = tril(X, -1) + diag(softplus(diag X))",
        (("any", "positive_definite"),),
        "the Cholesky factor of W - eps I; eigenvalues <= eps have none",
        "torch.distributions (LowerCholeskyTransform)",
        "definite:CholeskyDefinite",
        (Argument("eps", "float", "a floor below the eigenvalues", 0.0, minimum=0, maximum=LARGEST),),
        cost="one product; the inverse one Cholesky factorization",
        examples=("spd_cholesky", "spd_cholesky:eps=0.01"),
    ),
    Entry(
        "correlation",
        "definite",
        "correlation matrices: positive definite, diagonal 1",
        "W = L L^T, L = tril(X, -1) + diag(softplus(diag X)), unit rows",
        (("any", "correlation"),),
        "the Cholesky factor of W; singular W with 1e-10 I mixed in",
        "torch.distributions; nearest point: Higham 2002, IMA J. Numer. Anal. 22",
        "definite:CholeskyCorrelation",
        cost="one product; the nearest point some hundred eigendecompositions",
    ),
    Entry(
        "lu",
        "definite",
        "invertible: P L (U + diag s), row order and signs stored",
        "W = P (tril(X, -1) + I) (triu(X, 1) + diag(sign exp(diag X)))",
        (("any", "any"),),
        "the LU decomposition with pivoting; a singular W has none",
        "Glow: Kingma and Dhariwal 2018, arXiv:1807.03039; nflows",
        "definite:LU",
        cost="one product; the inverse one LU decomposition",
        stores=None,
    ),
)
