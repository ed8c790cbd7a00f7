"""An adapter's change of an output layer that a base has no tensor of, as it uses its embedding once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..checkpoint.source import Source
from ..errors import InputRefused
from ..text import printable
from ..wording import given
from .adapter import Change
from .forms import Group
from .written import HEADS, ModelFacts, is_embedding, split


class TiedHead(NamedTuple):
    """What is said of the base that lacks the layer, and what to do."""

    where: str
    hint: str


def tied_head(groups: Mapping[str, Group], base: Source, lost: Sequence[Change]) -> TiedHead | None:
    """What explains the change that is of no tensor of the base: its embedding is the output layer too.

    The config.json beside the base tells (`tie_word_embeddings`); where that says nothing (a model's class may tie what
    its configuration does not mention) a single embedding of the layer's shape may be it. None where nothing tells.
    """
    module, leaf, word = split(lost[0].tensor)
    facts = ModelFacts.beside(base)
    if len(lost) > 1 or leaf != "weight" or word not in (*HEADS, "embed_out") or facts.tied is False:
        return None
    items = {}
    for name, group in groups.items():
        if is_embedding(name, group, facts):
            try:
                items[name] = lost[0].reads(group)[0]
            except InputRefused:
                continue
    if len(items) != 1:
        return None
    [(name, item)] = items.items()
    where = f", {'whose config.json ties it' if facts.tied else 'where it may be tied'} to {printable(name)}"
    if item.startswith("saved"):
        hint = (
            "the adapter replaces the output layer alone: give a base that has its own, with tie_word_embeddings false"
        )
        return TiedHead(where, hint)
    both = "changes that one tensor, and so both layers, as PEFT's merge does"
    return TiedHead(where, f"{given('adapter-prefix', {f'{module}.': f'{split(name)[0]}.'})} {both}")
