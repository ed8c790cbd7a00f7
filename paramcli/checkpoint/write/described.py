"""A folder of one .safetensors file and a text that says how its tensors are meant, as an adapter is.

A new folder is built under a hidden name, and renamed when both files are on the disk. In one that exists (--force) the
old text goes first, when both new files are complete: what a reader finds is the old pair, then for an instant tensors
that nothing describes, then the new pair, and never tensors beside a text that is not theirs.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ...errors import PATH, OutputFailed
from ..disk.atomic import (
    ELSEWHERE,
    AtomicFile,
    Data,
    failures,
    folder_lock,
    hidden_name,
    refuse_existing,
    rename_to_new,
)
from ..disk.building import Building
from ..disk.hub import refuse_cache
from ..disk.interrupts import signals_held
from ..header import Slot
from ..source import Source
from .safetensors_file import SafetensorsSink
from .writer import Check, MetadataOf, Sink, check_unchanged


class DescribedSink(Sink):
    """The folder being written: `tensors` and `text` are the names of its two files."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tensors: str,
        slots: Sequence[Slot],
        metadata: Mapping[str, str],
        text: str,
        content: bytes,
        *,
        overwrite: bool = False,
        sync: bool = True,
    ):
        super().__init__()
        self.path = Path(folder)
        self.folder = Path(os.path.realpath(folder)) if overwrite else Path(folder).absolute()
        self.overwrite = overwrite
        self.sync = sync
        self._names = tensors, text
        self._slots, self._metadata, self._content = slots, metadata, content
        self._building: Building | None = None
        self._tensors: SafetensorsSink | None = None

    @property
    def _sink(self) -> SafetensorsSink:
        assert self._tensors is not None, "used outside its with"
        return self._tensors

    def begin(self) -> None:
        refuse_existing(self.path, self.overwrite)
        refuse_cache(self.folder)
        with failures(self.path):
            place = self._place()
        sink = SafetensorsSink(
            place / self._names[0],
            self._slots,
            self._metadata,
            overwrite=self.overwrite,
            sync=self.sync,
            follow_links=False,
        )
        sink.file.known_as = self.path / self._names[0]
        self._tensors = self._open.enter_context(sink)

    def _place(self) -> Path:
        try:
            mode = os.stat(self.folder).st_mode
        except FileNotFoundError:
            self._building = Building.new(self.folder.parent)
            return self._building.path
        there = os.listdir(self.folder) if stat.S_ISDIR(mode) else None
        if there is None or (there and self._names[1] not in there):
            raise OutputFailed(
                f"{PATH} is " + ("no folder" if there is None else f"a folder without {self._names[1]}"),
                hint=f"remove it, or {ELSEWHERE}",
                path=self.path,
            )
        return self.folder

    def discard(self) -> None:
        with signals_held():
            super().discard()
            if self._building is not None:
                shutil.rmtree(self._building.path, ignore_errors=True)
                self._building.close()

    def write(self, name: str, data: Data) -> None:
        self._sink.write(name, data)

    def write_part(self, name: str, at: int, data: Data) -> None:
        self._sink.write_part(name, at, data)

    def copy(self, source: Source, pairs: Iterable[tuple[str, str]]) -> None:
        self._sources[id(source)] = source
        self._sink.copy(source, pairs)

    def abandon(self) -> None:
        self._sink.abandon()

    def amend(self, metadata: MetadataOf) -> None:
        """Its metadata is known from the start."""

    def commit(self, *sources: Source, check: Check | None = None) -> None:
        sink = self._sink
        sink.finish()
        text = AtomicFile(
            sink.file.folder / self._names[1], overwrite=self.overwrite, sync=self.sync, follow_links=False
        )
        text.known_as = self.path / self._names[1]
        self._open.push(text)
        text.create()
        text.write_at(0, self._content)
        text.finish(len(self._content))
        if check is not None:
            check(self.path, [sink.file.hidden])
        check_unchanged(*self._sources.values(), *sources)
        with failures(self.path), signals_held():
            if self._building is None:
                with folder_lock(self.folder):
                    self._replace(sink.file, text)
                return
            sink.file.publish()
            text.publish()
            rename_to_new(self._building.path, self.folder)
            building, self._building = self._building, None
            building.close()
            self.settle(self.folder.parent)

    def _replace(self, tensors: AtomicFile, text: AtomicFile) -> None:
        old = hidden_name(self.folder)
        if there := os.path.lexists(text.target):
            os.rename(text.target, old)
        try:
            self.settle(self.folder)
            tensors.publish()
            text.publish()
        except BaseException:
            if there and tensors.temporary is not None:
                os.rename(old, text.target)
            raise
        if there:
            os.unlink(old)
