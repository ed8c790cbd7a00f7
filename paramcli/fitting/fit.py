"""Putting a chain on one tensor: raw as torch registers it, or fitted through right inverses.

Tensors in, tensors out; names and files are the caller's. Values are measured after rounding to the
stored dtype, as a reader of the written file would see them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..chain import Chain
from ..errors import CheckFailed
from ..maths.base import MEMBER, CannotReach, Check, eps, wide
from ..registry import CONSTRAINTS, parse_constraint
from ..spec import value_text
from ..text import number_text
from ..view import View
from . import measure
from . import torch_module as hosting
from .claims import claim_check
from .originals import evaluate, invert, register_raw, widened
from .reach import NOTED, Reached, reach, stored_as


@dataclass(frozen=True)
class Fitted:
    """The tensors of a parametrized weight by role, the value a reader sees, and what became of it."""

    state: Mapping[str, Tensor]
    value: Tensor
    moved: float
    check: Check | None
    note: str | None = None
    # How far the value is from the point that its originals were made for, relatively.
    missed: float = 0.0


def fit(
    W: Tensor,
    chain: Chain,
    view: View,
    *,
    init: str = "project",
    seed: int = 0,
    max_change: float | None = None,
    compute: str = "same",
) -> Fitted:
    """Put the chain on a plain tensor W (stored dtype).

    project: a weight on the constraint is kept, another moves to its nearest point; where the chain's image is open and
    originals rounded to their storage cannot hold that point, to the nearest that they can. strict: CheckFailed unless
    it is on the constraint. raw: as torch's registration. Raises CannotReach, Singular, CheckFailed.
    """
    measure.require_finite(W)
    with torch.no_grad(), hosting.generators_kept(W.device):
        if init == "raw":
            state = widened(register_raw(W, chain, view, seed, compute), W.dtype)
            value = evaluate(chain, view, W.shape, state, W.dtype, compute)
            reached = Reached(state, value, claim_check(chain, view, value, state, compute))
        else:
            seen = view.into(W).to(wide(W.dtype, W.device))
            reached = _inverted(W, seen, chain, view, init, seed, compute)
    change = measure.moved(reached.value, W)
    require_change(change, max_change)
    note = None if init == "raw" else reached.note(chain, seen, change)
    if init == "strict" and reached.missed > NOTED:
        raise CheckFailed(
            f"{stored_as(chain, W.dtype)} cannot keep the tensor as it is: rounding its originals puts the value {number_text(reached.missed)} away",
            hint="--init project gives the nearest point that they can hold, and tells both distances",
        )
    return Fitted(reached.state, reached.value, change, reached.check, note, reached.missed)


def require_change(change: float, max_change: float | None) -> None:
    """Raise CheckFailed where a tensor would be moved farther than --max-change."""
    if max_change is not None and not change <= max_change:
        raise CheckFailed(f"the chain would move it by {number_text(change)}, more than --max-change {max_change:g}")


def _inverted(W: Tensor, seen: Tensor, chain: Chain, view: View, init: str, seed: int, compute: str) -> Reached:
    """Originals for the weight where it is a member, else for its nearest point. `seen`: W in the view and in double
    precision.
    """
    before = None if chain.constraint is None else measure.check(chain.constraint, W, view)
    hosting.start_generators(seed, W.device)
    last = chain.links[-1].make(seen)
    if init == "strict":
        kept = last.map(seen) if last.is_projection else seen
        require_member(before, measure.moved(kept, seen), W.dtype, lambda: keeper(chain.constraint, W, view))

    def originals_for(Y: Tensor) -> Reached:
        make = functools.partial(
            invert, chain, seed=seed, view=view, shape=W.shape, stored=W.dtype if Y is seen else None
        )
        return reach(
            chain, view, W.shape, W.dtype, Y, make, compute, projects=last.is_projection, strict=init == "strict"
        )

    if before is None:
        return originals_for(seen)
    if last.is_projection:
        reached = originals_for(seen)
        kept = len(chain) > 1 or torch.equal(reached.state["original"], W)
        return (
            reached
            if kept
            else replace(
                reached,
                assumed=f"rounded, the weight's own value is not {chain.constraint}: the original is that value with some entries rounded the other way",
            )
        )
    # Also a member: rounded to its storage it is off by more than an exact inverse can bring back.
    if before.residual <= MEMBER:
        try:
            return originals_for(seen)
        except CannotReach:
            if init == "strict":
                raise  # a badly conditioned one is off by more than its residual says
    point, assumed = measure.nearest(chain.constraint, seen, W.dtype)
    return replace(originals_for(point), assumed=assumed)


def require_member(
    held: Check | None, changed: float, stored: torch.dtype, keeper: Callable[[], str | None] = lambda: None
) -> None:
    """--init strict: raise CheckFailed for a tensor that is off its constraint, or that the last map would change.

    `keeper`: a chain that keeps the tensor as it is, where one is known.
    """
    off = held is not None and not held.ok
    if not off and not changed > 4 * eps(stored):
        return
    what, hint = (
        "the chain would change the tensor (its mask is another)",
        "--init project moves it to the nearest point and reports how far",
    )
    if off:
        why = f": {held.detail}" if held.detail else ""
        what = f"the tensor is not {held.constraint}{why} (residual {number_text(held.residual)}, tolerance {number_text(held.tolerance)})"
        hint = f"--chain {other} keeps it as it is" if (other := keeper()) else hint
    raise CheckFailed(what, hint=hint)


def keeper(spec: str, W: Tensor, view: View) -> str | None:
    """The chain that keeps the members of a next larger set that W lies in: `orthogonal`, for determinant -1."""
    entry, arguments = parse_constraint(spec)
    for name in entry.within:
        needed = [argument.name for argument in CONSTRAINTS[name].arguments if argument.required]
        if CONSTRAINTS[name].keeper is None or not set(needed) <= set(arguments):
            continue
        given = "".join(f":{key}={value_text(arguments[key])}" for key in needed)
        if measure.check(name + given, W, view).ok:
            return CONSTRAINTS[name].keeper + given
    return None
