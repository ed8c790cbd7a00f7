"""verify MERGED --base BASE --adapter A: is MERGED what BASE and the adapters give, and nothing else?

Each tensor that the adapters change is judged by itself (`judged.py`), against what rounding explains
(`fitting/strengths.py`); every other one must be the base's, bit for bit. Another dtype of the whole file is a cast of
each, and is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..allocator import Holes, share_one_heap
from ..chain import Chain
from ..checkpoint.disk.interrupts import import_torch
from ..errors import PATH, InputRefused, ParamcliError
from ..spelling.adapter import Prefixes
from ..spelling.adapters import open_adapters
from ..spelling.attached import Attached, beside
from ..spelling.forms import Group
from ..spelling.opened import Opened, choose_any
from ..text import listing
from ..view import View
from ..watch import NOBODY, Watch
from .diff import DiffResult, what_to_say
from .kept import compare_kept
from .merge_verdict import MergeResult, MergeVerdict

if TYPE_CHECKING:
    import torch


@dataclass
class Asked:
    """The adapters as they were asked for, and what they are at other strengths."""

    paths: Sequence[str]
    strengths: Sequence[float]
    prefixes: Prefixes
    # Strength -> the groups that they are attached to; few are kept, and asked for tensor after tensor.
    _made: dict[float, dict[str, Group]] = field(default_factory=dict)

    def chain_of(self, base: Opened, name: str, before: int) -> Callable[[float], Chain | None]:
        """The chain of a tensor at so many times the strengths, without the base's own links."""

        def at(strength: float) -> Chain | None:
            try:
                chain = self._groups(base, strength)[name].chain
            except ParamcliError:
                return None  # a family that has no such strength
            return None if chain is None else Chain(chain.links[before:])

        return at

    def _groups(self, base: Opened, strength: float) -> dict[str, Group]:
        if strength not in self._made:
            factors = [strength * factor for factor in self.strengths]
            with open_adapters(self.paths, factors, self.prefixes) as adapters:
                attached = beside(base, adapters)
                groups, names = attached.put_on(attached.groups)
            while len(self._made) >= 8:
                del self._made[next(iter(self._made))]
            self._made[strength] = {name: groups[name] for name in names}
        return self._made[strength]


def verify_merge(
    merged: Opened,
    base: Opened,
    attached: Attached,
    asked: Asked,
    path: Path,
    tensor: Sequence[str] = (),
    *,
    device: torch.device | str = "cpu",
    watch: Watch = NOBODY,
) -> MergeResult:
    """The verdict on each tensor that the adapters change, and on all others. As `paramcli.verify_merge` has it."""
    groups, changed = attached.put_on(attached.groups)
    opened, base = base, Opened(attached.source, dict(attached.groups))
    names = choose_any(tensor, (base, merged)) if tensor else {*base.groups, *merged.groups}
    wanted = [name for name in changed if name in names]
    if not wanted:
        raise InputRefused(
            f"nothing to verify: the adapter changes none of {listing(sorted(names), 4)}",
            hint=f"it changes {listing(changed, 4)}",
            path=path,
            code="nothing_to_verify",
        )
    missing = [name for name in base.groups if name in names and name not in merged.groups]
    extra = [name for name in merged.groups if name in names and name not in base.groups]
    only = DiffResult((), tuple(missing), tuple(extra))
    said = None if only.equal else what_to_say(base, merged, names, only, ("BASE", "MERGED"))
    if not any(name in merged.groups for name in wanted):
        raise InputRefused(
            f"none of the {len(wanted)} tensors that the adapter changes is in {PATH}: {listing(wanted, 3)}",
            hint=said or "is it a merge of this base?",
            path=path,
        )
    import_torch()
    share_one_heap()
    others = [name for name in base.groups if name in names and name in merged.groups and name not in changed]
    there = [name for name in wanted if name in merged.groups]
    total = sum(merged.groups[name].nbytes for name in (*there, *others))
    keys = attached.source.beside
    work = Work(
        merged,
        base,
        opened,
        attached,
        asked,
        device,
        {label: {key for key in keys if key.startswith(f"{label}/")} for label in attached.adapters},
    )
    with watch.meter("verify", len(there) + len(others), total) as meter:

        def judged(name: str) -> MergeVerdict:
            verdict = work.judged(groups[name])
            meter.advance(merged.groups[name].nbytes)
            return verdict

        verdicts = tuple(map(judged, there))
        kept = compare_kept(merged, base, others, changed, missing, extra, meter.advance)
    for source in (merged.source, attached.source):
        source.check_unchanged()
    adapters = tuple(zip(asked.paths, asked.strengths, strict=True))
    return MergeResult(
        path,
        base.source.path,
        adapters,
        verdicts,
        kept.untouched,
        kept.cast,
        kept.different,
        kept.missing,
        kept.extra,
        said,
    )


@dataclass(frozen=True)
class Work:
    """What all tensors are judged with. `base`: without adapters that lie in its file, with which it was `opened`;
    `labels`: the keys of each adapter's tensors, by its name.
    """

    merged: Opened
    base: Opened
    opened: Opened
    attached: Attached
    asked: Asked
    device: torch.device | str
    labels: dict[str, set[str]]
    # As of `Touched`, of all tensors.
    known: list[float] = field(default_factory=list)
    kinds: dict[tuple[Chain, View, tuple[int, ...]], bool] = field(default_factory=dict)
    holes: Holes = field(default_factory=Holes)

    def judged(self, group: Group) -> MergeVerdict:
        from ..fitting.expected import Side, Touched, of_adapters
        from .judged import judge

        name, own = group.tensor, self.base.groups[group.tensor]
        before = 0 if own.is_plain else len(own.chain or ())
        touched = Touched(
            of_adapters(group, before),
            Side(self.base.source, own),
            Side(self.merged.source, self.merged.groups[name]),
            self.attached.source,
            self.asked.chain_of(self.opened, name, before),
            self.device,
            self.known,
            self.kinds,
            self.holes,
        )
        return judge(touched, self.labels)
