"""Manifolds by trivialisation and by factors: frames, ranks, determinants, definiteness, stability, spheres.

The laws and the stored tensors are geotorch's; the start is the trained weight in place of a random point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..spec import Argument, Value, value_text
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


def _rank(set_name: str, more: str = "") -> Callable[[Mapping[str, Value]], str]:
    return lambda a: f"{set_name}:rank={a['rank']}{more}"


CONSTRAINTS = (
    ConstraintEntry(
        name="low_rank",
        summary="rank at most `rank`",
        target="low_rank:LowRank",
        arguments=(RANK,),
        residual="s_{rank+1} / s_1 of the singular values",
        examples=("low_rank:rank=2",),
        complex=True,
        keeper="low_rank",
        of_constants=True,
    ),
    ConstraintEntry(
        name="fixed_rank",
        summary="rank exactly `rank`",
        target="low_rank:FixedRank",
        within=("low_rank",),
        arguments=(RANK, LEAST),
        residual="s_{rank+1} / s_1, and what s_rank / s_1 lacks of what rounding may leave of a zero, and of least",
        examples=("fixed_rank:rank=2", "fixed_rank:rank=3:least=1e-6"),
    ),
    ConstraintEntry(
        name="invertible",
        summary="square, det A != 0",
        target="low_rank:Invertible",
        arguments=(LEAST,),
        residual="what s_n / s_1 lacks of what rounding may leave of a zero, and of least",
        keeper="invertible",
    ),
    ConstraintEntry(
        name="special_linear",
        summary="det A = 1",
        target="determinant:SpecialLinear",
        within=("positive_determinant", "invertible"),
        residual="|log |det A|| / ||A^-T o A||_F (o entry by entry); 1 where det A <= 0; and as invertible",
    ),
    ConstraintEntry(
        name="almost_orthogonal",
        summary="singular values within `lam` of 1",
        target="almost_orthogonal:AlmostOrthogonal",
        arguments=(LAM,),
        residual="max(0, max |s - 1| - lam)",
        examples=("almost_orthogonal:lam=0.3",),
    ),
    ConstraintEntry(
        name="psd",
        summary="A = A^T, no eigenvalue negative",
        target="semidefinite:Semidefinite",
        within=("symmetric",),
        residual="row of A - A^T / row of A, the largest; max(0, -l_n) / max |l|",
        keeper="psd",
        of_constants=True,
    ),
    ConstraintEntry(
        name="psd_low_rank",
        summary="A = A^T, at most `rank` eigenvalues positive, the others 0",
        target="semidefinite:SemidefiniteLowRank",
        within=("psd",),
        arguments=(RANK,),
        residual="row of A - A^T / row of A, the largest; max(-l_n, l_{rank+1}) / max |l|",
        examples=("psd_low_rank:rank=2",),
    ),
    ConstraintEntry(
        name="psd_fixed_rank",
        summary="A = A^T, exactly `rank` eigenvalues positive, the others 0",
        target="semidefinite:SemidefiniteFixedRank",
        within=("psd",),
        arguments=(RANK, LEAST),
        residual="as psd_low_rank, and what l_rank / l_1 lacks of what rounding may leave of a zero, and of least",
        examples=("psd_fixed_rank:rank=2",),
    ),
    ConstraintEntry(
        name="hurwitz",
        summary="every eigenvalue has real part <= -alpha",
        target="stability:Hurwitz",
        arguments=(_alpha(0.0),),
        residual="max (Re l + alpha) / ||A||_2, less what computing l may be off by",
        examples=("hurwitz", "hurwitz:alpha=0.5"),
    ),
)

PARAMETRIZATIONS = (
    Entry(
        name="so",
        family="manifolds",
        summary="rotations around the weight: base times a rotation",
        law=f"Q = base @ f(L - L^T), L = tril(X, -1); {FRAMES}",
        maps=(("any", "special_orthogonal"),),
        right_inverse="base = Q, X = 0",
        source="geotorch SO; Lezcano-Casado and Martinez-Rubio 2019, arXiv:1901.08428",
        target="frames:SpecialOrthogonal",
        arguments=(TRIV,),
        cost="matrix_exp or an LU solve, and a product",
        examples=("so:triv=cayley",),
        stores=based,
    ),
    Entry(
        name="stiefel",
        family="manifolds",
        summary="orthonormal columns (rows if wide) around the weight",
        law=f"Q = base @ f(L - L^T)[:, :k], L = tril(X, -1); {FRAMES}",
        maps=(("any", "orthogonal"),),
        right_inverse="base = Q completed to square, X = 0",
        source=f"geotorch Stiefel; {TRIVIALIZATIONS}",
        target="frames:Stiefel",
        arguments=(TRIV,),
        cost="f and a product on max(n, k) squared",
        examples=("stiefel", "stiefel:triv=cayley"),
        compact="orthogonal:map=householder:triv=false",
        stores=based,
    ),
    Entry(
        name="grassmannian",
        family="manifolds",
        summary="orthonormal columns of which training moves only the span",
        law="as stiefel, with rows 1 to k of X fixed to 0",
        maps=(("any", "orthogonal"),),
        right_inverse="base = Q completed to square, X = 0",
        source="geotorch Grassmannian; Edelman, Arias and Smith 1998, arXiv:physics/9806030",
        target="frames:Grassmannian",
        arguments=(TRIV,),
        cost="f and a product on max(n, k) squared",
        compact="orthogonal:map=householder:triv=false",
        stores=based,
    ),
    Entry(
        name="low_rank",
        family="manifolds",
        summary="at most `rank` singular values, U and V on their manifolds",
        law=f"W = U diag(s) V^T: s on X's diagonal, U = base0 @ f(tril(X, -1)), V = base2 @ f(triu(X, 1)^T); {FRAMES}",
        maps=(("any", _rank("low_rank")),),
        right_inverse="the truncated singular value decomposition",
        source=f"geotorch LowRank; {TRIVIALIZATIONS}",
        target="low_rank:SingularValues",
        arguments=(RANK, TRIV),
        cost="f on n squared and on k squared; the inverse one SVD",
        examples=("low_rank:rank=2",),
        compact="factored:rank={rank}",
        stores=None,
    ),
    Entry(
        name="fixed_rank",
        family="manifolds",
        summary="exactly `rank` singular values above 0",
        law="as low_rank, with singular values softplus(s) + 1e-6",
        maps=(("any", _rank("fixed_rank", f":{FLOOR}")),),
        right_inverse="the singular value decomposition, s = log(exp(S - 1e-6) - 1); values of 1e-6 and less have none",
        source=f"geotorch FixedRank; {TRIVIALIZATIONS}",
        target="low_rank:SoftplusValues",
        arguments=(RANK, TRIV),
        cost="as low_rank",
        examples=("fixed_rank:rank=2",),
        stores=None,
    ),
    Entry(
        name="almost_orthogonal",
        family="manifolds",
        summary="singular values within lam of 1",
        law="as low_rank of full rank, with singular values 1 + lam f(s)",
        maps=(("any", lambda a: f"almost_orthogonal:lam={value_text(a.get('lam', 0.1))}"),),
        right_inverse="the singular value decomposition, s = f^-1((S - 1) / lam); no gradient at the bounds",
        source="geotorch AlmostOrthogonal",
        target="almost_orthogonal:BoundedValues",
        arguments=(
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
        name="invertible",
        family="manifolds",
        summary="never singular; the sign of the determinant stays",
        law="as fixed_rank of full rank, for square matrices",
        maps=(("any", f"invertible:{FLOOR}"),),
        right_inverse="as fixed_rank",
        source="geotorch GLp",
        target="low_rank:SoftplusValues",
        arguments=(TRIV,),
        cost="as low_rank",
        stores=None,
    ),
    Entry(
        name="sln",
        family="manifolds",
        summary="determinant 1",
        law="as invertible, its singular values divided by their geometric mean",
        maps=(("any", "special_linear"),),
        right_inverse="the singular value decomposition; any condition number",
        source="geotorch SL",
        target="determinant:UnitDeterminant",
        arguments=(TRIV,),
        cost="as low_rank",
        stores=None,
    ),
    Entry(
        name="spd",
        family="manifolds",
        summary="positive definite by its eigenvalues",
        law=f"A = Q diag(softplus(l) + 1e-6) Q^T: l on X's diagonal, Q = base @ f(tril(X, -1)); {FRAMES}",
        maps=(("any", f"positive_definite:{FLOOR}"),),
        right_inverse="the eigendecomposition, l = log(exp(L - 1e-6) - 1); eigenvalues of 1e-6 and less have none",
        source="geotorch PSD",
        target="semidefinite:SoftplusEigenvalues",
        arguments=(TRIV,),
        cost="f on n squared; the inverse one eigh",
        stores=None,
    ),
    Entry(
        name="psd",
        family="manifolds",
        summary="positive semidefinite",
        law="as spd, with eigenvalues |l|",
        maps=(("any", "psd"),),
        right_inverse="the eigendecomposition; no gradient at an eigenvalue 0",
        source="geotorch PSSD",
        target="semidefinite:Eigenvalues",
        arguments=(TRIV,),
        cost="as spd",
        stores=None,
    ),
    Entry(
        name="psd_low_rank",
        family="manifolds",
        summary="positive semidefinite, at most `rank` eigenvalues above 0",
        law="as psd, with the first `rank` columns of X",
        maps=(("any", _rank("psd_low_rank")),),
        right_inverse="the truncated eigendecomposition",
        source="geotorch PSSDLowRank",
        target="semidefinite:Eigenvalues",
        arguments=(RANK, TRIV),
        cost="as spd",
        examples=("psd_low_rank:rank=2",),
        stores=None,
    ),
    Entry(
        name="psd_fixed_rank",
        family="manifolds",
        summary="positive semidefinite, exactly `rank` eigenvalues above 0",
        law="as spd, with the first `rank` columns of X",
        maps=(("any", _rank("psd_fixed_rank", f":{FLOOR}")),),
        right_inverse="as spd, truncated",
        source="geotorch PSSDFixedRank",
        target="semidefinite:SoftplusEigenvalues",
        arguments=(RANK, TRIV),
        cost="as spd",
        examples=("psd_fixed_rank:rank=2",),
        stores=None,
    ),
    Entry(
        name="alpha_stable",
        family="manifolds",
        summary="a stable linear system: eigenvalues left of -alpha",
        law="A = P (S - Q/2) - alpha I, with Q = spd(X1), P = spd(X2), S = L - L^T, L = tril(X3, -1)",
        maps=(("any", lambda a: f"hurwitz:alpha={value_text(a.get('alpha', 0.001))}"),),
        right_inverse="P = I or a Lyapunov equation; an eigenvalue on the edge has none",
        source="geotorch Hurwitz",
        target="stability:AlphaStable",
        arguments=(_alpha(0.001), TRIV),
        cost="two f and a few products; the inverse some 15 inversions",
        originals=3,
        verifies=str(ALPHA),
        examples=("alpha_stable:alpha=0.1",),
        stores=None,
    ),
    Entry(
        name="sphere_exp",
        family="manifolds",
        summary="vectors of one length, moved along great circles",
        law="W = radius (cos|u| x + sin|u| u/|u|), u = v - <v, x> x, x = base, along the last dimension",
        maps=(("any", lambda a: f"unit_norm:r={value_text(a.get('radius', 1.0))}"),),
        right_inverse="base = W / radius, v = 0; a zero vector has none",
        source="geotorch Sphere; the exponential map of the sphere",
        target="sphere:Geodesic",
        arguments=(RADIUS,),
        cost="a few passes",
        examples=("sphere_exp:radius=2.5",),
        stores=None,
    ),
)
