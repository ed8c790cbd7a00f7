"""PEFT's adapters: a folder of `adapter_config.json` and `adapter_model.safetensors` (or .bin).

    base_model.model.MODULE.lora_A.weight, .lora_B.weight      W + s B A            LoRA, rsLoRA
    ... .lora_magnitude_vector                                 DoRA
    ... .lora_embedding_A, .lora_embedding_B                   W + s (B A)^T
    ... .lora_B.bias                                           added to MODULE.bias, times s
    MODULE.weight, MODULE.bias, MODULE.base_layer.bias         put in the place of the base's

s = alpha / r, or alpha / sqrt(r) with `use_rslora`; r and alpha of a module are those of the first pattern that matches
the end of its path. Source: peft 0.21, tuners/lora and utils/save_and_load.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoint.read.open import open_checkpoint
from ..checkpoint.source import Source, TensorInfo
from ..errors import TENSOR, InputRefused
from ..text import printable, shape_text
from ..view import IDENTITY, View
from .adapter import TRANSPOSE, Adapter, Change, lora_item, matrix_of, not_of_shape
from .forms import Group

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
MAX_CONFIG = 1 << 20
# Where the base was changed before training began, what the adapter adds is not to the base that was published.
MOVED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Settings under which the change depends on the input, or is computed another way.
OTHER_MATHS = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
_KEY = re.compile(
    r"(?P<module>.+)\.(?P<what>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.default)?(?:\.(?P<leaf>weight|bias))?",
    re.S,
)
# What of a regular expression is taken from a file: names, dots, a digit or anything in one place, and choices.
_PATTERN = re.compile(r"(?:[\w.^$|-]|\\[.d]\+?|\.\*|\[0-9\]\+?)*", re.ASCII)


def is_peft(path: Path) -> bool:
    return path.is_dir() and (path / CONFIG).exists()


def open_peft(path: Path, strength: float = 1.0) -> Adapter:
    """An adapter's folder, or the file of weights in it. InputRefused for what is none, or cannot be merged."""
    folder = path if path.is_dir() else path.parent
    weights = next((folder / name for name in WEIGHTS if (folder / name).exists()), None)
    if weights is None:
        raise InputRefused(
            f"no {WEIGHTS[0]} is in the folder", path=folder, hint="a folder that save_pretrained of a PEFT model wrote"
        )
    config = Config.read(folder / CONFIG, strength)
    source = open_checkpoint(weights)
    try:
        changes, copies = _changes(source, config)
        return Adapter(source, config.title, changes, copies=copies)
    except BaseException:
        source.close()
        raise


@dataclass
class Config:
    """What the configuration says of the change."""

    path: Path
    values: Mapping[str, object]
    strength: float
    # Module path -> is its weight stored (in, out), by the tensors that are not square.
    seen: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, strength: float) -> Config:
        try:
            data = path.read_bytes() if path.stat().st_size <= MAX_CONFIG else b""
            values = json.loads(data.decode("utf-8"))
        except FileNotFoundError:
            raise InputRefused(
                "an adapter's scale is in its adapter_config.json, and there is none", path=path.parent
            ) from None
        except (OSError, ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise InputRefused("it is no JSON object of an adapter", path=path, of_file=True)
        config = cls(path, values, strength)
        config._check()
        return config

    def _refuse(self, why: str, hint: str | None = None) -> InputRefused:
        return InputRefused(why, path=self.path, of_file=True, hint=hint)

    def _check(self) -> None:
        kind = self.values.get("peft_type")
        if kind != "LORA":
            raise self._refuse(
                f"its peft_type is {printable(str(kind))}", hint="what is merged is LORA (with rsLoRA and DoRA)"
            )
        start = str(self.values.get("init_lora_weights", True)).lower()
        if any(start == moved or start.startswith(f"{moved}_") for moved in MOVED_BASE):
            raise self._refuse(
                f"the base was changed when training began (init_lora_weights is {printable(start)}): added to the "
                "published base it gives another model",
                hint="convert it with peft's path_initial_model_for_weight_conversion first",
            )
        for name in OTHER_MATHS:
            if self.values.get(name):
                raise self._refuse(f"{name} is set, and what that changes is in no weight")
        if self.values.get("layer_replication"):
            raise self._refuse("layer_replication is set: the base it was trained on has other layers")
        if self.values.get("target_parameters"):
            raise self._refuse(
                "target_parameters is set: adapters of single parameters (fused experts) are not read yet"
            )
        if self.values.get("trainable_token_indices"):
            raise self._refuse("trainable_token_indices is set: single rows are not read yet")

    @property
    def title(self) -> str:
        return "PEFT " + ("DoRA" if self.values.get("use_dora") else "LoRA")

    @property
    def fan_in_fan_out(self) -> bool:
        return self.values.get("fan_in_fan_out") is True

    def number(self, name: str, patterns: str, module: str) -> float:
        """r or lora_alpha of a module."""
        value = self.values.get(name)
        found = self.values.get(patterns) or {}
        if not isinstance(found, dict):
            raise self._refuse(f"{patterns} is no object of patterns")
        for pattern, of_pattern in found.items():
            # So few repetitions that no text takes long to match.
            if not _PATTERN.fullmatch(pattern) or len(pattern) > 512 or sum(map(pattern.count, "*+")) > 3:
                raise self._refuse(f"{patterns} has a pattern that paramcli does not match: {printable(pattern, 80)}")
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", module):
                value = of_pattern
                break
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self._refuse(f"{name} of {printable(module)} is no number")
        return value

    def scale(self, module: str, rank: int) -> float:
        """s of a module, whose tensors have this rank; InputRefused where the configuration has another."""
        said = self.number("r", "rank_pattern", module)
        if said != rank:
            raise self._refuse(f"the rank of {printable(module)} is {said:g} here, and {rank} in the weights")
        alpha = self.number("lora_alpha", "alpha_pattern", module)
        return self.strength * alpha / (math.sqrt(rank) if self.values.get("use_rslora") else rank)


def _changes(source: Source, config: Config) -> tuple[tuple[Change, ...], dict[str, str]]:
    """(the changes in order, key -> the base's tensor that it is a copy of)"""
    modules: dict[str, dict[str, str]] = {}
    whole: list[Change] = []
    copies: dict[str, str] = {}
    for key in source.tensors:
        plain = key.removeprefix("base_model.model.")
        if found := _KEY.fullmatch(plain):
            part = found["what"] + (".bias" if found["leaf"] == "bias" else "")
            modules.setdefault(found["module"], {})[part] = key
        elif plain.endswith(".base_layer.weight"):
            # An embedding that is adapted is saved beside its change, as it was before.
            copies[key] = _base_name(plain)
        else:
            whole.append(Change(_base_name(plain), {"saved": key}, _saved(source.tensors[key])))
    # What is put in a weight's place is there before a change is added to it. Square ones come last, as the others tell
    # how the model stores its weights.
    changes = [(keys, _of_module(source, config, module, keys)) for module, keys in modules.items()]
    changes.sort(key=lambda change: _is_square(source, change[0]))
    return (*whole, *(change for _, of_module in changes for change in of_module)), copies


def _is_square(source: Source, keys: Mapping[str, str]) -> bool:
    sizes = [math.prod(source.tensors[key].shape) for part, key in keys.items() if part in ("lora_A", "lora_B")]
    return len(set(sizes)) == 1


def _base_name(name: str) -> str:
    """The name in the base of a module or tensor that a PEFT model has wrapped."""
    kept = [part for part in name.split(".") if part not in ("base_layer", "modules_to_save")]
    return ".".join(kept)


def _of_module(source: Source, config: Config, path: str, keys: Mapping[str, str]) -> list[Change]:
    module, infos = _base_name(path), {part: source.tensors[key] for part, key in keys.items()}
    embedding = "lora_embedding_A" in keys or "lora_embedding_B" in keys
    first, second = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    lacking = [part for part in (first, second) if part not in keys]
    if lacking:
        raise InputRefused(
            f"{TENSOR} is half a change: {printable(path)}.{lacking[0]} is missing",
            tensor=next(iter(keys.values())),
            path=source.path,
            hint="the file is incomplete",
        )
    A, B = infos[first], infos[second]
    if not A.shape or len(B.shape) < 2 or B.shape[1] != A.shape[0] or not A.shape[0]:
        raise InputRefused(
            f"{TENSOR} is {shape_text(B.shape)}, which takes no A of {shape_text(A.shape)}",
            tensor=keys[second],
            path=source.path,
        )
    rank = A.shape[0]
    scale = config.scale(module, rank)
    magnitude = "lora_magnitude_vector" in keys
    roles = {"lora_A": keys[first], "lora_B": keys[second]}
    if magnitude:
        roles["magnitude"] = keys["lora_magnitude_vector"]
    item = lora_item("dora" if magnitude else "lora", rank, scale)

    def reads(group: Group) -> tuple[str, View]:
        return item, TRANSPOSE if _is_transposed(group, A, B, config, embedding) else IDENTITY

    changes = [Change(f"{module}.weight", roles, reads, (f"{module}.in_proj_weight",))]
    if "lora_B.bias" in keys:
        from ..spec import value_text

        bias = infos["lora_B.bias"]

        def shifted(group: Group) -> tuple[str, View]:
            if bias.shape != group.shape:
                raise not_of_shape(group, "change of it is", [bias.shape])
            return f"shifted:scale={value_text(scale)}", IDENTITY

        changes.append(Change(f"{module}.bias", {"diff": keys["lora_B.bias"]}, shifted))
    return changes


def _is_transposed(group: Group, A: TensorInfo, B: TensorInfo, config: Config, embedding: bool) -> bool:
    """Is the weight stored (in, out)? By its shape; of a square one the configuration tells, where nothing that is not
    square contradicts it.
    """
    out, inputs = B.shape[0], math.prod(A.shape[1:])
    if math.prod(B.shape[2:]) != 1:
        raise not_of_shape(group, "B is", [B.shape])
    if len(group.shape) != 2:
        if matrix_of(group.shape) != (out, inputs) or group.shape[1:] != A.shape[1:]:
            raise not_of_shape(group, "A and B are", [A.shape, B.shape])
        return False
    straight, across = group.shape == (out, inputs), group.shape == (inputs, out)
    if embedding or straight != across:
        if (embedding and not across) or not (straight or across):
            raise not_of_shape(group, "A and B are", [A.shape, B.shape])
        if not embedding:
            config.seen[group.tensor] = across
        return across
    if not straight:
        raise not_of_shape(group, "A and B are", [A.shape, B.shape])
    if any(seen != config.fan_in_fan_out for seen in config.seen.values()):
        other = next(name for name, seen in config.seen.items() if seen != config.fan_in_fan_out)
        raise InputRefused(
            f"{TENSOR} is square, and the configuration's fan_in_fan_out is wrong for {printable(other)}: nothing "
            "tells whether it is stored (out, in) or (in, out)",
            tensor=group.tensor,
            path=config.path,
        )
    return config.fan_in_fan_out


def _saved(info: TensorInfo) -> Callable[[Group], tuple[str, View]]:
    def reads(group: Group) -> tuple[str, View]:
        if info.shape != group.shape:
            raise not_of_shape(group, "own is", [info.shape])
        return "saved", IDENTITY

    return reads
