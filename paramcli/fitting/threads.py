"""How many of torch's threads a tensor is worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

# Up to this many entries torch's own loops use one thread; its linear algebra then uses one too, as threads that wait
# for each other cost more than they bring, a hundred times more where other programs want the cores.
ONE_THREAD = 1 << 15


@contextmanager
def threads_for(shape: Sequence[int], matter: bool = True, small: int = ONE_THREAD) -> Iterator[int]:
    """One thread for tensors of up to so many entries, and where threads do not `matter`; torch's number for others.
    Gives torch's number.

    A function of shape and maths alone, so that bytes are reproducible.
    """
    threads = torch.get_num_threads()
    if threads == 1 or (matter and math.prod(shape) > small):
        yield threads
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
