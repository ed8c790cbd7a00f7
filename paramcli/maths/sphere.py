"""Vectors of one length: the last dimension on a sphere, by geodesics or by normalising."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Parametrization, started
from .bounded import UnitNorm


class Geodesic(Parametrization):
    r"""v to r (cos(|u|) x + sin(|u|) u / |u|), u = v - <v, x> x: the walk from x along u on the great circle.

    x is the stored `base`, of length 1.

    Shapes:  (..., n) -> (..., n), the last dimension; any number of dimensions before it.
    Inverse: base = w / r, v = 0: exact to rounding.
    Cost:    a few passes.
    Source:  geotorch 0.4 Sphere; the exponential map of the sphere.
    """

    base: Tensor

    def __init__(self, value: Tensor, radius: float = 1.0):
        super().__init__()
        self.radius = radius
        start = torch.zeros_like(value)
        start[..., 0] = 1
        self.register_buffer("base", start)

    @classmethod
    def make(cls, value: Tensor, radius: float = 1.0) -> Geodesic:
        return cls(value, radius)

    def map(self, v: Tensor) -> Tensor:
        x = self.base.to(v.dtype)
        u = v - (v * x).sum(-1, keepdim=True) * x
        length = torch.linalg.vector_norm(u, dim=-1, keepdim=True)
        return self.radius * (length.cos() * x + torch.special.sinc(length / torch.pi) * u)

    def inverse(self, W: Tensor) -> Tensor:
        self.base = (started(UnitNorm(dim=-1, r=self.radius), W) / self.radius).to(self.base.dtype)
        return torch.zeros_like(W)


class Embedded(Parametrization):
    r"""w to r w / ||w|| along the last dimension.

    Inverse: w itself.
    Cost:    one pass.
    Source:  geotorch 0.4 SphereEmbedded.
    """

    is_projection = True

    def __init__(self, radius: float = 1.0):
        super().__init__()
        self.radius = radius

    def map(self, w: Tensor) -> Tensor:
        return self.radius * w / torch.linalg.vector_norm(w, dim=-1, keepdim=True)


class GeodesicOrEmbedded(Parametrization):
    """geotorch's `sphere`: by geodesics, or with `embedded` by normalising."""

    @classmethod
    def make(cls, value: Tensor, radius: float = 1.0, embedded: bool = False) -> Parametrization:
        return Embedded(radius) if embedded else Geodesic(value, radius)
