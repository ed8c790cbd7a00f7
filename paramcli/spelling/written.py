"""How an adapter that is written holds changes, in whichever format: by factors, or whole.

What the module of a weight is (linear, an embedding, a convolution) its model's code says, and that is not here. So
what names, shapes and the configuration beside the base do not settle is held whole, which is right whatever it is.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from ..checkpoint.source import Source
from .forms import Group
from .peft_config import MAX_CONFIG

AdapterSpelling = Literal["peft", "kohya"]
ADAPTER_SPELLINGS: tuple[AdapterSpelling, ...] = ("peft", "kohya")
# Modules that look a row up, by the last word of their path, beside those that have "embed" in it.
LOOKED_UP = ("wte", "wpe", "emb", "shared", "relative_attention_bias")
# Modules with a flat matrix that are of a class of their own in some models: transformers' routers of experts.
ROUTERS = ("router", "gate")
HEADS = ("lm_head", "output", "head", "score", "classifier")


@dataclass(frozen=True)
class ModelFacts:
    """What the configuration beside a base says of its model; None where it says nothing."""

    model_type: str | None = None
    vocab_size: int | None = None
    tied: bool | None = None

    @classmethod
    def beside(cls, source: Source) -> ModelFacts:
        """Of the config.json in a checkpoint's folder, or beside a file that has the name it has there."""
        path = source.path
        if os.path.isdir(path):
            folder = path
        elif path.name.startswith(("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model")):
            folder = path.parent
        else:
            return cls()
        values: object = None
        with suppress(OSError, ValueError, RecursionError):
            said = folder / "config.json"
            if os.path.isfile(said) and said.stat().st_size <= MAX_CONFIG:
                values = json.loads(said.read_bytes().decode("utf-8"))
        if not isinstance(values, dict):
            return cls()
        kind, rows, tied = (values.get(name) for name in ("model_type", "vocab_size", "tie_word_embeddings"))
        return cls(
            kind if isinstance(kind, str) else None,
            rows if isinstance(rows, int) and not isinstance(rows, bool) else None,
            tied if isinstance(tied, bool) else None,
        )


@dataclass(frozen=True)
class Layer:
    """A weight that two factors can change. `across`: it is stored (in, out)."""

    across: bool = False

    def matrix(self, shape: Sequence[int]) -> tuple[int, int]:
        """(out, in): the matrix that the factors make."""
        rest = 1
        for size in shape[1:]:
            rest *= size
        return (rest, shape[0]) if self.across else (shape[0], rest)

    def shapes(self, shape: Sequence[int], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of A and B, or down and up."""
        if self.across:
            return (rank, shape[0]), (shape[1], rank)
        return (rank, *shape[1:]), (shape[0], rank, *[1] * (len(shape) - 2))


@dataclass(frozen=True)
class Held:
    """A changed tensor: by factors of a rank, or whole (no rank), and then why."""

    tensor: str
    layer: Layer | None = None
    rank: int | None = None
    why: str | None = None


@dataclass(frozen=True)
class Layout:
    """Where an adapter holds each change: tensor -> role -> key.

    Roles: A and B; rank, as a number; value (the tensor as it is now); diff (what is added to the base's). `beside`:
    tensors that did not change and are held all the same, with their keys; `zeros`: those whose change is written as
    nothing. `config`: the text beside the tensors.
    """

    keys: Mapping[str, Mapping[str, str]]
    beside: Mapping[str, str] = field(default_factory=dict)
    zeros: Mapping[str, str] = field(default_factory=dict)
    config: bytes | None = None
    said: tuple[str, ...] = ()


def split(name: str) -> tuple[str, str, str]:
    """layers.0.mlp.up.weight -> (layers.0.mlp.up, weight, up): the module, its parameter, the module's last word."""
    module, _, leaf = name.rpartition(".")
    return module, leaf, module.rpartition(".")[2]


def is_embedding(name: str, group: Group, facts: ModelFacts) -> bool:
    _, _, word = split(name)
    known = "embed" in word.lower() or word.endswith("_emb") or word in LOOKED_UP
    rows = facts.vocab_size is not None and group.shape[0] == facts.vocab_size and word not in HEADS
    return len(group.shape) == 2 and (known or rows)


class Spelling(ABC):
    """The names an adapter of a base has, and what it can hold."""

    # What a result of this kind is called, and what its name ends in.
    folder: bool

    def __init__(self, groups: Mapping[str, Group], facts: ModelFacts, tied: frozenset[str] = frozenset()):
        """`tied`: names of the base that are one tensor with another."""
        self.groups, self.facts, self.tied = groups, facts, tied
        self.inside: dict[str, list[str]] = {}
        for name in groups:
            self.inside.setdefault(split(name)[0], []).append(name)
        # Does a bias show that weights of this model are stored (in, out)?
        self.some_across = any(len(group.shape) == 2 and self._bias_says(name) for name, group in groups.items())

    @abstractmethod
    def layer_of(self, name: str) -> Layer | str:
        """How the tensor may be changed by factors, or why not; from names and shapes alone."""

    @abstractmethod
    def require(self, held: Held, group: Group) -> None:
        """Raise InputRefused for a change that adapters of this kind cannot hold; `group` is the tuned tensor."""

    @abstractmethod
    def layout(self, held: Sequence[Held], other: frozenset[str]) -> Layout:
        """Where each is held. `other`: changed tensors that have another shape than the base's."""

    def _bias_says(self, name: str) -> bool | None:
        """Is this weight stored (in, out), by the length of its bias? None where that tells nothing."""
        module, leaf, _ = split(name)
        bias, shape = self.groups.get(f"{module}.bias"), self.groups[name].shape
        if leaf != "weight" or bias is None or len(bias.shape) != 1 or len(shape) < 2 or shape[0] == shape[1]:
            return None
        return {shape[0]: False, shape[1]: True}.get(bias.shape[0])

    def _parameter(self, name: str) -> str | None:
        """Why this is no weight of a module that factors may change."""
        module, leaf, word = split(name)
        shape = self.groups[name].shape
        if leaf != "weight" or not module:
            return "no weight of a module"
        if not 2 <= len(shape) <= 5:
            return "no matrix"
        if is_embedding(name, self.groups[name], self.facts):
            return "an embedding"
        if word in ROUTERS and len(shape) == 2 and 2 * shape[0] <= shape[1]:
            return "a router"
        return None
