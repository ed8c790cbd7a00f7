"""Means, sums and standard deviations: vectors of a given sum, standardized slices."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import (
    FARTHER,
    CannotReach,
    Constraint,
    Parametrization,
    Part,
    Singular,
    first_along,
    first_of_batch,
    is_near,
)
from .bounded import (
    check_slices,
    dims_along,
    dims_within,
    length_along,
    norm_tolerance,
    norms,
    one_slice,
    refuse_zero,
    worst,
)
from .norm import check_dim
from .numbers import SMALL, eps, norm, ratio, smallest, unit_roundoff

# Roundings that a sum of stored entries may be off by, in units of u ||x||, and those of computing it, of u sqrt(n)
# ||x||.
SUM_ROUNDED, SUM_COMPUTED = 4.0, 1.0


def lost_below(W: Tensor, dims: tuple[int, ...], stored: torch.dtype) -> Tensor:
    """How far sums along `dims` may be off because entries are below the normal numbers of `stored`."""
    below = (W != 0) & (W.abs() < torch.finfo(stored).smallest_normal)
    return below.sum(dim=dims, keepdim=True) * (smallest(stored) / 2)


def shifted_to(X: Tensor, dim: int | None, c: float) -> Tensor:
    """X with a constant added to every vector along `dim` so that it sums to c."""
    dims = dims_along(X, dim)
    n = X.numel() if dim is None else X.size(dim)
    centered = X - X.mean(dim=dims, keepdim=True)
    # Twice: the first mean of large entries is rounded to their size, the second to what is left.
    return centered - centered.mean(dim=dims, keepdim=True) + c / n


def rounded_to_sum(X: Tensor, dim: int | None, c: float, stored: torch.dtype) -> Tensor:
    """X, whose vectors along `dim` sum to c, with entries of `stored` and the sums kept: off by no more than one step
    of one entry.

    Numbers of few digits less one mean are all rounded the same way. Of each vector those entries are rounded to their
    other neighbour for which that costs the least distance for what it gives the sum, as many as it takes.
    """
    along = X.reshape(1, -1) if dim is None else X.movedim(dim, -1)
    Y = along.to(stored).to(X.dtype)
    lacking = c - Y.sum(-1, keepdim=True)
    step = torch.ldexp(torch.full_like(Y, eps(stored) / 2), torch.frexp(Y).exponent)
    step = torch.where(Y == 0, torch.zeros_like(step), step).clamp(min=smallest(stored))
    beyond = (Y - along) * lacking.sign()
    # What it costs in squared distance for what it gives; those already rounded this way are not needed.
    cost = torch.where(beyond < 0, step + 2 * beyond, torch.inf)
    order = cost.argsort(dim=-1, stable=True)
    turned = (step.gather(-1, order).cumsum(-1) <= lacking.abs()).to(X.dtype)
    Y = Y + lacking.sign() * step * torch.zeros_like(Y).scatter(-1, order, turned)
    return Y.reshape(X.shape) if dim is None else Y.movedim(-1, dim)


class SumTo(Constraint):
    r"""{W : every vector along `dim` sums to c}. Nearest point: x - (sum - c) / n.

    Residual: |sum - c| / (||x|| + |c|).
    Tolerance: entries x_i (1 + d_i) with |d_i| <= u = eps / 2 change the sum by sum x_i d_i. Of entries of one sign
    that is at most u |c|. Of others the d_i are as good as independent, with a root mean square of 0.4 u, so it is
    about 0.4 u ||x||, and 4 u is ten times that: not once in all the vectors of all files. It must not be more: u sum
    |x_i|, which errors that conspire could reach, is u sqrt(n) ||x||, and lets entries of size 1 sum to 2 in place of
    1. Entries below the normal numbers of `stored` are off by up to half of its smallest number each, which is taken
    off. Of half types no more is explained than half a step of each entry makes together: less than 4 u ||x|| of few.
    """

    name = "sum_to"
    whole = True

    def __init__(self, dim: int | None = -1, c: float = 0.0):
        self.dim, self.c = dim, c

    def check_shape(self, shape: torch.Size) -> None:
        check_dim(shape, self.dim, self.name)

    def errors(self, W: Tensor, stored: torch.dtype = torch.float64) -> Tensor:
        dims = dims_along(W, self.dim)
        off = ((W.sum(dim=dims, keepdim=True) - self.c).abs() - lost_below(W, dims, stored)).clamp(min=0)
        return ratio(off, norm(W, dims, keepdim=True) + abs(self.c))

    def residual(self, W: Tensor) -> Tensor:
        return self.errors(W).amax()

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return SUM_ROUNDED * unit_roundoff(stored) + SUM_COMPUTED * length_along(
            shape, self.dim
        ) ** 0.5 * unit_roundoff(computed)

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        found = Part("", self.errors(W, stored).amax(), self.tolerance(W.shape, stored, computed))
        return [found] if eps(stored) <= eps(torch.float32) else [found, self._beyond(W, stored, computed)]

    def _beyond(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> Part:
        """What of an error is left when every entry of a half type was rounded by half a step, all of them one way: few
        entries cannot be off as far as ||x|| allows.
        """
        dims = dims_along(W, self.dim)
        size = norm(W, dims, keepdim=True) + abs(self.c)
        step = torch.ldexp(torch.full_like(W.real, eps(stored) / 2), torch.frexp(W.abs()).exponent)
        explained = (step.clamp(min=smallest(stored)) / 2).sum(dim=dims, keepdim=True)
        made = SUM_COMPUTED * length_along(W.shape, self.dim) ** 0.5 * unit_roundoff(computed) * size
        off = (W.sum(dim=dims, keepdim=True) - self.c).abs()
        return Part("", ratio((off - explained - made).clamp(min=0), size).amax(), 0.0)

    def project(self, W: Tensor) -> Tensor:
        return shifted_to(W, self.dim, self.c)

    def detail(self, W: Tensor) -> str | None:
        return worst(W.sum(dim=dims_along(W, self.dim), keepdim=True).real, self.errors(W), "sum")

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        size = torch.linalg.vector_norm(W) / W.numel() ** 0.5 + 1
        off = W.clone()
        off.view(-1)[-1] += size * W.numel() ** 0.5
        return {"shifted": W + 0.2 * size, "one entry": off}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        # A random vector has a residual about 1: far less than that is no accident.
        found = [cls(dim) for dim in (-1, -2) if W.ndim >= -dim and W.size(dim) > 2]
        return [c for c in found if not c._is_far(first_along(W, c.dim)) and is_near(c, W, first_of_batch(W))]

    def _is_far(self, x: Tensor) -> bool:
        """Of one vector, where its size is in range: quicker than its residual, and not as close."""
        size = torch.linalg.vector_norm(x).item()
        return size > SMALL and abs(x.sum().item() - self.c) > FARTHER * (size + abs(self.c))


class Standardized(Constraint):
    r"""{W : every slice of `dim` has mean 0 and standard deviation 1 (of its entries: the sum is divided by n)}.

    Residual: max |mean| and max |std - 1|. Nearest point: (x - mean) / std.
    Tolerance: entries x_i (1 + d_i) with |d_i| <= u change the mean by at most u times the mean |x_i|, which is 1 or
    less, and the deviation, a norm, by at most u (`norm_tolerance`), whatever the number of entries.
    """

    name = "standardized"
    whole = True

    def __init__(self, dim: int = 0):
        self.dim = dim

    def check_shape(self, shape: torch.Size) -> None:
        check_slices(shape, self.dim, self.name)

    def errors(self, W: Tensor) -> Tensor:
        mean, std = moments(W, self.dim)
        return torch.maximum(mean.abs(), (std - 1).abs())

    def residual(self, W: Tensor) -> Tensor:
        return self.errors(W).amax()

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return norm_tolerance(shape.numel() // max(shape[self.dim], 1), stored, computed)

    def project(self, W: Tensor) -> Tensor:
        mean, std = moments(W, self.dim)
        refuse_zero(deviation(W, std, self.dim), Singular, "is constant: every standardized one is as near")
        return (W - mean) / std

    def detail(self, W: Tensor) -> str | None:
        mean, std = moments(W, self.dim)
        return f"{worst(mean, self.errors(W), 'mean')}, {worst(std, self.errors(W), 'standard deviation')}"

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        slices = self.errors(W)
        return {
            "times 1.05": 1.05 * W,
            "shifted by 0.05": W + 0.05,
            "zero": 0 * W,
            "one slice times 1.05": one_slice(W, slices),
        }

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()] if W.ndim > 1 and W[0].numel() > 1 and is_near(cls(), W, W[:1]) else []


def moments(X: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    dims = dims_within(X, dim)
    mean = X.mean(dim=dims, keepdim=True)
    return mean, norms(X - mean, dims) * (X.size(dim) / X.numel()) ** 0.5


def deviation(W: Tensor, std: Tensor, dim: int) -> Tensor:
    """Standard deviations, with those that are rounding of the largest entry of their slice set to zero."""
    return torch.where(std > 1e-12 * W.abs().amax(dims_within(W, dim), keepdim=True), std, torch.zeros_like(std))


class ToSum(Parametrization):
    r"""X to x - (sum(x) - c) / n for every vector x along `dim`: vectors that sum to c.

    Inverse: W itself. In half types, where the value rounded once more would not sum to c: that value with entries
    rounded so
             that it does (`rounded_to_sum`), which the map keeps.
    Cost:    two passes over the tensor, and a sort for such vectors.
    Source:  the orthogonal projection onto a hyperplane.
    """

    is_projection = True
    whole = True

    def __init__(self, dim: int | None = -1, c: float = 0.0):
        super().__init__()
        self.dim, self.c = dim, c

    def map(self, X: Tensor) -> Tensor:
        return shifted_to(X, self.dim, self.c)

    def inverse(self, W: Tensor) -> Tensor:
        if self.stored is None or eps(self.stored) <= eps(torch.float32):
            return W
        point, sums = shifted_to(W, self.dim, self.c), SumTo(self.dim, self.c)
        off = (
            sums.errors(point.to(self.stored).to(W.dtype), self.stored)
            > sums.tolerance(W.shape, self.stored, torch.float32) / 2
        )
        return torch.where(off, rounded_to_sum(point, self.dim, self.c, self.stored), W) if off.any() else W


class WeightStandardization(Parametrization):
    r"""X to (x - mean(x)) / std(x) for every slice x of `dim` (an output); the sum of squares is divided by n.

    Inverse: W itself; a constant slice is refused.
    Cost:    two passes over the tensor.
    Source:  Qiao et al., 2019, arXiv:1903.10520. Implementations add a small eps to std, which this law leaves out:
             with it no value has deviation 1.
    """

    is_projection = True
    whole = True

    def __init__(self, dim: int = 0):
        super().__init__()
        self.dim = dim

    def map(self, X: Tensor) -> Tensor:
        mean, std = moments(X, self.dim)
        return (X - mean) / std

    def inverse(self, W: Tensor) -> Tensor:
        std = deviation(W, moments(W, self.dim)[1], self.dim)
        refuse_zero(std, CannotReach, "is constant: weight_std divides by its deviation")
        return W
