"""Streaming safetensors writers: the header first, then each tensor at its place, then publication.

A sink takes tensors in any order; untouched ones are copied as byte runs, coalesced where they lie
side by side in both files, inside the kernel where it can. `commit` refuses a file that lacks a
tensor, and publishes.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import OutputFailed, UsageError
from ..text import printable, printable_path
from .atomic import TEMPORARY_PREFIX, AtomicFile, exists, failure, sync_folder
from .header import Slot, build_header, file_order
from .source import InputFile, Source

COPY_BLOCK = 1 << 20
# One call moves at most this much, so that progress and signals are not held up.
KERNEL_BLOCK = 1 << 28


class SafetensorsSink:
    """One .safetensors file being written. Use in a `with`; nothing appears without commit()."""

    def __init__(self, path: Path, slots: Sequence[Slot], metadata: Mapping[str, str], *, overwrite: bool = False):
        self.slots = {slot.name: slot for slot in file_order(slots)}
        self._head, self._offsets = build_header(self.slots.values(), metadata)
        self.size = len(self._head) + sum(slot.nbytes for slot in self.slots.values())
        self.file = AtomicFile(path, overwrite=overwrite)
        self._missing = set(self.slots)

    def __enter__(self) -> SafetensorsSink:
        self.file.__enter__()
        try:
            self.file.reserve(self.size)
            self.file.write_at(0, self._head)
        except BaseException:
            self.file.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.__exit__(*exception)

    def _place(self, name: str, length: int) -> int:
        """The file offset of a tensor that is written now, once, with exactly its bytes."""
        self._missing.remove(name)
        assert length == self.slots[name].nbytes, (name, length, self.slots[name])
        return len(self._head) + self._offsets[name]

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self.file.write_at(self._place(name, memoryview(data).nbytes), data)

    def copy(self, source: Source, pairs: Iterable[tuple[str, str]]) -> None:
        """Copy tensors (name here, name in the source) byte for byte."""
        runs = []
        for name, key in pairs:
            info = source.tensors[key]
            source.check_storage(info.storage)
            run = info.run
            if run is None:
                self.write(name, source.read_bytes(key))
            else:
                number, offset, length = run
                runs.append((number, offset, self._place(name, length), length))
        for number, offset, place, length in coalesced(runs):
            copy_run(source.files[number], offset, self.file, place, length)

    def finish(self) -> None:
        if self._missing:
            raise AssertionError(f"never written: {sorted(self._missing)[:3]}")
        self.file.finish(self.size)

    def commit(self) -> None:
        self.finish()
        self.file.publish()


def coalesced(runs: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Runs (file, offset there, offset here, length) joined where they touch on both sides, in reading order."""
    joined: list[tuple[int, int, int, int]] = []
    for number, offset, place, length in sorted(run for run in runs if run[3]):
        if joined:
            last = joined[-1]
            if last[0] == number and last[1] + last[3] == offset and last[2] + last[3] == place:
                joined[-1] = (number, last[1], last[2], last[3] + length)
                continue
        joined.append((number, offset, place, length))
    return joined


# What copy_file_range answers where it cannot help; reading and writing then does.
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY, errno.EOVERFLOW, errno.EIO}


def copy_run(source: InputFile, offset: int, target: AtomicFile, place: int, length: int) -> None:
    """Copy bytes from file to file, in the kernel where it can."""
    done = _kernel_copy(source, offset, target, place, length)
    buffer = memoryview(bytearray(min(COPY_BLOCK, length - done))) if done < length else memoryview(b"")
    while done < length:
        part = buffer[: min(len(buffer), length - done)]
        source.read_into(offset + done, part)
        target.write_at(place + done, part)
        done += len(part)


def _kernel_copy(source: InputFile, offset: int, target: AtomicFile, place: int, length: int) -> int:
    """Bytes that copy_file_range moved; fewer than asked where the system cannot, or the file ended."""
    done = 0
    if not hasattr(os, "copy_file_range"):
        return done
    while done < length:
        try:
            got = os.copy_file_range(source.descriptor, target.descriptor, min(KERNEL_BLOCK, length - done), offset + done, place + done)
        except OSError as error:
            if error.errno in _NO_KERNEL_COPY:
                return done
            raise failure(error, target.path) from None
        if not got:
            return done  # the plain reader will say that the file was cut
        done += got
    return done


INDEX_NAME = "model.safetensors.index.json"


class ShardedSink:
    """A folder of shards being written. A half-written folder never looks whole.

    The folder is built under a hidden name beside its own and renamed into place at the end, every file synced
    before; an older folder that may be replaced is moved aside first and removed after.
    """

    def __init__(
        self, folder: Path, shards: Mapping[str, Sequence[Slot]], metadata: Mapping[str, str], siblings: Sequence[Path] = (),
        *, overwrite: bool = False, index_name: str = INDEX_NAME,
    ):  # fmt: skip
        self.folder = Path(os.path.realpath(folder)) if os.path.islink(folder) else Path(folder)
        self.overwrite, self.index_name = overwrite, index_name
        self.shards, self.metadata, self.siblings = shards, metadata, siblings
        self.home = {slot.name: shard for shard, slots in shards.items() for slot in slots}
        self._building: Path | None = None
        self._sinks: dict[str, SafetensorsSink] = {}

    def __enter__(self) -> ShardedSink:
        if os.path.lexists(self.folder) and not self.overwrite:
            raise exists(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise OutputFailed(f"{printable_path(self.folder)} is a file; a sharded result needs a folder", hint="-o FOLDER")
        try:
            self._building = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=self.folder.absolute().parent))
            os.chmod(self._building, 0o777 & ~_umask())
        except OSError as error:
            raise failure(error, self.folder) from None
        try:
            for shard, slots in self.shards.items():
                self._sinks[shard] = SafetensorsSink(self._building / shard, slots, self.metadata).__enter__()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for sink in self._sinks.values():
            sink.__exit__()
        if self._building is not None:
            shutil.rmtree(self._building, ignore_errors=True)
            self._building = None

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self._sinks[self.home[name]].write(name, data)

    def copy(self, source: Source, pairs: Iterable[tuple[str, str]]) -> None:
        by_shard: dict[str, list[tuple[str, str]]] = {}
        for name, key in pairs:
            by_shard.setdefault(self.home[name], []).append((name, key))
        for shard, own in by_shard.items():
            self._sinks[shard].copy(source, own)

    def commit(self) -> None:
        try:
            for sink in self._sinks.values():
                sink.commit()
            for sibling in self.siblings:
                self._carry(sibling)
            self._write_index()
            sync_folder(self._building)
            self._publish()
        except OSError as error:
            raise failure(error, self.folder) from None

    def _carry(self, sibling: Path) -> None:
        original = InputFile(sibling)
        try:
            with AtomicFile(self._building / sibling.name) as copy:
                copy_run(original, 0, copy, 0, original.size)
                copy.commit(original.size)
        finally:
            original.close()

    def _write_index(self) -> None:
        import json

        total = sum(slot.nbytes for slots in self.shards.values() for slot in slots)
        document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(self.home.items()))}
        text = (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
        with AtomicFile(self._building / self.index_name) as index:
            index.write_at(0, text)
            index.commit(len(text))

    def _publish(self) -> None:
        parent = self.folder.absolute().parent
        if not os.path.lexists(self.folder):
            # rename(2) replaces an empty folder only, so one that appears meanwhile with content is safe.
            os.rename(self._building, self.folder)
        else:
            if not self.overwrite:
                raise exists(self.folder)
            aside = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent))
            os.rename(self.folder, aside / "old")
            try:
                os.rename(self._building, self.folder)
            except BaseException:
                os.rename(aside / "old", self.folder)
                os.rmdir(aside)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        self._building = None
        sync_folder(parent)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def plan_shards(slots: Sequence[Slot], max_shard_size: int) -> dict[str, list[Slot]]:
    """Slots filled into shards of at most `max_shard_size` bytes each, in order; a larger tensor gets its own."""
    groups: list[list[Slot]] = [[]]
    size = 0
    for slot in slots:
        if groups[-1] and size + slot.nbytes > max_shard_size:
            groups.append([])
            size = 0
        groups[-1].append(slot)
        size += slot.nbytes
    count = len(groups)
    if count == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{count:05d}.safetensors": group for i, group in enumerate(groups, 1)}


def refuse_input(path: Path, source: Source) -> None:
    """Raise UsageError where the output is one of the input's files under any name."""
    try:
        status = os.stat(path)
    except OSError:
        return
    if any(file.same_file(status) for file in source.files):
        raise UsageError(
            f"{printable_path(path)} is the input itself", hint="--in-place replaces it, -o writes elsewhere", path=path
        )
