"""Adapters: the weight underneath stays, and a few parameters beside it make the change."""

from __future__ import annotations

from ..spec import Argument
from .entry import Entry
from .measures import CHANGE_OF_RANK, GRAM_KEPT, NORMS

RANK = Argument("rank", "int", "rank of the change", required=True, minimum=1, maximum=1 << 20)
ALPHA = Argument("alpha", "float", "the change is scaled by alpha / rank", 1.0, minimum=0)

CONSTRAINTS = ()

PARAMETRIZATIONS = (
    Entry(
        "lora",
        "adapter",
        "plus a change of low rank",
        "W = W0 + (alpha / rank) B A",
        (("any", "any"),),
        "W0 = W, B = 0, A random",
        "Hu et al. 2021, arXiv:2106.09685",
        "adapters:LoRA",
        (RANK, ALPHA),
        cost="one thin product",
        verifies=str(CHANGE_OF_RANK),
        examples=("lora:rank=1", "lora:rank=2:alpha=6"),
        spelt=("alpha",),
        stores=None,
    ),
    Entry(
        "minlora",
        "adapter",
        "lora in minLoRA's own keys, embeddings included",
        "W = W0 + (alpha / rank) B A; with embedding=true W0 + (alpha / rank) A B",
        (("any", "any"),),
        "W0 = W, B = 0, A random",
        "minLoRA, github.com/cccntu/minLoRA",
        "adapters:MinLoRA",
        (RANK, ALPHA, Argument("embedding", "bool", "the weight is (fan in, fan out), as of an embedding", False)),
        cost="one thin product",
        verifies=str(CHANGE_OF_RANK),
        examples=("minlora:rank=1", "minlora:rank=2:alpha=6:embedding=true"),
        spelt=("alpha",),
        stores=None,
    ),
    Entry(
        "dora",
        "adapter",
        "a change of low rank, and a length for each output",
        "W = m V / ||V||, V = W0 + (alpha / rank) B A, the norm over each output",
        (("any", "any"),),
        "W0 = W, m = ||W||, B = 0, A random",
        "Liu et al. 2024, arXiv:2402.09353",
        "adapters:DoRA",
        (RANK, ALPHA),
        cost="one thin product and one pass",
        verifies=str(NORMS),
        examples=("dora:rank=1",),
        spelt=("alpha",),
        stores=None,
    ),
    Entry(
        "oft",
        "adapter",
        "outputs turned among each other by block rotations",
        "W = diag(R_1, ...) W0, R_i = (I + K_i)(I - K_i)^-1, K_i = triu(X_i, 1) - its ^T",
        (("any", "any"),),
        "W0 = W, K = 0",
        "Qiu et al. 2023, arXiv:2306.07280",
        "adapters:OFT",
        (Argument("blocks", "int", "how many rotations the outputs are split over", 1, minimum=1, maximum=1 << 20),),
        cost="a solve for each block and one product",
        verifies=str(GRAM_KEPT),
        examples=("oft", "oft:blocks=2"),
        stores=None,
    ),
)
