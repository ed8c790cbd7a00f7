"""The C library's allocator, told to keep one heap, and how much of it to keep.

glibc gives each thread an arena of its own. Tensors here are read in one thread, computed in another and written in a
third, so every arena grows to hold some and few of them are used again: a bake of 2 GB peaks at 228 MB, with one arena
at 190 MB and in the same time. Left to itself glibc also gives the heap's end back to the system with every tensor that
is freed, only to fault it in anew for the next one: a bake of 8 GB takes 23 s, and 15 s where the end may stay.
"""

from __future__ import annotations

import ctypes
import functools
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# Blocks from LARGE on lie apart and are given back when they are freed, and FREE_END may lie free at the heap's end:
# less of either faults memory in all the time, more of them lets peaks drift by chance.
LARGE, FREE_END = 8 << 20, 16 << 20


@functools.cache
def share_one_heap() -> None:
    """From here on new threads allocate from the main heap, which keeps some of what is freed; nothing happens without
    glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, LARGE), (_M_TRIM_THRESHOLD, FREE_END)):
        mallopt(option, value)


# So much may lie about in holes before they are given back, and they are looked for each time so much has been
# computed.
HOLES, EACH = 8 << 20, 16 << 20


class Holes:
    """Gives the system back what freed tensors leave between others in the heap.

    The C library keeps it for a next request that fits, but torch's are aligned and seldom fit where one like them was:
    a bake of 8 GB drifts 15 to 60 MB upwards, from run to run differently. Giving back now and then costs nothing that
    shows.
    """

    def __init__(self) -> None:
        self._floor = _anonymous()
        self._computed = 0

    def tidy(self, nbytes: int) -> None:
        """After so many bytes more of computed tensors."""
        self._computed += nbytes
        if self._computed < EACH or not self._floor:
            return
        self._computed = 0
        now = _anonymous()
        if now > self._floor + HOLES:
            ctypes.CDLL(None).malloc_trim(0)
            now = _anonymous()
            self._floor = now
        self._floor = min(self._floor, now)


def _anonymous() -> int:
    """Bytes of this process's own memory, heap and the like; 0 where this system or its C library is another."""
    try:
        if not hasattr(ctypes.CDLL(None), "malloc_trim"):
            return 0
        with open("/proc/self/statm", "rb") as file:
            resident, shared = file.read().split()[1:3]
    except (AttributeError, OSError, TypeError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def is_limited() -> bool:
    """May this process have only so much memory (ulimit -v)?"""
    import resource

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
