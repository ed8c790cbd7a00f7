"""Vectors of one length: the last dimension on a sphere, by geodesics or by normalising."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputRefused
from .base import Constraint, Parametrization, Singular, row_scaled


class Sphere(Constraint):
    r"""{W : every vector along the last dimension has length r}. Residual max | ||w|| / r - 1 |; nearest point r w / ||w||."""

    name = "sphere"

    def __init__(self, radius: float = 1.0):
        self.radius = radius

    def residual(self, W: Tensor) -> Tensor:
        off = (torch.linalg.vector_norm(W, dim=-1) / self.radius - 1).abs()
        return off.amax(-1) if off.ndim else off

    def project(self, W: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(W, dim=-1, keepdim=True)
        if bool((length == 0).any()):
            zero = (length == 0).reshape(-1).nonzero()[0].item()
            raise Singular(f"a zero vector has no nearest point on a sphere (vector {zero} of {length.numel()})", hint="leave it out with -t")
        return self.radius * W / length

    def check_shape(self, shape: torch.Size) -> None:
        if not shape:
            raise InputRefused("sphere needs a vector (or a batch of them); the tensor is a scalar")

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        return {"times 1.05": 1.05 * W, "zero": 0 * W, **({"last row times 1.05": row_scaled(W)} if W.ndim > 1 else {})}

    @classmethod
    def candidates(cls, W: Tensor) -> list[Constraint]:
        return [cls()]


class Geodesic(Parametrization):
    r"""v to r (cos(|u|) x + sin(|u|) u / |u|), u = v - <v, x> x: the walk from x along u on the great circle.

    x is the stored `base`, of length 1.

    Shapes:  (..., n) -> (..., n), the last dimension; any number of dimensions before it.
    Inverse: base = w / r, v = 0: exact to rounding.
    Cost:    a few passes.
    Source:  geotorch 0.4 Sphere; the exponential map of the sphere.
    """

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
        self.base = (W / self.radius).to(self.base.dtype)
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


class GeodesicOrEmbedded(Geodesic):
    """geotorch's `sphere`: by geodesics, or with `embedded` by normalising."""

    @classmethod
    def make(cls, value: Tensor, radius: float = 1.0, embedded: bool = False) -> Parametrization:
        return Embedded(radius) if embedded else Geodesic(value, radius)
