"""inspect: what a checkpoint holds, from its headers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.read.parts import ADAPTER_CONFIG
from ..checkpoint.source import Extra
from ..dtypes import dtype_name
from ..errors import InputRefused
from ..spelling.forms import Group
from ..spelling.opened import Opened


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter says of itself: its family, how many tensors of a base it changes, its settings by name; and why
    it is not merged, where it is refused.
    """

    title: str
    changes: int
    facts: Mapping[str, str]
    problem: str | None = None

    def document(self) -> dict[str, object]:
        refused = {"problem": self.problem} if self.problem else {}
        return {"title": self.title, "changes": self.changes, "facts": dict(self.facts), **refused}


@dataclass(frozen=True)
class InspectResult:
    """The tensors as groups of keys: how each is spelt, its chain, shape and dtype; and what lies beside them.

    `adapter`: what it is, where it is an adapter; `roots`: the state dicts that are in the file, with how many tensors
    each has; `tied`: names that are one tensor;
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
    adapter: AdapterFacts | None = None
    # What it is asked for by again.
    asked: Path | None = None

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
            **({"adapter": self.adapter.document()} if self.adapter else {}),
        }


def adapter_facts(path: Path, keys: Iterable[str]) -> AdapterFacts | None:
    """Of what lies there with these tensors, where that is an adapter."""
    from ..spelling.unparametrized import is_of_adapter

    if not os.path.exists(path / ADAPTER_CONFIG) and not any(map(is_of_adapter, keys)):
        return None
    from ..spelling.adapters import adapter_at

    try:
        adapter = adapter_at(path, keys)
    except InputRefused as error:
        return AdapterFacts("an adapter", 0, {}, str(error))
    if adapter is None:
        return None
    with adapter.source:
        changes = len({change.tensor for change in adapter.changes}) + adapter.expected
        return AdapterFacts(adapter.title, changes, adapter.facts)


def inspect(opened: Opened, tensor: Sequence[str] = (), adapter: AdapterFacts | None = None) -> InspectResult:
    """Everything, or the groups that `tensor` names."""
    source = opened.source
    return InspectResult(
        source.path,
        source.container,
        source.nbytes,
        len(source.tensors) - len(source.beside),
        source.root,
        tuple((root.name, root.tensors) for root in source.roots),
        tuple(opened.choose(tensor)),
        tuple(map(tuple, source.tied())),
        dict(source.metadata),
        tuple(source.extras),
        bool(source.shard_records),
        adapter,
        source.home or source.path,
    )
