"""Orthonormal frames by trivialisation: a stored base point times a map of skew-symmetric matrices.

These are geotorch's laws with geotorch's own tensors, so that its checkpoints and ours are the same
files. geotorch starts from a random point; here the base is the weight itself and the original is 0.
Frames are also the U and V of every parametrization by singular values or eigenvalues.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import Constraint, Parametrization, started
from .numbers import identity
from .orthogonal import OrthogonalMatrices, Rotations


def lower_skew(X: Tensor) -> Tensor:
    """The skew-symmetric L - L^T with L the part of X below the diagonal (the tutorial takes the part above)."""
    L = X.tril(-1)
    return L - L.mT


def rotation_of(A: Tensor, triv: str) -> Tensor:
    """exp(A), or the half-scaled Cayley map (I - A/2)^{-1} (I + A/2); both are I + A + A^2/2 + ... at 0."""
    if triv == "expm":
        return torch.linalg.matrix_exp(A)
    I = torch.eye(A.size(-1), dtype=A.dtype, device=A.device)
    return torch.linalg.solve(I - A / 2, I + A / 2)


def completed(Q: Tensor) -> Tensor:
    """Orthonormal columns (n, r) completed to an orthogonal (n, n) by Householder reflections; nothing is random."""
    if Q.size(-1) == Q.size(-2):
        return Q
    full, _ = torch.linalg.qr(Q, mode="complete")
    # R is diagonal with entries +-1 here, and the first columns are Q up to those signs.
    return torch.cat([Q, full[..., Q.size(-1) :]], dim=-1)


def tall(X: Tensor) -> Tensor:
    return X if X.size(-2) >= X.size(-1) else X.mT


class Frame(nn.Module):
    r"""X (n, r) to the first r columns of base @ f(L - L^T), L = tril(X, -1) with zero columns added.

    `base` is square, (n, n): it holds the point where X = 0 and a basis of the directions around it.
    """

    base: Tensor

    def __init__(self, like: Tensor, triv: str):
        super().__init__()
        self.triv = triv
        n = like.size(-2)
        self.register_buffer("base", identity(like, n).expand(*like.shape[:-2], n, n).contiguous())

    def forward(self, X: Tensor) -> Tensor:
        n, r = X.shape[-2:]
        A = lower_skew(nn.functional.pad(X, (0, n - r)))
        # The base may be stored in half precision beside originals widened for the computation.
        return self.base.to(X.dtype) @ rotation_of(A, self.triv)[..., :r]

    def start(self, Q: Tensor) -> None:
        """Make Q (n, r) the value at X = 0."""
        # A copy: torch gives the parameter itself, and sets it to the original afterwards.
        self.base = completed(Q).to(self.base.dtype, copy=True).contiguous()


class Stiefel(Parametrization, Frame):
    r"""X to Q = base @ f(L - L^T)[:, :k], L = tril(X, -1): orthonormal columns (rows if wide).

    In plain words, a turn of the weight it started from.

    Shapes:  (..., n, k) -> (..., n, k); a wide matrix is the transpose of a tall one.
    Inverse: base = Q completed to square, X = 0: exact to rounding.
    Residual: ||Q^T Q - I||_2.
    Cost:    f and one product on max(n, k) squared.
    Source:  geotorch 0.4 Stiefel; Lezcano-Casado, 2019, arXiv:1909.09501. torch's `orthogonal` is the same map with
             a start at X = -I.
    """

    points: Constraint = OrthogonalMatrices()

    def __init__(self, value: Tensor, triv: str = "expm"):
        Frame.__init__(self, tall(value), triv)

    @classmethod
    def make(cls, value: Tensor, **arguments: Any) -> Stiefel:
        return cls(value, **arguments)

    def frame(self, X: Tensor) -> Tensor:
        """The part of X that moves the point."""
        return X

    def map(self, X: Tensor) -> Tensor:
        Q = Frame.forward(self, self.frame(tall(X)))
        return Q if X.size(-2) >= X.size(-1) else Q.mT

    def forward(self, X: Tensor) -> Tensor:
        return Parametrization.forward(self, X)

    def inverse(self, Q: Tensor) -> Tensor:
        self.start(tall(started(self.points, Q)))
        return torch.zeros_like(Q)


class SpecialOrthogonal(Stiefel):
    r"""X to the rotation Q = base @ f(L - L^T), L = tril(X, -1), for square X; det Q = det base = 1.

    Inverse: base = Q, X = 0: exact.
    Cost:    one matrix_exp or LU solve, and one product.
    Source:  geotorch 0.4 SO; Lezcano-Casado and Martinez-Rubio, 2019, arXiv:1901.08428.
    """

    points = Rotations()


class Grassmannian(Stiefel):
    r"""As `stiefel` with the upper k x k block of X fixed to 0: only the span of the columns moves.

    Inverse: base = Q completed to square, X = 0. A square matrix spans everything, and nothing moves.
    Source:  geotorch 0.4 Grassmannian; Edelman, Arias and Smith, 1998, arXiv:physics/9806030.
    """

    def frame(self, X: Tensor) -> Tensor:
        k = X.size(-1)
        return nn.functional.pad(X[..., k:, :], (0, 0, k, 0))
