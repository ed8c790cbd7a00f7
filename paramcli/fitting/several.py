"""The links of a chain on several tensors that are computed together, stacked along their first dimension.

A link whose kernels give every matrix of a batch the bits that it gets alone is one module for all of them; any other
has a module for each, and only what is around it is done once for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..chain import Chain, Link
from ..maths.base import Parametrization
from ..registry import target_class
from ..view import IDENTITY
from .skeleton import Loaded, dtype_of, skeleton
from .torch_module import start_generators

# Of each tensor its own; of one tensor a number, and None where nothing is drawn.
Seeds = Sequence[int] | int | None
# The dtype that a value was rounded to, where it was, in the same way.
Stored = Sequence[torch.dtype | None] | torch.dtype | None


class Each(Parametrization):
    """A module for each of several tensors: what it is given and gives back has them along the first dimension."""

    def __init__(self, parts: Sequence[Parametrization], seeds: Sequence[int] = ()):
        super().__init__()
        self.parts, self.seeds = tuple(parts), seeds
        self.stored_of: Stored = None
        self.is_projection, self.stored_originals = parts[0].is_projection, parts[0].stored_originals

    def forward(self, *originals: Tensor, **_: Any) -> Tensor:
        return torch.stack([part(*own) for part, own in self._apart(originals)])

    def map(self, *originals: Tensor, **_: Any) -> Tensor:
        return torch.stack([part.map(*own) for part, own in self._apart(originals)])

    def inverse(self, value: Tensor) -> Tensor | tuple[Tensor, ...]:
        stored = self.stored_of if isinstance(self.stored_of, Sequence) else [self.stored_of] * len(value)
        first = self.parts[0]
        if len(set(stored)) == 1:
            first.stored = stored[0]
            if first.inverts_together(value):
                return first.inverse(value)
        made = []
        for part, own, seed, dtype in zip(self.parts, value, self.seeds, stored, strict=True):
            part.stored = dtype
            start_generators(seed, value.device)
            made.append(part.inverse(own))
        alone = isinstance(made[0], Tensor)
        stacked = tuple(torch.stack(same) for same in zip(*((X,) if alone else X for X in made), strict=True))
        return stacked[0] if alone else stacked

    def eval(self) -> Each:
        for part in self.parts:
            part.eval()
        return super().eval()

    def _apart(self, originals: Sequence[Tensor]) -> Iterator[tuple[Parametrization, Sequence[Tensor]]]:
        return zip(self.parts, zip(*originals, strict=True), strict=True)


def tensors_of(part: Parametrization) -> Mapping[str, Tensor]:
    """What a module stores beside its originals, by name; of several along the first dimension."""
    if not isinstance(part, Each):
        return part.state_dict()
    states = [one.state_dict() for one in part.parts]
    return {name: torch.stack([state[name] for state in states]) for name in states[0]}


def made(link: Link, value: Tensor, seeds: Seeds, to_invert: bool = False) -> Parametrization:
    """The link's module for a tensor with this value, or for several; as of `Link.make`."""
    if not isinstance(seeds, Sequence):
        start_generators(seeds, value.device)
        return link.make(value, to_invert)
    if target_class(link.entry).stacks:
        return link.make(value, to_invert)
    return Each([made(link, own, seed, to_invert) for own, seed in zip(value, seeds, strict=True)], seeds)


def loaded_together(chain: Chain, state: Mapping[str, Tensor], shape: Sequence[int]) -> Loaded:
    """`skeleton.loaded` of tensors that the view shows in this shape, with their count before it."""
    count = shape[0]
    one = skeleton(chain, IDENTITY, shape[1:], dtype_of(state))
    originals = tuple(state[role] for role in one.tensors if role.startswith("original"))
    stacks = [target_class(link.entry).stacks for link in chain.links]
    if all(stacks):
        return Loaded(one.loaded({role: tensor[0] for role, tensor in state.items()}).parts, originals)
    alone = [one.loaded({role: tensor[index] for role, tensor in state.items()}) for index in range(count)]
    parts = [
        alone[0].parts[index] if together else Each([loaded.parts[index] for loaded in alone])
        for index, together in enumerate(stacks)
    ]
    return Loaded(parts, originals)
