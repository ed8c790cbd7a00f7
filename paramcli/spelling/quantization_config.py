"""What the configuration beside a checkpoint says of how it was quantized: `quantization_config` (or
`compression_config`) of config.json, or the files that some tools write by themselves.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..dtypes import CODE_OF_TORCH, EDITABLE
from .config_groups import ConfigGroups, block_of, transforms_activations

CONFIG = "config.json"
# In it; the second is what compressed-tensors called it in 2024.
KEYS = ("quantization_config", "compression_config")
# Files that say the same again; they go where the weights are quantized no more.
QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
MAX_CONFIG = 4 << 20


@dataclass(frozen=True)
class Quantization:
    """`values`: the quantization_config; `dtype`: the code of the dtype that the model was made in; `beside`: what the
    files say that some tools write by itself, where config.json says it too.
    """

    values: Mapping[str, object] = field(default_factory=dict)
    dtype: str | None = None
    beside: tuple[Mapping[str, object], ...] = ()
    # Is there a config.json that nobody can read?
    unreadable: bool = False

    def said(self, *names: str) -> set[str]:
        """The words that any of them has under any of these names, in lower case."""
        found = (values.get(name) for values in (self.values, *self.beside) for name in names)
        return {value.lower() for value in found if isinstance(value, str)}

    def number(self, *names: str) -> int | None:
        """The first whole number under one of these names."""
        found = (values.get(name) for values in (self.values, *self.beside) for name in names)
        return next((value for value in found if isinstance(value, int) and not isinstance(value, bool)), None)

    @property
    def method(self) -> str | None:
        value = self.values.get("quant_method")
        return value if isinstance(value, str) else None

    @functools.cached_property
    def groups(self) -> ConfigGroups:
        """Which modules were quantized how (compressed-tensors)."""
        return ConfigGroups(self.values)

    @functools.cached_property
    def transforms(self) -> bool:
        """Are the weights of layers that turn what they are given, or give, by other code (compressed-tensors)?"""
        return transforms_activations(self.values)

    @property
    def block(self) -> tuple[int, int] | None:
        """Rows and columns of a block of 8-bit floats."""
        return block_of(self.values.get("weight_block_size"))


def read_quantization(folder: Path) -> Quantization:
    """Of a checkpoint's folder; nothing where there is no configuration, or none that can be read."""
    config = _json(folder / CONFIG)
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    own = [v for part in (config, inner) for key in KEYS if isinstance(v := part.get(key), dict)][:1]
    values, *others = [*own, *(_inner(found) for name in QUANTIZATION_FILES if (found := _json(folder / name)))] or [{}]
    # What DeepSeek V4 says beside it, V4.1 says in it.
    values = {**{key: config[key] for key in ("expert_dtype",) if key in config and values}, **values}
    name = next((n for part in (config, inner) for key in ("dtype", "torch_dtype") if (n := part.get(key))), None)
    code = CODE_OF_TORCH.get(name.removeprefix("torch.")) if isinstance(name, str) else None
    return Quantization(values, code if code in EDITABLE else None, tuple(others), is_unreadable(folder))


def quantization_files(folder: Path) -> list[str]:
    """The names of the files there that say that the weights are quantized."""
    config = _json(folder / CONFIG)
    text = config.get("text_config")
    parts = (config, text if isinstance(text, dict) else {})
    said = any(isinstance(part.get(key), dict) for part in parts for key in KEYS)
    return [*([CONFIG] if said else []), *(name for name in QUANTIZATION_FILES if _json(folder / name))]


def is_unreadable(folder: Path) -> bool:
    """Is there a config.json that is no JSON object, or too long for one?"""
    return os.path.isfile(folder / CONFIG) and _object(folder / CONFIG) is None


def _inner(config: Mapping[str, object]) -> Mapping[str, object]:
    nested = config.get("quantization")
    return nested if isinstance(nested, dict) else config


def unquantized_config(folder: Path, dtype: str) -> bytes | None:
    """config.json of a model whose weights are in this dtype now; None where there is none that can be read."""
    config = _json(folder / CONFIG)
    if not config:
        return None
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for key in KEYS:
            part.pop(key, None)
        for key in ("dtype", "torch_dtype"):
            if key in part:
                part[key] = dtype
    if not {"dtype", "torch_dtype"} & config.keys():
        config["dtype" if isinstance(inner, dict) and "dtype" in inner else "torch_dtype"] = dtype
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _json(path: Path) -> dict[str, object]:
    return _object(path) or {}


def _object(path: Path) -> dict[str, object] | None:
    """What a file says; None where it is not there, or no JSON object."""
    try:
        if not os.path.isfile(path) or path.stat().st_size > MAX_CONFIG:
            return None
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
