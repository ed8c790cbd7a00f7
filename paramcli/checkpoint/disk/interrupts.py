"""Signals that end a run, as exceptions, so that every `finally` runs; and held back where steps belong together."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from . import last_resort


class Interrupted(BaseException):
    """SIGTERM or SIGHUP, as an exception, so that every `finally` runs; the exit code is 128 + signal."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


@contextmanager
def _handlers(
    numbers: tuple[int, ...],
    handler: Callable[[int, FrameType | None], object],
    replaces: Callable[[object], bool],
) -> Iterator[None]:
    """Within the block `handler` stands for those signals whose present handler `replaces` accepts."""
    previous = {}
    try:
        for number in numbers:
            if replaces(signal.getsignal(number)):
                previous[number] = signal.signal(number, handler)
    except ValueError:
        pass  # Python handles signals in the main thread only, and no other is ever interrupted
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise Interrupted; one that is ignored (nohup) stays so."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handlers((signal.SIGTERM, signal.SIGHUP), stop, lambda old: old is signal.SIG_DFL):
        yield


@contextmanager
def signals_held() -> Iterator[None]:
    """Signals that would raise wait until the block is done: for steps that belong together."""
    arrived: list[int] = []
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    with _handlers(stops, lambda number, frame: arrived.append(number), callable):
        yield
    if arrived:
        signal.raise_signal(arrived[0])


def import_torch() -> None:
    """Import torch for the first time with signals held: one that raises amid its C++ aborts the process, which cleans
    nothing up.
    """
    if "torch" not in sys.modules:
        last_resort.renew()
        with signals_held():
            import torch  # noqa: F401  nothing of it is used here: it is to be imported now
        last_resort.renew()
