"""Weights that bitsandbytes quantized, by what stands beside the codes.

    bnb_4bit   X.weight (uint8 n/2, or its bytes as another dtype), X.weight.absmax, X.weight.quant_map,
               X.weight.quant_state.bitsandbytes__nf4 (or __fp4): JSON with shape, block size and dtype;
               nested: X.weight.nested_absmax, X.weight.nested_quant_map
    bnb_int8   X.weight (int8), X.SCB, X.weight_format

The JSON is the file's word: nothing of it is believed that the tensors' sizes do not say too.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping

from ..checkpoint.source import Source, TensorInfo
from ..dtypes import CODE_OF_TORCH, EDITABLE
from ..errors import TENSOR
from ..spec import value_text
from ..text import printable, shape_text
from .forms import ASIDE
from .quantized_form import Form, Parts, Reading
from .readings import built_in

KINDS = ("nf4", "fp4")
STATE = ".quant_state.bitsandbytes__"
# A state has 200 bytes; no model has a weight as large, nor the package such blocks.
MOST_STATE, MOST_ENTRIES, MOST_BLOCK = 4096, 1 << 44, 1 << 20
INCOMPLETE = "the file is incomplete or damaged: if it is a shard, give its folder or index"
ITS_LIBRARY = "bitsandbytes saves row by row and with its own tables: save it again with that"


class _Unknown(Exception):
    """(what contradicts, what to do next): the tensors are meant for this form and are none of it."""


def _require(holds: object, what: str, hint: str = INCOMPLETE) -> None:
    if not holds:
        raise _Unknown(what, hint)


def _unknown(form: str, parts: Parts, keys: Mapping[str, str], said: _Unknown) -> Reading:
    return Reading(form, keys, parts.codes.shape, None, *said.args)


def _four_bit(parts: Parts) -> Reading | None:
    """The codes of n entries in n / 2 bytes, whatever dtype these are stored as."""
    states = {kind: info for kind in KINDS if (info := parts.at(STATE + kind)) is not None}
    if parts.codes.dtype not in ("U8", *EDITABLE) or not (states or parts.codes.dtype == "U8"):
        return None
    roles = {"0.absmax": "absmax", "0.nested_absmax": "nested_absmax", "0.nested_quant_map": "nested_quant_map"}
    there = {role: info for role, name in roles.items() if (info := parts.at(f".{name}")) is not None}
    keys = {"original": parts.name, **{role: info.name for role, info in there.items()}}
    # The package has the table, and does not ask this one.
    if (table := parts.at(".quant_map")) is not None:
        keys[f"{ASIDE}quant_map"] = table.name
    keys.update({f"{ASIDE}quant_state.{kind}": info.name for kind, info in states.items()})
    try:
        _require(states, f"{TENSOR} has an absmax, and no quant_state that says its shape and type")
        _require(len(states) == 1, f"{TENSOR} has a quant_state of nf4 and one of fp4")
        [(kind, info)] = states.items()
        state = _state(parts.source, info, kind)
        if table is not None:
            _require_table(parts.source, table, kind)
        return _with_state(parts, kind, state, keys, there)
    except _Unknown as said:
        return _unknown("bnb_4bit", parts, keys, said)


def _state(source: Source, info: TensorInfo, kind: str) -> Mapping[str, object]:
    """What the JSON says, which is of this kind."""
    state: object = None
    if info.dtype == "U8" and info.nbytes <= MOST_STATE and info.is_readable:
        try:
            state = json.loads(source.read_bytes(info.name).decode("utf-8"))
        except (ValueError, RecursionError):
            state = None
    _require(isinstance(state, dict), f"the quant_state of {TENSOR} is no JSON that says its shape")
    assert isinstance(state, dict)
    other = state.get("quant_type")
    _require(
        other == kind, f"the quant_state of {TENSOR} is by its name of {kind} and by its JSON of {printable(other)}"
    )
    return state


def _require_table(source: Source, info: TensorInfo, kind: str) -> None:
    from ..maths.four_bits import TABLES  # where something is quantized, not for plain tensors

    size = struct.calcsize("<16f")
    stored = source.read_bytes(info.name) if info.dtype == "F32" and info.nbytes == size and info.is_readable else b""
    own = struct.unpack("<16f", struct.pack("<16f", *TABLES[kind]))
    _require(
        len(stored) == size and struct.unpack("<16f", stored) == own,
        f"the quant_map of {TENSOR} is not the table of {kind}, which bitsandbytes decodes with whatever is stored",
        ITS_LIBRARY,
    )


def _size(state: Mapping[str, object], name: str, most: int) -> int:
    value = state.get(name)
    _require(
        isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most,
        f"the quant_state of {TENSOR} says {printable(name)} {printable(value, 40)}, which is no size",
    )
    assert isinstance(value, int)
    return value


def _shape(state: Mapping[str, object]) -> tuple[int, ...]:
    value = state.get("shape")
    sizes = value if isinstance(value, list) and 0 < len(value) <= 8 else [None]
    fits = all(isinstance(size, int) and not isinstance(size, bool) and 0 < size <= MOST_ENTRIES for size in sizes)
    _require(
        fits and math.prod(sizes) <= MOST_ENTRIES,
        f"the quant_state of {TENSOR} says the shape {printable(value, 80)}, which is none",
    )
    return tuple(sizes)


def _with_state(
    parts: Parts, kind: str, state: Mapping[str, object], keys: Mapping[str, str], there: Mapping[str, TensorInfo]
) -> Reading:
    from ..maths.runs import pairs_shape, runs_shape

    shape, block = _shape(state), _size(state, "blocksize", MOST_BLOCK)
    entries, absmax = math.prod(shape), there.get("0.absmax")
    _require(
        parts.codes.nbytes == math.ceil(entries / 2),
        f"{TENSOR} has {parts.codes.nbytes} bytes of codes, and by its quant_state {shape_text(shape)} of 4 bits",
    )
    _require(absmax, f"{TENSOR} has a quant_state, and no absmax")
    assert absmax is not None
    nested = absmax.dtype == "U8"
    _require(
        absmax.numel == math.ceil(entries / block) and (nested or absmax.dtype in EDITABLE),
        f"{TENSOR} is {shape_text(shape)} with {absmax.numel} absmax, and blocks of {block} have another number",
    )
    seen = {"original": ("U8", pairs_shape(shape)), "0.absmax": (absmax.dtype, runs_shape(block, shape))}
    spec = f"bnb_4bit:table={kind}:block={block}"
    _require(
        nested == ("nested_blocksize" in state) == ("0.nested_absmax" in there) == ("0.nested_quant_map" in there),
        f"the absmax of {TENSOR} are {'codes' if nested else 'numbers'}, and "
        f"{'what they are decoded with is not complete' if nested else 'its keys and quant_state have them nested'}",
    )
    if nested:
        each = _size(state, "nested_blocksize", MOST_BLOCK)
        whole, table, offset = there["0.nested_absmax"], there["0.nested_quant_map"], state.get("nested_offset")
        finite = isinstance(offset, int | float) and not isinstance(offset, bool) and abs(offset) < 1e30
        _require(
            whole.numel == math.ceil(absmax.numel / each)
            and whole.dtype in EDITABLE
            and table.shape == (256,)
            and table.dtype in EDITABLE,
            f"the nested absmax of {TENSOR} have {whole.numel} scales and a table of {table.numel}, which "
            f"{absmax.numel} absmax in blocks of {each} have not",
        )
        _require(finite, f"the quant_state of {TENSOR} says nested_offset {printable(offset, 40)}, which is no number")
        assert isinstance(offset, int | float)
        seen["0.nested_absmax"] = (whole.dtype, runs_shape(block * each, shape))
        spec += f":nested={each}:offset={value_text(float(offset))}"
    dtype = state.get("dtype")
    code = CODE_OF_TORCH.get(dtype) if isinstance(dtype, str) else None
    return Reading("bnb_4bit", keys, shape, built_in(spec), dtype=code if code in EDITABLE else None, seen=seen)


def _int8(parts: Parts) -> Reading | None:
    """`SCB`: the largest magnitude of each row of the weight."""
    scale, layout, codes = parts.at("SCB"), parts.at("weight_format"), parts.codes
    if codes.dtype != "I8":
        return None
    keys = {"original": parts.name}
    if scale is not None:
        keys["0.scale"] = scale.name
    if layout is not None:
        keys[f"{ASIDE}weight_format"] = layout.name
    try:
        _require(scale, f"{TENSOR} has a weight_format, and no SCB: what its integers are multiplied with")
        assert scale is not None
        _require(
            len(codes.shape) == 2 and scale.numel == codes.shape[0] and scale.dtype in EDITABLE,
            f"{TENSOR} is {shape_text(codes.shape)} with SCB of {shape_text(scale.shape)}, and every row has one",
        )
        _require(
            layout is None or (layout.nbytes == 1 and not any(parts.source.read_bytes(layout.name))),
            f"{TENSOR} does not lie row by row: its weight_format is not 0",
            ITS_LIBRARY,
        )
    except _Unknown as said:
        return _unknown("bnb_int8", parts, keys, said)
    return Reading(
        "bnb_int8", keys, codes.shape, built_in("bnb_int8"), seen={"0.scale": (scale.dtype, codes.shape[:1])}
    )


FORMS = (
    Form((".absmax", *(STATE + kind for kind in KINDS)), _four_bit, leaf=""),
    Form(("SCB", "weight_format"), _int8),
)
