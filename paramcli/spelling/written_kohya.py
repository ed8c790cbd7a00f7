"""A file in the keys of kohya's scripts and LyCORIS, as it is written.

    PREFIX + MODULE, its dots made underscores, and
    .lora_down.weight, .lora_up.weight, .alpha                the change is up down: alpha is the rank
    .diff, .diff_b, .w_norm, .b_norm                          what is added to a weight, to a bias; of a norm

Source: LyCORIS 4.1, modules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ..dtypes import kind_of
from ..errors import TENSOR, InputRefused
from ..text import listing, printable, shape_text
from ..wording import LEAVE_OUT, given
from .flat_names import PREFIXES, flat
from .forms import Group
from .written import Held, Layer, Layout, ModelFacts, Spelling, is_embedding, split

# What the names of a kohya file may begin with, and are found again by.
FLAT_PREFIXES = (*(prefix for prefix in PREFIXES if prefix.startswith("lora_")), "lycoris_")
_BIAS = {"bias": "_b"}


class Kohya(Spelling):
    """One file in the keys of kohya's scripts and of LyCORIS."""

    folder = False

    def __init__(self, groups: Mapping[str, Group], facts: ModelFacts, tied: frozenset[str], prefix: str):
        super().__init__(groups, facts, tied)
        self.prefix = prefix

    def layer_of(self, name: str) -> Layer | str:
        return self._parameter(name) or Layer()

    def require(self, held: Held, group: Group) -> None:
        module, leaf, _ = split(held.tensor)
        if leaf not in ("weight", "bias") or not module:
            raise InputRefused(
                f"{TENSOR} changed, and a kohya file changes weights and biases of modules only",
                hint=f"{given('spelling', 'peft')}, or {LEAVE_OUT}",
                tensor=held.tensor,
            )
        if group.shape != self.groups[held.tensor].shape:
            raise InputRefused(
                f"{TENSOR} is {shape_text(group.shape)}, in the base "
                f"{shape_text(self.groups[held.tensor].shape)}: a kohya file adds to what is there",
                hint=f"{given('spelling', 'peft')}, or {LEAVE_OUT}",
                tensor=held.tensor,
            )
        if kind_of(group.dtype) not in ("float", "half"):
            raise InputRefused(
                f"{TENSOR} is no tensor of floating point, and a kohya file adds to what is there",
                hint=f"{given('spelling', 'peft')}, or {LEAVE_OUT}",
                tensor=held.tensor,
            )

    def layout(self, held: Sequence[Held], other: frozenset[str]) -> Layout:
        taken: dict[str, str] = {}
        changed = {split(one.tensor)[0] for one in held}
        for module in self.inside:
            first = taken.setdefault(self._name(module), module)
            if first != module and {first, module} & changed:
                raise InputRefused(
                    f"{printable(first)} and {printable(module)} have one name in a kohya file, "
                    f"{printable(self._name(module))}",
                    hint=given("spelling", "peft"),
                )
        keys: dict[str, dict[str, str]] = {}
        zeros: dict[str, str] = {}
        tensors = {one.tensor for one in held}
        for one in held:
            module, leaf, _ = split(one.tensor)
            start, weight = self._name(module), f"{module}.weight"
            if one.rank is not None:
                of_rank = {"A": "lora_down.weight", "B": "lora_up.weight", "rank": "alpha"}
                keys[one.tensor] = {role: f"{start}.{end}" for role, end in of_rank.items()}
                continue
            norm = weight in self.groups and len(self.groups[weight].shape) == 1
            keys[one.tensor] = {"diff": f"{start}.{leaf[0]}_norm" if norm else f"{start}.diff{_BIAS.get(leaf, '')}"}
            if leaf == "bias" and weight in self.groups and weight not in tensors:
                # LyCORIS knows a module by what is said of its weight.
                zeros[weight] = f"{start}.w_norm" if norm else f"{start}.diff"
        return Layout(keys, zeros=zeros, said=tuple(self._remarks(held)))

    def _remarks(self, held: Sequence[Held]) -> Iterator[str]:
        """What other readers make of it."""
        factored = {split(one.tensor)[0] for one in held if one.rank is not None}
        biases = [one.tensor for one in held if one.rank is None and split(one.tensor)[0] in factored]
        if biases:
            yield (f"a bias beside factors is a diff_b, which LyCORIS and sd-scripts leave out: {listing(biases, 4)}")
        looked_up = [one.tensor for one in held if is_embedding(one.tensor, self.groups[one.tensor], self.facts)]
        if looked_up:
            yield f"an embedding is a diff, which LyCORIS refuses: {listing(looked_up, 4)}"

    def _name(self, module: str) -> str:
        """Without what a file of a whole pipeline puts before it, and with the word that says of which model it is."""
        for prefix in FLAT_PREFIXES:
            if found := re.match(PREFIXES[prefix], module):
                return prefix + flat(module[found.end() :])
        return self.prefix + flat(module)
