"""Who does what, where a run has several processes: shards over ranks, by the bytes they move and the sums they take.

A shard is written by one rank, which makes every tensor in it. `verify` writes nothing and shares out tensors. Every
rank works the shares out for itself, from headers alone, and finds the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from .. import ranks
from ..checkpoint.header import Slot
from ..checkpoint.sample import sampled
from ..checkpoint.source import Source
from ..fitting.costs import cost, share_out
from ..spelling.record import record_text
from .plan import Outcome, Plan


def owners(source: Source, plan: Plan, shards: Mapping[str, Sequence[Slot]], count: int) -> dict[str, int]:
    """Shard -> the rank that writes it."""
    shard_of = {slot.name: shard for shard, slots in shards.items() for slot in slots}
    weights = {shard: 2.0 * sum(slot.nbytes for slot in slots) for shard, slots in shards.items()}
    for step in plan.steps:
        if step.computes and step.writes:
            weights[shard_of[step.writes[0].name]] += cost(step.group, step.chain, step.view)
    return share_out(weights, count)


def part_of(
    plan: Plan, shards: Mapping[str, Sequence[Slot]], owner: Mapping[str, int], rank: int
) -> tuple[Plan, list[int]]:
    """(the plan of one rank, the places of its steps among all): the steps and copies whose results it writes.

    A step's results lie in one shard; a step without any is the first rank's.
    """
    mine = {slot.name for shard, slots in shards.items() if owner[shard] == rank for slot in slots}
    numbers = [n for n, step in enumerate(plan.steps) if (step.writes[0].name in mine if step.writes else rank == 0)]
    copies = tuple(pair for pair in plan.copies if pair[0] in mine)
    steps = tuple(plan.steps[number] for number in numbers)
    return replace(
        plan, steps=steps, copies=copies, slots=tuple(slot for slot in plan.slots if slot.name in mine)
    ), numbers


def agree(run: ranks.Alone, source: Source, plan: Plan) -> None:
    """Raise InputRefused unless every rank has the same checkpoint in front of it, and the same plan."""
    steps = [(step.group.tensor, step.action, str(step.chain), str(step.view)) for step in plan.steps]
    said = [record_text(entries, "") for entries in (plan.record, plan.longest)]
    ranks.require_alike(run, "plan", repr((sampled(source), steps, plan.copies, plan.slots, said)), source.path)


def gathered(run: ranks.Alone, numbers: Sequence[int], outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The outcomes of all ranks, in the order of the plan's steps."""
    mine = [(number, _fields(outcome)) for number, outcome in zip(numbers, outcomes, strict=True)]
    every = {number: given for part in run.exchange("outcomes", mine) for number, given in part}
    return [_outcome(every[number]) for number in sorted(every)]


def _fields(outcome: Outcome) -> dict[str, Any]:
    return {field.name: getattr(outcome, field.name) for field in fields(outcome)}


def _outcome(given: Mapping[str, Any]) -> Outcome:
    """The same as it comes out of JSON, which knows lists alone."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return Outcome(**values)
