"""Manifolds by trivialisation and by factors: frames, ranks, determinants, definiteness, stability, spheres.

The laws and the stored tensors are geotorch's; the start is the trained weight in place of a random point.
"""

from __future__ import annotations

from ..spec import Argument, value_text
from .entry import ConstraintEntry, Entry, based
from .measures import ALPHA

TRIV = Argument("triv", "choice", "from skew-symmetric to rotations", "expm", choices=("expm", "cayley"))
RANK = Argument(
    "rank", "int", "number of singular values that may differ from 0", required=True, minimum=1, maximum=1_000_000
)
LEAST = Argument("least", "float", "the smallest value that counts as above 0", 0.0, minimum=0, maximum=1)
LAM = Argument("lam", "float", "how far a singular value may be from 1", 0.1, minimum=0, maximum=1)
RADIUS = Argument("radius", "float", "the length of each vector", 1.0, minimum=1e-6, maximum=1e6)
# Values of softplus + 1e-6: the maps that use it never go below.
FLOOR = "least=1e-06"
TRIVIALIZATIONS = "Lezcano-Casado 2019, arXiv:1909.09501"
FRAMES = "f(A) = exp(A), or (I - A/2)^-1 (I + A/2) for triv=cayley"


def _alpha(default: float) -> Argument:
    return Argument(
        "alpha", "float", "the decay rate: eigenvalues have real part <= -alpha", default, minimum=0, maximum=1e6
    )


def _rank(set_name: str, more: str = ""):
    return lambda a: f"{set_name}:rank={a['rank']}{more}"


CONSTRAINTS = (
    ConstraintEntry(
        "low_rank",
        "rank at most `rank`",
        "singular_values:LowRank",
        arguments=(RANK,),
        residual="s_{rank+1} / s_1 of the singular values",
        examples=("low_rank:rank=2",),
        complex=True,
    ),
    ConstraintEntry(
        "fixed_rank",
        "rank exactly `rank`",
        "singular_values:FixedRank",
        ("low_rank",),
        arguments=(RANK, LEAST),
        residual="s_{rank+1} / s_1, and what s_rank / s_1 lacks of what rounding may leave of a zero, and of least",
        examples=("fixed_rank:rank=2", "fixed_rank:rank=3:least=1e-6"),
    ),
    ConstraintEntry(
        "invertible",
        "square, det A != 0",
        "singular_values:Invertible",
        arguments=(LEAST,),
        residual="what s_n / s_1 lacks of what rounding may leave of a zero, and of least",
    ),
    ConstraintEntry(
        "special_linear",
        "det A = 1",
        "singular_values:SpecialLinear",
        ("positive_determinant",),
        residual="|log |det A|| / ||A^-T o A||_F (o entry by entry); 1 where det A <= 0; and as invertible",
    ),
    ConstraintEntry(
        "almost_orthogonal",
        "singular values within `lam` of 1",
        "singular_values:AlmostOrthogonal",
        arguments=(LAM,),
        residual="max(0, max |s - 1| - lam)",
        examples=("almost_orthogonal:lam=0.3",),
    ),
    ConstraintEntry(
        "psd",
        "A = A^T, no eigenvalue negative",
        "semidefinite:Semidefinite",
        ("symmetric",),
        residual="row of A - A^T / row of A, the largest; max(0, -l_n) / max |l|",
    ),
    ConstraintEntry(
        "psd_low_rank",
        "A = A^T, at most `rank` eigenvalues positive, the others 0",
        "semidefinite:SemidefiniteLowRank",
        ("psd",),
        (RANK,),
        residual="row of A - A^T / row of A, the largest; max(-l_n, l_{rank+1}) / max |l|",
        examples=("psd_low_rank:rank=2",),
    ),
    ConstraintEntry(
        "psd_fixed_rank",
        "A = A^T, exactly `rank` eigenvalues positive, the others 0",
        "semidefinite:SemidefiniteFixedRank",
        ("psd",),
        (RANK, LEAST),
        residual="as psd_low_rank, and what l_rank / l_1 lacks of what rounding may leave of a zero, and of least",
        examples=("psd_fixed_rank:rank=2",),
    ),
    ConstraintEntry(
        "hurwitz",
        "every eigenvalue has real part <= -alpha",
        "stability:Hurwitz",
        arguments=(_alpha(0.0),),
        residual="max (Re l + alpha) / ||A||_2, less what computing l may be off by",
        examples=("hurwitz", "hurwitz:alpha=0.5"),
    ),
)

PARAMETRIZATIONS = (
    Entry(
        "so",
        "manifolds",
        "rotations around the weight: base times a rotation",
        f"Q = base @ f(L - L^T), L = tril(X, -1); {FRAMES}",
        (("any", "special_orthogonal"),),
        "base = Q, X = 0",
        "geotorch SO; Lezcano-Casado and Martinez-Rubio 2019, arXiv:1901.08428",
        "frames:SpecialOrthogonal",
        (TRIV,),
        cost="matrix_exp or an LU solve, and a product",
        examples=("so:triv=cayley",),
        stores=based,
    ),
    Entry(
        "stiefel",
        "manifolds",
        "orthonormal columns (rows if wide) around the weight",
        f"Q = base @ f(L - L^T)[:, :k], L = tril(X, -1); {FRAMES}",
        (("any", "orthogonal"),),
        "base = Q completed to square, X = 0",
        f"geotorch Stiefel; {TRIVIALIZATIONS}",
        "frames:Stiefel",
        (TRIV,),
        cost="f and a product on max(n, k) squared",
        examples=("stiefel", "stiefel:triv=cayley"),
        compact="orthogonal:map=householder:triv=false",
        stores=based,
    ),
    Entry(
        "grassmannian",
        "manifolds",
        "orthonormal columns of which training moves only the span",
        "as stiefel, with rows 1 to k of X fixed to 0",
        (("any", "orthogonal"),),
        "base = Q completed to square, X = 0",
        "geotorch Grassmannian; Edelman, Arias and Smith 1998, arXiv:physics/9806030",
        "frames:Grassmannian",
        (TRIV,),
        cost="f and a product on max(n, k) squared",
        compact="orthogonal:map=householder:triv=false",
        stores=based,
    ),
    Entry(
        "low_rank",
        "manifolds",
        "at most `rank` singular values, U and V on their manifolds",
        f"W = U diag(s) V^T: s on X's diagonal, U = base0 @ f(tril(X, -1)), V = base2 @ f(triu(X, 1)^T); {FRAMES}",
        (("any", _rank("low_rank")),),
        "the truncated singular value decomposition",
        f"geotorch LowRank; {TRIVIALIZATIONS}",
        "singular_values:SingularValues",
        (RANK, TRIV),
        cost="f on n squared and on k squared; the inverse one SVD",
        examples=("low_rank:rank=2",),
        compact="factored:rank={rank}",
        stores=None,
    ),
    Entry(
        "fixed_rank",
        "manifolds",
        "exactly `rank` singular values above 0",
        "as low_rank, with singular values softplus(s) + 1e-6",
        (("any", _rank("fixed_rank", f":{FLOOR}")),),
        "the singular value decomposition, s = log(exp(S - 1e-6) - 1); values of 1e-6 and less have none",
        f"geotorch FixedRank; {TRIVIALIZATIONS}",
        "singular_values:SoftplusValues",
        (RANK, TRIV),
        cost="as low_rank",
        examples=("fixed_rank:rank=2",),
        stores=None,
    ),
    Entry(
        "almost_orthogonal",
        "manifolds",
        "singular values within lam of 1",
        "as low_rank of full rank, with singular values 1 + lam f(s)",
        (("any", lambda a: f"almost_orthogonal:lam={value_text(a.get('lam', 0.1))}"),),
        "the singular value decomposition, s = f^-1((S - 1) / lam); no gradient at the bounds",
        "geotorch AlmostOrthogonal",
        "singular_values:BoundedValues",
        (
            LAM,
            Argument("f", "choice", "from the line to -1 ... 1", "sin", choices=("sin", "tanh", "scaled_sigmoid")),
            TRIV,
        ),
        cost="as low_rank",
        examples=(
            "almost_orthogonal:lam=0.3",
            "almost_orthogonal:f=tanh",
            "almost_orthogonal:f=scaled_sigmoid:lam=0.5",
        ),
        stores=None,
    ),
    Entry(
        "invertible",
        "manifolds",
        "never singular; the sign of the determinant stays",
        "as fixed_rank of full rank, for square matrices",
        (("any", f"invertible:{FLOOR}"),),
        "as fixed_rank",
        "geotorch GLp",
        "singular_values:SoftplusValues",
        (TRIV,),
        cost="as low_rank",
        stores=None,
    ),
    Entry(
        "sln",
        "manifolds",
        "determinant 1",
        "as invertible, its singular values divided by their geometric mean",
        (("any", "special_linear"),),
        "the singular value decomposition; any condition number",
        "geotorch SL",
        "singular_values:UnitDeterminant",
        (TRIV,),
        cost="as low_rank",
        stores=None,
    ),
    Entry(
        "spd",
        "manifolds",
        "positive definite by its eigenvalues",
        f"A = Q diag(softplus(l) + 1e-6) Q^T: l on X's diagonal, Q = base @ f(tril(X, -1)); {FRAMES}",
        (("any", f"positive_definite:{FLOOR}"),),
        "the eigendecomposition, l = log(exp(L - 1e-6) - 1); eigenvalues of 1e-6 and less have none",
        "geotorch PSD",
        "semidefinite:SoftplusEigenvalues",
        (TRIV,),
        cost="f on n squared; the inverse one eigh",
        stores=None,
    ),
    Entry(
        "psd",
        "manifolds",
        "positive semidefinite",
        "as spd, with eigenvalues |l|",
        (("any", "psd"),),
        "the eigendecomposition; no gradient at an eigenvalue 0",
        "geotorch PSSD",
        "semidefinite:Eigenvalues",
        (TRIV,),
        cost="as spd",
        stores=None,
    ),
    Entry(
        "psd_low_rank",
        "manifolds",
        "positive semidefinite, at most `rank` eigenvalues above 0",
        "as psd, with the first `rank` columns of X",
        (("any", _rank("psd_low_rank")),),
        "the truncated eigendecomposition",
        "geotorch PSSDLowRank",
        "semidefinite:Eigenvalues",
        (RANK, TRIV),
        cost="as spd",
        examples=("psd_low_rank:rank=2",),
        stores=None,
    ),
    Entry(
        "psd_fixed_rank",
        "manifolds",
        "positive semidefinite, exactly `rank` eigenvalues above 0",
        "as spd, with the first `rank` columns of X",
        (("any", _rank("psd_fixed_rank", f":{FLOOR}")),),
        "as spd, truncated",
        "geotorch PSSDFixedRank",
        "semidefinite:SoftplusEigenvalues",
        (RANK, TRIV),
        cost="as spd",
        examples=("psd_fixed_rank:rank=2",),
        stores=None,
    ),
    Entry(
        "alpha_stable",
        "manifolds",
        "a stable linear system: eigenvalues left of -alpha",
        "A = P (S - Q/2) - alpha I, with Q = spd(X1), P = spd(X2), S = L - L^T, L = tril(X3, -1)",
        (("any", lambda a: f"hurwitz:alpha={value_text(a.get('alpha', 0.001))}"),),
        "P = I or a Lyapunov equation; an eigenvalue on the edge has none",
        "geotorch Hurwitz",
        "stability:AlphaStable",
        (_alpha(0.001), TRIV),
        cost="two f and a few products; the inverse some 15 inversions",
        originals=3,
        verifies=str(ALPHA),
        examples=("alpha_stable:alpha=0.1",),
        stores=None,
    ),
    Entry(
        "sphere_exp",
        "manifolds",
        "vectors of one length, moved along great circles",
        "W = radius (cos|u| x + sin|u| u/|u|), u = v - <v, x> x, x = base, along the last dimension",
        (("any", lambda a: f"unit_norm:r={value_text(a.get('radius', 1.0))}"),),
        "base = W / radius, v = 0; a zero vector has none",
        "geotorch Sphere; the exponential map of the sphere",
        "sphere:Geodesic",
        (RADIUS,),
        cost="a few passes",
        examples=("sphere_exp:radius=2.5",),
        stores=None,
    ),
)
