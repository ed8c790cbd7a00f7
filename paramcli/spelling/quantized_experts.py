"""Experts in MXFP4, as two models store them.

gpt-oss      X_blocks (uint8, of (experts, out, in / 32, 16)), X_scales: X is their transpose, of (experts, in, out)
DeepSeek V4  X.weight (int8, of (out, in / 2)), X.scale (exponents, of (out, in / 32))
"""

from __future__ import annotations

from ..errors import TENSOR
from ..text import printable, shape_text
from .quantized_form import Parts, Reading
from .readings import built_in

EXPONENTS = ("U8", "F8_E8M0")
# Bytes, and entries, of a block with one scale.
BYTES, BLOCK = 16, 32
INCOMPLETE = "the file is incomplete: if it is a shard, give its folder or index"


def transposed_blocks(parts: Parts) -> Reading | None:
    """gpt-oss: the two names of a parameter that has none of its own."""
    stem, codes = parts.name.removesuffix("_blocks"), parts.codes
    if codes.dtype != "U8" or len(codes.shape) < 3 or codes.shape[-1] != BYTES:
        return None
    scale = parts.everything.get(f"{stem}_scales")
    keys = {"original": parts.name, **({"0.scale": scale.name} if scale is not None else {})}
    *batch, out, groups = codes.shape[:-1]
    shape = (*batch, groups * BLOCK, out)
    unknown = None
    if scale is None:
        unknown = f"{TENSOR} has blocks of 4-bit floats, and no {printable(stem)}_scales"
    elif scale.dtype not in EXPONENTS or scale.shape != codes.shape[:-1]:
        unknown = (
            f"{TENSOR} has blocks of {shape_text(codes.shape)} and scales of {shape_text(scale.shape)} in "
            f"{scale.dtype}, and every block has one, a byte"
        )
    if unknown is not None:
        return Reading("mxfp4", keys, codes.shape, None, unknown, INCOMPLETE)
    seen = {"original": ("U8", (*batch, out, groups * BYTES))}
    return Reading("mxfp4", keys, shape, built_in("mxfp4:transposed=true"), tensor=stem, seen=seen)


def packed_bytes(parts: Parts) -> Reading | None:
    """DeepSeek V4: the bytes are called int8, and are two floats each. `expert_dtype` may say so, or be absent."""
    scale, codes = parts.beside.get("scale"), parts.codes
    if scale is None or codes.dtype != "I8" or scale.dtype != "F8_E8M0":
        return None
    keys = {"original": parts.name, "0.scale": scale.name}
    shape = (*codes.shape[:-1], 2 * codes.shape[-1]) if codes.shape else ()
    said, unknown = parts.config.values.get("expert_dtype"), None
    if len(shape) < 2 or shape[-1] % BLOCK or scale.shape != (*shape[:-1], shape[-1] // BLOCK):
        unknown = (
            f"{TENSOR} has bytes of {shape_text(codes.shape)} and scales of {shape_text(scale.shape)}, which two "
            f"floats of 4 bits in each byte and a scale for {BLOCK} columns do not have"
        )
    elif said not in (None, "fp4"):
        unknown = f"{TENSOR} is of two floats of 4 bits in each byte, and by its configuration of {printable(said, 40)}"
    if unknown is not None:
        return Reading(
            "mxfp4", keys, codes.shape, None, unknown, "the configuration is of another file, or the file is incomplete"
        )
    return Reading("mxfp4", keys, shape, built_in("mxfp4"), seen={"original": ("U8", codes.shape)})
