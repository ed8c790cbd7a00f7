"""Memory for what is read: the same few blocks again and again, apart from the heap.

A new bytearray is filled with zeros first, and one for every tensor leaves the heap with holes that the next does not
fit.
"""

from __future__ import annotations

import mmap
import threading
import weakref

# Blocks for reads of fewer bytes come from the heap, which is quick with them; those for more are given back at once.
SMALL, LARGE = 1 << 20, 1 << 24
# So many blocks wait to be used again: one is worked on while the next is read.
KEPT = 2


class Blocks:
    """Blocks of memory for reading. One is used again when nothing refers to what was taken of it; threads share it."""

    def __init__(self) -> None:
        # What was taken of each block. Asked whether it is alive, and not told of its end: in a callback, which runs
        # while memory is freed, a Ctrl-C would be lost.
        self._taken: list[tuple[weakref.ref[memoryview], mmap.mmap]] = []
        self._lock = threading.Lock()

    def take(self, length: int) -> memoryview:
        """`length` writable bytes of any value, the caller's for as long as the memoryview, or a tensor
        over it, lives.
        """
        if not SMALL <= length <= LARGE:
            return memoryview(bytearray(length))
        with self._lock:
            block = self._free_block(length) or _new_block(length)
            view = memoryview(block)[:length]
            self._taken.append((weakref.ref(view), block))
        return view

    def _free_block(self, length: int) -> mmap.mmap | None:
        """A block that nothing refers to and that is large enough; beyond KEPT others, free ones are let go."""
        used = [pair for pair in self._taken if pair[0]() is not None]
        free = [pair for pair in self._taken if pair[0]() is None]
        fitting = next((pair for pair in free if len(pair[1]) >= length), None)
        rest = [pair for pair in free if pair is not fitting]
        # A new block takes the place of one that is too small.
        self._taken = used + rest[-KEPT if fitting else 1 - KEPT :]
        return fitting and fitting[1]


def _new_block(length: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, -(-length // SMALL) * SMALL)
    except OSError:
        raise MemoryError from None
