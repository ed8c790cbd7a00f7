"""inspect: what a checkpoint holds, from its headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.source import Extra
from ..dtypes import dtype_name
from ..spelling.forms import Group
from ..spelling.opened import Opened


@dataclass(frozen=True)
class InspectResult:
    """The tensors as groups of keys: how each is spelt, its chain, shape and dtype; and what lies beside them.

    `roots`: the state dicts that are in the file, with how many tensors each has; `tied`: names that are one tensor;
    `shards`: is it more than one file; `has_record`: has any of them a record of chains.
    """

    checkpoint: Path
    container: str
    nbytes: int
    keys: int
    root: str | None
    roots: tuple[tuple[str, int], ...]
    tensors: tuple[Group, ...]
    tied: tuple[tuple[str, ...], ...]
    metadata: Mapping[str, str]
    extra: tuple[Extra, ...]
    sharded_record: bool = False

    def document(self) -> dict[str, object]:
        """As --json prints it."""
        others = {name: [other for other in names if other != name] for names in self.tied for name in names}
        return {
            "checkpoint": str(self.checkpoint),
            "container": self.container,
            "bytes": self.nbytes,
            "root": self.root,
            "roots": [{"root": name, "tensors": tensors} for name, tensors in self.roots],
            "tensors": [
                {
                    "tensor": g.tensor,
                    "form": g.form,
                    "chain": None if g.chain is None else str(g.chain),
                    "view": g.view.text,
                    "shape": list(g.shape),
                    "dtype": dtype_name(g.dtype),
                    "bytes": sum(info.nbytes for info in g.infos.values()),
                    "keys": list(g.keys.values()),
                    "tied": sorted({name for key in g.keys.values() for name in others.get(key, ())}),
                    **({"nested": {role: str(part.chain) for role, part in g.nested.items()}} if g.nested else {}),
                    **({"problem": g.problem} if g.problem else {}),
                }
                for g in self.tensors
            ],
            "metadata": dict(self.metadata),
            "extra": [{"name": extra.name, "type": extra.type} for extra in self.extra],
        }


def inspect(opened: Opened, tensor: Sequence[str] = ()) -> InspectResult:
    """Everything, or the groups that `tensor` names."""
    source = opened.source
    return InspectResult(
        source.path,
        source.container,
        source.nbytes,
        len(source.tensors),
        source.root,
        tuple((root.name, root.tensors) for root in source.roots),
        tuple(opened.choose(tensor)),
        tuple(map(tuple, source.tied())),
        dict(source.metadata),
        tuple(source.extras),
        bool(source.shard_records),
    )
