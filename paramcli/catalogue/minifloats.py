"""Weights quantized to floats of 4 and 6 bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..maths.tiles import tiles_shape
from ..spec import Argument, Value
from .decoders import SCALES
from .entry import Entry, Shape, Stored
from .measures import OF_CODES


def _stores(bits: int, run: int, *more: str) -> Callable[[Shape, Mapping[str, Value]], Stored]:
    def stored(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
        return {
            "original": ("U8", (*shape[:-1], shape[-1] * bits // 8)),
            "scale": (None, (*shape[:-1], shape[-1] // run)),
            **dict.fromkeys(more, (None, ())),
        }

    return stored


def _mx4_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    turned = (*shape[:-2], shape[-1], shape[-2]) if arguments.get("transposed") else shape
    return _stores(4, 32)(turned, arguments)


def _nv4_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    stored = _stores(4, 16, "global_scale")(shape, arguments)
    if arguments.get("scales") == "tiles":
        stored["scale"] = (None, tiles_shape(*stored["scale"][1]))
    return stored


DECODERS = (
    Entry(
        name="mxfp4",
        family="quantized",
        summary="floats of 4 bits, two in a byte, with a power of two for each 32 columns",
        law="W = e2m1(code) 2^(scale - 127), in float32; the lower half of a byte is the even column",
        maps=(("any", "any"),),
        right_inverse="code of the nearest value of W / scale",
        source="compressed-tensors 0.20 (mxfp4-pack-quantized), transformers 5.24 (gpt-oss, which is transposed; "
        "DeepSeek V4); OCP Microscaling Formats 1.0",
        target="minifloats:MxFp4",
        arguments=(Argument("transposed", "bool", "the codes are of the weight's transpose", False),),
        reshapes=True,
        cost="one pass",
        stores=_mx4_stores,
        verifies=OF_CODES,
        decodes=True,
    ),
    Entry(
        name="mxfp6",
        family="quantized",
        summary="floats of 6 bits, four in three bytes, with a power of two for each 32 columns",
        law="W = e2m3(code) 2^(scale - 127), in float32; the lowest bits are the first column's",
        maps=(("any", "any"),),
        right_inverse="code of the nearest value of W / scale",
        source="compressed-tensors 0.20 (mxfp6-pack-quantized); OCP Microscaling Formats 1.0",
        target="minifloats:MxFp6",
        reshapes=True,
        cost="three passes",
        stores=_stores(6, 32),
        verifies=OF_CODES,
        decodes=True,
    ),
    Entry(
        name="nvfp4",
        family="quantized",
        summary="floats of 4 bits, two in a byte, with an 8-bit float for each 16 columns and one scale for all",
        law="W = e2m1(code) (scale / global_scale), or (scale global_scale), in float32, the scales first; the lower "
        "half of a byte is the even column, or the upper (first=high); scales=tiles: as of fp8_block",
        maps=(("any", "any"),),
        right_inverse="code of the nearest value of W over the scales",
        source="compressed-tensors 0.20 (nvfp4-pack-quantized) divides, ModelOpt 0.47 (weight_scale_2) multiplies; "
        "ComfyUI (nvfp4) too, the upper half first and the scales in tiles",
        target="minifloats:NvFp4",
        arguments=(
            Argument(
                "global_scale",
                "choice",
                "what the one scale does to the others",
                required=True,
                choices=("divides", "multiplies"),
            ),
            Argument("first", "choice", "the half of a byte that is the even column", "low", choices=("low", "high")),
            SCALES,
        ),
        reshapes=True,
        cost="one pass",
        stores=_nv4_stores,
        verifies=OF_CODES,
        decodes=True,
    ),
)
