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
from ..text import listing, printable
from ..view import IDENTITY, View, parse_view

if TYPE_CHECKING:
    from ..chain import Chain

KEY = RECORD_KEY
SCHEMA = 1
STATES = ("parametrized", "baked")
# Room for a chain on each of 100,000 tensors; nothing legitimate comes near.
MAX_BYTES = 64 << 20
MAX_ENTRIES = MAX_TENSORS
_FIELDS = {"state", "chain", "view", "constraint"}
# Only where the originals do not tell it: two factors under a view.
_OPTIONAL = {"shape"}
IGNORE_HINT = "--ignore-record reads the file without it"


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
    return InputRefused(f"the paramcli record in the file's metadata {why}", hint=IGNORE_HINT, tensor=tensor)


def parse_record(text: str | None) -> dict[str, Entry]:
    """Tensor name -> Entry; {} where there is no record. Raises InputRefused for anything malformed."""
    if text is None:
        return {}
    if len(text) > MAX_BYTES:
        raise _refuse(f"is {len(text)} characters long; {MAX_BYTES} is the limit")
    found: dict[str, object] = {}
    entries: dict[str, dict[str, object]] = {}

    def read_part(key: str, at: int) -> int:
        if key != "tensors" or text[at : at + 1] != "{":
            found[key], at = read_any(text, at)
            return at
        found[key] = entries
        return walk_object(text, at, read_tensor)

    def read_tensor(name: str, at: int) -> int:
        fields: dict[str, object] = {}

        def read_field(key: str, at: int) -> int:
            if key not in _FIELDS | _OPTIONAL:
                raise _refuse(f"does not give exactly {', '.join(sorted(_FIELDS))} for {TENSOR}", name)
            # A text or null; one field is a list of at most 64 sizes.
            fields[key], at = read_text(text, at) if text[at : at + 1] == '"' else read_any(text, at, 2048)
            return at

        entries[name] = fields
        if len(entries) > MAX_ENTRIES:
            raise _refuse(f"names more than {MAX_ENTRIES} tensors", name)
        return walk_object(text, at, read_field)

    try:
        # Value by value: a hostile document of 64 MB would be gigabytes of lists before anyone could look at it.
        walk_document(text, read_part)
    except BrokenJson as error:
        raise _refuse(f"is not a JSON document of this format: {error}") from None
    if found.keys() != {"schema", "version", "tensors"}:
        raise _refuse("does not have exactly the keys schema, version and tensors")
    if type(found["schema"]) is not int or found["schema"] != SCHEMA:
        raise _refuse(f"has another schema; this paramcli reads {SCHEMA}")
    if not isinstance(found["version"], str) or found["tensors"] is not entries:
        raise _refuse("has a version or tensors of the wrong type")
    # A hundred thousand tensors share a handful of chains; each is type-checked once.
    parse = functools.cache(_parsed)
    return {name: _entry(name, fields, parse) for name, fields in entries.items()}


def join_records(texts: Mapping[str, str]) -> dict[str, Entry]:
    """The record of a checkpoint of several files from each file's own, by file name; InputRefused where two disagree
    on a tensor.
    """
    if (total := sum(map(len, texts.values()))) > MAX_BYTES:
        raise _refuse(f"is {total} characters long in all files; {MAX_BYTES} is the limit")
    joined: dict[str, Entry] = {}
    for text, file in {text: file for file, text in texts.items()}.items():
        with error_context(path=file):
            entries = parse_record(text)
        for name, entry in entries.items():
            if joined.setdefault(name, entry) != entry:
                raise InputRefused(
                    f"{printable(file)} has another paramcli record of {TENSOR} than the files before it",
                    hint=f"shards of different runs are mixed here; {IGNORE_HINT}",
                    tensor=name,
                )
        if len(joined) > MAX_ENTRIES:
            raise _refuse(f"names more than {MAX_ENTRIES} tensors")
    return joined


def record_in(source: Source) -> dict[str, Entry]:
    """Tensor name -> Entry, of a checkpoint in one file or in many."""
    return join_records(source.shard_records) if source.shard_records else parse_record(source.metadata.get(KEY))


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
        return error.message


def _entry(name: str, fields: dict[str, object], parse: Callable[..., tuple[Chain, View] | str]) -> Entry:
    if set(fields) - _OPTIONAL != _FIELDS:
        raise _refuse(f"does not give exactly {', '.join(sorted(_FIELDS))} for {TENSOR}", name)
    state, chain, view, constraint = (fields[key] for key in ("state", "chain", "view", "constraint"))
    if not isinstance(state, str) or state not in STATES or not isinstance(chain, str):
        raise _refuse(f"gives {TENSOR} an unknown state or a chain that is no text", name)
    if not (view is None or isinstance(view, str)) or not (constraint is None or isinstance(constraint, str)):
        raise _refuse(f"gives {TENSOR} a view or constraint that is no text", name)
    shape = _shape_of(fields.get("shape"), name)
    parsed = parse(chain, view, constraint)
    if isinstance(parsed, str):
        raise _refuse(f"is wrong about {TENSOR}: {parsed}", name)
    return Entry(state, *parsed, constraint, shape)


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
            hint="edit fewer of them: -t",
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
