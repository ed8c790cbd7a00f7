"""Weights of which the transpose is stored, in integers packed in words: GPTQ and AWQ."""

from __future__ import annotations

from collections.abc import Mapping

from ..spec import Argument, Value
from .decoders import MOST, count
from .entry import Entry, Shape, Stored
from .measures import OF_CODES

WIDTHS = (2, 3, 4, 8)
_GROUP = Argument("group", "int", "inputs of a group, which share a scale; all, if left out", minimum=1, maximum=MOST)


def _groups(inputs: int, arguments: Mapping[str, Value]) -> int:
    return 1 if arguments.get("group") is None else -(-inputs // count(arguments, "group"))


def _gptq_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    (out, inputs), bits = shape, count(arguments, "bits")
    groups = _groups(inputs, arguments)
    stored: Stored = {
        "original": ("I32", (inputs * bits // 32, out)),
        "scale": (None, (groups, out)),
        "zeros": ("I32", (groups, -(-out * bits // 32))),
    }
    if arguments.get("g_idx", True):
        stored["g_idx"] = ("I32", (inputs,))
    return stored


def _awq_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    out, inputs = shape
    groups = _groups(inputs, arguments)
    return {
        "original": ("I32", (inputs, out // 8)),
        "scale": (None, (groups, out)),
        "zeros": ("I32", (groups, out // 8)),
    }


def _width(arguments: Mapping[str, Value]) -> str | None:
    if arguments["bits"] == 3 and arguments["zeros"] == "v1_words":
        return "no word holds whole codes of 3 bits: they are stored less one each for itself, which is v1"
    if arguments["bits"] in WIDTHS:
        return None
    return f"GPTQ packs 2, 3, 4 or 8 bits so, and {arguments['bits']} only in planes (gptq_p), which are not read"


DECODERS = (
    Entry(
        name="gptq",
        family="quantized",
        summary="GPTQ: integers of 2, 3, 4 or 8 bits with a zero point and a scale for each group of inputs",
        law="W_ij = (code_ji - zero_gi) scale_gi in float32, g = g_idx_j, or j // group; zeros=v1: zero = (stored + 1) "
        "mod 2^bits; v1_words: the fields of word + 1 in each field",
        maps=(("any", "any"),),
        right_inverse="code = W / scale + zero, rounded to the nearest integer of so many bits",
        source="GPTQModel 7.7 (gptq, gptq_v2); Frantar et al. 2022, arXiv:2210.17323",
        target="gptq:GPTQ",
        arguments=(
            Argument("bits", "int", "bits of a code", required=True, minimum=2, maximum=8),
            Argument(
                "zeros",
                "choice",
                "v1: zero points are stored less one (checkpoint_format gptq); v1_words: words of them are, and a zero "
                "point of 0 borrows of the next (GPTQModel's v1); v2: as they are (gptq_v2)",
                required=True,
                choices=("v1", "v1_words", "v2"),
            ),
            _GROUP,
            Argument("g_idx", "bool", "is there a list of the inputs' groups?", True),
        ),
        impossible=_width,
        examples=("gptq:bits=4:zeros=v1:group=128",),
        reshapes=True,
        cost="two passes",
        stores=_gptq_stores,
        verifies=OF_CODES,
        decodes=True,
    ),
    Entry(
        name="awq",
        family="quantized",
        summary="AWQ (gemm): integers of 4 bits with a zero point and a scale for each group of inputs",
        law="W_ij = (code_ji - zero_gi) scale_gi in float32, g = j // group; nibble n of a word is column "
        "(0, 2, 4, 6, 1, 3, 5, 7)_n of eight",
        maps=(("any", "any"),),
        right_inverse="code = W / scale + zero, rounded to the nearest integer of 4 bits",
        source="compressed-tensors 0.20 (AutoAWQConverter); Lin et al. 2023, arXiv:2306.00978",
        target="gptq:AWQ",
        arguments=(_GROUP,),
        examples=("awq:group=128",),
        reshapes=True,
        cost="two passes",
        stores=_awq_stores,
        verifies=OF_CODES,
        decodes=True,
    ),
)
