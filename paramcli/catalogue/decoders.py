"""Quantized weights: a file stores codes and what they are decoded with, and the weight is their product.

A weight's own dtype is nowhere: what is baked is computed in float32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from ..maths.tiles import tiles_shape
from ..spec import Argument, Value
from .entry import Entry, Shape, Stored
from .measures import OF_CODES

MOST = 1 << 20


def count(arguments: Mapping[str, Value], name: str) -> int:
    return cast("int", arguments[name])


SCALES = Argument(
    "scales",
    "choice",
    "how they lie: row by row, or in tiles of 128 rows and 4 columns, as tensor cores take them",
    "rows",
    choices=("rows", "tiles"),
)


def _block_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rows, columns = count(arguments, "rows"), count(arguments, "columns")
    grid = (*shape[:-2], math.ceil(shape[-2] / rows), math.ceil(shape[-1] / columns))
    tiled = arguments.get("scales") == "tiles"
    return {"original": (None, shape), "scale": (None, tiles_shape(*grid) if tiled else grid)}


def _scaled_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    sizes = {"tensor": (), "output": (shape[0], *[1] * (len(shape) - 1))}
    return {"original": (None, shape), "scale": (None, sizes[cast("str", arguments["per"])])}


DECODERS = (
    Entry(
        name="fp8_block",
        family="quantized",
        summary="8-bit floats, with a scale for each block of rows and columns",
        law="W_ij = code_ij scale_(i // rows, j // columns), in float32; the last blocks may be short; scales=tiles: "
        "they lie in tiles of 128 rows and 4 columns, as tensor cores take them",
        maps=(("any", "any"),),
        right_inverse="code = W / scale, rounded to the nearest 8-bit float",
        source="DeepSeek-V3; transformers 5.24 (finegrained_fp8), compressed-tensors 0.20 (strategy block); ComfyUI "
        "(mxfp8), whose scales lie in tiles",
        target="decoders:Blocks",
        arguments=(
            Argument("rows", "int", "rows of a block", required=True, minimum=1, maximum=MOST),
            Argument("columns", "int", "columns of a block", required=True, minimum=1, maximum=MOST),
            SCALES,
        ),
        cost="one pass",
        stores=_block_stores,
        verifies=OF_CODES,
        decodes=True,
    ),
    Entry(
        name="fp8_scaled",
        family="quantized",
        summary="8-bit floats, with one scale, or one for each output",
        law="W = code scale, in float32",
        maps=(("any", "any"),),
        right_inverse="code = W / scale, rounded to the nearest 8-bit float",
        source="compressed-tensors 0.20 (float-quantized), transformers 5.24 (fbgemm_fp8), ComfyUI (scale_weight)",
        target="decoders:Scaled",
        arguments=(Argument("per", "choice", "what has a scale of its own", "tensor", choices=("tensor", "output")),),
        cost="one pass",
        stores=_scaled_stores,
        verifies=OF_CODES,
        decodes=True,
    ),
)
