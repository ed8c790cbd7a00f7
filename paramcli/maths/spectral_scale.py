"""Spectral norms by a stored u and v: learned ones, and bounds that only shrink."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import _SpectralNorm

from ..wording import LEAVE_OUT, given
from .base import CannotReach, Check, matrix
from .norm import SpectralNorm, UnitSpectralNorm, as_matrix
from .numbers import compute_dtype
from .softplus import inverse_softplus


class SigmaReparam(SpectralNorm):
    r"""(gamma, X) to gamma X / (u^T X v), u and v stored: a weight whose spectral norm gamma is learned.

    Shapes:  gamma is 0-d; X any shape with 1 dimension or more, flattened to (dim, everything else).
    Inverse: gamma the exact spectral norm of W, X = W, u and v its singular vectors. A zero tensor is refused.
    Cost:    one matrix-vector product; the inverse one SVD.
    Source:  Zhai et al., 2023 (sigmaReparam), arXiv:2303.06296.
    """

    stored_originals = (1,)

    # It has two originals where the class that it shares the power method with, and torch's below that, have one.
    def map(self, gamma: Tensor, X: Tensor) -> Tensor:  # type: ignore[override]
        return gamma * _SpectralNorm.forward(self, X)

    def forward(self, gamma: Tensor, X: Tensor) -> Tensor:  # type: ignore[override]
        return torch.empty_like(X) if X.is_meta else self.view.back(self.map(gamma, self.view.into(X)), X.shape)

    @classmethod
    def weight_shape(cls, gamma: tuple[int, ...], X: tuple[int, ...], **arguments: Any) -> tuple[int, ...]:
        return X

    def right_inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if W.is_meta:
            return W.new_empty(()), torch.empty_like(W)
        # With the u and v of the power method, as a live registration has them, the value is the weight itself.
        return stored_sigma(self, self.view.into(W)), W

    def inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        super().inverse(W)
        gamma = stored_sigma(self, W)
        if gamma == 0:
            raise CannotReach("sigma_reparam divides by the spectral norm, and this tensor is zero", hint=LEAVE_OUT)
        return gamma, W

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        """The spectral norm is |gamma|: W / gamma is a spectral norm's value, with its rounding and what its u and v
        leave.
        """
        gamma, image, stored = originals[0], UnitSpectralNorm(self.dim), self.stored_dtype
        unit = value / gamma.abs().clamp(min=torch.finfo(stored).tiny)
        tolerance = image.tolerance(value.shape, stored, compute_dtype(stored)) + self.slack(image, unit)
        return [
            *super().checks(originals, value),
            Check("sigma", image.residual(unit).item(), tolerance, image.detail(value)),
        ]


def stored_sigma(part: SpectralNorm, W: Tensor) -> Tensor:
    """u^T W v with the module's own u and v; the norm of a vector."""
    if W.ndim < 2:
        return torch.linalg.vector_norm(W)
    # Clones, as in torch: the power method of a second forward changes u and v in place.
    return torch.dot(part._u.clone(), torch.mv(as_matrix(W, part.dim), part._v.clone()))


class SpectralReparam(SpectralNorm):
    r"""X to X (softplus(scale) + alpha) / (u^T X v + eps), as NVIDIA's RADIO models store it.

    `scale` is a 1 x 1 parameter of the parametrization, `_sn_version` says which law: 2 as above, 1 plain `scale`.
    alpha and eps are not stored: RADIO's code always has alpha = 0.05, and eps = 1e-6 (1e-12 where it is configured),
    which moves the weight by 1e-6 / sigma of its size.

    Inverse: X = W, with u and v its singular vectors; a spectral norm of at most alpha is refused.
    Cost:    one matrix-vector product; the inverse one SVD.
    Source:  NVlabs/RADIO, radio/enable_spectral_reparam.py.
    """

    _sn_version: Tensor

    def __init__(self, weight: Tensor, alpha: float = 0.05, eps: float = 1e-6):
        super().__init__(weight)
        self.alpha, self.sigma_eps = alpha, eps
        self.scale = nn.Parameter(torch.zeros(1, 1, dtype=weight.dtype, device=weight.device))
        self.register_buffer("_sn_version", torch.tensor(2, device=weight.device))

    @classmethod
    def make(cls, value: Tensor, alpha: float = 0.05, eps: float = 1e-6) -> SpectralReparam:
        made = cls(value, alpha, eps)
        if not value.is_meta:
            made.set_scale(stored_sigma(made, value))
        return made

    @classmethod
    def check_shape(cls, shape: torch.Size, alpha: float = 0.05, eps: float = 1e-6) -> None:
        matrix(shape, "spectral_reparam")

    def set_scale(self, sigma: Tensor) -> None:
        """The scale at which the numerator is sigma + eps, so that a weight is its own value."""
        top = sigma + self.sigma_eps
        if self._sn_version != 1:
            top = inverse_softplus((top - self.alpha).clamp(min=1e-5))
        with torch.no_grad():
            self.scale.copy_(top.reshape(1, 1))

    def map(self, X: Tensor) -> Tensor:
        if self.training:
            self._power_method(as_matrix(X, 0), self.n_power_iterations)
        sigma = stored_sigma(self, X) + self.sigma_eps
        top = torch.where(self._sn_version == 1, self.scale, softplus(self.scale) + self.alpha)
        return X * (top / sigma).reshape(())

    def inverse(self, W: Tensor) -> Tensor:
        super().inverse(W)
        sigma = stored_sigma(self, W)
        if sigma <= self.alpha and self._sn_version != 1:
            raise CannotReach(
                f"spectral_reparam reaches spectral norms above {self.alpha:g}, and this tensor has {sigma.item():.3g}",
                hint="sigma_reparam has no such bound",
            )
        self.set_scale(sigma)
        return W

    def right_inverse(self, W: Tensor) -> Tensor:
        """The scale is no original: what is assigned to a live module sets it, by u and v as they are kept."""
        if not W.is_meta:
            X = self.view.into(W)
            self.inverse(X.to(compute_dtype(W.dtype)))
            _round_pair(self, W.dtype)
            self.set_scale(stored_sigma(self, X))
        return W


def _round_pair(part: SpectralNorm, dtype: torch.dtype) -> None:
    """u and v as a live module keeps them."""
    if hasattr(part, "_u"):
        part._u, part._v = part._u.to(dtype), part._v.to(dtype)


class SoftSpectralNorm(SpectralNorm):
    r"""X to X / (max(1, u^T X v / coeff) + eps), u and v stored: what is above coeff is cut to it, the rest stays.

    In plain words, a spectral norm that only shrinks. coeff is in no key; the code of invertible residual networks adds
    eps = 1e-5, most others 0. `_sigma` is a log of the last u^T X v in training, and no part of the law.

    Shapes:  any with 2 dimensions or more, flattened to (first, everything else). For convolutions that code has u and
             v of the size of the input, which is another law: their lengths do not fit, and they are refused.
    Inverse: X = t W, u and v its singular vectors, where sigma(W) allows a t: 1 + eps where sigma (1 + eps) <= coeff,
             eps / (1 - sigma / coeff) up to sigma < coeff. No value is larger than coeff while u and v are exact.
    Cost:    one matrix-vector product; the inverse one SVD.
    Source:  Behrmann et al., 2019, arXiv:1811.00995, and its code (jhjacobsen/invertible-resnet, spectral_norm_fc);
             Gouk et al., 2018, arXiv:1804.04368.
    """

    fills_image = False
    _sigma: Tensor

    def __init__(self, weight: Tensor, coeff: float = 1.0, eps: float = 0.0):
        super().__init__(weight)
        self.coeff, self.sigma_eps = coeff, eps
        self.register_buffer("_sigma", torch.ones(1, dtype=weight.dtype, device=weight.device))

    @classmethod
    def make(cls, value: Tensor, coeff: float = 1.0, eps: float = 0.0) -> SoftSpectralNorm:
        return cls(value, coeff, eps)

    @classmethod
    def check_shape(cls, shape: torch.Size, coeff: float = 1.0, eps: float = 0.0) -> None:
        matrix(shape, "soft_spectral_norm")

    def map(self, X: Tensor) -> Tensor:
        if self.training:
            self._power_method(as_matrix(X, 0), self.n_power_iterations)
        sigma = stored_sigma(self, X)
        if self.training:
            self._sigma.copy_(sigma.detach())
        return X / ((sigma / self.coeff).clamp(min=1) + self.sigma_eps)

    def inverse(self, W: Tensor) -> Tensor:
        super().inverse(W)
        sigma = stored_sigma(self, W)
        share = sigma.item() / self.coeff
        if share * (1 + self.sigma_eps) <= 1:
            t = 1 + self.sigma_eps
        elif share < 1:
            t = self.sigma_eps / (1 - share)
        else:
            larger = f"soft_spectral_norm:coeff={math.ceil(sigma.item() * 100 + 1) / 100:g}"
            raise CannotReach(
                f"soft_spectral_norm has no value of a spectral norm above {self.coeff:g}, and this tensor has "
                f"{sigma.item():.6g}",
                hint=f"{given('chain', larger)}, or {given('init', 'raw')}",
            )
        self._sigma = (sigma * t).reshape(1)
        return W * t

    def right_inverse(self, W: Tensor) -> Tensor:
        """u and v are no originals: what is assigned to a live module sets them; what cannot be reached is refused."""
        if W.is_meta:
            return W
        X = self.inverse(self.view.into(W).to(compute_dtype(W.dtype)))
        _round_pair(self, W.dtype)
        self._sigma = self._sigma.to(W.dtype)
        return self.view.back(X, W.shape).to(W.dtype)
