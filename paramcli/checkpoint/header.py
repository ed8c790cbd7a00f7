"""The safetensors header as a pure function of bytes, both ways.

    8 bytes   length n of the header, little-endian
    n bytes   JSON: {"__metadata__": {...}, "name": {"dtype", "shape", "data_offsets": [begin, end]}, ...}
    the rest  tensors, row-major, covering everything without gap or overlap

Stricter than the library where its reader would lose data: a key that appears twice is refused, and
so is an entry that is no object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..dtypes import DTYPES, bits_of
from ..errors import InputRefused
from ..text import printable

METADATA_KEY = "__metadata__"
# The library's own cap; a header of this size names about a million tensors.
MAX_HEADER_BYTES = 100_000_000
# Entries nest two deep; anything deeper is no header, and must not recurse the JSON parser.
MAX_DEPTH = 4
_NESTING = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.S)


@dataclass(frozen=True)
class Slot:
    """A tensor's place in a header: name, dtype code, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return bits_of(self.dtype, self.shape) // 8


@dataclass(frozen=True)
class Header:
    """What a header says, checked: slots with their (begin, end) in the data, and the metadata."""

    tensors: Mapping[str, tuple[Slot, int, int]]
    metadata: Mapping[str, str]


def header_length(first: bytes, file_size: int) -> int:
    """The header's length from the first 8 bytes; refused when the file cannot hold it."""
    if len(first) < 8:
        raise InputRefused("too short for a safetensors file", hint="copy or download the file again")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES:
        raise InputRefused(f"not a safetensors file: its header would be {length} bytes long")
    if 8 + length > file_size:
        raise InputRefused(
            f"cut short: its header alone is {length} bytes, the file has {file_size}", hint="copy or download the file again"
        )
    return length


def parse_header(data: bytes, data_size: int) -> Header:
    """The header in `data` for a file with `data_size` bytes after it; raises InputRefused for every broken one."""
    _check_depth(data)
    try:
        document = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=_integer, parse_float=_refuse_float
        )
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, _Broken) else "it is not UTF-8 JSON"
        raise InputRefused(f"its safetensors header is broken: {reason}") from None
    if not isinstance(document, dict):
        raise InputRefused("its safetensors header is not a JSON object")
    metadata = document.pop(METADATA_KEY, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputRefused("its metadata are not text by text")
    for text in (*metadata, *metadata.values(), *document):
        if not _encodable(text):
            raise InputRefused(f"its header holds text that is no Unicode: {printable(text, 60)}")
    tensors = {name: _entry(name, fields) for name, fields in document.items()}
    _check_coverage(tensors, data_size)
    return Header(tensors, metadata)


class _Broken(ValueError):
    """Why a JSON text is no header; its message is ours."""


def _check_depth(data: bytes) -> None:
    depth = 0
    for found in _NESTING.finditer(data):
        token = found.group()
        if token in (b"{", b"["):
            depth += 1
            if depth > MAX_DEPTH:
                raise InputRefused("its safetensors header is broken: it is nested too deep")
        elif token in (b"}", b"]"):
            depth -= 1


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Broken(f"'{printable(twice, 80)}' appears twice")
    return found


def _refuse_constant(text: str) -> None:
    raise _Broken(f"{text} is not JSON")


def _refuse_float(text: str) -> None:
    raise _Broken(f"{printable(text, 40)} is not a whole number")


def _integer(text: str) -> int:
    if len(text) > 20:
        raise _Broken("a number of more than 20 digits")
    return int(text)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _entry(name: str, fields: object) -> tuple[Slot, int, int]:
    shown = printable(name, 80)
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise InputRefused(f"the header's entry for {shown} is not exactly dtype, shape and data_offsets", tensor=name)
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputRefused(f"{shown} has the unknown dtype {printable(dtype, 40)}", tensor=name)
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise InputRefused(f"{shown} has a broken shape or offsets", tensor=name)
    begin, end = offsets
    bits = bits_of(dtype, shape)
    if bits % 8 or end - begin != bits // 8:
        raise InputRefused(
            f"{shown} is {dtype} {'x'.join(map(str, shape)) or 'scalar'}, and its offsets hold {end - begin} bytes", tensor=name
        )
    return Slot(name, dtype, tuple(shape)), begin, end


def _check_coverage(tensors: Mapping[str, tuple[Slot, int, int]], data_size: int) -> None:
    position = 0
    for slot, begin, end in sorted(tensors.values(), key=lambda entry: entry[1:]):
        if begin != position:
            what = "overlaps another tensor" if begin < position else f"leaves a gap of {begin - position} bytes before it"
            raise InputRefused(f"{printable(slot.name, 80)} {what}", tensor=slot.name)
        position = end
    if position != data_size:
        if position > data_size:
            raise InputRefused(
                f"cut short: its header asks for {position} bytes of tensors, the file has {data_size}",
                hint="copy or download the file again",
            )
        raise InputRefused(f"it has {data_size - position} bytes after its last tensor that no tensor owns")


# The library's order: its enumeration of dtypes from last to first, which is widest first.
_ORDER = (
    "U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16",
    "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL",
)  # fmt: skip
_RANK = {code: rank for rank, code in enumerate(_ORDER)}


def file_order(slots: Iterable[Slot]) -> list[Slot]:
    """The order in which `safetensors.torch.save` lays tensors out, so that equal content is equal bytes."""
    return sorted(slots, key=lambda slot: (_RANK[slot.dtype], slot.name.encode("utf-8")))


def build_header(slots: Iterable[Slot], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """(length and JSON of the header, name -> offset in the data), for slots in the order given."""
    document: dict[str, object] = {}
    if metadata:
        document[METADATA_KEY] = dict(sorted(metadata.items()))
    offsets, position = {}, 0
    for slot in slots:
        document[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [position, position + slot.nbytes]}
        offsets[slot.name] = position
        position += slot.nbytes
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offsets
