"""Recipes: many edits as one text, and back.

    [[edit]]
    command = "add"                  # add, assign, remove, migrate or merge
    tensor = ["rnn.weight_hh*"]      # the command's options by their long names
    view = "blocks=4"
    chain = "skew,cayley"

A recipe is TOML, or the JSON document that an editing command printed with --json: both have a list `edit`
of such tables. It is checked as a whole, and a message names the line.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .checkpoint.disk.input_file import no_such_file
from .dtypes import dtype_name
from .errors import FILE, PATH, InputRefused, Known, ParamcliError, Place, UsageError
from .surgery.commands import EDITS, edit_of
from .surgery.edits.base import Edit
from .surgery.plan import Step
from .text import closest, printable, shape_text
from .wording import call

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 16 << 20
# (an edit's number, a key or None) -> the line where that stands.
Lines = dict[tuple[int, str | None], int]
_KINDS: dict[str, tuple[str, Callable[[object], bool]]] = {
    "text": ("a text", lambda value: isinstance(value, str)),
    "texts": (
        "a list of texts",
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
    ),
    "number": ("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)),
    "numbers": ("a list of numbers", lambda value: isinstance(value, list) and all(map(_KINDS["number"][1], value))),
    "integer": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "flag": ("true or false", lambda value: isinstance(value, bool)),
}


def read_recipe(path: Path) -> list[Edit]:
    """The edits of a recipe file; raises UsageError that tells every mistake with its line."""
    text = _read(path)
    if text.lstrip()[:1] == "{":
        return _edits(_json(text, path).get("edit"), lambda index, key: Place(path, index + 1), path)
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{FILE} is not TOML: {printable(error)}",
            option="recipe",
            hint='each edit is a table: [[edit]], command = "add", ...',
            path=path,
        ) from None
    lines = locate(text)
    _refuse_strangers(found, lines, path)
    return _edits(found.get("edit"), lambda index, key: Place(path, index + 1, _line(lines, index, key)), path)


def _line(lines: Lines, index: int, key: str | None) -> int:
    """Of the key, else of its edit, else of the list that holds them all."""
    return next((lines[place] for place in ((index, key), (index, None), (-1, "edit")) if place in lines), 1)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES or not os.path.isfile(path):
            raise InputRefused(f"{PATH} is no recipe: not a text file of at most {MAX_BYTES >> 20} MiB", path=path)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise no_such_file(path) from None
    except OSError as error:
        raise InputRefused(f"cannot open {PATH}: {error.strerror}", path=path) from None
    except ValueError:
        raise InputRefused(
            f"{PATH} is no recipe: not UTF-8 text",
            hint="apply takes the recipe first, then the checkpoint",
            path=path,
        ) from None


def _json(text: str, path: Path) -> Mapping[str, object]:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{FILE} is not JSON: {printable(error)}", path=path, option="recipe") from None


# What the end of a line means depends on these alone: texts, comments, and the brackets of a list or a table.
_TOKEN = re.compile(
    r'''"""(?:[^\\]|\\.)*?"{3,5}|'{3}.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|#[^\n]*|[\[\]{}\n]''', re.DOTALL
)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each statement of a sound TOML text, in one pass."""
    depth, line, begin, place = 0, 1, 1, 0
    for token in _TOKEN.finditer(text):
        kind = token[0]
        if kind in ("[", "{"):
            depth += 1
        elif kind in ("]", "}"):
            depth -= 1
        line += kind.count("\n")
        if kind == "\n" and not depth:
            yield begin, text[place : token.end()]
            begin, place = line, token.end()
    yield begin, text[place:]


def locate(text: str) -> Lines:
    """(edit's number, key) -> line, and (edit's number, None) -> the line where the edit begins.

    tomllib tells no lines, so each statement is parsed by itself. Keys outside any edit have the number -1.
    """
    found: Lines = {}
    edit = -1
    for line, part in _statements(text):
        statement = tomllib.loads(part)
        if not part.lstrip().startswith("["):
            for key in statement:
                found.setdefault((edit, key), line)
        elif statement == {"edit": [{}]}:
            edit += 1
            found[edit, None] = line
        else:
            found[-1, next(iter(statement))] = line
    return found


def _refuse_strangers(found: Mapping[str, object], lines: Lines, path: Path) -> None:
    for key in found:
        if key != "edit":
            raise UsageError(
                f"a recipe is a list of [[edit]] tables and has no '{printable(key)}'",
                option="recipe",
                hint="[[edit]]"
                if isinstance(found[key], (dict, list))
                else _WHOLE.get(key, "put it under an [[edit]]"),
                path=path,
                origin=Place(path, None, lines.get((-1, key), 1)),
            )


# What is said of the run as a whole stands on the command line, not in the recipe.
_WHOLE = {
    key: f"it is for the whole run: {call('apply', 'RECIPE', 'CKPT')} --{key}"
    for key in (
        "verify",
        "check",
        "sync",
        "no-sync",
        "force",
        "in-place",
        "dry-run",
        "output",
        "device",
        "root",
        "ignore-record",
        "json",
        "quiet",
    )
}


# (number of an edit from 0, key or None) -> where that stands.
Places = Callable[[int, str | None], Place]


def _edits(tables: object, places: Places, path: Path) -> list[Edit]:
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise UsageError(
            f"{FILE} holds no list of edits",
            option="recipe",
            hint='[[edit]], command = "add", tensor = ["fc.weight"], chain = "skew,cayley"',
            path=path,
        )
    edits, problems = [], []
    for index, table in enumerate(tables):
        try:
            edits.append(_edit(table, index, places))
        except ParamcliError as error:
            problems.append(error)
    if problems:
        first, *first.others = problems
        first.path = path
        raise first
    return edits


def _edit(table: Mapping[str, object], index: int, places: Places) -> Edit:
    """One table as an edit; every mistake carries its option and where that is."""

    def wrong(key: str | None, message: str, hint: str | None = None) -> UsageError:
        return UsageError(message, hint=hint, option=key, origin=places(index, key))

    command = table.get("command")
    if not isinstance(command, str) or command not in EDITS:
        near = closest(str(command), EDITS, 1)
        known = f"command is one of {', '.join(EDITS)}"
        if command is None:
            typo = next((key for key in table if closest("command", [key])), None)
            raise wrong(
                typo, "the edit has no command", Known(f"closest: '{printable(typo)}' stands there") if typo else known
            )
        raise wrong(
            "command", f"no editing command '{printable(command)}'", Known(f"closest: {near[0]}") if near else known
        )
    edit = edit_of(command, table.keys())
    declared = edit.declared()
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key == "command":
            continue
        if key not in declared:
            near = closest(key, declared, 1)
            closest_or_all = Known(f"closest: {near[0]}" if near else f"options: {', '.join(declared)}")
            raise wrong(key, f"{command} has no option '{printable(key)}'", _WHOLE.get(key, closest_or_all))
        kind = declared[key].metadata["kind"]
        if kind in ("texts", "numbers") and not isinstance(value, list):
            value = [value]
        wanted, fits = _KINDS[kind]
        if not fits(value):
            raise wrong(key, f"{key} must be {wanted}")
        values[declared[key].name] = value
    try:
        return edit(**values, origin=places(index, None))
    except ParamcliError as error:
        error.origin = places(index, error.option)
        raise


def recipe_text(edits: Sequence[Edit], steps: Sequence[Step]) -> str:
    """The plan as a recipe: each edit with the tensors it meets by name, and the keys that come out of it."""
    blocks = []
    for edit in edits:
        met = [step for step in steps if any(made is edit for made in step.edits)]
        lines = ["[[edit]]", f"command = {_toml(edit.command)}"]
        # An edit that finds its tensors itself is told which they are in a comment.
        before, after, mark = ("tensor = [", "]", "  ") if edit.by_name else (None, None, "#   ")
        lines += [before] if before else []
        for step in met:
            last = f" -> {', '.join(printable(slot.name) for slot in step.writes)}" if step.edits[-1] is edit else ""
            what = f"{shape_text(step.group.shape)} {dtype_name(step.group.dtype)}{last}"
            lines.append(f"{mark}{_toml(step.group.tensor)},  # {what}")
        lines += [after] if after else []
        lines += [f"{key} = {_toml(value)}" for key, value in edit.options().items() if key != "tensor"]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _toml(value: object) -> str:
    """A text, number or flag; what could steer a terminal is escaped, as TOML allows."""
    if isinstance(value, str):
        plain = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if printable(c) == c else f"\\U{ord(c):08x}" for c in plain) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value).lower() if isinstance(value, bool) else repr(value)
