"""What `merge` computes: the value in place of a base's tensor and an adapter's, and how far that moved it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...chain import Chain
from ...checkpoint.source import Rows
from ...dtypes import CODE_OF_TORCH, CastDtype, torch_dtype
from ...fitting import measure
from ...fitting.evaluate import Tensors, weight_of
from ...spelling.forms import PARAMETRIZED, Group
from ..plan import Ranges, Step, Told
from .cast import lost
from .remove_work import Bake, BakeWork


@dataclass(frozen=True)
class MergeBake(Bake):
    """`remove --bake` of tensors that adapters are attached to; `beside`: the adapters' tensors, `dtype`: of the value,
    where it is not the base's own.
    """

    beside: frozenset[str]
    dtype: CastDtype | None = None

    def plan(self, group: Group) -> Step:
        step = super().plan(group)
        code = CODE_OF_TORCH[self.dtype] if self.dtype else group.dtype
        begin = partial(MergeWork, before=before(group, self.beside), dtype=torch_dtype(code))
        writes = tuple(replace(slot, dtype=code) for slot in step.writes)
        # Each says how far it moved, so they are not computed as one.
        return replace(step, action="merge", writes=writes, begin=begin, stack_key=None)


def before(group: Group, beside: frozenset[str]) -> Group | None:
    """The base's own tensor of one that adapters are attached to; None where that is its original, as it is stored."""
    assert group.chain is not None
    first = min(int(role.partition(".")[0]) for role, key in group.keys.items() if key in beside)
    if first == 0:
        return None
    roles = {role for role in group.own_roles if role.startswith("original") or int(role.partition(".")[0]) < first}
    return replace(
        group,
        form=PARAMETRIZED,
        keys={role: group.keys[role] for role in roles},
        infos={role: group.infos[role] for role in roles},
        chain=Chain(group.chain.links[:first]),
    )


class MergeWork(BakeWork):
    """The work of `MergeBake`: the value is compared with the base's own."""

    def __init__(
        self,
        steps: Sequence[Step],
        source: Tensors,
        device: str,
        compute: str,
        ranges: Ranges,
        *,
        before: Group | None,
        dtype: torch.dtype,
    ):
        super().__init__(steps, source, device, compute, ranges)
        self.moved, self.before, self.dtype = measure.Moved(), before, dtype
        self._lost: list[str] = []

    def make(self, rows: Rows, block: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        wide = {
            role: self._widened(tensor) if role.startswith("original") else tensor for role, tensor in block.items()
        }
        [(name, value)] = [item for tensors in super().make(rows, wide) for item in tensors.items()]
        made = value.to(self.dtype)
        self._lost = self._lost or lost(value, made)
        self.moved.add(made, self._base(rows, wide).to(made.device))
        return [{name: made}]

    def _widened(self, original: Tensor) -> Tensor:
        """An original so wide that the value, which comes in its dtype, is rounded once: by the cast to another one."""
        if original.dtype == self.dtype:
            return original
        wide = torch.promote_types(original.dtype, self.dtype)
        return original.to(wide if self.compute == "same" else torch.promote_types(wide, getattr(torch, self.compute)))

    def _base(self, rows: Rows, block: Mapping[str, Tensor]) -> Tensor:
        if self.before is None or self.before.chain is None:
            return block["original"]
        part = self.before if rows is None else replace(self.before, shape=(rows[1] - rows[0], *self.before.shape[1:]))
        state = self.batch.on_device({role: tensor for role, tensor in block.items() if role in part.keys})
        with torch.no_grad():
            return weight_of(part, state, self.before.chain, self.batch.view, self.compute)

    def told(self) -> list[Told]:
        [moved] = self.moved.result()
        note = "; ".join(self._lost) or None
        return [replace(told, moved=moved, note=note) for told in super().told()]
