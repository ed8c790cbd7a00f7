"""Other changes that PEFT trains.

    DELORA   MODULE.delora_A, .delora_B, .delora_lambda, .delora_w_norm
    GRALORA  MODULE.gralora_A, .gralora_B, with hybrid_r .gralora_A_general.weight, .gralora_B_general.weight
    C3A      MODULE.c3a_kernel
    HIRA     MODULE.hira_A, .hira_B; of an embedding .hira_embedding_A, .hira_embedding_B
    VBLORA   base_model.vblora_vector_bank, MODULE.vblora_logits_A, .vblora_logits_B
    SHIRA    MODULE.shira_weight, .shira_indices
    MISS     MODULE.miss_block
    HRA      MODULE.hra_u
    ROAD     MODULE.road_theta, .road_alpha; of outputs, so the bias turns along
    BEFT     MODULE.beft_bias, added to the bias

Their laws are on the cards of the entries of the same names. Source: peft 0.21, tuners.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..spec import value_text
from ..text import shape_text
from ..view import IDENTITY, View
from .adapter import TRANSPOSE, Change, matrix_of, not_of_shape
from .forms import Group
from .peft_config import Config
from .peft_family import Family, Module, matrix_view, require_whole_strength


def _change(module: Module, roles: Mapping[str, str], item: str, view: Callable[[Group], View]) -> Change:
    return Change(f"{module.path}.weight", roles, lambda group: (item, view(group)))


def _scaled(item: str, scale: float) -> str:
    return item if scale == 1 else f"{item}:scale={value_text(scale)}"


def _linear(module: Module, out: int, inputs: int, *shapes: tuple[int, ...]) -> Callable[[Group], View]:
    """How a change of an (out, in) weight sees it: as it is stored."""

    def view(group: Group) -> View:
        if group.shape != (out, inputs):
            raise not_of_shape(group, "own tensors are", shapes)
        return IDENTITY

    return view


def _either(config: Config, out: int, inputs: int, *shapes: tuple[int, ...]) -> Callable[[Group], View]:
    """The same where a Conv1D may store it (in, out)."""
    return lambda group: matrix_view(group, (out, inputs), config, "own tensors are", shapes)


def _delora(module: Module, config: Config) -> list[Change]:
    parts = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")
    module.require(*parts)
    A, B, length, norm = (module.shape(part) for part in parts)
    if len(A) != 2 or len(B) != 2 or (A[0], 1, A[1]) != (B[1], math.prod(length), math.prod(norm)) or not A[0]:
        raise module.refusal("delora_A", f"which takes no B of {shape_text(B)} and lengths of {shape_text(norm)}")
    config.rank(module.path, A[0])
    item = _scaled(f"delora:rank={A[0]}", config.strength)
    return [_change(module, module.keys, item, _linear(module, B[0], A[1], A, B))]


def _gralora(module: Module, config: Config) -> list[Change]:
    module.require("gralora_A", "gralora_B")
    A, B = module.shape("gralora_A"), module.shape("gralora_B")
    general = [part for part in module.keys if part.endswith("_general")]
    if len(A) != 3 or len(B) != 3 or A[0] != B[0] or A[2] != B[1] or not A[0] or not A[2] or A[2] % A[0]:
        raise module.refusal("gralora_A", f"which takes no B of {shape_text(B)}")
    hybrid = config.whole("hybrid_r", 0)
    if len(general) != (2 if hybrid else 0):
        raise module.refusal("gralora_A", f"and hybrid_r of the configuration is {hybrid}")
    out, inputs = B[0] * B[2], A[0] * A[1]
    if hybrid and {part: module.shape(part) for part in general} != {
        "gralora_A_general": (hybrid, inputs),
        "gralora_B_general": (out, hybrid),
    }:
        raise module.refusal(general[0], f"and hybrid_r of the configuration is {hybrid}")
    config.rank(module.path, A[2])
    if config.whole("gralora_k", 2) != A[0]:
        raise module.refusal("gralora_A", f"and gralora_k of the configuration is {config.whole('gralora_k', 2)}")
    item = f"gralora:rank={A[2]}:blocks={A[0]}" + (f":hybrid={hybrid}" if hybrid else "")
    scale = config.strength * config.number("alpha") / (A[2] + hybrid)
    return [_change(module, module.keys, _scaled(item, scale), _either(config, out, inputs, A, B))]


def _c3a(module: Module, config: Config) -> list[Change]:
    shape = module.shape("c3a_kernel")
    if len(shape) != 3 or not all(shape):
        raise module.refusal("c3a_kernel", "and (blocks of outputs, blocks of inputs, size) is wanted")
    item = _scaled(f"c3a:size={shape[2]}", config.strength)
    view = _linear(module, shape[0] * shape[2], shape[1] * shape[2], shape)
    return [_change(module, module.keys, item, view)]


def _hira(module: Module, config: Config) -> list[Change]:
    embedding = "hira_embedding_A" in module.keys or "hira_embedding_B" in module.keys
    first, second = ("hira_embedding_A", "hira_embedding_B") if embedding else ("hira_A", "hira_B")
    module.require(first, second)
    A, B = module.shape(first), module.shape(second)
    if len(A) < 2 or len(B) < 2 or A[0] != B[1] or not A[0] or math.prod(B[2:]) != 1:
        raise module.refusal(second, f"which takes no A of {shape_text(A)}")
    config.rank(module.path, A[0])

    def view(group: Group) -> View:
        if len(A) == 2 and len(group.shape) == 2 and not embedding:
            return matrix_view(group, (B[0], A[1]), config, "A and B are", [A, B])
        if embedding and len(A) == 2 and group.shape == (A[1], B[0]):
            return TRANSPOSE
        if embedding or len(A) == 2 or group.shape[1:] != A[1:] or matrix_of(group.shape) != (B[0], math.prod(A[1:])):
            raise not_of_shape(group, "A and B are", [A, B])
        return IDENTITY

    roles = {"hira_A": module.keys[first], "hira_B": module.keys[second]}
    return [_change(module, roles, _scaled(f"hira:rank={A[0]}", config.strength), view)]


def _vblora(module: Module, config: Config) -> list[Change]:
    if any("_topk_" in part for part in module.keys):
        raise config.refusal(
            "save_only_topk_weights is set: logits that were left out are not read yet",
            hint="load it with PEFT, and save it with save_only_topk_weights=False",
        )
    module.require("vblora_logits_A", "vblora_logits_B")
    A, B = module.shape("vblora_logits_A"), module.shape("vblora_logits_B")
    if "vblora_vector_bank" not in module.shared:
        raise module.refusal("vblora_logits_A", "and the vectors that all modules share are missing")
    bank = module.source.tensors[module.shared["vblora_vector_bank"]].shape
    if len(bank) != 2 or len(A) != 3 or len(B) != 3 or A[0] != B[1] or not bank[0] == A[2] == B[2] or not A[0]:
        raise module.refusal(
            "vblora_logits_A", f"which takes no B of {shape_text(B)} and vectors of {shape_text(bank)}"
        )
    config.rank(module.path, A[0])
    top = config.whole("topk", 2)
    item = _scaled(f"vblora:rank={A[0]}:vectors={bank[0]}:length={bank[1]}:top={top}", config.strength)
    view = _either(config, B[0] * bank[1], A[1] * bank[1], A, B)
    return [_change(module, {**module.keys, **module.shared}, item, view)]


def _shira(module: Module, config: Config) -> list[Change]:
    module.require("shira_weight", "shira_indices")
    entries, places = module.shape("shira_weight"), module.shape("shira_indices")
    if len(entries) != 1 or places != (2, *entries) or not entries[0]:
        raise module.refusal("shira_indices", f"and the entries are {shape_text(entries)}")

    def view(group: Group) -> View:
        if len(group.shape) != 2:
            raise not_of_shape(group, "places are", [places])
        return IDENTITY

    return [_change(module, module.keys, _scaled(f"shira:count={entries[0]}", config.strength), view)]


def _miss(module: Module, config: Config) -> list[Change]:
    shape, rank = module.shape("miss_block"), config.whole("r", 64)
    kind = config.values.get("init_weights", True)
    if kind == "bat":
        fits, item = len(shape) == 3 and shape[1:] == (rank, rank), f"miss:rank={rank}:kind=bat"
    elif kind == "mini":
        outputs = config.whole("mini_r", 1)
        fits, item = shape == (rank, outputs), f"miss:rank={rank}:kind=mini:outputs={outputs}"
    else:
        fits, item = len(shape) == 2 and shape[0] == rank and isinstance(kind, bool), f"miss:rank={rank}"
    if not fits or not all(shape):
        raise module.refusal("miss_block", f"and r of the configuration is {rank}, its init_weights {kind!s:.20}")

    def view(group: Group) -> View:
        out = shape[0] * rank if kind == "bat" else shape[1]
        if len(group.shape) != 2 or (group.shape[0] % out if kind == "mini" else group.shape[0] != out):
            raise not_of_shape(group, "block is", [shape])
        return IDENTITY

    return [_change(module, module.keys, _scaled(item, config.strength), view)]


def _hra(module: Module, config: Config) -> list[Change]:
    shape = module.shape("hra_u")
    if len(shape) != 2 or not all(shape):
        raise module.refusal("hra_u", "and (inputs, rank) is wanted")
    config.rank(module.path, shape[1])

    def view(group: Group) -> View:
        if len(group.shape) < 2 or matrix_of(group.shape)[1] != shape[0]:
            raise not_of_shape(group, "mirrors are", [shape])
        return IDENTITY

    item = f"hra:rank={shape[1]}" + (":orthonormal=true" if config.flag("apply_GS") else "")
    return [_change(module, module.keys, item, view)]


def _road(module: Module, config: Config) -> list[Change]:
    module.require("road_theta", "road_alpha")
    shape, variant = module.shape("road_theta"), str(config.values.get("variant", "road_1"))
    if variant not in ("road_1", "road_2", "road_4"):
        raise config.refusal("its variant is none of road_1, road_2 and road_4")
    if len(shape) != 1 or module.shape("road_alpha") != shape or not shape[0]:
        raise module.refusal("road_theta", f"which takes no alpha of {shape_text(module.shape('road_alpha'))}")
    item = f"road:group={config.whole('group_size', 64)}:variant={variant[-1]}"

    def reads(group: Group) -> tuple[str, View]:
        if len(group.shape) not in (1, 2) or group.shape[0] * int(variant[-1]) != 2 * shape[0]:
            raise not_of_shape(group, "angles are", [shape])
        return item, IDENTITY

    return [
        Change(f"{module.path}.weight", module.keys, reads),
        Change(f"{module.path}.bias", module.keys, reads, optional=True),
    ]


def _beft(module: Module, config: Config) -> list[Change]:
    shape = module.shape("beft_bias")

    def reads(group: Group) -> tuple[str, View]:
        if len(group.shape) != 1 or shape != (1, *group.shape):
            raise not_of_shape(group, "change of it is", [shape])
        return _scaled("shifted", config.strength), IDENTITY

    return [Change(f"{module.path}.bias", {"diff": module.keys["beft_bias"]}, reads)]


SUMS = (
    Family("DELORA", "DeLoRA", ("delora_A", "delora_B", "delora_lambda", "delora_w_norm"), _delora),
    Family("GRALORA", "GraLoRA", ("gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general"), _gralora),
    Family("C3A", "C3A", ("c3a_kernel",), _c3a),
    Family("HIRA", "HiRA", ("hira_A", "hira_B", "hira_embedding_A", "hira_embedding_B"), _hira),
    Family(
        "VBLORA",
        "VB-LoRA",
        tuple(f"vblora_logits_{side}{kind}" for side in "AB" for kind in ("", "_topk_indices", "_topk_weights")),
        _vblora,
        shared=("vblora_vector_bank",),
    ),
    Family("SHIRA", "SHiRA", ("shira_weight", "shira_indices"), _shira),
    Family("MISS", "MiSS", ("miss_block",), _miss),
    Family("HRA", "HRA", ("hra_u",), _hra, require_whole_strength),
    Family("BEFT", "BEFT", ("beft_bias",), _beft),
    Family("ROAD", "RoAd", ("road_theta", "road_alpha"), _road, require_whole_strength),
)
