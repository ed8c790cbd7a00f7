"""`convert`: the same tensors in another container, under other names, or in another dtype."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...checkpoint.header import Slot
from ...checkpoint.source import Source
from ...dtypes import CastDtype
from ...errors import UsageError, error_context
from ...spec import select
from ...spelling.forms import Group
from ...spelling.record import Entry
from ...wording import given
from ..plan import Plan, Step, refuse_odd
from .cast import Cast
from .names import NewNames, require_same_reading

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


@dataclass(frozen=True)
class Convert:
    """What to carry over and how: kept and dropped tensors, their names there, and the dtype of floating tensors."""

    names: NewNames = field(default_factory=NewNames)
    keep: Sequence[str] = ()
    drop: Sequence[str] = ()
    dtype: CastDtype | None = None

    def plan(self, source: Source, groups: Mapping[str, Group], where: Path) -> tuple[Plan, list[str]]:
        """(the plan, keys of the tensors left out because the user said so)."""
        carried = self._carried(groups, where)
        names, tensors, renamed = self.names.of(carried)
        require_same_reading(source, carried, names, tensors)
        refuse_odd(source, ((name if key in renamed else key, key) for key, name in names.items()))
        twins = {name: tied[0] for tied in source.tied() for name in tied} if self.dtype else {}
        cast = self._cast_of(source)
        steps: list[Step] = []
        copies: list[tuple[str, str]] = []
        record: dict[str, Entry] = {}
        recorded: dict[str, str] = {}
        for group in carried:
            if group.record is not None:
                name = tensors[group.tensor]
                record[name] = group.record
                recorded.update((names[key], name) for key in group.keys.values())
            for key in group.keys.values():
                if cast is not None and cast.changes(key, source.tensors[key]):
                    steps.append(cast.step(_alone(group, key, source, twins.get(key)), names))
                else:
                    copies.append((names[key], key))
        slots = [Slot(name, source.tensors[key].dtype, source.tensors[key].shape) for name, key in copies]
        slots += [slot for step in steps for slot in step.writes]
        kept = {group.tensor for group in carried}
        left = [key for name, group in groups.items() if name not in kept for key in group.keys.values()]
        return Plan("convert", tuple(steps), tuple(copies), tuple(slots), record, recorded), left

    def uncast(self, source: Source, plan: Plan) -> str | None:
        """What is said of tensors that a cast leaves as they are, because they mean something only together."""
        cast = self._cast_of(source)
        return cast.left({key: source.tensors[key] for _, key in plan.copies}, source.path) if cast else None

    def _cast_of(self, source: Source) -> Cast | None:
        return Cast.of(self.dtype, source.tensors) if self.dtype else None

    def _carried(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        names = list(groups)
        with error_context(option="keep"):
            kept = select(names, self.keep, where) if self.keep else names
        with error_context(option="drop"):
            dropped = set(select(names, self.drop, where)) if self.drop else set()
        carried = [groups[name] for name in kept if name not in dropped]
        if not carried and (self.keep or self.drop):
            raise UsageError(f"{given('keep')} and {given('drop')} leave no tensor", option="drop")
        return carried


def _alone(group: Group, key: str, source: Source, twin: str | None) -> Group:
    """One key of a group, by itself."""
    info = source.tensors[key]
    return replace(
        group, tensor=key, keys={"value": key}, infos={"value": info}, shape=info.shape, dtype=info.dtype, twin=twin
    )


def parse_size(text: str) -> int:
    """'5GB' -> 5000000000; units of 1000 (GB) and of 1024 (GiB)."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,3})?)\s*((?:[KMGT]i?)?B)?", text, re.I)
    if not found:
        raise UsageError(
            f"{given('max-shard-size', text)}: not a size", hint="e.g. 5GB or 500MiB", option="max-shard-size"
        )
    size = int(float(found[1]) * _UNITS[(found[2] or "").upper()])
    if size < 1:
        raise UsageError(f"{given('max-shard-size', text)}: must be at least one byte", option="max-shard-size")
    return size
