"""What a chain's arithmetic costs, from shapes alone, and who of several processes takes how much of it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..chain import Chain
from ..errors import ParamcliError
from ..spelling.forms import Group
from ..view import View

# Small tensors that are computed together are taken in parts of about so many entries: what is between their originals
# and their values stays in a core's cache.
PART = 1 << 17
# What one multiplication or addition is worth in bytes: a core does some fifty while it copies one.
_BYTES_OF_OPERATION = 0.02


def operations(shape: Sequence[int], chain: Chain | None, view: View) -> int:
    """2 n^3 for each product of n x n that a link costs, by the table; one for each entry where it is no linear
    algebra.
    """
    entries = math.prod(shape)
    try:
        shape = view.shape(shape)
    except ParamcliError:
        return entries
    products = [link.entry.products for link in chain.links] if chain is not None else [0]
    side = max(shape[-2:]) if len(shape) > 1 else 1
    batch = math.prod(shape[:-2])
    return sum(int(2 * count * batch * side**3) or entries for count in products)


def share_out(weights: Mapping[str, float], count: int) -> dict[str, int]:
    """Name -> which of `count` gets it: the heaviest first, each to whoever has the least by then."""
    loads = [0.0] * count
    owner = {}
    for name in sorted(weights, key=lambda name: -weights[name]):
        owner[name] = loads.index(min(loads))
        loads[owner[name]] += weights[name]
    return owner


def cost(group: Group, chain: Chain | None, view: View) -> float:
    """Bytes to read, and those that the time of its arithmetic is worth."""
    return group.nbytes + _BYTES_OF_OPERATION * operations(group.shape, chain, view)
