"""The core of the table: the tutorial's maps, torch's own parametrizations, and masks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from ..spec import Argument, Value, value_text
from .entry import ConstraintEntry, Entry, Shape, Stored, based, itself, masked
from .measures import MASK, NORM, UNIT_U_V

AMOUNT = Argument(
    "amount", "amount", "share of the entries to drop (0.3), or their number (300)", required=True, minimum=0
)
DIM = Argument(
    "dim",
    "int",
    "the dimension in front when the tensor is flattened to a matrix (outputs)",
    0,
    minimum=-64,
    maximum=63,
)
TUTORIAL = "PyTorch's Parametrizations Tutorial"


def _hermitian_domain(domain: str, arguments: object) -> bool:
    """In complex numbers the map keeps its promise after ^H, not after ^T."""
    return domain in ("hermitian", "skew_hermitian")


def _orthogonal_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    return based(shape, arguments) if arguments.get("triv", True) else itself(shape, arguments)


def _weight_norm_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    dim = arguments.get("dim", 0)
    lengths = (
        () if dim in (None, -1) else tuple(size if axis == dim % len(shape) else 1 for axis, size in enumerate(shape))
    )
    return {"original0": (None, lengths), "original1": (None, shape)}


def _spectral_norm_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    if len(shape) == 1:
        return itself(shape, arguments)
    outputs = shape[cast("int", arguments.get("dim", 0))]
    return {"original": (None, shape), "_u": (None, (outputs,)), "_v": (None, (math.prod(shape) // outputs,))}


def _weight_norm_call(arguments: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
    return "weight_norm", {"dim": arguments.get("dim", 0)}


def _spectral_norm_call(arguments: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
    steps = {name: arguments[name] for name in ("n_power_iterations",) if name in arguments}
    return "spectral_norm", {**steps, "dim": arguments.get("dim", 0)}


def _orthogonal_call(arguments: Mapping[str, Value]) -> tuple[str, dict[str, Value]]:
    kind = {"orthogonal_map": arguments["map"]} if "map" in arguments else {}
    return "orthogonal", {**kind, **({"use_trivialization": False} if arguments.get("triv") is False else {})}


CONSTRAINTS = (
    ConstraintEntry(
        name="any", summary="every finite tensor", target="norm:AnyTensor", within=(), residual="0", complex=True
    ),
    ConstraintEntry(
        name="symmetric",
        summary="A = A^T",
        target="symmetric:SymmetricMatrices",
        residual="||A - A^T||_F / ||A||_F",
        complex=True,
        keeper="symmetric",
        of_constants=True,
    ),
    ConstraintEntry(
        name="skew",
        summary="A = -A^T",
        target="symmetric:SkewMatrices",
        residual="||A + A^T||_F / ||A||_F",
        complex=True,
    ),
    ConstraintEntry(
        name="orthogonal",
        summary="Q^H Q = I: orthonormal columns, rows if wide",
        target="orthogonal:OrthogonalMatrices",
        residual="||Q^H Q - I||_2",
        complex=True,
        keeper="orthogonal",
        implies=("unit_spectral_norm", "unit_norm", "spectral_cap"),
    ),
    ConstraintEntry(
        name="special_orthogonal",
        summary="rotations: Q^T Q = I, det Q = +1",
        target="orthogonal:Rotations",
        within=("orthogonal", "special_linear"),
        residual="||Q^T Q - I||_2, at least 2 where det < 0",
        rotations=True,
    ),
    ConstraintEntry(
        name="positive_definite",
        summary="A = A^T, all eigenvalues positive",
        target="exponential:PositiveDefinite",
        within=("psd", "positive_determinant"),
        arguments=(Argument("least", "float", "a bound below the eigenvalues", 0.0, minimum=0, maximum=1),),
        residual=(
            "row of A - A^T / row of A, the largest; what lambda_min / max |lambda| lacks of what rounding may leave "
            "of a zero, and of least"
        ),
        closure="psd",
    ),
    ConstraintEntry(
        name="positive_determinant",
        summary="det A > 0",
        target="exponential:PositiveDeterminant",
        within=("invertible",),
        residual="1 where det A <= 0",
    ),
    ConstraintEntry(
        name="unit_spectral_norm",
        summary="largest singular value 1",
        target="norm:UnitSpectralNorm",
        arguments=(
            DIM,
            Argument(
                "within",
                "float",
                "how far from 1 it may be: what u and v had left of it when the weight was baked",
                0.0,
                minimum=0,
                maximum=1,
            ),
        ),
        residual="max(sigma_max - 1 - within, 1 - sigma_max, 0)",
        examples=("unit_spectral_norm", "unit_spectral_norm:dim=1", "unit_spectral_norm:within=0.03"),
        complex=True,
    ),
    ConstraintEntry(
        name="sparse",
        summary="at least `amount` of the entries are zero",
        target="mask:Sparse",
        arguments=(AMOUNT,),
        residual="missing zeros / number of entries",
        examples=("sparse:amount=0.4", "sparse:amount=3"),
        complex=True,
    ),
)

PARAMETRIZATIONS = (
    Entry(
        name="symmetric",
        family="symmetric",
        summary="upper triangle mirrored: A = A^T",
        law="A = triu(X) + triu(X, 1)^T",
        maps=(("any", "symmetric"),),
        right_inverse="A itself (exact)",
        source=TUTORIAL,
        target="symmetric:Symmetric",
        cost="one pass",
        complex=True,
    ),
    Entry(
        name="skew",
        family="symmetric",
        summary="upper triangle minus its mirror: A = -A^T",
        law="A = triu(X, 1) - triu(X, 1)^T",
        maps=(("any", "skew"),),
        right_inverse="A itself (exact)",
        source=f"{TUTORIAL}; torch's orthogonal uses the lower triangle",
        target="symmetric:Skew",
        cost="one pass",
        complex=True,
    ),
    Entry(
        name="cayley",
        family="orthogonal",
        summary="skew-symmetric to a rotation without half turns",
        law="Q = (I + X)(I - X)^-1",
        maps=(("skew", "special_orthogonal"), ("skew_hermitian", "unitary")),
        right_inverse=(
            "X = (Q + I)^-1 (Q - I); none at det -1 if real, nor at eigenvalue -1 (there the nearest Q without)"
        ),
        source=(
            f"{TUTORIAL}; Helfrich, Willmott and Ye 2018, arXiv:1707.09520; complex: Maduranga, Helfrich and Ye 2018, "
            "arXiv:1811.04142"
        ),
        target="orthogonal:Cayley",
        examples=("skew,cayley", "skew_hermitian,cayley"),
        cost="one LU solve, about 4 products",
        products=4,
        complex=_hermitian_domain,
    ),
    Entry(
        name="matrix_exp",
        family="orthogonal",
        summary="exponential: skew to a rotation, symmetric to positive definite",
        law="Y = exp(X) = I + X + X^2/2 + ...",
        maps=(
            ("skew", "special_orthogonal"),
            ("symmetric", "positive_definite"),
            ("skew_hermitian", "unitary"),
            ("hermitian", "hermitian_positive_definite"),
            ("any", "positive_determinant"),
        ),
        right_inverse="the logarithm of a rotation or unitary matrix (half turns too), or of a positive definite one",
        source=f"{TUTORIAL}; Lezcano-Casado and Martinez-Rubio 2019, arXiv:1901.08428",
        target="exponential:MatrixExp",
        examples=("skew,matrix_exp", "symmetric,matrix_exp", "skew_hermitian,matrix_exp", "hermitian,matrix_exp"),
        cost="about 12 products",
        products=12,
        complex=_hermitian_domain,
    ),
    Entry(
        name="orthogonal",
        family="orthogonal",
        summary="torch's orthogonal: orthonormal columns (rows if wide)",
        law="base @ f(tril(X)): exp(A), (I + A/2)(I - A/2)^-1 with A = L - L^H, or Householder reflectors",
        maps=(
            (
                "any",
                lambda a: (
                    "special_orthogonal" if not a.get("triv", True) and a.get("map") != "householder" else "orthogonal"
                ),
            ),
        ),
        right_inverse="base = the weight, X = -I; householder also without base; exp and cayley without base if square",
        source="torch.nn.utils.parametrizations.orthogonal; Lezcano-Casado 2019, arXiv:1909.09501",
        target="orthogonal:Orthogonal",
        arguments=(
            Argument(
                "map",
                "choice",
                "default: matrix_exp if square, else householder",
                choices=("matrix_exp", "cayley", "householder"),
            ),
            Argument("triv", "bool", "store a base (torch's use_trivialization)", True),
        ),
        cost="as its map, on max(n, k) squared for matrix_exp and cayley",
        products=12,
        compact="orthogonal:map=householder:triv=false",
        examples=(
            "orthogonal",
            *(f"orthogonal:map={m}" for m in ("matrix_exp", "cayley", "householder")),
            *(f"orthogonal:map={m}:triv=false" for m in ("matrix_exp", "cayley", "householder")),
        ),
        # torch's reflectors are real only; without a base its complex maps reach no special orthogonal set but all
        # unitary matrices, which skew_hermitian,matrix_exp and skew_hermitian,cayley do with right inverses.
        # The exponential of a skew-symmetric matrix is a rotation, and some of a rotation's columns are orthonormal.
        image_at=lambda image, shape: image if shape[-2:-1] == shape[-1:] else "orthogonal",
        complex=lambda domain, a: a.get("map") != "householder" and bool(a.get("triv", True)),
        stores=_orthogonal_stores,
        torch_call=_orthogonal_call,
    ),
    Entry(
        name="weight_norm",
        family="norm",
        summary="length and direction: original0 = g, original1 = v",
        law="W = g v / ||v||, the norm over all dimensions but dim",
        maps=(("any", "any"),),
        right_inverse="(||W||, W); a zero slice has none",
        source="torch.nn.utils.parametrizations.weight_norm; Salimans and Kingma 2016, arXiv:1602.07868",
        target="norm:WeightNorm",
        arguments=(
            Argument(
                "dim",
                "dim",
                "the dimension that keeps its own length; none: the whole tensor",
                0,
                minimum=-64,
                maximum=63,
            ),
        ),
        cost="one pass",
        originals=2,
        spelt=("dim",),
        old_form="weight_norm_old",
        verifies=str(NORM),
        examples=("weight_norm", "weight_norm:dim=1", "weight_norm:dim=-1", "weight_norm:dim=none"),
        stores=_weight_norm_stores,
        torch_call=_weight_norm_call,
    ),
    Entry(
        name="spectral_norm",
        family="norm",
        summary="divided by its largest singular value",
        law="W = X / (u^T X v), u and v stored",
        maps=(("any", lambda a: f"unit_spectral_norm:dim={a.get('dim', 0)}"),),
        right_inverse="W itself, with u and v its exact singular vectors",
        source="torch.nn.utils.parametrizations.spectral_norm; Miyato et al. 2018, arXiv:1802.05957",
        target="norm:SpectralNorm",
        arguments=(
            DIM,
            Argument("n_power_iterations", "int", "steps of the power method in training", 1, minimum=1, maximum=1000),
        ),
        cost="a matrix-vector product; the inverse one SVD",
        verifies=str(UNIT_U_V),
        examples=("spectral_norm", "spectral_norm:dim=1"),
        keeps="within",
        old_form="spectral_norm_v1",
        complex=True,
        stores=_spectral_norm_stores,
        torch_call=_spectral_norm_call,
    ),
    Entry(
        name="mask",
        family="mask",
        summary="a stored mask: today's zeros stay zero",
        law="W = X * mask",
        maps=(("any", "any"),),
        right_inverse="W itself: masked entries keep their values until baked",
        source="torch.nn.utils.prune.custom_from_mask",
        target="mask:Mask",
        cost="one pass",
        old_form="prune_old",
        complex=True,
        stores=masked,
        verifies=str(MASK),
        takes=("mask",),
        keeps_zeros=True,
    ),
    Entry(
        name="prune_random",
        family="mask",
        summary="a random mask of zeros, stored",
        law="W = X * mask",
        maps=(("any", lambda a: f"sparse:amount={value_text(a['amount'])}"),),
        right_inverse="W itself: pruned entries keep their values until baked",
        source=f"{TUTORIAL}; torch.nn.utils.prune.random_unstructured",
        target="mask:PruneRandom",
        arguments=(AMOUNT,),
        cost="one pass",
        verifies=str(MASK),
        examples=("prune_random:amount=0.3",),
        old_form="prune_old",
        complex=True,
        stores=masked,
    ),
    Entry(
        name="prune_l1",
        family="mask",
        summary="a mask that drops the entries of smallest magnitude, stored",
        law="W = X * mask",
        maps=(("any", lambda a: f"sparse:amount={value_text(a['amount'])}"),),
        right_inverse="W itself: pruned entries keep their values until baked",
        source="torch.nn.utils.prune.l1_unstructured",
        target="mask:PruneL1",
        arguments=(
            AMOUNT,
            Argument(
                "scope",
                "choice",
                "of each tensor, or of all that `add` names together",
                "tensor",
                choices=("tensor", "global"),
            ),
        ),
        cost="one sort",
        verifies=str(MASK),
        examples=("prune_l1:amount=0.4", "prune_l1:amount=3"),
        old_form="prune_old",
        complex=True,
        stores=masked,
        over_all=("scope", "global"),
    ),
)
