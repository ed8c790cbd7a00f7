"""File names that say which part of a checkpoint a file is, and so which parts are not there.

model-00001-of-00002.safetensors, pytorch_model_00001-of-00072.bin     shards, some tensors in each
model_world_size_2_rank_0.pt                                           ranks, of FSDP
consolidated.00.pth, mp_rank_00/...                                    shares, of model parallelism
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from ...text import listing, printable

# What PEFT writes.
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What loaders look for in a folder.
USUAL = {
    f"{stem}.{suffix}"
    for stem in ("model", "pytorch_model", "diffusion_pytorch_model", "consolidated")
    for suffix in ("safetensors", "bin", "pt", "pth")
}
# With fewer digits, or not as many in both, it may be an epoch.
_SHARD = re.compile(r"(.*?)([0-9]{4,8})(-of-)([0-9]{4,8})((?:\.[A-Za-z]+)+)", re.DOTALL)
_RANK = re.compile(r"(model_world_size_)([1-9][0-9]{0,6})(_rank_)(0|[1-9][0-9]{0,6})(\.pt)")
# No name says how many shares there are.
_SHARE = re.compile(r"(consolidated\.|mp_rank_)([0-9]{2,3})(.*)", re.DOTALL)


class Parts(NamedTuple):
    """What the names of the parts of one checkpoint say: what stands around a part's number, its digits, how many parts
    there are, and the number of the first.
    """

    before: str
    after: str
    width: int
    total: int
    first: int = 1

    def name(self, number: int) -> str:
        return f"{self.before}{number:0{self.width}d}{self.after}"

    def lacking(self, there: Mapping[int, str]) -> str | None:
        """'1 of its 2 parts: NAME'; None where all are there."""
        numbers = range(self.first, self.first + self.total)
        absent = self.total - len(there)
        if not absent:
            return None
        names = islice((self.name(number) for number in numbers if number not in there), 6)
        more = f" and {absent - 6} more" if absent > 6 else ""
        return f"{absent} of its {self.total} parts: {listing(names)}{more}"


def shard_sets(names: Iterable[str]) -> dict[Parts, dict[int, str]]:
    """Shards by the set that they are of, and by number."""
    sets: dict[Parts, dict[int, str]] = {}
    for name in names:
        found = _SHARD.fullmatch(name)
        if found and len(found[2]) == len(found[4]) and int(found[2]) <= int(found[4]):
            parts = Parts(found[1], f"{found[3]}{found[4]}{found[5]}", len(found[2]), int(found[4]))
            sets.setdefault(parts, {})[int(found[2])] = name
    for parts, there in list(sets.items()):
        if 0 in there:  # they count from 0, or this one is of another set than the last
            sets[parts._replace(first=0)] = {0: there.pop(0)} if parts.total in there else sets.pop(parts)
    return sets


def rank_sets(names: Iterable[str]) -> dict[Parts, dict[int, str]]:
    """The files of FSDP's processes by the run that saved them, and by rank."""
    sets: dict[Parts, dict[int, str]] = {}
    for name in names:
        if (found := _RANK.fullmatch(name)) and int(found[4]) < int(found[2]):
            sets.setdefault(Parts(found[1] + found[2] + found[3], found[5], 1, int(found[2]), 0), {})[int(found[4])] = (
                name
            )
    return sets


def told_of_part(path: Path) -> str | None:
    """What is said of a file that by its name is a part of something larger; None of any other."""
    for parts, there in shard_sets([path.name]).items():
        if parts.total > 1:
            (number,) = there
            others = [parts.name(n) for n in range(parts.first, parts.first + min(parts.total, 4)) if n != number][:3]
            more = f" and {parts.total - 1 - len(others)} more" if parts.total - 1 > len(others) else ""
            return f"{printable(path.name)} is one of {parts.total} shards; not read: {listing(others)}{more}"
    for level in (path := path.absolute(), path.parent):
        if alike := _shares_like(level):
            return (
                f"{printable(level.name)} is one of {len(alike) + 1} shares of a model, and has a part of each of its "
                f"tensors; beside it: {listing(alike, 3)}"
            )
    return None


def _shares_like(path: Path) -> list[str]:
    """The names beside it that differ in nothing but their number."""
    mine = _SHARE.fullmatch(path.name)
    if mine is None:
        return []
    with suppress(OSError), os.scandir(path.parent) as entries:
        others = (_SHARE.fullmatch(entry.name) for entry in entries)
        return sorted(one[0] for one in others if one and one[2] != mine[2] and one.group(1, 3) == mine.group(1, 3))
    return []


def adapter_weights(names: Collection[str]) -> str | None:
    """Of the files in a folder, the weights of the adapter that it is; its training leaves others beside them."""
    return next((name for name in ADAPTER_WEIGHTS if name in names), None) if ADAPTER_CONFIG in names else None


def usual(names: Collection[str]) -> str:
    """The name that loaders look for, or the first."""
    return min(names, key=lambda name: (name not in USUAL, name))
