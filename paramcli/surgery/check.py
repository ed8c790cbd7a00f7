"""--check: the finished file, still under its temporary name, is read back and compared with the plan.

    untouched tensors   against the source's bytes
    edited tensors      against a digest of the bytes that were computed
    names, dtypes, shapes and metadata against what was asked for

A file that differs is never published, so a bad write replaces nothing. The pages are dropped from the
system's cache first where it allows that: what is compared is what the disk gives back.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

from ..checkpoint.disk.atomic import Data
from ..checkpoint.disk.input_file import InputFile
from ..checkpoint.header import Slot
from ..checkpoint.read.dcp import open_dcp
from ..checkpoint.read.open import open_file
from ..checkpoint.read.recognise import DCP_METADATA
from ..checkpoint.source import Source
from ..checkpoint.write.writer import Check, MetadataOf, Sink
from ..errors import PATH, TENSOR, InputRefused, OutputFailed, UsageError, error_context

_BLOCK = 1 << 20
_HINT = "nothing was replaced; run it again, and if it happens again test this machine's disk and memory"


class Failing(Protocol):
    """The error that says why a result is not as planned."""

    def __call__(self, why: str, tensor: str | None = None) -> OutputFailed: ...


class CheckedSink(Sink):
    """A sink that remembers what passes through it, and compares before the result gets its name."""

    def __init__(self, sink: Sink, slots: Sequence[Slot], metadata: MetadataOf, root: str | None = None):
        """`metadata`: of a safetensors file with the keys it is given; `root`: where a torch result has its state
        dict.
        """
        super().__init__()
        self.sink = sink
        self.slots = {slot.name: slot for slot in slots}
        self.metadata = metadata
        self.root = root
        self._digests: dict[str, blake2b] = {}
        self._copies: dict[str, tuple[Source, str]] = {}

    def begin(self) -> None:
        self._open.enter_context(self.sink)

    def write(self, name: str, data: Data) -> None:
        self._digests[name] = _digest(data)
        self.sink.write(name, data)

    def write_part(self, name: str, at: int, data: Data) -> None:
        if at:
            self._digests[name].update(data)
        else:
            self._digests[name] = _digest(data)
        self.sink.write_part(name, at, data)

    def copy(self, source: Source, pairs: Iterable[tuple[str, str]]) -> None:
        pairs = list(pairs)
        self._copies.update((name, (source, key)) for name, key in pairs)
        self.sink.copy(source, pairs)

    def abandon(self) -> None:
        self.sink.abandon()

    def amend(self, metadata: MetadataOf) -> None:
        self.metadata = metadata
        self.sink.amend(metadata)

    def commit(self, *sources: Source, check: Check | None = None) -> None:
        def both(path: Path, written: Iterable[Path]) -> None:
            written = list(written)
            self._compare(path, written)
            if check is not None:
                check(path, written)

        self.sink.commit(*sources, check=both)

    def _compare(self, path: Path, written: Iterable[Path]) -> None:
        """Raise OutputFailed unless the files hold exactly the plan; `path` is the name they are to get."""

        def fail(why: str, tensor: str | None = None) -> OutputFailed:
            return OutputFailed(f"{PATH} was not written as planned: {why}", hint=_HINT, path=path, tensor=tensor)

        found: set[str] = set()
        for file in written:
            try:
                with _opened(file, self.root) as result:
                    for part in result.files:
                        _drop_cache(part)
                    self._compare_file(result, fail)
                    found.update(result.tensors)
            except (InputRefused, UsageError) as error:
                if error.path is not None and Path(error.path) not in (file, file.parent):
                    raise  # the input's fault
                raise fail(f"it does not read back: {error.fact}", error.tensor) from None
        missing = self.slots.keys() - found
        if missing:
            raise fail(f"{TENSOR} is not in it", min(missing))

    def _compare_file(self, result: Source, fail: Failing) -> None:
        if result.container == "safetensors" and result.metadata != dict(self.metadata(result.tensors)):
            raise fail("its metadata are others")
        for name, info in result.tensors.items():
            slot = self.slots.get(name)
            if slot is None or (info.dtype, tuple(info.shape)) != (slot.dtype, tuple(slot.shape)):
                raise fail(f"{TENSOR} is not in the plan with this dtype and shape", name)
            with error_context(tensor=name):
                same = self._same_as_source(result, name) if name in self._copies else self._as_computed(result, name)
            if not same:
                raise fail(f"{TENSOR} differs", name)
        for storage in result.storages.values():  # of a torch file: those of the optimizer too
            result.check_storage(storage)

    def _as_computed(self, result: Source, name: str) -> bool:
        run = result.tensors[name].run
        if run is None:
            found = _digest(result.read_bytes(name))
        else:
            found, (file, offset, length) = _digest(b""), run
            for done in range(0, length, _BLOCK):
                found.update(result.files[file].read(offset + done, min(_BLOCK, length - done)))
        return found.digest() == self._digests[name].digest()

    def _same_as_source(self, result: Source, name: str) -> bool:
        source, key = self._copies[name]
        ours, theirs = result.tensors[name].run, source.tensors[key].run
        if ours is None or theirs is None:
            return result.read_bytes(name) == source.read_bytes(key)
        return ours[2] == theirs[2] and _equal(
            result.files[ours[0]], ours[1], source.files[theirs[0]], theirs[1], ours[2]
        )


def _opened(file: Path, root: str | None) -> Source:
    return open_dcp(file.parent, ".", file.name) if file.suffix == DCP_METADATA else open_file(file, root)


def _digest(data: Data) -> blake2b:
    return blake2b(data, digest_size=16)


def _equal(a: InputFile, at: int, b: InputFile, there: int, length: int) -> bool:
    # bytearrays compare at the speed of memory; memoryviews, element by element, a hundred times slower.
    mine, other = bytearray(min(_BLOCK, length)), bytearray(min(_BLOCK, length))
    for done in range(0, length, _BLOCK):
        count = min(_BLOCK, length - done)
        a.read_into(at + done, memoryview(mine)[:count])
        b.read_into(there + done, memoryview(other)[:count])
        if mine != other:  # beyond the last, shorter part both hold what was equal before
            return False
    return True


def _drop_cache(file: InputFile) -> None:
    """Ask the system to forget the file's pages, which are on the disk by now; a wish that it may not grant."""
    with suppress(AttributeError, OSError):
        os.posix_fadvise(file.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
