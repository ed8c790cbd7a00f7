"""Results -> one JSON document. Keys are an interface: they are added to, never renamed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..errors import ParamcliError
from ..text import printable_path
from ..wording import in_shell

if TYPE_CHECKING:
    from ..catalogue.entry import ConstraintEntry, Entry, MeasureEntry


def document(value: object) -> str:
    """Strict JSON: NaN and infinities as strings, lone surrogates escaped, keys in the order given."""
    return json.dumps(_strict(value), allow_nan=False, indent=2).replace("\x7f", "\\u007f")


def _strict(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str) and not value.isascii():
        # A lone surrogate is no text to strict parsers, even as an escape.
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_strict(str(key)): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, os.PathLike):
        return _strict(os.fspath(value))
    return value


def error_document(error: ParamcliError) -> dict[str, object]:
    """As a command prints it."""
    path = None if error.path is None else printable_path(error.path)
    return {
        "error": {
            "code": error.code,
            "message": error.in_words(in_shell),
            "hint": error.advised(in_shell),
            "option": error.option,
            "tensor": error.tensor,
            "path": path,
        }
    }


def registry_document(
    entries: Sequence[Entry], constraints: Iterable[ConstraintEntry] = (), measures: Iterable[MeasureEntry] = ()
) -> dict[str, object]:
    from ..registry import domains_and_images

    listed = [
        {
            "name": c.name,
            "summary": c.summary,
            "within": list(c.within),
            "arguments": [a.name for a in c.arguments],
            "residual": c.residual,
        }
        for c in constraints
    ]
    return {
        "parametrizations": [
            {
                "name": entry.name,
                "family": entry.family,
                "summary": entry.summary,
                "arguments": [
                    {
                        "name": a.name,
                        "type": a.type,
                        "default": a.default,
                        "required": a.required,
                        "choices": list(a.choices),
                        "minimum": a.minimum,
                        "maximum": a.maximum,
                        "help": a.help,
                    }
                    for a in entry.arguments
                ],
                **domains_and_images(entry),
                "law": entry.law,
                "right_inverse": entry.right_inverse,
                "verifies": entry.verifies or None,
                "cost": entry.cost,
                "source": entry.source,
            }
            for entry in entries
        ],
        **({"constraints": listed} if listed else {}),
        **({"measures": [asdict(entry) for entry in measures]} if measures else {}),
    }
