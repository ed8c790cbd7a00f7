"""Where tensors go: what all sinks do, and what those of one file have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from ..disk.atomic import AtomicFile, Data, folder_lock, sync_folder
from ..disk.interrupts import signals_held
from ..source import Source

if TYPE_CHECKING:
    from typing_extensions import Self

# What looks at the finished files, still under their temporary names, before they are published.
Check = Callable[[Path, Iterable[Path]], None]
# The metadata of a file that holds tensors of these names.
MetadataOf = Callable[[Iterable[str]], Mapping[str, str]]


class Sink(ABC):
    """Where tensors go. Use in a `with`; without commit() nothing appears.

    `sync`: what it writes is on the disk when `commit` returns, and each name only after what it leads to. Otherwise
    nothing is waited for: at every instant, kills included, the files are the same, and only a power cut tells.
    """

    sync = True

    def __init__(self) -> None:
        # What is left with the sink: its files, or the sinks it writes to.
        self._open = ExitStack()
        # Those that were copied from, by their id.
        self._sources: dict[int, Source] = {}

    def __enter__(self) -> Self:
        try:
            self.begin()
        except BaseException:
            self.discard()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.discard()

    @abstractmethod
    def begin(self) -> None:
        """Make the files, hidden; what was made by a call that raises, `discard` removes."""

    def discard(self) -> None:
        """Remove what is not published; of what is, nothing."""
        with signals_held():  # a second Ctrl-C while the first cleans up, or a third
            self._open.close()

    def settle(self, folder: Path) -> None:
        """Put the names in a folder on the disk, where it is to be waited for."""
        if self.sync:
            sync_folder(folder)

    @abstractmethod
    def write(self, name: str, data: Data) -> None:
        """The row-major bytes of one tensor."""

    @abstractmethod
    def write_part(self, name: str, at: int, data: Data) -> None:
        """Some of a tensor's bytes, from byte `at` of it on; its parts come in order, without a gap."""

    @abstractmethod
    def copy(self, source: Source, pairs: Iterable[tuple[str, str]]) -> None:
        """Tensors (name here, name in the source), byte for byte."""

    @abstractmethod
    def abandon(self) -> None:
        """Let other threads that write here stop soon: the work has failed and the sink is about to be left."""

    @abstractmethod
    def amend(self, metadata: MetadataOf) -> None:
        """The metadata as the data have settled it, in the room that was kept for it; nothing where the container has
        none.
        """

    @abstractmethod
    def commit(self, *sources: Source, check: Check | None = None) -> None:
        """Publish. Sources that were copied from, and those given, must be unchanged since they were opened.

        `check` gets the output's path and the finished files under their temporary names; if it raises, nothing
        appears.
        """


class FileSink(Sink):
    """A sink of one file, whose size is known before its bytes."""

    def __init__(self, file: AtomicFile, size: int):
        super().__init__()
        self.file, self.size = file, size

    def begin(self) -> None:
        self._open.enter_context(self.file)
        self.file.reserve(self.size)

    def abandon(self) -> None:
        self.file.abandon()

    def finish(self) -> None:
        """Put the complete file on the disk, under its temporary name."""
        self.file.finish(self.size)

    def commit(self, *sources: Source, check: Check | None = None) -> None:
        self.finish()
        if check is not None:
            check(self.file.path, [self.file.hidden])
        # Between the look and the name no other run replaces what was read.
        with folder_lock(self.file.folder):
            check_unchanged(*self._sources.values(), *sources)
            self.file.publish()


def check_unchanged(*sources: Source) -> None:
    """Raise InputRefused if any of the inputs is not what it was when it was opened."""
    for source in {id(source): source for source in sources}.values():
        source.check_unchanged()
