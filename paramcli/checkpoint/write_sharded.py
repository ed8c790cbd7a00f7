"""A folder of .safetensors shards with an index, written so that a half-written one never looks whole.

A folder that is new is built under a hidden name beside its own, and renamed into place when every
file in it is on the disk.

In a folder that exists (--force, --in-place) nothing can be renamed as one, and its other files are
not ours to move. There the index is the switch, for what it names is the checkpoint:

    1. every new shard is complete and synced under a hidden name
    2. the index is replaced by one that names those      <- until here the old checkpoint, now the new one
    3. the shards get their own names too (a second link), over the old ones
    4. the index is replaced by one that names these
    5. hidden names, and shards that only the old index named, are removed

At each step the index names one complete set of shards, so a kill or a power cut leaves the old
checkpoint or the new one, and at worst some files beside it that no index names.

Where a run has several processes (`ranks`) each has a sink of the same folder and writes the shards it owns, complete
and synced, under hidden names. It hands those names to the first rank, which alone publishes: all shards or none.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .. import ranks
from ..errors import InputRefused, OutputFailed
from ..text import printable, printable_path
from .atomic import (
    UNSUPPORTED,
    AtomicFile,
    failures,
    folder_lock,
    hidden_name,
    refuse_existing,
    rename_to_new,
    signals_held,
    sync_folder,
)
from .header import Slot
from .read_sharded import INDEX_NAME, INDEX_SUFFIX, read_index
from .source import InputFile, OpenFiles, Source
from .write_safetensors import Check, SafetensorsSink, check_unchanged, copy_run

SINGLE_NAME = "model.safetensors"


class ShardedSink:
    """A folder of shards being written; the same interface as SafetensorsSink.

    `shards` is file name -> slots, and one left without slots is not written. Every shard gets the same
    `metadata`; `index_metadata` goes into the index beside total_size, which is always exact. `siblings` are
    files to carry along under their own names. `owner`: the rank that writes each shard, where there are several;
    of the others' tensors this sink knows nothing.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        shards: Mapping[str, Sequence[Slot]],
        metadata: Mapping[str, str],
        index_metadata: Mapping[str, object] | None = None,
        siblings: Iterable[str | os.PathLike] = (),
        *,
        overwrite: bool = False,
        index_name: str = INDEX_NAME,
        owner: Mapping[str, int] | None = None,
    ):
        self.path = Path(folder)
        self.folder = Path(os.path.realpath(folder)) if overwrite else Path(folder).absolute()
        self.overwrite = overwrite
        self.index_name = index_name
        self.metadata = metadata
        self.shards = {shard: list(slots) for shard, slots in shards.items() if slots}
        self.home = {slot.name: shard for shard, slots in self.shards.items() for slot in slots}
        self.siblings = [Path(sibling) for sibling in siblings]
        total = sum(slot.nbytes for slots in self.shards.values() for slot in slots)
        self.index_metadata = {**(index_metadata or {}), "total_size": total}
        self._sinks: dict[str, SafetensorsSink] = {}
        self._sources: dict[int, Source] = {}
        self._run = ranks.current() if owner is not None else ranks.Alone()
        self._owner = owner or {}
        self._files: dict[str, AtomicFile] = {}  # every shard that is ours to publish, finished
        self._handed_over = False
        self._others: list[AtomicFile] = []  # siblings and indexes, finished but not yet published
        self._building: Path | None = None
        self._switched = False  # the index on the disk names our hidden shards: they must stay

    def __enter__(self) -> ShardedSink:
        refuse_existing(self.path, self.overwrite)
        try:
            with failures(self.path):
                self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        building = self._run.from_first("building", self._make_folder)
        self._building = self.folder.parent / building if building else None
        place = self._building or self.folder
        if self._run.size > 1 and not place.is_dir():
            raise OutputFailed(
                f"the folder of {printable_path(self.path)} is not one that all processes of the run see",
                hint="the ranks of a run need one file system: -o a folder on it", path=self.path,
            )  # fmt: skip
        pool = OpenFiles()
        for shard, slots in self.shards.items():
            if self._owner.get(shard, 0) != self._run.rank:
                continue
            sink = SafetensorsSink(
                place / shard, slots, self.metadata, overwrite=self.overwrite, follow_links=False, pool=pool
            )
            self._sinks[shard] = sink
            sink.__enter__()

    def _make_folder(self) -> str | None:
        """The name of a new folder that is built beside the output; None where the output's own is there."""
        try:
            mode = os.stat(self.folder).st_mode
        except FileNotFoundError:
            self._building = hidden_name(self.folder.parent)
            os.mkdir(self._building, 0o777)  # the mode follows the umask
            return self._building.name
        self._check_folder(mode)
        return None

    def _check_folder(self, mode: int) -> None:
        shown = printable_path(self.path)
        if not stat.S_ISDIR(mode):
            raise OutputFailed(f"{shown} is no folder, which a sharded checkpoint is", hint="-o FOLDER", path=self.path)
        indexes = sorted(name for name in os.listdir(self.folder) if name.endswith(INDEX_SUFFIX))
        if indexes and self.index_name not in indexes:
            raise OutputFailed(
                f"{shown} holds another sharded checkpoint, {printable(indexes[0])}; one folder is for one",
                hint="remove it, or write elsewhere with -o",
                path=self.path,
            )

    def __exit__(self, *exception: object) -> None:
        try:
            self._discard()
        except BaseException:  # a second Ctrl-C while the first cleans up
            self._discard()
            raise

    def _discard(self) -> None:
        # What another rank publishes at this moment is not ours to remove.
        theirs = self._handed_over and not self._run.give_up()
        for file in [*(sink.file for sink in self._sinks.values()), *self._files.values()]:
            if self._switched or theirs:
                file.temporary = None
            file.__exit__()
        for file in self._others:
            file.__exit__()
        if self._building is not None and not theirs:
            self._run.give_up()
            shutil.rmtree(self._building, ignore_errors=True)

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._sinks[self.home[name]].write(name, data)

    def copy(self, source: Source, pairs: Iterable[tuple[str, str]]) -> None:
        self._sources[id(source)] = source
        parts: dict[str, list[tuple[str, str]]] = {}
        for name, key in pairs:
            parts.setdefault(self.home[name], []).append((name, key))
        for shard, part in parts.items():
            self._sinks[shard].copy(source, part)

    def abandon(self) -> None:
        for sink in self._sinks.values():
            sink.abandon()

    def commit(self, *sources: Source, check: Check | None = None) -> None:
        used = (*self._sources.values(), *sources)
        for sink in self._sinks.values():
            sink.finish()
        if check is not None:
            check(self.path, [sink.file.temporary for sink in self._sinks.values()])
        if self._run.size > 1 and not self._take_over(used):
            return
        self._files.update({shard: sink.file for shard, sink in self._sinks.items()})
        for sibling in self.siblings:
            self._carry(sibling, self._building or self.folder)
        self._run.may_publish()
        self._publish(used)
        self._run.from_first("published", lambda: True)

    def _publish(self, used: Iterable[Source]) -> None:
        with failures(self.path):
            if self._building is not None:
                check_unchanged(*used)
                self._publish_folder()
                return
            with folder_lock(self.folder):
                # Inside the lock: what another run published here before us is a change of our input.
                check_unchanged(*used)
                with signals_held():
                    self._publish_into()

    def _take_over(self, used: Iterable[Source]) -> bool:
        """On the first rank: every finished shard of the others is found, and is ours. On the others, the opposite."""
        check_unchanged(*used)
        mine = {shard: (sink.file.temporary.name, sink.size) for shard, sink in self._sinks.items()}
        self._handed_over = not self._run.leads
        finished = self._run.exchange("finished", mine)
        if not self._run.leads:
            self._run.from_first("published", lambda: True)
            return False
        place = self._building or self.folder
        for rank, files in enumerate(finished[1:], 1):
            for shard, (name, size) in files.items():
                file = AtomicFile(place / shard, overwrite=self.overwrite, follow_links=False)
                file.temporary = place / name
                self._files[shard] = file
                if not file.temporary.is_file() or file.temporary.stat().st_size != size:
                    raise OutputFailed(
                        f"{printable(shard)}, which rank {rank} wrote, is not to be found here", path=self.path,
                        hint="the ranks of a run need one file system: -o a folder on it",
                    )  # fmt: skip
        return True

    def _carry(self, sibling: Path, place: Path) -> None:
        """Copy one file that belongs with the checkpoint; one that is there already stays."""
        target = place / sibling.name
        if target.exists() and os.path.samefile(sibling, target):
            return
        original = InputFile(sibling)
        try:
            copy = self._other(target)
            copy_run(original, 0, copy, 0, original.size)
            copy.finish(original.size)
            copy.park()
        finally:
            original.close()

    def _other(self, target: Path) -> AtomicFile:
        file = AtomicFile(target, overwrite=self.overwrite, follow_links=False)
        self._others.append(file)
        return file.__enter__()

    def _index(self, place: Path, names: Mapping[str, str]) -> AtomicFile:
        """A finished index, shard -> the name it is to be found under."""
        weight_map = {name: names[shard] for name, shard in self.home.items()}
        document = {"metadata": self.index_metadata, "weight_map": weight_map}
        # The bytes that huggingface_hub and transformers write.
        text = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode("ascii")
        index = self._other(place / self.index_name)
        index.write_at(0, text)
        index.finish(len(text))
        return index

    def _publish_folder(self) -> None:
        index = self._index(self._building, {shard: shard for shard in self._files})
        for file in [*self._files.values(), *self._others]:
            if file is not index:
                file.publish()
        index.publish()
        # Who made the folder meanwhile keeps it.
        rename_to_new(self._building, self.folder)
        self._building = None
        sync_folder(self.folder.parent)

    def _publish_into(self) -> None:
        stale = self._stale_shards()
        hidden = {shard: hidden_name(self.folder, ".safetensors").name for shard in self._files}
        # Both indexes are on the disk before the first name changes: a full disk is found here.
        to_hidden = self._index(self.folder, hidden)
        to_own = self._index(self.folder, {shard: shard for shard in hidden})
        for shard, file in self._files.items():
            os.rename(file.temporary, self.folder / hidden[shard])
            file.temporary = self.folder / hidden[shard]
        sync_folder(self.folder)
        try:
            to_hidden.publish()
        finally:
            self._switched = to_hidden.temporary is None
        self._name_shards(hidden)
        to_own.publish()
        for file in self._others:
            if file.temporary is not None:
                file.publish()
        for name in [*hidden.values(), *stale]:
            (self.folder / name).unlink(missing_ok=True)
        sync_folder(self.folder)

    def _name_shards(self, hidden: Mapping[str, str]) -> None:
        """Give the shards their own names beside the hidden ones."""
        for shard, name in hidden.items():
            link = hidden_name(self.folder)
            try:
                os.link(self.folder / name, link)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._move_shards(hidden)
                break
            os.replace(link, self.folder / shard)
        sync_folder(self.folder)

    def _move_shards(self, hidden: Mapping[str, str]) -> None:
        """The same where hard links do not work: names can only move, and meanwhile no index may name them."""
        (self.folder / self.index_name).unlink()
        sync_folder(self.folder)
        for shard, name in hidden.items():
            os.replace(self.folder / name, self.folder / shard)

    def _stale_shards(self) -> list[str]:
        """Shards of the checkpoint that is replaced here and not part of the new one."""
        index = self.folder / self.index_name
        if not os.path.lexists(index):
            # Loaders prefer the single file to the index.
            old = {SINGLE_NAME}
        else:
            try:
                # An index is an untrusted text: it never makes us remove anything but shards.
                old = {name for name in read_index(index).weight_map.values() if name.endswith(".safetensors")}
            except InputRefused:
                old = set()
        return sorted(name for name in old - set(self._files) if (self.folder / name).is_file())


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
