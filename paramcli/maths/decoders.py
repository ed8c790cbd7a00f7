"""Codes and what they are decoded with -> weights, in float32; and back, onto the scales that are stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputRefused
from .base import Check, Parametrization
from .numbers import in_precision
from .tiles import ROWS, from_tiles, require_matrix, tiles_shape

# About so many entries are decoded at once: as floats they stay in a core's cache, and the calls cost little beside.
PART = 1 << 19


class Decoder(Parametrization):
    """Of the codes of a weight its values. `inverse` gives the codes of a value on the scales that the module has.

    `value.dtype` where one is made (`make`) is the weight's, which is not what is stored.
    """

    whole = True
    # The dtype of the codes that a module without data has.
    codes = torch.float8_e4m3fn
    # Are its codes numbers in 8-bit floats? Others are whole numbers, or bits.
    of_floats = False

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        """Passes over memory, while reading and writing have the other cores."""
        return False

    def forward(self, *originals: Any, **_: Any) -> Tensor:
        return self.map(*originals)

    def right_inverse(self, value: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.outline(value) if value.is_meta else self.inverse(value)

    def decode(self, codes: Tensor, dtype: torch.dtype, stored: torch.dtype) -> Tensor:
        """The value of codes as they are stored, computed in `dtype` and rounded once to `stored`."""
        value: Tensor = self.map(in_precision(codes, dtype))
        return value.to(stored)

    def inverse(self, value: Tensor) -> Tensor:
        raise NotImplementedError

    def no_numbers(self, originals: tuple[Tensor, ...]) -> dict[str, int]:
        """How many codes, and how many of each tensor that they are decoded with, are NaN or infinite; by name."""
        there = {f"original{i}" if i else "original": T for i, T in enumerate(originals)} | dict(
            self.named_parameters()
        )
        bad = {name: _infinite(T) for name, T in there.items() if T.is_floating_point()}
        return bad | {name: no_exponents(getattr(self, name)) + bad.get(name, 0) for name in self.exponents}

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        return [decodable(sum(self.no_numbers(originals).values()))]

    def outline(self, value: Tensor) -> Tensor | tuple[Tensor, ...]:
        return torch.empty(value.shape, dtype=self.codes, device=value.device)


def _infinite(values: Tensor) -> int:
    """How many are NaN or infinite; a part at a time, as this takes several times their memory."""
    parts = values.reshape(-1).split(PART)
    return sum(int((~torch.isfinite(part.float() if part.element_size() == 1 else part)).sum()) for part in parts)


def decodable(bad: int) -> Check:
    """Of so many codes and scales that are no numbers."""
    return Check("decodable", float(bad), 0.0, f"{bad} of its codes and scales are no numbers" if bad else None)


def onto(values: Tensor, codes: torch.dtype) -> Tensor:
    """The nearest codes of an 8-bit float to values that are nobody else's; what is beyond their range becomes the
    largest.
    """
    most = torch.finfo(codes).max
    return values.clamp_(-most, most).to(codes)


def as_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as numbers: bytes are exponents, of 2^(byte - 127), and 255 is NaN."""
    return (scale.view(torch.float8_e8m0fnu) if scale.dtype == torch.uint8 else scale).to(dtype)


def divided(W: Tensor, scale: Tensor, out: Tensor | None = None) -> Tensor:
    """W / scale, which of a 0 with a scale 0 is that 0: the code whose product it is, with its sign."""
    least = torch.full_like(scale, torch.finfo(scale.dtype).tiny).copysign(scale)
    return torch.div(W, torch.where(scale == 0, least, scale), out=out)


def no_exponents(scale: Tensor) -> int:
    """How many of these are bytes that are no exponents."""
    return int((scale == 255).sum()) if scale.dtype == torch.uint8 else 0


class Blocks(Decoder):
    r"""W_ij = code_ij scale_(i // rows, j // columns), for matrices (..., out, in) and scales (..., ceil(out / rows),
    ceil(in / columns)). scales=tiles: they lie as `tiles.py` says, of one matrix.

    Inverse: code = W / scale, rounded to the nearest 8-bit float. Codes of W are the codes that W came of, as a product
             in float32 is within eps of them and they are 2^-4 apart; but of a scale 0 they are all 0.
    Cost:    one pass.
    Source:  transformers 5.24, integrations/finegrained_fp8; comfy-kitchen 0.2.40 (TensorCoreMXFP8Layout) for tiles.
    """

    exponents = ("scale",)
    of_floats = True

    def __init__(self, scale: Tensor, rows: int, columns: int, tiled: bool = False):
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.rows, self.columns, self.tiled = rows, columns, tiled

    @classmethod
    def by_rows(cls, shape: torch.Size, rows: int = 1, columns: int = 1, scales: str = "rows") -> dict[str, int]:
        """Of a matrix the scale has a row for so many of the weight's; of several every one its own."""
        each = rows * (ROWS if scales == "tiles" else 1)
        return {"original": 1, "scale": each if len(shape) == 2 else 1}

    @classmethod
    def check_shape(cls, shape: torch.Size, rows: int = 1, columns: int = 1, scales: str = "rows") -> None:
        if len(shape) < 2:
            raise InputRefused(f"fp8_block needs a matrix; the tensor has {len(shape)} dimensions")
        if scales == "tiles":
            require_matrix(shape)

    @classmethod
    def make(cls, value: Tensor, rows: int = 1, columns: int = 1, scales: str = "rows") -> Blocks:
        *batch, out, inputs = value.shape
        grid = (*batch, math.ceil(out / rows), math.ceil(inputs / columns))
        tiled = scales == "tiles"
        return cls(value.new_ones(tiles_shape(*grid) if tiled else grid), rows, columns, tiled)

    def grid(self, X: Tensor) -> Tensor:
        """The scales of the blocks of X: a row for each row of blocks."""
        if not self.tiled:
            return self.scale
        return from_tiles(self.scale, math.ceil(X.size(-2) / self.rows), math.ceil(X.size(-1) / self.columns))

    def by_blocks(self, X: Tensor, how: Callable[..., Tensor], dtype: torch.dtype, stored: torch.dtype) -> Tensor:
        """`how` of each entry and its scale in `dtype`, rounded to `stored`: rows of blocks at once, without a scale of
        its own for each entry, and no more of them than a core's cache holds.
        """
        height, width = X.shape[-2:]
        scale = (
            as_scale(self.grid(X), dtype).unsqueeze(-1).expand(*[-1] * X.ndim, self.columns).flatten(-2)[..., :width]
        )
        made = torch.empty(X.shape, dtype=stored, device=X.device)
        row = self.rows * max(1, X.numel() // max(1, height))
        several = max(1, PART // row) if X.device.type == "cpu" else -(-height // self.rows)
        for first in range(0, scale.size(-2), several):
            part = (..., slice(first * self.rows, (first + several) * self.rows), slice(None))
            values, scales = in_precision(X[part], dtype), scale[..., first : first + several, :]
            # Entries that were there in this dtype are somebody else's.
            out = torch.empty_like(values) if X.dtype == dtype else values
            full = values.size(-2) // self.rows
            whole, rest = (..., slice(full * self.rows), slice(None)), (..., slice(full * self.rows, None), slice(None))
            blocks = (full, self.rows)
            how(values[whole].unflatten(-2, blocks), scales[..., :full, None, :], out=out[whole].unflatten(-2, blocks))
            if scales.size(-2) > full:
                how(values[rest], scales[..., full:, :], out=out[rest])
            made[part] = out
        return made

    def map(self, codes: Tensor) -> Tensor:
        return self.decode(codes, codes.dtype, codes.dtype)

    def decode(self, codes: Tensor, dtype: torch.dtype, stored: torch.dtype) -> Tensor:
        return self.by_blocks(codes, torch.mul, dtype, stored)

    def inverse(self, W: Tensor) -> Tensor:
        return onto(self.by_blocks(W, divided, W.dtype, W.dtype), self.codes)


class Scaled(Decoder):
    r"""W = code scale, with one scale, or one for each output.

    Inverse: code = W / scale, rounded to the nearest 8-bit float.
    Cost:    one pass.
    Source:  compressed-tensors 0.20 (float-quantized).
    """

    of_floats = True

    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)

    @classmethod
    def by_rows(cls, shape: torch.Size, per: str = "tensor") -> dict[str, int]:
        return {"original": 1, "scale": 1} if per == "output" else {"original": 1}

    @classmethod
    def make(cls, value: Tensor, per: str = "tensor") -> Scaled:
        return cls(value.new_ones((value.size(0), *[1] * (value.ndim - 1)) if per == "output" else ()))

    def map(self, codes: Tensor) -> Tensor:
        return codes * self.scale.to(codes.dtype)

    def inverse(self, W: Tensor) -> Tensor:
        return onto(divided(W, self.scale.to(W.dtype)), self.codes)
