"""Originals for a point, or for the nearest to it that they can hold: near the edge of an open image, rounding them
gives another value, and no member. What is told of that, with the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..chain import Chain, Link
from ..maths.base import CannotReach, Check, Edge, Parametrization
from ..maths.numbers import eps
from ..registry import target_class
from ..text import number_text
from ..view import IDENTITY, View
from . import measure
from .claims import Claim, holds
from .originals import EXACT, evaluate, require_preimage, rounded, widened

# How far, relatively, originals rounded to their storage may put the value from the one they were made for. Where a
# map is steep (Cayley near a half turn, in bfloat16) it is another weight beyond MISSED, and from NOTED on it is told.
MISSED, NOTED = 0.1, 1e-2


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


@dataclass(frozen=True)
class _Tried:
    """Originals as they are stored, their value, and of each tensor its check and how far it is from its point."""

    state: Mapping[str, Tensor]
    value: Tensor
    found: Sequence[tuple[Check | None, float]]

    def reached(self, index: int | None, nearest: Tensor | None, edge: Edge | None, kept_away: int) -> Reached:
        """What was reached of one tensor: of the only one, or of one of several."""
        check, missed = self.found[index or 0]
        if index is None:
            return Reached(self.state, self.value, check, nearest, missed, edge, kept_away)
        state = {role: tensor[index] for role, tensor in self.state.items()}
        return Reached(state, self.value[index], check, nearest, missed, edge, kept_away)


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
        trips: list[Callable[[], None]] = []
        state = widened(make(Y, later=trips), self.stored)
        proven = False
        try:
            value = self.add(state, shape, point)
            proven = self._missed is not None and all(missed <= EXACT for missed in self._missed.result())
        finally:
            if not proven:
                for judge in trips:
                    judge()
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
    count: int = 1,
) -> list[Reached]:
    """Originals whose value, computed from them as stored, is `nearest`, or the nearest to it that there is; of each of
    `count` tensors, which lie along the first dimension where they are several.

    `nearest` is what the view should show, and `make` gives the originals for such a point, both in double precision.
    Near the edge of an open image the value is no member, or not the point: such matrices are moved inside by the least
    margin that does (see `_Margins`); the others keep their bits. With `strict` it is the point itself or nothing.
    Where the last map `projects`, it decides itself what the value is.
    """
    link = chain.links[-1]
    has_edge = target_class(link.entry).edge is not Parametrization.edge and not strict

    def attempt(Y: Tensor) -> _Tried:
        gathered = Gathered(chain, view, shape, stored, compute, count=count)
        state, value = gathered.invert(make, Y, shape, None if projects else nearest)
        if has_edge:
            _require_range(state)
        return _Tried(state, value, gathered.result())

    if not has_edge:
        tried = attempt(nearest)
        [(check, missed)] = tried.found
        # Refused below, and then with the number that says why.
        refused = strict and (missed > MISSED or (check is not None and not check.ok))
        near = link.make(nearest).edge(nearest) if refused else None
        return [tried.reached(None, None if projects else nearest, near, 0)]
    search, Y = _Margins(nearest.shape[:-2], stored), nearest
    edge: Edge | None = None
    last: _Tried | None = None
    refusal: CannotReach | None = None
    while search.goes_on:
        try:
            last = attempt(Y)
        except CannotReach as error:
            refusal = refusal or error
            if not search.refuse(_refused(link, Y, stored)):
                raise
        else:
            search.judge(*_judged(chain, view, last, nearest, Y, compute))
        if search.moves:
            edge = edge or link.make(nearest).edge(nearest)
            if edge is None:
                break
            Y, last = edge.inside(search.shares().to(nearest.device, nearest.dtype.to_real())), None
    tried = last or attempt(Y)
    if refusal is not None and not all(missed <= MISSED for _, missed in tried.found):
        raise refusal  # no margin within reach: what the map itself says of the point is nearer to the matter
    if count == 1:
        return [tried.reached(None, None if projects else nearest, edge, search.kept_away)]
    kept = (search.level > 0).reshape(count, -1).sum(1).tolist()
    points = [None if projects else point for point in nearest]
    edges = [link.make(point).edge(point) if moved else None for point, moved in zip(nearest, kept, strict=True)]
    return [tried.reached(i, *of) for i, of in enumerate(zip(points, edges, kept, strict=True))]


def _require_range(state: Mapping[str, Tensor]) -> None:
    """Raise CannotReach where rounding to the stored dtype made an original infinite."""
    for role, tensor in state.items():
        if role.startswith("original") and not measure.all_finite(tensor):
            raise CannotReach(f"its originals are beyond the range of {str(tensor.dtype).removeprefix('torch.')}")


def _refused(link: Link, Y: Tensor, stored: torch.dtype) -> Tensor:
    """Which matrices the link's inverse refuses, found by halves."""

    def of(part: Tensor) -> list[bool]:
        try:
            module = link.make(part).eval()
            originals = module.inverse(part)
            originals = originals if isinstance(originals, tuple) else (originals,)
            require_preimage(link, measure.moved(module.map(*originals), part))
            _require_range({f"original{i}": X for i, X in enumerate(rounded(X, stored) for X in originals)})
            return [False] * len(part)
        except CannotReach:
            half = len(part) // 2
            return of(part[:half]) + of(part[half:]) if half else [True]

    return torch.tensor(of(Y.reshape(-1, *Y.shape[-2:])), device="cpu").reshape(Y.shape[:-2])


def _judged(chain: Chain, view: View, tried: _Tried, nearest: Tensor, Y: Tensor, compute: str) -> tuple[Tensor, ...]:
    """Of each matrix: is it a member, how far is it from Y, Y from the nearest point, and it from that; relatively."""
    batch = Y.shape[:-2]
    values, Y, nearest = (W.reshape(-1, *W.shape[-2:]) for W in (view.into(tried.value), Y, nearest))
    member = [holds(check, chain) for check, _ in tried.found for _ in range(len(values) // len(tried.found))]
    if not all(member) and len(values) > len(tried.found):
        claim = Claim(chain, IDENTITY, values.shape, values.dtype, compute, count=len(values))
        claim.add(values, tried.state)
        member = [holds(check, chain) for check in claim.result()]
    distances = (
        measure.moved_of_each(values, Y),
        measure.moved_of_each(Y, nearest),
        measure.moved_of_each(values, nearest),
    )
    found = torch.tensor(member, device="cpu"), *(torch.tensor(d, dtype=torch.float64, device="cpu") for d in distances)
    return tuple(numbers.reshape(batch) for numbers in found)


class _Margins:
    """The search for the least margin of each matrix of a batch.

    Level 0 is the point itself, the next ones bear a share of rounding of eps / 4 of the stored dtype, and twice the
    one before up to a quarter. Enough is a level whose value is a member, and is off its point by no more than NOTED,
    or than the margin has moved that: from there on more margin costs more than it gains. The least one that is enough
    is found by halving, after level 0; taken is the one, of those tried, whose value is a member and nearest to the
    nearest point.
    """

    def __init__(self, batch: torch.Size, stored: torch.dtype):
        count = round(-math.log2(eps(stored)))
        self._shares = torch.tensor(
            [0.0, *(eps(stored) * 2.0 ** (k - 2) for k in range(count + 1))], dtype=torch.float64, device="cpu"
        )
        self.level, self.best = (torch.zeros(batch, dtype=torch.long, device="cpu") for _ in range(2))
        # The largest level that is too near to the edge, and the least that is enough.
        self.low, self.high = torch.full_like(self.level, -1), torch.full_like(self.level, len(self._shares))
        self.least = torch.full(batch, math.inf, dtype=torch.float64, device="cpu")
        self.moves = False

    @property
    def goes_on(self) -> bool:
        return bool((self.high - self.low > 1).any()) or self.moves

    @property
    def kept_away(self) -> int:
        return int((self.level > 0).sum())

    def shares(self) -> Tensor:
        return self._shares[self.level]

    def judge(self, member: Tensor, short: Tensor, cut: Tensor, far: Tensor) -> None:
        better = member & (far < self.least)
        self.least, self.best = torch.where(better, far, self.least), torch.where(better, self.level, self.best)
        enough = member & (short <= cut.clamp(min=NOTED))
        self.high = torch.where(enough, torch.minimum(self.level, self.high), self.high)
        self.low = torch.where(enough, self.low, torch.maximum(self.level, self.low))
        self._step()

    def refuse(self, refused: Tensor) -> bool:
        """These have no preimage at their level; False where nothing is left to try for any of them."""
        more = bool((refused & (self.high - self.low > 1)).any())
        self.low = torch.where(refused, torch.maximum(self.level, self.low), self.low)
        self._step()
        return more

    def _step(self) -> None:
        level = torch.where(self.high - self.low > 1, (self.low + self.high) // 2, self.best)
        # Others were refused, and this one has not been seen at the point itself yet.
        level = torch.where((self.low < 0) & (self.high > 0), torch.zeros_like(level), level)
        self.moves = not torch.equal(level, self.level)
        self.level = level


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
