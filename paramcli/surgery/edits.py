"""The edits: what each one writes for a group, known from its header, and how it computes it.

Each function plans one group and returns a `Step`; nothing here reads a tensor until `Step.run`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..chain import Chain, extend, parse_chain
from ..checkpoint.header import Slot
from ..checkpoint.source import Source
from ..dtypes import code_of, dtype_name, torch_dtype
from ..errors import TENSOR, CheckFailed, InputRefused, UsageError
from ..fitting import measure
from ..fitting import torch_module as hosting
from ..fitting.blocks import bake_rows, fit_rows
from ..fitting.claims import claim_check, kept_constraint
from ..fitting.evaluate import (
    NOT_FINITE,
    chain_of,
    complete,
    explain_infinite,
    identities,
    read_state,
    require_chain,
    require_proportion,
    settle,
    weight_of,
)
from ..fitting.fit import Fitted, fit, keeper, require_member
from ..fitting.originals import evaluate, invert, rounded, widened
from ..fitting.reach import NOTED, Reached, reach
from ..fitting.stack import bake_stack, fit_stack, stackable
from ..maths.base import Check, compute_dtype, wide
from ..registry import ANY, target_class, within
from ..spelling.forms import FORM_OF_SPELLING, OLD_FORM, PARAMETRIZED, Group
from ..spelling.keys import parametrized_key
from ..spelling.record import Entry
from ..text import number_text, printable, shape_text
from ..view import View, parse_view
from .allocate import with_count
from .plan import Rows, Stack, Step, assigned, baked, keeps_within, longest_of, require_editable


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

    def plan(self, group: Group) -> Step:
        require_editable(group)
        if 0 in group.shape:
            raise InputRefused(
                f"{TENSOR} has no entries (its shape is {shape_text(group.shape)})",
                hint="leave it out with -t",
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
            raise UsageError(f"{chain} has no right inverse: {why}", hint="--init raw registers it as torch does")
        slots = chain_slots(group, chain, self.view)
        names = (
            {slot.name: slot.name for slot in slots}
            if self.spelling == "new"
            else old_names(group.tensor, chain, slots, self.view)
        )
        slots = tuple(Slot(names[slot.name], slot.dtype, slot.shape) for slot in slots)

        keeps_zeros = self.mask_for is None and any(link.entry.keeps_zeros for link in chain.links)

        def named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {names[key]: tensor for key, tensor in keyed(group.tensor, state).items()}

        def say(moved: float, check: Check | None, note: str | None, finite: bool, full: bool) -> dict[str, object]:
            # Only raw gets here with such a value, with a zero row under a norm for one: torch writes it, and computes
            # NaN from it.
            note = note if finite else f"its value is NaN or infinite: {NOT_FINITE.format(dtype_name(group.dtype))}"
            if full:
                note = (
                    note
                    or "nothing is masked: without --mask FILE, `mask` keeps the zeros a tensor has, and it has none"
                )
            return {**numbers(moved, check), "note": note}

        def give(fitted: Fitted):
            full = keeps_zeros and bool(fitted.value.all())
            return named(fitted.state), say(
                fitted.moved, fitted.check, fitted.note, measure.all_finite(fitted.value), full
            )

        def run(source: Source, device: object, compute: str):
            W = source.read(group.keys["value"]).to(device)
            seed = hosting.tensor_seed(self.seed, group.twin or group.tensor)
            return give(
                fit(
                    W,
                    self._with_mask(chain, group, self.view),
                    self.view,
                    init=self.init,
                    seed=seed,
                    max_change=self.max_change,
                    compute=compute,
                )
            )

        def together(tensors: Sequence[Tensor], device: object, compute: str):
            return fit_stack(
                tensors, chain, self.view, init=self.init, max_change=self.max_change, device=device, compute=compute
            )

        stack = None
        if self.init != "raw" and stackable(chain, self.view, group.shape, torch_dtype(group.dtype)):
            key = ("register", str(chain), self.view.text, self.init, self.max_change, group.shape, group.dtype)
            stack = Stack(key, lambda source: source.read(group.keys["value"]), together, give)
        rows = (
            None
            if self.mask_for is not None
            else fit_rows(
                group,
                chain,
                self.view,
                init=self.init,
                seed=hosting.tensor_seed(self.seed, group.twin or group.tensor),
                max_change=self.max_change,
                keeps_zeros=keeps_zeros,
                give=named,
                say=say,
            )
        )
        return Step(
            group,
            "register",
            slots,
            str(chain),
            self.view.text,
            run,
            record=record_of(chain, self.view, group),
            stack=stack,
            rows=rows,
        )

    def _appended(self, old: Chain, group: Group, view: View) -> tuple[Chain, Chain]:
        """(the whole chain, what is new in it)"""
        whole, more = extend(old, self.chain)
        return whole.at(view.shape(group.shape)), more

    def _plan_append(self, group: Group) -> Step:
        require_chain(group)
        if group.form != PARAMETRIZED:
            raise InputRefused(
                f"{TENSOR} is spelt the old way ({group.form})",
                hint="paramcli migrate --to new first, or remove --bake",
            )
        view = parse_view(group.view)
        if self.view.text not in (None, view.text):
            raise UsageError(f"{TENSOR} already has the view {view}; a chain has one view")
        # Chains between which the data decide store the same.
        olds = [parse_chain(text) for text in ([group.chain] if group.chain else group.alternatives)]
        wholes = [self._appended(old, group, view) for old in olds]
        (whole, more), old = wholes[0], olds[0]
        if self.mask_for is not None:
            more.require_taker("mask")
        slots = chain_slots(group, whole, view)
        if self.spelling == "old":
            old_names(group.tensor, whole, slots, view)

        def run(source: Source, device: object, compute: str):
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
            if self.init == "strict":
                require_member(held, 0.0, before.dtype, lambda: keeper(held.constraint, before, view))
            dtype = compute_dtype(before.dtype, compute)
            seed = hosting.tensor_seed(self.seed, group.twin or group.tensor)
            with torch.no_grad():
                host = hosting.load(old, view, group.shape, widened(state, dtype))
                hosting.register(host, "weight", self._with_mask(more, group, view), view, seed)
            state = {**widened(hosting.roles(host), before.dtype), **state}
            hosting.release(host)
            value = evaluate(whole, view, group.shape, state, before.dtype, compute)
            change = measure.moved(value, before)
            if self.max_change is not None and not change <= self.max_change:
                raise CheckFailed(
                    f"the chain would move it by {number_text(change)}, more than --max-change {self.max_change:g}"
                )
            told = numbers(change, claim_check(whole, view, value, state, compute))
            if held is not None and held.ok and change > NOTED:
                # As in torch: what is appended gets the value of the chain before it, and no right inverse is asked.
                what, hint = (
                    f"it is {held.constraint} already, and {more} after {old} moves it by {number_text(change)}",
                    "remove --bake first: add then keeps it",
                )
                if self.init == "strict":
                    raise CheckFailed(what, hint=hint)
                told["note"] = f"{what}; {hint}"
            return keyed(group.tensor, state), {**told, "chain": str(whole), "record": record_of(whole, view, group)}

        note, records = no_longer_promised(old, more, whole), [record_of(whole, view, group) for whole, _ in wholes]
        if len(records) == 1:
            return Step(group, "append", slots, str(whole), view.text, run, record=records[0], note=note)
        return Step(group, "append", slots, None, view.text, run, longest=longest_of(records), note=note)


@dataclass(frozen=True)
class Bake:
    """`remove --bake`: the value in place of the originals."""

    def plan(self, group: Group) -> Step:
        require_chain(group)
        require_editable(group)
        chain = chain_of(group) if group.chain else None
        if chain is not None:
            check_roles(group, chain, parse_view(group.view))
        require_proportion(group)

        def run(source: Source, device: object, compute: str):
            state = read_state(source, group, device)
            for role, tensor in state.items():
                if tensor.is_floating_point() or tensor.is_complex():
                    measure.require_finite(tensor, f"'{role}'")
            settled, view = settle(group, state)
            value = weight_of(group, state, settled, view, compute)
            if not measure.all_finite(value):
                explain_infinite(group, [(0, state)])
            check = claim_check(settled, view, value, complete(group, state, settled), compute, group.constraint)
            kept = (
                kept_constraint(settled, view, value, check, compute)
                if keeps_within(group, settled)
                else group.constraint or settled.constraint
            )
            record = Entry("baked", str(settled), view.text, kept)
            return {group.tensor: value}, {**numbers(0.0, check), "chain": str(settled), "record": record}

        slots, record, longest = baked(group)
        stack, rows = (self._stack(group, chain), self._rows(group, chain)) if chain else (None, None)
        return Step(
            group, "bake", slots, group.chain, group.view, run, record=record, longest=longest, stack=stack, rows=rows
        )

    def _rows(self, group: Group, chain: Chain) -> Rows | None:
        if group.alternatives or group.constraint not in (None, chain.constraint):
            return None
        view = parse_view(group.view)
        return bake_rows(group, chain, view, lambda check: {**numbers(0.0, check), "chain": str(chain)})

    def _stack(self, group: Group, chain: Chain) -> Stack | None:
        if group.alternatives or set(group.keys) != {"original"} or group.constraint not in (None, chain.constraint):
            return None
        view = parse_view(group.view)
        if not stackable(chain, view, group.shape, torch_dtype(group.dtype)):
            return None

        def together(tensors: Sequence[Tensor], device: object, compute: str):
            return bake_stack(tensors, chain, view, device, compute)

        def give(baked: tuple[Tensor, Check | None]):
            return {group.tensor: baked[0]}, {**numbers(0.0, baked[1]), "chain": str(chain)}

        return Stack(
            ("bake", str(chain), view.text, group.shape, group.dtype),
            lambda source: source.read(group.keys["original"]),
            together,
            give,
        )


@dataclass(frozen=True)
class Assign:
    """`assign`: `layer.weight = X`, through the chain's right inverse; a plain tensor is replaced."""

    value_for: object  # (Group, device) -> Tensor of the group's shape, any floating dtype; `check` is its header half
    seed: int = 0

    def plan(self, group: Group) -> Step:
        require_editable(group)
        require_chain(group)
        chain = view = None
        if not group.is_plain:
            if group.chain is None:
                raise InputRefused("keys and shapes leave its chain open", hint="say which with --chain")
            chain, view = chain_of(group), parse_view(group.view)
            if why := chain.uninvertible():
                raise InputRefused(f"{chain} has no right inverse: {why}")
            if "value" in group.keys:
                raise InputRefused(
                    f"{TENSOR} is spelt the oldest way ({group.form})",
                    hint="paramcli migrate --to new first",
                )
            check_roles(group, chain, view)
        self.value_for.check(group)
        slots, record, _ = assigned(group)

        def run(source: Source, device: object, compute: str):
            state = read_state(source, group, device)
            before = state["value"] if chain is None else weight_of(group, state, chain, view, compute)
            wanted = self.value_for(group, device)
            measure.require_finite(wanted, "the value to assign")
            if chain is None:
                value = rounded(wanted, before.dtype)
                return {group.tensor: value}, numbers(measure.moved(value, before), None)
            reached, note = self._reached(group, state, chain, view, wanted, compute)
            new = {role: reached.state.get(role, state[role]) for role in state}
            check = reached.check
            if group.constraint not in (None, chain.constraint):
                check = claim_check(chain, view, reached.value, complete(group, new, chain), compute, group.constraint)
            told = {**numbers(measure.moved(reached.value, before), check), "note": note}
            return {group.keys[role]: tensor for role, tensor in new.items()}, told

        return Step(group, "assign", slots, group.chain, group.view, run, record=record)

    def _reached(
        self, group: Group, state: dict[str, Tensor], chain: Chain, view: View, wanted: Tensor, compute: str
    ) -> tuple[Reached, str | None]:
        """(originals for the assigned value, or for the nearest point that they can hold; what is to be told)"""
        stored = hosting.dtype_of(state)
        seed = hosting.tensor_seed(self.seed, group.twin or group.tensor)
        with torch.no_grad(), hosting.generators_kept(wanted.device):
            parts = hosting.parts(
                hosting.load(
                    chain, view, group.shape, widened(complete(group, state, chain), wide(stored, wanted.device))
                )
            )
            seen = view.into(wanted.to(wide(stored, wanted.device)))
            free = chain.constraint is None or parts[-1].is_projection
            target, assumed = (seen, None) if free else measure.nearest(chain.constraint, seen, wanted.dtype)
            make = functools.partial(
                invert,
                chain,
                seed=seed,
                view=view,
                shape=group.shape,
                existing=parts,
                stored=wanted.dtype if free else None,
            )
            reached = reach(chain, view, group.shape, stored, target, make, compute, projects=parts[-1].is_projection)
        distance = measure.moved(target, seen)
        notes = [
            replace(reached, assumed=assumed).note(
                chain, seen, measure.moved(view.into(reached.value), seen), "assigned value"
            )
        ]
        if distance > NOTED and not reached.kept_away:
            notes.append(
                f"the assigned value was {number_text(distance)} from {chain.constraint}; its nearest point is stored"
            )
        return reached, "; ".join(filter(None, notes)) or None


def no_longer_promised(old: Chain, more: Chain, whole: Chain) -> str | None:
    """What to say where a chain's set is given up by what is appended: the last map's set is all that a chain promises."""
    before, after, wanted = (
        (spec or ANY).partition(":")[0] for spec in (old.constraint, whole.constraint, more.links[0].domain)
    )
    if before == ANY or within(after, before) or within(wanted, before):
        return None
    return f"{old.constraint} is no longer promised, nor verified: {more} after it may leave that set"


def chain_slots(group: Group, chain: Chain, view: View) -> tuple[Slot, ...]:
    """The slots that the chain writes for this tensor, as torch's own bookkeeping has them."""
    return tuple(
        Slot(parametrized_key(group.tensor, role), dtype, shape)
        for role, dtype, shape in _outline(chain, view, group.shape, group.dtype)
    )


@functools.lru_cache(1024)
def _outline(
    chain: Chain, view: View, shape: tuple[int, ...], code: str
) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """(role, dtype, shape) of what the chain stores: the same for every tensor of one kind, and a module to find out."""
    hosting.require_fit(chain, view, shape, torch_dtype(code))
    try:
        outline = hosting.outline(chain, shape, torch_dtype(code), view)
    except (IndexError, ValueError, RuntimeError) as error:
        raise InputRefused(
            f"{chain} does not fit a tensor of shape {shape_text(shape)}: {str(error).splitlines()[0]}"
        ) from None
    return tuple((role, code_of(tensor.dtype), tuple(tensor.shape)) for role, tensor in outline.items())


def old_names(tensor: str, chain: Chain, slots: tuple[Slot, ...], view: View) -> dict[str, str]:
    """torch's current key -> the one from before parametrize; UsageError for chains that had none, and for views."""
    if view.text is not None:
        raise UsageError(
            f"the old spelling has no views, and code that reads it would see another weight than --view {view} gives"
        )
    form = OLD_FORM.get(frozenset(slot.name.removeprefix(parametrized_key(tensor, "")) for slot in slots))
    # Two originals or a buffer named alike can be another parametrization.
    if form is None or len(chain) != 1 or chain.links[0].entry.old_form != form:
        raise UsageError(f"{chain} has no old spelling", hint="weight_norm, spectral_norm and pruning have one")
    return {parametrized_key(tensor, role): tensor + suffix for suffix, role in FORM_OF_SPELLING[form].roles.items()}


def check_roles(group: Group, chain: Chain, view: View) -> None:
    """Raise InputRefused unless the file's keys and shapes are the ones this chain has."""
    if "value" in group.keys:
        return
    slots = chain_slots(group, chain, view)
    wanted = {slot.name: slot.shape for slot in slots}
    have = {parametrized_key(group.tensor, role): None for role in set(group.keys) - identities(chain, group.keys)}
    if set(wanted) != set(have):
        lacking, extra = sorted(set(wanted) - set(have)), sorted(set(have) - set(wanted))
        told = [f"lacks {printable(k)}" for k in lacking[:2]] + [f"has {printable(k)} besides" for k in extra[:2]]
        raise InputRefused(
            f"{chain} does not fit the keys of {TENSOR}: the file {', '.join(told)}",
            hint="give the chain and the view it was made with: --chain, --view",
        )


def keyed(tensor: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {parametrized_key(tensor, role): value.contiguous() for role, value in state.items()}


def record_of(chain: Chain, view: View, group: Group) -> Entry:
    """The record's word on a parametrized tensor; its shape too where no original has it."""
    shape = None if target_class(chain.links[0].entry).stored_originals else group.shape
    return Entry("parametrized", str(chain), view.text, chain.constraint, shape)


def numbers(moved: float | None, check: Check | None) -> dict[str, object]:
    return {
        "moved": moved,
        "residual": check.residual if check else None,
        "tolerance": check.tolerance if check else None,
    }
