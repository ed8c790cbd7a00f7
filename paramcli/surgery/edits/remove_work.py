"""What `remove --bake` plans and computes: the value in place of the originals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...chain import Chain
from ...checkpoint.source import Rows
from ...dtypes import CODE_OF_TORCH, CastDtype, dtype_name, kind_of, torch_dtype
from ...fitting import measure
from ...fitting.bake import Baked, Baking
from ...fitting.blocks import Batch, bake_ranges, evaluated_together, sliced_roles
from ...fitting.claims import kept_constraint
from ...fitting.evaluate import (
    Tensors,
    chain_of,
    require_chain,
    require_proportion,
)
from ...spelling.forms import Group
from ...spelling.record import Entry
from ..plan import Begin, Ranges, Step, Told, baked, keeps_within, require_editable
from .cast import lost, lost_text
from .slots import check_roles, numbers


@dataclass(frozen=True, kw_only=True)
class Bake:
    """`remove --bake`: the value in place of the originals; in `dtype`, where that is not the weight's own."""

    dtype: CastDtype | None = None

    def plan(self, group: Group) -> Step:
        require_chain(group)
        decodes = group.chain is not None and group.chain.decodes
        # Floating dtypes have no room for imaginary parts.
        castable = decodes or kind_of(group.dtype) in ("float", "half")
        code = CODE_OF_TORCH[self.dtype] if self.dtype and castable else group.dtype
        if decodes:
            # Codes have no dtype of the weight's: its own is only what the configuration says.
            group = replace(group, dtype=code)
        require_editable(group)
        chain = chain_of(group) if group.chain is not None else None
        if chain is not None:
            check_roles(group, chain, group.view)
        require_proportion(group)

        slots, record, longest = baked(group)
        slots = tuple(replace(slot, dtype=code) for slot in slots)
        key, ranges = (self._together(group, chain, code), self._ranges(group, chain)) if chain else (None, ())
        return Step(
            group,
            "bake",
            slots,
            group.chain,
            group.view,
            self._begin(group, torch_dtype(code), self.dtype if not castable else None),
            record=record,
            longest=longest,
            stack_key=key,
            ranges=ranges,
        )

    def _begin(self, group: Group, dtype: torch.dtype, kept: CastDtype | None) -> Begin:
        return partial(BakeWork, dtype=dtype, kept=kept)

    def _ranges(self, group: Group, chain: Chain) -> Ranges:
        if group.alternatives or group.nested or group.constraint not in (None, chain.constraint):
            return ()
        return bake_ranges(group, chain, group.view)

    def _together(self, group: Group, chain: Chain, code: str) -> Hashable:
        kind = evaluated_together(group, chain)
        return None if kind is None else ("bake", code, kind)


class BakeWork:
    """The work of `Bake`: values in `dtype`, rounded once; `kept`: what was asked for and has no room for them."""

    def __init__(
        self,
        steps: Sequence[Step],
        source: Tensors,
        device: str,
        compute: str,
        ranges: Ranges,
        *,
        dtype: torch.dtype,
        kept: CastDtype | None = None,
    ):
        self.steps, self.compute, self.dtype, self.kept = steps, compute, dtype, kept
        self._lost = [0] * len(steps)
        # By the cast alone, where there is one.
        self._rounded: measure.Moved | None = None
        group, view = steps[0].group, steps[0].group.view
        sliced = sliced_roles(chain_of(group), view, group.shape) if ranges else None
        self.batch = Batch(source, [s.group for s in steps], view, device, ranges, sliced or {})
        self.baking = Baking(self.batch, compute)

    def read(self, rows: Rows) -> Mapping[str, Tensor]:
        return self.batch.read(rows)

    def make(self, rows: Rows, block: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        values = self.baking.make(rows, self.widened(block), self._stored)
        return [{step.group.tensor: value} for step, value in zip(self.steps, values, strict=True)]

    def _stored(self, value: Tensor) -> Tensor:
        """The values of the block in the dtype that is written, with what that does to them noted."""
        if value.dtype == self.dtype:
            return value
        cast = value.to(self.dtype)
        for index, (before, after) in enumerate(zip(self.batch.apart(value), self.batch.apart(cast), strict=True)):
            self._lost[index] += lost(before, after)
        self._rounded = self._rounded or measure.Moved(len(self.steps))
        self._rounded.add(cast, value)
        return cast

    def widened(self, block: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A block whose originals are so wide that the value, which comes in their dtype, is rounded once: by the cast
        to another one. Codes are of no such dtype.
        """
        chain = self.steps[0].group.chain
        if chain is not None and chain.decodes:
            return block
        return {role: self._wide(tensor) if role.startswith("original") else tensor for role, tensor in block.items()}

    def _wide(self, original: Tensor) -> Tensor:
        if original.dtype == self.dtype or original.is_complex():
            return original
        wide = torch.promote_types(original.dtype, self.dtype)
        return original.to(wide if self.compute == "same" else torch.promote_types(wide, getattr(torch, self.compute)))

    def told(self) -> list[Told]:
        moved = self._rounded.result() if self._rounded else [0.0] * len(self.steps)
        found = zip(self.steps, self.baking.result(), self._lost, moved, strict=True)
        return [
            replace(self._told(step.group, baked, off), note=self._note(step.group, count))
            for step, baked, count, off in found
        ]

    def _note(self, group: Group, lost: int) -> str | None:
        if self.kept is not None:
            return f"{dtype_name(group.dtype)} as before: {self.kept} has no imaginary parts"
        return lost_text(lost, group.shape, self.dtype)

    def _told(self, group: Group, made: Baked, moved: float) -> Told:
        chain, view, check = made.chain, made.view, made.check
        kept = (
            kept_constraint(chain, view, group.shape, self.dtype, check, self.compute)
            if keeps_within(group, chain)
            else group.constraint or chain.constraint
        )
        record = Entry("baked", chain, view, kept)
        return numbers(moved, check, chain=chain, record=record)
