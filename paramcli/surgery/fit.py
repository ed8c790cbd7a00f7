"""Putting a chain on one tensor: raw as torch registers it, or fitted through right inverses.

Tensors in, tensors out; names and files are the caller's. Values are measured after rounding to the
stored dtype, as a reader of the written file would see them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .. import host as hosting
from .. import measure
from ..chain import Chain, Link
from ..errors import CheckFailed
from ..maths.base import MEMBER, CannotReach, Check, Edge, Parametrization, compute_dtype, eps, norm, wide
from ..registry import CONSTRAINTS, PARAMETRIZATIONS, constraint, parse_constraint, target_class
from ..spec import value_text
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
    # How far the value is from the point that its originals were made for, relatively.
    missed: float = 0.0


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
    first_row: int | None = None, judge: Callable[[int, Tensor, Tensor], None] | None = None, stored: torch.dtype | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Right inverses from the last link to the first, in double precision; Y is what the view shows.

    Returns tensors by role, the originals in the stored `shape`. Y is expected on the last link's image. With `existing` modules their buffers (a mask) stay in use.
    Raises CannotReach where a link has no preimage: `judge` is given each link's index, the value that its inverse comes
    back with, and the one it was asked for. Of a block of rows Y starts at `first_row` of the whole. `stored` is the dtype
    that Y was rounded to, where it is no point that was computed.
    """
    judge = judge or functools.partial(_check_round_trip, chain)
    state: dict[str, Tensor] = {}
    originals: Tensor | tuple[Tensor, ...] = Y
    for index in range(len(chain) - 1, -1, -1):
        assert isinstance(originals, Tensor), "several originals are the first link's only"
        hosting.start_generators(seed, Y.device)
        part = chain.links[index].make(originals) if existing is None else existing[index]
        part.first_row, part.stored = first_row, stored
        hosting.start_generators(seed, Y.device)
        wanted = originals
        originals = part.inverse(wanted)
        if not part.is_projection:
            part.eval()
            judge(index, part.map(*(originals if isinstance(originals, tuple) else (originals,))), wanted)
        state.update({f"{index}.{name}": tensor for name, tensor in part.state_dict().items()})
    made = originals if isinstance(originals, tuple) else (originals,)
    made = tuple(view.back(X, shape) if i in part.stored_originals else X for i, X in enumerate(made))
    if isinstance(originals, Tensor):
        return {"original": made[0], **state}
    return {**{f"original{i}": X for i, X in enumerate(made)}, **state}


def _check_round_trip(chain: Chain, index: int, back: Tensor, wanted: Tensor) -> None:
    require_preimage(chain.links[index], measure.moved(back, wanted))


def require_preimage(link: Link, error: float) -> None:
    """Raise CannotReach where a link's value of its right inverse is so far from what was asked for."""
    if not error <= EXACT:
        raise CannotReach(
            f"{link.entry.name} cannot reach this tensor: its right inverse comes back {number_text(error)} away",
            hint="--init raw registers it as it is",
        )


def fit(
    W: Tensor, chain: Chain, view: View, *, init: str = "project", seed: int = 0, max_change: float | None = None, compute: str = "same"
) -> Fitted:
    """Put the chain on a plain tensor W (stored dtype).

    project: a weight on the constraint is kept, another moves to its nearest point; where the chain's image is open and
    originals rounded to their storage cannot hold that point, to the nearest that they can. strict: CheckFailed unless it is
    on the constraint. raw: as torch's registration. Raises CannotReach, Singular, CheckFailed.
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


def claim_check(
    chain: Chain, view: View, value: Tensor, state: Mapping[str, Tensor], compute: str = "same", spec: str | None = None
) -> Check | None:
    """`measure.image_check`, or what the record holds the value to (`spec`), with what the chain's own tensors explain.

    `state`: the stored tensors by role. None where nothing is claimed of the value and it is finite.
    """
    spec = spec or chain.constraint
    if spec is None or not value.numel():
        return measure.image_check(chain, value, view, compute)
    slack = _slack(chain, view, value, state) if spec == chain.constraint else 0.0
    tolerance = rounding(spec, view, value, compute) + slack if slack else None
    check = measure.check(spec, value, view, tolerance, compute_dtype(value.dtype, compute))
    why = target_class(chain.links[-1].entry).unpromised
    if check.ok or not why or spec != chain.constraint or slack:
        return check
    return replace(check, detail="; ".join(filter(None, (check.detail, why))))


def rounding(spec: str, view: View, value: Tensor, compute: str = "same") -> float:
    """The constraint's own tolerance for this value."""
    return constraint(spec).tolerance(view.into(value).shape, value.dtype, compute_dtype(value.dtype, compute))


def _slack(chain: Chain, view: View, value: Tensor, state: Mapping[str, Tensor]) -> float:
    """`Parametrization.slack` of the chain's last link: how far from its image the tensors it stores leave the value."""
    if target_class(chain.links[-1].entry).slack is Parametrization.slack or not measure.all_finite(value):
        return 0.0
    host = hosting.load(chain, view, value.shape, state)
    part = hosting.parts(host)[-1]
    part.stored_dtype = value.dtype
    slack = part.slack(constraint(chain.constraint), view.into(value.to(wide(value.dtype, value.device))))
    hosting.release(host)
    return slack


def kept_constraint(chain: Chain, view: View, value: Tensor, check: Check | None, compute: str) -> str | None:
    """What the record holds a baked value to: the chain's constraint, and how far beyond rounding the value was from it.

    A value that is off by more than its chain's tensors explain is held to the constraint itself, and `verify` says so.
    """
    if check is None or not check.ok or check.residual <= rounding(check.constraint, view, value, compute):
        return chain.constraint
    return chain.kept_constraint(check.residual)


def require_change(change: float, max_change: float | None) -> None:
    """Raise CheckFailed where a tensor would be moved farther than --max-change."""
    if max_change is not None and not change <= max_change:
        raise CheckFailed(f"the chain would move it by {number_text(change)}, more than --max-change {max_change:g}")


def _inverted(W: Tensor, seen: Tensor, chain: Chain, view: View, init: str, seed: int, compute: str) -> Reached:
    """Originals for the weight where it is a member, else for its nearest point. `seen`: W in the view and in double precision."""
    before = None if chain.constraint is None else measure.check(chain.constraint, W, view)
    hosting.start_generators(seed, W.device)
    last = chain.links[-1].make(seen)
    if init == "strict":
        kept = last.map(seen) if last.is_projection else seen
        require_member(before, measure.moved(kept, seen), W.dtype, lambda: keeper(chain.constraint, W, view))

    def originals_for(Y: Tensor) -> Reached:
        make = functools.partial(invert, chain, seed=seed, view=view, shape=W.shape, stored=W.dtype if Y is seen else None)
        return reach(chain, view, W.shape, W.dtype, Y, make, compute, projects=last.is_projection, strict=init == "strict")

    if before is None:
        return originals_for(seen)
    if last.is_projection:
        reached = originals_for(seen)
        kept = len(chain) > 1 or torch.equal(reached.state["original"], W)
        return reached if kept else replace(reached, assumed=f"rounded, the weight's own value is not {chain.constraint}: the original is that value with some entries rounded the other way")
    # Also a member: rounded to its storage it is off by more than an exact inverse can bring back.
    if before.residual <= MEMBER:
        try:
            return originals_for(seen)
        except CannotReach:
            if init == "strict":
                raise  # a badly conditioned one is off by more than its residual says
    point, assumed = measure.nearest(chain.constraint, seen, W.dtype)
    return replace(originals_for(point), assumed=assumed)


def require_member(held: Check | None, changed: float, stored: torch.dtype, keeper: Callable[[], str | None] = lambda: None) -> None:
    """--init strict: raise CheckFailed for a tensor that is off its constraint, or that the last map would change.

    `keeper`: a chain that keeps the tensor as it is, where one is known.
    """
    off = held is not None and not held.ok
    if not off and not changed > 4 * eps(stored):
        return
    what, hint = "the chain would change the tensor (its mask is another)", "--init project moves it to the nearest point and reports how far"
    if off:
        why = f": {held.detail}" if held.detail else ""
        what = f"the tensor is not {held.constraint}{why} (residual {number_text(held.residual)}, tolerance {number_text(held.tolerance)})"
        hint = f"--chain {other} keeps it as it is" if (other := keeper()) else hint
    raise CheckFailed(what, hint=hint)


def keeper(spec: str, W: Tensor, view: View) -> str | None:
    """The parametrization onto a next larger set that W lies in, where it has the set's name: `orthogonal`, for determinant -1."""
    entry, arguments = parse_constraint(spec)
    for name in entry.within:
        needed = [argument.name for argument in CONSTRAINTS[name].arguments if argument.required]
        if name not in PARAMETRIZATIONS or not set(needed) <= set(arguments):
            continue
        chain = name + "".join(f":{key}={value_text(arguments[key])}" for key in needed)
        if measure.check(chain, W, view).ok:
            return chain
    return None


# --- near the edge of an open image -------------------------------------------------------------------


@dataclass(frozen=True)
class Reached:
    """Originals by role, rounded to their storage, and the value that they have."""

    state: Mapping[str, Tensor]
    value: Tensor
    check: Check | None
    # The point that was wanted, and how far the value is from it, relatively; none where the last map decides what it is.
    nearest: Tensor | None = None
    missed: float = 0.0
    # The edge of the chain's image, where some matrices had to keep away from it, and how many of them.
    edge: Edge | None = None
    kept_away: int = 0
    # What had to be assumed for the nearest point.
    assumed: str | None = None

    def note(self, chain: Chain, seen: Tensor, change: float, what: str = "weight") -> str | None:
        """What is to be told of it, with the numbers; raises CannotReach where the value is no member, or another weight.

        `seen`: `what` was asked for as the view shows it, in double precision; `change`: how far the value is from it.
        """
        told = require_reached(chain, self.value.dtype, lambda: self.missed, self.check, self.edge)
        if self.kept_away:
            told = self._margin(chain, seen, change, what)
        return "; ".join(filter(None, (self.assumed, told))) or None

    def _margin(self, chain: Chain, seen: Tensor, change: float, what: str) -> str:
        count = seen.shape[:-2].numel()
        where = self.edge.what if count == 1 else f"{self.kept_away} of {count} matrices; of the worst, {self.edge.what}"
        asked, stored = measure.moved(self.nearest, seen), stored_as(chain, self.value.dtype)
        if not asked:
            return f"{stored} cannot hold the {what} itself ({where}): the value is {number_text(change)} from it"
        return (
            f"{stored} cannot hold the nearest point, {number_text(asked)} from the {what} ({where}): "
            f"the value is {number_text(self.missed)} from that point, {number_text(change)} from the {what}"
        )


def reach(
    chain: Chain, view: View, shape: Sequence[int], stored: torch.dtype, nearest: Tensor, make: Callable[[Tensor], Mapping[str, Tensor]],
    compute: str, *, projects: bool, strict: bool = False,
) -> Reached:  # fmt: skip
    """Originals whose value, computed from them as stored, is `nearest`, or the nearest to it that there is.

    `nearest` is what the view should show, and `make` gives the originals for such a point, both in double precision. Near the
    edge of an open image the value is no member, or not the point: such matrices are moved inside by the least margin that
    does (see `_Margins`); the others keep their bits. With `strict` it is the point itself or nothing. Where the last map
    `projects`, it decides itself what the value is.
    """
    link = chain.links[-1]
    has_edge = target_class(link.entry).edge is not Parametrization.edge and not strict

    def attempt(Y: Tensor) -> Reached:
        state = widened(make(Y), stored)
        if has_edge:
            _require_range(state)
        value = evaluate(chain, view, shape, state, stored, compute)
        check = claim_check(chain, view, value, state, compute)
        return Reached(state, value, check) if projects else Reached(state, value, check, nearest, measure.moved(view.into(value), nearest))

    if not has_edge:
        reached = attempt(nearest)
        # Refused below, and then with the number that says why.
        refused = strict and (reached.missed > MISSED or reached.check is not None and not reached.check.ok)
        return replace(reached, edge=link.make(nearest).edge(nearest)) if refused else reached
    search, Y, edge, reached, refusal = _Margins(nearest.shape[:-2], stored), nearest, None, None, None
    while search.goes_on:
        try:
            reached = attempt(Y)
        except CannotReach as error:
            refusal = refusal or error
            if not search.refuse(_refused(link, Y, stored)):
                raise
        else:
            search.judge(*_judged(chain, view, reached, Y, compute))
        if search.moves:
            edge = edge or link.make(nearest).edge(nearest)
            if edge is None:
                break
            Y, reached = edge.inside(search.shares().to(nearest.device, nearest.dtype.to_real())), None
    reached = replace(reached or attempt(Y), edge=edge, kept_away=search.kept_away)
    if refusal is not None and not reached.missed <= MISSED:
        raise refusal  # no margin within reach: what the map itself says of the point is nearer to the matter
    return reached


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


def _judged(chain: Chain, view: View, reached: Reached, Y: Tensor, compute: str) -> tuple[Tensor, ...]:
    """Of each matrix: is it a member, how far is it from Y, Y from the nearest point, and it from that; relatively."""
    batch = Y.shape[:-2]
    values, Y, nearest = (W.reshape(-1, *W.shape[-2:]) for W in (view.into(reached.value), Y, reached.nearest))
    if holds(reached.check, chain) or len(values) == 1:
        member = [holds(reached.check, chain)] * len(values)
    else:
        finite = values.isfinite().flatten(1).all(1)
        checks = checks_of_each(chain, torch.where(finite[:, None, None], values, torch.zeros_like(values)), compute)
        member = [holds(check, chain) and sound for check, sound in zip(checks, finite.tolist())]
    distances = (moved_of_each(values, Y), moved_of_each(Y, nearest), moved_of_each(values, nearest))
    found = torch.tensor(member, device="cpu"), *(torch.tensor(d, dtype=torch.float64, device="cpu") for d in distances)
    return tuple(numbers.reshape(batch) for numbers in found)


class _Margins:
    """The search for the least margin of each matrix of a batch.

    Level 0 is the point itself, the next ones bear a share of rounding of eps / 4 of the stored dtype, and twice the one before
    up to a quarter. Enough is a level whose value is a member, and is off its point by no more than NOTED, or than the margin
    has moved that: from there on more margin costs more than it gains. The least one that is enough is found by halving, after
    level 0; taken is the one, of those tried, whose value is a member and nearest to the nearest point.
    """

    def __init__(self, batch: torch.Size, stored: torch.dtype):
        count = round(-math.log2(eps(stored)))
        self._shares = torch.tensor([0.0, *(eps(stored) * 2.0 ** (k - 2) for k in range(count + 1))], dtype=torch.float64, device="cpu")
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


def holds(check: Check | None, chain: Chain) -> bool:
    """Is the value a member, with the room that its chain's last map asks for (`safe_share`)?"""
    return check is None or check.ok and check.residual <= target_class(chain.links[-1].entry).safe_share * check.tolerance


def checks_of_each(chain: Chain, values: Tensor, compute: str) -> list[Check | None]:
    """`measure.image_check` of each value; details are left to who measures one alone."""
    if chain.constraint is None:
        return [None] * len(values)
    return list(measure.checks(chain.constraint, values, compute_dtype(values.dtype, compute)))


def worst_of_each(residuals: Tensor) -> list[float]:
    return residuals.reshape(len(residuals), -1).amax(-1).tolist()


def moved_of_each(after: Tensor, before: Tensor) -> list[float]:
    """`measure.moved` of each."""
    double = wide(before.dtype, before.device)
    after, before = after.to(double).flatten(1), before.to(double).flatten(1)
    distances, sizes = norm(after - before, (1,)).tolist(), norm(before, (1,)).tolist()
    return [0.0 if not d else d / size if size else float("inf") for d, size in zip(distances, sizes)]


# --- what is told of the result -----------------------------------------------------------------------


def stored_as(chain: Chain, dtype: torch.dtype) -> str:
    return f"{chain} stored in {str(dtype).removeprefix('torch.')}"


def require_reached(chain: Chain, dtype: torch.dtype, missed_by: Callable[[], float], check: Check | None, edge: Edge | None = None) -> str | None:
    """Raise CannotReach where the originals, rounded to their storage, give no member of the constraint or another one.

    `missed_by`: the relative distance of the value from the point it was made for; `check`: the value's own. Returns a note
    where the two differ visibly.
    """
    stored, hint = stored_as(chain, dtype), edge and edge.hint
    near = f"; {edge.what}" if edge else ""
    if check is not None and not check.ok:
        detail = f": {check.detail}" if check.detail else ""
        raise CannotReach(
            f"{stored} misses {check.constraint} "
            f"(residual {number_text(check.residual)}, tolerance {number_text(check.tolerance)}{detail}){near}",
            hint=hint,
        )
    missed = missed_by()
    if not missed <= MISSED:
        raise CannotReach(f"{stored} cannot keep this tensor: rounding its originals puts the value {number_text(missed)} away{near}", hint=hint)
    return f"{stored}, its value is {number_text(missed)} from the nearest point (relatively)" if missed > NOTED else None
