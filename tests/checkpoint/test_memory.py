"""Blocks of memory for reading: shared out again when they are free, and never before."""

from __future__ import annotations

import errno
import threading
import weakref

import pytest
import torch

from paramcli.checkpoint.disk import memory
from paramcli.checkpoint.disk.memory import LARGE, SMALL, Blocks

MB = 1 << 20


def place(view: memoryview) -> int:
    return torch.frombuffer(view, dtype=torch.uint8).data_ptr()


def test_a_block_is_taken_again_when_nothing_refers_to_it():
    """Also for fewer bytes than it had, and with the right length."""
    blocks = Blocks()
    first = blocks.take(3 * MB)
    at = place(first)
    del first
    again = blocks.take(2 * MB + 5)
    assert place(again) == at and len(again) == 2 * MB + 5


def test_a_block_is_not_taken_while_a_tensor_lies_over_it():
    """The tensor, a view of it or a slice of the memory: each alone keeps the block."""
    blocks = Blocks()
    keeps = (
        lambda view: torch.frombuffer(view, dtype=torch.uint8),
        lambda view: torch.frombuffer(view, dtype=torch.uint8)[7:].view(-1, 1),
        lambda view: view,
    )
    for keep in keeps:
        view = blocks.take(MB)
        view[:] = b"\x07" * MB
        kept, at = keep(view), place(view)
        del view
        other = blocks.take(MB)
        assert place(other) != at
        other[:] = bytes(MB)
        assert torch.as_tensor(kept).eq(7).all()
        del kept, other


@pytest.mark.parametrize("length", [0, 1, SMALL - 1, LARGE + 1])
def test_what_is_small_or_large_is_not_kept(length):
    """It comes from the heap, or goes back to the system at once."""
    blocks = Blocks()
    assert isinstance(blocks.take(length).obj, bytearray) and not blocks._taken


def test_few_blocks_wait():
    """However many were in use at once; a new block takes the place of one that is too small."""
    blocks = Blocks()
    views = [blocks.take(MB) for _ in range(5)]
    places = {place(view) for view in views}
    views.clear()
    larger = blocks.take(2 * MB)
    assert len(blocks._taken) == memory.KEPT and len(larger) == 2 * MB
    again = blocks.take(MB)
    assert place(again) in places and len(blocks._taken) == memory.KEPT


def test_no_code_runs_when_memory_is_freed():
    """A signal that is handled there, Ctrl-C, would be dropped with its exception."""
    blocks = Blocks()
    view = blocks.take(MB)
    assert [reference.__callback__ for reference in weakref.getweakrefs(view)] == [None]


def test_no_memory_is_no_bug(monkeypatch):
    """It is said as where Python itself has none left."""

    def none_left(*arguments):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(memory.mmap, "mmap", none_left)
    with pytest.raises(MemoryError):
        Blocks().take(MB)


def test_threads_never_share_a_block():
    """Four of them take, fill and compare."""
    blocks, wrong = Blocks(), []

    def work(value: int) -> None:
        for _ in range(50):
            view = blocks.take(MB + value)
            view[:] = bytes([value]) * len(view)
            if torch.frombuffer(view, dtype=torch.uint8).ne(value).any():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
