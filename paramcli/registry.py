"""The table of parametrizations and of the constraints their values lie in.

The entries are in `catalogue`, to be read as such: no maths and no torch, an entry names the class that
does the work (`target`), and says what a person and the type check need to know. A chain is well typed
when each item's domain contains the image before it; the sets and their inclusions are CONSTRAINTS.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from .catalogue import (
    adapters,
    core,
    definite,
    elementwise,
    geotorch,
    manifolds,
    measures,
    norms,
    orthogonal,
    quantized,
    sparse,
    structured,
)
from .catalogue.entry import ConstraintEntry, Entry
from .errors import Known, UsageError
from .spec import Item, Value, is_name, parse_items, value_text
from .text import closest, printable

_FAMILIES = (
    core,
    orthogonal,
    manifolds,
    norms,
    elementwise,
    definite,
    structured,
    sparse,
    quantized,
    adapters,
    geotorch,
)
CONSTRAINTS: dict[str, ConstraintEntry] = {entry.name: entry for family in _FAMILIES for entry in family.CONSTRAINTS}
PARAMETRIZATIONS: dict[str, Entry] = {entry.name: entry for family in _FAMILIES for entry in family.PARAMETRIZATIONS}
MEASURES = measures.MEASURES
# The set that contains every other: to promise it is to promise nothing.
ANY = "any"
# Entries that are not built in -> who brought them.
ORIGINS: dict[str, str] = {}


def add_family(family: object, origin: str) -> None:
    """Add the entries of a plug-in; UsageError where they are none, or take a name that is taken."""
    sets, maps = tuple(getattr(family, "CONSTRAINTS", ())), tuple(getattr(family, "PARAMETRIZATIONS", ()))
    if not sets and not maps:
        raise UsageError(f"{origin} has no PARAMETRIZATIONS and no CONSTRAINTS")
    for table, entries, kind in ((CONSTRAINTS, sets, ConstraintEntry), (PARAMETRIZATIONS, maps, Entry)):
        for entry in entries:
            if not isinstance(entry, kind) or not is_name(entry.name):
                raise UsageError(f"{origin}: {printable(entry, 80)} is no {kind.__name__} with a lower-case name")
            if entry.name in table:
                raise UsageError(f"{origin}: the name {entry.name} is taken")
    CONSTRAINTS.update({entry.name: entry for entry in sets})
    known = {name for entry in maps for pair in entry.maps for name in pair if isinstance(name, str)}
    unknown = sorted(name for name in known if name.partition(":")[0] not in CONSTRAINTS)
    unknown += [name for entry in sets for name in entry.within if name not in CONSTRAINTS]
    if unknown:
        for entry in sets:
            del CONSTRAINTS[entry.name]
        raise UsageError(f"{origin}: no constraint named {printable(unknown[0])}")
    PARAMETRIZATIONS.update({entry.name: entry for entry in maps})
    ORIGINS.update({entry.name: origin for entry in (*sets, *maps)})


def within(name: str, other: str) -> bool:
    """Is the set `name` contained in the set `other`, by the table's inclusions?"""
    return name == other or any(within(parent, other) for parent in CONSTRAINTS[name].within)


def look_up(table: Mapping[str, Entry] | Mapping[str, ConstraintEntry], name: str, kind: str):
    if name not in table:
        near = closest(name, table)
        raise UsageError(
            f"no {kind} named '{printable(name)}'",
            hint=Known(f"closest: {', '.join(near)}")
            if near
            else f"paramcli registry{' --constraints' if table is CONSTRAINTS else ''} lists them, {len(table)} in all",
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
                hint=Known(f"arguments: {', '.join(known)}") if known else f"{entry.name} takes none",
            )
        values[key] = known[key].parse(text, entry.name)
    for argument in entry.arguments:
        if argument.required and argument.name not in values:
            example = "8" if argument.type == "int" else "0.3"
            raise UsageError(
                f"{entry.name} needs {argument.name}: {argument.help}",
                hint=f"e.g. {entry.name}:{argument.name}={example}",
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


def spec_of(made) -> str:
    """The shortest spec of a Constraint, whose attributes have the names of its arguments."""
    entry = CONSTRAINTS[made.name]
    given = [(a, getattr(made, a.name)) for a in entry.arguments]
    return entry.name + "".join(
        f":{a.name}={value_text(value)}"
        for a, value in given
        if a.required or a.name in entry.spelt or value != a.default
    )


def parse_constraint(spec: str) -> tuple[ConstraintEntry, dict[str, Value]]:
    """The table's entry and arguments of a constraint spec; raises UsageError. No torch."""
    items = parse_items(spec, "constraint", "orthogonal, or low_rank:rank=2")
    if len(items) != 1:
        raise UsageError(f"'{printable(spec)}' names {len(items)} constraints; one is wanted")
    entry = look_up(CONSTRAINTS, items[0].name, "constraint")
    return entry, typed_arguments(entry, items[0])


def domains_and_images(entry: Entry) -> dict[str, list[str]]:
    """Domains with their images, in order; an image that depends on arguments shows its name alone."""
    defaults = {argument.name: argument.default if argument.default is not None else 0 for argument in entry.arguments}
    images = [image if isinstance(image, str) else image(defaults).partition(":")[0] for _, image in entry.maps]
    return {"domain": [domain for domain, _ in entry.maps], "image": images}
