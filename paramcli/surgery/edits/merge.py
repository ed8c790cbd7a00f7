"""merge: bake adapters onto the base they belong to; and attach, which keeps them apart in one parametrized file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from ...checkpoint.header import Slot
from ...dtypes import CAST_DTYPES, COMPUTE_DTYPES, CastDtype, ComputeDtype
from ...errors import TENSOR, InputRefused, UsageError
from ...spelling.forms import Group
from ...spelling.keys import parametrized_key
from ...spelling.opened import Opened
from ...text import printable
from ...wording import given
from ..plan import Promise, Step, baked
from .base import Edit, Planner, Planning, option
from .cast import Cast
from .remove import still_codes

if TYPE_CHECKING:
    from ...spelling.attached import Attached

# How another program merges, in place of one rounding of the sum: PEFT with the adapter in half precision rounds the
# change too.
Like = Literal["peft-bf16", "peft-fp16"]
ROUNDS: dict[Like, str] = {"peft-bf16": "bfloat16", "peft-fp16": "float16"}
Self = TypeVar("Self", bound="WithAdapters")


@dataclass(frozen=True, kw_only=True)
class WithAdapters(Edit):
    """An edit of the tensors that adapters change: they say themselves which those are."""

    by_name: ClassVar[bool] = False

    adapter: Sequence[str] = option((), "texts")
    strength: Sequence[float] = option((), "numbers")
    adapter_prefix: Sequence[str] = option((), "texts")
    like: Like | None = option(None, "text", choices=tuple(ROUNDS))
    # The adapters, once they are open.
    attached: Attached | None = field(default=None, compare=False, repr=False)

    def check(self) -> None:
        if not self.adapter:
            raise UsageError(
                f"{self.command} needs {given('adapter')}: what is to be merged",
                hint=given("adapter", "FOLDER"),
                option="adapter",
            )
        # What reads adapters has the whole catalogue with it: other edits do without.
        from ...spelling.adapter import parse_prefixes
        from ...spelling.adapters import strengths_of

        strengths_of(self.adapter, self.strength)
        parse_prefixes(self.adapter_prefix)

    def opening(self: Self, opened: Opened, stack: ExitStack) -> tuple[Self, Opened]:
        from ...spelling.adapter import parse_prefixes
        from ...spelling.adapters import open_adapters
        from ...spelling.attached import beside

        prefixes = parse_prefixes(self.adapter_prefix)
        adapters = stack.enter_context(open_adapters(self.adapter, self.strength, prefixes))
        attached = beside(opened, adapters, ROUNDS[self.like] if self.like else "none")
        prefixes.require_used(self.adapter)
        return replace(self, attached=attached), Opened(attached.source, dict(attached.groups))

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        assert self.attached is not None, "an edit is opened before it is planned"
        made, names = self.attached.put_on(groups)
        changed = {name: made[name] for name in names}
        if self.tied == "together":
            changed.update(self._twins(changed))
        return list(changed.values())

    def _twins(self, changed: Mapping[str, Group]) -> dict[str, Group]:
        """The other names of changed tensors, with the same change."""
        assert self.attached is not None
        owner = {group.keys[role]: name for name, group in changed.items() for role in group.keys if role == "original"}
        twins = {}
        for names in self.attached.source.tied():
            here = [name for name in names if name in owner]
            if len({owner[name] for name in here}) > 1:
                raise InputRefused(
                    f"{TENSOR} and {printable(owner[here[1]])} are one tensor, and the adapter changes each of them",
                    hint=f"{given('tied', 'separate')} unties them",
                    tensor=owner[here[0]],
                    path=self.attached.source.path,
                    code="tied",
                )
            for name in names if here else ():
                group = changed[owner[here[0]]]
                twins[name] = replace(group, tensor=name, keys={**group.keys, "original": name})
        return {name: group for name, group in twins.items() if name not in changed}

    def remarks(self, chosen: Sequence[Group], groups: Mapping[str, Group]) -> Iterator[str]:
        from ...spelling.repeated import repeated

        assert self.attached is not None, "an edit is planned before it is spoken of"
        for adapter in self.attached.adapters.values():
            yield from adapter.notes()
        yield from repeated(self.attached.source, chosen, groups)


def _decodes(groups: Sequence[Group]) -> bool:
    return any(group.in_codes for group in groups)


@dataclass(frozen=True, kw_only=True)
class Merge(WithAdapters):
    """The value of the changed tensors in their place."""

    command = "merge"
    suffix = ".merged"

    dtype: CastDtype | None = option(None, "text", choices=CAST_DTYPES)
    compute_dtype: ComputeDtype = option("same", "text", choices=COMPUTE_DTYPES)

    @property
    def takes_nested(self) -> bool:
        return True

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        changed = super().choose(groups, where)
        names = {group.tensor for group in changed}
        others = [group for name, group in groups.items() if name not in names]
        # A model is quantized, or it is not: one with weights of both kinds is what no configuration describes.
        decoded = [group for group in others if group.in_codes] if _decodes(changed) else []
        cast = self._cast()
        casts = [
            group
            for group in others
            if cast is not None and not group.in_codes and any(cast.changes(*item) for item in group.stored)
        ]
        return changed + decoded + casts

    def _cast(self) -> Cast | None:
        if self.dtype is None or self.attached is None:
            return None
        base = self.attached.source
        return Cast.of(self.dtype, {key: info for key, info in base.tensors.items() if key not in base.beside})

    def planner(self, work: Planning) -> Planner:
        from .merge_work import MergeBake
        from .remove_work import Bake

        cast, merging = self._cast(), MergeBake(beside=work.source.beside, dtype=self.dtype)

        def plan(group: Group) -> Step:
            if not work.source.beside.isdisjoint(group.keys.values()):
                return merging.plan(group)
            if group.in_codes or cast is None:
                return Bake(dtype=self.dtype).plan(group)
            return cast.step(group, {key: key for key in group.keys.values()})

        return plan

    def foretell(self, group: Group) -> Promise | None:
        return baked(group) if self.dtype is None else None

    def remarks(self, chosen: Sequence[Group], groups: Mapping[str, Group]) -> Iterator[str]:
        yield from super().remarks(chosen, groups)
        cast = None if _decodes(chosen) else self._cast()
        left = cast.left(dict(item for group in groups.values() for item in group.stored)) if cast else None
        yield from [left] if left else []
        yield from still_codes(chosen, groups)


@dataclass(frozen=True, kw_only=True)
class Attach(WithAdapters):
    """`add --adapter`: the base's tensors and the adapters' under torch's names, byte for byte, with a record."""

    command = "add"
    suffix = ".parametrized"
    computes = False

    def planner(self, work: Planning) -> Planner:
        return self._plan

    def _plan(self, group: Group) -> Step:
        assert group.chain is not None  # it is attached
        wanted = group.chain.stores(group.view.shape(group.shape)) or {}
        slots, renames = [], {}
        for role, key in group.keys.items():
            name, info = parametrized_key(group.tensor, role), group.infos[role]
            # Factors of convolutions have more dimensions in an adapter than the maths sees; the bytes are the same.
            own = role in wanted and not role.startswith("original")
            slots.append(Slot(name, info.dtype, wanted[role][1] if own else info.shape))
            renames[name] = key
        return Step(group, "attach", tuple(slots), group.chain, group.view, renames=renames, record=group.record)
