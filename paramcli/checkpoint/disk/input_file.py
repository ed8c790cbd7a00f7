"""Files open for reading: the same file from the first byte to the last, and few of many open at a time.

Reading is `pread` of ranges; a file is never mapped, so one cut meanwhile is an error and not a SIGBUS.
"""

from __future__ import annotations

import difflib
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Protocol

from ...errors import PATH, InputRefused, Known
from ...wording import words
from .addresses import instead_of, not_a_path


def no_such_file(path: Path) -> InputRefused:
    """The refusal of a path that leads nowhere, with what its folder has under a similar name."""
    if (other := not_a_path(path)) is not None:
        return InputRefused(other[0], hint=instead_of(path), path=other[1], code="not_found")
    try:
        with os.scandir(path.parent) as entries:
            names = sorted(Path(entry.name) for entry in islice(entries, 1000))
    except OSError:
        names = []
    # By the stem: a common extension is no likeness, and another one is none the less.
    stems = difflib.get_close_matches(path.stem, {name.stem for name in names})
    near = [str(path.parent / name) for stem in stems for name in names if name.stem == stem]
    hint = (
        Known(f"closest: {words(near, 3)}")
        if near
        else instead_of(path) or "check the path: a file, a folder of shards, or its index"
    )
    return InputRefused(f"no such file: {PATH}", hint=hint, path=path, code="not_found")


def above_standard_streams(descriptor: int) -> int:
    """The same open file under a number above 2: where stdout was closed, a file must not take its place."""
    if descriptor > 2:
        return descriptor
    higher = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(descriptor)
    return higher


class PooledFile(Protocol):
    """An input or output file of which the descriptor can be given back for a while."""

    pool: OpenFiles | None

    @property
    def descriptor(self) -> int:
        """Its number; a parked file is opened again."""

    def park(self) -> None:
        """Close it; nothing else is forgotten."""


class OpenFiles:
    """Keeps at most `limit` of many files open; the one unused for longest is parked, and opened again when used.

    Threads share it: a file that one of them is `using` is not parked by another.
    """

    def __init__(self, limit: int = 16):
        self.limit = limit
        self._files: dict[PooledFile, None] = {}
        self._users: dict[PooledFile, int] = {}
        self._lock = threading.RLock()

    def used(self, file: PooledFile) -> None:
        with self._lock:
            self._files.pop(file, None)
            self._files[file] = None
            for idle in [f for f in self._files if f is not file and f not in self._users]:
                if len(self._files) <= self.limit:
                    break
                del self._files[idle]
                idle.park()

    def forget(self, file: PooledFile) -> None:
        with self._lock:
            self._files.pop(file, None)

    @contextmanager
    def using(self, file: PooledFile) -> Iterator[int]:
        """The file's descriptor, open for as long as the block runs."""
        with self._lock:
            descriptor = file.descriptor
            self._users[file] = self._users.get(file, 0) + 1
        try:
            yield descriptor
        finally:
            with self._lock:
                self._users[file] -= 1
                if not self._users[file]:
                    del self._users[file]


@contextmanager
def in_use(file: PooledFile) -> Iterator[int]:
    """The descriptor of an input or output file, kept from being parked by another thread meanwhile."""
    if file.pool is None:
        yield file.descriptor
        return
    with file.pool.using(file) as descriptor:
        yield descriptor


class InputFile:
    """One regular file open for reading, with the identity it had when it was opened.

    Of the files of one `pool` only a few are open at once; one that is opened again must be the same.
    """

    def __init__(self, path: str | os.PathLike[str], pool: OpenFiles | None = None):
        self.path = Path(path)
        self.pool = pool
        self._identity: tuple[int, ...] | None = None
        self._closed = False
        self._descriptor = self._open()
        status = os.fstat(self._descriptor)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "special file (pipe, socket or device)"
            raise InputRefused(f"{PATH} is a {kind}, not a checkpoint file", path=path)
        self.size = status.st_size
        self._identity = _identity(status)

    def _open(self) -> int:
        path = self.path
        try:
            # Non-blocking: a FIFO named like a checkpoint must not hang us.
            return above_standard_streams(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except FileNotFoundError:
            raise no_such_file(path) from None
        except OSError as error:
            raise InputRefused(f"cannot open {PATH}: {error.strerror or type(error).__name__}", path=path) from None
        except ValueError:
            raise InputRefused(f"not a path: {PATH}", path=path) from None

    @property
    def descriptor(self) -> int:
        """The open file's number; a parked file is opened again."""
        if self._descriptor < 0:
            if self._closed:
                raise ValueError(f"{self.path} is closed")
            self._descriptor = self._open()
            if _identity(os.fstat(self._descriptor)) != self._identity:
                raise self._changed()
        if self.pool is not None:
            self.pool.used(self)
        return self._descriptor

    def park(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self, offset: int, length: int) -> bytearray:
        """`length` bytes at `offset`; a file that does not have them is refused."""
        self.require(offset, length)
        data = bytearray(length)
        self.read_into(offset, memoryview(data))
        return data

    def require(self, offset: int, length: int) -> None:
        """Raise InputRefused where the file was too short for these bytes when it was opened: no memory is asked for
        then.
        """
        if offset < 0 or length < 0 or offset + length > self.size:
            raise InputRefused(f"{PATH} is cut short", path=self.path, code="cut_short")

    def read_into(self, offset: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            try:
                with in_use(self) as descriptor:
                    got = os.preadv(descriptor, [view[done : done + (1 << 30)]], offset + done)
            except OSError as error:
                raise InputRefused(f"cannot read {PATH}: {error.strerror}", path=self.path) from None
            if not got:
                raise InputRefused(
                    f"{PATH} was cut while it was being read",
                    hint="run again when nothing writes to it",
                    path=self.path,
                    code="changed",
                )
            done += got

    def check_unchanged(self) -> None:
        """Raise InputRefused if the file was cut, appended to, rewritten or replaced since it was opened."""
        try:
            there = os.stat(self.path)
        except OSError:
            raise self._changed() from None
        # The name may lead to another file by now, and the open one may have been written to.
        if _identity(there) != self._identity or _identity(os.fstat(self.descriptor)) != self._identity:
            raise self._changed()

    def _changed(self) -> InputRefused:
        return InputRefused(
            f"{PATH} changed while it was being read",
            hint="run again when nothing writes to it",
            path=self.path,
            code="changed",
        )

    def close(self) -> None:
        self._closed = True
        if self.pool is not None:
            self.pool.forget(self)
        self.park()


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
