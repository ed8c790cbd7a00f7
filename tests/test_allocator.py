"""The heap: what is freed between live blocks goes back to the system, as often as it is worth it."""

import subprocess
import sys

import pytest

from paramcli import allocator
from paramcli.allocator import EACH, HOLES, Holes, share_one_heap

from .pace import HANG_SECONDS


class Process:
    """A process of so many bytes, of which going through the heap frees those in holes."""

    def __init__(self, live: int):
        self.live, self.holes, self.trims = live, 0, 0

    def malloc_trim(self, pad: int) -> None:
        self.holes, self.trims = 0, self.trims + 1


@pytest.fixture
def process(monkeypatch) -> Process:
    found = Process(100 << 20)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: found)
    monkeypatch.setattr(allocator, "_anonymous", lambda: found.live + found.holes)
    return found


def test_holes_never_grow_far(process):
    """Whatever a run leaves behind, no more lies about than the limit and what came since the last look."""
    holes, most = Holes(), 0
    for _ in range(1000):
        process.holes += 1 << 20
        holes.tidy(4 << 20)
        most = max(most, process.holes)
    assert most <= HOLES + EACH // 4 and 0 < process.trims < 1000 * (4 << 20) // EACH


def test_what_stays_is_not_looked_for_again(process):
    """Memory that grew because something lives is gone through once, and small tensors cost no look at all."""
    holes = Holes()
    process.live += 10 * HOLES
    for _ in range(100):
        holes.tidy(EACH)
    assert process.trims == 1
    process.live -= 10 * HOLES  # a large tensor is gone: from here on less is much
    holes.tidy(EACH)
    process.holes += 2 * HOLES
    for _ in range(9):
        holes.tidy(EACH // 10)
    assert process.trims == 1
    holes.tidy(EACH)
    assert process.trims == 2


@pytest.mark.parametrize("answer", [AttributeError, OSError, TypeError])
def test_another_c_library_is_asked_once(monkeypatch, answer):
    """Where it has no such call, nothing is raised, no memory is counted, and tidying never asks again."""
    asked = []

    def missing(name):
        asked.append(name)
        raise answer

    monkeypatch.setattr(allocator.ctypes, "CDLL", missing)
    share_one_heap.__wrapped__()
    assert len(asked) == 1 and allocator._anonymous() == 0
    holes, before = Holes(), len(asked)
    for _ in range(10):
        holes.tidy(EACH)
    assert len(asked) == before


def test_a_system_that_counts_no_memory_goes_without(monkeypatch):
    """Without /proc/self/statm the heap is left alone, however much is computed."""

    def no_such_file(path, mode):
        raise FileNotFoundError(path)

    found = Process(100 << 20)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: found)
    monkeypatch.setattr(allocator, "open", no_such_file, raising=False)
    holes = Holes()
    for _ in range(10):
        found.holes += 10 * HOLES
        holes.tidy(EACH)
    assert allocator._anonymous() == 0 and found.trims == 0


@pytest.mark.skipif(not allocator._anonymous(), reason="not Linux with glibc")
def test_a_real_heap_gives_its_holes_back():
    """Of 128 MB of blocks every 16th lives on; most of the rest is the system's again."""
    code = (
        "from paramcli.allocator import EACH, Holes, _anonymous, share_one_heap\n"
        "share_one_heap(); holes = Holes()\n"
        "blocks = [bytes(65_000) + bytes([n % 256]) for n in range(2000)]\n"
        "blocks = blocks[::16]; before = _anonymous(); holes.tidy(EACH); after = _anonymous()\n"
        "assert before - after > 60 << 20, (before, after)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=HANG_SECONDS).returncode == 0
