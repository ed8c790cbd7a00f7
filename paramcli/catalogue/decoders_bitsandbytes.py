"""Quantized weights as bitsandbytes stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ..maths.runs import pairs_shape, runs_shape
from ..spec import Argument, Value
from .entry import Entry, Shape, Stored
from .measures import OF_CODES

MOST = 1 << 20


def _four_bit_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    block, nested = cast("int", arguments["block"]), cast("int | None", arguments.get("nested"))
    stored: Stored = {"original": (None, pairs_shape(shape)), "absmax": (None, runs_shape(block, shape))}
    if nested is not None:
        stored["nested_absmax"] = (None, runs_shape(block * nested, shape))
        stored["nested_quant_map"] = (None, (256,))
    return stored


def _int8_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    return {"original": (None, shape), "scale": (None, shape[:1])}


DECODERS = (
    Entry(
        name="bnb_4bit",
        family="quantized",
        summary="codes of 4 bits into a table of 16 values, with the largest magnitude of each run of entries",
        law="W_k = table[code_k] absmax_(k // block), in float32, k counting row by row; nested: absmax_j = "
        "nested_quant_map[code_j] nested_absmax_(j // nested) + offset",
        maps=(("any", "any"),),
        right_inverse="the code of the table's value nearest to W / absmax",
        source="bitsandbytes 0.50.2 (dequantize_4bit)",
        target="bitsandbytes:FourBit",
        arguments=(
            Argument("table", "choice", "what the codes stand for", "nf4", choices=("nf4", "fp4")),
            Argument("block", "int", "entries with one absmax", 64, minimum=1, maximum=MOST),
            Argument(
                "nested",
                "int",
                "absmax with one nested_absmax; none: absmax are numbers",
                None,
                minimum=1,
                maximum=MOST,
            ),
            Argument("offset", "float", "what is added to nested absmax", 0.0),
        ),
        spelt=("table", "block"),
        cost="one pass",
        reshapes=True,
        stores=_four_bit_stores,
        verifies=OF_CODES,
        decodes=True,
    ),
    Entry(
        name="bnb_int8",
        family="quantized",
        summary="integers of 8 bits, with the largest magnitude of each output",
        law="W = (code scale) 7.874015718698502e-3, in float32",
        maps=(("any", "any"),),
        right_inverse="code = 127 W / scale, rounded to the nearest",
        source="bitsandbytes 0.50.2 (int8_vectorwise_dequant)",
        target="bitsandbytes:Int8",
        cost="one pass",
        stores=_int8_stores,
        verifies=OF_CODES,
        decodes=True,
    ),
)
