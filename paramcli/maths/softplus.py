"""The inverse of softplus, and geotorch's softplus, which has a floor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..wording import given
from .base import CannotReach

# geotorch's softplus never gives less than this, so that no direction is lost.
SOFTPLUS_FLOOR = 1e-6


def inverse_softplus(y: Tensor) -> Tensor:
    """log(exp(y) - 1), written so that large y do not overflow and small ones keep their digits."""
    return y + torch.log(-torch.expm1(-y))


def floored_softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) + 1e-6."""
    return torch.nn.functional.softplus(x) + SOFTPLUS_FLOOR


def floored_softplus_inverse(y: Tensor, what: str, otherwise: str) -> Tensor:
    """x with softplus(x) + 1e-6 = y; raises CannotReach naming the value that is too small."""
    smallest = y.min().item() if y.numel() else 1.0
    if smallest <= SOFTPLUS_FLOOR:
        raise CannotReach(
            f"its softplus reaches {what} above {SOFTPLUS_FLOOR:g} only, and this tensor has {smallest:.3g}",
            hint=otherwise
            if smallest > 0
            else f"{given('init', 'project')} moves it to the nearest tensor that the chain reaches",
        )
    return inverse_softplus(y - SOFTPLUS_FLOOR)
