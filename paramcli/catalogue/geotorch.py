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
        "geotorch.symmetric",
        "geotorch",
        "lower triangle mirrored: A = A^T",
        "A = tril(X) + tril(X, -1)^T; lower=false: the upper triangle, as `symmetric`",
        (("any", "symmetric"),),
        "A itself (exact)",
        "geotorch.symmetric",
        "geotorch:LowerSymmetric",
        (LOWER,),
        cost="one pass",
    ),
    Entry(
        "geotorch.skew",
        "geotorch",
        "lower triangle minus its mirror: A = -A^T",
        "A = tril(X, -1) - tril(X, -1)^T; lower=false: the upper triangle, as `skew`",
        (("any", "skew"),),
        "A itself (exact)",
        "geotorch.skew",
        "geotorch:LowerSkew",
        (LOWER,),
        cost="one pass",
    ),
    Entry(
        "geotorch.sphere",
        "geotorch",
        "vectors of one length along the last dimension",
        "as sphere_exp; with embedded=true W = radius X / ||X||",
        (("any", lambda a: f"unit_norm:r={value_text(a.get('radius', 1.0))}"),),
        "base = W / radius, v = 0; embedded: W itself",
        "geotorch.sphere, classes Sphere and SphereEmbedded",
        "sphere:GeodesicOrEmbedded",
        (RADIUS, Argument("embedded", "bool", "normalise, in place of geodesics from a base", False)),
        cost="a few passes",
        examples=("geotorch.sphere:embedded=true",),
    ),
    *(_named(name, ours) for name, ours in SAME.items()),
)
