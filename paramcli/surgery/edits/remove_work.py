"""What `remove --bake` plans and computes: the value in place of the originals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...chain import Chain
from ...checkpoint.source import Rows
from ...dtypes import torch_dtype
from ...fitting.bake import Baked, Baking
from ...fitting.blocks import Batch, bake_ranges, sliced_roles, stackable
from ...fitting.claims import kept_constraint
from ...fitting.evaluate import (
    Tensors,
    chain_of,
    require_chain,
    require_proportion,
)
from ...spelling.forms import Group
from ...spelling.record import Entry
from ..plan import Ranges, Step, Told, baked, keeps_within, require_editable
from .slots import check_roles, numbers


@dataclass(frozen=True)
class Bake:
    """`remove --bake`: the value in place of the originals."""

    def plan(self, group: Group) -> Step:
        require_chain(group)
        require_editable(group)
        chain = chain_of(group) if group.chain is not None else None
        if chain is not None:
            check_roles(group, chain, group.view)
        require_proportion(group)

        slots, record, longest = baked(group)
        key, ranges = (self._together(group, chain), self._ranges(group, chain)) if chain else (None, ())
        return Step(
            group,
            "bake",
            slots,
            group.chain,
            group.view,
            BakeWork,
            record=record,
            longest=longest,
            stack_key=key,
            ranges=ranges,
        )

    def _ranges(self, group: Group, chain: Chain) -> Ranges:
        if group.alternatives or group.nested or group.constraint not in (None, chain.constraint):
            return ()
        return bake_ranges(group, chain, group.view)

    def _together(self, group: Group, chain: Chain) -> Hashable:
        if (
            group.alternatives
            or group.nested
            or group.roles != {"original"}
            or group.constraint not in (None, chain.constraint)
        ):
            return None
        view = group.view
        if not stackable(chain, view, group.shape, torch_dtype(group.dtype)):
            return None
        return "bake", chain, view, group.shape, group.dtype


class BakeWork:
    """The work of `Bake`."""

    def __init__(self, steps: Sequence[Step], source: Tensors, device: str, compute: str, ranges: Ranges):
        self.steps, self.compute = steps, compute
        group, view = steps[0].group, steps[0].group.view
        sliced = sliced_roles(chain_of(group), view, group.shape) if ranges else None
        self.batch = Batch(source, [s.group for s in steps], view, device, ranges, sliced or {})
        self.baking = Baking(self.batch, compute)

    def read(self, rows: Rows) -> Mapping[str, Tensor]:
        return self.batch.read(rows)

    def make(self, rows: Rows, block: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        values = self.baking.make(rows, block)
        return [{step.group.tensor: value} for step, value in zip(self.steps, values, strict=True)]

    def told(self) -> list[Told]:
        return [self._told(step.group, baked) for step, baked in zip(self.steps, self.baking.result(), strict=True)]

    def _told(self, group: Group, made: Baked) -> Told:
        chain, view, check = made.chain, made.view, made.check
        kept = (
            kept_constraint(chain, view, group.shape, torch_dtype(group.dtype), check, self.compute)
            if keeps_within(group, chain)
            else group.constraint or chain.constraint
        )
        record = Entry("baked", chain, view, kept)
        return numbers(0.0, check, chain=chain, record=record)
