"""A folder of part files and an index that names them, written so that a half-written one never looks whole.

A folder that is new is built under a hidden name beside its own, and renamed into place when every
file in it is on the disk.

In a folder that exists (--force, --in-place) nothing can be renamed as one, and its other files are
not ours to move. There the index is the switch, for what it names is the checkpoint:

    1. every new part is complete and synced under a hidden name
    2. the index is replaced by one that names those      <- until here the old checkpoint, now the new one
    3. the parts get their own names too (a second link), over the old ones
    4. the index is replaced by one that names these
    5. hidden names, and parts that only the old index named, are removed

At each step the index names one complete set of parts, so a kill or a power cut leaves the old
checkpoint or the new one, and at worst some files beside it that no index names.

Where a run has several processes (its ranks) each has a sink of the same folder and writes the parts it owns, complete
and synced, under hidden names. It hands those names to the first rank, which alone publishes: all parts or none.
"""

from __future__ import annotations

import os
import shutil
import stat
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, TypeVar

from ...errors import PATH, OutputFailed
from ...text import printable
from ...wording import given
from ..disk.atomic import (
    UNSUPPORTED,
    AtomicFile,
    Data,
    failures,
    folder_lock,
    hidden_name,
    refuse_existing,
    rename_to_new,
)
from ..disk.building import Building
from ..disk.direct import Disk
from ..disk.input_file import InputFile, OpenFiles
from ..disk.interrupts import signals_held
from ..disk.stream import Stream
from ..header import Slot
from ..source import Source
from .safetensors_file import copy_run
from .writer import Check, FileSink, MetadataOf, Sink, check_unchanged

T = TypeVar("T")


class Run(Protocol):
    """The processes that write one folder, as one of them sees them; `leads` is true of the first."""

    rank: int
    size: int
    leads: bool

    def exchange(self, subject: str, value: T) -> list[T]:
        """What each of them says."""

    def from_first(self, subject: str, make: Callable[[], T]) -> T:
        """What `make` gives on the first, known to all."""

    def may_publish(self) -> None:
        """Raise where the run has failed elsewhere; from here on it cannot."""

    def give_up(self) -> bool:
        """Let the run fail; False where the first publishes already."""


class FolderSink(Sink):
    """A folder of parts being written. What the parts and the index are is for the kinds of folder to say.

    `parts` is file name -> slots, and one left without slots is not written. `siblings` are files to carry along under
    their own names, those of `rewritten` with other contents. `owner`: the rank of `run` that writes each part, where
    there are several; of the others' tensors this sink knows nothing.
    """

    index_name: str
    part_suffix: str

    def __init__(
        self,
        folder: str | os.PathLike[str],
        parts: Mapping[str, Sequence[Slot]],
        siblings: Iterable[str | os.PathLike[str]] = (),
        *,
        run: Run,
        overwrite: bool = False,
        sync: bool = True,
        owner: Mapping[str, int] | None = None,
        rewritten: Mapping[str, bytes] = MappingProxyType({}),
    ):
        super().__init__()
        self.path = Path(folder)
        self.folder = Path(os.path.realpath(folder)) if overwrite else Path(folder).absolute()
        self.overwrite = overwrite
        self.sync = sync
        self.parts = {part: list(slots) for part, slots in parts.items() if slots}
        self.home = {slot.name: part for part, slots in self.parts.items() for slot in slots}
        self.siblings = [Path(sibling) for sibling in siblings]
        self.rewritten = rewritten
        self._sinks: dict[str, FileSink] = {}
        self._run = run
        self._owner = owner or {}
        self._files: dict[str, AtomicFile] = {}  # every part that is ours to publish, finished
        self._handed_over = False
        self._others: list[AtomicFile] = []  # siblings and indexes, finished but not yet published
        self._building: Building | None = None
        self._switched = False  # the index on the disk names our hidden parts: they must stay

    # --- what a kind of folder says --------------------------------------------------------------

    @abstractmethod
    def part_sink(self, path: Path, part: str, pool: OpenFiles, disk: Disk) -> FileSink:
        """The sink of one part, to be written at `path`."""

    @abstractmethod
    def index_bytes(self, names: Mapping[str, str]) -> bytes:
        """The index of these parts, part -> the name it is to be found under."""

    @abstractmethod
    def check_replaced(self) -> None:
        """Raise OutputFailed where the folder that is there is not one this sink may write into."""

    @abstractmethod
    def old_parts(self) -> set[str]:
        """Names of the parts of the checkpoint that is replaced, as the old index has them: an untrusted text."""

    def check_written(self, check: Check) -> None:
        """Let `check` look at the finished parts of this process, under their temporary names."""
        check(self.path, [sink.file.hidden for sink in self._sinks.values()])

    # --- writing ---------------------------------------------------------------------------------

    def begin(self) -> None:
        refuse_existing(self.path, self.overwrite)
        with failures(self.path):
            self._begin()

    def _begin(self) -> None:
        building = self._run.from_first("building", self._make_folder)
        if building and self._building is None:
            with suppress(OSError):
                self._building = Building(self.folder.parent / building)
        if self._run.size > 1 and not (self._building or (not building and os.path.isdir(self.folder))):
            raise OutputFailed(
                f"the folder of {PATH} is not one that all processes of the run see",
                hint=f"the ranks of a run need one file system: {given('output')} a folder on it",
                path=self.path,
            )
        place = self._place
        pool, disk = OpenFiles(), Disk(sum(slot.nbytes for slots in self.parts.values() for slot in slots), self.sync)
        for part in self.parts:
            if self._owner.get(part, 0) == self._run.rank:
                self._sinks[part] = self.part_sink(place / part, part, pool, disk)
                self._sinks[part].file.known_as = self.path / part
                self._open.enter_context(self._sinks[part])

    @property
    def _place(self) -> Path:
        """Where the files are written, under whatever names."""
        return self._building.path if self._building else self.folder

    def _make_folder(self) -> str | None:
        """The name of a new folder that is built beside the output; None where the output's own is there."""
        try:
            mode = os.stat(self.folder).st_mode
        except FileNotFoundError:
            self._building = Building.new(self.folder.parent)
            return self._building.path.name
        if not stat.S_ISDIR(mode):
            raise OutputFailed(
                f"{PATH} is no folder, which a sharded checkpoint is",
                hint=given("output", "FOLDER"),
                path=self.path,
            )
        self.check_replaced()
        return None

    def discard(self) -> None:
        with signals_held():
            # What another rank publishes at this moment is not ours to remove.
            theirs = self._handed_over and not self._run.give_up()
            if self._switched or theirs:
                for file in [*(sink.file for sink in self._sinks.values()), *self._files.values()]:
                    file.temporary = None
            super().discard()
            if self._building is not None:
                if not theirs:
                    self._run.give_up()
                    shutil.rmtree(self._building.path, ignore_errors=True)
                self._building.close()

    def write(self, name: str, data: Data) -> None:
        self._sinks[self.home[name]].write(name, data)

    def write_part(self, name: str, at: int, data: Data) -> None:
        self._sinks[self.home[name]].write_part(name, at, data)

    def copy(self, source: Source, pairs: Iterable[tuple[str, str]]) -> None:
        self._sources[id(source)] = source
        of_part: dict[str, list[tuple[str, str]]] = {}
        for name, key in pairs:
            of_part.setdefault(self.home[name], []).append((name, key))
        for part, its_pairs in of_part.items():
            self._sinks[part].copy(source, its_pairs)

    def abandon(self) -> None:
        for sink in self._sinks.values():
            sink.abandon()

    def amend(self, metadata: MetadataOf) -> None:
        """Parts that have no metadata have nothing to amend."""

    def commit(self, *sources: Source, check: Check | None = None) -> None:
        used = (*self._sources.values(), *sources)
        for sink in self._sinks.values():
            sink.finish()
        if check is not None:
            self.check_written(check)
        if self._run.size > 1 and not self._take_over(used):
            return
        self._files.update({part: sink.file for part, sink in self._sinks.items()})
        for sibling in self.siblings:
            self._carry(sibling, self._place)
        self._run.may_publish()
        self._publish(used)
        self._run.from_first("published", lambda: True)

    def _publish(self, used: Iterable[Source]) -> None:
        with failures(self.path):
            if self._building is not None:
                check_unchanged(*used)
                self._publish_folder(self._building)
                return
            with folder_lock(self.folder):
                # Inside the lock: what another run published here before us is a change of our input.
                check_unchanged(*used)
                with signals_held():
                    self._publish_into()

    def _take_over(self, used: Iterable[Source]) -> bool:
        """On the first rank: every finished part of the others is found, and is ours. On the others, the opposite."""
        check_unchanged(*used)
        mine = {part: (sink.file.hidden.name, sink.size) for part, sink in self._sinks.items()}
        self._handed_over = not self._run.leads
        finished = self._run.exchange("finished", mine)
        if not self._run.leads:
            self._run.from_first("published", lambda: True)
            return False
        place = self._place
        for rank, files in enumerate(finished[1:], 1):
            for part, (name, size) in files.items():
                file = self._file(place / part)
                file.temporary = there = place / name
                self._files[part] = self._open.push(file)
                if not os.path.isfile(there) or there.stat().st_size != size:
                    raise OutputFailed(
                        f"{printable(part)}, which rank {rank} wrote, is not to be found here",
                        path=self.path,
                        hint=f"the ranks of a run need one file system: {given('output')} a folder on it",
                    )
        return True

    def _carry(self, sibling: Path, place: Path) -> None:
        """Copy one file that belongs with the checkpoint; one that is there already stays."""
        target = place / sibling.name
        if (data := self.rewritten.get(sibling.name)) is not None:
            other = self._other(target)
            other.write_at(0, data)
            other.finish(len(data))
            other.park()
            return
        if os.path.exists(target) and os.path.samefile(sibling, target):
            return
        original = InputFile(sibling)
        try:
            copy = self._other(target)
            with Stream(copy) as stream:
                copy_run(original, stream, 0, 0, original.size)
            copy.finish(original.size)
            copy.park()
        finally:
            original.close()

    def _file(self, target: Path) -> AtomicFile:
        file = AtomicFile(target, overwrite=self.overwrite, sync=self.sync, follow_links=False)
        file.known_as = self.path / target.name
        return file

    def _other(self, target: Path) -> AtomicFile:
        file = self._file(target)
        self._others.append(self._open.push(file))
        file.create()
        return file

    def _index(self, place: Path, names: Mapping[str, str]) -> AtomicFile:
        """A finished index, part -> the name it is to be found under."""
        data = self.index_bytes(names)
        index = self._other(place / self.index_name)
        index.write_at(0, data)
        index.finish(len(data))
        return index

    def _publish_folder(self, building: Building) -> None:
        index = self._index(building.path, {part: part for part in self._files})
        for file in [*self._files.values(), *self._others]:
            if file is not index:
                file.publish()
        index.publish()
        # Who made the folder meanwhile keeps it.
        rename_to_new(building.path, self.folder)
        self._building = None
        building.close()
        self.settle(self.folder.parent)

    def _publish_into(self) -> None:
        # Whatever the old index names, nothing but parts is ever removed.
        old = {name for name in self.old_parts() if name.endswith(self.part_suffix)}
        stale = sorted(name for name in old - set(self._files) if os.path.isfile(self.folder / name))
        hidden = {part: hidden_name(self.folder, self.part_suffix).name for part in self._files}
        # Both indexes are on the disk before the first name changes: a full disk is found here.
        to_hidden = self._index(self.folder, hidden)
        to_own = self._index(self.folder, {part: part for part in hidden})
        for part, file in self._files.items():
            os.rename(file.hidden, self.folder / hidden[part])
            file.temporary = self.folder / hidden[part]
        self.settle(self.folder)
        try:
            to_hidden.publish()
        finally:
            self._switched = to_hidden.temporary is None
        self._name_parts(hidden)
        to_own.publish()
        for file in self._others:
            if file.temporary is not None:
                file.publish()
        for name in [*hidden.values(), *stale]:
            (self.folder / name).unlink(missing_ok=True)
        self.settle(self.folder)

    def _name_parts(self, hidden: Mapping[str, str]) -> None:
        """Give the parts their own names beside the hidden ones."""
        for part, name in hidden.items():
            link = hidden_name(self.folder)
            try:
                os.link(self.folder / name, link)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._move_parts(hidden)
                break
            os.replace(link, self.folder / part)
        self.settle(self.folder)

    def _move_parts(self, hidden: Mapping[str, str]) -> None:
        """The same where hard links do not work: names can only move, and from the first of them on to the last the
        index names parts that are not there, so that nobody takes old and new ones together.
        """
        for part, name in hidden.items():
            os.replace(self.folder / name, self.folder / part)
