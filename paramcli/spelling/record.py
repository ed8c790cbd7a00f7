"""The record: which chains paramcli put on which tensors, in one metadata key of the file.

    {"schema": 1, "version": "0.1.0",
     "tensors": {"fc.weight": {"state": "parametrized", "chain": "skew,cayley", "view": null,
                               "constraint": "special_orthogonal"}}}

It is data from an untrusted file: a fixed set of keys, every value a short text, and no part of it
names code. What is malformed or contradicts the tensors is refused.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..checkpoint.header import MAX_TENSORS
from ..checkpoint.source import RECORD_KEY, Source
from ..checkpoint.strict_json import BrokenJson, read_any, read_text, walk_document, walk_object
from ..errors import TENSOR, InputRefused, ParamcliError, error_context
from ..text import count_text, listing, printable
from ..view import IDENTITY, View, parse_view

if TYPE_CHECKING:
    from ..chain import Chain
from ..wording import given

KEY = RECORD_KEY
SCHEMA = 1
STATES = ("parametrized", "baked")
# Room for a chain on each of 100,000 tensors; nothing legitimate comes near.
MAX_BYTES = 64 << 20
MAX_ENTRIES = MAX_TENSORS
_ABSENT = 10_000
_PARTS = {"schema", "version", "tensors"}
# Beside these a shape, but only where the originals do not tell it: two factors under a view.
_FIELDS = {"state", "chain", "view", "constraint"}
IGNORE_HINT = f"{given('ignore-record', True)} reads the file without it"


@dataclass(frozen=True)
class Entry:
    """What the record says of one tensor. `constraint` stays after a bake, so that verify has a claim to prove."""

    state: str
    chain: Chain
    view: View = IDENTITY
    constraint: str | None = None
    shape: tuple[int, ...] | None = None

    def document(self) -> dict[str, object]:
        """As the file has it."""
        shape = {} if self.shape is None else {"shape": self.shape}
        return {
            "state": self.state,
            "chain": str(self.chain),
            "view": self.view.text,
            "constraint": self.constraint,
            **shape,
        }


def _refuse(why: str, tensor: str | None = None) -> InputRefused:
    return InputRefused(
        f"the paramcli record in the file's metadata {why}", hint=IGNORE_HINT, tensor=tensor, code="bad_record"
    )


def parse_record(text: str | None, most: int = MAX_ENTRIES) -> dict[str, Entry]:
    """Tensor name -> Entry, of at most so many; {} where there is no record. InputRefused for anything malformed.

    Each value is looked at as it is read: a hostile document of 64 MB would be gigabytes of lists before that.
    """
    if text is None:
        return {}
    if len(text) > MAX_BYTES:
        raise _refuse(f"is {len(text)} characters long; {MAX_BYTES} is the limit")
    said: set[str] = set()
    entries: dict[str, Entry] = {}
    # A hundred thousand tensors share a handful of chains; each is type-checked once.
    parse = functools.cache(_parsed)

    def read_part(key: str, at: int) -> int:
        if key not in _PARTS:
            raise _refuse("does not have exactly the keys schema, version and tensors")
        said.add(key)
        if key == "tensors" and text[at : at + 1] == "{":
            return walk_object(text, at, read_tensor)
        value, at = read_any(text, at, 256)
        if key == "schema" and (type(value) is not int or value != SCHEMA):
            raise _refuse(f"has another schema; this paramcli reads {SCHEMA}")
        if key == "tensors" or (key == "version" and not isinstance(value, str)):
            raise _refuse("has a version or tensors of the wrong type")
        return at

    def read_tensor(name: str, at: int) -> int:
        fields: dict[str, str | None] = {}
        shape: tuple[int, ...] | None = None

        def read_field(key: str, at: int) -> int:
            nonlocal shape
            if key == "shape":
                value, at = read_any(text, at, 2048)
                shape = _shape_of(value, name)
            elif key not in _FIELDS:
                raise _refuse(f"does not give exactly {', '.join(sorted(_FIELDS))} for {TENSOR}", name)
            elif text.startswith("null", at):
                fields[key], at = None, at + 4
            elif text[at : at + 1] == '"':
                fields[key], at = read_text(text, at)
            else:
                raise _refuse(f"gives {TENSOR} a {key} that is no text", name)
            return at

        if len(entries) == min(most, MAX_ENTRIES):
            raise _refuse(f"names more than {count_text(len(entries), 'tensor')}", name)
        at = walk_object(text, at, read_field)
        entries[name] = _entry(name, fields, shape, parse)
        return at

    try:
        walk_document(text, read_part)
    except BrokenJson as error:
        raise _refuse(f"is not a JSON document of this format: {error}") from None
    if said != _PARTS:
        raise _refuse("does not have exactly the keys schema, version and tensors")
    return entries


def join_records(texts: Mapping[str, str], most: int = MAX_ENTRIES) -> dict[str, Entry]:
    """The record of a checkpoint of several files from each file's own, by file name, of at most so many tensors;
    InputRefused where two disagree on one.
    """
    if (total := sum(map(len, texts.values()))) > MAX_BYTES:
        raise _refuse(f"is {total} characters long in all files; {MAX_BYTES} is the limit")
    joined: dict[str, Entry] = {}
    for text, file in {text: file for file, text in texts.items()}.items():
        with error_context(path=file):
            entries = parse_record(text, most)
        for name, entry in entries.items():
            if joined.setdefault(name, entry) != entry:
                raise InputRefused(
                    f"{printable(file)} has another paramcli record of {TENSOR} than the files before it",
                    hint=f"shards of different runs are mixed here; {IGNORE_HINT}",
                    tensor=name,
                    code="bad_record",
                )
        if len(joined) > MAX_ENTRIES:
            raise _refuse(f"names more than {MAX_ENTRIES} tensors")
    return joined


def record_in(source: Source) -> dict[str, Entry]:
    """Tensor name -> Entry, of a checkpoint in one file or in many."""
    # Each tensor that it may name has a key at least; of those that it may not, the first are told by name.
    most = len(source.tensors) + _ABSENT
    if source.shard_records:
        return join_records(source.shard_records, most)
    return parse_record(source.metadata.get(KEY), most)


def _parsed(chain: str, view: str | None, constraint: str | None) -> tuple[Chain, View] | str:
    """The chain and the view; why these are no chain, view and constraint where they are none."""
    from ..chain import parse_chain
    from ..registry import parse_constraint

    try:
        parsed = parse_chain(chain), parse_view(view)
        if constraint is not None:
            parse_constraint(constraint)
        return parsed
    except ParamcliError as error:
        return error.fact


def _entry(
    name: str,
    fields: Mapping[str, str | None],
    shape: tuple[int, ...] | None,
    parse: Callable[..., tuple[Chain, View] | str],
) -> Entry:
    if fields.keys() != _FIELDS:
        raise _refuse(f"does not give exactly {', '.join(sorted(_FIELDS))} for {TENSOR}", name)
    state, chain, view, constraint = (fields[key] for key in ("state", "chain", "view", "constraint"))
    if state is None or state not in STATES or chain is None:
        raise _refuse(f"gives {TENSOR} an unknown state or no chain", name)
    parsed = parse(chain, view, constraint)
    if isinstance(parsed, str):
        raise _refuse(f"is wrong about {TENSOR}: {parsed}", name)
    # Of any tensor it holds that it is one: no claim, and nothing to prove.
    return Entry(state, *parsed, None if constraint == "any" else constraint, shape)


def _shape_of(value: object, name: str) -> tuple[int, ...] | None:
    if value is None:
        return None
    sizes = value if isinstance(value, list) and len(value) <= 64 else None
    if sizes is None or not all(type(size) is int and 0 <= size < 1 << 63 for size in sizes):
        raise _refuse(f"gives {TENSOR} a shape that is none", name)
    if math.prod(size for size in sizes if size) >= 1 << 63:
        raise _refuse(f"gives {TENSOR} a shape that is none", name)
    return tuple(sizes)


def record_text(entries: Mapping[str, Entry], version: str) -> str:
    """The JSON document, keys sorted: equal records are equal text."""
    tensors = {name: entry.document() for name, entry in entries.items()}
    document = {"schema": SCHEMA, "version": version, "tensors": tensors}
    text = json.dumps(document, sort_keys=True, ensure_ascii=False)
    if len(text) > MAX_BYTES or len(entries) > MAX_ENTRIES:
        raise InputRefused(
            f"the paramcli record of {len(entries)} tensors would be larger than one that can be read again",
            hint=f"edit fewer of them: {given('tensor')}",
        )
    return text


def check_against(entries: dict[str, Entry], forms: dict[str, str]) -> None:
    """Raise InputRefused where the record contradicts the tensors. `forms`: tensor name -> form in the file."""
    absent = [name for name in entries if name not in forms]
    if absent:
        others = f", {listing(absent[1:], 7)}" if absent[1:] else ""
        raise _refuse(f"names tensors that the file does not have: {TENSOR}{others}", absent[0])
    for name, entry in entries.items():
        if (entry.state == "baked") != (forms[name] == "plain"):
            raise _refuse(f"calls {TENSOR} {entry.state}, and its form in the file is {forms[name]}", name)
