"""Bytes that are computed before it is known where they will lie: in a file without a name, so that nothing is left."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import TEMPORARY_PREFIX, Data, failures, flat
from .input_file import above_standard_streams

if TYPE_CHECKING:
    from typing_extensions import Self


class Aside:
    """A file on the disk of an output, which goes when it is closed, or the process ends. Use in a `with`."""

    def __init__(self, output: Path):
        self._output = output
        self._descriptor = -1
        self._size = 0

    def __enter__(self) -> Self:
        with (
            failures(self._output),
            tempfile.TemporaryFile(prefix=TEMPORARY_PREFIX, dir=self._output.absolute().parent) as file,
        ):
            self._descriptor = above_standard_streams(os.dup(file.fileno()))
        return self

    def __exit__(self, *exception: object) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def put(self, data: Data) -> int:
        """Where they are now."""
        view, at = flat(data), self._size
        with failures(self._output):
            while view:
                done = os.pwrite(self._descriptor, view, self._size)
                self._size += done
                view = view[done:]
        return at

    def get(self, at: int, size: int) -> bytes:
        with failures(self._output):
            data = os.pread(self._descriptor, size, at)
            while len(data) < size:
                more = os.pread(self._descriptor, size - len(data), at + len(data))
                if not more:
                    raise OSError(0, "bytes that were put aside are gone")
                data += more
        return data
