"""A .safetensors file written as a stream: the header first, then each tensor at its place, then publication.

Tensors come in any order. Untouched ones are copied as byte runs, joined where they lie side by side
in both files, inside the kernel where it can. `commit` publishes a file that has every tensor exactly
once and whose inputs are still what they were.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from ..disk.atomic import AtomicFile, Data, failure
from ..disk.direct import Disk
from ..disk.input_file import InputFile, OpenFiles, in_use
from ..disk.stream import Stream
from ..header import PAGE, Slot, build_header, congruent_end, layout
from ..source import Source, Storage
from .writer import FileSink, MetadataOf

T = TypeVar("T")
# One call of copy_file_range moves at most this much, so that signals are not held up, and the disk begins early.
KERNEL_BLOCK = 1 << 26
# Threads that copy where the kernel does not: some compare checksums while others wait for the disk.
COPIERS = 4


class SafetensorsSink(FileSink):
    """One .safetensors file being written. `origins` is where tensors that will be copied lie in their files.

    The header goes first, before any tensor is read. `longest`: the longest metadata that reading them can lead to, for
    which it has room; `amend` then writes it again.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        slots: Sequence[Slot],
        metadata: Mapping[str, str],
        *,
        overwrite: bool = False,
        sync: bool = True,
        follow_links: bool = True,
        pool: OpenFiles | None = None,
        disk: Disk | None = None,
        origins: Mapping[str, int] = MappingProxyType({}),
        longest: Mapping[str, str] | None = None,
    ):
        self._places = layout(slots)
        end = congruent_end(self._places, origins)
        head_of = partial(build_header, slots, end=end, longest=longest, places=self._places)
        head = head_of(metadata)
        self._head: bytes | None = head
        self._head_of = head_of if longest is not None else None
        self._data = len(head)  # where the tensors begin
        # Bytes that have come of each tensor; one that is complete is no longer here.
        self._missing = dict.fromkeys(self._places, 0)
        size = self._data + max((end for _, end in self._places.values()), default=0)
        file = AtomicFile(path, overwrite=overwrite, sync=sync, follow_links=follow_links, pool=pool, disk=disk)
        super().__init__(file, size)

    def begin(self) -> None:
        super().begin()
        assert self._head is not None, "a sink is used once"
        self.file.write_at(0, self._head)
        self._head = None  # of a checkpoint of many shards they are many

    def write(self, name: str, data: Data) -> None:
        self.file.write_at(self._take(name, memoryview(data).nbytes), data)

    def write_part(self, name: str, at: int, data: Data) -> None:
        self.file.write_at(self._take_part(name, at, memoryview(data).nbytes), data)

    def copy(self, source: Source, pairs: Iterable[tuple[str, str]]) -> None:
        self._sources[id(source)] = source
        runs, whole, parts = [], [], []
        for name, key in pairs:
            info = source.tensors[key]
            if info.run is None:
                self.write(name, source.read_bytes(key))
                continue
            number, offset, length = info.run
            place = self._take(name, length)
            if info.storage.crc is not None and length == info.storage.nbytes:
                whole.append((number, offset, place, info.storage))
                continue
            runs.append((number, offset, place, length))
            if info.storage.crc is not None:
                parts.append(info.storage)
        copy_storages(
            source, self.file, [(storage, place) for _, _, place, storage in sorted(whole, key=lambda item: item[:3])]
        )
        copy_runs(source, self.file, joined(runs))
        for storage in parts:
            source.check_storage(storage)

    def amend(self, metadata: MetadataOf) -> None:
        if self._head_of is not None:
            head = self._head_of(metadata(self._places))
            assert len(head) == self._data, f"the header has room for {self._data} bytes, and needs {len(head)}"
            self.file.write_at(0, head)

    def _take(self, name: str, length: int) -> int:
        """The file offset of a tensor that is written now: once, and with exactly its bytes."""
        begin, end = self._places[name]
        assert length == end - begin, f"{name} has {end - begin} bytes, {length} were given"
        return self._take_part(name, 0, length)

    def _take_part(self, name: str, at: int, length: int) -> int:
        """The same for a part, which begins where the one before it ended."""
        begin, end = self._places[name]
        assert name in self._missing, f"{name} is written twice"
        assert at == self._missing[name], (
            f"{name} has {self._missing[name]} bytes so far, and a part for byte {at} came"
        )
        assert at + length <= end - begin, f"{name} has {end - begin} bytes, {at + length} were given"
        self._missing[name] += length
        if self._missing[name] == end - begin:
            del self._missing[name]
        return self._data + begin + at

    def finish(self) -> None:
        assert not self._missing, f"never written: {sorted(self._missing)[:3]}"
        super().finish()


def joined(runs: Iterable[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Runs (file, offset there, offset here, length), those that touch on both sides made one, in reading order."""
    merged: list[tuple[int, int, int, int]] = []
    for number, offset, place, length in sorted(run for run in runs if run[3]):
        if merged:
            before = merged[-1]
            if before[0] == number and before[1] + before[3] == offset and before[2] + before[3] == place:
                merged[-1] = (*before[:3], before[3] + length)
                continue
        merged.append((number, offset, place, length))
    return merged


# ioctl(2) of Linux: struct file_clone_range, from a descriptor, an offset and a length there, to an offset here.
_FICLONERANGE = 0x4020940D
# Errors of copy_file_range after which reading and writing may still work, or will say whose fault it is.
_TRY_PLAIN = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EBADF,
    errno.EPERM,
    errno.ETXTBSY,
    errno.EOVERFLOW,
    errno.EIO,
}


def copy_storage(source: Source, storage: Storage, stream: Stream, place: int) -> int:
    """Copy a storage whole, its checksum compared on the way; gives the checksum."""
    stream.go(place)
    return source.pass_through(storage, stream)


def copy_storages(source: Source, target: AtomicFile, places: Sequence[tuple[Storage, int]]) -> None:
    """The same for many, in several threads where there is much."""
    _in_threads(
        target,
        [(storage.nbytes, partial(copy_storage, source, storage, place=place)) for storage, place in places],
    )


def copy_runs(source: Source, target: AtomicFile, runs: Iterable[tuple[int, int, int, int]]) -> None:
    """Copy runs (file, offset there, offset here, length); several threads keep a disk busy that is written past the
    cache.
    """
    if not target.goes_direct:
        with Stream(target) as stream:
            for number, offset, place, length in runs:
                copy_run(source.files[number], stream, offset, place, length)
        return
    pieces = [
        (source.files[number], offset + done, place + done, min(length - done, KERNEL_BLOCK))
        for number, offset, place, length in runs
        for done in range(0, length, KERNEL_BLOCK)
    ]
    _in_threads(
        target,
        [
            (length, partial(copy_run, file, offset=offset, place=place, length=length))
            for file, offset, place, length in pieces
        ],
    )


def _in_threads(target: AtomicFile, items: Sequence[tuple[int, Callable[[Stream], object]]]) -> None:
    """Make all copies, of so many bytes each, in several threads where there is much.

    Each has a stretch of its own: threads that write next to each other take three times as long as those far apart.
    """
    from concurrent.futures import ThreadPoolExecutor

    failed = threading.Event()

    def work(stretch: Sequence[Callable[[Stream], object]]) -> None:
        try:
            with Stream(target) as stream:
                for copy in stretch:
                    if failed.is_set():
                        return
                    copy(stream)
        except BaseException:
            failed.set()
            raise

    if sum(nbytes for nbytes, _ in items) <= KERNEL_BLOCK:
        work([copy for _, copy in items])
        return
    with ThreadPoolExecutor(COPIERS) as pool:
        for _ in pool.map(work, stretches(items, COPIERS)):
            pass


def stretches(items: Sequence[tuple[int, T]], count: int) -> list[list[T]]:
    """The items in `count` parts of as many bytes each as whole items allow, in order."""
    parts: list[list[T]] = [[] for _ in range(count)]
    total, before = sum(nbytes for nbytes, _ in items), 0
    for nbytes, item in items:
        parts[min(count * (before + nbytes // 2) // max(total, 1), count - 1)].append(item)
        before += nbytes
    return parts


def copy_run(source: InputFile, stream: Stream, offset: int, place: int, length: int) -> None:
    """Copy bytes from file to file: shared, past the cache, in the kernel, or as any program would,
    whichever is there.
    """
    done, target = 0, stream.target
    assert target is not None, "a stream without a file copies to nowhere"
    if not target.goes_direct or _shares(source, offset, target, place, length):
        done = _kernel_copy(source, offset, target, place, length)
    stream.go(place + done)
    while done < length:
        part = stream.room(length - done)
        source.read_into(offset + done, part)
        stream.came(len(part))
        done += len(part)


def _shares(source: InputFile, offset: int, target: AtomicFile, place: int, length: int) -> bool:
    """Does the file system let both files have one block? Tried with the first whole page, which is copied by it."""
    first = -offset % PAGE
    if (offset - place) % PAGE or first + PAGE > length:
        return False
    with in_use(source) as reading, in_use(target) as writing:
        try:
            fcntl.ioctl(writing, _FICLONERANGE, struct.pack("=qQQQ", reading, offset + first, PAGE, place + first))
        except OSError:
            return False
    return True


def _kernel_copy(source: InputFile, offset: int, target: AtomicFile, place: int, length: int) -> int:
    """Bytes that copy_file_range moved; fewer than asked where the system cannot, or the input ended.

    From a page's begin on, where both sides have one there: file systems share only whole pages.
    """
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    first = -offset % PAGE if (offset - place) % PAGE == 0 else 0
    with in_use(source) as reading, in_use(target) as writing:
        while done < length:
            count = min(first - done if done < first else KERNEL_BLOCK, length - done)
            try:
                with target.turn:
                    got = os.copy_file_range(reading, writing, count, offset + done, place + done)
            except OSError as error:
                if error.errno in _TRY_PLAIN:
                    return done
                raise failure(error, target.path) from None
            if not got:
                return done  # the plain reader will say that the input was cut
            done += got
            target.arrived(got, writing)
    return done
