"""Floats of 4 and 6 bits that lie packed in bytes, and a scale for each run of so many -> weights.

E2M1 and E2M3 have a sign, two bits of exponent and one or three of mantissa, and neither infinities nor NaN (OCP
Microscaling Formats 1.0). The lowest bits of a byte are the first code's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputRefused
from ..text import shape_text
from .decoders import Decoder, as_scale, divided
from .nibbles import halves_swapped
from .packed import looked_up, packed_octets
from .tiles import ROWS, from_tiles, require_matrix, tiles_shape


def values_of(mantissa: int) -> tuple[float, ...]:
    """What the codes of a float with two bits of exponent and so many of mantissa stand for, the sign being their
    highest bit.
    """
    step = 2**mantissa
    positive = [k / step for k in range(step)] + [(1 + k / step) * 2**e for e in range(3) for k in range(step)]
    return (*positive, *(-value for value in positive))


class Minifloats(Decoder):
    """Of codes of `bits` bits (..., out, in bits / 8) and scales (..., out, in / run) the values (..., out, in)."""

    codes = torch.uint8
    bits, run = 4, 32
    exponents = ("scale",)

    def __init__(self, scale: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale, requires_grad=False)
        # Scales may come as integers, which are exponents.
        self.dtype = scale.dtype

    @classmethod
    def by_rows(cls, shape: torch.Size, **_: Any) -> dict[str, int]:
        return {"original": 1, "scale": 1}

    @classmethod
    def check_shape(cls, shape: torch.Size, **_: Any) -> None:
        if len(shape) < 2 or shape[-1] % cls.run:
            raise InputRefused(
                f"it has a scale for each {cls.run} columns, of a matrix with a multiple of {cls.run} of them, and the "
                f"tensor is {shape_text(shape)}"
            )

    @classmethod
    def weight_shape(cls, *originals: Any, **_: Any) -> tuple[int, ...] | None:
        return (*originals[0][:-1], originals[0][-1] * 8 // cls.bits) if originals[0] else None

    @classmethod
    def make(cls, value: Tensor, **_: Any) -> Minifloats:
        return cls(value.new_ones((*value.shape[:-1], value.size(-1) // cls.run)))

    def outline(self, value: Tensor) -> Tensor:
        shape = (*value.shape[:-1], value.size(-1) * self.bits // 8)
        return torch.empty(shape, dtype=self.codes, device=value.device)

    def scales(self, shape: torch.Size) -> Tensor:
        """Of each run of values of this shape, in the dtype that is computed in."""
        return as_scale(self.scale, self.dtype)

    def map(self, codes: Tensor) -> Tensor:
        table = torch.tensor(values_of(self.bits - 3), dtype=self.dtype, device=codes.device)
        values = looked_up(codes, self.bits, table)
        scales = self.scales(values.shape)
        values.unflatten(-1, (scales.size(-1), -1)).mul_(scales.unsqueeze(-1))
        return values

    def inverse(self, W: Tensor) -> Tensor:
        scales = self.scales(W.shape).to(W.dtype)
        values = divided(W.unflatten(-1, (scales.size(-1), -1)), scales.unsqueeze(-1)).flatten(-2)
        positive = torch.tensor(values_of(self.bits - 3)[: 1 << self.bits - 1], dtype=W.dtype, device=W.device)
        numbers = torch.bucketize(values.abs().nan_to_num(0), (positive[1:] + positive[:-1]) / 2)
        return packed_octets(numbers + (values.signbit().long() << self.bits - 1), self.bits)


class MxFp4(Minifloats):
    r"""W = e2m1(code) 2^(scale - 127), with a scale for each 32 columns, as a byte or an 8-bit exponent; with
    transposed=true its transpose, the scales being for 32 rows of that.

    Inverse: code of the nearest value of W / scale; of a tie that of the lesser one. Codes of W are the codes that W
             came of.
    Cost:    one look-up for two entries, and one pass.
    Source:  compressed-tensors 0.20 (mxfp4-pack-quantized), transformers 5.24 (integrations/mxfp4, transposed); OCP
             Microscaling Formats 1.0.
    """

    def __init__(self, scale: Tensor, transposed: bool = False):
        super().__init__(scale)
        self.transposed = transposed

    @classmethod
    def by_rows(cls, shape: torch.Size, transposed: bool = False, **_: Any) -> dict[str, int]:
        """Transposed the rows of a matrix are columns of codes; of several every matrix is a row."""
        return {} if transposed and len(shape) == 2 else super().by_rows(shape)

    @classmethod
    def check_shape(cls, shape: torch.Size, transposed: bool = False, **_: Any) -> None:
        super().check_shape(_turned(shape) if transposed else shape)

    @classmethod
    def weight_shape(cls, *originals: Any, transposed: bool = False, **_: Any) -> tuple[int, ...] | None:
        shape = super().weight_shape(*originals)
        return _turned(shape) if transposed and shape is not None else shape

    @classmethod
    def make(cls, value: Tensor, transposed: bool = False, **_: Any) -> MxFp4:
        shape = value.mT.shape if transposed else value.shape
        return cls(value.new_ones((*shape[:-1], shape[-1] // cls.run)), transposed)

    def outline(self, value: Tensor) -> Tensor:
        return super().outline(value.mT if self.transposed else value)

    def map(self, codes: Tensor) -> Tensor:
        values = super().map(codes)
        return values.mT if self.transposed else values

    def inverse(self, W: Tensor) -> Tensor:
        return super().inverse(W.mT.contiguous() if self.transposed else W)


def _turned(shape: tuple[int, ...]) -> torch.Size:
    return torch.Size((*shape[:-2], *reversed(shape[-2:])))


class MxFp6(Minifloats):
    r"""The same of E2M3: four codes of 6 bits lie in three bytes.

    Inverse: as of `MxFp4`.
    Cost:    three passes.
    Source:  compressed-tensors 0.20 (mxfp6-pack-quantized).
    """

    bits = 6


class NvFp4(Minifloats):
    r"""W = e2m1(code) (scale / global_scale), or (scale global_scale) with global_scale=multiplies: a scale of 8 bits
    for each 16 columns and one number for all. The two scales come together first: the other order rounds otherwise.

    first=high: the even column is the upper half of a byte; scales=tiles: they lie as `tiles.py` says, of a matrix.

    Inverse: as of `MxFp4`; codes of a scale 0 are lost, and 0 comes back.
    Cost:    one look-up for two entries, and one pass; with first=high one more over the codes.
    Source:  compressed-tensors 0.20 (nvfp4-pack-quantized) divides, ModelOpt 0.47 (weight_scale_2) multiplies, and
             comfy-kitchen 0.2.40 (TensorCoreNVFP4Layout) does with the upper half first and tiles.
    """

    run = 16

    def __init__(self, scale: Tensor, global_scale: Tensor, divides: bool, high_first: bool, tiled: bool):
        super().__init__(scale)
        self.global_scale = nn.Parameter(global_scale, requires_grad=False)
        self.divides, self.high_first, self.tiled = divides, high_first, tiled

    @classmethod
    def by_rows(cls, shape: torch.Size, scales: str = "rows", **_: Any) -> dict[str, int]:
        return {"original": 1, "scale": ROWS if scales == "tiles" else 1}

    @classmethod
    def check_shape(cls, shape: torch.Size, scales: str = "rows", **_: Any) -> None:
        super().check_shape(shape)
        if scales == "tiles":
            require_matrix(shape)

    @classmethod
    def make(
        cls, value: Tensor, global_scale: str = "divides", first: str = "low", scales: str = "rows", **_: Any
    ) -> NvFp4:
        tiled, runs = scales == "tiles", value.size(-1) // cls.run
        scale = value.new_ones(tiles_shape(value.size(-2), runs) if tiled else (*value.shape[:-1], runs))
        return cls(scale, value.new_ones(()), global_scale == "divides", first == "high", tiled)

    def scales(self, shape: torch.Size) -> Tensor:
        scale, every = self.scale.to(self.dtype), self.global_scale.to(self.dtype)
        scale = from_tiles(scale, shape[-2], shape[-1] // self.run) if self.tiled else scale
        return scale / every if self.divides else scale * every

    def map(self, codes: Tensor) -> Tensor:
        return super().map(halves_swapped(codes) if self.high_first else codes)

    def inverse(self, W: Tensor) -> Tensor:
        codes = super().inverse(W)
        return halves_swapped(codes) if self.high_first else codes
