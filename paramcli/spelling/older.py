"""The older spellings: one place for the keys, the names and the shapes of each.

spelling               keys                                           roles
weight_norm_old        weight_g, weight_v                             original0, original1
spectral_norm_v1       weight_orig, weight_u, weight_v                original, 0._u, 0._v
spectral_norm_v1_kept  weight_orig, weight_u, weight_v, weight        original, 0._u, 0._v, value
spectral_norm_bar      weight_bar, weight_u, weight_v                 original, 0._u, 0._v
spectral_norm_v0       weight_orig, weight, weight_u                  original, value, 0._u
soft_spectral_norm_old weight_orig, weight_u, weight_v, weight_sigma  original, 0._u, 0._v, 0._sigma
prune_old              weight_orig, weight_mask                       original, 0.mask
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..checkpoint.source import TensorInfo
from .readings import Reading, mask, soft_spectral_norm, spectral_norm, spectral_norm_v0, weight_norm

# The tensors that torch's functions from before parametrize are put on; a bias can be pruned alone. Other names that
# end alike (attn.w_g, att.x_v, blurred_cent_mask, bias_v) are tensors of their own.
_WEIGHT = r"(?:(?:in|q|k|v)_proj_)?weight(?:_[a-z]+_l[0-9]+(?:_reverse)?)?"
_BIAS = r"(?:in_proj_)?bias(?:_[a-z]+_l[0-9]+(?:_reverse)?)?"
# What is stored of one may be spelt an older way itself: a pruned weight_v.
_STORED = r"(?:_(?:g|v|orig|bar))*"
WEIGHTS = re.compile(f"{_WEIGHT}{_STORED}|original[0-9]*")
PRUNED = re.compile(f"(?:{_WEIGHT}|{_BIAS}){_STORED}|original[0-9]*")
NAME = re.compile(f"{_WEIGHT}|{_BIAS}")


@dataclass(frozen=True)
class Spelling:
    """An older way to spell a parametrized tensor: what it is called, its key suffixes and their roles, and the test of
    its shapes; `leaf`: the names of tensors that are taken for it unasked.
    """

    form: str
    title: str
    roles: Mapping[str, str]
    read: Callable[[Mapping[str, TensorInfo]], Reading | None]
    leaf: re.Pattern[str] = WEIGHTS


_SPECTRAL = {"_u": "0._u", "_v": "0._v"}
# Those with more keys first: a dialect is the whole set of its keys.
SPELLINGS = (
    Spelling(
        "soft_spectral_norm_old",
        "soft spectral norm",
        {"_orig": "original", **_SPECTRAL, "_sigma": "0._sigma"},
        soft_spectral_norm,
    ),
    Spelling(
        "spectral_norm_v1_kept", "spectral norm", {"_orig": "original", "": "value", **_SPECTRAL}, spectral_norm_v0
    ),
    Spelling("spectral_norm_v1", "spectral norm", {"_orig": "original", **_SPECTRAL}, spectral_norm),
    Spelling("spectral_norm_bar", "spectral norm", {"_bar": "original", **_SPECTRAL}, spectral_norm),
    Spelling("spectral_norm_v0", "spectral norm", {"_orig": "original", "": "value", "_u": "0._u"}, spectral_norm_v0),
    Spelling("prune_old", "pruning", {"_orig": "original", "_mask": "0.mask"}, mask, PRUNED),
    Spelling("weight_norm_old", "weight norm", {"_g": "original0", "_v": "original1"}, weight_norm),
)
SUFFIXES = tuple(sorted({s for spelling in SPELLINGS for s in spelling.roles if s}))
FORM_OF_SPELLING = {spelling.form: spelling for spelling in SPELLINGS}
# The spelling that each set of roles has in the older style: what torch wrote before parametrize.
OLD_FORM = {
    frozenset(("original0", "original1")): "weight_norm_old",
    frozenset(("original", "0._u", "0._v")): "spectral_norm_v1",
    frozenset(("original", "0.mask")): "prune_old",
    frozenset(("original", "0._u", "0._v", "0._sigma")): "soft_spectral_norm_old",
}
