"""How each tensor is spelt in a file: plain, parametrized, or one of the older ways.

One mechanism for every command: keys that belong together become a `Group` whose parts carry torch's
own role names, so that a weight norm spelt `weight_g`, `weight_v` and one spelt `original0`,
`original1` are the same thing to everything above. A group's chain is what the record says, or what
keys and shapes alone decide; where they decide nothing the group says so, and nobody guesses.

    spelling         keys                                roles
    parametrized     parametrizations.weight.ROLE        as in torch
    weight_norm_old  weight_g, weight_v                  original0, original1
    spectral_norm_v1 weight_orig, weight_u, weight_v     original, 0._u, 0._v
    spectral_norm_bar weight_bar, weight_u, weight_v     original, 0._u, 0._v
    spectral_norm_v0 weight_orig, weight, weight_u       original, value, 0._u
    prune_old        weight_orig, weight_mask            original, 0.mask
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.source import TensorInfo
from ..dtypes import DTYPES
from ..errors import TENSOR, InputRefused
from ..text import listing, printable
from ..view import IDENTITY, View
from .keys import parametrized_key, split_parametrized
from .readings import Reading, mask, read_roles, spectral_norm, spectral_norm_v0, weight_norm
from .record import Entry

if TYPE_CHECKING:
    from ..chain import Chain

PLAIN, PARAMETRIZED = "plain", "parametrized"
# Suffixed keys of tensors with these leaf names are halves of a pair when the rest is missing;
# other names that end alike (attn.w_g, blurred_cent_mask, query_v) are tensors of their own.
_TORCH_LEAF = re.compile(r"(weight|bias|in_proj_weight)(_[a-z]+_l[0-9]+(_reverse)?)?")


@dataclass(frozen=True, slots=True)
class Group:
    """One tensor and the keys that spell it.

    `keys`: role -> key; a plain tensor has the one role "value". `unknown` says why the chain is not known or the
    spelling is incomplete, with TENSOR for its name, and `problem` the same with the name; `chain` is None then.
    """

    tensor: str
    form: str
    keys: Mapping[str, str] = field(hash=False)
    infos: Mapping[str, TensorInfo] = field(hash=False, repr=False)
    shape: tuple[int, ...] = ()
    dtype: str = ""
    chain: Chain | None = None
    view: View = IDENTITY
    constraint: str | None = None
    unknown: str | None = None
    hint: str | None = None
    # Chains that fit by keys and shapes; `fitting.evaluate.settle` asks the data which.
    alternatives: tuple[Chain, ...] = ()
    # The first name of the tied tensors it is one of: their random numbers come from that name.
    twin: str | None = None
    # Do other keys of the file spell it as well?
    twice: bool = False
    # The record's word on it; None where the file carries none.
    record: Entry | None = None

    @property
    def problem(self) -> str | None:
        return self.unknown and self.refusal().message

    def refusal(self, path: Path | None = None) -> InputRefused:
        """The error that says what is unknown of it."""
        return InputRefused(self.unknown or "nothing is unknown of it", hint=self.hint, tensor=self.tensor, path=path)

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The chain, or those that keys and shapes leave; none where it is plain, or unknown."""
        return self.alternatives if self.chain is None else (self.chain,)

    @property
    def is_plain(self) -> bool:
        return self.form == PLAIN

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.infos.values())


@dataclass(frozen=True)
class Spelling:
    """An older way to spell a parametrized tensor: key suffix -> role, and the test of its shapes."""

    form: str
    roles: Mapping[str, str]
    read: Callable[[Mapping[str, TensorInfo]], Reading | None]


SPELLINGS = (
    Spelling("spectral_norm_v1", {"_orig": "original", "_u": "0._u", "_v": "0._v"}, spectral_norm),
    Spelling("spectral_norm_bar", {"_bar": "original", "_u": "0._u", "_v": "0._v"}, spectral_norm),
    Spelling("spectral_norm_v0", {"_orig": "original", "": "value", "_u": "0._u"}, spectral_norm_v0),
    Spelling("prune_old", {"_orig": "original", "_mask": "0.mask"}, mask),
    Spelling("weight_norm_old", {"_g": "original0", "_v": "original1"}, weight_norm),
)
_SUFFIXES = tuple(sorted({s for spelling in SPELLINGS for s in spelling.roles if s}))
FORM_OF_SPELLING = {spelling.form: spelling for spelling in SPELLINGS}
# The spelling that each set of roles has in the older style: what torch wrote before parametrize.
OLD_FORM = {
    frozenset(("original0", "original1")): "weight_norm_old",
    frozenset(("original", "0._u", "0._v")): "spectral_norm_v1",
    frozenset(("original", "0.mask")): "prune_old",
}


def detect(tensors: Mapping[str, TensorInfo], record: Mapping[str, Entry] | None = None) -> dict[str, Group]:
    """Every tensor of the file as a Group, by tensor name, in the file's order."""
    record = record or {}
    groups: dict[str, Group] = {}
    pending: dict[str, dict[str, str]] = {}
    taken = _older_spellings(tensors)
    entered: set[str] = set()
    for key, info in tensors.items():
        split = split_parametrized(key)
        if split:
            pending.setdefault(split[0], {})[split[1]] = key
        elif key in taken:
            if taken[key].tensor not in entered:
                entered.add(taken[key].tensor)
                _enter(groups, taken[key])
        else:
            _enter(groups, Group(key, PLAIN, {"value": key}, {"value": info}, info.shape, info.dtype))
    for tensor, keys in pending.items():
        if _is_packed(keys, tensors):
            groups.update(
                (
                    key,
                    Group(key, PLAIN, {"value": key}, {"value": tensors[key]}, tensors[key].shape, tensors[key].dtype),
                )
                for key in keys.values()
            )
        else:
            _enter(groups, _parametrized(tensor, keys, tensors))
    # A hundred thousand tensors share a handful of chains and shapes.
    stored_roles = functools.cache(_stored_roles)
    return {
        name: group if group.twice else _recorded(group, record.get(name), stored_roles)
        for name, group in groups.items()
    }


def _enter(groups: dict[str, Group], group: Group) -> None:
    """Every key of the file is in exactly one group. Of two that spell one tensor neither is taken for it: both ask,
    the second under the name of a key of its own; no record can speak of them.
    """
    if (first := groups.get(group.tensor)) is None:
        groups[group.tensor] = group
        return
    hint = "leave it out with -t, or take one of them out with convert --drop"
    name = next(key for key in group.keys.values() if key not in groups)
    others = listing(sorted({*first.keys.values(), *group.keys.values()}), 4)
    for place, one, said in ((group.tensor, first, TENSOR), (name, group, printable(group.tensor))):
        problem = f"{said} is in the file twice, spelt by {others}"
        groups[place] = replace(one, tensor=place, chain=None, alternatives=(), unknown=problem, hint=hint, twice=True)


def _is_packed(keys: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> bool:
    """Several originals of which one holds integers: the parts of a quantized tensor (torchao's unwrapped
    subclasses).
    """
    originals = [tensors[key].dtype for role, key in keys.items() if role.startswith("original")]
    return len(originals) > 1 and not all(DTYPES[dtype].kind in ("float", "half", "complex") for dtype in originals)


def _older_spellings(tensors: Mapping[str, TensorInfo]) -> dict[str, Group]:
    """Key -> the group it belongs to, for every complete set of an older spelling and every half of one."""
    bases: dict[str, set[str]] = {}
    for key in tensors:
        for suffix in _SUFFIXES:
            if key.endswith(suffix) and len(key) > len(suffix) and not split_parametrized(key):
                bases.setdefault(key[: -len(suffix)], set()).add(suffix)
    taken: dict[str, Group] = {}
    for base, suffixes in bases.items():
        group = _complete(base, suffixes | ({""} if base in tensors else set()), tensors) or _half(
            base, suffixes, tensors
        )
        if group:
            taken.update(dict.fromkeys(group.keys.values(), group))
    return taken


def _complete(base: str, present: set[str], tensors: Mapping[str, TensorInfo]) -> Group | None:
    for spelling in SPELLINGS:
        if not set(spelling.roles) <= present or ("" in present and "" not in spelling.roles and base in tensors):
            continue
        parts = {role: tensors[base + suffix] for suffix, role in spelling.roles.items()}
        reading = spelling.read(parts)
        dtypes = {info.dtype for role, info in parts.items() if role.startswith("original")}
        if len(dtypes) > 1 and not _TORCH_LEAF.fullmatch(base.rpartition(".")[2]):
            continue  # tensors of their own that end alike
        if reading:
            keys = {role: base + suffix for suffix, role in spelling.roles.items()}
            stored = parts.get("original") or parts["original1"]
            return Group(
                base,
                spelling.form,
                keys,
                parts,
                stored.shape,
                stored.dtype,
                reading.chain,
                alternatives=reading.alternatives,
            )
    return None


def _half(base: str, suffixes: set[str], tensors: Mapping[str, TensorInfo]) -> Group | None:
    leaf = base.rpartition(".")[2]
    if not _TORCH_LEAF.fullmatch(leaf) or base in tensors:
        return None
    fitting = [s for s in SPELLINGS if "" not in s.roles and suffixes & set(s.roles)]
    best = max(fitting, key=lambda s: 2 * len(suffixes & set(s.roles)) - len(s.roles))
    missing = [base + suffix for suffix in best.roles if suffix not in suffixes]
    keys = {role: base + suffix for suffix, role in best.roles.items() if suffix in suffixes}
    infos = {role: tensors[key] for role, key in keys.items()}
    info = next(iter(infos.values()))
    if missing:
        have = " and ".join(printable(k.rpartition(".")[2]) for k in keys.values())
        problem = f"{TENSOR} is half a {best.form} pair: {have} without {printable(missing[0])}"
        hint = "the file is incomplete, or the name means something else: leave it out with -t"
    else:
        problem = f"{TENSOR} looks like {best.form}, but its shapes and dtypes do not fit together"
        hint = "leave it out with -t, or give --chain"
    return Group(base, best.form, keys, infos, info.shape, info.dtype, unknown=problem, hint=hint)


def _parametrized(tensor: str, keys: dict[str, str], tensors: Mapping[str, TensorInfo]) -> Group:
    parts = {role: tensors[key] for role, key in keys.items()}
    originals = sorted(role for role in parts if role.startswith("original"))
    if missing := _missing_role(parts, originals):
        first = next(iter(parts.values()))
        problem = f"{TENSOR} is half a parametrization: {printable(parametrized_key(tensor, missing))} is missing"
        return Group(
            tensor,
            PARAMETRIZED,
            keys,
            parts,
            first.shape,
            first.dtype,
            unknown=problem,
            hint="the file is incomplete: leave it out with -t",
        )
    # Of a weight norm over the whole of a 1 x 1 tensor both originals have one entry, and v has the shape.
    stored = max((parts[role] for role in originals), key=lambda info: (info.numel, len(info.shape)))
    reading = read_roles(parts)
    return Group(
        tensor,
        PARAMETRIZED,
        keys,
        parts,
        stored.shape,
        stored.dtype,
        reading.chain,
        unknown=reading.problem,
        hint=_CHAIN_HINT if reading.problem else None,
        alternatives=reading.alternatives,
    )


def _missing_role(parts: Mapping[str, TensorInfo], originals: Sequence[str]) -> str | None:
    """The first role without which these are no parametrization that torch writes; None where nothing is missing."""
    if not originals:
        return "original"
    numbered = [f"original{i}" for i in range(max(len(originals), 2))]
    if originals not in (["original"], numbered):
        return next((role for role in numbered if role not in parts), "original")
    vectors = {"0._u", "0._v"} & set(parts)
    return ({"0._u", "0._v"} - vectors).pop() if len(vectors) == 1 and len(parts) == 2 else None


_CHAIN_HINT = "say what it is with --chain, or leave it out with -t"


def _recorded(
    group: Group, entry: Entry | None, stored_roles: Callable[[Chain, tuple[int, ...]], frozenset[str]]
) -> Group:
    if entry is None:
        return group
    group = replace(
        group,
        chain=entry.chain,
        view=entry.view,
        constraint=entry.constraint,
        record=entry,
        shape=group.shape if entry.shape is None else entry.shape,
        unknown=None,
        hint=None,
        alternatives=(),
    )
    if group.is_plain or "value" in group.keys:
        return group
    # Of a tensor whose parts lie in several shards, one shard alone has some.
    lacking = sorted(stored_roles(entry.chain, group.shape) - group.keys.keys())
    if not any(role.startswith("original") for role in group.keys):
        lacking = lacking or ["original"]
    if not lacking:
        return group
    problem = f"the record says {entry.chain}, and this file lacks its {listing(lacking, 3)}"
    return replace(
        group, unknown=problem, hint="if it is a shard, give its folder or index; --ignore-record reads it as it is"
    )


def _stored_roles(chain: Chain, shape: tuple[int, ...]) -> frozenset[str]:
    """The roles that a weight of this shape has under a chain of the built-in table; none where the table
    cannot tell.
    """
    stored = None if any(isinstance(link.entry.target, type) for link in chain.links) else chain.stores(shape)
    return frozenset(stored or ())


def with_chain(groups: Sequence[Group], chain: Chain | None, view: View, named: bool) -> list[Group]:
    """The groups read as the user says, in place of what keys and record say; an edit that keeps them parametrized
    records it.

    Where the user `named` no tensors, the chain is the answer for those that ask for one, if any does.
    """
    if chain is None:
        return list(groups)
    asking = [group for group in groups if group.problem or group.alternatives]
    meant = {group.tensor for group in (groups if named or not asking else asking) if not group.is_plain}

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
