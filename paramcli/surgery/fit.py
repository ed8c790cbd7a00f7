"""Putting a chain on one tensor: raw as torch registers it, or fitted through right inverses.

Tensors in, tensors out; names and files are the caller's. Values are measured after rounding to the
stored dtype, as a reader of the written file would see them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import host as hosting
from .. import measure
from ..chain import Chain
from ..errors import CheckFailed
from ..maths.base import MEMBER, CannotReach, Check, compute_dtype, eps, wide
from ..text import number_text
from ..view import View

INITS = ("project", "strict", "raw")
# A right inverse that is off by more than this in double precision has no preimage there.
EXACT = 1e-6
# How far, relatively, originals rounded to their storage may put the value from the one they were made for. Where a
# map is steep (Cayley near a half turn, in bfloat16) it is another weight beyond MISSED, and from NOTED on it is told.
MISSED, NOTED = 0.1, 1e-2


@dataclass(frozen=True)
class Fitted:
    """The tensors of a parametrized weight by role, the value a reader sees, and what became of it."""

    state: Mapping[str, Tensor]
    value: Tensor
    moved: float
    check: Check | None
    note: str | None = None


def in_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating tensors in the precision of `dtype`, real ones real and complex ones complex; integers as they are."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype.to_real() if dtype.is_complex else dtype) if tensor.is_floating_point() else tensor


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same row by row, as files have it."""
    return in_precision(tensor, dtype).contiguous()


def widened(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {role: rounded(tensor, dtype) for role, tensor in state.items()}


def evaluate(
    chain: Chain, view: View, shape: Sequence[int], state: Mapping[str, Tensor], stored: torch.dtype, compute: str = "same"
) -> Tensor:
    """The chain's value from its stored tensors: computed in one dtype, rounded once to `stored`."""
    dtype = compute_dtype(stored, compute)
    # In the order in memory that they have: some maps round by it.
    host = hosting.load(chain, view, shape, {role: in_precision(tensor, dtype) for role, tensor in state.items()})
    value = hosting.value(host).to(stored).contiguous()
    hosting.release(host)
    return value


def register_raw(W: Tensor, chain: Chain, view: View, seed: int, compute: str = "same") -> dict[str, Tensor]:
    """What registering the links one after another on a live module gives, bit for bit."""
    # In training mode, as a new module is: spectral norm takes a power step while it is registered.
    host = hosting.bare(W.to(compute_dtype(W.dtype, compute))).train()
    state = hosting.roles(hosting.register(host, "weight", chain, view, seed))
    hosting.release(host)
    return state


def invert(
    chain: Chain, Y: Tensor, seed: int, view: View, shape: Sequence[int], existing: Sequence[nn.Module] | None = None,
    first_row: int | None = None, judge: Callable[[int, Tensor, Tensor], None] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Right inverses from the last link to the first, in double precision; Y is what the view shows.

    Returns tensors by role, the originals in the stored `shape`. Y is expected on the last link's image. With `existing` modules their buffers (a mask) stay in use.
    Raises CannotReach where a link has no preimage: `judge` is given each link's index, the value that its inverse comes
    back with, and the one it was asked for. Of a block of rows Y starts at `first_row` of the whole.
    """
    judge = judge or functools.partial(_check_round_trip, chain)
    state: dict[str, Tensor] = {}
    originals: Tensor | tuple[Tensor, ...] = Y
    for index in range(len(chain) - 1, -1, -1):
        assert isinstance(originals, Tensor), "several originals are the first link's only"
        hosting.start_generators(seed, Y.device)
        part = chain.links[index].make(originals) if existing is None else existing[index]
        part.first_row = first_row
        hosting.start_generators(seed, Y.device)
        wanted = originals
        originals = part.inverse(wanted)
        if not part.is_projection:
            part.eval()
            judge(index, part.map(*(originals if isinstance(originals, tuple) else (originals,))), wanted)
        state.update({f"{index}.{name}": tensor for name, tensor in part.state_dict().items()})
    made = originals if isinstance(originals, tuple) else (originals,)
    stored = [view.back(X, shape) if i in part.stored_originals else X for i, X in enumerate(made)]
    if isinstance(originals, Tensor):
        return {"original": stored[0], **state}
    return {**{f"original{i}": X for i, X in enumerate(stored)}, **state}


def _check_round_trip(chain: Chain, index: int, back: Tensor, wanted: Tensor) -> None:
    require_preimage(chain, index, measure.moved(back, wanted))


def require_preimage(chain: Chain, index: int, error: float) -> None:
    """Raise CannotReach where a link's value of its right inverse is so far from what was asked for."""
    name = chain.links[index].entry.name
    if not error <= EXACT:
        raise CannotReach(
            f"{name} cannot reach this tensor: its right inverse comes back {number_text(error)} away",
            hint="--init raw registers it as it is",
        )


def fit(
    W: Tensor, chain: Chain, view: View, *, init: str = "project", seed: int = 0, max_change: float | None = None, compute: str = "same"
) -> Fitted:
    """Put the chain on a plain tensor W (stored dtype).

    project: a weight on the constraint is kept, another moves to its nearest point. strict: CheckFailed unless
    it is on the constraint. raw: as torch's registration. Raises CannotReach, Singular, CheckFailed.
    """
    measure.require_finite(W)
    with torch.no_grad(), hosting.generators_kept(W.device):
        if init == "raw":
            state, target = register_raw(W, chain, view, seed, compute), None
        else:
            state, target = _fitted_state(W, chain, view, init, seed)
        state = widened(state, W.dtype)
        value = evaluate(chain, view, W.shape, state, W.dtype, compute)
    change, check = measure.moved(value, W), measure.image_check(chain, value, view, compute)
    require_change(change, max_change)
    note = None if init == "raw" else check_reached(chain, view, value, target, check)
    return Fitted(state, value, change, check, note)


def require_change(change: float, max_change: float | None) -> None:
    """Raise CheckFailed where a tensor would be moved farther than --max-change."""
    if max_change is not None and not change <= max_change:
        raise CheckFailed(f"the chain would move it by {number_text(change)}, more than --max-change {max_change:g}")


def _fitted_state(W: Tensor, chain: Chain, view: View, init: str, seed: int) -> tuple[dict[str, Tensor], Tensor | None]:
    """(the state in double precision, the value it is made for; None where the last map itself decides what that is)"""
    seen = view.into(W).to(wide(W.dtype, W.device))
    on = chain.constraint is None or (before := measure.check(chain.constraint, W, view)).ok
    hosting.start_generators(seed, W.device)
    last = chain.links[-1].make(seen)
    if init == "strict":
        kept = last.map(seen) if last.is_projection else seen
        require_member(None if on else before, measure.moved(kept, seen), W.dtype)
    # Also a member: rounded to its storage it is off by more than an exact inverse can bring back.
    if chain.constraint is not None and before.residual > MEMBER and not last.is_projection:
        seen = measure.project(chain.constraint, seen)
    return invert(chain, seen, seed, view, W.shape), None if last.is_projection else seen


def require_member(off: Check | None, changed: float, stored: torch.dtype) -> None:
    """--init strict: raise CheckFailed for a tensor that is off its constraint, or that the last map would change."""
    if off is None and not changed > 4 * eps(stored):
        return
    what = "the chain would change the tensor (its mask is another)"
    if off is not None:
        what = f"the tensor is not {off.constraint} (residual {number_text(off.residual)}, tolerance {number_text(off.tolerance)})"
    raise CheckFailed(what, hint="--init project moves it to the nearest point and reports how far")


def check_reached(chain: Chain, view: View, value: Tensor, target: Tensor | None, check: Check | None) -> str | None:
    """Raise CannotReach where the originals, rounded to their storage, give no member of the constraint or another one.

    `target`, as the view shows it, is the value they were made for. Returns a note where the two differ visibly.
    """
    return require_reached(chain, value.dtype, lambda: 0.0 if target is None else measure.moved(view.into(value), target), check)


def require_reached(chain: Chain, dtype: torch.dtype, missed_by: Callable[[], float], check: Check | None) -> str | None:
    """The same from numbers: the relative distance of the value from its target, and the value's own check."""
    stored = f"{chain} stored in {str(dtype).removeprefix('torch.')}"
    steep = chain.constraint in ("orthogonal", "special_orthogonal")
    hint = "--chain skew,matrix_exp, or --chain orthogonal, which stores the weight itself as its base" if steep else None
    if check is not None and not check.ok:
        detail = f": {check.detail}" if check.detail else ""
        raise CannotReach(
            f"{stored} misses {check.constraint} "
            f"(residual {number_text(check.residual)}, tolerance {number_text(check.tolerance)}{detail})",
            hint=hint,
        )
    missed = missed_by()
    if not missed <= MISSED:
        raise CannotReach(f"{stored} cannot keep this tensor: rounding its originals puts the value {number_text(missed)} away", hint=hint)
    return f"{stored}, its value is {number_text(missed)} from the nearest point (relatively)" if missed > NOTED else None
