"""Factored square matrices: positive definite, correlation, LU."""

from __future__ import annotations

from ..spec import Argument
from .entry import ConstraintEntry, Entry
from .norms import LARGEST

CONSTRAINTS = (
    ConstraintEntry(
        name="correlation",
        summary="C = C^T, positive semidefinite, diagonal 1",
        target="definite:Correlation",
        within=("symmetric",),
        residual="row of C - C^T / row of C, the largest; max |diagonal - 1|; max(0, -lambda_min) / max |lambda|",
    ),
)

PARAMETRIZATIONS = (
    Entry(
        name="spd_cholesky",
        family="definite",
        summary="positive definite by its Cholesky factor",
        law="W = L L^T + eps I, L = tril(X, -1) + diag(softplus(diag X))",
        maps=(("any", "positive_definite"),),
        right_inverse="the Cholesky factor of W - eps I; eigenvalues <= eps have none",
        source="torch.distributions (LowerCholeskyTransform)",
        target="definite:CholeskyDefinite",
        arguments=(Argument("eps", "float", "a floor below the eigenvalues", 0.0, minimum=0, maximum=LARGEST),),
        cost="one product; the inverse one Cholesky factorization",
        examples=("spd_cholesky", "spd_cholesky:eps=0.01"),
    ),
    Entry(
        name="correlation",
        family="definite",
        summary="correlation matrices: positive definite, diagonal 1",
        law="W = L L^T, L = tril(X, -1) + diag(softplus(diag X)), unit rows",
        maps=(("any", "correlation"),),
        right_inverse="the Cholesky factor of W; singular W with 1e-10 I mixed in",
        source="torch.distributions; nearest point: Qi and Sun 2006, SIAM J. Matrix Anal. Appl. 28",
        target="definite:CholeskyCorrelation",
        cost="one product; the nearest point five to ten eigendecompositions",
    ),
    Entry(
        name="lu",
        family="definite",
        summary="invertible: P L (U + diag s), row order and signs stored",
        law="W = P (tril(X, -1) + I) (triu(X, 1) + diag(sign exp(diag X)))",
        maps=(("any", "any"),),
        right_inverse="the LU decomposition with pivoting; a singular W has none",
        source="Glow: Kingma and Dhariwal 2018, arXiv:1807.03039; nflows",
        target="definite:LU",
        cost="one product; the inverse one LU decomposition",
        stores=None,
    ),
)
