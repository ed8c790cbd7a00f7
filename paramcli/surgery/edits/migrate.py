"""migrate: the same tensors under the names of torch's parametrize, or of what came before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...checkpoint.header import Slot
from ...errors import PATH, TENSOR, InputRefused, UsageError
from ...spec import check_choice
from ...spelling.forms import PARAMETRIZED, PLAIN, Group
from ...spelling.given import named
from ...spelling.keys import parametrized_key
from ...spelling.older import FORM_OF_SPELLING, OLD_FORM
from ...spelling.unparametrized import instead_of_chains
from ...view import IDENTITY
from ...wording import LEAVE_OUT, call, given
from ..plan import Made, Step, Told, once
from .base import SPELLINGS, Edit, Planner, Planning, Spelling, option

if TYPE_CHECKING:
    from ...fitting.evaluate import Tensors


@dataclass(frozen=True, kw_only=True)
class Migrate(Edit):
    command = "migrate"
    suffix = ".migrated"
    computes = False

    to: Spelling | None = option(None, "text", choices=SPELLINGS)

    def check(self) -> None:
        direction(self.to)

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        edit = self._edit()
        chosen = [
            group
            for group in (named(groups, self.tensor, where) if self.tensor else groups.values())
            if edit.applies(group)
        ]
        if not chosen:
            raise self._nothing(groups, where)
        return chosen

    def _nothing(self, groups: Mapping[str, Group], where: Path) -> InputRefused:
        spelt = "old" if self.to == "new" else "new"
        what = f"nothing to migrate: no weight norm, spectral norm or pruning is spelt the {spelt} way"
        there = sorted({group.form for group in groups.values()})
        if there not in ([PLAIN], []):
            hint = f"the tensors are {', '.join(there)}; {call('inspect', PATH)} shows each"
            return InputRefused(what, hint=hint, code="nothing_parametrized")
        holds = instead_of_chains(groups, where)
        return InputRefused(f"{what}; {holds.what}", hint=holds.hint, code="nothing_parametrized")

    def planner(self, work: Planning) -> Planner:
        return self._edit().plan

    def _edit(self) -> Renaming:
        return Renaming(direction(self.to))


def direction(to: str | None) -> Spelling:
    """The spelling to migrate to; raises UsageError where it is not said, or none of the two."""
    if to is None:
        raise UsageError(
            f"migrate needs {given('to', 'new')} or {given('to', 'old')}",
            hint="new is torch's parametrizations.*; old is weight_g/weight_v and its like",
            option="to",
        )
    return check_choice("to", to, SPELLINGS)


@dataclass(frozen=True)
class Renaming:
    """`migrate`: the same tensors under the names of torch's parametrize (`new`) or of what came before it (`old`)."""

    to: Spelling

    def applies(self, group: Group) -> bool:
        """Is this group spelt the other way? Groups that are no weight norm, spectral norm or mask are left alone."""
        if self.to == "new":
            return group.form in FORM_OF_SPELLING
        return group.form == PARAMETRIZED and self._old_form(group) is not None

    def _old_form(self, group: Group) -> str | None:
        form = OLD_FORM.get(frozenset(group.roles))
        if form is None or group.alternatives:
            return form
        # Two originals or a buffer named alike can be another parametrization; then shapes or a record said so.
        links = group.chain.links if group.chain is not None else ()
        return form if len(links) == 1 and links[0].entry.old_form == form else None

    def plan(self, group: Group) -> Step:
        if group.problem:
            raise group.refusal()
        if "value" in group.keys:
            return self._plan_oldest(group)
        if self.to == "old" and group.view != IDENTITY:
            raise InputRefused(
                f"the old spelling has no views, and {TENSOR} has {group.view}: "
                "code that reads it would see another weight",
                hint=LEAVE_OUT,
            )
        names = self._names(group)
        slots = tuple(Slot(names[role], info.dtype, info.shape) for role, info in group.infos.items())
        renames = {names[role]: key for role, key in group.keys.items()}
        return Step(group, "migrate", slots, group.chain, group.view, renames=renames, record=group.record)

    def _names(self, group: Group) -> dict[str, str]:
        """Role -> the key it gets."""
        if self.to == "new":
            return {role: parametrized_key(group.tensor, role) for role in group.keys}
        form = self._old_form(group)
        assert form is not None  # `applies` has seen to it
        suffixes = {role: suffix for suffix, role in FORM_OF_SPELLING[form].roles.items()}
        return {role: group.tensor + suffixes[role] for role in group.keys}

    def _plan_oldest(self, group: Group) -> Step:
        """The oldest spectral norm stored the value and no v: v is solved for, as torch's own loader does."""
        u, W = group.infos["0._u"], group.infos["original"]
        numel = 1
        for size in W.shape:
            numel *= size
        slots = (
            Slot(parametrized_key(group.tensor, "original"), W.dtype, W.shape),
            Slot(parametrized_key(group.tensor, "0._u"), u.dtype, u.shape),
            Slot(parametrized_key(group.tensor, "0._v"), u.dtype, (numel // u.shape[0],)),
        )

        def run(source: Tensors, device: str, compute: str) -> Made:
            from ...fitting.evaluate import complete, read_state, settle

            state = read_state(source, group, device)
            chain, _ = settle(group, state)
            made = complete(group, state, chain)
            return {parametrized_key(group.tensor, role): X for role, X in made.items()}, Told(chain=chain)

        return Step(group, "migrate", slots, group.chain, group.view, once(run), record=group.record)
