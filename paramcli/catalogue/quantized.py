"""Quantization-aware maps: the weight on a grid, kept in floating point, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ..spec import Argument, Value
from .entry import ConstraintEntry, Entry
from .measures import GRID

SLICES = Argument(
    "dim", "dim", "each slice along it has its own scale; none: the whole tensor", None, minimum=-64, maximum=63
)
FORMAT = Argument(
    "format", "choice", "4 bits of exponent and 3 of mantissa, or 5 and 2", "e4m3", choices=("e4m3", "e5m2")
)


def _slices(arguments: Mapping[str, Value]) -> str:
    return f":dim={'none' if arguments.get('dim') is None else arguments['dim']}"


CONSTRAINTS = (
    ConstraintEntry(
        name="levels",
        summary="at most `count` different values in each slice",
        target="quantized:Levels",
        arguments=(Argument("count", "int", "how many values", required=True, minimum=1, maximum=65536), SLICES),
        residual="values beyond count / entries",
        examples=("levels:count=4", "levels:count=3:dim=0"),
        of_constants=True,
    ),
    ConstraintEntry(
        name="ternary",
        summary="entries -s, 0 and s",
        target="quantized:Ternary",
        arguments=(SLICES,),
        residual="(largest - smallest magnitude) / largest, of entries that are not zero",
        examples=("ternary", "ternary:dim=0"),
        implies=("levels",),
    ),
    ConstraintEntry(
        name="binary",
        summary="entries -s and s",
        target="quantized:Binary",
        arguments=(SLICES,),
        residual="as ternary; 1 where an entry is zero",
        examples=("binary", "binary:dim=0"),
        implies=("levels", "ternary"),
    ),
    ConstraintEntry(
        name="fp8",
        summary="every entry is an 8-bit float",
        target="quantized:Float8",
        arguments=(FORMAT,),
        residual="max |W - cast(W)| / |W|",
        spelt=("format",),
        examples=("fp8", "fp8:format=e5m2"),
        of_constants=True,
    ),
)

PARAMETRIZATIONS = (
    Entry(
        name="fake_quant",
        family="quantized",
        summary="rounded to an even grid of integers times a stored scale",
        law="W = s clamp(round(X / s), -q, q), q = 2^(bits-1) - 1",
        maps=(("any", lambda a: f"levels:count={2 ** cast('int', a.get('bits', 8)) - 1}{_slices(a)}"),),
        right_inverse="W itself, on the grid of its own range",
        source="torch.fake_quantize_per_channel_affine; Jacob et al. 2018, arXiv:1712.05877",
        target="quantized:FakeQuant",
        arguments=(
            Argument("bits", "int", "bits of the integers", 8, minimum=2, maximum=16),
            SLICES,
        ),
        cost="one pass",
        verifies=str(GRID),
        examples=("fake_quant", "fake_quant:bits=4:dim=0"),
        stores=None,
    ),
    Entry(
        name="ternary",
        family="quantized",
        summary="rounded to -s, 0, s with s the mean magnitude (BitNet b1.58)",
        law="W = s clip(round(X / s), -1, 1), s = mean |X|",
        maps=(("any", lambda a: f"ternary{_slices(a)}"),),
        right_inverse="W n / k for k of n entries not zero",
        source="Ma et al. 2024, arXiv:2402.17764",
        target="quantized:ToTernary",
        arguments=(SLICES,),
        cost="two passes",
        examples=("ternary", "ternary:dim=0"),
    ),
    Entry(
        name="binary",
        family="quantized",
        summary="the sign times the mean magnitude (XNOR-Net)",
        law="W = s sign(X), s = mean |X|",
        maps=(("any", lambda a: f"binary{_slices(a)}"),),
        right_inverse="W itself",
        source="Rastegari et al. 2016, arXiv:1603.05279",
        target="quantized:ToBinary",
        arguments=(SLICES,),
        cost="two passes",
        examples=("binary", "binary:dim=0"),
    ),
    Entry(
        name="fp8",
        family="quantized",
        summary="rounded to the nearest 8-bit float",
        law="W = cast(clamp(X))",
        maps=(("any", lambda a: f"fp8:format={a.get('format', 'e4m3')}"),),
        right_inverse="W itself",
        source="Micikevicius et al. 2022, arXiv:2209.05433",
        target="quantized:ToFloat8",
        arguments=(FORMAT,),
        cost="one pass",
        examples=("fp8", "fp8:format=e5m2"),
    ),
)
