"""The safetensors header as a pure function of bytes, both ways.

    8 bytes   length n of the header, little-endian
    n bytes   JSON: {"__metadata__": {...}, "name": {"dtype", "shape", "data_offsets": [begin, end]}, ...}
    the rest  tensors, row-major, covering everything without gap or overlap

Refuses all that the library refuses, and two things it accepts though they lose data: a key that
appears twice, and an entry that is no object of exactly these three fields.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from ..dtypes import DTYPES, bits_of
from ..errors import PATH, TENSOR, InputRefused
from ..text import printable, shape_text
from ..wording import call, given
from .strict_json import BrokenJson, decode_utf8, read_small_object, read_text, walk_document, walk_object

METADATA_KEY = "__metadata__"
# The library's own cap.
MAX_HEADER_BYTES = 100_000_000
# Of a checkpoint, in one file or in many, read or written. Far beyond any model; a header that is all keys must not
# become gigabytes of Python objects.
MAX_TENSORS = 500_000
MAX_METADATA_KEYS = 100_000
MAX_DIMENSIONS = 64
# What kernels and file systems move and share whole, and the bytes of which there must be some to pad a header for
# them.
PAGE, WORTH_PADDING = 4096, 1 << 20
_FIELDS = {"dtype", "shape", "data_offsets"}
_AGAIN = "copy or download the file again"


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor's place in a file to be written: name, dtype code, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return bits_of(self.dtype, self.shape) // 8


# (dtype, shape, begin, end in the data)
Described = tuple[str, tuple[int, ...], int, int]


@dataclass(frozen=True)
class Header:
    """What a header says, checked: its tensors by name, and the metadata."""

    tensors: dict[str, Described]
    metadata: dict[str, str]


def header_length(first: bytes, file_size: int) -> int:
    """The header's length from a file's first bytes, 9 if it has them; refused when the file cannot hold it."""
    if len(first) < 8:
        raise InputRefused(
            f"{PATH} is too short for a safetensors file ({file_size} bytes)", hint=_AGAIN, code="cut_short"
        )
    # The format wants the brace first: that is how the file is told from others.
    if first[8:9] not in (b"", b"{"):
        raise InputRefused(
            f"{PATH} is not a safetensors file: its header does not begin with a brace", code="not_a_checkpoint"
        )
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise InputRefused(
            f"{PATH} is not a safetensors file: its header would be {length} bytes long", code="not_a_checkpoint"
        )
    if 8 + length > file_size:
        raise InputRefused(
            f"{PATH} is cut short: its header alone is {length} bytes, the file has {file_size}",
            hint=_AGAIN,
            code="cut_short",
        )
    return length


def parse_header(data: bytes, data_size: int) -> Header:
    """The header from its JSON bytes, for a file with `data_size` bytes after it; InputRefused if it is broken."""
    tensors: dict[str, Described] = {}
    metadata: dict[str, str] = {}

    def read_metadata(key: str, at: int) -> int:
        metadata[key], at = read_text(text, at)
        if len(metadata) > MAX_METADATA_KEYS:
            raise BrokenJson(f"it has more than {MAX_METADATA_KEYS} metadata keys")
        return at

    def read_entry(name: str, at: int) -> int:
        if name == METADATA_KEY:
            return walk_object(text, at, read_metadata)
        if len(tensors) == MAX_TENSORS:
            raise BrokenJson(f"it names more than {MAX_TENSORS} tensors")
        try:
            fields, at = read_small_object(text, at)
        except BrokenJson as error:
            raise BrokenJson(f"in the entry of '{printable(name, 80)}', {error}") from None
        tensors[name] = _entry(name, fields)
        return at

    if data[:1] != b"{":
        raise InputRefused(
            f"{PATH} is not a safetensors file: its header does not begin with a brace", code="not_a_checkpoint"
        )
    try:
        text = decode_utf8(data)
        walk_document(text, read_entry)
    except BrokenJson as error:
        raise InputRefused(f"{PATH} has a broken safetensors header: {error}", code="damaged") from None
    _check_coverage(tensors, data_size)
    return Header(tensors, metadata)


# A bool is an int to isinstance; its type is not.
_WHOLE = frozenset((int,))


def _sizes(values: object) -> TypeGuard[list[int]]:
    return type(values) is list and _WHOLE.issuperset(map(type, values))


def _entry(name: str, fields: dict[str, object]) -> Described:
    def refuse(why: str) -> InputRefused:
        return InputRefused(f"{PATH} has a broken safetensors header: '{TENSOR}' {why}", tensor=name)

    if fields.keys() != _FIELDS:
        raise refuse("is not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(f"has the dtype {printable(dtype, 40)}, which safetensors does not define")
    if not _sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise refuse("has a shape that is no list of at most 64 whole numbers")
    if not _sizes(offsets) or len(offsets) != 2:
        raise refuse("has data_offsets that are not two whole numbers")
    # A zero among the sizes does not excuse the others: no reader can hold such a shape.
    count = math.prod(shape)
    if count >= 1 << 63 or (not count and math.prod(filter(None, shape)) >= 1 << 63):
        raise refuse("has a shape beyond 64 bits")
    begin, end = offsets
    bits = count * DTYPES[dtype].bits
    if bits % 8 or end - begin != bits // 8:
        raise refuse(f"is {dtype} {shape_text(shape)}, which is not the {end - begin} bytes between its offsets")
    return dtype, tuple(shape), begin, end


def _check_coverage(tensors: Mapping[str, Described], data_size: int) -> None:
    position = 0
    for begin, end, name in sorted((entry[2], entry[3], name) for name, entry in tensors.items()):
        if begin != position:
            gap = f"leaves {begin - position} bytes before it to no tensor"
            what = "overlaps another tensor" if begin < position else gap
            raise InputRefused(
                f"{PATH} has a broken safetensors header: '{TENSOR}' {what}", tensor=name, code="damaged"
            )
        position = end
    if position > data_size:
        raise InputRefused(
            f"{PATH} is cut short: its header asks for {position} bytes of tensors, the file has {data_size}",
            hint=_AGAIN,
            code="cut_short",
        )
    if position < data_size:
        raise InputRefused(
            f"{PATH} has {data_size - position} bytes after its last tensor that belong to none",
            hint=_AGAIN,
            code="damaged",
        )


# The library lays tensors out by its enumeration of dtypes from last to first, then by name.
_ORDER = (
    "U64",
    "I64",
    "F64",
    "C64",
    "F32",
    "U32",
    "I32",
    "BF16",
    "F16",
    "U16",
    "I16",
    "F8_E5M2FNUZ",
    "F8_E4M3FNUZ",
    "F8_E8M0",
    "F8_E4M3",
    "F8_E5M2",
    "I8",
    "U8",
    "F6_E3M2",
    "F6_E2M3",
    "F4",
    "BOOL",
)
_RANK = {code: rank for rank, code in enumerate(_ORDER)}


def file_order(slots: Iterable[Slot]) -> list[Slot]:
    """The order in which `safetensors.torch.save` lays tensors out, so that equal content is equal bytes."""
    # Python compares text by code point, which is the order of its UTF-8 bytes.
    return sorted(slots, key=lambda slot: (_RANK[slot.dtype], slot.name))


def layout(slots: Iterable[Slot]) -> dict[str, tuple[int, int]]:
    """name -> (begin, end) in the data, in file order."""
    places: dict[str, tuple[int, int]] = {}
    position = 0
    for slot in file_order(slots):
        _check_slot(slot)
        assert slot.name not in places, f"two slots named {slot.name}"
        end = position + slot.nbytes
        places[slot.name] = (position, end)
        position = end
    refuse_too_many(len(places))
    return places


def refuse_too_many(count: int) -> None:
    """Raise InputRefused for more tensors than can be read again."""
    if count > MAX_TENSORS:
        raise InputRefused(
            f"the result would have {count} tensors; {MAX_TENSORS} is the limit of what can be read again",
            hint=f"edit fewer of them, or make two checkpoints: {call('convert')} {given('keep')} and {given('drop')}",
        )


def congruent_end(places: Mapping[str, tuple[int, int]], origins: Mapping[str, int]) -> int | None:
    """Where the header should end, modulo PAGE, for copied tensors to lie in their pages as they do in the input.

    Whole pages can then be moved, or shared where the file system can. `origins` is each copied tensor's place in its
    file; where they differ the most bytes decide. None where there is little to gain, or it would cost the alignment.
    """
    votes: dict[int, int] = {}
    for name, origin in origins.items():
        if name in places:
            begin, end = places[name]
            votes[(origin - begin) % PAGE] = votes.get((origin - begin) % PAGE, 0) + end - begin
    best = max(votes, key=lambda value: (votes[value], -value), default=0)
    return best if votes.get(best, 0) >= WORTH_PADDING and best % 8 == 0 else None


def _check_slot(slot: Slot) -> None:
    """Raise InputRefused for what no safetensors file can hold."""

    def refuse(why: str) -> InputRefused:
        return InputRefused(f"'{TENSOR}' {why}", tensor=slot.name)

    if slot.name == METADATA_KEY:
        raise refuse("is a name that safetensors keeps for itself")
    try:
        slot.name.encode("utf-8")
    except UnicodeEncodeError:
        raise refuse("is no Unicode text, which safetensors needs as a tensor's name") from None
    if len(slot.shape) > MAX_DIMENSIONS:
        raise refuse(f"has {len(slot.shape)} dimensions; {MAX_DIMENSIONS} is the limit")
    if bits_of(slot.dtype, slot.shape) % 8:
        raise refuse(f"is {slot.dtype} {shape_text(slot.shape)}, which does not fill whole bytes")


def build_header(
    slots: Iterable[Slot],
    metadata: Mapping[str, str],
    end: int | None = None,
    longest: Mapping[str, str] | None = None,
    places: Mapping[str, tuple[int, int]] | None = None,
) -> bytes:
    """Length and JSON of the header, padded to 8 bytes; with one metadata key the bytes of `safetensors.torch.save`.

    The library writes several keys in random order; here they are sorted. With `end`, a multiple of 8, the header is
    padded on until its length modulo PAGE is that. With `longest`, metadata that may follow, it is as long as theirs.
    `places`: their layout, where it is known.
    """
    slots = list(slots)
    places = layout(slots) if places is None else places
    text = _header_text(slots, metadata, places)
    if longest is not None:
        text += b" " * (len(_header_text(slots, longest, places)) - len(text))
    text += b" " * (-len(text) % 8)
    padding = (end - 8 - len(text)) % PAGE if end is not None else 0
    if len(text) + padding <= MAX_HEADER_BYTES:
        text += b" " * padding
    if len(text) > MAX_HEADER_BYTES:
        raise InputRefused(
            f"the names and metadata need a header of {len(text)} bytes; safetensors allows {MAX_HEADER_BYTES}",
            hint=f"split it: {given('max-shard-size')}",
        )
    return len(text).to_bytes(8, "little") + text


def _header_text(slots: Sequence[Slot], metadata: Mapping[str, str], places: Mapping[str, tuple[int, int]]) -> bytes:
    document: dict[str, object] = {METADATA_KEY: dict(sorted(metadata.items()))} if metadata else {}
    by_name = {slot.name: slot for slot in slots}
    for name, place in places.items():
        slot = by_name[name]
        document[name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": list(place)}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
