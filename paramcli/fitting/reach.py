"""Originals for a point, or for the nearest to it that they can hold: near the edge of an open image, rounding them
gives another value, and no member. What is told of that, with the numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..chain import Chain
from ..maths.base import CannotReach, Check, Edge, Parametrization
from ..registry import target_class
from ..text import number_text
from ..view import IDENTITY, View
from . import measure
from .claims import Claim
from .margins import MISSED, NOTED, Search, Tried, require_range
from .originals import EXACT, Trip, evaluate, widened


@dataclass(frozen=True)
class Reached:
    """Originals by role, rounded to their storage, and the value that they have."""

    state: Mapping[str, Tensor]
    value: Tensor
    check: Check | None
    # The point that was wanted, and how far the value is from it, relatively; none where the last map decides what it
    # is.
    nearest: Tensor | None = None
    missed: float = 0.0
    # The edge of the chain's image, where some matrices had to keep away from it, and how many of them.
    edge: Edge | None = None
    kept_away: int = 0
    # What had to be assumed for the nearest point.
    assumed: str | None = None

    def note(self, chain: Chain, seen: Tensor, change: float, what: str = "weight") -> str | None:
        """What is to be told of it, with the numbers; raises CannotReach where the value is no member, or another
        weight.

        `seen`: `what` was asked for as the view shows it, in double precision; `change`: how far the value is from it.
        """
        told = require_reached(chain, self.value.dtype, self.missed, self.check, self.edge)
        if self.kept_away:
            told = self._margin(chain, seen, change, what)
        return "; ".join(filter(None, (self.assumed, told))) or None

    def _margin(self, chain: Chain, seen: Tensor, change: float, what: str) -> str:
        assert self.edge is not None and self.nearest is not None
        count = seen.shape[:-2].numel()
        where = (
            self.edge.what if count == 1 else f"{self.kept_away} of {count} matrices; of the worst, {self.edge.what}"
        )
        asked, stored = measure.moved(self.nearest, seen), stored_as(chain, self.value.dtype)
        if not asked:
            return f"{stored} cannot hold the {what} itself ({where}): the value is {number_text(change)} from it"
        return (
            f"{stored} cannot hold the nearest point, {number_text(asked)} from the {what} ({where}): "
            f"the value is {number_text(self.missed)} from that point, {number_text(change)} from the {what}"
        )


class Gathered:
    """What is known of originals once they are rounded to their storage: the values that they have, what is claimed of
    those, and how far they are from the points that they were made for.

    Of the tensors of a batch at once, or of one of them a block of `rows` after another.
    """

    def __init__(
        self,
        chain: Chain,
        view: View,
        shape: Sequence[int],
        stored: torch.dtype,
        compute: str,
        *,
        count: int = 1,
        rows: bool = False,
    ):
        self.chain, self.view, self.stored, self.compute = chain, view, stored, compute
        self.claim = Claim(chain, view, shape, stored, compute, count=count, rows=rows)
        self._count = count
        self._missed: measure.Moved | None = None

    def add(self, state: Mapping[str, Tensor], shape: Sequence[int], point: Tensor | None) -> Tensor:
        """The value of a block of this shape; `point`: what the view should show of it, where the last map does not
        decide that itself.
        """
        value = evaluate(self.chain, self.view, shape, state, self.stored, self.compute, together=self._count > 1)
        self.claim.add(value, state)
        if point is not None:
            self._missed = self._missed or measure.Moved(self._count)
            self._missed.add(self.view.into(value), point)
        return value

    def invert(
        self, make: Callable[..., Mapping[str, Tensor]], Y: Tensor, shape: Sequence[int], point: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """(originals of Y that `make` gives, rounded to their storage; their value), noted as by `add`.

        Where the value is the point itself, to EXACT, it proves the right inverses that it came by; else they are
        judged in double precision, link by link.
        """
        trips: list[Trip] = []
        state = widened(make(Y, later=trips), self.stored)
        unproven: list[int] | None = None
        try:
            value = self.add(state, shape, point)
            if self._missed is not None:
                unproven = [index for index, missed in enumerate(self._missed.result()) if not missed <= EXACT]
        finally:
            if unproven != []:
                for trip in trips:
                    trip.judge(unproven if self._count > 1 else None)
        return state, value

    def result(self) -> list[tuple[Check | None, float]]:
        """(its check, how far it is from its point) of each value."""
        missed = self._missed.result() if self._missed else [0.0] * self._count
        return list(zip(self.claim.result(), missed, strict=True))


def reach(
    chain: Chain,
    view: View,
    shape: Sequence[int],
    stored: torch.dtype,
    nearest: Tensor,
    make: Callable[..., Mapping[str, Tensor]],
    compute: str,
    *,
    projects: bool,
    strict: bool = False,
) -> Reached:
    """Originals whose value, computed from them as stored, is `nearest`, or the nearest to it that there is.

    `nearest` is what the view should show, and `make` gives the originals for such a point, both in double precision.
    Near the edge of an open image the value is no member, or not the point: such matrices are moved inside by the least
    margin that does (`margins.Search`); the others keep their bits. With `strict` it is the point itself or nothing.
    Where the last map `projects`, it decides itself what the value is.
    """
    link = chain.links[-1]
    has_edge = target_class(link.entry).edge is not Parametrization.edge and not strict
    wanted = None if projects else nearest

    def attempt(Y: Tensor) -> Tried:
        gathered = Gathered(chain, view, shape, stored, compute)
        state, value = gathered.invert(make, Y, shape, wanted)
        if has_edge:
            require_range(state)
        return Tried(state, value, gathered.result())

    if not has_edge:
        tried = attempt(nearest)
        [(check, missed)] = tried.found
        # Refused below, and then with the number that says why.
        refused = strict and (missed > MISSED or (check is not None and not check.ok))
        return _reached(tried, wanted, link.make(nearest).edge(nearest) if refused else None)
    search = Search(chain, view, stored, nearest, compute)
    [kept] = search.run(lambda Y, _: attempt(Y))
    return _reached(kept, wanted, search.edge, search.kept_away())


def reach_several(
    chain: Chain,
    stored: torch.dtype,
    nearest: Tensor,
    make: Callable[[Sequence[int]], Callable[..., Mapping[str, Tensor]]],
    compute: str,
    tried: Tried,
) -> list[Reached]:
    """The same of several tensors, along the first dimension, whose chain `has_edge`; `tried`: the points themselves.
    `make` is asked for some of them.
    """

    def attempt(Y: Tensor, among: list[int]) -> Tried:
        shape = (len(among), *nearest.shape[1:])
        gathered = Gathered(chain, IDENTITY, shape, stored, compute, count=len(among))
        state, value = gathered.invert(make(among), Y, shape, nearest[among])
        require_range(state)
        return Tried(state, value, gathered.result())

    search = Search(chain, IDENTITY, stored, nearest, compute, len(nearest))
    each = enumerate(search.run(attempt, tried))
    return [_reached(kept, nearest[i], search.edge and search.edge.of(i), search.kept_away(i)) for i, kept in each]


def _reached(tried: Tried, nearest: Tensor | None, edge: Edge | None, kept_away: int = 0) -> Reached:
    [(check, missed)] = tried.found
    return Reached(tried.state, tried.value, check, nearest, missed, edge, kept_away)


def stored_as(chain: Chain, dtype: torch.dtype) -> str:
    return f"{chain} stored in {str(dtype).removeprefix('torch.')}"


def require_reached(
    chain: Chain, dtype: torch.dtype, missed: float, check: Check | None, edge: Edge | None = None
) -> str | None:
    """Raise CannotReach where the originals, rounded to their storage, give no member of the constraint or another one.

    `missed`: the relative distance of the value from the point it was made for; `check`: the value's own. Returns a
    note where the two differ visibly.
    """
    stored, hint = stored_as(chain, dtype), edge.hint if edge else None
    near = f"; {edge.what}" if edge else ""
    if check is not None and not check.ok:
        detail = f": {check.detail}" if check.detail else ""
        raise CannotReach(
            f"{stored} misses {check.constraint} "
            f"(residual {number_text(check.residual)}, tolerance {number_text(check.tolerance)}{detail}){near}",
            hint=hint,
        )
    if not missed <= MISSED:
        raise CannotReach(
            f"{stored} cannot keep this tensor: rounding its originals puts the value {number_text(missed)} away{near}",
            hint=hint,
        )
    return (
        f"{stored}, its value is {number_text(missed)} from the nearest point (relatively)" if missed > NOTED else None
    )
