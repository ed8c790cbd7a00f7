"""What `merge` computes: the value in place of a base's tensor and an adapter's, and how far that moved it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ...checkpoint.source import Rows
from ...fitting import measure
from ...fitting.evaluate import Tensors
from ...spelling.forms import Group
from ..plan import Ranges, Step, Told
from .remove_work import Bake, BakeWork


@dataclass(frozen=True)
class MergeBake(Bake):
    """`remove --bake` of tensors that adapters are attached to."""

    def plan(self, group: Group) -> Step:
        step = super().plan(group)
        # Each says how far it moved, so they are not computed as one.
        return replace(step, action="merge", begin=MergeWork, stack_key=None)


class MergeWork(BakeWork):
    """The work of `MergeBake`: the base's own tensor is what the value is compared with, where it is a plain one."""

    def __init__(self, steps: Sequence[Step], source: Tensors, device: str, compute: str, ranges: Ranges):
        super().__init__(steps, source, device, compute, ranges)
        self.moved = measure.Moved()

    def make(self, rows: Rows, block: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        made = super().make(rows, block)
        [(value,)] = [tuple(tensors.values()) for tensors in made]
        self.moved.add(value, block["original"].to(value.device))
        return made

    def told(self) -> list[Told]:
        [moved] = self.moved.result()
        return [replace(told, moved=moved) for told in super().told()]
