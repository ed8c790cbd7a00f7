"""One threshold over many tensors: how many entries each of them loses when the smallest of all are dropped.

    prune_l1:amount=0.3:scope=global        a third of all chosen tensors' entries, wherever they lie

The count of each tensor then goes into its own chain (`prune_l1:amount=1234`), so that nothing else
needs to know of the others. Two passes over the tensors, one in memory at a time: magnitudes are ordered
like the bits of a float, so a histogram of their upper bits finds the bin of the threshold, and a second
one of the lower bits inside that bin the threshold itself.

Source: torch.nn.utils.prune.global_unstructured, which holds all tensors at once.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..chain import Chain, Link, parse_chain
from ..checkpoint.source import Source
from ..errors import UsageError, error_context
from ..fitting import measure
from ..maths.mask import prune_count
from ..registry import PARAMETRIZATIONS
from ..spec import Item, parse_items
from ..spelling.forms import Group
from ..wording import given
from .plan import require_editable

_HALF = 1 << 16


def with_count(chain: Chain, count: int) -> Chain:
    """The chain with the count of one tensor in place of an amount over all of them."""

    def own(link: Link) -> Link:
        shared = link.entry.over_all
        if shared is None or not link.over_all:
            return link
        arguments = {**{k: v for k, v in link.arguments.items() if k != shared[0]}, "amount": count}
        return parse_chain(str(replace(link, arguments=arguments))).links[0]

    return Chain(tuple(map(own, chain.links)))


def counts(chain: str, source: Source, chosen: Sequence[Group], edited: Collection[str] = ()) -> dict[str, int]:
    """Tensor name -> entries to drop, for a chain with an `over_all` link; {} for others. Reads the tensors twice."""
    # Its types are checked later: what is appended to a chain is no chain of its own.
    over_all = next(filter(None, map(_over_all, parse_items(chain))), None)
    if over_all is None:
        return {}
    parsed = parse_chain(chain)
    if len(parsed) != 1 or any(not group.is_plain or group.tensor in edited for group in chosen):
        raise UsageError(
            f"{over_all[1]} prunes plain tensors as the file has them, by a chain of one item",
            hint=given("chain", f"{over_all[0]}:amount=0.3:{over_all[1]}"),
            option="chain",
        )
    for group in chosen:
        require_editable(group)
    keys = {group.tensor: group.keys["value"] for group in chosen}

    def bits(tensor: str) -> Tensor:
        with error_context(tensor=tensor, path=source.path):
            W = source.read(keys[tensor])
            measure.require_finite(W)
            # float32 orders every half exactly; doubles are told apart to float32's precision, ties by position.
            return W.abs().float().reshape(-1).view(torch.int32).long()

    sizes = {group.tensor: source.tensors[keys[group.tensor]].numel for group in chosen}
    amount = parsed.links[0].arguments["amount"]
    assert isinstance(amount, (int, float))
    wanted = prune_count(amount, sum(sizes.values()))
    upper = {tensor: torch.bincount(bits(tensor) // _HALF, minlength=_HALF) for tensor in keys}
    bin_, below = _nth(_summed(upper), wanted)
    lower = {}
    for tensor in keys:
        found = bits(tensor)
        lower[tensor] = torch.bincount(found[found // _HALF == bin_] % _HALF, minlength=_HALF)
    edge, smaller = _nth(_summed(lower), wanted - below)
    return _shared(upper, lower, bin_, edge, wanted - below - smaller)


def _over_all(item: Item) -> tuple[str, str] | None:
    """('prune_l1', 'scope=global') for an item that counts entries of all tensors together."""
    entry = PARAMETRIZATIONS.get(item.name)
    if entry is None or entry.over_all is None or entry.over_all not in item.arguments:
        return None
    return entry.name, "=".join(entry.over_all)


def _summed(histograms: Mapping[str, Tensor]) -> Tensor:
    return functools.reduce(torch.add, histograms.values())


def _nth(histogram: Tensor, wanted: int) -> tuple[int, int]:
    """(the bin that holds the wanted-th smallest entry, how many lie below it)."""
    sums = histogram.cumsum(0)
    index = min(int((sums < wanted).sum()), len(histogram) - 1)
    return index, int(sums[index] - histogram[index])


def _shared(
    upper: Mapping[str, Tensor], lower: Mapping[str, Tensor], bin_: int, edge: int, left: int
) -> dict[str, int]:
    """Everything below the threshold, and of the entries equal to it the first `left`, in the tensors' order."""
    found = {}
    for tensor in upper:
        equal = min(left, int(lower[tensor][edge]))
        left -= equal
        found[tensor] = int(upper[tensor][:bin_].sum()) + int(lower[tensor][:edge].sum()) + equal
    return found
