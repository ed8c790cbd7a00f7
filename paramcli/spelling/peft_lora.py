"""LORA of PEFT: LoRA, rsLoRA, DoRA.

    MODULE.lora_A.weight, .lora_B.weight               W + s B A
    MODULE.lora_magnitude_vector                       DoRA
    MODULE.lora_embedding_A, .lora_embedding_B         W + s (B A)^T
    MODULE.lora_B.bias                                 added to MODULE.bias, times s

s = alpha / r, or alpha / sqrt(r) with `use_rslora`; r and alpha of a module are those of the first pattern that matches
the end of its path. Source: peft 0.21, tuners/lora.
"""

from __future__ import annotations

import math

from ..checkpoint.source import TensorInfo
from ..errors import TENSOR, InputRefused
from ..text import printable, shape_text
from ..view import IDENTITY, View
from .adapter import TRANSPOSE, Change, lora_item, matrix_of, not_of_shape
from .forms import Group
from .peft_config import Config
from .peft_family import Family, Module, matrix_view

# Where the base was changed before training began, what the adapter adds is not to the base that was published.
MOVED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# What begins as a change of nothing, or of something, and leaves the base as it is.
KEPT_BASE = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
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


def _check(config: Config) -> None:
    start = str(config.values.get("init_lora_weights", True)).lower()
    if any(start == moved or start.startswith(f"{moved}_") for moved in MOVED_BASE):
        raise config.refusal(
            f"the base was changed when training began (init_lora_weights is {printable(start)}): added to the "
            "published base it gives another model",
            hint="convert it with peft's path_initial_model_for_weight_conversion first",
        )
    if start not in KEPT_BASE:
        raise config.refusal(
            f"init_lora_weights is {printable(start)}, and it is not known whether that changed the base",
            hint=f"known are {', '.join(KEPT_BASE)}",
        )
    for name in OTHER_MATHS:
        if config.is_set(name):
            raise config.refusal(f"{name} is set, and what that changes is in no weight")
    if config.is_set("layer_replication"):
        raise config.refusal("layer_replication is set: the base it was trained on has other layers")


def _changes(module: Module, config: Config) -> list[Change]:
    embedding = "lora_embedding_A" in module.keys or "lora_embedding_B" in module.keys
    first, second = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    module.require(first, second)
    A, B = module.info(first), module.info(second)
    if not A.shape or len(B.shape) < 2 or B.shape[1] != A.shape[0] or not A.shape[0]:
        raise module.refusal(second, f"which takes no A of {shape_text(A.shape)}")
    rank = A.shape[0]
    scale = config.scale(module.path, rank)
    magnitude = "lora_magnitude_vector" in module.keys
    for flag, part in (("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_B.bias")):
        if config.is_set(flag) and part not in module.keys:
            raise module.refusal(second, f"and {flag} of the configuration wants a {part} beside it, which is missing")
        if part in module.keys and not config.is_set(flag):
            raise module.refusal(part, f"and {flag} of the configuration is not set, without which there is none")
    roles = {"lora_A": module.keys[first], "lora_B": module.keys[second]}
    if magnitude:
        roles["magnitude"] = module.keys["lora_magnitude_vector"]
        if not B.shape[0] == math.prod(shape := module.shape("lora_magnitude_vector")) == max(shape, default=1):
            raise module.refusal("lora_magnitude_vector", f"and the outputs of lora_B are {B.shape[0]}")
    item = lora_item("dora" if magnitude else "lora", rank, scale)

    def reads(group: Group) -> tuple[str, View]:
        if magnitude:
            require_first(group)
        return item, _view(group, A, B, config, embedding)

    changes = [Change(f"{module.path}.weight", roles, reads, (f"{module.path}.in_proj_weight",))]
    if "lora_B.bias" in module.keys:
        changes.append(_of_bias(module, scale))
    return changes


def require_first(group: Group) -> None:
    """InputRefused where an adapter is on the weight already: PEFT divides by the lengths of the weight without it."""
    links = () if group.is_plain or group.chain is None else group.chain.links
    if any(link.entry.family == "adapter" and not link.entry.name.startswith("saved") for link in links):
        raise InputRefused(
            f"{TENSOR} is {group.chain} before a DoRA, and PEFT takes the lengths of the weight without that: this is "
            "not done here yet",
            hint="merge the adapters one after another, which takes the lengths of the sum",
            tensor=group.tensor,
        )


def _of_bias(module: Module, scale: float) -> Change:
    from ..spec import value_text

    bias = module.info("lora_B.bias")

    def shifted(group: Group) -> tuple[str, View]:
        if bias.shape != group.shape:
            raise not_of_shape(group, "change of it is", [bias.shape])
        return f"shifted:scale={value_text(scale)}", IDENTITY

    return Change(f"{module.path}.bias", {"diff": module.keys["lora_B.bias"]}, shifted)


def _view(group: Group, A: TensorInfo, B: TensorInfo, config: Config, embedding: bool) -> View:
    out, inputs = B.shape[0], math.prod(A.shape[1:])
    if math.prod(B.shape[2:]) != 1:
        raise not_of_shape(group, "B is", [B.shape])
    if len(group.shape) != 2:
        if matrix_of(group.shape) != (out, inputs) or group.shape[1:] != A.shape[1:]:
            raise not_of_shape(group, "A and B are", [A.shape, B.shape])
        return IDENTITY
    if len(A.shape) != 2:
        raise not_of_shape(group, "A and B are", [A.shape, B.shape])
    if embedding:
        if group.shape != (inputs, out):
            raise not_of_shape(group, "A and B are", [A.shape, B.shape])
        return TRANSPOSE
    return matrix_view(group, (out, inputs), config, "A and B are", [A.shape, B.shape])


LORA = Family(
    "LORA",
    lambda config: "DoRA" if config.is_set("use_dora") else "LoRA",
    ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    _changes,
    _check,
)
