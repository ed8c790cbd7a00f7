"""What the user says of tensors, in place of what keys and record say: --chain and --view, on the tensors named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

from ..errors import TENSOR, InputRefused, UsageError, error_context
from ..spec import select
from ..view import IDENTITY, View
from .forms import Group, look_alike
from .record import Entry

if TYPE_CHECKING:
    from ..chain import Chain


def named(
    groups: Mapping[str, Group], patterns: Sequence[str], where: str | PathLike[str], asked: bool = False
) -> list[Group]:
    """The groups that the patterns name; one that matches nothing raises UsageError.

    Where a chain was `asked` for, the exact name of a tensor that nothing is taken for unasked (att.x of att.x_g and
    att.x_v) names that.
    """
    everything = dict(groups)
    if asked:
        tensors = {name: group.infos["value"] for name, group in groups.items() if group.is_plain}
        for name in patterns:
            if name not in everything and (group := look_alike(name, tensors)):
                everything[name] = group
    with error_context(option="tensor"):
        return [everything[name] for name in select(list(everything), patterns, where)]


def require_parametrized(groups: Sequence[Group], hint: str) -> None:
    """UsageError for a chain that is given for a tensor which is plain."""
    plain = next((group for group in groups if group.is_plain), None)
    if plain is not None:
        raise UsageError(
            f"{TENSOR} is a plain tensor: no chain is left in it", tensor=plain.tensor, hint=hint, option="chain"
        )


def with_chain(groups: Sequence[Group], chain: Chain | None, view: View, named: bool) -> list[Group]:
    """The groups read as the user says, in place of what keys and record say; an edit that keeps them parametrized
    records it.

    Where the user `named` no tensors, the chain is the answer for those that ask for one, if any does.
    """
    if chain is None:
        return list(groups)
    asking = [group for group in groups if group.problem or group.alternatives]
    meant = {
        group.tensor for group in (groups if named or not asking else asking) if not group.is_plain and not group.odd
    }

    def said(group: Group) -> Group:
        originals = [group.infos[role].shape for role in sorted(group.infos) if role.startswith("original")]
        shape = group.shape if view != IDENTITY else chain.weight_shape(originals) or group.shape
        try:
            constraint = chain.at(view.shape(shape)).constraint
        except InputRefused:
            constraint = chain.constraint  # no such view of it: told where its own turn comes
        return replace(
            group,
            chain=chain,
            view=view,
            constraint=constraint,
            shape=shape,
            record=Entry("parametrized", chain, view, constraint, None if shape in originals else shape),
            unknown=None,
            hint=None,
            alternatives=(),
        )

    return [said(group) if group.tensor in meant else group for group in groups]
