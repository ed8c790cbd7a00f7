"""Adapters of PEFT that add a change to a weight, each made of few numbers in a way of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputRefused
from .adapters import draw, matrix_shape, require_matrix
from .base import Parametrization


class Added(Parametrization):
    """W0 to W0 + scale times a change, which is none when the tensors named in `zero` are."""

    whole = True
    zero: tuple[str, ...] = ()
    scale = 1.0

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        return False

    def change(self, X: Tensor) -> Tensor:
        raise NotImplementedError

    def map(self, X: Tensor) -> Tensor:
        change: Tensor = self.change(X).reshape(X.shape)
        return X + (change if self.scale == 1 else change * self.scale)

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            for name in self.zero:
                getattr(self, name).zero_()
        return W


def drawn(value: Tensor, *shape: int) -> Tensor:
    """A random start of this shape, as of LoRA's A."""
    made = value.new_empty(shape)
    draw(made.view(shape[0], math.prod(shape[1:])))
    return made


class DeLoRA(Added):
    r"""W0 to W0 + scale lambda / rank sum_i B_i A_i^T / (||B_i|| ||A_i||) diag(n): directions of length 1, and one
    number for the length of the change; n are the lengths of the weight's columns when training began.

    Lengths below 1e-4 count as that.

    Inverse: W0 = W, B = 0, lambda = 1, A random, n of W.
    Cost:    one thin product.
    Source:  Bini et al. 2025, arXiv:2503.18225; peft 0.21, tuners/delora.
    """

    zero = ("delora_B",)
    delora_w_norm: Tensor

    def __init__(self, A: Tensor, B: Tensor, length: Tensor, norm: Tensor, scale: float):
        super().__init__()
        self.delora_A, self.delora_B = nn.Parameter(A), nn.Parameter(B)
        self.delora_lambda, self.scale = nn.Parameter(length), scale
        self.register_buffer("delora_w_norm", norm)

    @classmethod
    def check_shape(cls, shape: torch.Size, *_: Any, **arguments: Any) -> None:
        require_matrix(shape, "delora")

    @classmethod
    def make(cls, value: Tensor, rank: int, scale: float = 1.0) -> DeLoRA:
        out, rest = matrix_shape(value.shape)
        norm = value.new_empty(rest) if value.is_meta else torch.linalg.vector_norm(value.flatten(1), dim=0)
        return cls(drawn(value, rank, rest), value.new_zeros(out, rank), value.new_ones(1), norm, scale)

    def change(self, X: Tensor) -> Tensor:
        A, B = self.delora_A.to(X.dtype), self.delora_B.to(X.dtype)
        lengths = A.norm(dim=1).clamp(min=1e-4) * B.norm(dim=0).clamp(min=1e-4)
        factors = self.delora_lambda.to(X.dtype) / A.size(0) / lengths
        return (B * factors) @ A * self.delora_w_norm.to(X.dtype)


class GraLoRA(Added):
    r"""W0 to W0 + scale (change by blocks + B_general A_general): LoRA in `blocks` x `blocks` blocks of the weight.

    Block (m, n) of the change is the transpose of A_n's columns m times B_m's rows n, rank / blocks of them each.

    Inverse: W0 = W, B = 0, B_general = 0, A and A_general random.
    Cost:    one thin product.
    Source:  Jung et al. 2025, arXiv:2505.20355; peft 0.21, tuners/gralora.
    """

    def __init__(self, A: Tensor, B: Tensor, general: tuple[Tensor, Tensor] | None, scale: float):
        super().__init__()
        self.gralora_A, self.gralora_B, self.scale = nn.Parameter(A), nn.Parameter(B), scale
        self.zero = ("gralora_B", "gralora_B_general") if general else ("gralora_B",)
        if general:
            self.gralora_A_general, self.gralora_B_general = map(nn.Parameter, general)

    @classmethod
    def check_shape(cls, shape: torch.Size, rank: int, blocks: int = 2, **_: Any) -> None:
        require_matrix(shape, "gralora")
        out, rest = matrix_shape(shape)
        if out % blocks or rest % blocks or rank % blocks:
            raise InputRefused(f"gralora:rank={rank}:blocks={blocks} divides not all of {out}x{rest} and {rank}")

    @classmethod
    def make(cls, value: Tensor, rank: int, blocks: int = 2, hybrid: int = 0, scale: float = 1.0) -> GraLoRA:
        out, rest = matrix_shape(value.shape)
        general = (drawn(value, hybrid, rest), value.new_zeros(out, hybrid)) if hybrid else None
        A, B = drawn(value, blocks, rest // blocks, rank), value.new_zeros(blocks, rank, out // blocks)
        return cls(A, B, general, scale)

    def change(self, X: Tensor) -> Tensor:
        A, B = self.gralora_A.to(X.dtype), self.gralora_B.to(X.dtype)
        blocks = A.size(0)
        A, B = A.reshape(*A.shape[:2], blocks, -1), B.reshape(blocks, blocks, -1, B.size(2))
        change = torch.einsum("nimq,mnqo->moni", A, B).reshape(matrix_shape(X.shape))
        if len(self.zero) > 1:
            change = change + self.gralora_B_general.to(X.dtype) @ self.gralora_A_general.to(X.dtype)
        return change


class C3A(Added):
    r"""W0 to W0 + (scale / inputs) times a matrix of circulant blocks: entry (k, j) of a block is its kernel's at
    (j - k) modulo `size`.

    Inverse: W0 = W, kernels of zeros.
    Cost:    one pass.
    Source:  Chen et al. 2024, arXiv:2407.19342; peft 0.21, tuners/c3a, by Fourier transforms.
    """

    zero = ("c3a_kernel",)

    def __init__(self, kernel: Tensor, scale: float):
        super().__init__()
        self.c3a_kernel, self.scale = nn.Parameter(kernel), scale

    @classmethod
    def check_shape(cls, shape: torch.Size, size: int, **_: Any) -> None:
        require_matrix(shape, "c3a")
        if any(side % size for side in matrix_shape(shape)):
            raise InputRefused(f"c3a:size={size} does not divide both sides of {'x'.join(map(str, shape))}")

    @classmethod
    def make(cls, value: Tensor, size: int, scale: float = 1.0) -> C3A:
        out, rest = matrix_shape(value.shape)
        return cls(value.new_zeros(out // size, rest // size, size), scale)

    def change(self, X: Tensor) -> Tensor:
        kernel, size = self.c3a_kernel.to(X.dtype), self.c3a_kernel.size(2)
        place = torch.arange(size, device=X.device)
        blocks = kernel[:, :, (place - place[:, None]) % size]
        return blocks.permute(0, 2, 1, 3) / (kernel.size(1) * size)


class HiRA(Added):
    r"""W0 to W0 + scale W0 * (B A), entry by entry: a change of high rank, in proportion to the weight.

    Inverse: W0 = W, B = 0, A random.
    Cost:    one thin product.
    Source:  Huang et al. 2025 (ICLR); peft 0.21, tuners/hira.
    """

    zero = ("hira_B",)

    def __init__(self, A: Tensor, B: Tensor, scale: float):
        super().__init__()
        self.hira_A, self.hira_B, self.scale = nn.Parameter(A), nn.Parameter(B), scale

    @classmethod
    def by_rows(cls, shape: torch.Size, *_: Any, **arguments: Any) -> frozenset[str]:
        return frozenset({"original", "hira_B"})

    @classmethod
    def check_shape(cls, shape: torch.Size, *_: Any, **arguments: Any) -> None:
        require_matrix(shape, "hira")

    @classmethod
    def make(cls, value: Tensor, rank: int, scale: float = 1.0) -> HiRA:
        out, rest = matrix_shape(value.shape)
        return cls(drawn(value, rank, rest), value.new_zeros(out, rank), scale)

    def change(self, X: Tensor) -> Tensor:
        return X * (self.hira_B.to(X.dtype) @ self.hira_A.to(X.dtype)).view(X.shape)


class VBLoRA(Added):
    r"""W0 to W0 + scale B A, whose pieces are sums of vectors that all weights share: of each piece the `top` largest
    logits choose the vectors, and their softmax the shares.

    Inverse: W0 = W, vectors of zeros, logits random.
    Cost:    one thin product.
    Source:  Li et al. 2024, arXiv:2405.15179; peft 0.21, tuners/vblora.
    """

    zero = ("vblora_vector_bank",)

    def __init__(self, A: Tensor, B: Tensor, bank: Tensor, top: int, scale: float):
        super().__init__()
        self.vblora_logits_A, self.vblora_logits_B = nn.Parameter(A), nn.Parameter(B)
        self.vblora_vector_bank, self.top, self.scale = nn.Parameter(bank), top, scale

    @classmethod
    def check_shape(cls, shape: torch.Size, length: int, vectors: int, top: int = 2, **_: Any) -> None:
        require_matrix(shape, "vblora")
        if any(side % length for side in matrix_shape(shape)) or top > vectors:
            raise InputRefused(
                f"vblora:length={length} does not divide both sides of {'x'.join(map(str, shape))}, or top={top} is "
                f"more than vectors={vectors}"
            )

    @classmethod
    def make(cls, value: Tensor, rank: int, vectors: int, length: int, top: int = 2, scale: float = 1.0) -> VBLoRA:
        out, rest = matrix_shape(value.shape)
        A, B = drawn(value, rank, rest // length, vectors), drawn(value, out // length, rank, vectors)
        return cls(A, B, value.new_zeros(vectors, length), top, scale)

    def pieces(self, logits: Tensor, bank: Tensor) -> Tensor:
        largest, which = logits.to(bank.dtype).topk(self.top, dim=-1)
        return (largest.softmax(-1).unsqueeze(-1) * bank[which]).sum(-2)

    def change(self, X: Tensor) -> Tensor:
        bank, rank = self.vblora_vector_bank.to(X.dtype), self.vblora_logits_A.size(0)
        A = self.pieces(self.vblora_logits_A, bank).reshape(rank, -1)
        B = self.pieces(self.vblora_logits_B, bank).transpose(1, 2).reshape(-1, rank)
        return B @ A


class SHiRA(Added):
    r"""W0 to W0 + scale times a sparse matrix, with its entries at stored places.

    Inverse: W0 = W, entries of zeros at the first places.
    Cost:    one pass.
    Source:  Bhardwaj et al. 2024, arXiv:2406.13175; peft 0.21, tuners/shira.
    """

    zero = ("shira_weight",)
    shira_indices: Tensor

    def __init__(self, entries: Tensor, places: Tensor, scale: float):
        super().__init__()
        self.shira_weight, self.scale = nn.Parameter(entries), scale
        self.register_buffer("shira_indices", places)

    @classmethod
    def check_shape(cls, shape: torch.Size, count: int, **_: Any) -> None:
        require_matrix(shape, "shira")
        if count > math.prod(shape):
            raise InputRefused(f"shira:count={count} is more than {'x'.join(map(str, shape))} has entries")

    @classmethod
    def make(cls, value: Tensor, count: int, scale: float = 1.0) -> SHiRA:
        places = torch.empty(2, count, dtype=torch.int32, device=value.device)
        if not value.is_meta:
            numbers, rest = torch.arange(count, device=value.device), max(matrix_shape(value.shape)[1], 1)
            places[0], places[1] = numbers // rest, numbers % rest
        return cls(value.new_zeros(count), places, scale)

    def change(self, X: Tensor) -> Tensor:
        out, rest = matrix_shape(X.shape)
        row, column = self.shira_indices.long()
        if not row.is_meta and row.numel():
            inside = (row >= 0) & (row < out) & (column >= 0) & (column < rest)
            if not bool(inside.all()):
                raise InputRefused(f"its places are those of another weight than one of {out}x{rest}")
        change = X.new_zeros(out, rest)
        return change.index_put((row, column), self.shira_weight.to(X.dtype), accumulate=True)


class MiSS(Added):
    r"""W0 to W0 + scale times a block that is repeated along the inputs.

    plain: D of (rank, out), column j of the change is row j modulo rank of D. mini: D of (rank, outputs), repeated
    along the outputs too. bat: D_o of (rank, rank) for each rank outputs, and block (o, i) of the weight changes by
    W_oi D_o + D_o.

    Inverse: W0 = W, D = 0.
    Cost:    one pass; of bat one thin product.
    Source:  Kang and Yin 2024, arXiv:2409.15371; peft 0.21, tuners/miss.
    """

    zero = ("miss_block",)

    def __init__(self, block: Tensor, scale: float):
        super().__init__()
        self.miss_block, self.scale = nn.Parameter(block), scale

    @classmethod
    def check_shape(
        cls, shape: torch.Size, rank: int, kind: str = "plain", outputs: int = 0, scale: float = 1.0
    ) -> None:
        require_matrix(shape, "miss")
        out, rest = matrix_shape(shape)
        if kind == "bat" and (out % rank or rest % rank):
            raise InputRefused(f"miss:rank={rank}:kind=bat does not divide both sides of {out}x{rest}")
        if kind == "mini" and (not outputs or out % outputs):
            raise InputRefused(f"miss:kind=mini:outputs={outputs} does not divide the {out} outputs")
        if rank > rest:
            raise InputRefused(f"miss:rank={rank} is more than the {rest} inputs")

    @classmethod
    def make(cls, value: Tensor, rank: int, kind: str = "plain", outputs: int = 0, scale: float = 1.0) -> MiSS:
        out = value.size(0)
        shape = (out // rank, rank, rank) if kind == "bat" else (rank, outputs if kind == "mini" else out)
        return cls(value.new_zeros(shape), scale)

    def change(self, X: Tensor) -> Tensor:
        D, (out, rest) = self.miss_block.to(X.dtype), matrix_shape(X.shape)
        if D.ndim == 3:
            rank = D.size(2)
            W = X.reshape(out // rank, rank, rest // rank, rank).permute(2, 0, 1, 3)
            return (W @ D + D).permute(1, 2, 0, 3)
        D = D.repeat(1, out // D.size(1)).T
        return D.repeat(1, math.ceil(rest / D.size(1)))[:, :rest]
