"""Putting a chain on tensors: raw as torch registers it, or fitted through right inverses.

Tensors in, tensors out; names and files are the caller's. Values are measured after rounding to the
stored dtype, as a reader of the written file would see them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..chain import Chain
from ..errors import CheckFailed, ParamcliError
from ..maths import decompositions
from ..maths.base import MEMBER, NEARLY, CannotReach, Check, Parametrization
from ..maths.numbers import compute_dtype, eps, wide
from ..registry import CONSTRAINTS, constraint, parse_constraint, target_class
from ..spec import value_text
from ..text import number_text
from ..view import View
from ..wording import given
from . import measure
from . import torch_module as hosting
from .claims import holds
from .margins import NOTED, Tried
from .originals import invert, register_raw, require_back, require_preimage, widened
from .reach import Gathered, Reached, reach, reach_several, require_reached, stored_as
from .several import Seeds, Stored, made
from .skeleton import skeleton


@dataclass(frozen=True, kw_only=True)
class Became:
    """What became of a tensor that a chain was put on."""

    moved: float
    check: Check | None
    note: str | None = None
    # How far the value is from the point that its originals were made for, relatively.
    missed: float = 0.0
    # Is the value finite? Only what is registered raw may have another.
    finite: bool = True


@dataclass(frozen=True, kw_only=True)
class Fitted(Became):
    """The same with the tensors of the parametrized weight, by role, and the value that a reader sees."""

    state: Mapping[str, Tensor]
    value: Tensor


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
    """`Fitting` of one plain tensor that is there, in its stored dtype."""
    fitting = Fitting(chain, view, W.shape, W.dtype, init=init, seed=seed, max_change=max_change, compute=compute)
    state, value = fitting.make(W)
    [became] = fitting.result()
    assert became is not None  # it is alone
    return Fitted(state=state, value=value, **vars(became))


class Fitting:
    """A chain put on plain tensors: they go in, their originals and values come out, and in the end what became of
    them.

    One tensor whole, one tensor a block of rows after another (for chains that are `blocks.made_by_rows`; the bytes and
    numbers are those of the whole), or `count` tensors at once: stacked as their view shows them, for chains that are
    `blocks.stackable`; `seed` has one for each then.

    project: a weight on the constraint is kept, another moves to its nearest point; where the chain's image is open and
    originals rounded to their storage cannot hold that point, to the nearest that they can. strict: CheckFailed unless
    it is on the constraint. raw: as torch's registration. Raises CannotReach, Singular, CheckFailed; by rows it may do
    so at the last block.
    """

    def __init__(
        self,
        chain: Chain,
        view: View,
        shape: Sequence[int],
        stored: torch.dtype,
        *,
        init: str = "project",
        seed: Seeds = 0,
        max_change: float | None = None,
        compute: str = "same",
        count: int = 1,
        again: Callable[[int], Iterable[Tensor]] | None = None,
    ):
        """`shape`: of all that is put in, as it is stored. `seed`: None where nothing is drawn. `again`: by rows, gives
        the blocks that begin after a row once more.
        """
        self.chain, self.view, self.stored, self.init = chain, view, stored, init
        self.seed, self.max_change, self.compute, self.count = seed, max_change, compute, count
        self._again = again
        rows, seen = again is not None, torch.Size(view.shape(shape))
        one = shape if count == 1 else shape[1:]
        self._projects = skeleton(chain, view, one, stored).parts[-1].is_projection
        self._before = measure.Measured(chain.constraint, seen, stored, compute_dtype(stored), count=count, rows=rows)
        self._kept, self._moved = measure.Moved(count), measure.Moved(count)
        # The round trip of each link's right inverse.
        self._trips: dict[int, measure.Moved] = {}
        # What is known of the originals, where no margin from an edge is searched for: that takes one tensor whole.
        searches = init != "raw" and count == 1 and not rows
        self._gathered = None if searches else Gathered(chain, view, shape, stored, compute, count=count, rows=rows)
        self._reached: Reached | None = None
        # Of several, those that had to keep away from an edge.
        self._inside: dict[int, Reached] = {}
        self._seen: Tensor | None = None
        self._assumed: str | None = None
        self._ends = self._looked = self._far = False
        self._became: list[Became | None] = []

    def make(self, W: Tensor, first: int | None = None, ends: bool = True) -> tuple[Mapping[str, Tensor], Tensor]:
        """(originals and buffers by role, their value), as they are stored.

        A block of rows begins at row `first`; the last one `ends` the tensor.
        """
        self._ends = ends
        try:
            measure.require_finite(W)
            with torch.no_grad(), self._drawing(W.device), decompositions.shared():
                state, value = self._raw(W) if self.init == "raw" else self._fitted(W, first)
        except ParamcliError:
            if self._again is not None and first is not None:
                self._explain(self._again, first)
            raise
        self._moved.add(value, W)
        if ends:
            self._became = self._judged()
        return state, value

    def _drawing(self, device: torch.device) -> AbstractContextManager[None]:
        return nullcontext() if self.seed is None else hosting.generators_kept(device)

    def result(self) -> list[Became | None]:
        """What became of each tensor, once all is put in; None for one of several that alone is told more."""
        return self._became

    def _raw(self, W: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        assert self._gathered is not None  # no margin is searched for
        assert not isinstance(self.seed, Sequence)  # raw is registered by itself
        state = widened(register_raw(W, self.chain, self.view, self.seed, self.compute), W.dtype)
        return state, self._gathered.add(state, W.shape, None)

    def _fitted(self, W: Tensor, first: int | None) -> tuple[Mapping[str, Tensor], Tensor]:
        """Originals for the weight where it is a member, else for its nearest point."""
        seen = self._look(W)
        if self._ends:
            self._looked = True
            self._require_member(W)
        if not self._again:
            self._seen = seen
        # The set whose nearest point is wanted of what lies outside.
        spec = None if self._projects else self.chain.constraint
        off = [] if spec is None else self._off()
        if spec is None or not off:
            try:
                return self._originals(W, seen, first, stored=W.dtype)
            except CannotReach:
                # Rounded to its storage a member is off by more than an exact inverse can bring back, and a badly
                # conditioned one by more than its residual says.
                if spec is None or self.init == "strict" or self._gathered is not None:
                    raise
        stored = [None if index in off else W.dtype for index in range(self.count)] if self.count > 1 else None
        return self._originals(W, self._nearest(spec, seen, off), first, stored=stored)

    def _off(self) -> Sequence[int]:
        """Which of the tensors that were looked at last are no members."""
        if self._far:
            return range(self.count)
        return [index for index, far in enumerate(self._before.last()) if far > MEMBER]

    def _look(self, W: Tensor) -> Tensor:
        """The weight as the maths sees it, in double precision; it is noted how far from the constraint it is, where
        that matters, and how far the last map moves it.
        """
        shown = self.view.into(W)
        seen = shown.to(wide(W.dtype, W.device))
        self._far = self._is_far(seen)
        if not self._far and (not self._projects or self.init == "strict"):
            decompositions.needed_whole(seen)
            self._before.add(shown, seen=seen)
        if self._projects and self.init == "strict":
            self._kept.add(made(self.chain.links[-1], seen, self.seed).map(seen), seen)
        return seen

    def _is_far(self, seen: Tensor) -> bool:
        """Does a cheap bound tell that none of the tensors, which may move, is a member? How far they move is measured
        later.
        """
        spec = self.chain.constraint
        if spec is None or self._projects or self.init == "strict" or self._again is not None:
            return False
        wanted = constraint(spec).as_stored(self.stored)
        return all(wanted.at_least(one) > NEARLY for one in (seen if self.count > 1 else [seen]))

    def _nearest(self, spec: str, seen: Tensor, off: Sequence[int]) -> Tensor:
        """The points of the constraint nearest to the tensors that are off."""
        if self.count == 1 or len(off) == self.count:
            point, self._assumed = measure.nearest(spec, seen, self.stored, self.count)
            return point
        some = seen[off] if len(off) > 1 else seen[off[0]]
        found, self._assumed = measure.nearest(spec, some, self.stored, len(off))
        points = dict(zip(off, found if len(off) > 1 else [found], strict=True))
        return decompositions.stacked([points.get(index, one) for index, one in enumerate(seen)])

    def _originals(
        self, W: Tensor, Y: Tensor, first: int | None, stored: Stored = None
    ) -> tuple[Mapping[str, Tensor], Tensor]:
        """The originals of a point, and their value; `stored`: the dtype that the point was rounded to, where it
        was.
        """
        make = functools.partial(
            invert, self.chain, view=self.view, shape=W.shape, first_row=first, judge=self._judge, seed=self.seed
        )
        if self._gathered is None:
            make_so = functools.partial(make, stored=stored)
            strict = self.init == "strict"
            reached = reach(
                self.chain,
                self.view,
                W.shape,
                W.dtype,
                Y,
                make_so,
                self.compute,
                projects=self._projects,
                strict=strict,
            )
            state, value = reached.state, reached.value
        else:
            make_so, point = functools.partial(make, stored=stored), None if self._projects else Y
            if self._again is None:
                state, value = self._gathered.invert(make_so, Y, W.shape, point)
            else:
                state = widened(make_so(Y), W.dtype)
                value = self._gathered.add(state, W.shape, point)
            if self.count > 1 and self.init == "project":
                state, value = self._kept_away(state, value, Y, stored)
        alone = self._projects and self.chain.constraint is not None and len(self.chain) == 1
        if alone and not torch.equal(state["original"], W):
            self._assumed = (
                f"rounded, the weight's own value is not {self.chain.constraint}: "
                "the original is that value with some entries rounded the other way"
            )
        if self._gathered is None:
            self._reached = replace(reached, assumed=self._assumed)
        return state, value

    def _kept_away(
        self, state: dict[str, Tensor], value: Tensor, Y: Tensor, stored: Stored
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Originals and values of several, with others of those that an edge is too near to."""
        assert self._gathered is not None and isinstance(self.seed, Sequence)
        if target_class(self.chain.links[-1].entry).edge is Parametrization.edge:
            return state, value
        found = self._gathered.result()
        near = [i for i, (check, missed) in enumerate(found) if not (holds(check, self.chain) and missed <= NOTED)]
        if len(near) < 2:
            return state, value  # one is done alone
        seeds = self.seed

        def make(among: Sequence[int]) -> Callable[..., Mapping[str, Tensor]]:
            own = [near[index] for index in among]
            return functools.partial(
                invert,
                self.chain,
                view=self.view,
                shape=(len(own), *value.shape[1:]),
                judge=functools.partial(require_back, self.chain, several=True),
                seed=[seeds[index] for index in own],
                stored=[stored[index] for index in own] if isinstance(stored, Sequence) else stored,
            )

        tried = Tried(state, value, found).among(near)
        try:
            reached = reach_several(self.chain, value.dtype, Y[near], make, self.compute, tried)
        except CannotReach:
            return state, value  # alone each is told why
        self._inside = dict(zip(near, reached, strict=True))
        at = torch.tensor(near, device=value.device)
        others = {role: torch.stack([one.state[role] for one in reached]) for role in state}
        return (
            {role: tensor.index_copy(0, at, others[role]) for role, tensor in state.items()},
            value.index_copy(0, at, torch.stack([one.value for one in reached])),
        )

    def _judge(self, index: int, back: Tensor, wanted: Tensor) -> None:
        """Note how far from what it was asked for a link's right inverse comes back; CannotReach, at the end, where
        that is too far.
        """
        trip = self._trips.setdefault(index, measure.Moved(len(wanted) if self.count > 1 else 1))
        trip.add(back, wanted)
        if self._ends:
            for error in self._trips.pop(index).result():
                require_preimage(self.chain.links[index], error)

    def _require_member(self, W: Tensor | None = None) -> None:
        """--init strict: raise CheckFailed for what is off the constraint. `W`: the tensor, where it is there whole."""
        if self.init != "strict":
            return
        for held, changed in zip(self._before.result(), self._kept.result(), strict=True):
            if held is None or held.ok or self.count > 1:
                require_member(held, changed, self.stored)
            else:
                self._refuse_whole(held.constraint, changed, W)

    def _refuse_whole(self, spec: str, changed: float, W: Tensor | None) -> None:
        """Why it is off, and which chain keeps it, can be said of the whole alone; nothing more is to be made of it."""
        whole = W if self._again is None else torch.cat(list(self._again(-1)))
        assert whole is not None
        held = measure.check(spec, whole, self.view)
        require_member(held, changed, self.stored, lambda: keeper(spec, whole, self.view))

    def _explain(self, again: Callable[[int], Iterable[Tensor]], first: int) -> None:
        """Raise what would be said of the whole before what is wrong with the block at this row: how many entries are
        not finite, or that it is no member.
        """
        measure.require_finite_parts(again(-1))
        if self.init != "raw" and not self._looked:
            for W in again(first):
                self._look(W)
            self._require_member()

    def _judged(self) -> list[Became | None]:
        """What became of each tensor; raises where it may not."""
        moved = self._moved.result()
        for change in moved:
            require_change(change, self.max_change)
        if self._gathered is None:
            assert self._reached is not None and self._seen is not None
            reached, note = self._reached, self._reached.note(self.chain, self._seen, moved[0])
            self._reached = self._seen = None
            became: list[Became | None] = [
                Became(moved=moved[0], check=reached.check, note=note, missed=reached.missed)
            ]
        else:
            # Of what is fitted one that is not finite is no member, and told of alone.
            finite = self.init != "raw" or self._gathered.claim.finite
            became = [
                self._told_inside(index, change) if index in self._inside else self._told(change, check, missed, finite)
                for index, (change, (check, missed)) in enumerate(zip(moved, self._gathered.result(), strict=True))
            ]
        for one in became:
            if one is not None and self.init == "strict" and one.missed > NOTED:
                raise CheckFailed(
                    f"{stored_as(self.chain, self.stored)} cannot keep the tensor as it is: "
                    f"rounding its originals puts the value {number_text(one.missed)} away",
                    hint=f"{given('init', 'project')} gives the nearest point that they can hold, and tells how far",
                )
        return became

    def _told_inside(self, index: int, change: float) -> Became | None:
        """What became of one of several that kept away from an edge."""
        assert self._seen is not None
        if self._assumed is not None:
            return None
        reached = self._inside[index]
        try:
            note = reached.note(self.chain, self._seen[index], change)
        except CannotReach:
            return None
        return Became(moved=change, check=reached.check, note=note, missed=reached.missed)

    def _told(self, change: float, check: Check | None, missed: float, finite: bool) -> Became | None:
        """What became of a tensor whose originals no edge was looked for."""
        note = None
        if self.count > 1 and not (holds(check, self.chain) and missed <= NOTED and self._assumed is None):
            return None
        if self.init != "raw":
            far = require_reached(self.chain, self.stored, missed, check)
            note = "; ".join(filter(None, (self._assumed, far))) or None
        return Became(moved=change, check=check, note=note, missed=missed, finite=finite)


def require_change(change: float, max_change: float | None) -> None:
    """Raise CheckFailed where a tensor would be moved farther than --max-change."""
    if max_change is not None and not change <= max_change:
        raise CheckFailed(
            f"the chain would move it by {number_text(change)}, more than {given('max-change', max_change)}"
        )


def require_member(
    held: Check | None, changed: float, stored: torch.dtype, keeper: Callable[[], str | None] = lambda: None
) -> None:
    """--init strict: raise CheckFailed for a tensor that is off its constraint, or that the last map would change.

    `keeper`: a chain that keeps the tensor as it is, where one is known.
    """
    hint = f"{given('init', 'project')} moves it to the nearest point and reports how far"
    if held is not None and not held.ok:
        why = f": {held.detail}" if held.detail else ""
        numbers = f"(residual {number_text(held.residual)}, tolerance {number_text(held.tolerance)})"
        if other := keeper():
            hint = f"{given('chain', other)} keeps it as it is"
        raise CheckFailed(f"the tensor is not {held.constraint}{why} {numbers}", hint=hint)
    if changed > 4 * eps(stored):
        raise CheckFailed(f"the chain would move the tensor by {number_text(changed)}", hint=hint)


def keeper(spec: str, W: Tensor, view: View) -> str | None:
    """The chain that keeps the members of a next larger set that W lies in: `orthogonal`, for determinant -1."""
    entry, arguments = parse_constraint(spec)
    for name in entry.within:
        needed = [argument.name for argument in CONSTRAINTS[name].arguments if argument.required]
        kept_by = CONSTRAINTS[name].keeper
        if kept_by is None or not set(needed) <= set(arguments):
            continue
        own = "".join(f":{key}={value_text(arguments[key])}" for key in needed)
        if measure.check(name + own, W, view).ok:
            return kept_by + own
    return None
