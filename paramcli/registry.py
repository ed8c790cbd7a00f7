"""The table of parametrizations and of the constraints their values lie in.

The entries are in `catalogue`, to be read as such: no maths and no torch, an entry names the class that
does the work (`target`), and says what a person and the type check need to know. A chain is well typed
when each item's domain contains the image before it; the sets and their inclusions are CONSTRAINTS.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .catalogue import (
    adapters,
    core,
    decoders,
    decoders_bitsandbytes,
    definite,
    elementwise,
    geotorch,
    gptq,
    integers,
    lycoris,
    manifolds,
    measures,
    minifloats,
    norms,
    orthogonal,
    peft,
    peft_sums,
    quantized,
    sparse,
    structured,
)
from .catalogue.entry import ConstraintEntry, Entry, MeasureEntry
from .errors import Known, UsageError, error_context
from .spec import Item, Value, is_name, parse_items, value_text
from .text import closest, printable
from .wording import call

if TYPE_CHECKING:
    from .maths.base import Constraint, Parametrization

AnyEntry = TypeVar("AnyEntry", bound=Entry | ConstraintEntry | MeasureEntry)

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
    lycoris,
    peft,
    peft_sums,
    geotorch,
)
CONSTRAINTS: dict[str, ConstraintEntry] = {entry.name: entry for family in _FAMILIES for entry in family.CONSTRAINTS}
PARAMETRIZATIONS: dict[str, Entry] = {entry.name: entry for family in _FAMILIES for entry in family.PARAMETRIZATIONS}
# Those of quantized weights, which are no parametrizations of a weight that is trained: what a file stores are codes.
DECODERS: dict[str, Entry] = {
    entry.name: entry
    for family in (decoders, decoders_bitsandbytes, gptq, integers, minifloats)
    for entry in family.DECODERS
}
MEASURES = measures.MEASURES
# The set that contains every other: to promise it is to promise nothing.
ANY = "any"
# Entries that are not built in -> who brought them.
ORIGINS: dict[str, str] = {}


@error_context(option="plugin")
def add_family(family: object, origin: str) -> None:
    """Add the entries of a plug-in's tables; `origin` is shown on their cards.

    Raises UsageError, and adds nothing, where they are no entries, take a name that is taken, or name one that is not
    there.
    """
    sets, maps, measured = (
        tuple(getattr(family, name, ())) for name in ("CONSTRAINTS", "PARAMETRIZATIONS", "MEASURES")
    )
    if not sets and not maps:
        raise UsageError(f"{origin} has no PARAMETRIZATIONS and no CONSTRAINTS")
    brought = (
        (CONSTRAINTS, sets, ConstraintEntry),
        (PARAMETRIZATIONS, maps, Entry),
        (MEASURES, measured, MeasureEntry),
    )
    for table, entries, kind in brought:
        taken = set(table)
        for entry in entries:
            if not isinstance(entry, kind) or not is_name(entry.name):
                raise UsageError(f"{origin}: {printable(entry, 80)} is no {kind.__name__} with a lower-case name")
            if entry.name in taken:
                raise UsageError(f"{origin}: the name {entry.name} is taken")
            taken.add(entry.name)
    named = [name.partition(":")[0] for entry in maps for pair in entry.maps for name in pair if isinstance(name, str)]
    named += [name for entry in sets for name in (*entry.within, *entry.implies, *filter(None, [entry.closure]))]
    _require_known(named, (*CONSTRAINTS, *(entry.name for entry in sets)), "constraint", origin)
    keepers = [entry.keeper for entry in sets if entry.keeper]
    _require_known(keepers, (*PARAMETRIZATIONS, *(entry.name for entry in maps)), "parametrization", origin)
    for table, entries, _ in brought:
        table.update({entry.name: entry for entry in entries})
    ORIGINS.update({entry.name: origin for entry in (*sets, *maps)})


def _require_known(named: Iterable[str], known: Collection[str], kind: str, origin: str) -> None:
    unknown = sorted(set(named).difference(known))
    if unknown:
        raise UsageError(f"{origin}: no {kind} named {printable(unknown[0])}")


def within(name: str, other: str) -> bool:
    """Is the set `name` contained in the set `other`, by the table's inclusions?"""
    return name == other or any(within(parent, other) for parent in CONSTRAINTS[name].within)


def look_up(table: Mapping[str, AnyEntry], name: str, kind: str) -> AnyEntry:
    """The entry of this name; raises UsageError with the closest names where there is none."""
    if name not in table:
        near = closest(name, table)
        asked = {"constraints": True} if table is CONSTRAINTS else {}
        raise UsageError(
            f"no {kind} named '{printable(name)}'",
            hint=Known(f"closest: {', '.join(near)}")
            if near
            else f"{call('registry', **asked)} lists them, {len(table)} in all",
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
    defaults = {name: argument.default for name, argument in known.items()}
    if entry.impossible is not None and (why := entry.impossible({**defaults, **values})):
        raise UsageError(why, hint=f"e.g. {entry.examples[-1]}")
    return values


@overload
def target_class(entry: Entry) -> type[Parametrization]: ...
@overload
def target_class(entry: ConstraintEntry) -> type[Constraint]: ...
def target_class(entry: Entry | ConstraintEntry) -> type[Parametrization] | type[Constraint]:
    """The class behind an entry of this table; imports torch."""
    return entry.target if isinstance(entry.target, type) else _class_of(entry.target)


@functools.cache
def _class_of(target: str) -> Any:
    """'norm:WeightNorm' -> the class; asked several times for every tensor."""
    module, name = target.split(":")
    return getattr(import_module(f".maths.{module}", __package__), name)


def constraint(spec: str) -> Constraint:
    """'sparse:amount=0.3' -> the Constraint; imports torch."""
    entry, arguments = parse_constraint(spec)
    made: Callable[..., Constraint] = target_class(entry)
    return made(**arguments)


def spec_of(made: Constraint) -> str:
    """The shortest spec of a Constraint, whose attributes have the names of its arguments."""
    entry = CONSTRAINTS[made.name]
    given = [(a, getattr(made, a.name)) for a in entry.arguments]
    return entry.name + "".join(
        f":{a.name}={value_text(value)}"
        for a, value in given
        if a.required or a.name in entry.spelt or value != a.default
    )


@error_context(option="constraint")
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
