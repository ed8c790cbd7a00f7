"""Integers and the grids they lie on -> weights: (code - zero point) scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..dtypes import words_of
from ..errors import InputRefused
from .decoders import Decoder
from .packed import packed, unpacked


class Integers(Decoder):
    r"""W = (code - zero_point) scale, with one scale, or one for each output, or for each group of columns of it.

    Shapes:  code (..., out, in); scale and zero_point (), (..., out, 1) or (..., out, groups); g_idx (in) says of each
             column which group it is of, where the columns are not in the order of their groups.
    Inverse: code = W / scale + zero_point, rounded to the nearest integer of 8 bits. Codes of W are the codes that W
             came of, but for those of a scale 0.
    Cost:    one pass.
    Source:  compressed-tensors 0.20 (int-quantized); of g_idx its versions before 0.13.
    """

    codes = torch.int8
    least, most = -128, 127

    def __init__(self, scale: Tensor, zero_point: Tensor | None = None, g_idx: Tensor | None = None):
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.register_buffer("zero_point", zero_point)
        self.register_buffer("g_idx", g_idx)

    zero_point: Tensor | None
    g_idx: Tensor | None

    @classmethod
    def by_rows(cls, shape: torch.Size, per: str = "output", zero_point: bool = False, **_: Any) -> dict[str, int]:
        names = ("original",) if per == "tensor" else ("original", "scale", *["zero_point"] * zero_point)
        return dict.fromkeys(names, 1)

    @classmethod
    def check_shape(cls, shape: torch.Size, per: str = "output", size: int = 0, **_: Any) -> None:
        if per != "tensor" and len(shape) < 2:
            raise InputRefused(f"one scale for each {per} needs a matrix; the tensor has {len(shape)} dimensions")
        if per == "group" and shape[-1] % size:
            raise InputRefused(f"{shape[-1]} columns are no groups of {size}")

    @classmethod
    def make(cls, value: Tensor, **arguments: Any) -> Integers:
        return cls(*cls.parts(value, **arguments))

    @classmethod
    def parts(
        cls,
        value: Tensor,
        per: str = "output",
        size: int = 0,
        zero_point: bool = False,
        g_idx: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """A scale of 1, zero points of 0, columns in order, for a weight with this value."""
        counts = {"tensor": (), "output": (*value.shape[:-1], 1)}
        shape = (*value.shape[:-1], value.size(-1) // size) if per == "group" else counts[per]
        zeros = cls.as_stored(value.new_zeros(shape, dtype=torch.int8)) if zero_point else None
        order = value.new_empty(value.size(-1), dtype=torch.int32) if g_idx else None
        if order is not None and not order.is_meta:
            order.copy_(torch.arange(value.size(-1)) // max(size, 1) if per == "group" else torch.zeros_like(order))
        return value.new_ones(shape), zeros, order

    @classmethod
    def as_stored(cls, zeros: Tensor) -> Tensor:
        return zeros

    def zeros(self, rows: int) -> Tensor | None:
        """What is taken off the codes of each group, for so many outputs."""
        return self.zero_point

    def unpack(self, codes: Tensor) -> Tensor:
        return codes

    def pack(self, codes: Tensor) -> Tensor:
        return codes.to(self.codes)

    def map(self, codes: Tensor) -> Tensor:
        codes = self.unpack(codes)
        zeros = self.zeros(codes.size(-2) if codes.ndim > 1 else 1)
        values = codes.to(self.scale.dtype)
        if zeros is not None:
            values = self._with(torch.sub, values, zeros.to(values.dtype))
        return self._with(torch.mul, values, self.scale)

    def inverse(self, W: Tensor) -> Tensor:
        values = self._with(torch.div, W, self.scale.to(W.dtype)).nan_to_num_(0).round_()
        zeros = self.zeros(W.size(-2) if W.ndim > 1 else 1)
        if zeros is not None:
            values = self._with(torch.add, values, zeros.to(W.dtype))
        return self.pack(values.clamp_(self.least, self.most))

    def _with(self, do: Any, values: Tensor, each: Tensor) -> Tensor:
        """The values and what each group has one of."""
        if each.ndim == 0 or each.size(-1) == 1:
            made: Tensor = do(values, each)
        elif self.g_idx is not None and (order := self._order(each.size(-1))) is not None:
            made = do(values, each.index_select(-1, order))
        else:
            made = do(values.unflatten(-1, (each.size(-1), -1)), each.unsqueeze(-1)).flatten(-2)
        return made

    def _order(self, groups: int) -> Tensor | None:
        """The group of each column; None where all are -1, which is in order."""
        assert self.g_idx is not None
        if bool((self.g_idx == -1).all()):
            return None
        if not bool(((self.g_idx >= 0) & (self.g_idx < groups)).all()):
            raise InputRefused(f"its g_idx names groups that are not there: there are {groups}")
        if len(set(torch.bincount(self.g_idx, minlength=groups).tolist())) > 1:
            # Packages disagree of these: by the groups that are named, or by so many columns in their order.
            raise InputRefused("its g_idx gives the groups not as many columns each")
        return self.g_idx


class PackedIntegers(Integers):
    r"""The same of codes of `bits` bits that lie packed along the columns, each from 0 on: code - 2^(bits - 1) is what
    is multiplied, and the zero points, which lie packed along the outputs, are moved as much.

    Inverse: as of `Integers`.
    Cost:    two passes.
    Source:  compressed-tensors 0.20 (pack-quantized); layout=words is that of its versions before 0.13.
    """

    codes = torch.int32

    def __init__(
        self,
        scale: Tensor,
        zero_point: Tensor | None,
        g_idx: Tensor | None,
        bits: int,
        columns: int,
        layout: str,
    ):
        super().__init__(scale, zero_point, g_idx)
        self.bits, self.columns, self.layout = bits, columns, layout
        self.least, self.most = 0, (1 << bits) - 1

    @classmethod
    def by_rows(
        cls,
        shape: torch.Size,
        per: str = "output",
        zero_point: bool = False,
        bits: int = 4,
        layout: str = "stream",
        **_: Any,
    ) -> dict[str, int]:
        """The zero points of 32 outputs lie in `bits` words; only where each word has its own they are had by rows."""
        each = super().by_rows(shape, per, zero_point)
        if zero_point and len(shape) == 2:
            each["zero_point"] = 32 // bits
            return each if layout == "words" or 32 % bits == 0 else {}
        return each

    @classmethod
    def check_shape(cls, shape: torch.Size, per: str = "output", size: int = 0, columns: int = 0, **_: Any) -> None:
        if len(shape) < 2 or shape[-1] != columns:
            raise InputRefused(f"int_packed:columns={columns} is of matrices with so many columns")
        super().check_shape(shape, per, size)

    @classmethod
    def weight_shape(cls, *originals: Any, columns: int = 0, **_: Any) -> tuple[int, ...] | None:
        return (*originals[0][:-1], columns) if len(originals[0]) > 1 else None

    @classmethod
    def make(
        cls, value: Tensor, bits: int = 4, columns: int = 0, layout: str = "stream", **arguments: Any
    ) -> PackedIntegers:
        scale, zeros, order = cls.parts(value, **arguments)
        if zeros is not None:
            words = words_of(zeros.size(-2), bits, layout)
            shape = (*zeros.shape[:-2], words, zeros.size(-1))
            half = zeros.long() + (1 << bits - 1)
            zeros = (
                zeros.new_empty(shape, dtype=torch.int32)
                if zeros.is_meta
                else packed(half.mT, bits, layout).mT.contiguous()
            )
        return cls(scale, zeros, order, bits, columns, layout)

    def outline(self, value: Tensor) -> Tensor:
        shape = (*value.shape[:-1], words_of(value.size(-1), self.bits, self.layout))
        return torch.empty(shape, dtype=self.codes, device=value.device)

    def zeros(self, rows: int) -> Tensor:
        if self.zero_point is None:
            return torch.tensor(1 << self.bits - 1, device=self.scale.device)
        return unpacked(self.zero_point.mT, self.bits, rows, self.layout).mT

    def unpack(self, codes: Tensor) -> Tensor:
        return unpacked(codes, self.bits, self.columns, self.layout)

    def pack(self, codes: Tensor) -> Tensor:
        return packed(codes, self.bits, self.layout)
