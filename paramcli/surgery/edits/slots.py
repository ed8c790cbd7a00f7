"""What an edit writes for a tensor: its keys, dtypes and shapes as torch has them, and what the record says of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from torch import Tensor

from ...chain import Chain
from ...checkpoint.header import Slot
from ...dtypes import code_of, torch_dtype
from ...errors import TENSOR, InputRefused, UsageError
from ...fitting import skeleton
from ...fitting import torch_module as hosting
from ...fitting.evaluate import (
    identities,
)
from ...maths.base import Check
from ...registry import target_class
from ...spelling.forms import Group
from ...spelling.keys import parametrized_key
from ...spelling.older import FORM_OF_SPELLING, OLD_FORM
from ...spelling.record import Entry
from ...text import printable, shape_text
from ...view import IDENTITY, View
from ...wording import given
from ..plan import Told


def chain_slots(group: Group, chain: Chain, view: View) -> tuple[Slot, ...]:
    """The slots that the chain writes for this tensor, as torch's own bookkeeping has them."""
    return tuple(
        Slot(parametrized_key(group.tensor, role), dtype, shape)
        for role, dtype, shape in _outline(chain, view, group.shape, group.dtype)
    )


def kept_slots(group: Group, slots: Sequence[Slot]) -> tuple[Slot, ...]:
    """The slots, those of what the file has in the file's own dtypes: a mask of floats stays one."""
    stored = {parametrized_key(group.tensor, role): info.dtype for role, info in group.infos.items()}
    return tuple(Slot(slot.name, stored.get(slot.name, slot.dtype), slot.shape) for slot in slots)


@functools.lru_cache(1024)
def _outline(
    chain: Chain, view: View, shape: tuple[int, ...], code: str
) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """(role, dtype, shape) of what the chain stores: the same for every tensor of one kind, and it takes a module to
    find out.
    """
    hosting.require_fit(chain, view, shape, torch_dtype(code))
    try:
        outline = skeleton.outline(chain, shape, torch_dtype(code), view)
    except (IndexError, ValueError, RuntimeError) as error:
        raise InputRefused(
            f"{chain} does not fit a tensor of shape {shape_text(shape)}: {str(error).splitlines()[0]}"
        ) from None
    return tuple((role, code_of(tensor.dtype), tuple(tensor.shape)) for role, tensor in outline.items())


def old_names(tensor: str, chain: Chain, slots: tuple[Slot, ...], view: View) -> dict[str, str]:
    """torch's current key -> the one from before parametrize; UsageError for chains that had none, and for views."""
    if view != IDENTITY:
        raise UsageError(
            f"the old spelling has no views: code that reads it would see another weight than the view {view} gives",
            option="view",
        )
    form = OLD_FORM.get(frozenset(slot.name.removeprefix(parametrized_key(tensor, "")) for slot in slots))
    # Two originals or a buffer named alike can be another parametrization.
    if form is None or len(chain) != 1 or chain.links[0].entry.old_form != form:
        raise UsageError(
            f"{chain} has no old spelling", hint="weight_norm, spectral_norm and pruning have one", option="chain"
        )
    return {parametrized_key(tensor, role): tensor + suffix for suffix, role in FORM_OF_SPELLING[form].roles.items()}


def check_roles(group: Group, chain: Chain, view: View) -> None:
    """Raise InputRefused unless the file's keys and shapes are the ones this chain has."""
    if "value" in group.keys:
        return
    before = parametrized_key(group.tensor, "")
    wanted = {slot.name.removeprefix(before) for slot in chain_slots(group, chain, view)}
    have = group.roles - identities(chain, group.roles)
    if wanted != have:
        lacking = [f"lacks {printable(_key(group, role))}" for role in sorted(wanted - have)[:2]]
        told = lacking + [f"has {printable(_key(group, role))} besides" for role in sorted(have - wanted)[:2]]
        raise InputRefused(
            f"{chain} does not fit the keys of {TENSOR}: the file {', '.join(told)}",
            hint=f"give the chain and the view it was made with: {given('chain')}, {given('view')}",
        )


def _key(group: Group, role: str) -> str:
    """The key that holds this role of the tensor, or would in the file's own spelling where that has the role."""
    if role in group.roles:
        return group.key_of(role)
    older = FORM_OF_SPELLING.get(group.form)
    suffixes = {of: suffix for suffix, of in older.roles.items()} if older else {}
    return group.tensor + suffixes[role] if role in suffixes else parametrized_key(group.tensor, role)


def keyed(tensor: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {parametrized_key(tensor, role): value.contiguous() for role, value in state.items()}


def record_of(chain: Chain, view: View, group: Group) -> Entry:
    """The record's word on a parametrized tensor; its shape too where no original has it."""
    shape = None if target_class(chain.links[0].entry).stored_originals else group.shape
    return Entry("parametrized", chain, view, chain.constraint, shape)


def numbers(
    moved: float, check: Check | None, note: str | None = None, chain: Chain | None = None, record: Entry | None = None
) -> Told:
    return Told(
        moved=moved,
        residual=check.residual if check else None,
        tolerance=check.tolerance if check else None,
        note=note,
        chain=chain,
        record=record,
    )
