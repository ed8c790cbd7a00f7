"""Bytes on their way from file to file, through one block of memory that is used again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .direct import PAGE, new_block

if TYPE_CHECKING:
    from .atomic import AtomicFile


class Stream:
    """Reads land where `room` says, and what `came` is written when the block is full: many small tensors in one call.

    Bytes lie in their pages of memory as they will in those of the file, and what follows on shares the page it begins
    in. One thread's own. Without a file the bytes are dropped: what is only summed up is read the same way. Use in a
    `with`: what is in the block at its end is written then.
    """

    def __init__(self, target: AtomicFile | None = None):
        self.target = target
        self._block = new_block()
        self._place = 0  # in the file, of the block's first byte
        self._begin = self._end = 0  # of what is in the block and not yet written

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is None:
            self.flush()

    def go(self, place: int) -> None:
        """What comes next belongs at this place of the file."""
        if place != self._place + self._end:
            self.flush()
            self._begin = self._end = place % PAGE
            self._place = place - self._begin

    def room(self, most: int) -> memoryview:
        """Memory for the next bytes, at most so many."""
        return self._block[self._end : self._end + most]

    def came(self, count: int) -> None:
        """So many bytes are in the room that was given."""
        self._end += count
        if self._end == len(self._block):
            self.flush()

    def flush(self) -> None:
        """Write what has come."""
        if self.target is not None and self._begin < self._end:
            self.target.write_at(self._place + self._begin, self._block[self._begin : self._end])
        self._place += self._end
        self._begin = self._end = 0
