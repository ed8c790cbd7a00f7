"""Matrices whose singular values are within a distance of 1, and the map onto them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .base import Constraint, matrix
from .decompositions import even_singular_values, made_of_svd, svd
from .eigenvalues import eigenvalue_tolerance
from .low_rank import SingularValues, with_singular_values
from .nearest_orthogonal import require_directions
from .orthogonal import frame_tolerance


class AlmostOrthogonal(Constraint):
    r"""{W : every singular value within lam of 1}. Residual max(|s - 1|) - lam, at least 0; nearest point s clipped.

    Tolerance: (1 + lam) times `eigenvalue_tolerance`, and half of that where two stored frames are rounded before the
    value is, and half of what frames may be off in s^2 (`frame_tolerance`).
    """

    name = "almost_orthogonal"

    def __init__(self, lam: float = 0.1):
        self.lam = lam

    def residual(self, W: Tensor) -> Tensor:
        return ((even_singular_values(W) - 1).abs().amax(-1) - self.lam).clamp(min=0)

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        k = min(shape[-2:])
        return (1 + self.lam) * (
            1.5 * eigenvalue_tolerance(k, stored, computed, singular=True) + frame_tolerance(k, computed) / 2
        )

    def project(self, W: Tensor) -> Tensor:
        return self.nearest(W, None)[0]

    def nearest(self, W: Tensor, stored: torch.dtype | None) -> tuple[Tensor, str | None]:
        U, S, Vh = svd(W)
        unique = "no unique nearest matrix with singular values near 1"
        assumed = require_directions(W, U, S, Vh, stored, 0, unique) if self.lam < 1 else None
        return made_of_svd(U, S.clamp(1 - self.lam, 1 + self.lam), Vh), assumed

    def detail(self, W: Tensor) -> str | None:
        S = torch.linalg.svdvals(W)
        return f"singular values from {S.min().item():.4g} to {S.max().item():.4g}"

    def check_shape(self, shape: torch.Size) -> None:
        matrix(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        scaled = with_singular_values(W, lambda S: S / S[..., :1] * (1 + self.lam) * 1.05)
        return {"largest 1.05 too large": scaled, **({"zero": 0 * W} if self.lam < 0.9 else {})}

    # Every matrix of full rank is one for some lam.
    candidates = Constraint.candidates


def _scaled_sigmoid(x: Tensor) -> Tensor:
    return torch.tanh(x / 2)


# Shapes of the way from -1 to 1, with their inverses. tanh and the sigmoid only approach the ends, so their
# inverses stop this far short of them.
_SHORT = 1e-10
_ODD: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sin": (torch.sin, torch.asin),
    "tanh": (torch.tanh, lambda y: torch.atanh(y.clamp(-1 + _SHORT, 1 - _SHORT))),
    "scaled_sigmoid": (_scaled_sigmoid, lambda y: 2 * torch.atanh(y.clamp(-1 + _SHORT, 1 - _SHORT))),
}


class BoundedValues(SingularValues):
    r"""U diag(1 + lam f(s)) V^T with f = sin, tanh or 2 sigmoid - 1: singular values within lam of 1.

    Inverse: s = f^{-1}((S - 1) / lam). Where a singular value lies on the bound f is flat, and its gradient 0.
    Source:  geotorch 0.4 AlmostOrthogonal.
    """

    def __init__(self, value: Tensor, rank: int, lam: float = 0.1, f: str = "sin", triv: str = "expm"):
        super().__init__(value, rank, triv)
        self.lam, self.f = lam, f

    def values(self, s: Tensor) -> Tensor:
        return 1 + self.lam * _ODD[self.f][0](s)

    def values_inverse(self, S: Tensor) -> Tensor:
        return _ODD[self.f][1](((S - 1) / self.lam).clamp(-1, 1)) if self.lam else torch.zeros_like(S)
