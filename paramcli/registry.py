"""The table of parametrizations and of the constraints their values lie in.

The entries are in `catalogue`, to be read as such: no maths and no torch, an entry names the class that
does the work (`target`), and says what a person and the type check need to know. A chain is well typed
when each item's domain contains the image before it; the sets and their inclusions are CONSTRAINTS.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from .catalogue import core
from .catalogue.entry import ConstraintEntry, Entry
from .errors import UsageError
from .spec import Item, Value, parse_items
from .text import closest, printable

_FAMILIES = (core,)
CONSTRAINTS = {entry.name: entry for family in _FAMILIES for entry in family.CONSTRAINTS}
PARAMETRIZATIONS = {entry.name: entry for family in _FAMILIES for entry in family.PARAMETRIZATIONS}


def within(name: str, other: str) -> bool:
    """Is the set `name` contained in the set `other`, by the table's inclusions?"""
    return name == other or any(within(parent, other) for parent in CONSTRAINTS[name].within)


def look_up(table: Mapping[str, Entry] | Mapping[str, ConstraintEntry], name: str, kind: str):
    if name not in table:
        near = closest(name, table)
        raise UsageError(
            f"no {kind} named '{printable(name)}'",
            hint=f"closest: {', '.join(near)}" if near else f"known: {', '.join(table)}",
        )
    return table[name]


def typed_arguments(entry: Entry | ConstraintEntry, item: Item) -> dict[str, Value]:
    """The item's arguments by the entry's table; raises UsageError for unknown, missing or bad ones."""
    known = {argument.name: argument for argument in entry.arguments}
    values = {}
    for key, text in item.arguments:
        if key not in known:
            raise UsageError(
                f"{entry.name} has no argument '{printable(key)}'",
                hint=f"arguments: {', '.join(known)}" if known else f"{entry.name} takes none",
            )
        values[key] = known[key].parse(text, entry.name)
    for argument in entry.arguments:
        if argument.required and argument.name not in values:
            raise UsageError(
                f"{entry.name} needs {argument.name}: {argument.help}", hint=f"e.g. {entry.name}:{argument.name}=0.3"
            )
    return values


def target_class(entry: Entry | ConstraintEntry) -> type:
    """The class behind an entry of this table; imports torch."""
    if isinstance(entry.target, type):
        return entry.target
    module, name = entry.target.split(":")
    return getattr(import_module(f".maths.{module}", __package__), name)


def constraint(spec: str):
    """'sparse:amount=0.3' -> the Constraint; imports torch."""
    entry, arguments = parse_constraint(spec)
    return target_class(entry)(**arguments)


def parse_constraint(spec: str) -> tuple[ConstraintEntry, dict[str, Value]]:
    """The table's entry and arguments of a constraint spec; raises UsageError. No torch."""
    items = parse_items(spec)
    if len(items) != 1:
        raise UsageError(f"'{printable(spec)}' names {len(items)} constraints; one is wanted")
    entry = look_up(CONSTRAINTS, items[0].name, "constraint")
    return entry, typed_arguments(entry, items[0])


def domains_and_images(entry: Entry) -> dict[str, list[str]]:
    """Domains with their images, in order; an image that depends on arguments shows its name alone."""
    defaults = {argument.name: argument.default if argument.default is not None else 0 for argument in entry.arguments}
    images = [image if isinstance(image, str) else image(defaults).partition(":")[0] for _, image in entry.maps]
    return {"domain": [domain for domain, _ in entry.maps], "image": images}
