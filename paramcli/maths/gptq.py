"""Weights whose transpose is stored, in integers that are packed in words: GPTQ and AWQ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputRefused
from .decoders import Decoder
from .packed import packed, unpacked, values_in
from .rows import Share


class Transposed(Decoder):
    """W_ij = (code_ji - zero_gi) scale_gi, where g is the group of input j: j // group, or as g_idx says."""

    codes = torch.int32
    bits: int

    def __init__(self, scale: Tensor, zeros: Tensor, g_idx: Tensor | None, group: int | None):
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.register_buffer("zeros", zeros)
        self.register_buffer("g_idx", g_idx)
        self.group = group

    zeros: Tensor
    g_idx: Tensor | None

    def values(self, words: Tensor) -> Tensor:
        """The codes (out, in) of what is stored, as new numbers that may be computed with."""
        raise NotImplementedError

    def pack(self, codes: Tensor) -> Tensor:
        raise NotImplementedError

    def zero_points(self) -> Tensor:
        """(out, groups)"""
        raise NotImplementedError

    def map(self, words: Tensor) -> Tensor:
        values = self.values(words)
        groups = self._groups(values.size(1))
        self._with("sub_", values, self.zero_points().to(values.dtype), groups)
        return self._with("mul_", values, self.scale.mT, groups)

    def inverse(self, W: Tensor) -> Tensor:
        groups = self._groups(W.size(1))
        values = self._with("div_", W.clone(), self.scale.mT.to(W.dtype), groups).nan_to_num_(0).round_()
        self._with("add_", values, self.zero_points().to(W.dtype), groups)
        return self.pack(values.clamp_(0, (1 << self.bits) - 1))

    def _groups(self, inputs: int) -> Tensor | None:
        """The group of each input; None where they are in order, as many inputs each."""
        count = self.scale.size(0)
        if self.g_idx is None:
            each = self.group or inputs
            return None if inputs == count * each else torch.arange(inputs, device=self.scale.device) // each
        if not bool(((self.g_idx >= 0) & (self.g_idx < count)).all()):
            raise InputRefused(
                f"its g_idx names groups that are not there: there are {count}",
                hint="the file is damaged, or incomplete",
            )
        if count == 0 or inputs % count:
            return self.g_idx
        order = torch.arange(inputs, device=self.g_idx.device) // (inputs // count)
        return None if torch.equal(self.g_idx.long(), order) else self.g_idx

    @staticmethod
    def _with(do: str, values: Tensor, each: Tensor, groups: Tensor | None) -> Tensor:
        """The values (out, in), changed in place by what each group has one of (out, groups)."""
        if groups is None:
            getattr(values.unflatten(1, (each.size(1), -1)), do)(each.unsqueeze(-1))
        else:
            getattr(values, do)(each.index_select(1, groups))
        return values

    @classmethod
    def _scale(cls, value: Tensor, group: int | None) -> Tensor:
        out, inputs = value.shape
        return value.new_ones(-(-inputs // (group or inputs)), out)


def _words(shape: tuple[int, int], like: Tensor) -> Tensor:
    return torch.empty(shape, dtype=torch.int32, device=like.device)


class GPTQ(Transposed):
    r"""Codes and zero points in streams of `bits` bits, the lowest first: codes down the inputs, zero points along the
    outputs. v1 stores zero points less one, each for itself modulo 2^bits; v1_words words of them less one in each
    field, so that a zero point of 0 borrows of the next: that is how GPTQModel writes v1 in 2, 4 and 8 bits.

    Shapes:  original (in bits / 32, out); zeros (groups, out bits / 32); scale (groups, out); g_idx (in).
    Inverse: code = W / scale + zero, rounded to the nearest integer of so many bits. Codes of W are the codes that W
             came of, but for those of a scale 0.
    Cost:    two passes.
    Source:  GPTQModel 7.7 (formats gptq and gptq_v2); AutoGPTQ.
    """

    def __init__(self, scale: Tensor, zeros: Tensor, g_idx: Tensor | None, group: int | None, bits: int, stored: str):
        super().__init__(scale, zeros, g_idx, group)
        self.bits, self.stored_zeros = bits, stored

    @classmethod
    def by_rows(cls, shape: torch.Size, bits: int = 4, **_: Any) -> dict[str, Share]:
        """Rows are columns of what is stored; the zero points of 32 are in words of their own."""
        return {"original": Share(dim=1), "scale": Share(dim=1), "zeros": Share(32, bits, dim=1)}

    @classmethod
    def check_shape(cls, shape: torch.Size, bits: int = 4, **_: Any) -> None:
        if len(shape) != 2 or any(size * bits % 32 for size in shape):
            raise InputRefused(f"gptq:bits={bits} is of matrices whose rows and columns fill words of 32 bits")

    @classmethod
    def weight_shape(cls, *originals: Any, bits: int = 4, **_: Any) -> tuple[int, ...] | None:
        stored = originals[0]
        return (stored[1], stored[0] * 32 // bits) if len(stored) == 2 else None

    @classmethod
    def make(
        cls, value: Tensor, bits: int = 4, zeros: str = "v1", group: int | None = None, g_idx: bool = True
    ) -> GPTQ:
        """Scales of 1, zero points in the middle, inputs in the order of their groups."""
        scale, middle = cls._scale(value, group), (1 << bits - 1) - (zeros != "v2")
        count, out = scale.shape
        stored, order = _words((count, out * bits // 32), value), None
        if g_idx:
            order = torch.empty(value.size(1), dtype=torch.int32, device=value.device)
        if not value.is_meta:
            stored = packed(torch.full((count, out), middle, device=value.device), bits)
            order = None if order is None else order.copy_(torch.arange(value.size(1)) // (group or value.size(1)))
        return cls(scale, stored, order, group, bits, zeros)

    def outline(self, value: Tensor) -> Tensor:
        return _words((value.size(1) * self.bits // 32, value.size(0)), value)

    def values(self, words: Tensor) -> Tensor:
        numbers = torch.arange(1 << self.bits, dtype=self.scale.dtype, device=words.device)
        return values_in(words.mT, self.bits, words.size(0) * 32 // self.bits, "stream", numbers)

    def pack(self, codes: Tensor) -> Tensor:
        return packed(codes, self.bits).mT.contiguous()

    def zero_points(self) -> Tensor:
        words = self.zeros
        if self.stored_zeros == "v1_words":
            words = words + sum(1 << shift for shift in range(0, 32, self.bits))
        stored = unpacked(words, self.bits, self.scale.size(1)).mT
        return (stored + 1) & ((1 << self.bits) - 1) if self.stored_zeros == "v1" else stored


class AWQ(Transposed):
    r"""Codes and zero points of 4 bits along the outputs, eight in a word, whose nibbles from the lowest on are columns
    0, 2, 4, 6, 1, 3, 5 and 7 of the eight (the layout `gemm`).

    Shapes:  original (in, out / 8); zeros (groups, out / 8); scale (groups, out).
    Inverse: code = W / scale + zero, rounded to the nearest integer of 4 bits. Codes of W are the codes that W came of,
             but for those of a scale 0.
    Cost:    two passes.
    Source:  compressed-tensors 0.20 (AutoAWQConverter); AutoAWQ.
    """

    bits = 4
    # The column of each nibble, and the nibble of each column.
    COLUMNS, NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7), (0, 4, 1, 5, 2, 6, 3, 7)

    @classmethod
    def by_rows(cls, shape: torch.Size, **_: Any) -> dict[str, Share]:
        return {"original": Share(8, dim=1), "scale": Share(dim=1), "zeros": Share(8, dim=1)}

    @classmethod
    def check_shape(cls, shape: torch.Size, group: int | None = None) -> None:
        if len(shape) != 2 or shape[0] % 8:
            raise InputRefused("awq is of matrices with a multiple of 8 rows")

    @classmethod
    def weight_shape(cls, *originals: Any, **_: Any) -> tuple[int, ...] | None:
        stored = originals[0]
        return (8 * stored[1], stored[0]) if len(stored) == 2 else None

    @classmethod
    def make(cls, value: Tensor, group: int | None = None) -> AWQ:
        """Scales of 1 and zero points of 8."""
        scale = cls._scale(value, group)
        count, out = scale.shape
        zeros = _words((count, out // 8), value)
        if not value.is_meta:
            zeros = packed(torch.full((count, out), 8, device=value.device), 4)
        return cls(scale, zeros, None, group)

    def outline(self, value: Tensor) -> Tensor:
        return _words((value.size(1), value.size(0) // 8), value)

    def values(self, words: Tensor) -> Tensor:
        return self._unpacked(words).to(self.scale.dtype)

    def _unpacked(self, words: Tensor) -> Tensor:
        shifts = 4 * torch.tensor(self.NIBBLES, dtype=words.dtype, device=words.device)
        return (words.mT.contiguous().unsqueeze(1) >> shifts.unsqueeze(1)).bitwise_and_(15).flatten(0, 1)

    def pack(self, codes: Tensor) -> Tensor:
        return packed(codes.mT.unflatten(1, (-1, 8))[..., self.COLUMNS].flatten(1), 4)

    def zero_points(self) -> Tensor:
        return self._unpacked(self.zeros)
