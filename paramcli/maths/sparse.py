"""Structured sparsity: whole slices at zero, and N of every M."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputRefused
from .base import Constraint
from .facts import zeros_of
from .mask import StoredMask, prune_count
from .norm import check_dim
from .rows import within_row


def slice_norms(W: Tensor, dim: int, norm: float = 2.0) -> Tensor:
    """The Ln norm of each slice along `dim`."""
    return torch.linalg.vector_norm(W.movedim(dim, 0).reshape(W.size(dim), -1), ord=norm, dim=1)


def slice_mask(keep: Tensor, W: Tensor, dim: int) -> Tensor:
    """A mask of W's shape from one bool for each slice along `dim`."""
    shape = [1] * W.ndim
    shape[dim] = -1
    return keep.reshape(shape).expand(W.shape).contiguous()


def smallest_slices(W: Tensor, amount: float | int, dim: int, norm: float) -> Tensor:
    """False for the slices of smallest norm; ties by position."""
    keep = torch.ones(W.size(dim), dtype=torch.bool, device=W.device)
    keep[slice_norms(W, dim, norm).argsort(stable=True)[: prune_count(amount, W.size(dim))]] = False
    return keep


class StructuredSparse(Constraint):
    r"""{W : at least `amount` of the slices along `dim` are zero}; a whole number counts slices.

    Residual: max(0, wanted - zero slices) / slices. Nearest point: the slices of smallest length set to zero.
    """

    name = "structured_sparse"
    whole = True

    def __init__(self, amount: float | int, dim: int = 0):
        self.amount, self.dim = amount, dim

    def _zero_slices(self, W: Tensor) -> Tensor:
        return (slice_norms(W, self.dim, float("inf")) == 0).sum()

    def residual(self, W: Tensor) -> Tensor:
        slices = W.size(self.dim)
        return (prune_count(self.amount, slices) - self._zero_slices(W)).clamp(min=0).to(torch.float64) / max(slices, 1)

    def project(self, W: Tensor) -> Tensor:
        return W * slice_mask(smallest_slices(W, self.amount, self.dim, 2.0), W, self.dim)

    def detail(self, W: Tensor) -> str | None:
        return f"{int(self._zero_slices(W))} of {W.size(self.dim)} slices along dimension {self.dim} are zero"

    def check_shape(self, shape: torch.Size) -> None:
        if len(shape) < 2:
            raise InputRefused(f"{self.name} needs two dimensions or more; the tensor has {len(shape)}")
        check_dim(shape, self.dim, self.name)
        prune_count(self.amount, shape[self.dim])

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        filled = W.clone()
        filled[W == 0] = 1.0
        return {"zeros filled": filled} if prune_count(self.amount, W.size(self.dim)) else {}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        found: list[Constraint] = []
        for dim in (0, 1) if W.ndim > 1 else ():
            # A slice of zeros has one for its first entry.
            if not bool((W[tuple(slice(None) if place == dim else 0 for place in range(W.ndim))] == 0).any()):
                continue
            zero = int((slice_norms(W, dim, float("inf")) == 0).sum())
            found += [cls(zero, dim)] if zero else []
        return found


class NofM(Constraint):
    r"""{W : of every m entries in a row along `dim`, at most n are not zero}.

    Residual: the share of groups with more than n. Nearest point: the n largest of each group kept.
    """

    name = "nm"
    whole = True

    def __init__(self, n: int = 2, m: int = 4, dim: int = -1):
        self.n, self.m, self.dim = n, m, dim

    def by_rows(self, shape: torch.Size) -> bool:
        return within_row(shape, self.dim)

    def part(self, W: Tensor) -> Tensor:
        return ((_groups(W, self.m, self.dim) != 0).sum(-1) > self.n).sum()

    def joined(self, parts: Tensor, shape: torch.Size) -> Tensor:
        return parts.sum().to(torch.float64) / (math.prod(shape) // self.m)

    def residual(self, W: Tensor) -> Tensor:
        return self.joined(self.part(W), W.shape)

    def project(self, W: Tensor) -> Tensor:
        return W * largest_of_groups(W, self.n, self.m, self.dim)

    def detail(self, W: Tensor) -> str | None:
        counts = (_groups(W, self.m, self.dim) != 0).sum(-1)
        return f"{int((counts > self.n).sum())} of {counts.numel()} groups have more than {self.n} entries"

    def check_shape(self, shape: torch.Size) -> None:
        check_dim(shape, self.dim, self.name)
        if self.n > self.m:
            raise InputRefused(
                f"nm:n={self.n}:m={self.m} keeps more than there are in a group", hint="nm:n=2:m=4 keeps 2 of each 4"
            )
        if shape[self.dim] % self.m or not shape[self.dim]:
            raise InputRefused(
                f"nm needs groups of {self.m} along dimension {self.dim}, "
                f"whose size {shape[self.dim]} does not divide by it"
            )

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        first = W.movedim(self.dim, -1).clone()
        first[..., : self.m] += 1.5 * (first[..., : self.m] == 0)
        return (
            {"one group full": first.movedim(-1, self.dim), "no zeros": torch.ones_like(W)} if self.n < self.m else {}
        )

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        if W.ndim < 2 or not zeros_of(W):
            return []
        for n, m in ((1, 4), (2, 4), (4, 8)):
            if W.size(-1) % m == 0 and cls(n, m).residual(W) <= 0.05:
                return [cls(n, m)]
        return []


def _groups(W: Tensor, m: int, dim: int) -> Tensor:
    """(groups, m): runs of m entries along `dim`."""
    return W.movedim(dim, -1).reshape(-1, m)


def largest_of_groups(W: Tensor, n: int, m: int, dim: int) -> Tensor:
    """True at the n entries of largest magnitude of each m along `dim`; ties by position."""
    moved = W.movedim(dim, -1)
    order = moved.reshape(-1, m).abs().argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros(order.shape, dtype=torch.bool, device=W.device).scatter(-1, order[:, :n], True)
    return mask.reshape(moved.shape).movedim(-1, dim).contiguous()


class PruneStructured(StoredMask):
    """A mask that drops `amount` of the slices along `dim`: those of smallest Ln norm, or drawn by the seed.

    Cost: one pass.  Source: torch.nn.utils.prune.ln_structured and random_structured.
    """

    whole = True

    @classmethod
    def make(cls, value: Tensor, amount: float | int, n: str = "2", dim: int = 0) -> PruneStructured:
        if value.is_meta:
            return cls(torch.ones_like(value, dtype=torch.bool))
        if n == "random":
            keep = torch.ones(value.size(dim), dtype=torch.bool, device=value.device)
            # Drawn on the CPU so that every device gets the same mask from one seed.
            dropped = torch.randperm(value.size(dim), device="cpu")[: prune_count(amount, value.size(dim))]
            keep[dropped.to(value.device)] = False
        else:
            keep = smallest_slices(value, amount, dim, float(n))
        module = cls(slice_mask(keep, value, dim))
        module.random = n == "random"
        return module


class PruneNM(StoredMask):
    """A mask that keeps the n entries of largest magnitude of every m along `dim`.

    Cost: one sort of each group.  Source: Mishra et al. 2021, arXiv:2104.08378; the kernels of torch.sparse want 2 of
    4.
    """

    whole = True

    @classmethod
    def made_by_rows(cls, shape: torch.Size, n: int = 2, m: int = 4, dim: int = -1) -> bool:
        return within_row(shape, dim)

    @classmethod
    def make(cls, value: Tensor, n: int = 2, m: int = 4, dim: int = -1) -> PruneNM:
        return cls(
            value.new_empty(value.shape, dtype=torch.bool) if value.is_meta else largest_of_groups(value, n, m, dim)
        )
