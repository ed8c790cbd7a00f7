"""Adapters: sets of originals that are kept apart from the weights they belong to, whichever file format spells them.

An adapter is a list of changes, each of one tensor of a base: a parametrization, and its tensors in the adapter's file.
`attach` puts them on the groups of an open base, where they are what any other parametrized tensor is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ..checkpoint.source import Source, TensorInfo
from ..errors import PATH, TENSOR, InputRefused, Known, UsageError
from ..spec import value_text
from ..text import closest, count_text, printable, shape_text
from ..view import View, parse_view
from ..wording import given, words
from .forms import Group
from .opened import Opened

# A name as the adapter has it -> as the base has it.
Rename = Callable[[str], str]
TRANSPOSE = parse_view("transpose")
# No module lies deeper; of a name that does, its last parts are looked up alone.
DEEPEST = 64


@dataclass(frozen=True)
class Change:
    """What an adapter does to one tensor.

    `tensor`: its name as the adapter has it, for which `others` may stand in the base; `keys`: the parametrization's
    own tensors, by name; `reads`: which it is, and through which view, of the base's tensor; it raises InputRefused
    where it cannot be of one of that shape. A change that is several parametrizations says of a tensor of the second
    "1.name". `made`: those that the adapter's file has no tensor for; `spends`: keys that are no tensors of it, all of
    which `reads` has told (a scale). An `optional` one is of a tensor that not every base has.
    """

    tensor: str
    keys: Mapping[str, str]
    reads: Callable[[Group], tuple[str, View]]
    others: tuple[str, ...] = ()
    made: Mapping[str, Callable[[Group], TensorInfo]] = field(default_factory=dict)
    optional: bool = False
    spends: tuple[str, ...] = ()

    @property
    def taken(self) -> set[str]:
        """The keys that it is made of."""
        return {*self.keys.values(), *self.spends}


class Names:
    """How the names of an adapter's changes are found in a base: as they are."""

    def finder(self, groups: Mapping[str, Group]) -> Callable[[Change], str | None]:
        """A change -> the name of its tensor there; None where none is it, InputRefused where several may be."""
        return lambda change: next((name for name in (change.tensor, *change.others) if name in groups), None)

    def hint(self, groups: Mapping[str, Group], adapter: Adapter, lost: Sequence[Change]) -> str:
        """What to do about changes of no tensor there."""
        if adapter.prefixes.pairs:
            if here := [name for name in adapter.prefixes.met if name in groups]:
                return Known(f"without {given('adapter-prefix')} its names are the base's, as {printable(here[0])} is")
        elif prefix := _prefix_that_does(groups, adapter):
            return given("adapter-prefix", {prefix[0]: prefix[1]})
        near = closest(lost[0].tensor, groups)
        return Known(f"the base has {words(near, 3)}") if near else "is it an adapter of this base?"


@dataclass(frozen=True)
class Found:
    """Changes that a base tells: the tensors that they are made of in place of those of the file that it `replaces`,
    and which of them several share.
    """

    changes: tuple[Change, ...]
    tensors: Mapping[str, TensorInfo]
    replaces: frozenset[str]
    shared: frozenset[str]


class InBase(Protocol):
    """Takes an adapter out of a base's own file."""

    def within(self, base: Opened) -> tuple[Opened, Adapter]:
        """(the base without it, the adapter); InputRefused where it is not there."""

    def require_none_left(self, base: Opened) -> None:
        """InputRefused where the file holds another one."""


@dataclass(frozen=True)
class Adapter:
    """An open adapter: what it says of itself, and its changes in the order in which they are made."""

    source: Source
    title: str
    changes: tuple[Change, ...]
    # Tensors that several changes share.
    shared: frozenset[str] = field(default_factory=frozenset)
    # Key -> the base's tensor that it is a copy of.
    copies: Mapping[str, str] = field(default_factory=dict)
    # Makes the changes that only a base can tell, which come first; of `expected` parameters.
    late: Callable[[Mapping[str, Group], Rename], Found] | None = None
    expected: int = 0
    # Where its tensors are in the base's own file, and `source` has none.
    inside: InBase | None = None
    prefixes: Prefixes = field(default_factory=lambda: Prefixes([]))
    # What it says of itself, for who looks at it: rank, scale, targets.
    facts: Mapping[str, str] = field(default_factory=dict)
    # Those that are known to change nothing.
    idle: frozenset[str] = field(default_factory=frozenset)
    # Sees the base before any change is made.
    looks: Callable[[Mapping[str, Group]], None] | None = None
    names: Names = field(default_factory=Names)
    # What is to be said of how it was read, once that is done.
    notes: Callable[[], Iterable[str]] = tuple

    def with_prefix(self, prefixes: Prefixes) -> Adapter:
        """The adapter with the beginnings of its tensors' names replaced: the first that fits each."""
        if not prefixes.pairs:
            return self
        if self.inside is not None:
            return replace(self, prefixes=prefixes)
        changes = tuple(_renamed(change, prefixes) for change in self.changes)
        copies = {key: prefixes.replaced(name) for key, name in self.copies.items()}
        return replace(self, changes=changes, copies=copies, prefixes=prefixes)

    def on(self, groups: Mapping[str, Group]) -> Adapter:
        """The adapter with all its changes, for a base."""
        if self.late is None:
            return self
        found = self.late(groups, self.prefixes.replaced)
        tensors = {key: info for key, info in self.source.tensors.items() if key not in found.replaces}
        source = replace(self.source, tensors={**tensors, **found.tensors})
        changes, shared = (*found.changes, *self.changes), self.shared | found.shared
        return replace(self, source=source, changes=changes, shared=shared, late=None)


class Prefixes:
    """What replaces the beginnings of an adapter's names, in order: the first that fits a name."""

    def __init__(self, pairs: Sequence[tuple[str, str]]):
        self.pairs = tuple(pairs)
        self._met: dict[str, None] = {}
        self._used: set[tuple[str, str]] = set()

    @property
    def met(self) -> Collection[str]:
        """The names that were looked at, as the adapter has them."""
        return self._met.keys()

    def replaced(self, name: str) -> str:
        self._met[name] = None
        for pair in self.pairs:
            if name.startswith(pair[0]):
                self._used.add(pair)
                return pair[1] + name[len(pair[0]) :]
        return name

    def require_used(self, adapters: Sequence[str]) -> None:
        """Raise UsageError for one that no name began with, of all adapters that were given: those at these paths."""
        where = PATH + (f" and {count_text(len(adapters) - 1, 'other adapter')}" if len(adapters) > 1 else "")
        for old, new in self.pairs:
            if (old, new) in self._used:
                continue
            begun = any(name.startswith(old) for name in self._met)
            parts = (name.split(".", 2)[:-1] for name in self._met)
            begins = dict.fromkeys(".".join(first[:count]) + "." for first in parts for count in (1, 2) if first)
            near = closest(old, begins, 1)
            raise UsageError(
                f"{given('adapter-prefix', {old: new})}: "
                + (f"an earlier one replaces what begins so in {where}" if begun else f"no name in {where} begins so"),
                hint=None if begun else Known(f"closest: {words(near)}" if near else f"one is {words(self._met, 1)}"),
                path=Path(adapters[0]),
                option="adapter-prefix",
            )


def _renamed(change: Change, prefixes: Prefixes) -> Change:
    names = [prefixes.replaced(name) for name in (change.tensor, *change.others)]
    return replace(change, tensor=names[0], others=tuple(names[1:]))


def parse_prefixes(texts: Sequence[str]) -> Prefixes:
    """What --adapter-prefix gives, each as of `parse_prefix`."""
    return Prefixes([parse_prefix(text) for text in texts])


def parse_prefix(text: str) -> tuple[str, str]:
    """'OLD=NEW' -> (OLD, NEW); either may be empty. Raises UsageError."""
    old, equals, new = text.partition("=")
    if not equals:
        raise UsageError(
            f"{given('adapter-prefix', text)}: OLD=NEW is wanted",
            hint=given("adapter-prefix", {"model.": "model.language_model."}),
            option="adapter-prefix",
        )
    return old, new


def _prefix_that_does(groups: Mapping[str, Group], adapter: Adapter) -> tuple[str, str] | None:
    """(OLD, NEW) with which every name of the adapter is one of the base, each another; None where there is none, or
    are several. Neither names another layer than the other: numbers stay what they are.
    """
    find = adapter.names.finder(groups)
    needed = [change for change in adapter.changes if not change.optional]
    first = next(change.tensor for change in needed if find(change) is None)
    parts = first.split(".")
    found: set[tuple[str, str]] = set()
    for cut in range(max(1, len(parts) - DEEPEST), len(parts) - 1):
        tail = "." + ".".join(parts[cut:])
        old = ".".join(parts[:cut]) + "."
        for name in groups:
            if name.endswith(tail) or name == tail[1:]:
                found.add((old, name[: len(name) - len(tail) + 1] if name != tail[1:] else ""))
        if len(found) > 64:
            return None
    fits = []
    for old, new in sorted(found, key=lambda pair: -len(pair[0])):
        if re.findall(r"\d+", old) != re.findall(r"\d+", new):
            continue
        names = {change.tensor: find(_renamed(change, Prefixes([(old, new)]))) for change in needed}
        if None not in names.values() and len(set(names.values())) == len(names):
            fits.append((old, new))
    return fits[-1] if fits else None


def lora_item(name: str, rank: int, scale: float) -> str:
    """The item of a chain for a change that is scaled by `scale`, whatever its rank."""
    return f"{name}:rank={rank}:alpha={value_text(scale * rank)}"


def matrix_of(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0] if shape else 1, math.prod(shape[1:])


def half_a_change(module: str, missing: Sequence[str], there: str, source: Source) -> InputRefused:
    """The refusal of a module that lacks some of the tensors that are a change together with one that is there."""
    return InputRefused(
        f"{TENSOR} is half a change: {printable(module)} has no {' and no '.join(missing)}",
        tensor=there,
        path=source.path,
        hint="copy or download the adapter again: without the rest it is none",
    )


def not_of_shape(group: Group, what: str, shapes: Iterable[Sequence[int]]) -> InputRefused:
    """The refusal of a change whose tensors are of another size than the base's."""
    return InputRefused(
        f"{TENSOR} is {shape_text(group.shape)} in the base, and the adapter's {what} "
        f"{' and '.join(shape_text(shape) for shape in shapes)}",
        hint="is it an adapter of this base?",
        tensor=group.tensor,
    )
