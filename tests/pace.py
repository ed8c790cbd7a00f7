"""How long work takes, told without seconds: in calls, or as a multiple of something plain, timed right beside it.

Calls are the same on every machine: what is bounded closely is bounded in them. A multiple still moves by what else
the machine does (by two and more), so its bound is far off: it finds what grows with the square, or never ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

# A process that takes longer than this hangs, on any machine.
HANG_SECONDS = 300
_STEPS = 500_000


def calls(work: Callable[[], object]) -> int:
    """How many functions the work calls, Python's and C's, in this thread; a comprehension may count as one."""
    count = 0

    def called(frame: object, event: str, _: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def seconds_of(work: Callable[[], object]) -> float:
    """CPU time of this process and its threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def times(work: Callable[[], object], beside: Callable[[], object], bound: float) -> float:
    """How many times the CPU time of `beside` the `work` takes; measured thrice where it seems to pass the bound."""
    ratio = float("inf")
    for _ in range(3):
        plain = seconds_of(beside)
        ratio = min(ratio, seconds_of(work) / ((plain + seconds_of(beside)) / 2))
        if ratio <= bound:
            break
    return ratio


def loop(steps: int = _STEPS) -> None:
    """A plain Python loop that looks something up in every step."""
    find = {}.get
    for step in range(steps):
        find(step)


def steps(work: Callable[[], object], bound: float) -> float:
    """How many steps of a plain Python loop the work is worth."""
    return _STEPS * times(work, loop, bound / _STEPS)
