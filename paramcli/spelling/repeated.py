"""Is an adapter on a weight that has it already? Twice the change is another model, and nothing else would tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from ..chain import Link
from ..checkpoint.same_bytes import same_bytes
from ..checkpoint.source import Source
from ..text import count_text, listing
from .forms import Group


def repeated(source: Source, chosen: Sequence[Group], groups: Mapping[str, Group]) -> Iterator[str]:
    """What is to be said of `chosen`, groups with adapters on them, of which `groups` has the base's own.

    Two changes of one weight by equal tensors are one change twice: that is certain, whatever the files are called. Of
    a file that was merged before the record has chains and no tensors, so there it is a question.
    """
    if twice := sum(_has_equals(source, group) for group in chosen):
        yield f"the same change is put twice on {count_text(twice, 'tensor')}: one adapter is there two times"
    there: list[str] = []
    for group in chosen:
        before = groups.get(group.tensor)
        record = None if before is None or not before.is_plain else before.record
        links = [link for _, link in _changes(group)]
        if record is not None and links and {*map(str, links)} <= {*map(str, record.chain.links)}:
            there.append(",".join(link.short for link in links))
    if there:
        what, count = listing(dict.fromkeys(there), 2), count_text(len(there), "tensor")
        yield f"{count} had {what} merged before, by the record: if that was this adapter, it is there twice now"


def _changes(group: Group) -> list[tuple[int, Link]]:
    """The links of adapters by number, but for those that put a tensor in another's place."""
    links = () if group.chain is None else group.chain.links
    return [
        (number, link)
        for number, link in enumerate(links)
        if link.entry.family == "adapter" and not link.entry.name.startswith("saved")
    ]


def _has_equals(source: Source, group: Group) -> bool:
    """Are two changes of one kind, at whatever strength, and their tensors equal?"""

    def equal(one: int, other: int) -> bool:
        here, there = _own(group, one), _own(group, other)
        alike = (same_bytes(source, key, source, there[role]) for role, key in here.items())
        return here.keys() == there.keys() and all(alike)

    return any(
        first.entry.name == second.entry.name and equal(one, other)
        for (one, first), (other, second) in combinations(_changes(group), 2)
    )


def _own(group: Group, number: int) -> dict[str, str]:
    """Role within a link -> key."""
    before = f"{number}."
    return {role.removeprefix(before): key for role, key in group.keys.items() if role.startswith(before)}
