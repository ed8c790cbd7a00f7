"""Entry by entry: positive, intervals, sorted vectors, probabilities; and the identity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ..spec import Argument, Value
from .entry import ConstraintEntry, Entry, image_of
from .norms import LARGEST

FLOOR = Argument("floor", "float", "every entry is above it", 0.0, minimum=0, maximum=LARGEST)
A = Argument("a", "float", "the lower end", 0.0, minimum=-LARGEST, maximum=LARGEST)
B = Argument("b", "float", "the upper end", 1.0, minimum=-LARGEST, maximum=LARGEST)
DIM = Argument("dim", "int", "the dimension a vector runs along (-1: rows, -2: columns)", -1, minimum=-64, maximum=63)


def _not_below(arguments: Mapping[str, Value]) -> str | None:
    a, b = (cast("float", arguments[end]) for end in "ab")
    return None if a < b else f"interval needs a < b, and {a:g} is not below {b:g}"


CONSTRAINTS = (
    ConstraintEntry(
        name="positive",
        summary="every entry is above the floor",
        target="elementwise:Positive",
        arguments=(FLOOR,),
        residual="(floor - least entry) / floor, or over the largest entry",
        examples=("positive", "positive:floor=0.5"),
    ),
    ConstraintEntry(
        name="interval",
        summary="every entry is strictly between a and b",
        target="elementwise:Interval",
        arguments=(A, B),
        impossible=_not_below,
        residual="largest violation of the ends, as the dtype rounds them, / (b - a)",
        examples=("interval", "interval:a=-2.0:b=0.5"),
    ),
    ConstraintEntry(
        name="increasing",
        summary="entries grow strictly along dim",
        target="elementwise:Increasing",
        arguments=(DIM,),
        residual="largest step down / largest entry",
        examples=("increasing", "increasing:dim=0"),
        of_constants=True,
    ),
    ConstraintEntry(
        name="simplex",
        summary="vectors along dim are non-negative and sum to 1",
        target="stochastic:Simplex",
        arguments=(DIM,),
        residual="max |sum - 1|; most negative entry",
        examples=("simplex", "simplex:dim=0"),
        keeper="simplex",
    ),
    ConstraintEntry(
        name="stochastic",
        summary="non-negative rows (dim=-2: columns) that sum to 1",
        target="stochastic:Stochastic",
        within=("simplex",),
        arguments=(DIM,),
        residual="max |sum - 1|; most negative entry",
    ),
    ConstraintEntry(
        name="doubly_stochastic",
        summary="non-negative, rows and columns sum to 1",
        target="stochastic:DoublyStochastic",
        within=("stochastic",),
        residual="max |row or column sum - 1|; most negative entry",
    ),
)

PARAMETRIZATIONS = (
    Entry(
        name="positive",
        family="elementwise",
        summary="every entry above a floor",
        law="W = floor + f(X): softplus, exp, square or abs",
        maps=(("any", image_of("positive", "floor")),),
        right_inverse="f^-1(W - floor); entries at the floor or below move up first",
        source="torch.distributions.transforms",
        target="elementwise:ToPositive",
        arguments=(
            Argument(
                "f", "choice", "softplus is log(1 + exp(x))", "softplus", choices=("softplus", "exp", "square", "abs")
            ),
            FLOOR,
        ),
        cost="one pass",
        examples=("positive", "positive:f=exp", "positive:f=square:floor=0.5", "positive:f=abs"),
    ),
    Entry(
        name="interval",
        family="elementwise",
        summary="every entry between a and b",
        law="W = a + (b - a) / (1 + exp(-X))",
        maps=(("any", image_of("interval", "a", "b")),),
        right_inverse="log((W - a) / (b - W))",
        source="torch.distributions.transforms.SigmoidTransform",
        target="elementwise:ToInterval",
        arguments=(A, B),
        impossible=_not_below,
        cost="one pass",
        examples=("interval", "interval:a=-2.0:b=0.5"),
    ),
    Entry(
        name="increasing",
        family="elementwise",
        summary="sorted vectors: entries grow along dim",
        law="W_1 = X_1, W_i = W_(i-1) + softplus(X_i)",
        maps=(("any", image_of("increasing", "dim")),),
        right_inverse="the first entry, inverse softplus of the steps",
        source="ordered vectors of Stan, with softplus in place of exp",
        target="elementwise:ToIncreasing",
        arguments=(DIM,),
        cost="one pass; a fit of unsorted vectors pools in Python",
        examples=("increasing", "increasing:dim=0"),
    ),
    Entry(
        name="simplex",
        family="elementwise",
        summary="probabilities along dim: softmax (stochastic matrices)",
        law="W = exp(x) / sum(exp(x))",
        maps=(("any", image_of("stochastic", "dim")),),
        right_inverse="log W, zeros as 1e-13",
        source="torch.softmax",
        target="stochastic:ToSimplex",
        arguments=(DIM,),
        cost="one pass",
        examples=("simplex", "simplex:dim=0"),
    ),
    Entry(
        name="doubly_stochastic",
        family="elementwise",
        summary="rows and columns are probabilities: Sinkhorn's iteration",
        law="W = D1 exp(X) D2, all row and column sums 1",
        maps=(("any", "doubly_stochastic"),),
        right_inverse="log W, zeros as 1e-13",
        source="Sinkhorn and Knopp 1967; Mena et al. 2018, arXiv:1802.08665",
        target="stochastic:Sinkhorn",
        arguments=(Argument("iterations", "int", "of rows, then columns", 50, minimum=1, maximum=10000),),
        cost="2 passes an iteration; the nearest point solves 2n x 2n systems",
    ),
    Entry(
        name="identity",
        family="elementwise",
        summary="the weight as it is, under torch's parametrize",
        law="W = X",
        maps=(("any", "any"),),
        right_inverse="W itself",
        source="torch.nn.Identity registered as a parametrization",
        target="elementwise:Identity",
        cost="none",
        complex=True,
    ),
)
