"""geotorch's constraints under its own names, as a reader of its checkpoints knows them.

Most are an entry of `manifolds` under another name; its symmetric and skew take the lower triangle, and its
sphere has two forms.
"""

from __future__ import annotations

from dataclasses import replace

from ..spec import Argument, value_text
from .entry import Entry
from .manifolds import PARAMETRIZATIONS as MANIFOLDS
from .manifolds import RADIUS

LOWER = Argument("lower", "bool", "take the lower triangle", True)
SAME = {
    "orthogonal": "stiefel",
    "grassmannian": "grassmannian",
    "almost_orthogonal": "almost_orthogonal",
    "low_rank": "low_rank",
    "fixed_rank": "fixed_rank",
    "invertible": "invertible",
    "sln": "sln",
    "positive_definite": "spd",
    "positive_semidefinite": "psd",
    "positive_semidefinite_low_rank": "psd_low_rank",
    "positive_semidefinite_fixed_rank": "psd_fixed_rank",
    "alpha_stable": "alpha_stable",
}
_BY_NAME = {entry.name: entry for entry in MANIFOLDS}


def _named(name: str, ours: str) -> Entry:
    entry = _BY_NAME[ours]
    return replace(
        entry,
        name=f"geotorch.{name}",
        family="geotorch",
        source=entry.source.replace("geotorch ", f"geotorch.{name}, class ", 1),
        examples=(),
        same_as=ours,
    )


CONSTRAINTS = ()
PARAMETRIZATIONS = (
    Entry(
        name="geotorch.symmetric",
        family="geotorch",
        summary="lower triangle mirrored: A = A^T",
        law="A = tril(X) + tril(X, -1)^T; lower=false: the upper triangle, as `symmetric`",
        maps=(("any", "symmetric"),),
        right_inverse="A itself (exact)",
        source="geotorch.symmetric",
        target="geotorch:LowerSymmetric",
        arguments=(LOWER,),
        cost="one pass",
    ),
    Entry(
        name="geotorch.skew",
        family="geotorch",
        summary="lower triangle minus its mirror: A = -A^T",
        law="A = tril(X, -1) - tril(X, -1)^T; lower=false: the upper triangle, as `skew`",
        maps=(("any", "skew"),),
        right_inverse="A itself (exact)",
        source="geotorch.skew",
        target="geotorch:LowerSkew",
        arguments=(LOWER,),
        cost="one pass",
    ),
    Entry(
        name="geotorch.sphere",
        family="geotorch",
        summary="vectors of one length along the last dimension",
        law="as sphere_exp; with embedded=true W = radius X / ||X||",
        maps=(("any", lambda a: f"unit_norm:r={value_text(a.get('radius', 1.0))}"),),
        right_inverse="base = W / radius, v = 0; embedded: W itself",
        source="geotorch.sphere, classes Sphere and SphereEmbedded",
        target="sphere:GeodesicOrEmbedded",
        arguments=(RADIUS, Argument("embedded", "bool", "normalise, in place of geodesics from a base", False)),
        cost="a few passes",
        examples=("geotorch.sphere:embedded=true",),
    ),
    *(_named(name, ours) for name, ours in SAME.items()),
)
