"""Weights of integers, as compressed-tensors stores them: by themselves, or packed in words of 32 bits.

Without zero points the grid is symmetric. How many bits a packed code has is in no tensor: the number of words says it
where only one number of bits has so many for the weight's columns, which weight_shape tells.
"""

from __future__ import annotations

from collections.abc import Collection

from ..checkpoint.source import TensorInfo
from ..dtypes import EDITABLE, kind_of, words_of
from ..errors import TENSOR
from ..text import listing, shape_text
from ..wording import given
from .config_groups import Settings
from .forms import ASIDE
from .quantized_form import Parts, Reading
from .readings import built_in

_ROLES = {
    "weight_scale": "0.scale",
    "weight_zero_point": "0.zero_point",
    "weight_g_idx": "0.g_idx",
    "weight_shape": f"{ASIDE}weight_shape",
}
# What a weight_shape may hold: two sizes, or three of several experts.
_SHAPE_BYTES = 3 * 8
_OTHER_FILE = "the configuration is of another file, or the file is incomplete"


class _Wrong(ValueError):
    """What the integers come with that is none of their form."""


def int_scaled(parts: Parts) -> Reading | None:
    codes, scale = parts.codes, parts.beside["weight_scale"]
    if codes.dtype != "I8" or scale.dtype not in EDITABLE:
        return None
    zeros = parts.beside.get("weight_zero_point")
    try:
        grid = _grid(codes.shape, scale, _settings(parts))
        if zeros is not None and (kind_of(zeros.dtype) != "int" or zeros.shape != scale.shape):
            raise _Wrong(f"zero points of {shape_text(zeros.shape)} and scales of {shape_text(scale.shape)}")
        return _reading("int_scaled", parts, codes.shape, [f"int_scaled{grid}{_beside(codes.shape, parts)}"])
    except _Wrong as wrong:
        return _reading("int_scaled", parts, codes.shape, [], wrong)


def int_packed(parts: Parts) -> Reading | None:
    if parts.codes.dtype != "I32" or len(parts.codes.shape) < 2:
        return None
    shape = parts.codes.shape
    try:
        shape = _shape(parts)
        return _reading("int_packed", parts, shape, _packed_chains(parts, shape))
    except _Wrong as wrong:
        return _reading("int_packed", parts, shape, [], wrong)


def _settings(parts: Parts) -> list[Settings]:
    """Those that the configuration may mean of integers."""
    said = parts.config.groups.of(parts.module)
    settings = [s for s in said if s.type != "float"]
    if said and not settings:
        raise _Wrong("a configuration that says they are floats")
    return settings


def _packed_chains(parts: Parts, shape: tuple[int, ...]) -> list[str]:
    """All that such words may be of a weight of this shape."""
    codes, scale, zeros = parts.codes, parts.beside.get("weight_scale"), parts.beside.get("weight_zero_point")
    if scale is None or scale.dtype not in EDITABLE:
        raise _Wrong("no scale beside them")
    settings = _settings(parts)
    arguments = _grid(shape, scale, settings) + _beside(shape, parts)
    if zeros is None and settings and all(s.symmetric is False for s in settings):
        raise _Wrong("no zero points, which its configuration says it has")
    heads = [
        (f"int_packed:bits={bits}:columns={shape[-1]}", ":layout=words" if layout == "words" else "")
        for bits in range(1, 9)
        for layout in ("stream", "words")
        if _fits(shape, codes, zeros, scale, bits, layout)
        and (not settings or any(s.bits in (bits, None) for s in settings))
        and (layout == "stream" or _differ(shape, zeros, bits))
    ]
    if not heads:
        zero = f" and zero points of {shape_text(zeros.shape)}" if zeros is not None else ""
        bits = listing(sorted({str(s.bits) for s in settings}), 4) if settings else "1 to 8"
        raise _Wrong(
            f"{shape_text(codes.shape)} words{zero}, which no weight of {shape_text(shape)} of {bits} bits has"
        )
    return [f"{head}{arguments}{layout}" for head, layout in heads]


def _reading(
    form: str, parts: Parts, shape: tuple[int, ...], chains: list[str], wrong: _Wrong | None = None
) -> Reading:
    """Of several chains one is asked for."""
    keys = {"original": parts.name, **{role: parts.beside[e].name for e, role in _ROLES.items() if e in parts.beside}}
    unknown = hint = None
    if wrong is not None:
        unknown, hint = f"{TENSOR} is of integers with {wrong}", _OTHER_FILE
    elif len(chains) > 1:
        unknown = f"{TENSOR} is {shape_text(shape)} in packed integers of a number of bits that its tensors do not tell"
        hint = " or ".join(given("chain", chain) for chain in chains)
    chain = built_in(chains[0]) if len(chains) == 1 else None
    return Reading(form, keys, shape, chain, unknown, hint, parts.named("weight"))


def _grid(shape: tuple[int, ...], scale: TensorInfo, settings: Collection[Settings]) -> str:
    """What has a scale, as arguments of a chain."""
    rows, groups = scale.shape[:-1], scale.shape[-1] if scale.shape else 1
    beside = f"scales of {shape_text(scale.shape)} for {shape_text(shape)}"
    if scale.numel == 1 and len(scale.shape) < 2:
        said, strategy, size = ":per=tensor", "tensor", None
    elif len(shape) < 2 or rows != shape[:-1] or not groups or shape[-1] % groups:
        raise _Wrong(beside)
    elif groups == 1:
        said, strategy, size = ":per=output", "channel", shape[-1]
    else:
        size = shape[-1] // groups
        said, strategy = f":per=group:size={size}", "group"
    if settings and not any(_agrees(s, strategy, size, groups) for s in settings):
        raise _Wrong(f"{beside}, which its configuration says otherwise")
    return said


def _agrees(settings: Settings, strategy: str, size: int | None, groups: int) -> bool:
    """May such scales be of these settings? One group is all columns."""
    if settings.strategy in ("group", "tensor_group"):
        return settings.size in (None, size) and strategy != "tensor"
    return settings.strategy in (None, strategy) or (settings.strategy == "tensor" and groups == 1)


def _beside(shape: tuple[int, ...], parts: Parts) -> str:
    """What stands beside the scales, as arguments of a chain."""
    order = parts.beside.get("weight_g_idx")
    if order is not None and (kind_of(order.dtype) != "int" or order.shape != shape[-1:]):
        raise _Wrong(f"a weight_g_idx of {shape_text(order.shape)} for {shape_text(shape)}")
    zeros = ":zero_point=true" if "weight_zero_point" in parts.beside else ""
    return zeros + (":g_idx=true" if order is not None else "")


def _fits(
    shape: tuple[int, ...], codes: TensorInfo, zeros: TensorInfo | None, scale: TensorInfo, bits: int, layout: str
) -> bool:
    if codes.shape[-1] != words_of(shape[-1], bits, layout):
        return False
    wanted = (*scale.shape[:-2], words_of(shape[-2], bits, layout), *scale.shape[-1:])
    return zeros is None or (zeros.dtype == "I32" and zeros.shape == wanted)


def _differ(shape: tuple[int, ...], zeros: TensorInfo | None, bits: int) -> bool:
    """Do the two layouts have other words?"""
    longest = max(shape[-1], shape[-2] if zeros is not None else 0)
    return 32 % bits != 0 and longest > 32 // bits


def _shape(parts: Parts) -> tuple[int, ...]:
    """The weight's shape, which a tensor beside the codes holds."""
    info, codes = parts.beside.get("weight_shape"), parts.codes.shape
    if info is None or info.dtype not in ("I64", "I32") or info.shape != (len(codes),) or info.nbytes > _SHAPE_BYTES:
        raise _Wrong(f"no weight_shape beside their {shape_text(codes)} words")
    held, each = parts.source.read_bytes(info.name), 8 if info.dtype == "I64" else 4
    sizes = tuple(int.from_bytes(held[at : at + each], "little", signed=True) for at in range(0, len(held), each))
    if sizes[:-1] != codes[:-1] or not 0 < sizes[-1] <= 32 * codes[-1]:
        raise _Wrong(f"a weight_shape of {shape_text(sizes)} for {shape_text(codes)} words")
    return sizes
