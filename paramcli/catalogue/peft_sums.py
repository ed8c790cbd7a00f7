"""Adapters that PEFT trains in other ways than LoRA: changes made of few numbers, mirrors, pairs that turn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from ..spec import Argument, Value
from .adapters import RANK
from .entry import Entry, Shape, Stored

SCALE = Argument("scale", "float", "the factor of the change", 1.0)
SIZE = Argument("size", "int", "the side of a block", required=True, minimum=1, maximum=1 << 20)
COUNT = Argument("count", "int", "how many entries change", required=True, minimum=1, maximum=1 << 40)


def _sides(shape: Shape) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _delora_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, (out, rest) = cast("int", arguments["rank"]), _sides(shape)
    return {
        "original": (None, shape),
        "delora_A": (None, (rank, rest)),
        "delora_B": (None, (out, rank)),
        "delora_lambda": (None, (1,)),
        "delora_w_norm": (None, (rest,)),
    }


def _gralora_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, (out, rest) = cast("int", arguments["rank"]), _sides(shape)
    blocks, hybrid = cast("int", arguments.get("blocks", 2)), cast("int", arguments.get("hybrid", 0))
    found: Stored = {
        "original": (None, shape),
        "gralora_A": (None, (blocks, rest // blocks, rank)),
        "gralora_B": (None, (blocks, rank, out // blocks)),
    }
    if hybrid:
        found |= {"gralora_A_general": (None, (hybrid, rest)), "gralora_B_general": (None, (out, hybrid))}
    return found


def _c3a_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    size, (out, rest) = cast("int", arguments["size"]), _sides(shape)
    return {"original": (None, shape), "c3a_kernel": (None, (out // size, rest // size, size))}


def _hira_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, (out, rest) = cast("int", arguments["rank"]), _sides(shape)
    return {"original": (None, shape), "hira_A": (None, (rank, rest)), "hira_B": (None, (out, rank))}


def _vblora_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, (out, rest) = cast("int", arguments["rank"]), _sides(shape)
    vectors, length = cast("int", arguments["vectors"]), cast("int", arguments["length"])
    return {
        "original": (None, shape),
        "vblora_logits_A": (None, (rank, rest // length, vectors)),
        "vblora_logits_B": (None, (out // length, rank, vectors)),
        "vblora_vector_bank": (None, (vectors, length)),
    }


def _shira_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    count = cast("int", arguments["count"])
    return {"original": (None, shape), "shira_weight": (None, (count,)), "shira_indices": ("I32", (2, count))}


def _miss_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, kind = cast("int", arguments["rank"]), arguments.get("kind", "plain")
    outputs = cast("int", arguments.get("outputs", 0)) if kind == "mini" else shape[0]
    block = (shape[0] // rank, rank, rank) if kind == "bat" else (rank, outputs)
    return {"original": (None, shape), "miss_block": (None, block)}


def _hra_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    return {"original": (None, shape), "hra_u": (None, (_sides(shape)[1], cast("int", arguments["rank"])))}


def _road_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    size = shape[0] * int(cast("str", arguments.get("variant", "1"))) // 2
    return {"original": (None, shape), "road_theta": (None, (size,)), "road_alpha": (None, (size,))}


CONSTRAINTS = ()

PARAMETRIZATIONS = (
    Entry(
        name="delora",
        family="adapter",
        summary="plus a change of low rank, of unit directions and one length",
        law="W = W0 + scale lambda / rank sum B_i A_i^T / (|B_i| |A_i|) diag(n)",
        maps=(("any", "any"),),
        right_inverse="W0 = W, B = 0, lambda = 1, A random",
        source="Bini et al. 2025, arXiv:2503.18225; peft 0.21",
        target="peft_sums:DeLoRA",
        arguments=(RANK, SCALE),
        cost="one thin product",
        examples=("delora:rank=2:scale=0.5",),
        stores=_delora_stores,
    ),
    Entry(
        name="gralora",
        family="adapter",
        summary="plus a change of low rank in each block",
        law="W = W0 + scale (blocks A_n[:, m]^T B_m[n] + B_general A_general)",
        maps=(("any", "any"),),
        right_inverse="W0 = W, B = 0, A random",
        source="Jung et al. 2025, arXiv:2505.20355; peft 0.21",
        target="peft_sums:GraLoRA",
        arguments=(
            RANK,
            Argument("blocks", "int", "blocks along each side", 2, minimum=1, maximum=1 << 20),
            Argument("hybrid", "int", "rank of the change of the whole; 0: none", 0, minimum=0, maximum=1 << 20),
            SCALE,
        ),
        cost="one thin product",
        examples=("gralora:rank=4:blocks=2:hybrid=1:scale=0.5",),
        stores=_gralora_stores,
    ),
    Entry(
        name="c3a",
        family="adapter",
        summary="plus a matrix of circulant blocks",
        law="W = W0 + scale / inputs C, entry (k, j) of a block its kernel's (j - k)",
        maps=(("any", "any"),),
        right_inverse="W0 = W, kernels of zeros",
        source="Chen et al. 2024, arXiv:2407.19342; peft 0.21",
        target="peft_sums:C3A",
        arguments=(SIZE, SCALE),
        cost="one pass",
        examples=("c3a:size=2",),
        stores=_c3a_stores,
    ),
    Entry(
        name="hira",
        family="adapter",
        summary="times one and a matrix of low rank, entry by entry",
        law="W = W0 + scale W0 * (B A)",
        maps=(("any", "any"),),
        right_inverse="W0 = W, B = 0, A random",
        source="Huang et al. 2025 (ICLR, HiRA); peft 0.21",
        target="peft_sums:HiRA",
        arguments=(RANK, SCALE),
        cost="one thin product",
        examples=("hira:rank=2:scale=0.5",),
        stores=_hira_stores,
    ),
    Entry(
        name="vblora",
        family="adapter",
        summary="plus factors pieced together of vectors that weights share",
        law="W = W0 + scale B A, pieces sum_k softmax(top logits)_k v_k",
        maps=(("any", "any"),),
        right_inverse="W0 = W, v = 0, logits random",
        source="Li et al. 2024, arXiv:2405.15179; peft 0.21",
        target="peft_sums:VBLoRA",
        arguments=(
            RANK,
            Argument("vectors", "int", "how many vectors there are", required=True, minimum=1, maximum=1 << 30),
            Argument("length", "int", "their length", required=True, minimum=1, maximum=1 << 20),
            Argument("top", "int", "how many make up a piece", 2, minimum=1, maximum=1 << 20),
            SCALE,
        ),
        cost="one thin product",
        examples=("vblora:rank=2:vectors=3:length=2",),
        stores=_vblora_stores,
    ),
    Entry(
        name="shira",
        family="adapter",
        summary="plus a sparse matrix",
        law="W = W0 + scale S",
        maps=(("any", "any"),),
        right_inverse="W0 = W, S of zeros",
        source="Bhardwaj et al. 2024, arXiv:2406.13175; peft 0.21",
        target="peft_sums:SHiRA",
        arguments=(COUNT, SCALE),
        cost="one pass",
        examples=("shira:count=3",),
        stores=_shira_stores,
    ),
    Entry(
        name="miss",
        family="adapter",
        summary="plus a block repeated along the inputs (MiSS, Bone, Bat)",
        law="W = W0 + scale D repeated; kind=bat: + scale (W0 D + D) by blocks",
        maps=(("any", "any"),),
        right_inverse="W0 = W, D = 0",
        source="Kang and Yin 2024, arXiv:2409.15371; peft 0.21",
        target="peft_sums:MiSS",
        arguments=(
            RANK,
            Argument("kind", "choice", "how D is repeated", "plain", choices=("plain", "mini", "bat")),
            Argument("outputs", "int", "columns of D of kind=mini", 0, minimum=0, maximum=1 << 30),
            SCALE,
        ),
        cost="one pass",
        examples=("miss:rank=2", "miss:rank=2:kind=mini:outputs=1", "miss:rank=2:kind=bat:scale=0.5"),
        stores=_miss_stores,
    ),
    Entry(
        name="hra",
        family="adapter",
        summary="inputs mirrored one after another (Householder)",
        law="W = W0 H_1 ... H_rank, H = I - 2 u u^T, |u| = 1",
        maps=(("any", "any"),),
        right_inverse="W0 = W H_rank ... H_1, u random",
        source="Yuan et al. 2024, arXiv:2405.17484; peft 0.21",
        target="input_rotations:HRA",
        arguments=(RANK, Argument("orthonormal", "bool", "the u are made orthogonal first", False)),
        cost="rank passes",
        examples=("hra:rank=3", "hra:rank=2:orthonormal=true"),
        stores=_hra_stores,
    ),
    Entry(
        name="road",
        family="adapter",
        summary="outputs turned and stretched in pairs",
        law="W = R W0, pairs by a (cos t, -sin t; sin t, cos t)",
        maps=(("any", "any"),),
        right_inverse="W0 = W, t = 0, a = 1",
        source="Liao and Monz 2024, arXiv:2409.00119; peft 0.21",
        target="input_rotations:RoAd",
        arguments=(
            Argument("group", "int", "outputs whose halves are paired", required=True, minimum=2, maximum=1 << 30),
            Argument("variant", "choice", "a and t by pair, output, entry", "1", choices=("1", "2", "4")),
        ),
        cost="one pass",
        examples=("road:group=2", "road:group=2:variant=2", "road:group=2:variant=4"),
        stores=_road_stores,
    ),
)
