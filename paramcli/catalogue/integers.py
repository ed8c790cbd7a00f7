"""Weights quantized to integers."""

from __future__ import annotations

from collections.abc import Mapping

from ..dtypes import words_of
from ..spec import Argument, Value
from .decoders import MOST, count
from .entry import Entry, Shape, Stored
from .measures import OF_CODES

_SCALES = (
    Argument("per", "choice", "what has a scale of its own", "output", choices=("tensor", "output", "group")),
    Argument("size", "int", "columns of a group, with per=group", minimum=1, maximum=MOST),
    Argument("zero_point", "bool", "is there a zero point beside each scale?", False),
    Argument("g_idx", "bool", "is there a list of the columns' groups?", False),
)


def _impossible(arguments: Mapping[str, Value]) -> str | None:
    if (arguments["per"] == "group") != (arguments["size"] is not None):
        return "per=group needs size, the columns of a group, and nothing else has one"
    return None


def _stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    per = arguments.get("per", "output")
    grid = {"tensor": (), "output": (*shape[:-1], 1)}.get(str(per))
    if grid is None:
        grid = (*shape[:-1], shape[-1] // count(arguments, "size"))
    stored: Stored = {"original": (None, shape), "scale": (None, grid)}
    if arguments.get("zero_point"):
        stored["zero_point"] = (None, grid)
    if arguments.get("g_idx"):
        stored["g_idx"] = ("I32", shape[-1:])
    return stored


def _packed_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    stored, bits, layout = _stores(shape, arguments), count(arguments, "bits"), str(arguments.get("layout", "stream"))
    stored["original"] = ("I32", (*shape[:-1], words_of(shape[-1], bits, layout)))
    if "zero_point" in stored:
        *batch, outputs, groups = stored["zero_point"][1]
        stored["zero_point"] = ("I32", (*batch, words_of(outputs, bits, layout), groups))
    return stored


DECODERS = (
    Entry(
        name="int_scaled",
        family="quantized",
        summary="8-bit integers, with one scale, or one for each output or group of columns",
        law="W = (code - zero_point) scale, in float32; the group of column j is j // size, or g_idx_j",
        maps=(("any", "any"),),
        right_inverse="code = W / scale + zero_point, rounded to the nearest integer of 8 bits",
        source="compressed-tensors 0.20 (int-quantized)",
        target="integers:Integers",
        arguments=_SCALES,
        impossible=_impossible,
        examples=("int_scaled:per=group:size=128",),
        cost="one pass",
        stores=_stores,
        verifies=OF_CODES,
        decodes=True,
    ),
    Entry(
        name="int_packed",
        family="quantized",
        summary="integers of 1 to 8 bits packed in words of 32, with one scale for each output or group of columns",
        law="W = (code - zero) scale, in float32, with a zero of 2^(bits-1) where none is stored; codes lie along the "
        "columns and zeros along the outputs, in one stream of bits, the lowest first "
        "(layout=words: no code in two words)",
        maps=(("any", "any"),),
        right_inverse="code = W / scale + zero, rounded to the nearest integer of so many bits",
        source="compressed-tensors 0.20 (pack-quantized)",
        target="integers:PackedIntegers",
        arguments=(
            Argument("bits", "int", "bits of a code", required=True, minimum=1, maximum=8),
            Argument("columns", "int", "columns of the weight", required=True, minimum=1, maximum=1 << 32),
            *_SCALES,
            Argument("layout", "choice", "how codes lie in words", "stream", choices=("stream", "words")),
        ),
        impossible=_impossible,
        examples=("int_packed:bits=4:columns=4096:per=group:size=128",),
        reshapes=True,
        cost="two passes",
        stores=_packed_stores,
        verifies=OF_CODES,
        decodes=True,
    ),
)
