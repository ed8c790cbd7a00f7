"""How each tensor is spelt in a file: plain, parametrized, or one of the older ways.

One mechanism for every command: keys that belong together become a `Group` whose parts carry torch's
own role names, so that a weight norm spelt `weight_g`, `weight_v` and one spelt `original0`,
`original1` are the same thing to everything above. A group's chain is what the record says, or what
keys and shapes alone decide; where they decide nothing the group says so, and nobody guesses.

    parametrized     parametrizations.weight.ROLE        as in torch
    older spellings  weight_g, weight_v and the like     of the same map (`older.py`)
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.source import Odd, TensorInfo
from ..dtypes import kind_of
from ..errors import PATH, TENSOR, InputRefused
from ..text import listing, printable
from ..view import IDENTITY, View
from ..wording import LEAVE_OUT, call, given
from .keys import parametrized_key, split_parametrized
from .older import FORM_OF_SPELLING, NAME, SPELLINGS, SUFFIXES
from .readings import read_roles
from .record import Entry

if TYPE_CHECKING:
    from ..chain import Chain

PLAIN, PARAMETRIZED = "plain", "parametrized"
# A pruned part of a weight norm is one tensor inside another; nothing that is written has more than two.
NESTED = 3
# How the roles begin of what stands beside a tensor and goes with it: scales of what is computed with it.
ASIDE = "aside."


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
    # Roles whose tensor is itself spelt an older way: role -> that tensor. `keys` and `infos` have the keys of these
    # too, each under "role/its own role".
    nested: Mapping[str, Group] = field(default_factory=dict, hash=False, repr=False)
    # Do other keys of the file spell it as well?
    twice: bool = False
    # The record's word on it; None where the file carries none.
    record: Entry | None = None

    @property
    def problem(self) -> str | None:
        return self.unknown and self.refusal().message

    def refusal(self, path: Path | None = None) -> InputRefused:
        """The error that says what is unknown of it."""
        what = self.unknown or "nothing is unknown of it"
        return InputRefused(what, hint=self.hint, tensor=self.tensor, path=path, code="unrecognised")

    @property
    def odd(self) -> Odd | None:
        """Why it cannot be carried, where one of its keys is a tensor that cannot."""
        return next((info.odd for info in self.infos.values() if info.odd is not None), None)

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The chain, or those that keys and shapes leave; none where it is plain, or unknown."""
        return self.alternatives if self.chain is None else (self.chain,)

    @property
    def roles(self) -> set[str]:
        """What the chain is to find, whichever keys spell it."""
        return {role for role in self.own_roles if "/" not in role} | self.nested.keys()

    @property
    def in_codes(self) -> bool:
        """Is what it stores codes, from which its value is decoded?"""
        return "original" in self.infos and kind_of(self.infos["original"].dtype) in ("int", "packed")

    @property
    def own_roles(self) -> list[str]:
        """The roles of its keys, without those that stand beside it and say nothing of its value."""
        return [role for role in self.keys if not role.startswith(ASIDE)]

    def key_of(self, role: str) -> str:
        """The key that spells this role of it in the file."""
        return self.nested[role].tensor if role in self.nested else self.keys[role]

    @property
    def is_plain(self) -> bool:
        return self.form == PLAIN

    @property
    def stored(self) -> list[tuple[str, TensorInfo]]:
        """Its keys in the file, each with what is stored under it."""
        return [(key, self.infos[role]) for role, key in self.keys.items()]

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.infos.values())


def detect(tensors: Mapping[str, TensorInfo], record: Mapping[str, Entry] | None = None) -> dict[str, Group]:
    """Every tensor of the file as a Group, by tensor name, in the file's order; read as the record says, if any."""
    record = record or {}
    groups: dict[str, Group] = {}
    pending: dict[str, dict[str, str]] = {}
    there, taken, inner = _older_spellings(tensors, record)
    entered: set[str] = set()
    for key, info in there.items():
        split = split_parametrized(key)
        if split:
            pending.setdefault(split[0], {})[split[1]] = key
        elif key not in taken:
            _enter(groups, plain_group(key, info))
        elif taken[key].tensor not in entered:
            entered.add(taken[key].tensor)
            _enter(groups, taken[key])
    for tensor, keys in pending.items():
        if _is_packed(keys, there):
            groups.update((key, plain_group(key, there[key])) for key in keys.values())
        else:
            _enter(groups, _nesting(_parametrized(tensor, keys, there), inner))
    # A hundred thousand tensors share a handful of chains and shapes.
    stored_roles = functools.cache(_stored_roles)
    return {
        name: group if group.twice else _with_odd(_recorded(group, record.get(name), stored_roles))
        for name, group in groups.items()
    }


def plain_group(key: str, info: TensorInfo) -> Group:
    return Group(key, PLAIN, {"value": key}, {"value": info}, info.shape, info.dtype)


def _with_odd(group: Group) -> Group:
    """The group, nothing being said of it but why one of its tensors cannot be carried, where one cannot."""
    if all(info.odd is None for info in group.infos.values()):
        return group
    role, odd = next((role, info.odd) for role, info in group.infos.items() if info.odd is not None)
    why = odd.why if group.keys[role] == group.tensor else odd.why.replace(TENSOR, printable(group.keys[role]))
    return replace(group, chain=None, alternatives=(), unknown=why, hint=f"{LEAVE_OUT}, or {odd.hint}")


def _enter(groups: dict[str, Group], group: Group) -> None:
    """Every key of the file is in exactly one group. Of two that spell one tensor neither is taken for it: both ask,
    the second under the name of a key of its own; no record can speak of them.
    """
    if (first := groups.get(group.tensor)) is None:
        groups[group.tensor] = group
        return
    hint = f"{LEAVE_OUT}, or take one of them out with {call('convert', PATH)} {given('drop')}"
    if all(key in groups for key in group.keys.values()):
        first, group = group, first  # a plain tensor has no other name than that of the two
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
    return len(originals) > 1 and not all(kind_of(dtype) in ("float", "half", "complex") for dtype in originals)


def _older_spellings(
    tensors: Mapping[str, TensorInfo], record: Container[str]
) -> tuple[dict[str, TensorInfo], dict[str, Group], dict[str, Group]]:
    """(keys, key -> the group it belongs to for every complete set of an older spelling and every half of one, inner).

    What is stored of a tensor may be spelt an older way itself: weight_v_orig and weight_v_mask beside weight_g. The
    name that they spell then stands in their place among the keys, and `inner` has its group. What the record names is
    taken whatever its name.
    """
    there, inner = dict(tensors), dict[str, Group]()
    for last in (*[False] * NESTED, True):
        found = {
            base: _nesting(group, inner)
            for base, suffixes in _bases(there).items()
            if (group := _complete(base, suffixes | ({""} if base in there else set()), there, base in record))
        }
        parts = {base: found[base] for base in found if base not in there and _is_stored(base)}
        if last or not parts:
            break
        inner.update(parts)
        there = _standing(parts, there)
    taken = {base: group for base, group in inner.items() if base in there}
    beside = _siblings(there) if found else {}
    for base, group in found.items():
        group = _explained(group, [key for key in beside.get(base, ()) if key not in _top_keys(group)])
        taken.update(dict.fromkeys(group.keys.values(), group))
        taken.update({part.tensor: group for part in group.nested.values()})
    for base, suffixes in _bases(key for key in there if key not in taken).items():
        if base not in found and (group := _half(base, suffixes, there)):
            taken.update(dict.fromkeys(group.keys.values(), group))
    return there, taken, inner


def _bases(keys: Iterable[str]) -> dict[str, set[str]]:
    """What the keys may spell -> the suffixes that they spell it with."""
    bases: dict[str, set[str]] = {}
    for key in keys:
        for suffix in SUFFIXES:
            if key.endswith(suffix) and len(key) > len(suffix) and not split_parametrized(key):
                bases.setdefault(key[: -len(suffix)], set()).add(suffix)
    return bases


def _is_stored(base: str) -> bool:
    """Is it by its name what a parametrization stores?"""
    return split_parametrized(base) is not None or base.endswith(tuple(SUFFIXES))


def _standing(parts: Mapping[str, Group], tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """The tensors, with what each of the parts spells in the place of its keys."""
    part_of = {key: group for group in parts.values() for key in _top_keys(group)}
    there: dict[str, TensorInfo] = {}
    for key, info in tensors.items():
        part = part_of.get(key)
        if part is None:
            there[key] = info
        else:
            there.setdefault(part.tensor, TensorInfo(part.tensor, part.dtype, part.shape, info.storage))
    return there


def _top_keys(group: Group) -> list[str]:
    """Its keys, with what is nested in it under its name."""
    return [key for role, key in group.keys.items() if "/" not in role] + [g.tensor for g in group.nested.values()]


def _nesting(group: Group, inner: Mapping[str, Group]) -> Group:
    """The group, with the keys of those of its tensors that are spelt an older way themselves."""
    nested = {role: inner[key] for role, key in group.keys.items() if key in inner}
    if not nested:
        return group
    keys: dict[str, str] = {}
    infos: dict[str, TensorInfo] = {}
    for role, key in group.keys.items():
        part = nested.get(role)
        keys.update({f"{role}/{of}": name for of, name in part.keys.items()} if part else {role: key})
        infos.update({f"{role}/{of}": info for of, info in part.infos.items()} if part else {role: group.infos[role]})
    problem = next((part for part in nested.values() if part.problem), None)
    if problem is None:
        return replace(group, keys=keys, infos=infos, nested=nested)
    unknown = f"its {printable(problem.tensor)} is not known: {problem.problem}"
    return replace(group, keys=keys, infos=infos, nested=nested, chain=None, alternatives=(), unknown=unknown)


def _complete(base: str, present: set[str], tensors: Mapping[str, TensorInfo], any_name: bool = False) -> Group | None:
    """The tensor that these suffixes of it spell; `any_name`: also one that torch's own functions are not put on."""
    leaf = base.rpartition(".")[2]
    if leaf.startswith("original") and not split_parametrized(base):
        return None
    for spelling in SPELLINGS:
        if not set(spelling.roles) <= present or not (any_name or spelling.leaf.fullmatch(leaf)):
            continue
        parts = {role: tensors[base + suffix] for suffix, role in spelling.roles.items()}
        reading = spelling.read(parts)
        stored = parts.get("original") or parts["original1"]
        # Beside a tensor of that very name they spell it a second time; beside another shape they mean something else.
        if reading is None or ("" in present - set(spelling.roles) and tensors[base].shape != stored.shape):
            continue
        return Group(
            base,
            spelling.form,
            {role: base + suffix for suffix, role in spelling.roles.items()},
            parts,
            stored.shape,
            stored.dtype,
            reading.chain,
            unknown=reading.problem,
            hint=_CHAIN_HINT if reading.problem else None,
            alternatives=reading.alternatives,
        )
    return None


_SIBLING = re.compile(r"(.+)_[a-z]+", re.S)


def _siblings(keys: Iterable[str]) -> dict[str, list[str]]:
    """Name -> the keys that are this name and a word, and no names of tensors themselves."""
    found: dict[str, list[str]] = {}
    for key in keys:
        if (match := _SIBLING.fullmatch(key)) and not NAME.fullmatch(key.rpartition(".")[2]):
            found.setdefault(match[1], []).append(key)
    return found


def _explained(group: Group, beside: Sequence[str]) -> Group:
    """The group; unknown where there is a key beside it that no such spelling has, so that it means something else."""
    if not beside or group.problem:
        return group
    problem = (
        f"{TENSOR} has the keys of a {FORM_OF_SPELLING[group.form].title}, and beside them {listing(beside, 3)}, "
        "which is no part of one"
    )
    return replace(group, chain=None, alternatives=(), unknown=problem, hint=_CHAIN_HINT)


def look_alike(name: str, tensors: Mapping[str, TensorInfo]) -> Group | None:
    """What the keys of these tensors spell under a name that nothing is taken for unasked; None where they do not."""
    return _complete(name, _bases(tensors).get(name, set()), tensors, any_name=True)


# Parts that are no weight: alone beside one that is there they are no half of another.
_ASIDE = {"_mask", "_u", "_sigma"}


def _half(base: str, suffixes: set[str], tensors: Mapping[str, TensorInfo]) -> Group | None:
    leaf = base.rpartition(".")[2]
    fitting = [s for s in SPELLINGS if "" not in s.roles and suffixes & set(s.roles) and s.leaf.fullmatch(leaf)]
    if not fitting or base in tensors or leaf.startswith("original"):
        return None
    if suffixes <= _ASIDE and any(parametrized_key(base, role) in tensors for role in ("original", "original0")):
        return None  # a tensor of its own beside the weight, as it is beside a plain one
    best = max(fitting, key=lambda s: 2 * len(suffixes & set(s.roles)) - len(s.roles))
    keys = {role: base + suffix for suffix, role in best.roles.items() if suffix in suffixes}
    infos = {role: tensors[key] for role, key in keys.items()}
    info = next(iter(infos.values()))
    hint = f"the file is incomplete, or the name means something else: {LEAVE_OUT}"
    if suffixes >= set(best.roles):
        problem = f"{TENSOR} has the keys of a {best.title}, but their shapes and dtypes do not fit together"
        hint = f"{LEAVE_OUT}, or give {given('chain')}"
    else:
        have = listing([base + suffix for suffix in best.roles if suffix in suffixes], 3)
        # Those of which nothing is missing in another one's place.
        able = [s for s in fitting if suffixes <= set(s.roles)] or [best]
        least = [s for s in able if not any(set(other.roles) < set(s.roles) for other in able)]
        lacking = {
            s.title: listing([base + suffix for suffix in s.roles if suffix not in suffixes], 3)
            for s in sorted(least, key=lambda s: (s is not best, len(s.roles)))
        }
        what = " or ".join(f"without {keys} it is no {title}" for title, keys in lacking.items())
        problem = f"{TENSOR} is not whole: {have} is there, and {what}"
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
            hint=f"the file is incomplete: {LEAVE_OUT}",
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


_CHAIN_HINT = f"say what it is with {given('chain')}, or {LEAVE_OUT}"


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
    lacking = sorted(stored_roles(entry.chain, group.shape) - group.roles)
    if not any(role.startswith("original") for role in group.roles):
        lacking = lacking or ["original"]
    if not lacking:
        return group
    problem = f"the record says {entry.chain}, and this file lacks its {listing(lacking, 3)}"
    return replace(
        group,
        unknown=problem,
        hint=f"if it is a shard, give its folder or index; {given('ignore-record', True)} reads it as it is",
    )


def _stored_roles(chain: Chain, shape: tuple[int, ...]) -> frozenset[str]:
    """The roles that a weight of this shape has under a chain of the built-in table; none where the table
    cannot tell.
    """
    stored = None if any(isinstance(link.entry.target, type) for link in chain.links) else chain.stores(shape)
    return frozenset(stored or ())
