"""merge: bake adapters that were attached to a base; and attach, which keeps them apart in one parametrized file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...checkpoint.header import Slot
from ...dtypes import COMPUTE_DTYPES, ComputeDtype
from ...spelling.forms import Group
from ...spelling.keys import parametrized_key
from ..plan import Promise, Step, baked
from .base import Edit, Planner, Planning, option


@dataclass(frozen=True, kw_only=True)
class Merge(Edit):
    """The value of the changed tensors in their place. `tensor` are the names that adapters were attached to."""

    command = "merge"
    suffix = ".merged"

    compute_dtype: ComputeDtype = option("same", "text", choices=COMPUTE_DTYPES)

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        return [groups[name] for name in self.tensor]

    def planner(self, work: Planning) -> Planner:
        from .merge_work import MergeBake

        return MergeBake().plan

    def foretell(self, group: Group) -> Promise | None:
        return baked(group)


@dataclass(frozen=True, kw_only=True)
class Attach(Edit):
    """`add --adapter`: the base's tensors and the adapters' under torch's names, byte for byte, with a record."""

    command = "add"
    suffix = ".parametrized"
    computes = False

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        return [groups[name] for name in self.tensor]

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
