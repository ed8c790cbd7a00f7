"""Edits in a row -> one Plan, as if the commands had run one after another and only the last file were kept.

Each edit meets the tensors as the edits before it leave them: the slots that their steps promise are read as
a file's keys would be, without any data. Two steps on one tensor become one step, whose second half reads
what the first half made. So a recipe's output has the bytes that the single commands would have written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.source import Source, Storage, TensorInfo
from ..errors import PATH, TENSOR, InputRefused, UsageError
from ..spelling.forms import Group, detect
from ..text import listing, printable
from ..wording import call, given
from .edits.base import Edit, Planning
from .plan import UNTOLD, Made, Plan, Ranges, Step, StepWork, Written, assemble, once, together, with_growth

if TYPE_CHECKING:
    from torch import Tensor

    from ..checkpoint.disk.input_file import InputFile
    from ..fitting.evaluate import Tensors

Refusal = InputRefused | UsageError


def plan_edits(
    command: str, edits: Sequence[Edit], source: Source, groups: Mapping[str, Group], stack: ExitStack
) -> Plan:
    """Plan all of them; every refusal that headers decide is raised here, as one error."""
    now = dict(groups)
    steps: dict[str, Step] = {}
    refusals: list[Refusal] = []
    for edit in edits:
        try:
            chosen = tie(source, groups, now, edit.choose(now, source.path), edit.tied)
            plan_step = edit.planner(Planning(stack, source, chosen, steps.keys()))
        except (InputRefused, UsageError) as error:
            refusals.append(_located(error, edit))
            continue
        for group in chosen:
            try:
                if group.twice or group.odd is not None:
                    raise group.refusal()
                if group.nested and not edit.takes_nested:
                    raise _nested(group)
                step = _computing(replace(with_growth(plan_step(group)), edits=(edit,)), edit)
                before = steps.get(group.tensor)
                steps[group.tensor] = step if before is None else compose(before, step)
                if edit is not edits[-1]:
                    now[group.tensor] = group_after(step)
            except (InputRefused, UsageError) as error:
                error.tensor, error.path = error.tensor or group.tensor, error.path or source.path
                refusals.append(_located(error, edit))
    if refusals:
        raise together(refusals)
    return assemble(command, source, groups, list(steps.values()))


def _nested(group: Group) -> InputRefused:
    """The refusal of an edit that would write the stored tensors again, where one is spelt by keys of its own."""
    part = next(iter(group.nested.values()))
    keys = listing(list(part.keys.values()), 3)
    return InputRefused(
        f"{printable(part.tensor)}, which {TENSOR} is made of, is spelt by {keys} itself",
        hint=f"{call('remove', PATH, bake=True)} first: it bakes from the inside out",
    )


def _located(error: Refusal, edit: Edit) -> Refusal:
    if edit.origin:
        error.origin = edit.origin
    return error


def _computing(step: Step, edit: Edit) -> Step:
    """The step, with its work in the dtype that this edit asks for, where it asks."""
    wanted: str = getattr(edit, "compute_dtype", "same")
    begin = step.begin
    if begin is None or wanted == "same":
        return step

    def begin_so(steps: Sequence[Step], source: Tensors, device: str, compute: str, ranges: Ranges) -> StepWork:
        return begin(steps, source, device, wanted, ranges)

    return replace(step, begin=begin_so, stack_key=step.stack_key and (step.stack_key, wanted))


def group_after(step: Step) -> Group:
    """The group that a reader of the step's output finds; without a chain where data that nobody has read yet decide
    it.
    """
    infos = {
        slot.name: TensorInfo(slot.name, slot.dtype, tuple(slot.shape), Storage(0, 0, slot.nbytes, slot.name))
        for slot in step.writes
    }
    record = {step.group.tensor: step.record} if step.record is not None else {}
    found = detect(infos, record)
    if set(found) != {step.group.tensor}:
        keys = [TENSOR if name == step.group.tensor else printable(name) for name in infos]
        raise InputRefused(f"{step.action} leaves keys that no further edit can follow: {', '.join(keys)}")
    group = replace(found[step.group.tensor], twin=step.group.twin)
    if step.record is None and step.longest is not None and step.longest.state == "parametrized":
        # Its keys may be those of a shorter chain.
        undecided, hint = (
            "which chain the edit before leaves is in the data",
            f"say it with {given('chain')}, or run this edit as a command of its own",
        )
        return replace(group, chain=None, alternatives=(), unknown=undecided, hint=hint)
    return group


@dataclass(frozen=True)
class Between:
    """What one step made, read by the next in place of a file; adapters are still in theirs."""

    tensors: Written
    source: Tensors
    tells_strides: bool = False

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def files(self) -> list[InputFile]:
        return self.source.files

    @property
    def beside(self) -> frozenset[str]:
        return self.source.beside

    def read(self, name: str) -> Tensor:
        return self.tensors[name] if name in self.tensors else self.source.read(name)


def _between(tensors: Written, source: Tensors) -> Between:
    return Between({key: tensor.detach().cpu() for key, tensor in tensors.items()}, source)


def compose(first: Step, second: Step) -> Step:
    """One step that does both; `moved` is then the way from the file's weight to the last one."""
    # What the data say of the first half's record holds where the second leaves the record alone: a plain tensor that
    # is set.
    carried = (
        first.longest is not None
        and first.longest.state == "baked"
        and second.longest is None
        and second.record == first.record
    )
    longest = first.longest if carried else second.longest
    joined = replace(
        second,
        longest=longest,
        group=first.group,
        stack_key=None,
        ranges=(),
        action=f"{first.action}, {second.action}",
        edits=first.edits + second.edits,
    )
    if not first.computes and not second.computes:
        return replace(joined, renames={name: first.renames[key] for name, key in second.renames.items()})

    def run(source: Tensors, device: str, compute: str) -> Made:
        from ..fitting import measure
        from ..fitting.evaluate import effective

        made, told_first = _run(first, source, device, compute)
        tensors, told = _run(second, _between(made, source), device, compute)
        try:
            before = effective(source, first.group, device, compute)
            change = measure.moved(effective(_between(tensors, source), group_after(second), device, compute), before)
        except InputRefused:
            change = None  # the keys alone do not tell what the weight was
        note = "; ".join(filter(None, (told_first.note, told.note))) or None
        record = told_first.record if carried else told.record
        return tensors, replace(told, moved=change, note=note, record=record)

    return replace(joined, begin=once(run), renames={})


def _run(step: Step, source: Tensors, device: str, compute: str) -> Made:
    if not step.computes:
        return {name: source.read(key) for name, key in step.renames.items()}, UNTOLD
    return step.run(source, device, compute)


def tie(
    source: Source, groups: Mapping[str, Group], now: Mapping[str, Group], chosen: Sequence[Group], how: str | None
) -> list[Group]:
    """The chosen groups with --tied applied; InputRefused where an edit would silently untie a tensor.

    together: every name of a tied tensor gets the edit, and the same random numbers. separate: only the chosen
    ones. `groups` are those of the file, whose keys share storage; `now` are the same as earlier edits leave them.
    """
    if how == "separate":
        return list(chosen)
    result = list(chosen)
    keys = {key for group in chosen for key in groups.get(group.tensor, group).keys.values()}
    owner = {key: name for name, group in groups.items() for key in group.keys.values()}
    have, twins = {group.tensor for group in result}, dict[str, str]()
    for names in source.tied():
        touched = [name for name in names if name in keys]
        if not touched:
            continue
        if how is None and len(touched) < len(names):
            told = " and ".join(TENSOR if name == touched[0] else printable(name) for name in names)
            raise InputRefused(
                f"{told} are one tensor (they share storage); editing one would untie them",
                hint=f"{given('tied', 'together')} edits each of them alike, {given('tied', 'separate')} unties them",
                tensor=touched[0],
                path=source.path,
                code="tied",
            )
        members = dict.fromkeys(owner[name] for name in names)
        result += [now[member] for member in members if member not in have]
        have.update(members)
        twins.update(dict.fromkeys(members, next(iter(members))))
    return [replace(group, twin=twins[group.tensor]) if group.tensor in twins else group for group in result]
