"""`convert`: the same tensors in another container, under other names, or in another dtype."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...checkpoint.header import Slot
from ...checkpoint.source import Source
from ...dtypes import CAST_DTYPES, CODE_OF_TORCH, CastDtype, dtype_name, kind_of, torch_dtype
from ...errors import UsageError, error_context
from ...spec import check_choice, select
from ...spelling.companions import companions
from ...spelling.forms import Group
from ...spelling.record import Entry
from ...text import count_text, listing
from ...wording import given
from ..plan import Made, Plan, Step, Told, once, refuse_odd
from .names import NewNames, require_same_reading

if TYPE_CHECKING:
    from ...fitting.evaluate import Tensors

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
        together = companions(source.tensors) if self.dtype else set()
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
                step = None if key in together else self._cast(group, key, names[key], source, twins.get(key))
                if step is None:
                    copies.append((names[key], key))
                else:
                    steps.append(step)
        slots = [Slot(name, source.tensors[key].dtype, source.tensors[key].shape) for name, key in copies]
        slots += [slot for step in steps for slot in step.writes]
        kept = {group.tensor for group in carried}
        left = [key for name, group in groups.items() if name not in kept for key in group.keys.values()]
        return Plan("convert", tuple(steps), tuple(copies), tuple(slots), record, recorded), left

    def uncast(self, source: Source, plan: Plan) -> str | None:
        """What is said of tensors that a cast leaves as they are, because they mean something only together."""
        together = companions(source.tensors) if self.dtype else set()
        if not (left := [key for _, key in plan.copies if key in together]):
            return None
        dtypes = sorted({dtype_name(source.tensors[key].dtype) for key in left})
        return (
            f"the file is quantized ({', '.join(dtypes)}): {count_text(len(left), 'tensor')} that mean something only "
            f"together stay as they are: {listing(left, 4)}; a cast decodes nothing"
        )

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

    def _cast(self, group: Group, key: str, name: str, source: Source, twin: str | None) -> Step | None:
        """The step that casts one floating tensor; None where its bytes stay as they are."""
        info = source.tensors[key]
        if self.dtype is None or kind_of(info.dtype) not in ("float", "half"):
            return None
        code = CODE_OF_TORCH[self.dtype]
        if code == info.dtype:
            return None

        def run(source: Tensors, device: str, compute: str) -> Made:
            before = source.read(key)
            after = before.to(torch_dtype(code))
            finite = after.isfinite()
            lost = 0 if finite.all() else int((before.isfinite() & ~finite).sum())
            note = (
                f"{count_text(lost, 'value')} of {before.numel()} too large for {self.dtype}: infinite now"
                if lost
                else None
            )
            return {name: after}, Told(note=note)

        one = replace(
            group, tensor=key, keys={"value": key}, infos={"value": info}, shape=info.shape, dtype=info.dtype, twin=twin
        )
        return Step(one, "cast", (Slot(name, code, info.shape),), group.chain, group.view, once(run))


def check_dtype(name: str | None) -> CastDtype | None:
    return None if name is None else check_choice("dtype", name, CAST_DTYPES)


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
