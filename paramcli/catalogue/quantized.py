"""Quantization-aware maps: the weight on a grid, kept in floating point, with straight-through gradients."""

from __future__ import annotations

from ..spec import Argument
from .entry import ConstraintEntry, Entry
from .measures import GRID

SLICES = Argument(
    "dim", "dim", "each slice along it has its own scale; none: the whole tensor", None, minimum=-64, maximum=63
)
FORMAT = Argument(
    "format", "choice", "4 bits of exponent and 3 of mantissa, or 5 and 2", "e4m3", choices=("e4m3", "e5m2")
)


def _slices(arguments: dict) -> str:
    return f":dim={'none' if arguments.get('dim') is None else arguments['dim']}"


CONSTRAINTS = (
    ConstraintEntry(
        "levels",
        "at most `count` different values in each slice",
        "quantized:Levels",
        arguments=(Argument("count", "int", "how many values", required=True, minimum=1, maximum=65536), SLICES),
        residual="values beyond count / entries",
        examples=("levels:count=4", "levels:count=3:dim=0"),
    ),
    ConstraintEntry(
        "ternary",
        "entries -s, 0 and s",
        "quantized:Ternary",
        arguments=(SLICES,),
        residual="(largest - smallest magnitude) / largest, of entries that are not zero",
        examples=("ternary", "ternary:dim=0"),
    ),
    ConstraintEntry(
        "binary",
        "entries -s and s",
        "quantized:Binary",
        arguments=(SLICES,),
        residual="as ternary; 1 where an entry is zero",
        examples=("binary", "binary:dim=0"),
    ),
    ConstraintEntry(
        "fp8",
        "every entry is an 8-bit float",
        "quantized:Float8",
        arguments=(FORMAT,),
        residual="max |W - cast(W)| / |W|",
        spelt=("format",),
        examples=("fp8", "fp8:format=e5m2"),
    ),
)

PARAMETRIZATIONS = (
    Entry(
        "fake_quant",
        "quantized",
        "rounded to an even grid of integers times a stored scale",
        "W = s clamp(round(X / s), -q, q), q = 2^(bits-1) - 1",
        (("any", lambda a: f"levels:count={2 ** a.get('bits', 8) - 1}{_slices(a)}"),),
        "W itself, on the grid of its own range",
        "torch.fake_quantize_per_channel_affine; Jacob et al. 2018, arXiv:1712.05877",
        "quantized:FakeQuant",
        (
            Argument("bits", "int", "bits of the integers", 8, minimum=2, maximum=16),
            SLICES,
        ),
        cost="one pass",
        verifies=str(GRID),
        examples=("fake_quant", "fake_quant:bits=4:dim=0"),
        stores=None,
    ),
    Entry(
        "ternary",
        "quantized",
        "rounded to -s, 0, s with s the mean magnitude (BitNet b1.58)",
        "W = s clip(round(X / s), -1, 1), s = mean |X|",
        (("any", lambda a: f"ternary{_slices(a)}"),),
        "W n / k for k of n entries not zero",
        "Ma et al. 2024, arXiv:2402.17764",
        "quantized:ToTernary",
        (SLICES,),
        cost="two passes",
        examples=("ternary", "ternary:dim=0"),
    ),
    Entry(
        "binary",
        "quantized",
        "the sign times the mean magnitude (XNOR-Net)",
        "W = s sign(X), s = mean |X|",
        (("any", lambda a: f"binary{_slices(a)}"),),
        "W itself",
        "Rastegari et al. 2016, arXiv:1603.05279",
        "quantized:ToBinary",
        (SLICES,),
        cost="two passes",
        examples=("binary", "binary:dim=0"),
    ),
    Entry(
        "fp8",
        "quantized",
        "rounded to the nearest 8-bit float",
        "W = cast(clamp(X))",
        (("any", lambda a: f"fp8:format={a.get('format', 'e4m3')}"),),
        "W itself",
        "Micikevicius et al. 2022, arXiv:2209.05433",
        "quantized:ToFloat8",
        (FORMAT,),
        cost="one pass",
        examples=("fp8", "fp8:format=e5m2"),
    ),
)
