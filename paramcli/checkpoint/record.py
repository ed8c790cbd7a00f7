"""The record: which chains paramcli put on which tensors, in one metadata key of the file.

    {"schema": 1, "version": "0.1.0",
     "tensors": {"fc.weight": {"state": "parametrized", "chain": "skew,cayley", "view": null,
                               "constraint": "special_orthogonal"}}}

It is data from an untrusted file: a fixed set of keys, every value a short text, and no part of it
names code. What is malformed or contradicts the tensors is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from ..errors import InputRefused, ParamcliError
from ..text import listing, printable

KEY = "paramcli"
SCHEMA = 1
STATES = ("parametrized", "baked")
# Room for a chain on each of 100,000 tensors; nothing legitimate comes near.
MAX_BYTES = 64 << 20
_FIELDS = {"state", "chain", "view", "constraint"}
# Only where the originals do not tell it: two factors under a view.
_OPTIONAL = {"shape"}
IGNORE_HINT = "--ignore-record reads the file without it"


@dataclass(frozen=True)
class Entry:
    """What the record says of one tensor. `constraint` stays after a bake, so that verify has a claim to prove."""

    state: str
    chain: str
    view: str | None = None
    constraint: str | None = None
    shape: tuple[int, ...] | None = None


def _refuse(why: str, tensor: str | None = None) -> InputRefused:
    return InputRefused(f"the paramcli record in the file's metadata {why}", hint=IGNORE_HINT, tensor=tensor)


def parse_record(text: str | None) -> dict[str, Entry]:
    """Tensor name -> Entry; {} where there is no record. Raises InputRefused for anything malformed."""
    if text is None:
        return {}
    if len(text) > MAX_BYTES:
        raise _refuse(f"is {len(text)} characters long; {MAX_BYTES} is the limit")
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise _refuse("is not a JSON document") from None
    if not isinstance(document, dict) or set(document) != {"schema", "version", "tensors"}:
        raise _refuse("does not have exactly the keys schema, version and tensors")
    if document["schema"] is True or document["schema"] != SCHEMA:
        raise _refuse(f"has schema {printable(document['schema'], 40)}; this paramcli reads {SCHEMA}")
    if not isinstance(document["version"], str) or not isinstance(document["tensors"], dict):
        raise _refuse("has a version or tensors of the wrong type")
    return {name: _entry(name, fields) for name, fields in document["tensors"].items()}


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(text)


def _entry(name: str, fields: object) -> Entry:
    from ..chain import parse_chain
    from ..registry import parse_constraint
    from ..view import parse_view

    if not isinstance(fields, dict) or set(fields) - _OPTIONAL != _FIELDS:
        raise _refuse(f"does not give exactly {', '.join(sorted(_FIELDS))} for {printable(name)}", name)
    if fields["state"] not in STATES or not isinstance(fields["chain"], str):
        raise _refuse(f"gives {printable(name)} an unknown state or a chain that is no text", name)
    if not all(fields[key] is None or isinstance(fields[key], str) for key in ("view", "constraint")):
        raise _refuse(f"gives {printable(name)} a view or constraint that is no text", name)
    shape = fields.get("shape")
    if shape is not None and not (_is_shape(shape) and math.prod(s for s in shape if s) < 1 << 63):
        raise _refuse(f"gives {printable(name)} a shape that is none", name)
    try:
        parse_chain(fields["chain"])
        parse_view(fields["view"])
        if fields["constraint"] is not None:
            parse_constraint(fields["constraint"])
    except ParamcliError as error:
        raise _refuse(f"is wrong about {printable(name)}: {error.message}", name) from None
    return Entry(**{**fields, "shape": None if shape is None else tuple(shape)})


def _is_shape(value: object) -> bool:
    return type(value) is list and len(value) <= 64 and all(type(size) is int and 0 <= size < 1 << 63 for size in value)


def record_text(entries: dict[str, Entry], version: str) -> str:
    """The JSON document, keys sorted: equal records are equal text."""
    tensors = {
        name: {key: value for key, value in vars(entry).items() if value is not None or key in _FIELDS}
        for name, entry in entries.items()
    }
    return json.dumps({"schema": SCHEMA, "version": version, "tensors": tensors}, sort_keys=True, ensure_ascii=False)


def check_against(entries: dict[str, Entry], forms: dict[str, str]) -> None:
    """Raise InputRefused where the record contradicts the tensors. `forms`: tensor name -> form in the file."""
    absent = [name for name in entries if name not in forms]
    if absent:
        raise _refuse(f"names tensors that the file does not have: {listing(absent)}", absent[0])
    for name, entry in entries.items():
        if (entry.state == "baked") != (forms[name] == "plain"):
            raise _refuse(f"calls {printable(name)} {entry.state}, and its form in the file is {forms[name]}", name)
