"""PEFT's adapters: a folder of `adapter_config.json` and `adapter_model.safetensors` (or .bin).

    base_model.model.MODULE.PART               a change of MODULE; its parts and what they do: the families' own files
    base_model.PART                            one that all modules share
    MODULE.weight, .bias, .base_layer.bias     put in the place of the base's; `peft_whole.py`

Source: peft 0.21, utils/save_and_load.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..checkpoint.disk.input_file import InputFile
from ..checkpoint.read.open import open_checkpoint
from ..checkpoint.read.parts import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ..checkpoint.source import Source
from ..errors import TENSOR, InputRefused
from ..text import printable
from .adapter import Adapter, Change
from .peft_config import Config
from .peft_experts import Experts, parameters_of, targets_of
from .peft_family import Family, Module, look_at_base
from .peft_lora import LORA
from .peft_model import Inside
from .peft_products import LOHA, LOKR
from .peft_scaled import ADALORA, IA3, VERA
from .peft_sums import SUMS
from .peft_turned import BOFT, OFT
from .peft_whole import LN_TUNING, ROWS, TRAINABLE_TOKENS, base_name, rows, whole

# What is read, by `peft_type`.
FAMILIES: Mapping[str, Family] = {
    family.peft_type: family
    for family in (LORA, LOHA, LOKR, ADALORA, VERA, IA3, OFT, BOFT, LN_TUNING, TRAINABLE_TOKENS, *SUMS)
}
# What no weight can have.
UNMERGED = {
    "which adds to what a model is given, and changes no weight": (
        "ADAPTION_PROMPT",
        "CARTRIDGE",
        "CPT",
        "MULTITASK_PROMPT_TUNING",
        "P_TUNING",
        "PREFIX_TUNING",
        "PROMPT_TUNING",
    ),
    "whose change depends on the input": ("LILY", "POLY", "SHADOW", "XLORA"),
    "which changes places that are drawn anew from a seed, and are in no file": ("FOURIERFT", "WAVEFT"),
}


def is_peft(path: Path) -> bool:
    """Is this the folder of a PEFT adapter, or the file of weights in one?"""
    is_folder = os.path.isdir(path)
    return os.path.isfile((path if is_folder else path.parent) / ADAPTER_CONFIG) and (
        is_folder or path.name in ADAPTER_WEIGHTS
    )


def open_peft(path: Path, strength: float = 1.0) -> Adapter:
    """An adapter's folder, a file of weights in it, or its configuration, whose tensors are in the base's file where
    none lie beside it. InputRefused for what is none, or cannot be merged.
    """
    folder = path if os.path.isdir(path) else path.parent
    config = Config.read(folder / ADAPTER_CONFIG, strength)
    family = FAMILIES.get(config.peft_type)
    if family is None:
        why = next((why for why, kinds in UNMERGED.items() if config.peft_type in kinds), "which is not read")
        raise config.refusal(
            f"its peft_type is {printable(config.peft_type)}, {why}", hint=f"what is merged is {', '.join(FAMILIES)}"
        )
    family.check(config)
    # Who gives the configuration alone has the tensors elsewhere: in the base's own file.
    in_folder = ADAPTER_WEIGHTS if os.path.isdir(path) else () if path.name == ADAPTER_CONFIG else (path.name,)
    weights = next((folder / name for name in in_folder if os.path.exists(folder / name)), None)
    if weights is None:
        nothing = Source(folder / ADAPTER_CONFIG, "", [], {})
        inside = Inside(config, PARTS, lambda source: _adapter(source, config, family))
        return Adapter(nothing, family.titled(config), (), inside=inside, facts=config.facts())
    source = open_checkpoint(weights)
    try:
        # It says as much of the change as the weights do: evidence has its sum too.
        source.files.append(InputFile(folder / ADAPTER_CONFIG))
        return _adapter(source, config, family)
    except BaseException:
        source.close()
        raise


def _adapter(source: Source, config: Config, family: Family) -> Adapter:
    parts: dict[str, dict[str, str]] = {}
    shared: dict[str, str] = {}
    changes: list[Change] = []
    copies: dict[str, str] = {}
    for key, info in source.tensors.items():
        plain = key.removeprefix("base_model.model.")
        if (once := key.removeprefix("base_model.")) in family.shared:
            shared[once] = key
        elif found := _KEY.fullmatch(plain):
            if found["what"] not in (*family.parts, ROWS):
                raise _other_family(key, found["what"], source, config)
            parts.setdefault(found["module"], {})[found["what"] + (found["bias"] or "")] = key
        elif plain.endswith(".base_layer.weight"):
            # An embedding that is adapted is saved beside its change, as it was before.
            copies[key] = base_name(plain)
        else:
            # What is put in a weight's place is there before a change is added to it.
            changes.append(whole(info, plain))
    several, idle, targets = set(shared.values()), set[str](), targets_of(config)
    wrapped: list[Module] = []
    for path, keys in parts.items():
        module = Module(base_name(path), path, keys, source, shared)
        if parameters_of(module.path, targets):
            wrapped.append(module)
            continue
        made = [rows(module, config)] if ROWS in keys else []
        made += family.changes(module, config) if keys.keys() - {ROWS} else []
        used = Counter(key for change in made for key in change.keys.values())
        several |= {key for key, times in used.items() if times > 1}
        idle |= {key for key in keys.values() if key not in used and not source.tensors[key].numel}
        changes += made
    return Adapter(
        source,
        family.titled(config),
        tuple(changes),
        frozenset(several),
        copies,
        facts=config.facts(),
        idle=frozenset(idle),
        looks=look_at_base(config),
        notes=config.notes,
        late=Experts.of(wrapped, config, targets).on if wrapped else None,
        expected=len(wrapped),
    )


_PARTS = [ROWS, *(part for family in FAMILIES.values() for part in family.parts)]
PARTS = frozenset(_PARTS + [part for family in FAMILIES.values() for part in family.shared])
_KEY = re.compile(
    rf"(?P<module>.+)\.(?P<what>{'|'.join(_PARTS)})(?:\.default)?(?:\.weight|(?P<bias>\.bias))?",
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
