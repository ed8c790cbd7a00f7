"""Weights of floats of 4 and 6 bits: NVFP4 as compressed-tensors and as ModelOpt store it, MXFP4 and MXFP6.

The names say what the one scale of NVFP4 does: `weight_global_scale` divides the others, `weight_scale_2` multiplies
them. How many bits a code has the widths of codes and scales say.
"""

from __future__ import annotations

from ..checkpoint.source import TensorInfo
from ..errors import TENSOR
from ..text import listing, shape_text
from .quantized_form import Parts, Reading
from .readings import built_in

# Columns for which there is a scale.
_NV, _MX = 16, 32
_EXPONENTS = ("U8", "F8_E8M0")


class _Wrong(ValueError):
    """What such codes come with that is none of their form."""


def packed_floats(parts: Parts) -> Reading | None:
    """compressed-tensors: `weight_packed`."""
    if parts.codes.dtype != "U8":
        return None
    scale, every = parts.beside.get("weight_scale"), parts.beside.get("weight_global_scale")
    if every is not None or (scale is not None and scale.dtype not in _EXPONENTS):
        return _reading(parts, scale, every, "nvfp4:global_scale=divides", "weight_global_scale")
    return _reading(parts, scale, None, None, "")


def modelopt_nvfp4(parts: Parts) -> Reading | None:
    """ModelOpt: `weight` in bytes."""
    scale, every = parts.beside.get("weight_scale"), parts.beside.get("weight_scale_2")
    if parts.codes.dtype != "U8" or (every is None and (scale is None or scale.dtype != "F8_E4M3")):
        return None
    return _reading(parts, scale, every, "nvfp4:global_scale=multiplies", "weight_scale_2")


def _reading(
    parts: Parts, scale: TensorInfo | None, every: TensorInfo | None, nvfp4: str | None, ending: str
) -> Reading:
    """`nvfp4`: its chain, where it is that, with one scale for all of this ending; else MX."""
    roles = {"original": parts.codes, "0.scale": scale, "0.global_scale": every}
    keys = {role: info.name for role, info in roles.items() if info is not None}
    shape, chain, form, unknown, hint = parts.codes.shape, None, "nvfp4" if nvfp4 else "mxfp4", None, None
    try:
        if scale is None:
            raise _Wrong("no weight_scale beside them")
        if nvfp4 is not None:
            _require_one(scale, every, ending)
            bits, run = 4, _NV
        else:
            bits, run = _mx_bits(shape, scale), _MX
            form = f"mxfp{bits}"
        shape = _shape(parts, scale, bits, run)
        chain = built_in(nvfp4 or form)
    except _Wrong as wrong:
        unknown = f"{TENSOR} is of packed floats with {wrong}"
        hint = "the configuration is of another file, or the file is incomplete"
    return Reading(form, keys, shape, chain, unknown, hint, parts.named("weight"))


def _require_one(scale: TensorInfo, every: TensorInfo | None, ending: str) -> None:
    if every is None:
        raise _Wrong(f"8-bit scales and no {ending} beside them")
    if scale.dtype != "F8_E4M3" or every.dtype != "F32" or every.numel != 1:
        raise _Wrong(
            f"scales in {scale.dtype} and a {ending} of {shape_text(every.shape) or 'one'} in {every.dtype}, which are "
            "F8_E4M3 and one number in F32"
        )


def _mx_bits(codes: tuple[int, ...], scale: TensorInfo) -> int:
    """4 or 6, as so many bytes for a scale have."""
    for bits in (4, 6):
        if scale.shape and codes and codes[-1] * 8 == scale.shape[-1] * _MX * bits:
            return bits
    raise _Wrong(
        f"{shape_text(codes)} bytes and scales of {shape_text(scale.shape)}, which are neither of 4 nor of 6 bits"
    )


def _shape(parts: Parts, scale: TensorInfo, bits: int, run: int) -> tuple[int, ...]:
    """The weight's; one that its scales or the configuration contradict is wrong."""
    codes = parts.codes.shape
    if len(codes) < 2 or scale.shape != (*codes[:-1], codes[-1] * 8 // bits // run) or codes[-1] * 8 % (bits * run):
        raise _Wrong(
            f"{shape_text(codes)} bytes and scales of {shape_text(scale.shape)}, which are not of {run} columns each"
        )
    settings = parts.config.groups.of(parts.module)
    if settings and not any(
        s.type in ("float", None) and s.bits in (bits, None) and s.size in (run, None) for s in settings
    ):
        said = listing([f"{s.type} of {s.bits} bits in groups of {s.size}" for s in settings], 3)
        raise _Wrong(f"{bits} bits and scales for {run} columns each, where its configuration says {said}")
    return (*codes[:-1], codes[-1] * 8 // bits)
