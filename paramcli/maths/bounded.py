"""Norms along a dimension: fixed (spheres, unit magnitude), bounded (balls), or cut (max norm).

`dim` is the dimension a norm runs along, as in torch.nn.functional.normalize; None is the whole tensor. In
`unit_rms` it is the one that keeps its own norm, as in weight norm.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from ..errors import InputRefused
from ..wording import LEAVE_OUT
from .base import (
    FARTHER,
    CannotReach,
    Constraint,
    Parametrization,
    Singular,
    first_along,
    first_of_batch,
    is_near,
    started,
)
from .norm import check_dim
from .numbers import eps, farthest, norm, smallest, unit_roundoff, wide
from .rows import is_row, within_row

# Open sets have no nearest point to what lies outside: it is put this share of the bound inside, where a squashing
# map still has a thousandth of its slope left for training.
MARGIN = 1e-3
# Room for terms of second order and for the sum in double precision.
ROUNDED = 1.02
# Roundings of a norm, its root, a quotient and a product.
NORM_STEPS, TURN_STEPS = 3, 2
# On the edge of an open set is off it, by a share that no exact inverse brings back and rounding explains.
EDGE = 1e-8


def dims_along(W: Tensor, dim: int | None) -> tuple[int, ...]:
    return tuple(range(W.ndim)) if dim is None else (dim,)


def length_along(shape: torch.Size, dim: int | None) -> int:
    return shape.numel() if dim is None else shape[dim]


def dims_within(W: Tensor, dim: int) -> tuple[int, ...]:
    """The dimensions of one slice: all but `dim`."""
    return tuple(d for d in range(W.ndim) if d != dim % W.ndim)


def norms(W: Tensor, dims: tuple[int, ...]) -> Tensor:
    """As the maps take them: summed in double precision, since torch adds one square after another, and in float32 the
    norm of a million equal entries would be off by a thousandth.
    """
    return torch.linalg.vector_norm(W, dim=dims, keepdim=True, dtype=wide(W.dtype, W.device)).to(
        W.real.dtype if W.is_complex() else W.dtype
    )


def norm_tolerance(
    length: int, stored: torch.dtype, computed: torch.dtype, r: float = 1.0, roundings: int = 1
) -> float:
    r"""What rounding explains of | ||x|| / r - 1 | for a vector x of `length` entries.

    Entries x_i (1 + d_i) with |d_i| <= u = eps / 2 have the norm r (1 + sum d_i x_i^2 / ||x||^2), a weighted mean of
    the d_i: never more than u, whatever the length, and u itself where all entries are equal. Entries below the normal
    numbers of `stored` are off by up to half of its smallest number each. A map that divides by a norm in `computed`
    adds its roundings; the sum itself is in double precision and by halves, where equal squares were off by up to 3 eps
    for lengths to 10^6 along one dimension, and by 22 for 250,000 along the outer two of three. So 2 + sqrt(length) / 8
    eps. `roundings`: the second is that of a stored base, which a map turns in a few roundings more, with lengths that
    torch adds up one entry after another: equal ones are off by up to length / 20 eps in float64.
    """
    tiny = length**0.5 * smallest(stored) / 2 / r
    mapped = roundings * ROUNDED * unit_roundoff(stored) + (NORM_STEPS + TURN_STEPS * (roundings - 1)) * unit_roundoff(
        computed
    )
    return mapped + tiny + (2 + length**0.5 / 8 + length / 20 * (roundings - 1)) * eps(torch.float64)


def beyond(size: Tensor, bound: float) -> Tensor:
    """How far sizes are from the open set below `bound`, as a share of it."""
    return torch.where(size < bound, torch.zeros_like(size), (size / bound - 1).clamp(min=EDGE))


def one_slice(W: Tensor, per_slice: Tensor) -> Tensor:
    """W with its last slice scaled: the one wrong slice that a mean would hide. `per_slice` has one value for each."""
    factors = torch.ones_like(per_slice)
    factors.view(-1)[-1] = 1.05
    return W * factors


def worst(values: Tensor, errors: Tensor, what: str) -> str:
    """'norm 1.2 in slice 3 of 8', for the largest error."""
    index = farthest(errors)
    where = f" in slice {index} of {errors.numel()}" if errors.numel() > 1 else ""
    return f"{what} {values.reshape(-1)[index].item():.4g}{where}"


def refuse_zero(sizes: Tensor, error: type[InputRefused], what: str) -> None:
    """Raise for the first slice whose size is zero."""
    zero = (sizes.reshape(-1) == 0).nonzero().reshape(-1).tolist()
    if zero:
        where = "the whole tensor" if sizes.numel() == 1 else f"slice {zero[0]} of {sizes.numel()}"
        raise error(f"{where} {what}", hint=LEAVE_OUT)


class UnitNorm(Constraint):
    r"""{W : every vector along `dim` has norm r}: spheres. Residual max |norm / r - 1|; nearest point r x / ||x||.

    Tolerance: `norm_tolerance` of the vectors' length.
    """

    name = "unit_norm"
    whole = True

    def __init__(self, dim: int | None = -1, r: float = 1.0):
        self.dim, self.r = dim, r

    def check_shape(self, shape: torch.Size) -> None:
        check_dim(shape, self.dim, self.name)

    def by_rows(self, shape: torch.Size) -> bool:
        return within_row(shape, self.dim)

    def residual(self, W: Tensor) -> Tensor:
        return (norm(W, dims_along(W, self.dim), keepdim=True) / self.r - 1).abs().amax()

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return norm_tolerance(length_along(shape, self.dim), stored, computed, self.r, roundings=2)

    def project(self, W: Tensor) -> Tensor:
        sizes = norm(W, dims_along(W, self.dim), keepdim=True)
        refuse_zero(sizes, Singular, "is zero: every point of the sphere is as near")
        return self.r * (W / sizes)

    def detail(self, W: Tensor) -> str | None:
        sizes = norm(W, dims_along(W, self.dim), keepdim=True)
        return worst(sizes, (sizes / self.r - 1).abs(), "norm")

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        slices = norms(W, dims_along(W, self.dim))
        return {"times 1.05": 1.05 * W, "zero": 0 * W, "one slice times 1.05": one_slice(W, slices)}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        found = [cls(dim) for dim in (-1, -2) if W.ndim >= -dim and W.size(dim) > 1]
        return [c for c in found if not c._is_far(first_along(W, c.dim)) and is_near(c, W, first_of_batch(W))]

    def _is_far(self, x: Tensor) -> bool:
        """Of one vector: quicker than its residual, and not as close."""
        return abs(torch.linalg.vector_norm(x).item() / self.r - 1) > FARTHER


class UnitRms(Constraint):
    r"""{W : the entries of every slice of `dim` have root mean square 1}. Residual max |rms - 1|; nearest point x /
    rms.

    Tolerance: `norm_tolerance` of the slices' length; the mean of squares is a norm.
    """

    name = "unit_rms"
    whole = True

    def __init__(self, dim: int = 0):
        self.dim = dim

    def check_shape(self, shape: torch.Size) -> None:
        check_slices(shape, self.dim, self.name)

    def by_rows(self, shape: torch.Size) -> bool:
        return is_row(shape, self.dim)

    def residual(self, W: Tensor) -> Tensor:
        return (slice_rms(W, self.dim) - 1).abs().amax()

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return norm_tolerance(shape.numel() // max(shape[self.dim], 1), stored, computed)

    def project(self, W: Tensor) -> Tensor:
        sizes = slice_rms(W, self.dim)
        refuse_zero(sizes, Singular, "is zero: every point of the sphere is as near")
        return W / sizes

    def detail(self, W: Tensor) -> str | None:
        sizes = slice_rms(W, self.dim)
        return worst(sizes, (sizes - 1).abs(), "root mean square")

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        return {"times 1.05": 1.05 * W, "zero": 0 * W, "one slice times 1.05": one_slice(W, rms(W, self.dim))}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()] if W.ndim > 1 and W[0].numel() > 1 and is_near(cls(), W, W[:1]) else []


def slice_rms(W: Tensor, dim: int) -> Tensor:
    """`rms` of entries of any size."""
    return norm(W, dims_within(W, dim), keepdim=True) * (W.size(dim) / W.numel()) ** 0.5


def rms(W: Tensor, dim: int) -> Tensor:
    dims = dims_within(W, dim)
    return norms(W, dims) * (W.size(dim) / W.numel()) ** 0.5


def check_slices(shape: torch.Size, dim: int, who: str) -> None:
    """Raise InputRefused unless the slices of `dim` have several entries."""
    check_dim(shape, dim, who)
    if shape.numel() == shape[dim]:
        raise InputRefused(f"{who} needs slices of several entries; along dimension {dim} this tensor has single ones")


class Ball(Constraint):
    r"""{W : every vector along `dim` has norm below c}, an open ball (Poincare's for c = 1).

    Residual: max(norm / c - 1, 0). Tolerance: `norm_tolerance` of the vectors' length; as stored, rounding may put what
    is inside on the edge. Outside there is no nearest point: norms from c on go to 0.999 c.
    """

    name = "ball"
    projection = "inside"
    whole = True

    def __init__(self, dim: int | None = -1, c: float = 1.0):
        self.dim, self.c = dim, c
        # Rounding may put what is inside on the edge.
        self.reached = False

    def as_stored(self, stored: torch.dtype) -> Ball:
        made = copy(self)
        made.reached = True
        return made

    def check_shape(self, shape: torch.Size) -> None:
        check_dim(shape, self.dim, self.name)

    def by_rows(self, shape: torch.Size) -> bool:
        return within_row(shape, self.dim)

    def residual(self, W: Tensor) -> Tensor:
        sizes = norm(W, dims_along(W, self.dim), keepdim=True)
        return ((sizes / self.c - 1).clamp(min=0) if self.reached else beyond(sizes, self.c)).amax()

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return norm_tolerance(length_along(shape, self.dim), stored, computed, self.c)

    def project(self, W: Tensor) -> Tensor:
        sizes = norm(W, dims_along(W, self.dim), keepdim=True)
        return torch.where(sizes < self.c, W, (1 - MARGIN) * self.c * (W / sizes.clamp(min=self.c)))

    def detail(self, W: Tensor) -> str | None:
        sizes = norm(W, dims_along(W, self.dim), keepdim=True)
        return worst(sizes, sizes, "norm")

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        longest = norm(W, dims_along(W, self.dim), keepdim=True).amax()
        return {"the longest at 1.05 c": 1.05 * self.c * W / longest}


class MaxNorm(Ball):
    r"""{W : every vector along `dim` has norm at most c}. Residual max(norm / c - 1, 0); nearest point: longer ones cut
    to c.

    Tolerance: `norm_tolerance` of the vectors' length.
    """

    name = "max_norm"
    projection = "nearest"

    def residual(self, W: Tensor) -> Tensor:
        return (norm(W, dims_along(W, self.dim), keepdim=True) / self.c - 1).clamp(min=0).amax()

    def project(self, W: Tensor) -> Tensor:
        sizes = norm(W, dims_along(W, self.dim), keepdim=True)
        return torch.where(sizes <= self.c, W, self.c * (W / sizes.clamp(min=self.c)))

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.project(2 * self.c * torch.randn(shape, generator=generator, dtype=dtype))


def cut(X: Tensor, dim: int | None, c: float) -> Tensor:
    # Clamped before the division, so that a zero vector is kept and has a gradient.
    return X * (c / norms(X, dims_along(X, dim)).clamp(min=c))


class ToUnitNorm(Parametrization):
    r"""X to r x / ||x|| for every vector x along `dim`: points of a sphere of radius r.

    In plain words, only the direction counts. dim=-1 gives unit rows (an oblique manifold), None one sphere.

    Inverse: W itself; a zero vector has no direction and is refused.
    Cost:    one pass over the tensor.
    Source:  torch.nn.functional.normalize; geotorch's embedded sphere; nGPT, arXiv:2410.01131.
    """

    is_projection = True
    whole = True

    @classmethod
    def threads_matter(cls, **arguments: Any) -> bool:
        return False

    @classmethod
    def by_rows(cls, shape: torch.Size, dim: int | None = -1, r: float = 1.0) -> frozenset[str]:
        return frozenset({"original"} if within_row(shape, dim) else ())

    def __init__(self, dim: int | None = -1, r: float = 1.0):
        super().__init__()
        self.dim, self.r = dim, r

    def map(self, X: Tensor) -> Tensor:
        return self.r * X / norms(X, dims_along(X, self.dim))

    def inverse(self, W: Tensor) -> Tensor:
        refuse_zero(norms(W, dims_along(W, self.dim)), CannotReach, "is zero: unit_norm needs a direction")
        return W


class MagnitudePreserving(Parametrization):
    r"""X to x sqrt(n) / ||x|| for every slice x of `dim` (an output), n its number of entries: root mean square 1.

    Inverse: W itself; a zero slice is refused.
    Cost:    one pass over the tensor.
    Source:  EDM2: Karras et al., 2023, arXiv:2312.02696. Its code adds 1e-4 to the root mean square, and multiplies by
             gain / sqrt(n) where the layer is applied; neither is part of the weight here.
    """

    is_projection = True
    whole = True

    @classmethod
    def threads_matter(cls, **arguments: Any) -> bool:
        return False

    @classmethod
    def by_rows(cls, shape: torch.Size, dim: int = 0) -> frozenset[str]:
        return frozenset({"original"} if is_row(shape, dim) else ())

    def __init__(self, dim: int = 0):
        super().__init__()
        self.dim = dim

    def map(self, X: Tensor) -> Tensor:
        return X / rms(X, self.dim)

    def inverse(self, W: Tensor) -> Tensor:
        refuse_zero(rms(W, self.dim), CannotReach, "is zero: mp_norm needs a direction")
        return W


class ToBall(Parametrization):
    r"""X to c tanh(||x|| / c) x / ||x|| for every vector x along `dim`: any length squashed below c.

    Inverse: c atanh(||w|| / c) w / ||w||.
    Cost:    one pass over the tensor.
    Source:  the exponential map of Poincare's ball at 0: Ganea, Becigneul and Hofmann, 2018, arXiv:1805.09112.
    """

    whole = True

    def __init__(self, dim: int | None = -1, c: float = 1.0):
        super().__init__()
        self.dim, self.c = dim, c

    def map(self, X: Tensor) -> Tensor:
        # Clamped so that a zero vector stays zero and has a gradient: tanh(x) / x is 1 there.
        sizes = norms(X, dims_along(X, self.dim)).clamp(min=1e-12) / self.c
        return X * (sizes.tanh() / sizes)

    def inverse(self, W: Tensor) -> Tensor:
        W = started(Ball(self.dim, self.c), W)
        sizes = norms(W, dims_along(W, self.dim)).clamp(min=1e-12) / self.c
        return W * (sizes.clamp(max=1 - eps(W.dtype)).atanh() / sizes)


class CutNorm(Parametrization):
    r"""X to x min(1, c / ||x||) for every vector x along `dim`: longer ones are cut to length c.

    Inverse: W itself.
    Cost:    one pass over the tensor.
    Source:  torch.renorm; Srivastava et al., 2014 (max-norm regularization, JMLR 15).
    """

    is_projection = True
    whole = True

    @classmethod
    def threads_matter(cls, **arguments: Any) -> bool:
        return False

    @classmethod
    def by_rows(cls, shape: torch.Size, dim: int | None = -1, c: float = 1.0) -> frozenset[str]:
        return frozenset({"original"} if within_row(shape, dim) else ())

    @classmethod
    def made_by_rows(cls, shape: torch.Size, **arguments: Any) -> bool:
        return True

    def __init__(self, dim: int | None = -1, c: float = 1.0):
        super().__init__()
        self.dim, self.c = dim, c

    def map(self, X: Tensor) -> Tensor:
        return cut(X, self.dim, self.c)
