"""Structured pruning and N:M sparsity; the masks are stored, so that they survive saving."""

from __future__ import annotations

from ..spec import Argument, value_text
from .entry import ConstraintEntry, Entry, masked
from .measures import MASK

SLICES = Argument(
    "amount", "amount", "share of the slices to drop (0.3), or their number (30)", required=True, minimum=0
)
DIM = Argument("dim", "int", "the dimension whose slices are dropped; 0: outputs", 0, minimum=-64, maximum=63)
NM = (
    Argument("n", "int", "entries that stay of every m", 2, minimum=1, maximum=64),
    Argument("m", "int", "size of a group", 4, minimum=2, maximum=64),
    Argument("dim", "int", "the dimension along which groups lie", -1, minimum=-64, maximum=63),
)
KEEPS = "W itself: pruned entries keep their values until baked"

CONSTRAINTS = (
    ConstraintEntry(
        name="structured_sparse",
        summary="at least `amount` of the slices along dim are zero",
        target="sparse:StructuredSparse",
        arguments=(SLICES, DIM),
        residual="missing zero slices / slices",
        examples=("structured_sparse:amount=0.5", "structured_sparse:amount=1:dim=1"),
        complex=True,
        implies=("sparse",),
    ),
    ConstraintEntry(
        name="nm",
        summary="of every m entries along dim at most n are not zero",
        target="sparse:NofM",
        arguments=NM,
        residual="share of groups with more than n entries",
        spelt=("n", "m"),
        examples=("nm", "nm:n=1:m=2:dim=0"),
        complex=True,
        implies=("sparse",),
    ),
)

PARAMETRIZATIONS = (
    Entry(
        name="prune_structured",
        family="mask",
        summary="a mask that drops whole slices by their norm or at random",
        law="W = X * mask, the mask constant on each slice along dim",
        maps=(
            (
                "any",
                lambda a: f"structured_sparse:amount={value_text(a.get('amount', 0))}:dim={a.get('dim', 0)}",
            ),
        ),
        right_inverse=KEEPS,
        source="torch.nn.utils.prune.ln_structured, random_structured",
        target="sparse:PruneStructured",
        arguments=(
            SLICES,
            Argument(
                "n",
                "choice",
                "the norm that ranks slices: L1, L2, largest entry; or drawn",
                "2",
                choices=("1", "2", "inf", "random"),
            ),
            DIM,
        ),
        cost="one pass",
        verifies=str(MASK),
        examples=("prune_structured:amount=0.5", "prune_structured:amount=1:n=1:dim=1"),
        old_form="prune_old",
        complex=True,
        stores=masked,
    ),
    Entry(
        name="nm",
        family="mask",
        summary="a mask that keeps the n largest of every m (2:4 sparsity)",
        law="W = X * mask, the mask with n ones in every m along dim",
        maps=(("any", lambda a: f"nm:n={a.get('n', 2)}:m={a.get('m', 4)}:dim={a.get('dim', -1)}"),),
        right_inverse=KEEPS,
        source="Mishra et al. 2021, arXiv:2104.08378",
        target="sparse:PruneNM",
        arguments=NM,
        cost="one sort of each group",
        verifies=str(MASK),
        examples=("nm", "nm:n=1:m=2:dim=0"),
        old_form="prune_old",
        complex=True,
        stores=masked,
    ),
)
