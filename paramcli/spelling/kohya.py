"""Adapters of kohya's sd-scripts, LyCORIS and diffusers: one file of tensors, each a module's name and what it is.

    NAME.lora_down.weight, .lora_up.weight, .lora_mid.weight     LoRA; with `mid` of a convolution, a kernel of its own
    NAME.lora_A.weight, .lora_B.weight; .lora.down.weight, ...   the same, in the words of diffusers
    NAME.hada_w1_a ...   .lokr_w1 ...   .a1.weight ...           LoHa, LoKr, GLoRA
    NAME.oft_blocks      .weight and .on_input                   OFT and BOFT, IA3
    NAME.diff, .w_norm;  .diff_b, .b_norm                        added to weight and bias
    NAME.alpha           .dora_scale                             the scale; a length for each output or input

What the changes are is in `kohya_families.py`, how NAME is found in a base in `flat_names.py`. The scale is alpha over
the rank, and 1 where there is no alpha. Source: sd-scripts, networks; LyCORIS 4.1, modules; diffusers, loaders.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ..checkpoint.source import Source
from ..errors import TENSOR, InputRefused
from ..text import listing, printable, shape_text
from .adapter import Adapter, Change
from .flat_names import FlatNames, prefix_of
from .kohya_families import FAMILIES, Module, changes_of
from .peft_config import Config
from .peft_lora import LORA

# The end of a key -> the part of a module that it is.
PARTS: Mapping[str, str] = {
    **{part: part for family in FAMILIES for part in family.parts},
    **{f"{part}.weight": part for part in ("lora_down", "lora_up", "lora_mid", "a1", "a2", "b1", "b2")},
    **dict.fromkeys(("lora_A.weight", "lora.down.weight"), "lora_down"),
    **dict.fromkeys(("lora_B.weight", "lora.up.weight"), "lora_up"),
    **dict.fromkeys(("lora_magnitude_vector", "lora_magnitude_vector.weight"), "magnitude"),
    "alpha": "alpha",
    "dora_scale": "dora_scale",
}
# Parts whose names a model's own layers may have too.
_COMMON = {"a1", "a2", "b1", "b2", "diff"}
# What the trainer says of itself in the metadata, for who looks at the file.
_FACTS = ("ss_network_module", "ss_network_args", "ss_network_dim", "ss_network_alpha", "ss_base_model_version")
# What diffusers says of the adapter's scale, in the metadata of a file of safetensors.
METADATA = "lora_adapter_metadata"
MAX_METADATA = 1 << 20


def is_kohya(keys: Iterable[str]) -> bool:
    """Are these the tensors of such an adapter, and not of a PEFT model or another?"""
    marks = {mark for family in FAMILIES for mark in family.marks}
    found: set[str | None] = set()
    for key in keys:
        if key.startswith("base_model."):
            return False
        found.add((split(key) or (None, None))[1])
    return bool(found & (marks - _COMMON)) or (bool(found & _COMMON) and None not in found)


def split(key: str) -> tuple[str, str] | None:
    """A key -> (the module's name, the part); None for another."""
    words = key.rsplit(".", 3)
    for count in range(len(words) - 1, 0, -1):
        part = PARTS.get(".".join(words[-count:]))
        if part is not None:
            return key[: -len(".".join(words[-count:])) - 1], part
    return None


def read_kohya(source: Source, strength: float = 1.0) -> Adapter:
    """The adapter in an open file, which it takes over. InputRefused for what is half a change, or fits no formula."""
    modules: dict[str, dict[str, str]] = {}
    for key in source.tensors:
        if found := split(key):
            modules.setdefault(found[0], {})[found[1]] = key
    _require_tensors(source)
    said = _configurations(source)
    if not any("alpha" in keys for keys in modules.values()):
        _require_scales(source, modules, said)
    rescaled = _is_rescaled(source)
    changes: list[Change] = []
    titles: dict[str, None] = {}
    told: dict[str, dict[str, None]] = {}
    for name, keys in modules.items():
        module = Module(name, keys, source, strength, _config(said, name), told)
        if rescaled and not module.says_its_scale:
            raise InputRefused(
                f"{TENSOR} was trained with rs_lora, which the alpha of such a change does not tell: LyCORIS itself "
                "reads it with another scale",
                tensor=next(iter(keys.values())),
                path=source.path,
            )
        for title, change in changes_of(module):
            changes.append(change)
            titles[title] = None
    facts = {name: listing(values, 4) for name, values in told.items()}
    facts |= {name: printable(source.metadata[name], 200) for name in _FACTS if name in source.metadata}

    def notes() -> Iterator[str]:
        for config in said.values():
            yield from config.notes()

    title = f"kohya {', '.join(titles)}"
    return Adapter(source, title, tuple(changes), facts=facts, names=FlatNames(), notes=notes)


def _is_rescaled(source: Source) -> bool:
    """Do the trainer's metadata say that the scale was alpha over the root of the rank?"""
    text = source.metadata.get("ss_network_args", "")
    try:
        said = json.loads(text) if 0 < len(text) <= MAX_METADATA else None
    except (ValueError, RecursionError):
        said = None
    return isinstance(said, dict) and str(said.get("rs_lora")).lower() in ("true", "1", "yes", "y", "on")


def _require_tensors(source: Source) -> None:
    """InputRefused for a part that is no tensor: a torch file may hold an alpha as a number, which is not read."""
    for extra in source.extras:
        if (found := split(extra.name)) and found[1] not in ("weight", "diff"):
            raise InputRefused(
                f"{TENSOR} is of type {printable(extra.type)}, and a tensor is wanted",
                hint="save it as a tensor: without it the change would be another",
                tensor=extra.name,
                path=source.path,
            )


def _config(said: Mapping[str, Config], name: str) -> Config | None:
    """What diffusers' metadata say of the model that a dotted name is of; of a file of one model "" is all of it."""
    prefix = prefix_of(name)
    return said.get(prefix.rstrip("."), said.get("")) if prefix.endswith(".") or not prefix else None


def _require_scales(source: Source, modules: Mapping[str, Mapping[str, str]], said: Mapping[str, Config]) -> None:
    """InputRefused where nothing in a file without an alpha tells of what scale lora_A and lora_B are.

    Of one rank it is 1, whoever reads it. Of several diffusers takes the first for the alpha of all, and others each
    its own; and names of no model are those of a PEFT model, whose configuration has the alpha.
    """
    ranks: dict[tuple[int, ...], str] = {}
    for name, keys in modules.items():
        if keys.get("lora_down", "").endswith(".lora_A.weight") and _config(said, name) is None:
            if not prefix_of(name):
                raise InputRefused(
                    f"{TENSOR} has no alpha, and no word of which model it is: of what scale it is, nothing tells",
                    hint="an adapter of PEFT is a folder with its adapter_config.json",
                    tensor=keys["lora_down"],
                    path=source.path,
                )
            ranks[source.tensors[keys["lora_down"]].shape[:1]] = name
    if len(ranks) > 1:
        one, other = list(ranks.items())[:2]
        raise InputRefused(
            f"nothing in it says an alpha, and the ranks differ (of {printable(one[1])} {shape_text(one[0])}, of "
            f"{printable(other[1])} {shape_text(other[0])}): of what scale they are, tools read differently",
            hint=f"a file with alphas, or with diffusers' {METADATA}",
            path=source.path,
        )


def _configurations(source: Source) -> dict[str, Config]:
    """Component -> what diffusers' metadata say of it; "" for all of a file of one model."""
    text = source.metadata.get(METADATA)
    if text is None:
        return {}
    try:
        values = json.loads(text) if len(text) <= MAX_METADATA else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputRefused(f"its metadata {METADATA} is no JSON object", path=source.path)
    found: dict[str, dict[str, object]] = {}
    for key, value in values.items():
        component = next((name for name in _COMPONENTS if key.startswith(f"{name}.")), "")
        found.setdefault(component, {})[key[len(component) + 1 if component else 0 :]] = value
    configurations = {name: Config(Path(source.path), said, 1.0) for name, said in found.items()}
    for config in configurations.values():
        LORA.check(config)
    return configurations


_COMPONENTS = ("unet", "transformer_2", "transformer", "text_encoder_3", "text_encoder_2", "text_encoder")
