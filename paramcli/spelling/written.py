"""How an adapter that is written spells the changes it holds: as PEFT does, or as kohya's scripts do.

    PEFT     base_model.model.MODULE.lora_A.weight, .lora_B.weight     the change is B A: alpha is the rank
             base_model.model.MODULE.base_layer.bias                   the bias of such a module, as it is now
             base_model.model.NAME                                     any other tensor, as it is now
    kohya    PREFIX + MODULE, dots made underscores:
             .lora_down.weight, .lora_up.weight, .alpha                the change is up down
             .diff, .diff_b, .w_norm, .b_norm                          what is added to a weight, a bias; of a norm

What the module of a weight is (linear, an embedding, a convolution) its model's code says, and that is not here. So
what names, shapes and the configuration beside the base do not settle is held whole, which is right whatever it is.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from ..checkpoint.source import Source
from ..dtypes import kind_of
from ..errors import TENSOR, InputRefused
from ..text import count_text, listing, printable, shape_text
from ..wording import LEAVE_OUT, given
from .forms import Group
from .patterns import Budget
from .peft_config import MAX_CONFIG

AdapterSpelling = Literal["peft", "kohya"]
ADAPTER_SPELLINGS: tuple[AdapterSpelling, ...] = ("peft", "kohya")
# transformers' models whose layers of these names are its Conv1D, which stores (in, out).
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D_LAYERS = ("c_attn", "c_fc", "c_proj", "q_attn")
# Modules that look a row up, by the last word of their path, beside those that have "embed" in it.
LOOKED_UP = ("wte", "wpe", "shared", "relative_attention_bias")
# Modules with a matrix that are of a class of their own in some models: transformers' routers of experts.
ROUTERS = ("router", "gate")
HEADS = ("lm_head", "output", "head", "score", "classifier")
# What a PEFT model calls parts of its own.
_OWN = re.compile(r"(?:.*\.)?(?:base_layer|modules_to_save|lora_[^.]*)(?:\..*)?", re.S)
# A path that means itself in PEFT's patterns, but for its dots.
_PLAIN = re.compile(r"[\w-]+(?:\.[\w-]+)*", re.ASCII)


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
        if path.is_dir():
            folder = path
        elif path.name.startswith(("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model")):
            folder = path.parent
        else:
            return cls()
        values: object = None
        with suppress(OSError, ValueError, RecursionError):
            if (folder / "config.json").stat().st_size <= MAX_CONFIG:
                values = json.loads((folder / "config.json").read_bytes().decode("utf-8"))
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
    tensors that did not change and are held all the same, with their keys. `config`: the text beside the tensors.
    """

    keys: Mapping[str, Mapping[str, str]]
    beside: Mapping[str, str] = field(default_factory=dict)
    config: bytes | None = None
    said: tuple[str, ...] = ()


def split(name: str) -> tuple[str, str, str]:
    """layers.0.mlp.up.weight -> (layers.0.mlp.up, weight, up): the module, its parameter, the module's last word."""
    module, _, leaf = name.rpartition(".")
    return module, leaf, module.rpartition(".")[2]


def is_embedding(name: str, group: Group, facts: ModelFacts) -> bool:
    _, _, word = split(name)
    known = "embed" in word.lower() or word in LOOKED_UP
    rows = facts.vocab_size is not None and group.shape[0] == facts.vocab_size and word not in HEADS
    return len(group.shape) == 2 and (known or rows)


class Spelling(ABC):
    """The names an adapter of a base has, and what it can hold."""

    # What a result of this kind is called, and what its name ends in.
    folder: bool

    def __init__(self, groups: Mapping[str, Group], facts: ModelFacts, tied: frozenset[str] = frozenset()):
        """`tied`: names of the base that are one tensor with another."""
        self.groups, self.facts, self.tied = groups, facts, tied
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
        if word in ROUTERS and len(shape) == 2:
            return "a router"
        return None


class Peft(Spelling):
    """PEFT's folder."""

    folder = True

    def layer_of(self, name: str) -> Layer | str:
        if why := self._parameter(name):
            return why
        module, _, word = split(name)
        shape, across = self.groups[name].shape, self._bias_says(name)
        if self._in_attention(module):
            return "in an attention that PEFT adapts as one"
        if not _PLAIN.fullmatch(module):
            return "a name that PEFT takes for a pattern"
        if len(shape) > 2:
            if across:
                return "a transposed convolution"
            return "a convolution of single channels" if shape[1] == 1 else Layer()
        if self.facts.model_type in CONV1D_MODELS:
            named = word in CONV1D_LAYERS
            return Layer(named) if across in (None, named) else "stored as nothing of its model is"
        if across is None and self.some_across:
            return "(out, in) or (in, out): nothing tells"
        return Layer(bool(across))

    def require(self, held: Held, group: Group) -> None:
        if _OWN.fullmatch(held.tensor):
            raise InputRefused(
                f"{TENSOR} has the name of a part of a PEFT model",
                hint="merge_and_unload() in PEFT first",
                tensor=held.tensor,
            )

    def layout(self, held: Sequence[Held], other: frozenset[str]) -> Layout:
        factored = {one.tensor: one for one in held if one.rank is not None}
        modules = {split(name)[0] for name in factored}
        saved = self._saved([one.tensor for one in held if one.rank is None], modules)
        keys: dict[str, dict[str, str]] = {}
        beside: dict[str, str] = {}
        for one in held:
            module, leaf, _ = split(one.tensor)
            start = f"base_model.model.{module}"
            if one.rank is not None:
                keys[one.tensor] = {"A": f"{start}.lora_A.weight", "B": f"{start}.lora_B.weight"}
            elif module in modules:
                keys[one.tensor] = {"value": f"{start}.base_layer.{leaf}"}
            else:
                keys[one.tensor] = {"value": f"base_model.model.{one.tensor}"}
        for module in saved:
            inside = (name for name in self.groups if split(name)[0] == module)
            beside.update((name, f"base_model.model.{name}") for name in inside if name not in keys)
        placed = [name for name in keys if name not in factored and split(name)[0] not in saved]
        config = self._config(list(factored.values()), sorted(saved), placed)
        return Layout(keys, beside, config, tuple(self._remarks(placed, other)))

    def _saved(self, names: Sequence[str], factored: set[str]) -> set[str]:
        """The modules that modules_to_save can name.

        PEFT wraps every module whose path ends in the words given, and wants all its tensors; factors of anything below
        it do not take. What that would do to others, what is tied to another, and counters that did not change are left
        alone: what changed is put in the base's place by itself.
        """
        paths = {path for name in self.groups for path in _above(name)}
        found = set()
        for module in {split(name)[0] for name in names}:
            parents = any(path.startswith(f"{module}.") for path in paths)
            meant = [path for path in paths if path.endswith(module)] == [module]
            caught = meant and any(re.match(rf"(^|.*\.){module}($|\..*)", path) for path in factored)
            tied = any(self._may_be_tied(name) for name in names if split(name)[0] == module)
            counts = any(
                split(name)[0] == module and kind_of(group.dtype) not in ("float", "half")
                for name, group in self.groups.items()
            )
            if (
                _PLAIN.fullmatch(module)
                and meant
                and not (parents or caught or tied or counts or self._in_attention(module))
            ):
                found.add(module)
        return found

    def _in_attention(self, module: str) -> bool:
        """Is it a layer of torch's MultiheadAttention, which reads its weight and does not call it?"""
        parent = module.rpartition(".")[0]
        return f"{parent}.in_proj_weight" in self.groups or f"{parent}.q_proj_weight" in self.groups

    def _may_be_tied(self, name: str) -> bool:
        """Is it one tensor with another, or an embedding that the model may use again as its output layer?"""
        group = self.groups[name]
        if name in self.tied:
            return True
        if not is_embedding(name, group, self.facts):
            return False
        others = [other for other in self.groups if split(other)[2] in (*HEADS, "embed_out")]
        return self.facts.tied is True or not any(self.groups[other].shape == group.shape for other in others)

    def _config(self, factored: Sequence[Held], saved: list[str], placed: Sequence[str]) -> bytes:
        ranks = {split(one.tensor)[0]: one.rank for one in factored}
        common = Counter(ranks.values()).most_common(1)[0][0] if ranks else 1
        # PEFT takes the first pattern that matches the end of a path, which only where it is bound is the whole.
        ends = self._ends(ranks)
        patterns = {
            ("^" if path in ends else "") + path.replace(".", r"\."): rank
            for path, rank in ranks.items()
            if rank != common
        }
        if 2 * len(patterns) * len(ranks) > Budget().steps:
            raise InputRefused(
                f"{count_text(len(patterns), 'module')} of other ranks than the rest: more than is matched again",
                hint=given("rank"),
            )
        biased = {split(name)[0] for name in placed if split(name)[1] == "bias"}
        values = {
            "peft_type": "LORA",
            "task_type": None,
            "base_model_name_or_path": None,
            "inference_mode": True,
            "r": common,
            "lora_alpha": common,
            "lora_dropout": 0.0,
            "rank_pattern": patterns,
            "alpha_pattern": patterns,
            "target_modules": self._targets(list(ranks)),
            "modules_to_save": saved or None,
            "bias": "none" if not biased else "lora_only" if biased <= ranks.keys() else "all",
            "fan_in_fan_out": any(one.layer is not None and one.layer.across for one in factored),
            "init_lora_weights": True,
            "use_rslora": False,
            "use_dora": False,
        }
        text = (json.dumps(values, indent=2, sort_keys=True) + "\n").encode("ascii")
        if len(text) > MAX_CONFIG:
            raise InputRefused(
                f"an adapter_config.json of {count_text(len(ranks), 'module')} would have {len(text)} bytes; "
                f"{MAX_CONFIG} is the limit of what can be read again",
                hint=given("rank"),
            )
        return text

    def _targets(self, modules: list[str]) -> list[str] | str:
        """Their paths; one pattern where a path is the end of another's, which PEFT would take too."""
        if not modules:
            return "dummy-target-modules"  # PEFT's word for none
        paths = {path for name in self.groups for path in _above(name)}
        if self._ends(paths.difference(modules)).intersection(modules):
            return "|".join(path.replace(".", r"\.") for path in modules)
        return modules

    @staticmethod
    def _ends(paths: Iterable[str]) -> set[str]:
        """a.b.c -> b.c, c: what of each PEFT takes for a name of it too."""
        return {path[at + 1 :] for path in paths for at, letter in enumerate(path) if letter == "."}

    def _remarks(self, placed: Sequence[str], other: frozenset[str]) -> list[str]:
        said = []
        alone = [name for name in placed if split(name)[1] != "bias"]
        if alone:
            said.append(
                f"put in the base's place when PEFT loads the adapter, as modules_to_save cannot name them alone: "
                f"{listing(alone, 4)}"
            )
        if other:
            said.append(
                f"of another shape than in the base, which has to be resized before PEFT loads the adapter: "
                f"{listing(sorted(other), 4)}"
            )
        return said


def _above(name: str) -> list[str]:
    """The modules that a tensor lies in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


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
        flat: dict[str, str] = {}
        for module in {split(name)[0] for name in self.groups}:
            name = self.prefix + module.replace(".", "_")
            if flat.setdefault(name, module) != module and any(
                split(h.tensor)[0] in (flat[name], module) for h in held
            ):
                raise InputRefused(
                    f"{printable(flat[name])} and {printable(module)} have one name in a kohya file, {printable(name)}",
                    hint=given("spelling", "peft"),
                )
        keys: dict[str, dict[str, str]] = {}
        for one in held:
            module, leaf, _ = split(one.tensor)
            start = self.prefix + module.replace(".", "_")
            weight = self.groups.get(f"{module}.weight")
            if one.rank is not None:
                keys[one.tensor] = {
                    "A": f"{start}.lora_down.weight",
                    "B": f"{start}.lora_up.weight",
                    "rank": f"{start}.alpha",
                }
            elif weight is not None and len(weight.shape) == 1:
                keys[one.tensor] = {"diff": f"{start}.{leaf[0]}_norm"}
            else:
                keys[one.tensor] = {"diff": f"{start}.diff" + ("_b" if leaf == "bias" else "")}
        return Layout(keys)
