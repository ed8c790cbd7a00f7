"""Adapters: the weight underneath stays, and a few parameters beside it make the change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from ..spec import Argument, Value
from .entry import Entry, Shape, Stored
from .measures import CHANGE_OF_RANK, GRAM_KEPT, NORMS

RANK = Argument("rank", "int", "rank of the change", required=True, minimum=1, maximum=1 << 20)
ALPHA = Argument("alpha", "float", "the change is scaled by alpha / rank", 1.0)

ROUNDS = Argument(
    "rounds",
    "choice",
    "the change is rounded to this dtype before it is added",
    "none",
    choices=("none", "bfloat16", "float16"),
)


def _lora_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, (out, rest) = cast("int", arguments["rank"]), (shape[0], math.prod(shape[1:]))
    return {"original": (None, shape), "lora_A": (None, (rank, rest)), "lora_B": (None, (out, rank))}


def _expert_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, (*experts, out, rest) = cast("int", arguments["rank"]), shape
    A, B = (*experts, rank, rest), (*experts, out, rank)
    return {"original": (None, shape), "lora_A": (None, A), "lora_B": (None, B)}


def _dora_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    return {**_lora_stores(shape, arguments), "magnitude": (None, shape[:1])}


CONSTRAINTS = ()

PARAMETRIZATIONS = (
    Entry(
        name="lora",
        family="adapter",
        summary="plus a change of low rank",
        law="W = W0 + (alpha / rank) B A",
        maps=(("any", "any"),),
        right_inverse="W0 = W, B = 0, A random",
        source="Hu et al. 2021, arXiv:2106.09685",
        target="adapters:LoRA",
        arguments=(RANK, ALPHA, ROUNDS),
        cost="one thin product",
        verifies=str(CHANGE_OF_RANK),
        examples=("lora:rank=1", "lora:rank=2:alpha=6", "lora:rank=1:alpha=-2.0"),
        spelt=("alpha",),
        stores=_lora_stores,
    ),
    Entry(
        name="expert_lora",
        family="adapter",
        summary="plus a change of low rank for each expert of a fused tensor",
        law="W_e = W0_e + (alpha / rank) B_e A_e, for each e of (experts, out, in)",
        maps=(("any", "any"),),
        right_inverse="W0 = W, B = 0, A random",
        source="peft 0.21: target_parameters",
        target="adapters:ExpertLoRA",
        arguments=(RANK, ALPHA, ROUNDS),
        cost="one thin product for each expert",
        verifies=str(CHANGE_OF_RANK),
        examples=("expert_lora:rank=1", "expert_lora:rank=2:alpha=6"),
        spelt=("alpha",),
        stores=_expert_stores,
    ),
    Entry(
        name="minlora",
        family="adapter",
        summary="lora in minLoRA's own keys, embeddings included",
        law="W = W0 + (alpha / rank) B A; with embedding=true W0 + (alpha / rank) A B",
        maps=(("any", "any"),),
        right_inverse="W0 = W, B = 0, A random",
        source="minLoRA, github.com/cccntu/minLoRA",
        target="adapters:MinLoRA",
        arguments=(
            RANK,
            ALPHA,
            Argument("embedding", "bool", "the weight is (fan in, fan out), as of an embedding", False),
        ),
        cost="one thin product",
        verifies=str(CHANGE_OF_RANK),
        examples=("minlora:rank=1", "minlora:rank=2:alpha=6:embedding=true"),
        spelt=("alpha",),
        stores=None,
    ),
    Entry(
        name="dora",
        family="adapter",
        summary="a change of low rank, and a length for each output",
        law="W = m V / ||V||, V = W0 + (alpha / rank) B A, the norm over each output",
        maps=(("any", "any"),),
        right_inverse="W0 = W, m = ||W||, B = 0, A random",
        source="Liu et al. 2024, arXiv:2402.09353",
        target="adapters:DoRA",
        arguments=(RANK, ALPHA),
        cost="one thin product and one pass",
        verifies=str(NORMS),
        examples=("dora:rank=1",),
        spelt=("alpha",),
        stores=_dora_stores,
        without_lengths="lora:rank={rank}:alpha={alpha}",
    ),
    Entry(
        name="oft",
        family="adapter",
        summary="outputs turned among each other by block rotations",
        law="W = diag(R_1, ...) W0, R_i = (I + K_i)(I - K_i)^-1, K_i = triu(X_i, 1) - its ^T",
        maps=(("any", "any"),),
        right_inverse="W0 = W, K = 0",
        source="Qiu et al. 2023, arXiv:2306.07280",
        target="adapters:OFT",
        arguments=(
            Argument("blocks", "int", "how many rotations the outputs are split over", 1, minimum=1, maximum=1 << 20),
        ),
        cost="a solve for each block and one product",
        verifies=str(GRAM_KEPT),
        examples=("oft", "oft:blocks=2"),
        stores=None,
    ),
    Entry(
        name="saved",
        family="adapter",
        summary="another tensor in the weight's place, which stays underneath",
        law="W = V",
        maps=(("any", "any"),),
        right_inverse="V = W",
        source="peft 0.21: modules_to_save, trained biases",
        target="adapters:Saved",
        cost="none",
        stores=lambda shape, arguments: {"original": (None, shape), "saved": (None, shape)},
        complex=True,
    ),
    Entry(
        name="shifted",
        family="adapter",
        summary="plus a whole tensor",
        law="W = W0 + scale D",
        maps=(("any", "any"),),
        right_inverse="W0 = W, D = 0",
        source="LyCORIS 4.1: diff; peft 0.21: lora_B.bias",
        target="adapters:Shifted",
        arguments=(Argument("scale", "float", "the factor of D", 1.0), ROUNDS),
        cost="one pass",
        examples=("shifted", "shifted:scale=0.5"),
        stores=lambda shape, arguments: {"original": (None, shape), "diff": (None, shape)},
        complex=True,
    ),
)
