"""Pruning: a stored mask that keeps entries at zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import InputRefused
from ..text import shape_text
from .base import Check, Constraint, Parametrization
from .facts import zeros_of


def prune_count(amount: float | int, numel: int) -> int:
    """Entries to drop: a whole number is a count, a fraction a share of the tensor, as in torch's prune."""
    count = amount if isinstance(amount, int) else round(amount * numel)
    if not 0 <= count <= numel:
        raise InputRefused(f"cannot prune {count} of {numel} entries", hint="amount=0.5 prunes half of them")
    return count


class Sparse(Constraint):
    r"""{W : at least `amount` of the entries are exactly zero}; a whole number counts entries.

    Residual: max(0, wanted - zeros) / numel. Nearest point: the smallest entries set to zero.
    """

    name = "sparse"

    whole = True

    def __init__(self, amount: float | int):
        self.amount = amount

    def by_rows(self, shape: torch.Size) -> bool:
        return True

    def part(self, W: Tensor) -> Tensor:
        return (W == 0).sum()

    def joined(self, parts: Tensor, shape: torch.Size) -> Tensor:
        numel = math.prod(shape)
        return torch.tensor(
            max(0, prune_count(self.amount, numel) - int(parts.sum())) / max(numel, 1),
            dtype=torch.float64,
            device=parts.device,
        )

    def residual(self, W: Tensor) -> Tensor:
        return self.joined(self.part(W), W.shape)

    def project(self, W: Tensor) -> Tensor:
        return W * smallest_mask(W, self.amount)

    def detail(self, W: Tensor) -> str | None:
        return f"{int((W == 0).sum())} of {W.numel()} entries are zero"

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        first = (W == 0).reshape(-1).nonzero()[0]
        return {
            "one zero filled": W.reshape(-1).index_fill(0, first, 1.0).reshape(W.shape),
            "all ones": torch.ones_like(W),
        }

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        zeros = zeros_of(W)
        return [cls(zeros)] if zeros >= max(W.numel() // 10, 2) else []


def smallest_mask(W: Tensor, amount: float | int) -> Tensor:
    """False at the entries of smallest magnitude, ties by position."""
    count = prune_count(amount, W.numel())
    mask = torch.ones(W.numel(), dtype=torch.bool, device=W.device)
    order = W.abs().reshape(-1).argsort(stable=True)
    mask[order[:count]] = False
    return mask.reshape(W.shape)


class StoredMask(Parametrization):
    r"""X to X * mask, with the mask stored as a buffer (the tutorial keeps it as an attribute, which is not saved).

    A mask that comes from a file keeps its dtype; one made here is bool.

    Inverse: X itself: the pruned entries keep their old values underneath until they are baked.
    Cost:    one pass over the tensor.
    Source:  PyTorch's Parametrizations Tutorial; torch.nn.utils.prune.
    """

    is_projection = True
    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    @classmethod
    def threads_matter(cls, **arguments: Any) -> bool:
        return False

    @classmethod
    def by_rows(cls, shape: torch.Size, **arguments: Any) -> frozenset[str]:
        return frozenset({"original", "mask"})

    @classmethod
    def made_by_rows(cls, shape: torch.Size, *_: Any, **arguments: Any) -> bool:
        # Masks that count or draw entries look at the whole tensor.
        return not cls.whole

    def map(self, X: Tensor) -> Tensor:
        return X * self.mask

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        count = int((value[self.mask == 0] != 0).sum())
        return [
            Check("mask", count / max(value.numel(), 1), 0.0, f"{count} entries outside the mask" if count else None)
        ]


class Mask(StoredMask):
    """A mask from a file, or the one of the zeros that the weight has."""

    @classmethod
    def make(cls, value: Tensor, mask: Tensor | None = None) -> Mask:
        """The mask that is given (an entry stays where it is not 0), or the one that keeps today's zeros at zero."""
        if mask is None:
            return cls(value.new_empty(value.shape, dtype=torch.bool) if value.is_meta else value != 0)
        if mask.shape != value.shape:
            raise InputRefused(f"the mask is {shape_text(mask.shape)}, and the tensor is {shape_text(value.shape)}")
        return cls((mask != 0).to(value.device))


class PruneRandom(StoredMask):
    """A mask that drops `amount` of the entries, drawn without replacement by the seed."""

    random = True
    whole = True

    @classmethod
    def make(cls, value: Tensor, amount: float | int) -> PruneRandom:
        mask = torch.ones(value.numel(), dtype=torch.bool, device=value.device)
        if not value.is_meta:
            # Drawn on the CPU so that every device gets the same mask from one seed.
            dropped = torch.randperm(value.numel(), device="cpu")[: prune_count(amount, value.numel())]
            mask[dropped.to(value.device)] = False
        return cls(mask.reshape(value.shape))


class PruneL1(StoredMask):
    """A mask that drops the `amount` of entries of smallest magnitude."""

    whole = True

    @classmethod
    def make(cls, value: Tensor, amount: float | int, scope: str = "tensor") -> PruneL1:
        """`scope` is for those who choose the tensors (surgery.allocate): one tensor alone is all there is."""
        return cls(value.new_empty(value.shape, dtype=torch.bool) if value.is_meta else smallest_mask(value, amount))
