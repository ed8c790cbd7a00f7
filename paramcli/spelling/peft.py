"""PEFT's adapters: a folder of `adapter_config.json` and `adapter_model.safetensors` (or .bin).

    base_model.model.MODULE.PART               a change of MODULE; its parts and what they do: the families' own files
    base_model.PART                            one that all modules share
    MODULE.weight, .bias, .base_layer.bias     put in the place of the base's

Source: peft 0.21, utils/save_and_load.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ..checkpoint.read.open import open_checkpoint
from ..checkpoint.read.parts import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ..checkpoint.source import Source, TensorInfo
from ..errors import TENSOR, InputRefused
from ..text import printable
from ..view import IDENTITY, View
from .adapter import Adapter, Change, not_of_shape
from .forms import Group
from .peft_config import Config
from .peft_family import Family, Module
from .peft_lora import LORA

# What is read, by `peft_type`.
FAMILIES: Mapping[str, Family] = {family.peft_type: family for family in (LORA,)}


def is_peft(path: Path) -> bool:
    """Is this the folder of a PEFT adapter, or the file of weights in one?"""
    return (path if path.is_dir() else path.parent).joinpath(ADAPTER_CONFIG).is_file() and (
        path.is_dir() or path.name in ADAPTER_WEIGHTS
    )


def open_peft(path: Path, strength: float = 1.0) -> Adapter:
    """An adapter's folder, or the file of weights in it. InputRefused for what is none, or cannot be merged."""
    folder = path if path.is_dir() else path.parent
    weights = next((folder / name for name in ADAPTER_WEIGHTS if (folder / name).exists()), None)
    if weights is None:
        raise InputRefused(
            f"no {ADAPTER_WEIGHTS[0]} is in the folder",
            path=folder,
            hint="a folder that save_pretrained of a PEFT model wrote",
        )
    config = Config.read(folder / ADAPTER_CONFIG, strength)
    family = FAMILIES.get(config.peft_type)
    if family is None:
        raise config.refusal(
            f"its peft_type is {printable(config.peft_type)}", hint=f"what is merged is {', '.join(FAMILIES)}"
        )
    family.check(config)
    source = open_checkpoint(weights)
    try:
        changes, shared, copies = _changes(source, config, family)
        return Adapter(source, family.titled(config), changes, shared, copies, config.facts())
    except BaseException:
        source.close()
        raise


def _changes(
    source: Source, config: Config, family: Family
) -> tuple[tuple[Change, ...], frozenset[str], dict[str, str]]:
    """(the changes in order, the keys that modules share, key -> the base's tensor that it is a copy of)"""
    parts: dict[str, dict[str, str]] = {}
    shared: dict[str, str] = {}
    whole: list[Change] = []
    copies: dict[str, str] = {}
    for key in source.tensors:
        plain = key.removeprefix("base_model.model.")
        if key.removeprefix("base_model.") in family.shared:
            shared[key.removeprefix("base_model.")] = key
        elif found := _KEY.fullmatch(plain):
            if found["what"] not in family.parts:
                raise _other_family(key, found["what"], source, config)
            parts.setdefault(found["module"], {})[found["what"] + (found["bias"] or "")] = key
        elif plain.endswith(".base_layer.weight"):
            # An embedding that is adapted is saved beside its change, as it was before.
            copies[key] = _base_name(plain)
        else:
            whole.append(Change(_base_name(plain), {"saved": key}, _saved(source.tensors[key])))
    modules = [Module(_base_name(path), path, keys, source, shared) for path, keys in parts.items()]
    # What is put in a weight's place is there before a change is added to it.
    changes = [(_is_square(family.sides(module)), family.changes(module, config)) for module in modules]
    changes.sort(key=lambda change: change[0])
    return (
        (*whole, *(change for _, of_module in changes for change in of_module)),
        frozenset(shared.values()),
        copies,
    )


_KEY = re.compile(
    rf"(?P<module>.+)\.(?P<what>{'|'.join(part for family in FAMILIES.values() for part in family.parts)})"
    r"(?:\.default)?(?:\.weight|(?P<bias>\.bias))?",
    re.S,
)


def _other_family(key: str, part: str, source: Source, config: Config) -> InputRefused:
    names = [name for name, family in FAMILIES.items() if part in family.parts]
    return InputRefused(
        f"{TENSOR} is a tensor of {' or '.join(names)}, and the configuration's peft_type is {config.peft_type}",
        tensor=key,
        path=source.path,
        hint="the configuration and the weights are of two adapters",
    )


def _is_square(sides: tuple[int, int] | None) -> bool:
    return sides is not None and sides[0] == sides[1]


def _base_name(name: str) -> str:
    """The name in the base of a module or tensor that a PEFT model has wrapped."""
    kept = [part for part in name.split(".") if part not in ("base_layer", "modules_to_save")]
    return ".".join(kept)


def _saved(info: TensorInfo) -> Callable[[Group], tuple[str, View]]:
    def reads(group: Group) -> tuple[str, View]:
        if info.shape != group.shape:
            raise not_of_shape(group, "own is", [info.shape])
        return "saved", IDENTITY

    return reads
