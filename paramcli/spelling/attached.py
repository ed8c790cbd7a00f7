"""Adapters on the tensors of a base: every tensor of each is used, once, or none is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..chain import Chain, extend, parse_chain
from ..checkpoint.joined import joined
from ..checkpoint.same_bytes import same_bytes
from ..checkpoint.source import Source, TensorInfo
from ..dtypes import EDITABLE, dtype_name
from ..errors import TENSOR, InputRefused, UsageError
from ..text import count_text, printable, printable_path
from ..view import View
from ..wording import call, given
from .adapter import Adapter, Change
from .forms import PARAMETRIZED, Group
from .opened import Opened
from .record import Entry
from .tied_head import tied_head
from .unparametrized import IN_BASE, ONTO_BASE, instead_of_chains


@dataclass(frozen=True)
class Attached:
    """Adapters beside a base: the base's file with theirs joined to it, the base's own groups, and what stands before
    the tensors of each adapter.
    """

    source: Source
    groups: Mapping[str, Group]
    adapters: Mapping[str, Adapter]
    # The dtype that a change is rounded to before it is added; "none" where the sum alone is rounded.
    rounds: str = "none"
    # What was asked for last, and the answer: an edit asks again at each stage of planning.
    _last: list[tuple[Mapping[str, Group], tuple[dict[str, Group], list[str]]]] = field(default_factory=list)

    def put_on(self, groups: Mapping[str, Group]) -> tuple[dict[str, Group], list[str]]:
        """(the base's groups with the adapters' changes on them, the names of those that are changed).

        Every tensor of an adapter is used, once. Raises InputRefused for a change of no tensor of the base, or of one
        it does not fit, with the names that are near and the prefix that would do.
        """
        if self._last and self._last[0][0] == groups:
            return self._last[0][1]
        made, changed = dict(groups), dict[str, None]()
        for label, adapter in self.adapters.items():
            find = adapter.names.finder(groups)
            if adapter.looks is not None:
                adapter.looks(groups)
            try:
                names = {id(change): find(change) for change in adapter.changes}
            except InputRefused as error:
                error.path = error.path or adapter.source.path
                raise
            lost = [change for change in adapter.changes if not change.optional and names[id(change)] is None]
            if lost:
                raise _matches_nothing(groups, self.source, adapter, lost)
            self._require_copies(groups, label, adapter)
            unused, once = adapter.source.tensors.keys() - adapter.copies.keys() - adapter.idle, set[str]()
            kinds: dict[tuple[str, frozenset[str]], Change] = {}
            # How the base stores its weights is told by those that are not square.
            for change in sorted(adapter.changes, key=lambda change: _is_square(groups, names[id(change)])):
                if (name := names[id(change)]) is None:
                    continue
                taken = change.taken - adapter.shared
                if taken & once:
                    raise InputRefused(f"{TENSOR} is used twice", tensor=min(taken & once), path=adapter.source.path)
                once |= taken
                if (first := kinds.setdefault((name, frozenset(change.keys)), change)) is not change:
                    raise _twice(name, first, change, adapter)
                unused -= change.taken
                made[name] = changed_group(made[name], change, label, adapter, self)
                changed[name] = None
            if unused:
                raise _unknown(adapter, unused)
        answer = made, [name for name in made if name in changed]
        self._last[:] = [(groups, answer)]
        return answer

    def _require_copies(self, groups: Mapping[str, Group], label: str, adapter: Adapter) -> None:
        """Raise InputRefused where what the adapter holds of the base is another tensor there."""
        for key, copied in adapter.copies.items():
            stored = _before_adapters(groups[copied]) if copied in groups else copied
            if stored not in self.source.tensors:
                stored = None if copied in groups else copied
            elif same_bytes(self.source, f"{label}/{key}", self.source, stored):
                continue
            raise InputRefused(
                f"{TENSOR} is the adapter's own copy of the base's {printable(copied)}, and that is "
                + ("another tensor" if stored is not None else f"made of others ({groups[copied].chain or 'a chain'})"),
                hint="is it an adapter of this base?"
                if stored is not None
                else f"{call('remove', self.source.path)} first",
                tensor=key,
                path=adapter.source.path,
            )


def beside(base: Opened, adapters: Sequence[Adapter], rounds: str = "none") -> Attached:
    """The adapters, which are the caller's to close, joined to a base; `rounds` as of `Attached`."""
    ready = []
    for adapter in adapters:
        if adapter.inside is not None:
            base, found = adapter.inside.within(base)
            ready.append(found.with_prefix(adapter.prefixes))
        else:
            ready.append(adapter)
    for adapter in adapters:
        if adapter.inside is not None:
            adapter.inside.require_none_left(base)
    ready = [adapter.on(base.groups) for adapter in ready]
    labels = _labels(base.source, ready)
    source = joined(base.source, dict(zip(labels, (adapter.source for adapter in ready), strict=True)))
    return Attached(source, base.groups, dict(zip(labels, ready, strict=True)), rounds)


def attach(opened: Opened, adapters: Sequence[Adapter], rounds: str = "none") -> tuple[Opened, list[str]]:
    """(the base with the adapters' changes on its tensors, their names), as of `Attached.put_on`."""
    attached = beside(opened, adapters, rounds)
    groups, names = attached.put_on(attached.groups)
    return Opened(attached.source, groups), names


def _twice(name: str, first: Change, second: Change, adapter: Adapter) -> InputRefused:
    """The refusal of two names for one change, of which no program that reads them takes both."""
    return InputRefused(
        f"{TENSOR} and {printable(min(first.keys.values()))} are the same change of {printable(name)}: "
        "nothing tells which is meant",
        tensor=min(second.keys.values()),
        path=adapter.source.path,
    )


def _before_adapters(group: Group) -> str | None:
    """The key of the weight without the adapters that are on it; None where a chain of another kind makes it."""
    if group.is_plain:
        return group.keys["value"]
    links = group.chain.links if group.chain is not None else ()
    of_adapters = bool(links) and all(link.entry.family == "adapter" for link in links)
    return group.keys.get("original") if of_adapters else None


def _unknown(adapter: Adapter, unused: set[str]) -> InputRefused:
    """The refusal of tensors that no change has."""
    return InputRefused(
        f"{TENSOR} is none that paramcli knows in an adapter of this kind ({adapter.title})"
        + (f", nor are {count_text(len(unused) - 1, 'other')}" if len(unused) > 1 else ""),
        hint="every tensor of an adapter must be used; what is left out would change the result",
        tensor=min(unused),
        path=adapter.source.path,
    )


def _labels(base: Source, adapters: Sequence[Adapter]) -> list[str]:
    """A name for each adapter, before whose tensors it stands; no tensor of the base begins so."""
    labels: list[str] = []
    for adapter in adapters:
        path = adapter.source.path
        plain = path.parent.name if path.stem in ("adapter_model", "pytorch_lora_weights") else path.stem
        label, number = plain or "adapter", 1
        while label in labels or any(name.startswith(f"{label}/") for name in base.tensors):
            number += 1
            label = f"{plain} {number}"
        labels.append(label)
    return labels


def _is_square(groups: Mapping[str, Group], name: str | None) -> bool:
    return name is not None and len(groups[name].shape) == 2 and len(set(groups[name].shape)) == 1


def changed_group(group: Group, change: Change, label: str, adapter: Adapter, attached: Attached) -> Group:
    """The group with one more parametrization on it, whose tensors are the adapter's."""
    source = attached.source
    if group.problem:
        raise group.refusal(source.path)
    if group.dtype not in EDITABLE:
        raise InputRefused(
            f"{TENSOR} is {dtype_name(group.dtype)}, and an adapter changes numbers of floating point",
            hint="dequantize it first, which is not done here yet",
            tensor=group.tensor,
            path=source.path,
        )
    if group.alternatives:
        raise InputRefused(
            f"{TENSOR} has a chain that only its data decide",
            hint=f"{call('remove', source.path)} first",
            tensor=group.tensor,
        )
    try:
        item, view = change.reads(group)
        chain, seen = _extended(group, rounding(item, attached.rounds), view, source)
    except InputRefused as error:
        error.tensor, error.path = error.tensor or group.tensor, error.path or adapter.source.path
        raise
    except UsageError as error:
        # A number of the adapter that no chain takes.
        raise InputRefused(error.fact, tensor=group.tensor, path=adapter.source.path) from None
    first = 0 if group.is_plain or group.chain is None else len(group.chain)
    keys = dict(group.keys) if not group.is_plain else {"original": group.keys["value"]}
    infos: dict[str, TensorInfo] = dict(group.infos) if not group.is_plain else {"original": group.infos["value"]}
    stored = chain.stores(seen.shape(group.shape)) or {}
    for role, key in change.keys.items():
        name, (link, _, own) = f"{label}/{key}", role.rpartition(".")
        placed = f"{first + int(link or 0)}.{own}"
        of_numbers = stored.get(placed, (None, ()))[0]
        if source.tensors[name].dtype not in ((of_numbers,) if of_numbers else EDITABLE):
            raise InputRefused(
                f"{TENSOR} is {dtype_name(source.tensors[name].dtype)}, and a change is numbers of "
                + (dtype_name(of_numbers) if of_numbers else "floating point"),
                tensor=key,
                path=adapter.source.path,
            )
        keys[placed], infos[placed] = name, source.tensors[name]
    for role, info in ((role, of(group)) for role, of in change.made.items()):
        name = f"{label}/{info.name}"
        source.tensors[name] = replace(info, name=name)
        keys[f"{first}.{role}"], infos[f"{first}.{role}"] = name, source.tensors[name]
    record = Entry("parametrized", chain, seen)
    return replace(
        group, form=PARAMETRIZED, keys=keys, infos=infos, chain=chain, view=seen, constraint=None, record=record
    )


def rounding(item: str, rounds: str) -> str:
    """The item, with its change rounded before it is added; InputRefused where it adds none."""
    entry = parse_chain(item).links[-1].entry
    if rounds == "none" or entry.name in ("saved", "saved_rows"):
        return item
    if not any(argument.name == "rounds" for argument in entry.arguments):
        raise InputRefused(
            f"{TENSOR} is changed by {entry.name}, which adds nothing that could be rounded first",
            hint=f"{given('like')} is for plain LoRA",
        )
    return f"{item}:rounds={rounds}"


def _extended(group: Group, item: str, view: View, base: Source) -> tuple[Chain, View]:
    """The chain of the group and one item more, and the one view that they have."""
    before = None if group.is_plain else group.chain
    if before is None:
        return parse_chain(item), view
    if view != group.view:
        raise InputRefused(
            f"{TENSOR} is {before} through the view {group.view} already, and the adapter sees it through {view}; a "
            "chain has one view",
            hint=f"{call('remove', base.path)} first, or merge the adapters one after another",
            tensor=group.tensor,
            path=base.path,
        )
    return extend(before, item)[0], view


def _matches_nothing(
    groups: Mapping[str, Group], base: Source, adapter: Adapter, lost: Sequence[Change]
) -> InputRefused:
    """The refusal of an adapter that is not of this base, or spells its names another way."""
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    of_all = count_text(len(adapter.changes), "changed tensor")
    where, hint = printable_path(base.path), adapter.names.hint(groups, adapter, lost)
    if (tied := tied_head(groups, base, lost)) is not None:
        where, hint = where + tied.where, tied.hint
    if instead_of_chains(groups).hint == ONTO_BASE:
        where, hint = f"{where}, which is an adapter itself", "give the file of the base model's weights"
    elif instead_of_chains(groups).hint == IN_BASE:
        where = f"{where}, which holds a base and adapters of its own"
        hint = f"{given('adapter', 'adapter_config.json')} merges those, by the configuration alone"
    only = len(adapter.changes) == 1
    what = f"{TENSOR}{more} of {of_all} are" if more else f"{TENSOR} is" if only else f"{TENSOR}, one of {of_all}, is"
    return InputRefused(
        f"{what} not in {where}",
        hint=hint,
        tensor=lost[0].tensor,
        path=adapter.source.path,
    )
