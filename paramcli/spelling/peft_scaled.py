"""What PEFT trains to scale a weight, or to scale a change of it.

    IA3      MODULE.ia3_l                              diag(l) W and the bias times l, or W diag(l)
    ADALORA  MODULE.lora_A, .lora_B, .lora_E           W + alpha / (init_r + 1e-5) B diag(E) A
    VERA     base_model.vera_A, .vera_B,
             MODULE.vera_lambda_d, .vera_lambda_b      W + diag(b) B diag(d) A, the first rows of B and columns of A

Source: peft 0.21, tuners/ia3, tuners/adalora, tuners/vera.
"""

from __future__ import annotations

import math

from ..spec import value_text
from ..text import printable, shape_text
from ..view import IDENTITY, View
from .adapter import Change, lora_item, matrix_of, not_of_shape
from .forms import Group
from .peft_config import AGAIN, Config
from .peft_family import Family, Module, matrix_view, require_whole_strength


def _ia3_changes(module: Module, config: Config) -> list[Change]:
    key, shape, count = module.keys["ia3_l"], module.shape("ia3_l"), math.prod(module.shape("ia3_l"))
    of_inputs = config.names_module("feedforward_modules", module.path)
    # A linear layer's are a row or a column, a convolution's both ways a row.
    as_inputs = of_inputs if len(shape) != 2 or count == 1 else shape[0] == 1
    if as_inputs != of_inputs or count != max(shape, default=0):
        raise module.refusal(
            "ia3_l", f"and feedforward_modules of the configuration says it is of {'in' if of_inputs else 'out'}puts"
        )
    item = "peft.ia3:axis=in" if of_inputs else "peft.ia3"

    def scaled(group: Group) -> tuple[str, View]:
        if len(group.shape) == 2 and len(shape) == 2 and count in group.shape:
            mine = 1 if of_inputs else 0
            other = group.shape[1 - mine] if group.shape[mine] == count else group.shape[mine]
            sides = (other, count) if of_inputs else (count, other)
            return item, matrix_view(group, sides, config, "factors are", [shape])
        if len(group.shape) != len(shape) or len(shape) < 3:
            raise not_of_shape(group, "factors are", [shape])
        groups, odd = divmod(count, group.shape[1] or 1) if of_inputs else (1, count != group.shape[0])
        if odd or not groups or group.shape[0] % groups:
            raise not_of_shape(group, "factors are", [shape])
        return f"{item}:groups={groups}" if groups > 1 else item, IDENTITY

    def scaled_bias(group: Group) -> tuple[str, View]:
        if group.shape != (count,):
            raise not_of_shape(group, "factors are", [shape])
        return item, IDENTITY

    changes = [Change(f"{module.path}.weight", {"ia3_l": key}, scaled)]
    if not of_inputs:
        changes.append(Change(f"{module.path}.bias", {"ia3_l": key}, scaled_bias, optional=True))
    return changes


def _adalora_changes(module: Module, config: Config) -> list[Change]:
    module.require("lora_A", "lora_B", "lora_E")
    A, B, E = (module.shape(part) for part in ("lora_A", "lora_B", "lora_E"))
    if len(A) != 2 or len(B) != 2 or not A[0] == B[1] or (A[0], 1) != E:
        raise module.refusal("lora_A", f"which takes no B of {shape_text(B)} and E of {shape_text(E)}")
    rank, start = A[0], config.number("init_r")
    said = config.mapping("rank_pattern").get(f"{module.path}.lora_E")
    wanted = sum(kept is True for kept in said) if isinstance(said, list) else start
    if wanted != rank:
        why = f"the rank of {printable(module.path)} is {wanted:g} here, and {rank} in the weights"
        raise config.refusal(why, hint=AGAIN)
    above = config.number("lora_alpha")
    # What was pruned from the rank that it began with does not change the scale.
    scale = config.strength * (above if above > 0 else rank) / (start + 1e-5)

    def reads(group: Group) -> tuple[str, View]:
        item = lora_item("adalora", rank, scale)
        if len(group.shape) == 2:
            return item, matrix_view(group, (B[0], A[1]), config, "A and B are", [A, B])
        if matrix_of(group.shape) != (B[0], A[1]):
            raise not_of_shape(group, "A and B are", [A, B])
        return item, IDENTITY

    roles = {part: module.keys[part] for part in ("lora_A", "lora_B", "lora_E")}
    return [Change(f"{module.path}.weight", roles, reads)] if rank else []


def _vera_check(config: Config) -> None:
    if config.values.get("save_projection") is False:
        raise config.refusal(
            "save_projection is false: A and B are drawn anew from projection_prng_key wherever it is loaded, and are "
            "not in the file",
            hint="load it with PEFT where it was trained, and save it with save_projection=True",
        )


def _vera_changes(module: Module, config: Config) -> list[Change]:
    module.require("vera_lambda_d", "vera_lambda_b")
    d, b = module.shape("vera_lambda_d"), module.shape("vera_lambda_b")
    for part in ("vera_A", "vera_B"):
        if part not in module.shared:
            raise module.refusal("vera_lambda_d", f"and the projection {part} that all modules share is missing")
    A, B = (module.source.tensors[module.shared[part]].shape for part in ("vera_A", "vera_B"))
    if len(d) != 1 or len(b) != 1 or len(A) != 2 or len(B) != 2 or not d[0] == A[0] == B[1] or not d[0]:
        raise module.refusal("vera_lambda_d", f"which takes no A of {shape_text(A)} and B of {shape_text(B)}")
    config.rank(module.path, d[0])

    def reads(group: Group) -> tuple[str, View]:
        if len(group.shape) != 2 or b[0] not in group.shape:
            raise not_of_shape(group, "factors are", [b])
        sides = (b[0], group.shape[1] if group.shape[0] == b[0] else group.shape[0])
        view = matrix_view(group, sides, config, "factors are", [b])
        if sides[1] > A[1] or sides[0] > B[0]:
            raise not_of_shape(group, "A and B are", [A, B])
        item = f"vera:rank={d[0]}"
        item += f":inputs={A[1]}" if A[1] != sides[1] else ""
        item += f":outputs={B[0]}" if B[0] != sides[0] else ""
        return item + (f":scale={value_text(config.strength)}" if config.strength != 1 else ""), view

    roles = {part: module.keys[part] for part in ("vera_lambda_d", "vera_lambda_b")}
    return [Change(f"{module.path}.weight", {**roles, **module.shared}, reads)]


IA3 = Family("IA3", "(IA)^3", ("ia3_l",), _ia3_changes, require_whole_strength)
ADALORA = Family("ADALORA", "AdaLoRA", ("lora_A", "lora_B", "lora_E"), _adalora_changes)
VERA = Family(
    "VERA",
    "VeRA",
    ("vera_lambda_d", "vera_lambda_b"),
    _vera_changes,
    _vera_check,
    shared=("vera_A", "vera_B"),
)
