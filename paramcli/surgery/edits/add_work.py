"""What `add` plans and computes: a chain is put on a plain tensor, or appended to the chain of a parametrized one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...chain import Chain, extend, parse_chain
from ...checkpoint.header import Slot
from ...checkpoint.source import Rows
from ...dtypes import dtype_name, torch_dtype
from ...errors import PATH, TENSOR, CheckFailed, InputRefused, UsageError
from ...fitting import measure
from ...fitting import torch_module as hosting
from ...fitting.blocks import Batch, fit_ranges, stackable
from ...fitting.claims import claim_check
from ...fitting.evaluate import (
    NOT_FINITE,
    Tensors,
    complete,
    read_state,
    require_chain,
    settle,
    weight_of,
)
from ...fitting.fit import Became, Fitting, keeper, require_change, require_member
from ...fitting.margins import NOTED
from ...fitting.originals import evaluate, widened
from ...maths.base import Parametrization
from ...maths.numbers import compute_dtype
from ...maths.rows import Share
from ...registry import ANY, target_class, within
from ...spelling.forms import PARAMETRIZED, Group
from ...spelling.recurrent import Shaped, gates
from ...text import number_text, shape_text
from ...view import IDENTITY, View
from ...wording import LEAVE_OUT, call, given
from ..allocate import with_count
from ..plan import Made, Ranges, Step, Told, longest_of, once, require_editable
from .slots import chain_slots, kept_slots, keyed, numbers, old_names, record_of


@dataclass(frozen=True)
class Register:
    """`add`: put a chain on plain tensors; append it to the chain of parametrized ones."""

    chain: str
    view: View
    init: str = "project"
    seed: int = 0
    max_change: float | None = None
    spelling: str = "new"
    # The mask of each tensor for the chain's `mask`, and exact counts for a `prune_l1` over all tensors together.
    mask_for: Callable[[Group], Tensor] | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    # The file's tensors by name.
    tensors: Mapping[str, Shaped] = field(default_factory=dict)

    def plan(self, group: Group) -> Step:
        try:
            return self._plan(group)
        except InputRefused as error:
            count = gates(group.tensor, self.tensors)
            if count and self.view.name is None and self._fits_as(View("blocks", count), group):
                error.advice = f"{given('view', f'blocks={count}')}: it stacks a matrix for each of {count} gates"
            raise

    def _fits_as(self, view: View, group: Group) -> bool:
        """Does the chain fit the tensor by this view, and not without one?"""
        chain, dtype = parse_chain(self.chain), torch_dtype(group.dtype)
        fits = []
        for seen in (view, self.view):
            try:
                hosting.require_fit(chain, seen, group.shape, dtype)
                fits.append(True)
            except InputRefused:
                fits.append(False)
        return fits == [True, False]

    def _plan(self, group: Group) -> Step:
        require_editable(group)
        if 0 in group.shape:
            raise InputRefused(
                f"{TENSOR} has no entries (its shape is {shape_text(group.shape)})",
                hint=LEAVE_OUT,
            )
        if group.is_plain:
            return self._plan_plain(group)
        return self._plan_append(group)

    def _chain_of(self, group: Group) -> Chain:
        """The chain for this tensor, with its own share of a count over all of them."""
        chain = parse_chain(self.chain)
        if self.mask_for is not None:
            chain.require_taker("mask")
        chain = chain.at(self.view.shape(group.shape))
        return with_count(chain, self.counts[group.tensor]) if group.tensor in self.counts else chain

    def _with_mask(self, chain: Chain, group: Group, view: View) -> Chain:
        return chain if self.mask_for is None else chain.with_tensor("mask", view.into(self.mask_for(group)))

    def _plan_plain(self, group: Group) -> Step:
        chain = self._chain_of(group)
        if self.init != "raw" and (why := chain.uninvertible()):
            raise UsageError(
                f"{chain} has no right inverse: {why}",
                hint=f"{given('init', 'raw')} registers it as torch does",
                option="chain",
            )
        slots = chain_slots(group, chain, self.view)
        names = (
            {slot.name: slot.name for slot in slots}
            if self.spelling == "new"
            else old_names(group.tensor, chain, slots, self.view)
        )
        slots = tuple(Slot(names[slot.name], slot.dtype, slot.shape) for slot in slots)
        # Of one edit alone: others have another seed, and other limits.
        together = ("register", id(self), chain, group.shape, group.dtype) if self._together(chain, group) else None
        return Step(
            group,
            "register",
            slots,
            chain,
            self.view,
            functools.partial(RegisterWork, self, chain),
            record=record_of(chain, self.view, group),
            stack_key=together,
            ranges=fit_ranges(group, chain, self.view) if self.mask_for is None else (),
        )

    def _together(self, chain: Chain, group: Group) -> bool:
        """Is it put on tensors of this kind together? Not with a mask for each, and near an edge margins are looked for
        matrix by matrix, which are tensors then.
        """
        if self.init == "raw" or self.mask_for is not None:
            return False
        edge = target_class(chain.links[-1].entry).edge is not Parametrization.edge
        if edge and len(self.view.shape(group.shape)) > 2:
            return False
        return stackable(chain, self.view, group.shape, torch_dtype(group.dtype))

    def _appended(self, old: Chain, group: Group, view: View) -> tuple[Chain, Chain]:
        """(the whole chain, what is new in it)"""
        whole, more = extend(old, self.chain)
        return whole.at(view.shape(group.shape)), more

    def _plan_append(self, group: Group) -> Step:
        require_chain(group)
        _require_new(group)
        view = group.view
        if self.view not in (IDENTITY, view):
            raise UsageError(f"{TENSOR} already has the view {view}; a chain has one view", option="view")
        # Chains between which the data decide store the same.
        olds = group.chains
        wholes = [self._appended(old, group, view) for old in olds]
        (whole, more), old = wholes[0], olds[0]
        if self.mask_for is not None:
            more.require_taker("mask")
        slots = kept_slots(group, chain_slots(group, whole, view))
        if self.spelling == "old":
            old_names(group.tensor, whole, slots, view)

        def run(source: Tensors, device: str, compute: str) -> Made:
            state = read_state(source, group, device)
            old, _ = settle(group, state)
            whole, more = self._appended(old, group, view)
            state = complete(group, state, old)
            before = weight_of(group, state, old, view, compute)
            measure.require_finite(before)
            held = (
                measure.check(whole.constraint, before, view)
                if self.init != "raw" and whole.constraint is not None
                else None
            )
            if self.init == "strict" and held is not None:
                constraint = held.constraint
                require_member(held, 0.0, before.dtype, lambda: keeper(constraint, before, view))
            dtype = compute_dtype(before.dtype, compute)
            seed = hosting.tensor_seed(self.seed, group.twin or group.tensor)
            with torch.no_grad():
                host = hosting.load(old, view, group.shape, widened(state, dtype))
                hosting.register(host, "weight", self._with_mask(more, group, view), view, seed)
            state = {**widened(hosting.roles(host), before.dtype), **state}
            hosting.release(host)
            value = evaluate(whole, view, group.shape, state, before.dtype, compute)
            change = measure.moved(value, before)
            require_change(change, self.max_change)
            check, note = claim_check(whole, view, value, state, compute), None
            if held is not None and held.ok and change > NOTED:
                # As in torch: what is appended gets the value of the chain before it, and no right inverse is asked.
                what, hint = (
                    f"it is {held.constraint} already, and {more} after {old} moves it by {number_text(change)}",
                    f"{call('remove', PATH, bake=True)} first: add then keeps it",
                )
                if self.init == "strict":
                    raise CheckFailed(what, hint=hint)
                note = f"{what}; {hint}"
            return keyed(group.tensor, state), numbers(change, check, note, whole, record_of(whole, view, group))

        note, records = no_longer_promised(old, more, whole), [record_of(whole, view, group) for whole, _ in wholes]
        if len(records) == 1:
            return Step(group, "append", slots, whole, view, once(run), record=records[0], note=note)
        return Step(group, "append", slots, None, view, once(run), longest=longest_of(records), note=note)


class RegisterWork:
    """The work of `Register` on plain tensors."""

    def __init__(
        self,
        edit: Register,
        chain: Chain,
        steps: Sequence[Step],
        source: Tensors,
        device: str,
        compute: str,
        ranges: Ranges,
    ):
        group = steps[0].group
        seeds = [hosting.tensor_seed(edit.seed, step.group.twin or step.group.tensor) for step in steps]
        # Links that make a batch draw nothing, and may be in any thread.
        draws = not all(target_class(link.entry).stacks for link in chain.links)
        self.steps, self.chain, self.view = steps, chain, edit.view
        self.batch = Batch(source, [s.group for s in steps], edit.view, device, ranges, {"value": Share()})
        self.fitting = Fitting(
            edit._with_mask(chain, group, edit.view),
            self.batch.view,
            self.batch.shape,
            torch_dtype(group.dtype),
            init=edit.init,
            seed=seeds if len(steps) > 1 else seeds[0] if draws else None,
            max_change=edit.max_change,
            compute=compute,
            count=len(steps),
            again=self._again if ranges else None,
        )
        # Asked of a mask alone: does it keep every entry?
        self.full = [edit.mask_for is None and any(link.entry.keeps_zeros for link in chain.links)] * len(steps)

    def read(self, rows: Rows) -> Mapping[str, Tensor]:
        return self.batch.read(rows)

    def _again(self, after: int) -> Iterator[Tensor]:
        return (block["value"].to(self.batch.device) for _, block in self.batch.again({}, after))

    def make(self, rows: Rows, block: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        W = block["value"].to(self.batch.device)
        state, value = self.fitting.make(W, None if rows is None else rows[0], self.batch.is_last(rows))
        if any(self.full):
            full = value.reshape(len(self.steps), -1).all(1).tolist()
            self.full = [before and now for before, now in zip(self.full, full, strict=True)]
        apart = {role: self.batch.apart(tensor) for role, tensor in state.items()}
        states = [dict(zip(apart, tensors, strict=True)) for tensors in zip(*apart.values(), strict=True)]
        return [self._named(step, state) for step, state in zip(self.steps, states, strict=True)]

    def _named(self, step: Step, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors under the keys that the step writes."""
        made = keyed(step.group.tensor, state)
        slots = chain_slots(step.group, self.chain, self.view)
        return {written.name: made[slot.name] for slot, written in zip(slots, step.writes, strict=True)}

    def told(self) -> list[Told | None]:
        found = zip(self.steps, self.fitting.result(), self.full, strict=True)
        return [None if became is None else self._told(step, became, full) for step, became, full in found]

    def _told(self, step: Step, became: Became, full: bool) -> Told:
        note = became.note
        if not became.finite:
            # Only raw gets here with such a value, with a zero row under a norm for one: torch writes it, and computes
            # NaN from it.
            note = f"its value is NaN or infinite: {NOT_FINITE.format(dtype_name(step.group.dtype))}"
        if full:
            file = given("mask", "FILE")
            note = note or f"nothing is masked: without {file}, `mask` keeps the zeros a tensor has, and it has none"
        return numbers(became.moved, became.check, note)


def no_longer_promised(old: Chain, more: Chain, whole: Chain) -> str | None:
    """What to say where a chain's set is given up by what is appended: the last map's set is all that a chain
    promises.
    """
    before, after, wanted = (
        (spec or ANY).partition(":")[0] for spec in (old.constraint, whole.constraint, more.links[0].domain)
    )
    if before == ANY or within(after, before) or within(wanted, before):
        return None
    return f"{old.constraint} is no longer promised, nor verified: {more} after it may leave that set"


def _require_new(group: Group) -> None:
    """InputRefused for what no chain is appended to."""
    if group.chain is not None and group.chain.decodes:
        raise InputRefused(
            f"{TENSOR} stores codes ({group.chain}): a chain is put on weights",
            hint=f"{call('remove', PATH, bake=True)} first",
        )
    if group.form != PARAMETRIZED:
        raise InputRefused(
            f"{TENSOR} is spelt the old way ({group.form})",
            hint=f"{call('migrate', PATH, to='new')} first, or {call('remove', PATH, bake=True)}",
        )
