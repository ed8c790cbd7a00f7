"""Orthogonal matrices beyond torch's own, and the complex side: Hermitian, skew-Hermitian and unitary matrices."""

from __future__ import annotations

from .entry import ConstraintEntry, Entry

_HERMITIAN = "as PyTorch's Parametrizations Tutorial does for real matrices, with ^H for ^T"

CONSTRAINTS = (
    ConstraintEntry(
        "hermitian",
        "A = A^H, complex",
        "hermitian:HermitianMatrices",
        residual="||A - A^H||_F / ||A||_F",
        complex=True,
        real=False,
    ),
    ConstraintEntry(
        "skew_hermitian",
        "A = -A^H, complex",
        "hermitian:SkewHermitianMatrices",
        residual="||A + A^H||_F / ||A||_F",
        complex=True,
        real=False,
    ),
    ConstraintEntry(
        "unitary",
        "Q^H Q = I, complex and square",
        "hermitian:UnitaryMatrices",
        ("orthogonal",),
        residual="||Q^H Q - I||_2",
        complex=True,
        real=False,
    ),
    ConstraintEntry(
        "hermitian_positive_definite",
        "A = A^H, complex, all eigenvalues positive",
        "hermitian:HermitianPositiveDefinite",
        ("hermitian",),
        residual="as positive_definite",
        complex=True,
        real=False,
    ),
)

PARAMETRIZATIONS = (
    Entry(
        "polar",
        "orthogonal",
        "the nearest orthogonal matrix: all singular values become 1",
        "Q = U V^H of X = U S V^H",
        (("any", "orthogonal"),),
        "W itself; a rank-deficient one has no unique nearest matrix",
        "Higham 1986, Computing the polar decomposition; Anil, Lucas and Grosse 2019, arXiv:1811.05381",
        "polar:Polar",
        cost="one SVD, about 11 to 18 products",
        complex=True,
    ),
    Entry(
        "qr",
        "orthogonal",
        "Gram-Schmidt: the Q of X = Q R, R with a positive diagonal",
        "Q of X = Q R, R_jj > 0; if wide of X = L Q, L_jj > 0",
        (("any", "orthogonal"),),
        "Q itself (R = I), of the nearest orthogonal matrix",
        "Absil, Mahony and Sepulchre 2008, Optimization Algorithms on Matrix Manifolds",
        "polar:QR",
        cost="one QR decomposition, about 4 products",
        complex=True,
    ),
    Entry(
        "hermitian",
        "complex",
        "upper triangle mirrored and conjugated, real diagonal: A = A^H",
        "A = triu(X, 1) + triu(X, 1)^H + Re diag(X)",
        (("any", "hermitian"),),
        "A itself (exact)",
        _HERMITIAN,
        "hermitian:Hermitian",
        cost="one pass",
        complex=True,
    ),
    Entry(
        "skew_hermitian",
        "complex",
        "upper triangle minus its conjugate mirror: A = -A^H",
        "A = triu(X, 1) - triu(X, 1)^H + i Im diag(X)",
        (("any", "skew_hermitian"),),
        "A itself (exact)",
        _HERMITIAN,
        "hermitian:SkewHermitian",
        cost="one pass",
        complex=True,
    ),
)
