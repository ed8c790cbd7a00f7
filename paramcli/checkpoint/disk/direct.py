"""Writing past the page cache, where much is written to a disk that is about as fast as memory.

What goes through the cache is copied once more and takes memory from whatever else runs; before it gets its name it is
waited for all the same. Past the cache a bake of 5 GB takes 5.1 s, and through it 8.0 s on a virtual machine whose host
has to give the memory first. A slower disk, and an output that is small, are left to the cache: it serves whoever reads
the result next.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from .input_file import above_standard_streams

# What the system moves whole, and may keep in its cache: no such piece of a file is written in both ways.
PAGE = max(4096, mmap.PAGESIZE)
# Outputs from this size on go past the cache, and what one call writes.
LEAST, BLOCK = 1 << 31, 1 << 21
# Bytes a second below which a disk is left to the cache, and the writes it is judged by.
FAST, ENOUGH = 1e9, 64

# A block of each thread's own, for bytes that do not begin at a page of memory.
_kept = threading.local()


def new_block() -> memoryview:
    """BLOCK bytes that begin at a page."""
    try:
        return memoryview(mmap.mmap(-1, BLOCK))
    except OSError:
        raise MemoryError from None


class Disk:
    """What an output of `size` bytes is written to, and whether it is to be written past the cache: all its
    files ask. Past it every write waits for the disk, so never without `sync`.
    """

    def __init__(self, size: int, sync: bool = True):
        self.direct = sync and size >= LEAST and hasattr(os, "O_DIRECT")
        self._lock = threading.Lock()
        self._writing = 0  # threads that are at it
        self._rates: list[float] = []

    def write(self, descriptor: int, data: memoryview, offset: int) -> int:
        with self._lock:
            self._writing += 1
        began = time.monotonic()
        try:
            return os.pwrite(descriptor, data, offset)
        finally:
            seconds = time.monotonic() - began
            with self._lock:
                if len(data) == BLOCK:  # a small one tells of the way to the disk only
                    self._judge(len(data) * self._writing / max(seconds, 1e-9))
                self._writing -= 1

    def _judge(self, rate: float) -> None:
        """Judge by the quickest tenth: the others may have waited for the interpreter, which another thread had."""
        self._rates.append(rate)
        if len(self._rates) == ENOUGH:
            if sorted(self._rates)[-ENOUGH // 10] < FAST:
                self.direct = False
            self._rates.clear()


class Direct:
    """The way past the cache into one file, whose space is reserved. Threads share it."""

    def __init__(self, path: Path, same: os.stat_result, disk: Disk):
        self.disk = disk
        self._path, self._same = path, same  # what is there under this name is not to be another file
        self._descriptor = -1
        self._lock = threading.Lock()

    def write(self, offset: int, data: memoryview) -> int:
        """How many of these bytes, from the first on, were written; 0 where they have to go through the cache.

        Whole pages only, so no page is written in both ways.
        """
        count = min(len(data) // PAGE * PAGE, BLOCK)
        if offset % PAGE or not count:
            return 0
        data = data[:count]
        if not _begins_at_a_page(data):
            if len(getattr(_kept, "block", b"")) < count:
                _kept.block = new_block()
            _kept.block[:count] = data
            data = _kept.block[:count]
        try:
            return self.disk.write(self._open(), data, offset)
        except OSError:
            self.disk.direct = False  # the file system has no such way, or the ordinary one says what is wrong
            return 0

    def _open(self) -> int:
        with self._lock:
            if self._descriptor < 0:
                flags = os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW
                descriptor = above_standard_streams(os.open(self._path, flags))
                if not os.path.samestat(os.fstat(descriptor), self._same):
                    os.close(descriptor)
                    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
                self._descriptor = descriptor
            return self._descriptor

    def park(self) -> None:
        """Close the descriptor, while nobody writes; the next write opens another."""
        with self._lock:
            descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            # The writes were done when they returned, and whether all is on the disk the fsync says.
            with suppress(OSError):
                os.close(descriptor)


def _begins_at_a_page(data: memoryview) -> bool:
    return not data.readonly and ctypes.addressof(ctypes.c_char.from_buffer(data)) % PAGE == 0
