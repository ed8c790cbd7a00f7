"""PEFT's folder, as it is written.

    base_model.model.MODULE.lora_A.weight, .lora_B.weight     the change is B A: alpha is the rank
    base_model.model.MODULE.base_layer.bias                   the bias of such a module, as it is now
    base_model.model.NAME                                     any other tensor, as it is now

Source: peft 0.21, tuners/tuners_utils, utils/other and utils/save_and_load.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ..dtypes import kind_of
from ..errors import TENSOR, InputRefused
from ..text import count_text, listing
from ..wording import given
from .forms import Group
from .patterns import Budget
from .peft_config import MAX_CONFIG
from .written import HEADS, Held, Layer, Layout, Spelling, is_embedding, split

# transformers' models whose layers of these names are its Conv1D, which stores (in, out).
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D_LAYERS = ("c_attn", "c_fc", "c_proj", "q_attn")
# What a PEFT model calls parts of its own.
_OWN = re.compile(r"(?:.*\.)?(?:base_layer|modules_to_save|lora_[^.]*)(?:\..*)?", re.S)
# A layer of one of many experts, in files that keep them apart.
_EXPERT = re.compile(r"\.experts\.\d+\.", re.ASCII)
# Modules that are held whole times those with factors, for which PEFT's own way of excluding them is asked.
_MOST_ASKED = 1_000_000
# A path that means itself in PEFT's patterns, but for its dots.
_PLAIN = re.compile(r"[\w-]+(?:\.[\w-]+)*", re.ASCII)


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
            inside = (name for name in self.inside[module] if name not in keys)
            beside.update((name, f"base_model.model.{name}") for name in inside)
        placed = [name for name in keys if name not in factored and split(name)[0] not in saved]
        config = self._config(list(factored.values()), sorted(saved), placed)
        return Layout(
            keys,
            beside,
            config=config,
            said=tuple(self._remarks({one.tensor: one.rank for one in held}, placed, other)),
        )

    def _saved(self, names: Sequence[str], factored: set[str]) -> set[str]:
        """The modules that modules_to_save can name.

        PEFT wraps every module whose path ends in the words given, and wants all its tensors; factors of anything below
        it do not take. What that would do to others, what is tied to another, and counters that did not change are left
        alone: what changed is put in the base's place by itself.
        """
        paths = {path for name in self.groups for path in _above(name)}
        parents = {path.rpartition(".")[0] for path in paths}
        # The other paths that may end in one are among those that have its last two words, if it has three.
        alike: dict[str, list[str]] = {}
        for path in paths:
            alike.setdefault(_last(path), []).append(path)
        found = set()
        for module in {split(name)[0] for name in names} - parents:
            there = alike[_last(module)] if module.count(".") > 1 else paths
            counts = any(kind_of(self.groups[name].dtype) not in ("float", "half") for name in self.inside[module])
            tied = any(map(self._may_be_tied, self.inside[module]))
            alone = sum(path.endswith(module) for path in there) == 1
            if _PLAIN.fullmatch(module) and alone and not (counts or tied or self._in_attention(module)):
                found.add(module)
        if len(found) * len(factored) > _MOST_ASKED:
            return set()
        return {
            module for module in found if not any(re.match(rf"(^|.*\.){module}($|\..*)", path) for path in factored)
        }

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
        text = _text(values)
        if len(text) > MAX_CONFIG and (words := self._words(ranks)):
            text = _text({**values, "target_modules": words})
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

    def _words(self, modules: Iterable[str]) -> list[str] | None:
        """The last words of the paths, where they name these modules and no other."""
        words, named = {path.rpartition(".")[2] for path in modules}, set(modules)
        paths = {path for name in self.groups for path in _above(name)}
        others = {path for path in paths if path.rpartition(".")[2] in words} - named
        return None if others else sorted(words)

    @staticmethod
    def _ends(paths: Iterable[str]) -> set[str]:
        """a.b.c -> b.c, c: what of each PEFT takes for a name of it too."""
        return {path[at + 1 :] for path in paths for at, letter in enumerate(path) if letter == "."}

    def _remarks(self, ranks: Mapping[str, int | None], placed: Sequence[str], other: frozenset[str]) -> list[str]:
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
        experts = {name: rank for name, rank in ranks.items() if _EXPERT.search(name)}
        apart = [name for name in self.groups if _EXPERT.search(name) and name.endswith(".weight")]
        if experts and (len(set(experts.values())) > 1 or len(experts) < len(apart)):
            said.append(
                "experts that lie apart are stacked by PEFT under transformers 5, which takes all of them at one rank: "
                f"{given('rank')} gives them one"
            )
        if renamed := [name for name in ranks if ".block_sparse_moe." in name and ".experts." not in name]:
            said.append(f"under another name in transformers 5, where PEFT leaves it out: {listing(renamed, 4)}")
        return said


def _text(values: Mapping[str, object]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode("ascii")


def _last(path: str) -> str:
    return ".".join(path.split(".")[-2:])


def _above(name: str) -> list[str]:
    """The modules that a tensor lies in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]
