"""Adapters of PEFT that scale a weight's parts, change it by a low rank in other factors, or replace rows of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputRefused
from .adapters import LoRA, draw, factors, matrix_shape, require_matrix
from .base import Parametrization


class AdaLoRA(LoRA):
    r"""W0 to W0 + (alpha / rank) B diag(E) A: LoRA with its singular values apart.

    Inverse: W0 = W, B = 0, E = 1, A random.
    Cost:    one thin product.
    Source:  Zhang et al. 2023, arXiv:2303.10512; peft 0.21, tuners/adalora, which divides by rank + 1e-5: its reader
             puts that into alpha.
    """

    def __init__(self, A: Tensor, B: Tensor, E: Tensor, alpha: float):
        super().__init__(A, B, alpha)
        self.lora_E = nn.Parameter(E)

    @classmethod
    def make(cls, value: Tensor, rank: int, alpha: float = 1.0, rounds: str = "none") -> AdaLoRA:
        A, B = factors(value, rank)
        return cls(A, B, torch.ones(rank, 1, dtype=value.dtype, device=value.device), alpha)

    def change(self, X: Tensor) -> Tensor:
        A = self.lora_A.to(X.dtype) * self.lora_E.to(X.dtype)
        return (self.lora_B.to(X.dtype) @ A).view(X.shape) * self.scaling


class VeRA(Parametrization):
    r"""W0 to W0 + scale diag(b) B diag(d) A, with A and B drawn once for all weights, and b and d learned for each.

    A weight sees the first columns of A and the first rows of B; `inputs` and `outputs` are how many those have, where
    that is more than its own (0: as many).

    Inverse: W0 = W, b = 0, d = 1, A and B random.
    Cost:    one thin product.
    Source:  Kopiczko et al. 2023, arXiv:2310.11454; peft 0.21, tuners/vera.
    """

    whole = True
    vera_A: Tensor
    vera_B: Tensor

    def __init__(self, A: Tensor, B: Tensor, d: Tensor, b: Tensor, scale: float):
        super().__init__()
        self.register_buffer("vera_A", A)
        self.register_buffer("vera_B", B)
        self.vera_lambda_d, self.vera_lambda_b = nn.Parameter(d), nn.Parameter(b)
        self.scale = scale

    @classmethod
    def by_rows(cls, shape: torch.Size, rank: int, outputs: int = 0, **_: Any) -> frozenset[str]:
        """Rows of B are those of the weight where it has no others."""
        if outputs not in (0, shape[0]):
            return frozenset()
        return frozenset({"original", "vera_B", "vera_lambda_b"})

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        return False

    @classmethod
    def check_shape(cls, shape: torch.Size, rank: int, inputs: int = 0, outputs: int = 0, scale: float = 1.0) -> None:
        require_matrix(shape, "vera")
        out, rest = matrix_shape(shape)
        if (inputs and inputs < rest) or (outputs and outputs < out):
            raise InputRefused(f"vera:inputs={inputs}:outputs={outputs} has too few for {out}x{rest}")

    @classmethod
    def make(cls, value: Tensor, rank: int, inputs: int = 0, outputs: int = 0, scale: float = 1.0) -> VeRA:
        out, rest = matrix_shape(value.shape)
        A, B = value.new_empty(rank, inputs or rest), value.new_empty(outputs or out, rank)
        return cls(draw(A), draw(B), value.new_ones(rank), value.new_zeros(out), scale)

    def map(self, X: Tensor) -> Tensor:
        out, rest = matrix_shape(X.shape)
        A, B, d, b = (
            T.to(X.dtype) for T in (self.vera_A[:, :rest], self.vera_B[:out], self.vera_lambda_d, self.vera_lambda_b)
        )
        return X + ((b[:, None] * B) @ (d[:, None] * A)).view(X.shape) * self.scale

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.vera_lambda_b.zero_()
        return W


class PeftIA3(Parametrization):
    r"""W0 to diag(l) W0, or with axis=in to W0 diag(l): each output, or each input, times a number.

    `lycoris.ia3` has 1 + w in the place of l. With `groups` the inputs are those of a convolution in groups, whose
    weight holds only those of one group.

    Inverse: W0 = W, l = 1.
    Cost:    one pass.
    Source:  Liu et al. 2022, arXiv:2205.05638; peft 0.21, tuners/ia3.
    """

    whole = True

    def __init__(self, l: Tensor, axis: str, groups: int):
        super().__init__()
        self.ia3_l, self.axis, self.groups = nn.Parameter(l), axis, groups

    @classmethod
    def by_rows(cls, shape: torch.Size, axis: str = "out", groups: int = 1) -> frozenset[str]:
        if groups > 1:
            return frozenset()  # a row's numbers are those of its group
        return frozenset({"original"} if axis == "in" else {"original", "ia3_l"})

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        return False

    @classmethod
    def check_shape(cls, shape: torch.Size, axis: str = "out", groups: int = 1) -> None:
        if axis == "in":
            require_matrix(shape, "peft.ia3:axis=in")
            if shape[0] % groups:
                raise InputRefused(f"peft.ia3:groups={groups} does not divide the {shape[0]} outputs")
        elif groups > 1:
            raise InputRefused("peft.ia3:groups is of inputs: axis=in")

    @classmethod
    def make(cls, value: Tensor, axis: str = "out", groups: int = 1) -> PeftIA3:
        size = value.size(1) * groups if axis == "in" else value.size(0)
        return cls(value.new_ones((1, size) if axis == "in" else (size, 1)), axis, groups)

    def map(self, X: Tensor) -> Tensor:
        l = self.ia3_l.to(X.dtype)
        if self.axis == "out":
            return X * l.reshape(-1, *[1] * (X.ndim - 1))
        l = l.reshape(self.groups, 1, -1, *[1] * (X.ndim - 2))
        return (X.reshape(self.groups, -1, *X.shape[1:]) * l).reshape(X.shape)

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.ia3_l.fill_(1.0)
        return W


class SavedRows(Parametrization):
    r"""W0 with some of its rows replaced: row i is that of `saved_rows` which `which`[i] counts, its own where that is
    -1.

    Tokens that are trained alone, in an embedding that stays.

    Inverse: W0 = W, the first rows are saved as they are.
    Cost:    one pass.
    Source:  peft 0.21, tuners/trainable_tokens.
    """

    whole = True
    which: Tensor

    def __init__(self, rows: Tensor, which: Tensor):
        super().__init__()
        self.saved_rows = nn.Parameter(rows)
        self.register_buffer("which", which)

    @classmethod
    def by_rows(cls, shape: torch.Size, count: int) -> frozenset[str]:
        return frozenset({"original", "which"})

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        return False

    @classmethod
    def check_shape(cls, shape: torch.Size, count: int) -> None:
        if len(shape) and count > shape[0]:
            raise InputRefused(f"saved_rows:count={count} is more than the {shape[0]} rows of the tensor")

    @classmethod
    def make(cls, value: Tensor, count: int) -> SavedRows:
        which = torch.empty(value.size(0), dtype=torch.int64, device=value.device)
        if not value.is_meta:
            which.fill_(-1)[:count] = torch.arange(count, device=value.device)
        return cls(value[:count].clone(), which)

    def map(self, X: Tensor) -> Tensor:
        rows, which = self.saved_rows.to(X.dtype), self.which.long()
        if not which.is_meta and which.numel() and not -1 <= which.min() <= which.max() < len(rows):
            raise InputRefused(f"its rows are counted from 0 to {len(rows) - 1}, and -1 is none; it has others")
        if which.is_meta:
            return torch.empty_like(X)
        at = (which >= 0).nonzero().flatten()
        return X.index_copy(0, at, rows[which[at]])

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            chosen = self.which >= 0
            self.saved_rows[self.which[chosen]] = W[chosen].to(self.saved_rows.dtype)
        return W
