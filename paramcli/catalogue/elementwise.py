"""Entry by entry: positive, intervals, sorted vectors, probabilities; and the identity."""

from __future__ import annotations

from ..spec import Argument
from .entry import ConstraintEntry, Entry, image_of
from .norms import LARGEST

FLOOR = Argument("floor", "float", "every entry is above it", 0.0, minimum=0, maximum=LARGEST)
A = Argument("a", "float", "the lower end", 0.0, minimum=-LARGEST, maximum=LARGEST)
B = Argument("b", "float", "the upper end", 1.0, minimum=-LARGEST, maximum=LARGEST)
DIM = Argument("dim", "int", "the dimension a vector runs along (-1: rows, -2: columns)", -1, minimum=-64, maximum=63)

CONSTRAINTS = (
    ConstraintEntry(
        "positive",
        "every entry is above the floor",
        "elementwise:Positive",
        arguments=(FLOOR,),
        residual="(floor - least entry) / floor, or over the largest entry",
        examples=("positive", "positive:floor=0.5"),
    ),
    ConstraintEntry(
        "interval",
        "every entry is strictly between a and b",
        "elementwise:Interval",
        arguments=(A, B),
        residual="largest violation of the ends, as the dtype rounds them, / (b - a)",
        examples=("interval", "interval:a=-2.0:b=0.5"),
    ),
    ConstraintEntry(
        "increasing",
        "entries grow strictly along dim",
        "elementwise:Increasing",
        arguments=(DIM,),
        residual="largest step down / largest entry",
        examples=("increasing", "increasing:dim=0"),
    ),
    ConstraintEntry(
        "simplex",
        "vectors along dim are non-negative and sum to 1",
        "stochastic:Simplex",
        arguments=(DIM,),
        residual="max |sum - 1|; most negative entry",
        examples=("simplex", "simplex:dim=0"),
    ),
    ConstraintEntry(
        "stochastic",
        "non-negative rows (dim=-2: columns) that sum to 1",
        "stochastic:Stochastic",
        ("simplex",),
        arguments=(DIM,),
        residual="max |sum - 1|; most negative entry",
    ),
    ConstraintEntry(
        "doubly_stochastic",
        "non-negative, rows and columns sum to 1",
        "stochastic:DoublyStochastic",
        ("stochastic",),
        residual="max |row or column sum - 1|; most negative entry",
    ),
)

PARAMETRIZATIONS = (
    Entry(
        "positive",
        "elementwise",
        "every entry above a floor",
        "W = floor + f(X): softplus, exp, square or abs",
        (("any", image_of("positive", "floor")),),
        "f^-1(W - floor); entries at the floor or below move up first",
        "torch.distributions.transforms",
        "elementwise:ToPositive",
        (
            Argument(
                "f", "choice", "softplus is log(1 + exp(x))", "softplus", choices=("softplus", "exp", "square", "abs")
            ),
            FLOOR,
        ),
        cost="one pass",
        examples=("positive", "positive:f=exp", "positive:f=square:floor=0.5", "positive:f=abs"),
    ),
    Entry(
        "interval",
        "elementwise",
        "every entry between a and b",
        "W = a + (b - a) / (1 + exp(-X))",
        (("any", image_of("interval", "a", "b")),),
        "log((W - a) / (b - W))",
        "torch.distributions.transforms.SigmoidTransform",
        "elementwise:ToInterval",
        (A, B),
        cost="one pass",
        examples=("interval", "interval:a=-2.0:b=0.5"),
    ),
    Entry(
        "increasing",
        "elementwise",
        "sorted vectors: entries grow along dim",
        "W_1 = X_1, W_i = W_(i-1) + softplus(X_i)",
        (("any", image_of("increasing", "dim")),),
        "the first entry, inverse softplus of the steps",
        "ordered vectors of Stan, with softplus in place of exp",
        "elementwise:ToIncreasing",
        (DIM,),
        cost="one pass; a fit of unsorted vectors pools in Python",
        examples=("increasing", "increasing:dim=0"),
    ),
    Entry(
        "simplex",
        "elementwise",
        "probabilities along dim: softmax (stochastic matrices)",
        "W = exp(x) / sum(exp(x))",
        (("any", image_of("stochastic", "dim")),),
        "log W, zeros as 1e-13",
        "torch.softmax",
        "stochastic:ToSimplex",
        (DIM,),
        cost="one pass",
        examples=("simplex", "simplex:dim=0"),
    ),
    Entry(
        "doubly_stochastic",
        "elementwise",
        "rows and columns are probabilities: Sinkhorn's iteration",
        "W = D1 exp(X) D2, all row and column sums 1",
        (("any", "doubly_stochastic"),),
        "log W, zeros as 1e-13",
        "Sinkhorn and Knopp 1967; Mena et al. 2018, arXiv:1802.08665",
        "stochastic:Sinkhorn",
        (Argument("iterations", "int", "of rows, then columns", 50, minimum=1, maximum=10000),),
        cost="2 passes an iteration; the nearest point solves 2n x 2n systems",
    ),
    Entry(
        "identity",
        "elementwise",
        "the weight as it is, under torch's parametrize",
        "W = X",
        (("any", "any"),),
        "W itself",
        "torch.nn.Identity registered as a parametrization",
        "elementwise:Identity",
        cost="none",
        complex=True,
    ),
)
