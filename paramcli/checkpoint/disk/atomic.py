"""Writing that is there whole or not at all.

    create a hidden temporary file in the output's folder (O_EXCL)
    write, check the size, fsync
    rename over the output, or link where nothing may be replaced
    fsync the folder

With `sync=False` nothing waits for the disk and all else is the same: whole or not at all against kills, not against a
power cut.

At every instant a reader sees the old file or the new one. Whatever goes wrong, an exception or a
signal, the temporary file is removed; only SIGKILL or a power cut can leave one, under a name that
no later run trips over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ...errors import PATH, OutputFailed
from ...wording import given
from . import last_resort
from .direct import PAGE, Direct, Disk
from .hub import refuse_cache
from .input_file import OpenFiles, above_standard_streams, in_use
from .interrupts import signals_held
from .writeback import begin_writeback

TEMPORARY_PREFIX = ".paramcli-"
ELSEWHERE = f"write elsewhere with {given('output')}"
# What an errno means to a person, and the next step.
_REASONS: dict[int | None, tuple[str, str | None]] = {
    errno.ENOSPC: ("disk full", f"free some space, or {ELSEWHERE}"),
    errno.EDQUOT: ("disk quota used up", f"free some space, or {ELSEWHERE}"),
    errno.EFBIG: ("the file would pass the size limit", f"raise the limit (ulimit -f), or {ELSEWHERE}"),
    errno.EACCES: ("permission denied", ELSEWHERE),
    errno.EPERM: ("permission denied", ELSEWHERE),
    errno.EROFS: ("read-only file system", ELSEWHERE),
    errno.ENOENT: ("its folder does not exist", "make the folder first"),
    errno.ENOTDIR: ("its folder is a file", ELSEWHERE),
    errno.EISDIR: ("it is a folder", f"give a file name with {given('output')}"),
    errno.ENAMETOOLONG: ("its name is too long", f"choose a shorter one with {given('output')}"),
    errno.ELOOP: ("a loop of symbolic links", ELSEWHERE),
    errno.EMFILE: ("too many open files", "raise the limit (ulimit -n)"),
}
# What link(2) and renameat2(2) answer on a file system that lacks them.
UNSUPPORTED = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.ENOTSUP}


# A tensor's bytes, as they are given to be written.
Data = bytes | bytearray | memoryview

# What is written in one call. For larger ones the kernel takes whole huge pages, which a virtual machine's host has
# often taken back: 4 MB at a time took three times as long.
WRITE_BLOCK = 1 << 20
# Bytes after which the disk is set to work on what has arrived.
WRITEBACK = 1 << 26


class Abandoned(Exception):
    """The file this thread was filling is given up: another part of the work failed, and says why."""


def failure(error: OSError, path: str | os.PathLike[str]) -> OutputFailed:
    """The line a person can act on, for each way a write goes wrong."""
    says = (error.strerror or type(error).__name__, None)
    # A file system may answer ENOENT for what it makes no files in, as /proc does.
    is_there = error.errno == errno.ENOENT and os.path.isdir(Path(os.path.realpath(path)).parent)
    reason, hint = (says[0], ELSEWHERE) if is_there else _REASONS.get(error.errno, says)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return OutputFailed(f"cannot write {PATH}: {reason}", hint=hint, path=path, code="disk_full" if full else None)


@contextmanager
def failures(path: str | os.PathLike[str]) -> Iterator[None]:
    """OSError becomes the OutputFailed that names `path`; FileExistsError says that it exists."""
    try:
        yield
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise failure(error, path) from None


def _exists(path: str | os.PathLike[str]) -> OutputFailed:
    hint = f"{given('force', True)} replaces it, or {ELSEWHERE}"
    return OutputFailed(f"{PATH} exists already", hint=hint, path=path, code="exists")


def refuse_existing(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Raise OutputFailed early where the output is there already; the real guard is at publication."""
    if not overwrite and os.path.lexists(path):
        raise _exists(path)


def flat(data: Data) -> memoryview:
    """The same bytes as one row; an empty array of several dimensions, which cannot be cast to one, has none."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


def hidden_name(folder: Path, suffix: str = ".tmp") -> Path:
    """A new name in `folder`: short, as 255-byte output names must work, and random, as leftovers must not matter."""
    return folder / f"{TEMPORARY_PREFIX}{os.urandom(4).hex()}{suffix}"


def sync_folder(folder: str | os.PathLike[str]) -> None:
    descriptor = above_standard_streams(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename_to_new(old: Path, new: Path) -> None:
    """Rename a file or folder, raising FileExistsError rather than replace anything."""
    if _renameat2(old, new):
        return
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
    os.rename(old, new)


def _renameat2(old: Path, new: Path) -> bool:
    """renameat2(RENAME_NOREPLACE); False where the system has none."""
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    at_cwd, no_replace = -100, 1
    if call(at_cwd, os.fsencode(old), at_cwd, os.fsencode(new), no_replace) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), new)


def publish_new(temporary: Path, target: Path) -> None:
    """Give a finished file its name, never replacing: link(2) fails where the name is taken, as a rename would not."""
    try:
        os.link(temporary, target, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        rename_to_new(temporary, target)
    else:
        os.unlink(temporary)


class AtomicFile:
    """A file that appears under `path` only when it is complete. Use in a `with`; without commit() nothing stays.

    With `overwrite` an existing file is replaced and keeps its mode (where `path` is a symlink, the file it names
    is, unless `follow_links` is off: then the link is); without, a file that is there, or appears meanwhile, is
    never touched. `disk`: that of an output of which this is one file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        sync: bool = True,
        follow_links: bool = True,
        pool: OpenFiles | None = None,
        disk: Disk | None = None,
    ):
        self.path = Path(path)
        # What a person knows it by: another name where it lies in a folder that has its own name later.
        self.known_as = self.path
        self.overwrite = overwrite
        self.sync = sync
        self.pool = pool
        self.disk = disk
        follow = overwrite and follow_links and os.path.islink(path)
        self.target = Path(os.path.realpath(path)) if follow else self.path
        self.folder = self.target.parent
        self.temporary: Path | None = None
        self._descriptor = -1
        self._replaced: os.stat_result | None = None
        # The kernel lets one thread at a time write to a file, and has the others spin for it; here they sleep.
        self.turn = threading.Lock()
        self._direct: Direct | None = None
        self._arrived = 0
        self._abandoned = False
        self._remains = 0

    def __enter__(self) -> AtomicFile:
        self.create()
        return self

    def create(self) -> None:
        refuse_existing(self.path, self.overwrite)
        refuse_cache(self.target)
        try:
            with failures(self.known_as):
                self._create()
        except BaseException:
            self._discard()
            raise

    def _create(self) -> None:
        with suppress(FileNotFoundError):
            self._replaced = os.stat(self.target)
        if self._replaced is not None and not stat.S_ISREG(self._replaced.st_mode):
            if stat.S_ISDIR(self._replaced.st_mode):
                raise IsADirectoryError(errno.EISDIR, "")
            raise OSError(0, "it is a pipe, socket or device")
        self.temporary = hidden_name(self.folder)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        # What replaces a private file is never more readable than that, not even while it is written.
        mode = 0o666 if self._replaced is None else 0o600
        self._descriptor = above_standard_streams(os.open(self.temporary, flags, mode))
        self._remains = last_resort.remember(self.temporary)

    def __exit__(self, *exception: object) -> None:
        with signals_held():  # a second Ctrl-C while the first cleans up, or a third
            self._discard()

    @property
    def hidden(self) -> Path:
        """The temporary file's name, from `create` to `publish`."""
        assert self.temporary is not None, f"{self.path} is not being written"
        return self.temporary

    @property
    def descriptor(self) -> int:
        """The temporary file's number; of the files of one pool only a few are open at once."""
        if self._descriptor < 0:
            with failures(self.known_as):
                flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
                self._descriptor = above_standard_streams(os.open(self.hidden, flags))
        if self.pool is not None:
            self.pool.used(self)
        return self._descriptor

    def park(self) -> None:
        if self._direct is not None:
            self._direct.park()
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            with failures(self.known_as):
                os.close(descriptor)

    def reserve(self, size: int) -> None:
        """Ask for the space now, so that a full disk is known before the work is done."""
        if not size or not hasattr(os, "posix_fallocate"):  # macOS has none
            return
        try:
            os.posix_fallocate(self.descriptor, 0, size)
        except OSError as error:
            # Some file systems cannot reserve; there, writing will tell.
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise failure(error, self.known_as) from None
            return
        disk = self.disk or Disk(size, self.sync)
        if disk.direct:
            # In space that is reserved a file grows by nothing that is written, so threads need not wait for each
            # other.
            with failures(self.known_as):
                self._direct = Direct(self.hidden, os.fstat(self.descriptor), disk)

    def write_at(self, offset: int, data: Data) -> None:
        view, done = flat(data), 0
        with failures(self.known_as), in_use(self) as descriptor:
            while done < len(view):
                rest = view[done:]
                if (direct := self._past_cache) is not None and (past := direct.write(offset + done, rest)):
                    done += past
                    self.arrived(0, descriptor)
                    continue
                first = (
                    -(offset + done) % PAGE if self.goes_direct else 0
                )  # from the next page on there is the other way
                with self.turn:
                    got = os.pwrite(descriptor, rest[: first or WRITE_BLOCK], offset + done)
                done += got
                self.arrived(got, descriptor)

    @property
    def goes_direct(self) -> bool:
        """Do whole pages go past the page cache at present?"""
        return self._past_cache is not None

    @property
    def _past_cache(self) -> Direct | None:
        return self._direct if self._direct is not None and self._direct.disk.direct else None

    def arrived(self, count: int, descriptor: int) -> None:
        """`count` bytes more are in the cache: from time to time the disk is set to work on them, ahead of the fsync.

        Raises Abandoned where the file is given up, so that a thread that fills it ends.
        """
        if self._abandoned:
            raise Abandoned(self.path)
        self._arrived += count
        if self.sync and self._arrived >= WRITEBACK:
            self._arrived = 0
            begin_writeback(descriptor)

    def abandon(self) -> None:
        """Let every thread that still writes here stop at its next block; nothing is published any more."""
        self._abandoned = True

    def finish(self, size: int) -> None:
        """Check the size, set the mode, put the bytes on the disk; the file can then be published.

        Without `sync` it is closed instead: there network file systems say what they could not write.
        """
        if self._direct is not None:
            self._direct.park()  # nothing is written any more, and what publishes has need of descriptors
        descriptor = self.descriptor
        with failures(self.known_as):
            found = os.fstat(descriptor).st_size
            if found != size:
                raise OSError(0, f"{found} bytes of {size} arrived")
            if self._replaced is not None:
                _keep_owner_and_mode(self._replaced, descriptor)
            # A failed fsync may have dropped the pages: it is a failure for good, never tried again.
            if self.sync:
                os.fsync(descriptor)
            else:
                self.park()

    def publish(self) -> None:
        """Give the finished file its name, and put the name on the disk."""
        with failures(self.known_as):
            if self.overwrite:
                os.replace(self.hidden, self.target)
            else:
                publish_new(self.hidden, self.target)
            self.temporary = None
            last_resort.forget(self._remains)
            if self.sync:
                sync_folder(self.folder)

    def commit(self, size: int) -> None:
        self.finish(size)
        self.publish()

    def _discard(self) -> None:
        if self.pool is not None:
            self.pool.forget(self)
        with suppress(OutputFailed):  # nothing is to come of it
            self.park()
        if self.temporary is not None:
            # Published already, or its folder is gone or read-only by now: nothing is left to do.
            with suppress(OSError):
                os.unlink(self.temporary)
            self.temporary = None
        last_resort.forget(self._remains)


def _keep_owner_and_mode(old: os.stat_result, descriptor: int) -> None:
    new = os.fstat(descriptor)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        with suppress(PermissionError):  # not root: the new file is the user's own
            os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))


@contextmanager
def folder_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """One run at a time in this block, where the file system has locks: for publishing several files together, or one
    in place of what was read.
    """
    descriptor = -1
    # Where one may write and not list, or the file system has no locks, without.
    with suppress(OSError):
        descriptor = above_standard_streams(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)
