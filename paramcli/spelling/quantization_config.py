"""What the configuration beside a checkpoint says of how it was quantized: `quantization_config` of config.json, or of
the files that some tools write by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..dtypes import CODE_OF_TORCH, EDITABLE

CONFIG = "config.json"
# Files that say the same again; they go where the weights are quantized no more.
OTHERS = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
MAX_CONFIG = 4 << 20


@dataclass(frozen=True)
class Quantization:
    """`values`: the quantization_config; `dtype`: the code of the dtype that the model was made in."""

    values: Mapping[str, object] = field(default_factory=dict)
    dtype: str | None = None

    @property
    def method(self) -> str | None:
        value = self.values.get("quant_method")
        return value if isinstance(value, str) else None

    @property
    def block(self) -> tuple[int, int] | None:
        """Rows and columns of a block of 8-bit floats."""
        value = self.values.get("weight_block_size")
        if isinstance(value, list) and len(value) == 2 and all(_is_size(side) for side in value):
            return value[0], value[1]
        structures = {structure for weights in self.weights() if (structure := _structure(weights)) is not None}
        return structures.pop() if len(structures) == 1 else None

    def weights(self) -> list[Mapping[str, object]]:
        """The settings of weights in `config_groups` (compressed-tensors)."""
        groups = self.values.get("config_groups")
        found = [g.get("weights") for g in groups.values() if isinstance(g, dict)] if isinstance(groups, dict) else []
        return [weights for weights in found if isinstance(weights, dict)]


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 1 << 20


def _structure(weights: Mapping[str, object]) -> tuple[int, int] | None:
    value = weights.get("block_structure")
    if isinstance(value, str):
        value = [int(side) if side.isdigit() and len(side) < 8 else None for side in value.split("x")]
    if isinstance(value, list) and len(value) == 2 and all(_is_size(side) for side in value):
        return value[0], value[1]
    return None


def read_quantization(folder: Path) -> Quantization:
    """Of a checkpoint's folder; nothing where there is no configuration, or none that can be read."""
    config = _json(folder / CONFIG)
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}
    values = next((v for part in (config, inner) if isinstance(v := part.get("quantization_config"), dict)), None)
    if values is None:
        values = next((found for name in OTHERS if (found := _json(folder / name))), {})
        nested = values.get("quantization")
        values = nested if isinstance(nested, dict) else values
    name = next((n for part in (config, inner) for key in ("dtype", "torch_dtype") if (n := part.get(key))), None)
    code = CODE_OF_TORCH.get(name.removeprefix("torch.")) if isinstance(name, str) else None
    return Quantization(values, code if code in EDITABLE else None)


def _json(path: Path) -> dict[str, object]:
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
