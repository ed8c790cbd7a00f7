"""Adapters that PEFT trains beside LoRA, in its conventions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from ..spec import Argument, Value
from .adapters import ALPHA, RANK
from .entry import Entry, Shape, Stored
from .lycoris import AXIS
from .measures import CHANGE_OF_RANK

MOST = 1 << 30
SIZE = Argument("size", "int", "how many inputs are turned among each other", required=True, minimum=1, maximum=1 << 20)


def _whole(arguments: Mapping[str, Value], name: str, default: int) -> int:
    return cast("int", arguments.get(name) or default)


def _adalora_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, (out, rest) = cast("int", arguments["rank"]), (shape[0], math.prod(shape[1:]))
    return {
        "original": (None, shape),
        "lora_A": (None, (rank, rest)),
        "lora_B": (None, (out, rank)),
        "lora_E": (None, (rank, 1)),
    }


def _vera_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, (out, rest) = cast("int", arguments["rank"]), (shape[0], math.prod(shape[1:]))
    return {
        "original": (None, shape),
        "vera_lambda_d": (None, (rank,)),
        "vera_lambda_b": (None, (out,)),
        "vera_A": (None, (rank, _whole(arguments, "inputs", rest))),
        "vera_B": (None, (_whole(arguments, "outputs", out), rank)),
    }


def _ia3_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    if arguments.get("axis") == "in":
        return {"original": (None, shape), "ia3_l": (None, (1, shape[1] * _whole(arguments, "groups", 1)))}
    return {"original": (None, shape), "ia3_l": (None, (shape[0], 1))}


def _rows_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    count = cast("int", arguments["count"])
    return {"original": (None, shape), "saved_rows": (None, (count, *shape[1:])), "which": ("I64", shape[:1])}


def _oft_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    size = cast("int", arguments["size"])
    blocks = 1 if arguments.get("shared") else math.prod(shape[1:]) // size
    return {"original": (None, shape), "oft_R": (None, (blocks, math.comb(size, 2)))}


def _boft_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    size, factors = cast("int", arguments["size"]), _whole(arguments, "factors", 1)
    return {
        "original": (None, shape),
        "boft_R": (None, (factors, math.prod(shape[1:]) // size, size, size)),
        "boft_s": (None, (shape[0], 1)),
    }


CONSTRAINTS = ()

PARAMETRIZATIONS = (
    Entry(
        name="adalora",
        family="adapter",
        summary="plus a change of low rank, its singular values apart",
        law="W = W0 + (alpha / rank) B diag(E) A",
        maps=(("any", "any"),),
        right_inverse="W0 = W, B = 0, E = 1, A random",
        source="Zhang et al. 2023, arXiv:2303.10512; peft 0.21",
        target="peft:AdaLoRA",
        arguments=(RANK, ALPHA),
        cost="one thin product",
        verifies=str(CHANGE_OF_RANK),
        examples=("adalora:rank=1:alpha=6",),
        spelt=("alpha",),
        stores=_adalora_stores,
    ),
    Entry(
        name="vera",
        family="adapter",
        summary="plus random factors that all weights share, scaled",
        law="W = W0 + scale diag(b) B diag(d) A, the first rows of B, columns of A",
        maps=(("any", "any"),),
        right_inverse="W0 = W, b = 0, d = 1, A and B random",
        source="Kopiczko et al. 2023, arXiv:2310.11454; peft 0.21",
        target="peft:VeRA",
        arguments=(
            RANK,
            Argument("inputs", "int", "columns of A; 0: as many as the weight has", 0, minimum=0, maximum=MOST),
            Argument("outputs", "int", "rows of B; 0: as many as the weight has", 0, minimum=0, maximum=MOST),
            Argument("scale", "float", "the factor of the change", 1.0),
        ),
        cost="one thin product",
        examples=("vera:rank=2", "vera:rank=1:inputs=200:outputs=800:scale=0.5"),
        stores=_vera_stores,
    ),
    Entry(
        name="peft.ia3",
        family="adapter",
        summary="each output, or each input, times a number, as PEFT has it",
        law="W = diag(l) W0; with axis=in W0 diag(l)",
        maps=(("any", "any"),),
        right_inverse="W0 = W, l = 1",
        source="Liu et al. 2022, arXiv:2205.05638; peft 0.21",
        target="peft:PeftIA3",
        arguments=(
            AXIS,
            Argument("groups", "int", "groups of a convolution's inputs", 1, minimum=1, maximum=1 << 20),
        ),
        cost="one pass",
        examples=("peft.ia3", "peft.ia3:axis=in", "peft.ia3:axis=in:groups=2"),
        stores=_ia3_stores,
    ),
    Entry(
        name="saved_rows",
        family="adapter",
        summary="with some of its rows replaced; they stay underneath",
        law="W_i = V_k with k = which_i; W0_i where that is -1",
        maps=(("any", "any"),),
        right_inverse="V = the first rows of W, W0 = W",
        source="peft 0.21: trainable tokens",
        target="peft:SavedRows",
        arguments=(Argument("count", "int", "how many rows are saved", required=True, minimum=1, maximum=MOST),),
        cost="one pass",
        examples=("saved_rows:count=1",),
        stores=_rows_stores,
    ),
    Entry(
        name="peft.oft",
        family="adapter",
        summary="inputs turned by block rotations, as PEFT's OFT has it",
        law="W = W0 diag(R_1, ...)^T, R = (I - K)(I + K)^-1, or I + 2K + 2K^2 + ...",
        maps=(("any", "any"),),
        right_inverse="W0 = W, K = 0",
        source="Qiu et al. 2023, arXiv:2306.07280; peft 0.21",
        target="input_rotations:PeftOFT",
        arguments=(
            SIZE,
            Argument("terms", "int", "of the series; 0: the exact rotation", 0, minimum=0, maximum=64),
            Argument("shared", "bool", "one rotation for all blocks", False),
            Argument("bound", "float", "K's norm, times the root of its blocks; 0: any", 0.0, minimum=0.0),
            Argument("transposed", "bool", "R in the place of R^T, as for embeddings", False),
        ),
        cost="a solve or some products for each block, and one product",
        examples=(
            "peft.oft:size=2",
            "peft.oft:size=4:terms=5:transposed=true",
            "peft.oft:size=2:terms=4:shared=true:bound=0.1",
        ),
        stores=_oft_stores,
    ),
    Entry(
        name="peft.boft",
        family="adapter",
        summary="inputs turned in a butterfly of rotations, as PEFT has it",
        law="W = diag(s) W0 (M_N ... M_1)^T, M = P diag(R) P^T, R = (I - K)(I + K)^-1",
        maps=(("any", "any"),),
        right_inverse="W0 = W, K = 0, s = 1",
        source="Liu et al. 2023, arXiv:2311.06243; peft 0.21",
        target="input_rotations:PeftBOFT",
        arguments=(SIZE, Argument("factors", "int", "how many M there are", 1, minimum=1, maximum=32)),
        cost="a solve for each block, and a thin product for each factor",
        examples=("peft.boft:size=2", "peft.boft:size=2:factors=2"),
        stores=_boft_stores,
    ),
)
