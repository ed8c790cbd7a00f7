"""Any matrix to an orthogonal one, by its polar or its QR decomposition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import Parametrization
from .nearest_orthogonal import is_coarse, require_unique_polar


class _PolarFactor(torch.autograd.Function):
    """U V^H of X = U S V^H, with the derivative of the polar factor.

    The derivative of the SVD divides by differences of singular values, and on an orthogonal matrix, where every
    fit starts, they are all equal. U V^H itself is smooth wherever X has full rank: it needs only their sums.
    """

    @staticmethod
    def forward(X: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
        return U @ Vh, U, S, Vh

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, G: Tensor, *unused: object) -> Tensor:
        U, S, Vh = ctx.saved_tensors
        A = U.mH @ G @ Vh.mH
        E = (A - A.mH) / (S.unsqueeze(-1) + S.unsqueeze(-2))
        grad = U @ E @ Vh
        if G.size(-2) > G.size(-1):
            outside = G @ Vh.mH - U @ A
            grad = grad + (outside / S.unsqueeze(-2)) @ Vh
        if G.size(-2) < G.size(-1):
            outside = U.mH @ G - A @ Vh
            grad = grad + U @ (outside / S.unsqueeze(-1))
        return grad


# The factor, and what its derivative keeps.
_polar_factor: Callable[[Tensor], tuple[Tensor, Tensor, Tensor, Tensor]] = _PolarFactor.apply


class Polar(Parametrization):
    r"""X = U S V^H to its polar factor Q = U V^H, the orthogonal matrix nearest to X.

    In plain words, every singular value becomes 1: columns (rows if wide) turn orthonormal and move as little as
    they can. With a determinant of either sign.

    Shapes:  (..., n, k) -> (..., n, k); complex ones become unitary.
    Inverse: the weight itself, orthogonal or not: keeping it loses nothing. A rank-deficient weight has no unique
             nearest orthogonal matrix and raises Singular.
    Cost:    one SVD, about 11 to 18 products; its gradient six products (no second derivative), its inverse a third.
    Source:  Higham, 1986, Computing the polar decomposition; in layers Anil, Lucas and Grosse, 2019, arXiv:1811.05381.
    """

    is_projection = True

    def map(self, X: Tensor) -> Tensor:
        # Where no gradient is wanted, as in a file, a Function's own bookkeeping takes a fifth of a small matrix' time.
        return _polar_factor(X)[0] if torch.is_grad_enabled() else _PolarFactor.forward(X)[0]

    def inverse(self, W: Tensor) -> Tensor:
        require_unique_polar(W, self.stored)
        return W

    def inverts_together(self, values: Tensor) -> bool:
        return not is_coarse(self.stored)

    def right_inverse(self, W: Tensor) -> Tensor:
        return W


class QR(Parametrization):
    r"""X = Q R with a positive diagonal of R, to Q. A wide X is X = L Q with a positive diagonal of L.

    In plain words, Gram and Schmidt: each column loses what it shares with those before it and is scaled to length 1.

    Shapes:  (..., n, k) -> (..., n, k); complex ones become unitary.
    Inverse: an orthogonal Q itself, with R = I. Another weight is first moved to the nearest orthogonal one, since its
             own Q is about 1.4 times as far away.
    Cost:    one QR decomposition, about 4 products.
    Source:  the QR retraction of Absil, Mahony and Sepulchre, 2008, Optimization Algorithms on Matrix Manifolds.
    """

    def map(self, X: Tensor) -> Tensor:
        wide = X.size(-2) < X.size(-1)
        Q, R = torch.linalg.qr(X.mH if wide else X)
        phase = R.diagonal(dim1=-2, dim2=-1).detach().sgn()
        # A zero on R's diagonal leaves its column free, and any will do.
        Q = Q * torch.where(phase == 0, torch.ones_like(phase), phase).unsqueeze(-2)
        return Q.mH if wide else Q
