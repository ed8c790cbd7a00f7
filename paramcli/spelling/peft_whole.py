"""What PEFT stores whole, in the place of the base's: tensors, and single rows of embeddings.

    MODULE.weight, .bias, of wrapped modules       the tensor
    MODULE.trainable_tokens_delta                  rows, in the order of the configuration's indices

Source: peft 0.21, utils/other, tuners/ln_tuning, tuners/trainable_tokens.
"""

from __future__ import annotations

import struct

from ..checkpoint.source import Storage, TensorInfo
from ..text import count_text, printable
from ..view import IDENTITY, View
from .adapter import Change, not_of_shape
from .forms import Group
from .peft_config import Config
from .peft_family import Family, Module, require_whole_strength

# Where PEFT wraps a module, the names of what it puts around it.
WRAPPERS = ("base_layer", "modules_to_save", "ln_tuning_layers", "token_adapter")
ROWS = "trainable_tokens_delta"


def base_name(name: str) -> str:
    """The name in the base of a module or tensor that a PEFT model has wrapped."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def whole(info: TensorInfo, name: str) -> Change:
    def reads(group: Group) -> tuple[str, View]:
        if info.shape != group.shape:
            raise not_of_shape(group, "own is", [info.shape])
        return "saved", IDENTITY

    return Change(base_name(name), {"saved": info.name}, reads)


def rows(module: Module, config: Config) -> Change:
    """Rows of the module's weight, replaced."""
    shape, indices = module.shape(ROWS), _indices(module.path, config)
    if len(shape) < 2 or shape[0] != len(indices):
        raise module.refusal(ROWS, f"and the configuration's indices are of {count_text(len(indices), 'row')}")
    bad = next((index for index in indices if type(index) is not int or not 0 <= index < 1 << 40), None)
    if bad is not None or len(set(indices)) != len(indices):
        raise config.refusal(f"the indices of tokens of {printable(module.path)} are no distinct whole numbers from 0")

    def reads(group: Group) -> tuple[str, View]:
        if group.shape[1:] != shape[1:] or max(indices) >= group.shape[0]:
            raise not_of_shape(group, f"rows, up to number {max(indices)}, are", [shape])
        return f"saved_rows:count={len(indices)}", IDENTITY

    def which(group: Group) -> TensorInfo:
        """Which of the rows is in the place of each row of the weight; -1: none."""
        count = group.shape[0]

        def numbers(_: object) -> bytearray:
            data = bytearray(b"\xff" * (8 * count))
            for number, index in enumerate(indices):
                struct.pack_into("<q", data, 8 * index, number)
            return data

        name = f"{module.path}.token_indices"
        return TensorInfo(name, "I64", (count,), Storage(0, 0, 8 * count, name, decode=numbers))

    return Change(f"{module.path}.weight", {"saved_rows": module.keys[ROWS]}, reads, made={"which": which})


def _indices(path: str, config: Config) -> list[int]:
    """The rows' numbers: one list, or one for each name that ends a module's path."""
    said = config.values.get("token_indices" if config.peft_type == "TRAINABLE_TOKENS" else "trainable_token_indices")
    if isinstance(said, dict):
        fitting = [value for name, value in said.items() if path == name or path.endswith(f".{name}")]
        said = fitting[0] if fitting and all(value == fitting[0] for value in fitting) else None
    if not isinstance(said, list) or not said:
        raise config.refusal(f"it has no indices of tokens for {printable(path)}, whose rows are in the weights")
    return said


def _no_changes(module: Module, config: Config) -> list[Change]:
    return []


LN_TUNING = Family("LN_TUNING", "LayerNorm tuning", (), _no_changes, require_whole_strength)
TRAINABLE_TOKENS = Family("TRAINABLE_TOKENS", "trainable tokens", (), _no_changes, require_whole_strength)
