"""Means, sums and standard deviations: vectors of a given sum, standardized slices."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import CannotReach, Constraint, Parametrization, Singular
from .bounded import check_slices, dims_along, dims_within, one_slice, refuse_zero, worst
from .norm import check_dim


def shifted_to(X: Tensor, dim: int | None, c: float) -> Tensor:
    """X with a constant added to every vector along `dim` so that it sums to c."""
    dims = dims_along(X, dim)
    n = X.numel() if dim is None else X.size(dim)
    centered = X - X.mean(dim=dims, keepdim=True)
    # Twice: the first mean of large entries is rounded to their size, the second to what is left.
    return centered - centered.mean(dim=dims, keepdim=True) + c / n


class SumTo(Constraint):
    r"""{W : every vector along `dim` sums to c}. Nearest point: x - (sum - c) / n.

    Residual: |sum - c| / (sqrt(n) ||x|| + |c|), the denominator what the sum could be.
    """

    name = "sum_to"
    whole = True

    def __init__(self, dim: int | None = -1, c: float = 0.0):
        self.dim, self.c = dim, c

    def check_shape(self, shape: torch.Size) -> None:
        check_dim(shape, self.dim, self.name)

    def errors(self, W: Tensor) -> Tensor:
        dims = dims_along(W, self.dim)
        n = W.numel() if self.dim is None else W.size(self.dim)
        off = (W.sum(dim=dims, keepdim=True) - self.c).abs()
        size = n**0.5 * torch.linalg.vector_norm(W, dim=dims, keepdim=True) + abs(self.c)
        return torch.where(off == 0, off, off / size)

    def residual(self, W: Tensor) -> Tensor:
        return self.errors(W).amax()

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
    def candidates(cls, W: Tensor) -> list[Constraint]:
        # A random vector of n entries has a residual about 1 / sqrt(n): far less than that is no accident.
        found = [cls(dim) for dim in (-1, -2) if W.ndim >= -dim and W.size(dim) > 2]
        return [c for c in found if bool(c.residual(W) < 0.05 / W.size(c.dim) ** 0.5)]


class Standardized(Constraint):
    r"""{W : every slice of `dim` has mean 0 and standard deviation 1 (of its entries: the sum is divided by n)}.

    Residual: max |mean| + |std - 1|. Nearest point: (x - mean) / std.
    """

    name = "standardized"
    whole = True

    def __init__(self, dim: int = 0):
        self.dim = dim

    def check_shape(self, shape: torch.Size) -> None:
        check_slices(shape, self.dim, self.name)

    def errors(self, W: Tensor) -> Tensor:
        mean, std = moments(W, self.dim)
        return mean.abs() + (std - 1).abs()

    def residual(self, W: Tensor) -> Tensor:
        return self.errors(W).amax()

    def project(self, W: Tensor) -> Tensor:
        mean, std = moments(W, self.dim)
        refuse_zero(deviation(W, std), Singular, "is constant: every standardized one is as near")
        return (W - mean) / std

    def detail(self, W: Tensor) -> str | None:
        mean, std = moments(W, self.dim)
        return f"{worst(mean, self.errors(W), 'mean')}, {worst(std, self.errors(W), 'standard deviation')}"

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        slices = self.errors(W)
        return {"times 1.05": 1.05 * W, "shifted by 0.05": W + 0.05, "zero": 0 * W, "one slice times 1.05": one_slice(W, slices)}

    @classmethod
    def candidates(cls, W: Tensor) -> list[Constraint]:
        return [cls()] if W.ndim > 1 and W[0].numel() > 1 and bool(cls().residual(W) < 0.05) else []


def moments(X: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    dims = dims_within(X, dim)
    mean = X.mean(dim=dims, keepdim=True)
    return mean, torch.linalg.vector_norm(X - mean, dim=dims, keepdim=True) * (X.size(dim) / X.numel()) ** 0.5


def deviation(W: Tensor, std: Tensor) -> Tensor:
    """Standard deviations, with those that are rounding of the largest entry set to zero."""
    return torch.where(std > 1e-12 * W.abs().amax(), std, torch.zeros_like(std))


class ToSum(Parametrization):
    r"""X to x - (sum(x) - c) / n for every vector x along `dim`: vectors that sum to c.

    Inverse: W itself.
    Cost:    two passes over the tensor.
    Source:  the orthogonal projection onto a hyperplane.
    """

    is_projection = True
    whole = True

    def __init__(self, dim: int | None = -1, c: float = 0.0):
        super().__init__()
        self.dim, self.c = dim, c

    def map(self, X: Tensor) -> Tensor:
        return shifted_to(X, self.dim, self.c)


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
        refuse_zero(deviation(W, moments(W, self.dim)[1]), CannotReach, "is constant: weight_std divides by its deviation")
        return W
