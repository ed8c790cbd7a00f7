"""The changes of LyCORIS, which are PEFT's LoHa and LoKr too: an adapter's file holds their tensors apart from the
weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from ..spec import Argument, Value
from .adapters import ALPHA, RANK
from .entry import Entry, Shape, Stored

STRENGTH = Argument("strength", "float", "how much of it: 0 leaves it out, 1 is the whole", 1.0)
AXIS = Argument("axis", "choice", "a number for each output, or for each input", "out", choices=("out", "in"))
_BLOCKS = Argument("blocks", "int", "how many rotations the outputs are split over", 1, minimum=1, maximum=1 << 20)
_CONSTRAINT = Argument("constraint", "float", "bound of the norm of K, in outputs; 0: none", 0.0, minimum=0)
_RESCALE = Argument("rescale", "bool", "a factor for each output, after the turn", False)


def _int(arguments: Mapping[str, Value], name: str, default: int = 1) -> int:
    return cast("int", arguments.get(name, default))


def _tucker_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, (out, inputs, *kernel) = _int(arguments, "rank"), shape
    return {
        "original": (None, shape),
        "lora_down": (None, (rank, inputs)),
        "lora_mid": (None, (rank, rank, *kernel)),
        "lora_up": (None, (out, rank)),
    }


def _loha_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, out, rest = _int(arguments, "rank"), shape[0], math.prod(shape[1:])
    stored: Stored = {"original": (None, shape)}
    for half in "12":
        if arguments.get("tucker"):
            stored[f"hada_w{half}_a"] = (None, (rank, out))
            stored[f"hada_w{half}_b"] = (None, (rank, shape[1]))
            stored[f"hada_t{half}"] = (None, (rank, rank, *shape[2:]))
        else:
            stored[f"hada_w{half}_a"] = (None, (out, rank))
            stored[f"hada_w{half}_b"] = (None, (rank, rest))
    return stored


def _lokr_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    p, q, rank = (_int(arguments, name) for name in ("p", "q", "rank"))
    (out, odd), (inputs, rest), kernel = divmod(shape[0], p), divmod(shape[1], q), shape[2:]
    if odd or rest:
        raise ValueError("W1 does not divide it")
    stored: Stored = {"original": (None, shape)}
    if arguments.get("w1", "whole") == "whole":
        stored["lokr_w1"] = (None, (p, q))
    else:
        stored |= {"lokr_w1_a": (None, (p, rank)), "lokr_w1_b": (None, (rank, q))}
    w2 = arguments.get("w2", "whole")
    if w2 == "whole":
        stored["lokr_w2"] = (None, (out, inputs, *kernel))
    elif w2 == "factored":
        stored |= {"lokr_w2_a": (None, (out, rank)), "lokr_w2_b": (None, (rank, inputs * math.prod(kernel)))}
    else:
        stored |= {"lokr_w2_a": (None, (rank, out)), "lokr_w2_b": (None, (rank, inputs))}
        stored["lokr_t2"] = (None, (rank, rank, *kernel))
    return stored


def _glora_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    rank, out, inputs, rest = _int(arguments, "rank"), shape[0], shape[1], math.prod(shape[1:])
    return {
        "original": (None, shape),
        "a1": (None, (inputs, rank)),
        "a2": (None, (rank, inputs)),
        "b1": (None, (out, rank)),
        "b2": (None, (rank, rest)),
    }


def _dora_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    kept = 0 if arguments.get("axis", "out") == "out" else 1
    lengths = tuple(size if dim == kept else 1 for dim, size in enumerate(shape))
    return {"original": (None, shape), "dora_scale": (None, lengths)}


def _ia3_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    kept = 0 if arguments.get("axis", "out") == "out" else 1
    return {"original": (None, shape), "weight": (None, (shape[kept],))}


def _oft_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    blocks = _int(arguments, "blocks")
    size, odd = divmod(shape[0], blocks)
    if odd:
        raise ValueError("the blocks do not divide it")
    stored: Stored = {"original": (None, shape), "oft_blocks": (None, (blocks, size, size))}
    if arguments.get("rescale"):
        stored["rescale"] = (None, (shape[0], *[1] * (len(shape) - 1)))
    return stored


def _boft_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    stored, stages = _oft_stores(shape, arguments), _int(arguments, "stages")
    blocks = stored["oft_blocks"][1]
    if blocks[-1] % 2 or shape[0] % (blocks[-1] << (stages - 1)):
        raise ValueError("the stages do not divide it into pairs")
    return {**stored, "oft_blocks": (None, (stages, *blocks))}


CONSTRAINTS = ()

PARAMETRIZATIONS = (
    Entry(
        name="tucker",
        family="adapter",
        summary="plus a change of low rank that has a small kernel of its own",
        law="W = W0 + (alpha / rank) sum_ij B[., i] T[i, j, ...] A[j, .]",
        maps=(("any", "any"),),
        right_inverse="W0 = W, B = 0, A and T random",
        source="LyCORIS 4.1: lora_mid; Phan et al. 2020, arXiv:2008.05441",
        target="products:Tucker",
        arguments=(RANK, ALPHA),
        cost="two thin products",
        examples=("tucker:rank=2:alpha=6",),
        spelt=("alpha",),
        stores=_tucker_stores,
    ),
    Entry(
        name="loha",
        family="adapter",
        summary="plus the product, entry by entry, of two changes of low rank",
        law="W = W0 + (alpha / rank) (A1 B1) * (A2 B2)",
        maps=(("any", "any"),),
        right_inverse="W0 = W, A2 = 0, the others random",
        source="Hyeon-Woo et al. 2021, arXiv:2108.06098",
        target="products:LoHa",
        arguments=(
            RANK,
            ALPHA,
            Argument("tucker", "bool", "each factor has a kernel of its own, as of `tucker`", False),
        ),
        cost="two thin products",
        examples=("loha:rank=2:alpha=6", "loha:rank=2:tucker=true"),
        spelt=("alpha",),
        stores=_loha_stores,
    ),
    Entry(
        name="lokr",
        family="adapter",
        summary="plus a Kronecker product, its factors whole or of low rank",
        law="W = W0 + scale (W1 kron W2), W1 is p x q",
        maps=(("any", "any"),),
        right_inverse="W0 = W, W2 or its B = 0, the others random",
        source="LyCORIS 4.1, arXiv:2309.14859; Edalati et al. 2022, arXiv:2212.10650",
        target="products:LoKr",
        arguments=(
            Argument("p", "int", "rows of W1", required=True, minimum=1, maximum=1 << 20),
            Argument("q", "int", "columns of W1", required=True, minimum=1, maximum=1 << 20),
            Argument("rank", "int", "rank of what is factored", 1, minimum=1, maximum=1 << 20),
            Argument("scale", "float", "the factor of the product", 1.0),
            Argument("w1", "choice", "how W1 is kept", "whole", choices=("whole", "factored")),
            Argument("w2", "choice", "how W2 is kept", "whole", choices=("whole", "factored", "tucker")),
            Argument("left", "bool", "peft's product for a Conv1d with a whole W2", False),
        ),
        cost="the product, as large as the weight",
        examples=(
            "lokr:p=1:q=2:scale=0.5",
            "lokr:p=2:q=1:rank=2:w1=factored:w2=factored",
            "lokr:p=2:q=2:rank=2:w2=tucker",
            "lokr:p=2:q=2:left=true",
        ),
        stores=_lokr_stores,
    ),
    Entry(
        name="glora",
        family="adapter",
        summary="the inputs mixed before the weight, plus a change of low rank",
        law="W = W0 + (alpha / rank) (W0 A1 A2 + B1 B2)",
        maps=(("any", "any"),),
        right_inverse="W0 = W, A2 = B2 = 0, A1 and B1 random",
        source="LyCORIS 4.1; Chavan et al. 2023, arXiv:2306.07967",
        target="products:GLoRA",
        arguments=(RANK, ALPHA),
        cost="three thin products",
        examples=("glora:rank=2:alpha=6",),
        spelt=("alpha",),
        stores=_glora_stores,
    ),
    Entry(
        name="lycoris.dora",
        family="adapter",
        summary="a length for each output or input, as LyCORIS' DoRA has it",
        law="W = V (1 + strength (m / (||V|| + eps) - 1)), eps = 2^-23",
        maps=(("any", "any"),),
        right_inverse="V = W, m = ||W|| + eps",
        source="LyCORIS 4.1, functional/general.py: weight_decompose",
        target="lycoris:LycorisDoRA",
        arguments=(STRENGTH, AXIS),
        cost="one pass",
        examples=("lora:rank=1,lycoris.dora", "lycoris.dora:strength=0.5:axis=in"),
        stores=_dora_stores,
        without_lengths="",
    ),
    Entry(
        name="lycoris.ia3",
        family="adapter",
        summary="a factor for each output or input, as LyCORIS' IA3 has it",
        law="W = W0 (1 + strength w)",
        maps=(("any", "any"),),
        right_inverse="W0 = W, w = 0",
        source="LyCORIS 4.1, modules/ia3.py; Liu et al. 2022, arXiv:2205.05638",
        target="lycoris:LycorisIA3",
        arguments=(STRENGTH, AXIS),
        cost="one pass",
        examples=("lycoris.ia3", "lycoris.ia3:strength=0.5:axis=in"),
        stores=_ia3_stores,
    ),
    Entry(
        name="lycoris.oft",
        family="adapter",
        summary="outputs turned by block rotations, as LyCORIS has it",
        law="W = diag(1 + strength (R_k^T - 1)) W0, R_k = (I + K_k)(I - K_k)^-1",
        maps=(("any", "any"),),
        right_inverse="W0 = W, K = 0, rescale = 1",
        source="LyCORIS 4.1, modules/diag_oft.py; arXiv:2306.07280",
        target="lycoris:LycorisOFT",
        arguments=(_BLOCKS, STRENGTH, _CONSTRAINT, _RESCALE),
        cost="a solve for each block and one product",
        examples=("lycoris.oft:blocks=2:strength=0.5:constraint=0.01:rescale=true",),
        stores=_oft_stores,
    ),
    Entry(
        name="lycoris.boft",
        family="adapter",
        summary="outputs turned in a butterfly of rotations, as LyCORIS has it",
        law="W = B_stages ... B_1 W0, each 1 + strength (R_k - 1) in its own order",
        maps=(("any", "any"),),
        right_inverse="W0 = W, K = 0, rescale = 1",
        source="LyCORIS 4.1, functional/boft.py; Liu et al. 2023, arXiv:2311.06243",
        target="lycoris:LycorisBOFT",
        arguments=(
            _BLOCKS,
            Argument("stages", "int", "how many such rotations follow one another", 1, minimum=1, maximum=64),
            STRENGTH,
            _CONSTRAINT,
            _RESCALE,
        ),
        cost="a solve for each block, one product for each stage",
        examples=("lycoris.boft:strength=0.5:rescale=true",),
        stores=_boft_stores,
    ),
)
