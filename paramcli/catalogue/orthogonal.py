"""Orthogonal matrices beyond torch's own, and the complex side: Hermitian, skew-Hermitian and unitary matrices."""

from __future__ import annotations

from .entry import ConstraintEntry, Entry

_HERMITIAN = "as PyTorch's Parametrizations Tutorial does for real matrices, with ^H for ^T"

CONSTRAINTS = (
    ConstraintEntry(
        name="hermitian",
        summary="A = A^H, complex",
        target="hermitian:HermitianMatrices",
        residual="||A - A^H||_F / ||A||_F",
        complex=True,
        real=False,
        keeper="hermitian",
    ),
    ConstraintEntry(
        name="skew_hermitian",
        summary="A = -A^H, complex",
        target="hermitian:SkewHermitianMatrices",
        residual="||A + A^H||_F / ||A||_F",
        complex=True,
        real=False,
    ),
    ConstraintEntry(
        name="unitary",
        summary="Q^H Q = I, complex and square",
        target="hermitian:UnitaryMatrices",
        within=("orthogonal",),
        residual="||Q^H Q - I||_2",
        complex=True,
        real=False,
    ),
    ConstraintEntry(
        name="hermitian_positive_definite",
        summary="A = A^H, complex, all eigenvalues positive",
        target="hermitian:HermitianPositiveDefinite",
        within=("hermitian",),
        residual="as positive_definite",
        complex=True,
        real=False,
    ),
)

PARAMETRIZATIONS = (
    Entry(
        name="polar",
        family="orthogonal",
        summary="the nearest orthogonal matrix: all singular values become 1",
        law="Q = U V^H of X = U S V^H",
        maps=(("any", "orthogonal"),),
        right_inverse="W itself; a rank-deficient one has no unique nearest matrix",
        source="Higham 1986, Computing the polar decomposition; Anil, Lucas and Grosse 2019, arXiv:1811.05381",
        target="polar:Polar",
        cost="one SVD, about 11 to 18 products",
        complex=True,
    ),
    Entry(
        name="qr",
        family="orthogonal",
        summary="Gram-Schmidt: the Q of X = Q R, R with a positive diagonal",
        law="Q of X = Q R, R_jj > 0; if wide of X = L Q, L_jj > 0",
        maps=(("any", "orthogonal"),),
        right_inverse="Q itself (R = I), of the nearest orthogonal matrix",
        source="Absil, Mahony and Sepulchre 2008, Optimization Algorithms on Matrix Manifolds",
        target="polar:QR",
        cost="one QR decomposition, about 4 products",
        complex=True,
    ),
    Entry(
        name="hermitian",
        family="complex",
        summary="upper triangle mirrored and conjugated, real diagonal: A = A^H",
        law="A = triu(X, 1) + triu(X, 1)^H + Re diag(X)",
        maps=(("any", "hermitian"),),
        right_inverse="A itself (exact)",
        source=_HERMITIAN,
        target="hermitian:Hermitian",
        cost="one pass",
        complex=True,
    ),
    Entry(
        name="skew_hermitian",
        family="complex",
        summary="upper triangle minus its conjugate mirror: A = -A^H",
        law="A = triu(X, 1) - triu(X, 1)^H + i Im diag(X)",
        maps=(("any", "skew_hermitian"),),
        right_inverse="A itself (exact)",
        source=_HERMITIAN,
        target="hermitian:SkewHermitian",
        cost="one pass",
        complex=True,
    ),
)
