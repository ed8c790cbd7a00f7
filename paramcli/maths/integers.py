"""Integers and the grids they lie on -> weights: (code - zero point) scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..dtypes import words_of
from ..errors import InputRefused
from .decoders import Decoder
from .packed import packed, unpacked, values_in
from .rows import Share


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
    def by_rows(
        cls, shape: torch.Size, per: str = "output", zero_point: bool = False, **_: Any
    ) -> dict[str, int | Share]:
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
        """What is taken off the values of each group's codes, for so many outputs."""
        return self.zero_point

    def values(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """New numbers, which are the codes."""
        return codes.to(dtype)

    def pack(self, values: Tensor) -> Tensor:
        return values.to(self.codes)

    def map(self, codes: Tensor) -> Tensor:
        values = self.values(codes, self.scale.dtype)
        zeros = self.zeros(codes.size(-2) if codes.ndim > 1 else 1)
        if zeros is not None:
            self._with("sub_", values, zeros.to(values.dtype))
        return self._with("mul_", values, self.scale)

    def inverse(self, W: Tensor) -> Tensor:
        values = self._with("div_", W.clone(), self.scale.to(W.dtype)).nan_to_num_(0).round_()
        zeros = self.zeros(W.size(-2) if W.ndim > 1 else 1)
        if zeros is not None:
            self._with("add_", values, zeros.to(W.dtype))
        return self.pack(values.clamp_(self.least, self.most))

    def _with(self, do: str, values: Tensor, each: Tensor) -> Tensor:
        """The values, changed in place by what each group has one of."""
        seen = values
        if each.ndim and each.size(-1) > 1:
            if self.g_idx is not None and (order := self._order(each.size(-1))) is not None:
                each = each.index_select(-1, order)
            else:
                seen, each = values.unflatten(-1, (each.size(-1), -1)), each.unsqueeze(-1)
        getattr(seen, do)(each)
        return values

    def _order(self, groups: int) -> Tensor | None:
        """The group of each column; None where all are -1, which is in order."""
        assert self.g_idx is not None
        order = self.g_idx.long()
        if bool((order == -1).all()):
            return None
        if not bool(((order >= 0) & (order < groups)).all()):
            raise InputRefused(f"its g_idx names groups that are not there: there are {groups}")
        if len(set(torch.bincount(order, minlength=groups).tolist())) > 1:
            # Packages disagree of these: by the groups that are named, or by so many columns in their order.
            raise InputRefused("its g_idx gives the groups not as many columns each")
        return order


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
        # Without zero points the grid is symmetric.
        self.least = -(1 << bits - 1) if zero_point is None else 0
        self.most = self.least + (1 << bits) - 1

    @classmethod
    def by_rows(
        cls,
        shape: torch.Size,
        per: str = "output",
        zero_point: bool = False,
        bits: int = 4,
        layout: str = "stream",
        **_: Any,
    ) -> dict[str, int | Share]:
        """Zero points lie along the outputs: those of 32 in `bits` words, or of so many whole ones in each."""
        shares = super().by_rows(shape, per, zero_point)
        if zero_point and len(shape) == 2:
            shares["zero_point"] = Share(32, bits) if layout == "stream" else Share(32 // bits)
        return shares

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
            if zeros.is_meta:
                zeros = zeros.new_empty((*zeros.shape[:-2], words, zeros.size(-1)), dtype=torch.int32)
            else:
                half = zeros.long() + (1 << bits - 1)
                zeros = packed(half.mT, bits, layout).mT.contiguous()
        return cls(scale, zeros, order, bits, columns, layout)

    def outline(self, value: Tensor) -> Tensor:
        shape = (*value.shape[:-1], words_of(value.size(-1), self.bits, self.layout))
        return torch.empty(shape, dtype=self.codes, device=value.device)

    def zeros(self, rows: int) -> Tensor | None:
        return None if self.zero_point is None else unpacked(self.zero_point.mT, self.bits, rows, self.layout).mT

    def values(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        return values_in(codes, self.bits, self.columns, self.layout, self._numbers(dtype, codes.device)).contiguous()

    def pack(self, values: Tensor) -> Tensor:
        return packed(values - self.least, self.bits, self.layout)

    def _numbers(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.arange(self.least, self.most + 1, dtype=dtype, device=device)
