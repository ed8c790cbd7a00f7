"""The least margin from the edge of an open image that originals rounded to their storage can bear."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..chain import Chain, Link
from ..maths.base import CannotReach, Check, Edge
from ..maths.numbers import eps
from ..view import IDENTITY, View
from . import measure
from .claims import Claim, holds, share_of_room
from .originals import require_preimage, rounded

# How far, relatively, originals rounded to their storage may put the value from the one they were made for. Where a
# map is steep (Cayley near a half turn, in bfloat16) it is another weight beyond MISSED, and from NOTED on it is told.
MISSED, NOTED = 0.1, 1e-2


@dataclass(frozen=True)
class Tried:
    """Originals as they are stored, their value, and of each tensor its check and how far it is from its point."""

    state: Mapping[str, Tensor]
    value: Tensor
    found: Sequence[tuple[Check | None, float]]

    def of(self, index: int) -> Tried:
        """The same of one of several tensors."""
        return Tried(
            {role: tensor[index] for role, tensor in self.state.items()}, self.value[index], [self.found[index]]
        )

    def among(self, indices: Sequence[int]) -> Tried:
        """The same of some of them."""
        at = torch.tensor(indices, device=self.value.device)
        return Tried(
            {role: tensor[at] for role, tensor in self.state.items()},
            self.value[at],
            [self.found[index] for index in indices],
        )


class Search:
    """The margins of tensors of one chain, and what was reached with the best of them: of one tensor, which may be a
    batch of matrices, or of `count` along the first dimension.
    """

    def __init__(
        self, chain: Chain, view: View, stored: torch.dtype, nearest: Tensor, compute: str, count: int | None = None
    ):
        self.chain, self.view, self.stored, self.nearest, self.compute = chain, view, stored, nearest, compute
        self._several, self._count = count is not None, count or 1
        self._margins = _Margins(self._count, nearest.shape[:-2].numel() // self._count, stored)
        self._kept: list[Tried | None] = [None] * self._count
        self.edge: Edge | None = None

    def run(self, attempt: Callable[[Tensor, list[int]], Tried], tried: Tried | None = None) -> list[Tried]:
        """What was reached of each. `attempt` is given points, and which of the tensors they are for; `tried`: what it
        makes of the nearest points themselves, where that is known.
        """
        margins, refusal = self._margins, None
        Y, among = self.nearest, list(range(self._count))
        while among:
            try:
                tried = tried or attempt(Y, among)
            except CannotReach as error:
                refusal = refusal or error
                refused = _refused(self.chain.links[-1], Y, self.stored)
                if not margins.refuse(among, refused.reshape(len(among), -1)):
                    raise
            else:
                margins.judge(among, *self._numbers(tried, Y, self._of(self.nearest, among)))
                self._keep(tried, among)
            tried, among = None, self._open()
            if among:
                if not self._begin():
                    break
                margins.step(among)
                assert self.edge is not None  # it began
                shares = margins.shares().to(self.nearest.device, self.nearest.dtype.to_real())
                Y = self._of(self.edge.inside(shares.reshape(self.nearest.shape[:-2])), among)
        found = [kept for kept in self._kept if kept is not None]
        if refusal is not None and (
            len(found) < self._count or not all(missed <= MISSED for kept in found for _, missed in kept.found)
        ):
            raise refusal  # no margin within reach: what the map itself says of the point is nearer to the matter
        return found

    def kept_away(self, index: int = 0) -> int:
        """How many matrices of a tensor have a margin."""
        return int((self._margins.best[index] > 0).sum())

    def _begin(self) -> bool:
        """Ask for the edge, once; False where there is none."""
        if self.edge is None:
            self.edge = self.chain.links[-1].make(self.nearest).edge(self.nearest)
            if self.edge is not None:
                self._margins.begin(self.edge)
        return self.edge is not None

    def _of(self, points: Tensor, among: Sequence[int]) -> Tensor:
        return points[torch.tensor(among, device=points.device)] if self._several else points

    def _open(self) -> list[int]:
        """Of which tensors there is more to try."""
        among = self._margins.open()
        # One of several would be computed as one that is alone, in its own shape.
        return among if len(among) != 1 or not self._several else sorted({*among, (among[0] + 1) % self._count})

    def _keep(self, tried: Tried, among: Sequence[int]) -> None:
        for place, index in enumerate(among):
            if self._margins.keeps(index):
                self._kept[index] = tried.of(place) if self._several else tried

    def _numbers(self, tried: Tried, Y: Tensor, nearest: Tensor) -> tuple[Tensor, ...]:
        """Of each matrix: is it a member, the share it takes of the room it has, how far is it from Y, Y from the
        nearest point, and it from that; relatively.
        """
        values, Y, nearest = (W.reshape(-1, *W.shape[-2:]) for W in (self.view.into(tried.value), Y, nearest))
        each = len(values) // len(tried.found)
        checks = [check for check, _ in tried.found for _ in range(each)]
        if each > 1 and not all(holds(check, self.chain) for check in checks):
            claim = Claim(self.chain, IDENTITY, values.shape, values.dtype, self.compute, count=len(values))
            claim.add(values, tried.state)
            checks = claim.result()
        member = torch.tensor([holds(check, self.chain) for check in checks], device="cpu")
        numbers = (
            [share_of_room(check, self.chain) for check in checks],
            measure.moved_of_each(values, Y),
            measure.moved_of_each(Y, nearest),
            measure.moved_of_each(values, nearest),
        )
        found = member, *(torch.tensor(of_each, dtype=torch.float64, device="cpu") for of_each in numbers)
        return tuple(numbers.reshape(len(tried.found), each) for numbers in found)


def require_range(state: Mapping[str, Tensor]) -> None:
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
            require_range({f"original{i}": X for i, X in enumerate(rounded(X, stored) for X in originals)})
            return [False] * len(part)
        except CannotReach:
            half = len(part) // 2
            return of(part[:half]) + of(part[half:]) if half else [True]

    return torch.tensor(of(Y.reshape(-1, *Y.shape[-2:])), device="cpu").reshape(Y.shape[:-2])


class _Margins:
    """The search for the least margin of each matrix, of each tensor.

    Level 0 is the point itself; the next ones bear a share of rounding of eps / 4 of the stored dtype, or less where
    the edge says so, and twice the one before up to a quarter. Enough is a level whose value is a member, and is off
    its point by no more than NOTED, or than the margin has moved that: from there on more margin costs more than it
    gains. A share of less than eps / 4 is of use only where rounding spoils nothing: there NOTED does not count. The
    least level that is enough is closed in from both sides; taken is the one, of those tried, whose value is a member
    and nearest to the nearest point.

    Where a level was tried, the least is expected as far from it as if what it lacks went with the inverse root of the
    share, as for a Cayley map. After GUESSES of those the rest is halved.
    """

    GUESSES = 4
    # More levels than there are, until the edge is known.
    ENDLESS = 1 << 20

    def __init__(self, count: int, matrices: int, stored: torch.dtype):
        self._usual = eps(stored) / 4
        self._shares = torch.zeros(1, dtype=torch.float64, device="cpu")
        self.level, self.best = (torch.zeros(count, matrices, dtype=torch.long, device="cpu") for _ in range(2))
        # The largest level that is too near to the edge, and the least that is enough.
        self.low, self.high = torch.full_like(self.level, -1), torch.full_like(self.level, self.ENDLESS)
        self.least = torch.full_like(self.level, math.inf, dtype=torch.float64)
        # Where the least level is expected, and how often it was.
        self._expected = torch.full_like(self.least, math.nan)
        self._guesses = torch.zeros_like(self.level)
        # The level whose originals are kept.
        self._kept = torch.full_like(self.level, -1)

    def shares(self) -> Tensor:
        return self._shares[self.level]

    def open(self) -> list[int]:
        """The tensors of which a level is not closed in, or the best one is not what is kept."""
        return (self._between() | (self._kept != self.best)).any(1).nonzero().squeeze(1).tolist()

    def keeps(self, index: int) -> bool:
        """Is what was just tried of a tensor to be kept?"""
        keeps = bool((self._kept[index] < 0).any()) or torch.equal(self.level[index], self.best[index])
        if keeps:
            self._kept[index] = self.level[index]
        return keeps

    def judge(
        self, among: Sequence[int], member: Tensor, room: Tensor, short: Tensor, cut: Tensor, far: Tensor
    ) -> None:
        """What was found of the matrices of these tensors at their levels."""
        at = torch.tensor(among, device="cpu")
        level, least, share = self.level[at], self.least[at], self._shares[self.level[at]]
        most = torch.where((share > 0) & (share < self._usual), 2 * cut, cut.clamp(min=NOTED))
        better = member & (far < least)
        self.least[at], self.best[at] = torch.where(better, far, least), torch.where(better, level, self.best[at])
        enough = member & (short <= most)
        self.high[at] = torch.where(enough, torch.minimum(level, self.high[at]), self.high[at])
        self.low[at] = torch.where(enough, self.low[at], torch.maximum(level, self.low[at]))
        lacking = torch.maximum(room, short / most).clamp(min=2.0**-8)
        self._expected[at] = level + 2 * lacking.log2()

    def refuse(self, among: Sequence[int], refused: Tensor) -> bool:
        """These have no preimage at their level; False where nothing is left to try for any of them."""
        at = torch.tensor(among, device="cpu")
        more = bool((refused & self._between()[at]).any())
        self.low[at] = torch.where(refused, torch.maximum(self.level[at], self.low[at]), self.low[at])
        self._expected[at] = torch.where(refused, math.nan, self._expected[at])
        return more

    def begin(self, edge: Edge) -> None:
        """The levels, once the edge is known. What is known of level 0 holds for all that leave a matrix as it is."""
        finest = min(self._usual, edge.finest or self._usual)
        shares = [0.0, *(finest * 2.0**k for k in range(round(-math.log2(4 * finest)) + 1))]
        self._shares = torch.tensor(shares, dtype=torch.float64, device="cpu")
        self.high = self.high.clamp(max=len(shares))
        if edge.begins is None:
            return
        begins = edge.begins.cpu().double().reshape(self.level.shape)
        last = (self._shares <= begins.unsqueeze(-1)).sum(-1) - 1
        self.low = torch.where(self.low < 0, self.low, torch.maximum(self.low, last))
        first = (begins / finest).clamp(min=0.5).log2() + 1
        # Of what is lacking at the edge a part is no rounding of what is large there.
        self._expected = self._expected + torch.where(self.level == 0, first + 1, 0.0)

    def step(self, among: Sequence[int]) -> None:
        """Go to the next level of each matrix of these tensors."""
        at = torch.tensor(among, device="cpu")
        low, high, expected = self.low[at], self.high[at], self._expected[at]
        guessed = expected.isfinite() & (self._guesses[at] < self.GUESSES)
        self._guesses[at] += guessed.long()
        near = torch.minimum(torch.maximum(expected.nan_to_num(0, 0, 0).round().long(), low + 1), high - 1)
        level = torch.where(self._between()[at], torch.where(guessed, near, (low + high) // 2), self.best[at])
        # Others were refused, and this one has not been seen at the point itself yet.
        self.level[at] = torch.where((low < 0) & (high > 0), 0, level)

    def _between(self) -> Tensor:
        """Of which matrices is the least level not known yet?"""
        return self.high - self.low > 1
