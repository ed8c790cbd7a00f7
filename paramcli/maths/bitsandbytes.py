"""The codes of bitsandbytes: four bits and a table, or eight and a scale for each output."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .decoders import Decoder
from .four_bits import TABLES
from .nibbles import decoded, encoded
from .runs import pairs_shape, rows_for_one, runs_shape

# 1 / 127 as the package multiplies with it; dividing by 127 rounds otherwise.
PER_STEP = 7.874015718698502e-3


class FourBit(Decoder):
    r"""W_k = table[code_k] absmax_(k // block), k counting the entries row by row, the upper four bits of a byte first.

    Nested: absmax_j = nested_quant_map[code_j] nested_absmax_(j // nested) + offset, in this order.

    Inverse: the code of the table's value nearest to W / absmax. Codes of W are the codes that W came of, as a product
             in float32 is within eps of them and the table's values are 2^-8 apart; but where absmax is 0.
    Cost:    one pass.
    Source:  bitsandbytes 0.50.2, functional.dequantize_4bit.
    """

    codes = torch.uint8

    def __init__(self, value: Tensor, table: str, block: int, nested: int | None, offset: float):
        super().__init__()
        shape = tuple(value.shape)
        self.shape, self.dtype, self.table = shape, value.dtype, table
        self.block, self.nested, self.offset = block, nested, offset
        runs = runs_shape(block, shape)
        self.absmax = nn.Parameter(value.new_ones(runs), requires_grad=False)
        if nested is not None:
            whole = runs_shape(block * nested, shape)
            self.nested_absmax = nn.Parameter(value.new_ones(whole), requires_grad=False)
            self.nested_quant_map = nn.Parameter(value.new_ones(256), requires_grad=False)

    @classmethod
    def by_rows(
        cls, shape: torch.Size, table: str = "nf4", block: int = 64, nested: int | None = None, offset: float = 0.0
    ) -> dict[str, int]:
        rows = {"original": int(len(pairs_shape(shape)) == len(shape) > 1), "absmax": rows_for_one(block, shape)}
        if nested is not None:
            rows["nested_absmax"] = rows_for_one(block * nested, shape)
        return rows if all(rows.values()) else {}

    @classmethod
    def make(
        cls, value: Tensor, table: str = "nf4", block: int = 64, nested: int | None = None, offset: float = 0.0
    ) -> FourBit:
        return cls(value, table, block, nested, offset)

    @classmethod
    def weight_shape(cls, *originals: tuple[int, ...], **arguments: object) -> None:
        """Only the package's own note on it says that."""
        return

    def outline(self, value: Tensor) -> Tensor:
        return torch.empty(pairs_shape(tuple(value.shape)), dtype=self.codes, device=value.device)

    def largest(self) -> Tensor:
        """absmax, one for each run."""
        if self.nested is None:
            return self.absmax.flatten()
        found = self.nested_quant_map[self.absmax.flatten().long()]
        # The package has it in single precision, whatever is computed in.
        offset = torch.tensor(self.offset, dtype=torch.float32).to(found)
        return _times(found, self.nested_absmax.flatten(), self.nested) + offset

    def values(self) -> Tensor:
        return torch.tensor(TABLES[self.table], dtype=torch.float32, device=self.absmax.device).to(self.dtype)

    def map(self, codes: Tensor) -> Tensor:
        found = decoded(codes.flatten(), self.values(), high_first=True)
        return _times(found[: math.prod(self.shape)], self.largest(), self.block).view(self.shape)

    def inverse(self, W: Tensor) -> Tensor:
        absmax = self.largest().to(W.dtype).repeat_interleave(self.block)[: W.numel()]
        # Of a block of zeros every code is right.
        share = torch.where(absmax == 0, W.flatten(), W.flatten() / absmax)
        share = torch.nn.functional.pad(share, (0, W.numel() % 2))
        return encoded(share, self.values().to(W.dtype), high_first=True).view(pairs_shape(tuple(W.shape)))


def _times(values: Tensor, scales: Tensor, each: int) -> Tensor:
    """Values times the scale of their run of so many, in their own memory; the last run may be short."""
    full = values.numel() // each * each
    values[:full].view(-1, each).mul_(scales[: full // each, None])
    if full < values.numel():
        values[full:].mul_(scales[-1])
    return values


class Int8(Decoder):
    r"""W = (code scale) / 127, a scale for each output: the largest entry of its row.

    Inverse: code = 127 W / scale, rounded to the nearest.
    Cost:    one pass.
    Source:  bitsandbytes 0.50.2, functional.int8_vectorwise_dequant.
    """

    codes = torch.int8

    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)

    @classmethod
    def by_rows(cls, shape: torch.Size) -> dict[str, int]:
        return {"original": 1, "scale": 1}

    @classmethod
    def make(cls, value: Tensor) -> Int8:
        return cls(value.new_ones(value.size(0)))

    def _each(self, like: Tensor) -> Tensor:
        return self.scale.view(-1, *[1] * (like.ndim - 1))

    def map(self, codes: Tensor) -> Tensor:
        return (codes.to(self.scale.dtype) * self._each(codes)).mul_(PER_STEP)

    def inverse(self, W: Tensor) -> Tensor:
        each = self._each(W).to(W.dtype)
        return torch.where(each == 0, 0, W / each * 127).round().clamp(-128, 127).to(torch.int8)
