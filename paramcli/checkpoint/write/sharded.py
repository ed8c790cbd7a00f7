"""A folder of .safetensors shards, with the index that huggingface_hub and transformers read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ...errors import PATH, InputRefused, OutputFailed
from ...text import printable
from ...wording import AS_SAFETENSORS
from ..disk.atomic import ELSEWHERE
from ..disk.direct import Disk
from ..disk.input_file import OpenFiles
from ..header import Slot, refuse_too_many
from ..read.parts import shard_sets
from ..read.recognise import is_dcp
from ..read.sharded import INDEX_NAME, INDEX_SUFFIX, MAX_INDEX_BYTES, read_index
from .folder import FolderSink, Run
from .safetensors_file import SafetensorsSink
from .writer import MetadataOf

SINGLE_NAME = "model.safetensors"


class ShardedSink(FolderSink):
    """A folder of shards being written.

    `shards` is file name -> slots. `metadata` gives that of a shard with these keys; `index_metadata` goes into the
    index beside total_size, which is always exact. `longest` is SafetensorsSink's, of each shard. The rest is
    FolderSink's.
    """

    part_suffix = ".safetensors"

    def __init__(
        self,
        folder: str | os.PathLike[str],
        shards: Mapping[str, Sequence[Slot]],
        metadata: MetadataOf,
        index_metadata: Mapping[str, object] | None = None,
        siblings: Iterable[str | os.PathLike[str]] = (),
        *,
        run: Run,
        overwrite: bool = False,
        sync: bool = True,
        index_name: str = INDEX_NAME,
        owner: Mapping[str, int] | None = None,
        origins: Mapping[str, int] = MappingProxyType({}),
        longest: MetadataOf | None = None,
        rewritten: Mapping[str, bytes] = MappingProxyType({}),
    ):
        super().__init__(
            folder, shards, siblings, run=run, overwrite=overwrite, sync=sync, owner=owner, rewritten=rewritten
        )
        self.index_name = index_name
        self.metadata = metadata
        self.origins = origins
        self.longest = longest
        refuse_too_many(len(self.home))
        total = sum(slot.nbytes for slots in self.parts.values() for slot in slots)
        self.index_metadata = {**(index_metadata or {}), "total_size": total}

    def part_sink(self, path: Path, part: str, pool: OpenFiles, disk: Disk) -> SafetensorsSink:
        slots = self.parts[part]
        metadata = self.metadata(slot.name for slot in slots)
        longest = self.longest(slot.name for slot in slots) if self.longest is not None else metadata
        return SafetensorsSink(
            path,
            slots,
            metadata,
            overwrite=self.overwrite,
            sync=self.sync,
            follow_links=False,
            pool=pool,
            disk=disk,
            origins=self.origins,
            longest=longest if longest != metadata else None,
        )

    def amend(self, metadata: MetadataOf) -> None:
        for sink in self._sinks.values():
            sink.amend(metadata)

    def index_bytes(self, names: Mapping[str, str]) -> bytes:
        weight_map = {name: names[shard] for name, shard in self.home.items()}
        document = {"metadata": self.index_metadata, "weight_map": weight_map}
        # The bytes that huggingface_hub and transformers write.
        data = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode("ascii")
        if len(data) > MAX_INDEX_BYTES:
            raise InputRefused(
                f"the index would be {len(data)} bytes; {MAX_INDEX_BYTES} is the limit of what can be read again",
                hint=AS_SAFETENSORS,
            )
        return data

    def check_replaced(self) -> None:
        indexes = sorted(name for name in os.listdir(self.folder) if name.endswith(INDEX_SUFFIX))
        if self.index_name in indexes:
            return
        other = (
            f"another sharded checkpoint, {printable(indexes[0])}"
            if indexes
            else "a checkpoint of torch.distributed.checkpoint"
        )
        if indexes or is_dcp(self.folder):
            raise OutputFailed(
                f"{PATH} holds {other}; one folder is for one",
                hint=f"remove it, or {ELSEWHERE}",
                path=self.path,
            )

    def old_parts(self) -> set[str]:
        index = self.folder / self.index_name
        if not os.path.lexists(index):
            # Loaders prefer the single file to the index; a set without one is known by its names.
            sets = shard_sets(name for name in os.listdir(self.folder) if name.endswith(self.part_suffix))
            return {SINGLE_NAME, *(name for there in sets.values() for name in there.values() if len(sets) == 1)}
        try:
            return set(read_index(index).weight_map.values())
        except InputRefused:
            return set()


def plan_shards(slots: Sequence[Slot], max_shard_size: int) -> dict[str, list[Slot]]:
    """Slots filled in order into shards of at most `max_shard_size` bytes; a larger tensor gets one to itself."""
    groups: list[list[Slot]] = [[]]
    size = 0
    for slot in slots:
        if groups[-1] and size + slot.nbytes > max_shard_size:
            groups.append([])
            size = 0
        groups[-1].append(slot)
        size += slot.nbytes
    if len(groups) == 1:
        return {SINGLE_NAME: groups[0]}
    return {f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, 1)}
