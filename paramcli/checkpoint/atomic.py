"""Writing that is there whole or not at all.

    create a hidden temporary file in the output's folder (O_EXCL)
    write, check the size, fsync
    rename over the output, or link where nothing may be replaced
    fsync the folder

At every instant a reader sees the old file or the new one. Whatever goes wrong, an exception or a
signal, the temporary file is removed; only SIGKILL or a power cut can leave one, under a name that
no later run trips over.
"""

from __future__ import annotations

import errno
import os
import secrets
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputFailed
from ..text import printable_path
from .source import above_standard_streams

TEMPORARY_PREFIX = ".paramcli-"


class Interrupted(BaseException):
    """SIGTERM or SIGHUP, as an exception, so that every `finally` runs."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise Interrupted; outside the main thread nothing changes."""

    def stop(number: int, frame: object) -> None:
        raise Interrupted(number)

    previous = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                previous[number] = signal.signal(number, stop)
    except ValueError:
        pass  # not the main thread: whoever owns it decides
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def failure(error: OSError, path: Path) -> OutputFailed:
    """The line a person can act on, for each way a write goes wrong."""
    shown = printable_path(path)
    known = {
        errno.ENOSPC: ("the disk is full", "free some space, or write elsewhere with -o"),
        errno.EDQUOT: ("the disk quota is used up", "free some space, or write elsewhere with -o"),
        errno.EFBIG: ("the file would pass the size limit", "raise the limit (ulimit -f), or write elsewhere with -o"),
        errno.EACCES: ("permission denied", "write elsewhere with -o"),
        errno.EPERM: ("permission denied", "write elsewhere with -o"),
        errno.EROFS: ("the file system is read-only", "write elsewhere with -o"),
        errno.ENOENT: ("its folder does not exist", "make the folder first"),
        errno.ENOTDIR: ("its folder is a file", "choose another place with -o"),
        errno.EISDIR: ("it is a folder", "choose another name with -o"),
        errno.ENAMETOOLONG: ("the name is too long", "choose a shorter one with -o"),
        errno.ELOOP: ("too many symbolic links", "choose another place with -o"),
    }
    reason, hint = known.get(error.errno, (error.strerror or type(error).__name__, None))
    return OutputFailed(f"cannot write {shown}: {reason}", hint=hint, path=path)


def exists(path: Path) -> OutputFailed:
    return OutputFailed(f"{printable_path(path)} exists already", hint="--force replaces it, -o writes elsewhere", path=path)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise OutputFailed early where the output is there already; the real guard is at publication."""
    if not overwrite and os.path.lexists(path):
        raise exists(path)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done : done + (1 << 30)], offset + done)


class AtomicFile:
    """A file that appears under `path` only when it is complete. Use in a `with`; nothing is kept without commit().

    With `overwrite` an existing file is replaced and keeps its mode (a symlink's target is replaced, the link
    stays); without, a file that appears meanwhile is never touched. `path` must be in a folder that exists.
    """

    def __init__(self, path: str | os.PathLike, *, overwrite: bool = False):
        self.path = Path(path)
        # In place through a symlink means the file it names.
        self.target = Path(os.path.realpath(path)) if overwrite and os.path.islink(path) else self.path
        self.overwrite = overwrite
        self.folder = self.target.parent
        self.temporary: Path | None = None
        self.descriptor = -1

    def __enter__(self) -> AtomicFile:
        refuse_existing(self.target, self.overwrite)
        if self.target.is_dir():
            raise failure(OSError(errno.EISDIR, ""), self.path)
        try:
            # 255-byte output names must work, so the temporary name does not contain the output's.
            self.temporary = self.folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}.tmp"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
            self.descriptor = above_standard_streams(os.open(self.temporary, flags, 0o666))
        except OSError as error:
            self._discard()
            raise failure(error, self.path) from None
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._discard()

    def reserve(self, size: int) -> None:
        """Ask for the space now, so that a full disk is known before the work is done."""
        try:
            os.posix_fallocate(self.descriptor, 0, size) if size else None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise failure(error, self.path) from None
            # Some file systems cannot reserve; writing will tell.

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        try:
            write_all(self.descriptor, memoryview(data).cast("B"), offset)
        except OSError as error:
            raise failure(error, self.path) from None

    def finish(self, size: int) -> None:
        """Check the size and put the bytes on the disk; the file can then be published."""
        try:
            found = os.fstat(self.descriptor).st_size
            if found != size:
                raise OutputFailed(f"cannot write {printable_path(self.path)}: {found} bytes of {size} arrived", path=self.path)
            if self.overwrite and os.path.exists(self.target):
                os.fchmod(self.descriptor, stat.S_IMODE(os.stat(self.target).st_mode))
            os.fsync(self.descriptor)
        except OSError as error:
            raise failure(error, self.path) from None

    def publish(self) -> None:
        """Give the finished file its name."""
        try:
            if self.overwrite:
                os.replace(self.temporary, self.target)
            else:
                self._link()
            self.temporary = None
            sync_folder(self.folder)
        except FileExistsError:
            raise exists(self.path) from None
        except OSError as error:
            raise failure(error, self.path) from None

    def _link(self) -> None:
        """Publish without ever replacing: link fails where the name is taken, which a rename would not."""
        try:
            os.link(self.temporary, self.target, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            # A file system without hard links: reserve the name, then rename over our own empty file.
            os.close(os.open(self.target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            os.replace(self.temporary, self.target)
            return
        os.unlink(self.temporary)

    def commit(self, size: int) -> None:
        self.finish(size)
        self.publish()

    def _discard(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        if self.temporary is not None:
            try:
                os.unlink(self.temporary)
            except FileNotFoundError:
                pass
            except OSError:
                pass  # the folder went read-only or away; there is nothing left to do about it
            self.temporary = None
