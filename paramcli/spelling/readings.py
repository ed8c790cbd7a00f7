"""What keys and shapes alone say about a chain that no record names: one, several, or why none can be said."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..checkpoint.source import TensorInfo
from ..dtypes import EDITABLE, kind_of
from ..errors import TENSOR
from ..text import printable, shape_text

if TYPE_CHECKING:
    from ..chain import Chain


@dataclass(frozen=True)
class Reading:
    """What keys and shapes alone say: a chain, or why none can be said."""

    chain: Chain | None = None
    problem: str | None = None
    # Chains that keys and shapes leave open and the data decide (u against W v).
    alternatives: tuple[Chain, ...] = ()


@functools.lru_cache(64)
def built_in(text: str) -> Chain:
    """A chain of the built-in table. The table is read where something is parametrized, not for plain tensors."""
    from ..chain import parse_chain

    return parse_chain(text)


def norm_dim(g: tuple[int, ...], v: tuple[int, ...]) -> list[int | None]:
    """The weight-norm dims that g's shape allows beside v's; None stands for the whole tensor."""
    if g == ():
        return [None]
    if len(g) != len(v):
        return []
    found: list[int | None] = [d for d in range(len(v)) if all(s == (v[d] if i == d else 1) for i, s in enumerate(g))]
    # All ones: every dim of size 1 keeps the same slice, the whole tensor, so the first stands for all.
    return found[:1] if len(found) > 1 else found


def weight_norm(parts: Mapping[str, TensorInfo]) -> Reading | None:
    g, v = parts["original0"], parts["original1"]
    dims = norm_dim(g.shape, v.shape)
    # A norm may be kept wider than the directions; the weight has the dtype of these.
    if not {g.dtype, v.dtype} <= EDITABLE:
        return None
    if not dims:
        return _squeezed(g.shape, v.shape)
    return Reading(built_in(f"weight_norm:dim={'none' if dims[0] is None else dims[0]}"))


def _squeezed(g: tuple[int, ...], v: tuple[int, ...]) -> Reading | None:
    """Norms in another shape than torch's: [C] or [C, 1] for a kernel of C x k x k."""
    count = math.prod(g)
    if [size for size in g if size != 1] not in ([count], []) or not (
        fits := [str(d) for d, size in enumerate(v) if size == count > 1] or ["none"] * (count == 1)
    ):
        return None
    chains = " or ".join(f"weight_norm:dim={dim}" for dim in fits)
    return Reading(
        problem=f"{TENSOR} has the keys of a weight norm, and its g ({shape_text(g)}) is not in the shape that torch "
        f"gives it: {chains} fits"
    )


def spectral_dims(shape: tuple[int, ...], u: int, v: int | None) -> list[int]:
    """The dims whose flattened matrix has len(u) rows and len(v) columns."""
    numel = math.prod(shape)
    return [d for d, size in enumerate(shape) if size == u and (v is None or size * v == numel)]


def spectral_norm(parts: Mapping[str, TensorInfo]) -> Reading | None:
    W, u, v = parts["original"], parts["0._u"], parts.get("0._v")
    if len(u.shape) != 1 or (v is not None and len(v.shape) != 1) or W.dtype not in EDITABLE or len(W.shape) < 2:
        return None
    dims = spectral_dims(W.shape, u.shape[0], v.shape[0] if v is not None else None)
    if not dims:
        return None
    chains = tuple(built_in(f"spectral_norm:dim={dim}") for dim in dims)
    return Reading(chains[0]) if len(chains) == 1 else Reading(alternatives=chains)


def soft_spectral_norm(parts: Mapping[str, TensorInfo]) -> Reading | None:
    """The bound is in no key."""
    W, u, v = parts["original"], parts["0._u"], parts["0._v"]
    if W.dtype not in EDITABLE or len(W.shape) < 2 or len(u.shape) != 1 or len(v.shape) != 1:
        return None
    if (u.shape[0], v.shape[0]) == (W.shape[0], math.prod(W.shape[1:])):
        return Reading(
            problem=f"{TENSOR} is a soft spectral norm by its keys (a sigma beside u and v), whose bound they do not "
            "tell: soft_spectral_norm:coeff=X fits, with :eps=1e-5 where the code adds that to the divisor"
        )
    return Reading(
        problem=f"{TENSOR} is a soft spectral norm of a convolution by its keys (a sigma beside u and v of the size of "
        "the input), whose sigma needs the stride, the padding and the bound, and they tell none of these"
    )


def mask(parts: Mapping[str, TensorInfo]) -> Reading | None:
    W, mask = parts["original"], parts["0.mask"]
    # Nobody prunes integers: such a pair is a table of positions and which of them count.
    fits = mask.shape == W.shape and kind_of(W.dtype) in ("float", "half", "complex")
    return Reading(built_in("mask")) if fits else None


def _spectral_reparam(parts: Mapping[str, TensorInfo]) -> Reading | None:
    """RADIO's: always dim 0, one scale; its code reads the first of several, which a file with several may not mean."""
    W, u, v, scale = (parts[role] for role in ("original", "0._u", "0._v", "0.scale"))
    if len(W.shape) < 2 or u.shape != W.shape[:1] or v.shape != (math.prod(W.shape[1:]),) or scale.shape != (1, 1):
        return None
    return Reading(built_in("spectral_reparam")) if W.dtype in EDITABLE else None


def spectral_norm_v0(parts: Mapping[str, TensorInfo]) -> Reading | None:
    if parts["value"].shape != parts["original"].shape:
        return None
    return spectral_norm(parts)


# Roles that geotorch's products of manifolds store, here and there -> what can be said of them.
_GEOTORCH = {
    frozenset(
        ("original", "0.0.base", "0.2.base")
    ): "U f(s) V^T with two orthogonal bases, whose f and rank the keys do not tell: "
    "geotorch.low_rank:rank=N, geotorch.fixed_rank:rank=N, geotorch.almost_orthogonal:lam=X, and for square ones "
    "geotorch.invertible and geotorch.sln fit",
    frozenset(("original", "0.0.base")): "Q f(l) Q^T with an orthogonal base, whose f and rank the keys do not tell: "
    "geotorch.positive_definite, geotorch.positive_semidefinite, geotorch.positive_semidefinite_low_rank:rank=N and "
    "geotorch.positive_semidefinite_fixed_rank:rank=N fit",
    frozenset(
        ("original0", "original1", "original2", "0.In", "0.alpha", "0.0.0.base", "0.1.0.base")
    ): "a stable linear system by "
    "geotorch's keys, whose map of its bases they do not tell: geotorch.alpha_stable:alpha=X fits, "
    "with X as in 0.alpha",
}


def _one_base(original: tuple[int, ...], base: tuple[int, ...]) -> str:
    """What fits one base: of orthogonal matrices it is as square as the longer side, of unit vectors like
    the original.
    """
    if base == original and (len(base) < 2 or base[-1] != base[-2]):
        return "unit vectors by geotorch's keys, and not their length: geotorch.sphere:radius=X fits"
    side = max(original[-2:], default=0)
    seen = "" if base == (*original[:-2], side, side) else ", with the view it was made with"
    sphere = "; geotorch.sphere too, if it holds unit vectors" if base == original else ""
    return (
        "an orthogonal parametrization whose map the keys do not tell: orthogonal:map=matrix_exp, "
        "orthogonal:map=cayley, "
        "orthogonal:map=householder, geotorch.orthogonal, geotorch.orthogonal:triv=cayley and geotorch.grassmannian "
        f"fit{seen}{sphere}"
    )


def _low_rank_adapter(parts: Mapping[str, TensorInfo]) -> Reading:
    A, B, W = (parts[role].shape for role in ("0.lora_A", "0.lora_B", "original"))
    name = "minlora" if "0.lora_dropout_mask" in parts else "lora"
    for rank, embedding in ((A[:1], False), (A[1:], True)):
        first, last = (A, B) if embedding else (B, A)
        if (
            len(A) == len(B) == 2
            and first == (W[0], *rank)
            and last == (*rank, math.prod(W[1:]))
            and (not embedding or name == "minlora")
        ):
            way = ":embedding=true" if embedding else ""
            return Reading(
                problem=(
                    f"LoRA by its keys, whose scale they do not tell: {name}:rank={rank[0]}:alpha=X{way} fits, "
                    f"the change scaled by X / {rank[0]}"
                )
            )
    return Reading(problem="LoRA by its keys, and lora_A, lora_B and the original do not fit together")


def read_roles(parts: Mapping[str, TensorInfo]) -> Reading:
    """What torch's role names and the shapes decide about a chain that no record names."""
    names = set(parts)
    if names == {"original0", "original1"}:
        return weight_norm(parts) or Reading(problem="two originals that are no weight norm by their shapes")
    if names == {"original", "0._u", "0._v"}:
        return spectral_norm(parts) or Reading(problem="u and v whose lengths fit no dimension of the original")
    if names == {"original", "0._u", "0._v", "0.scale", "0._sn_version"}:
        return _spectral_reparam(parts) or Reading(
            problem="a spectral reparametrization (RADIO) whose shapes do not fit together"
        )
    if names == {"original", "0.mask"}:
        return mask(parts) or Reading(problem="a mask of another shape than the original")
    if names == {"original", "0.base"}:
        return Reading(problem=_one_base(parts["original"].shape, parts["0.base"].shape))
    if frozenset(names) in _GEOTORCH:
        return Reading(problem=_GEOTORCH[frozenset(names)])
    if names in ({"original", "0.lora_A", "0.lora_B"}, {"original", "0.lora_A", "0.lora_B", "0.lora_dropout_mask"}):
        return _low_rank_adapter(parts)
    if names == {"original", "1.Id"}:
        return Reading(problem="the tutorial's cayley after something the keys do not tell: skew,cayley fits")
    if names == {"original"}:
        return Reading(problem="parametrized, and the keys alone do not tell how")
    extra = ", ".join(sorted(printable(name) for name in names if not name.startswith("original")))
    return Reading(problem=f"a parametrization paramcli does not recognise (beside the original: {extra or 'nothing'})")
