"""Tensors that mean something only together: codes, and the scales and tables that they are decoded with.

    codes                                          what stands beside them
    weight (float8, int8)                          weight_scale, weight_scale_inv, scale_weight, scale, SCB, input_scale
    weight_packed, weight (uint8)                  weight_scale, weight_scale_2, weight_global_scale, weight_zero_point
    qweight, q_weight, W_q, codes, trellis         scales, qzeros, scale, zero, codebooks, suh
    gate_up_proj (float8)                          gate_up_proj_scale_inv
    modulation (float8)                            modulation.scale_weight
    weight (uint8, or any dtype as storage)        weight.absmax, weight.quant_map, weight.quant_state.*
    parametrizations.weight.original0 (int8)       parametrizations.weight.original1

A cast of one of them under the others changes every weight. Names and dtypes decide. Where a name decides too much, a
tensor is left as it is, which is told and loses nothing; so no shape is asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..checkpoint.source import TensorInfo
from ..dtypes import kind_of

# Names of integers that are codes; other integers are positions and counters.
_CODES = re.compile(r"(.*_)?(q?weight|packed|qdata|data|codes|trellis|indices|blocks|W_q|B)|original[0-9]+")
# Words of the names that scales, zero points and tables have.
_WORDS = frozenset(
    [
        "scale",
        "scales",
        "qscale",
        "zero",
        "zeros",
        "qzeros",
        "zp",
        "absmax",
        "amax",
        "SCB",
        "codebook",
        "codebooks",
        "centroids",
        "lut",
        "suh",
        "svh",
    ]
)
# What bitsandbytes puts under the name of the tensor itself.
_STATE = frozenset(("absmax", "quant_map"))
# Of caches that are quantized when the model runs: they stand by themselves.
_CACHES = frozenset(("k_scale", "v_scale", "q_scale", "kv_scale", "prob_output_scale"))


def companions(tensors: Mapping[str, TensorInfo]) -> set[str]:
    """The keys of all codes, and of what they are decoded with."""
    beside: dict[str, dict[str, str]] = {}
    for key in tensors:
        parent, _, leaf = key.rpartition(".")
        beside.setdefault(parent, {})[leaf] = key
    found: set[str] = set()
    for parent, keys in beside.items():
        codes = [key for leaf, key in keys.items() if _is_codes(leaf, tensors[key])]
        if codes and _are_originals(parent):
            found.update(keys.values())
        elif codes:
            found.update(codes, (key for leaf, key in keys.items() if names_scale(leaf)))
        if parent in tensors and _is_codes(parent.rpartition(".")[2], tensors[parent]):
            found.update(key for leaf, key in keys.items() if names_scale(leaf))
        if parent in tensors and not _STATE.isdisjoint(keys):
            found.update((parent, *keys.values(), *beside.get(f"{parent}.quant_state", {}).values()))
    if found:
        found.update(key for key in tensors if key.rpartition(".")[2] in _CACHES)
    return found


def names_scale(leaf: str) -> bool:
    """Is it the last part of the name of a scale, a zero point or a table?"""
    return not _WORDS.isdisjoint(leaf.split("_"))


def _is_codes(leaf: str, info: TensorInfo) -> bool:
    kind = kind_of(info.dtype)
    return kind == "packed" or (kind == "int" and _CODES.fullmatch(leaf) is not None)


def _are_originals(parent: str) -> bool:
    """Are they what parametrize stores of one tensor? Of torchao's subclasses, unwrapped, it stores the codes."""
    return parent.rpartition(".")[0].rpartition(".")[2] == "parametrizations"
