"""What `merge` computes: the value in place of a base's tensor and an adapter's, and how far that moved it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ...chain import Chain
from ...checkpoint.source import Rows
from ...dtypes import CastDtype
from ...fitting import measure
from ...fitting.evaluate import Tensors, weight_of
from ...spelling.forms import PARAMETRIZED, Group
from ..plan import Begin, Ranges, Step, Told
from .remove_work import Bake, BakeWork


@dataclass(frozen=True, kw_only=True)
class MergeBake(Bake):
    """`remove --bake` of tensors that adapters are attached to; `beside`: the adapters' tensors."""

    beside: frozenset[str]

    def plan(self, group: Group) -> Step:
        # Each says how far it moved, so they are not computed as one.
        return replace(super().plan(group), action="merge", stack_key=None)

    def _begin(self, group: Group, dtype: torch.dtype, kept: CastDtype | None) -> Begin:
        return partial(MergeWork, before=before(group, self.beside), dtype=dtype, kept=kept)


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
        kept: CastDtype | None,
    ):
        super().__init__(steps, source, device, compute, ranges, dtype=dtype, kept=kept)
        self.moved, self.before = measure.Moved(), before

    def make(self, rows: Rows, block: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        made = super().make(rows, block)
        [value] = [value for tensors in made for value in tensors.values()]
        self.moved.add(value, self._base(rows, self.widened(block)).to(value.device))
        return made

    def _base(self, rows: Rows, block: Mapping[str, Tensor]) -> Tensor:
        if self.before is None or self.before.chain is None:
            return block["original"]
        part = self.before if rows is None else replace(self.before, shape=(rows[1] - rows[0], *self.before.shape[1:]))
        state = self.batch.on_device({role: tensor for role, tensor in block.items() if role in part.keys})
        with torch.no_grad():
            return weight_of(part, state, self.before.chain, self.batch.view, self.compute)

    def told(self) -> list[Told]:
        [moved] = self.moved.result()
        return [replace(told, moved=moved) for told in super().told()]
