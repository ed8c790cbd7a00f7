"""Names of modules with their dots made underscores, as kohya's adapters have them, found in a base.

    lora_unet_input_blocks_1_0_in_layers_2     model.diffusion_model.input_blocks.1.0.in_layers.2.weight

Such a name is never taken apart: an underscore may have been one. Every name of the base is flattened, without what a
file of a whole pipeline puts before the names of each model, and looked up. The first word says of which model it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ..errors import TENSOR, InputRefused, Known
from ..text import closest, printable
from ..wording import PATH, call, given, words
from .adapter import Adapter, Change, Names
from .forms import Group

# What stands before the names of a model in a file that holds several: a regular expression of few choices.
_MODEL = r"(?:model\.)?diffusion_model\."
_TEXT = r"(?:cond_stage_model|text_encoders\.[^.]+)\.transformer\."
_TEXT_1 = r"(?:conditioner\.embedders\.0|text_encoders\.clip_l)\.transformer\."
_TEXT_2 = r"text_encoders\.clip_g\.transformer\."
_TEXT_3 = r"text_encoders\.t5xxl\.transformer\."
# How an adapter's names begin -> which model that is. The longer of two that fit stands first.
PREFIXES: Mapping[str, str] = {
    "lora_unet_": _MODEL,
    "lora_transformer_": _MODEL,
    "oft_unet_": _MODEL,
    "lora_te1_": _TEXT_1,
    "lora_te2_": _TEXT_2,
    "lora_te3_": _TEXT_3,
    "lora_te_": _TEXT,
    "lycoris_": _MODEL,
    "model.diffusion_model.": _MODEL,
    "diffusion_model.": _MODEL,
    "transformer.": _MODEL,
    "unet.": _MODEL,
    "text_encoder.": _TEXT_1,
    "text_encoder_2.": _TEXT_2,
    "text_encoder_3.": _TEXT_3,
}
# Words of the names that diffusers gives the blocks of a U-Net, and of the original ones.
_DIFFUSERS = ("down_blocks_", "up_blocks_", "mid_block_")
_ORIGINAL = ("input_blocks_", "output_blocks_", "middle_block_")
_SPLIT = re.compile(r"(?:to_[qkv]|[qkv]_proj|[qkv])(?:_lora)?")
_FUSED = re.compile(r".*(?:qkv|in_proj)(?:_weight|\.weight)", re.S)


def prefix_of(name: str) -> str:
    """How the name begins, of what is known; "" for another."""
    return next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")


def flat(name: str) -> str:
    return name.replace(".", "_")


class FlatNames(Names):
    """A change's name is a prefix, the name of a module, flat or dotted, a dot, and `weight` or `bias`."""

    def finder(self, groups: Mapping[str, Group]) -> Callable[[Change], str | None]:
        modules = dict.fromkeys(name.rpartition(".")[0] for name in groups)
        there: dict[str, dict[str, list[str]]] = {}
        taken: dict[str, str] = {}

        def find(change: Change) -> str | None:
            module, _, leaf = change.tensor.rpartition(".")
            prefix = prefix_of(module)
            before = PREFIXES.get(prefix, _MODEL)
            if before not in there:
                there[before] = _index(modules, before)
            found = [f"{name}.{leaf}" for name in there[before].get(module[len(prefix) :], ())]
            found = [name for name in found if name in groups]
            if len(found) > 1:
                raise InputRefused(
                    f"{TENSOR} may be {words(found, 3)}: written flat, these are one name",
                    hint="nothing tells which is meant",
                    tensor=change.tensor,
                )
            if not found:
                return None
            if taken.setdefault(found[0], module) != module:
                raise InputRefused(
                    f"{printable(taken[found[0]])} and {printable(module)} are both of {TENSOR}",
                    hint=f"{_keeping(prefix)}, and merge that: they are of two models, and the base is one of them"
                    if prefix_of(taken[found[0]]) != prefix
                    else "nothing tells which is meant",
                    tensor=found[0],
                )
            return found[0]

        return find

    def hint(self, groups: Mapping[str, Group], adapter: Adapter, lost: Sequence[Change]) -> str:
        first = lost[0].tensor.rpartition(".")[0]
        why = _why_not(groups, lost)
        missed = {id(change) for change in lost}
        lacking = {prefix_of(change.tensor) for change in lost}
        here = {prefix_of(change.tensor) for change in adapter.changes if id(change) not in missed}
        if here and not lacking & here:
            because = why or f"the base has nothing of {words(sorted(lacking))}"
            return f"{_keeping(*sorted(here))}, and merge that: {because}"
        if why:
            return Known(why)
        if replaced := _prefix_that_does(groups, [change.tensor.rpartition(".")[0] for change in lost]):
            return given("adapter-prefix", {replaced[0]: replaced[1]})
        prefix = prefix_of(first)
        spelt = {flat(_without(PREFIXES.get(prefix, _MODEL), name.rpartition(".")[0])): name for name in groups}
        near = closest(flat(first[len(prefix) :]), spelt)
        if not near:
            return "is it an adapter of this base?"
        return Known(f"the base has {words((spelt[name] for name in near), 3)}, which is {prefix}{near[0]}")


def _index(modules: Mapping[str, None], before: str) -> dict[str, list[str]]:
    """A name as adapters have it, dotted or flat, with or without what stands before it -> the base's modules."""
    found: dict[str, dict[str, None]] = {}
    for module in modules:
        rest = _without(before, module)
        for name in {module, rest, flat(module), flat(rest)}:
            found.setdefault(name, {})[module] = None
    return {name: list(several) for name, several in found.items()}


def _prefix_that_does(groups: Mapping[str, Group], lost: Sequence[str]) -> tuple[str, str] | None:
    """(OLD, NEW) with which all these names are some of the base; None where there is none, or are several."""
    there = _index(dict.fromkeys(name.rpartition(".")[0] for name in groups), _MODEL)
    first, known, tried = lost[0], prefix_of(lost[0]), set[tuple[str, str]]()
    rest = first[len(known) :]
    fits: dict[tuple[str, str], list[str]] = {}
    for name in there:
        # The base has something before it, or the adapter before what the base has.
        if rest and name.endswith(rest) and name[: -len(rest)].endswith((".", "_")):
            old, new = known, name[: -len(rest)]
        elif name and first.endswith(name) and first[: -len(name)].endswith((".", "_")):
            old, new = first[: -len(name)], ""
        else:
            continue
        if re.findall(r"\d+", old) != re.findall(r"\d+", new):
            continue  # another layer
        tried.add((old, new))
        if len(tried) > 64:
            return None
        if all(one.startswith(old) and new + one[len(old) :] in there for one in lost):
            fits[old, new] = there[name]
    several = {tuple(modules) for modules in fits.values()}
    return min(fits) if len(several) == 1 else None


def _without(before: str, module: str) -> str:
    start = re.match(before, module)
    return module[start.end() :] if start else module


def _keeping(*prefixes: str) -> str:
    """The command that leaves nothing of an adapter but what begins so."""
    pattern = f"{prefixes[0]}*" if len(prefixes) == 1 else f"re:({'|'.join(map(re.escape, prefixes))}).*"
    return call("convert", PATH, keep=pattern, output="part.safetensors")


def _why_not(groups: Mapping[str, Group], lost: Sequence[Change]) -> str | None:
    """A reason that is known, for which no name of the base could be that of a change."""
    names = [flat(change.tensor) for change in lost]
    original = any(".input_blocks." in group for group in groups)
    diffusers = any("down_blocks." in group for group in groups)
    if original != diffusers:
        others = _DIFFUSERS if original else _ORIGINAL
        if any(word in name for name in names for word in others):
            whose = ("of diffusers", "the original ones") if original else ("the original", "those of diffusers")
            return f"its names are {whose[0]}, and the base has {whose[1]}: renaming them is not done here yet"
    # The last word of a module's name, flat or not.
    there = {word for group in groups for word in _last_words(group.rpartition(".")[0])}
    apart = [word for change in lost for word in _last_words(change.tensor.rpartition(".")[0])]
    if any(_SPLIT.fullmatch(word) and word not in there for word in apart) and any(map(_FUSED.fullmatch, groups)):
        return "it changes query, key and value, which the base has fused: dividing a tensor is not done here yet"
    return None


def _last_words(module: str) -> tuple[str, str]:
    """attn.to_q, attn_to_q -> to_q and q."""
    parts = module.rpartition(".")[2].rsplit("_", 2)
    return "_".join(parts[-2:]), parts[-1]
