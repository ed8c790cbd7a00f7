"""How far a long run is: a line on stderr after one second, and only on a terminal."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# What is over sooner needs no line; one that flashes up and away is worse than none.
PATIENCE_SECONDS = 1.0


class Meter:
    """Tensors and bytes done, drawn by rich in a thread of its own; `console` None draws nothing."""

    def __init__(self, console: Console | None, what: str, tensors: int, nbytes: int):
        self.tensors, self.done = tensors, 0
        self._progress: Progress | None = None
        self._timer: threading.Timer | None = None
        if console is None:
            return
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[count]}", markup=False),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._progress.add_task(what, total=nbytes, count=self._count())
        self._timer = threading.Timer(PATIENCE_SECONDS, self._progress.start)
        self._timer.daemon = True

    def _count(self) -> str:
        return f"{self.done}/{self.tensors} tensors"

    def __enter__(self) -> Meter:
        if self._timer is not None:
            self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            if self._progress is not None:
                self._progress.stop()

    def advance(self, nbytes: int, tensors: int = 1) -> None:
        """So many tensors more are done, of so many bytes together."""
        self.done = min(self.done + tensors, self.tensors)
        if self._progress is not None:
            self._progress.update(self._task, advance=nbytes, count=self._count())
