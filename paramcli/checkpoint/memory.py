"""Memory for what is read: the same few blocks again and again, apart from the heap.

A new bytearray is filled with zeros first, and one for every tensor leaves the heap with holes that the next does not fit.
"""

from __future__ import annotations

import mmap
import weakref

# Blocks for reads of fewer bytes come from the heap, which is quick with them; those for more are given back at once.
SMALL, LARGE = 1 << 20, 1 << 26
# So many blocks wait to be used again: one is worked on while the next is read.
KEPT = 2


class Blocks:
    """Blocks of memory for reading. One is used again as soon as nothing refers to what was taken of it; threads share it."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def take(self, length: int) -> memoryview:
        """`length` writable bytes of any value, the caller's for as long as the memoryview, or a tensor over it, lives."""
        if not SMALL <= length <= LARGE:
            return memoryview(bytearray(length))
        block = self._fitting(length) or mmap.mmap(-1, -(-length // SMALL) * SMALL)
        view = memoryview(block)[:length]
        weakref.finalize(view, self._give_back, block).atexit = False
        return view

    def _fitting(self, length: int) -> mmap.mmap | None:
        """A free block that is large enough; a smaller one is let go for that which is made now."""
        try:
            block = self._free.pop()
        except IndexError:
            return None
        if len(block) >= length:
            return block
        return self._fitting(length)

    def _give_back(self, block: mmap.mmap) -> None:
        if len(self._free) < KEPT:
            self._free.append(block)
