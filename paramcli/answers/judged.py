"""A tensor that adapters change -> what is said of it: base plus adapter, or what it is instead.

One pass over the tensor tells that it holds. Where it does not, further passes try what is known to go wrong; the first
that explains every entry is what is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ..chain import parse_chain
from ..dtypes import dtype_name, torch_dtype
from ..errors import ParamcliError
from ..fitting.expected import Block, Look, Model, Part, Touched, blocks, look, without
from ..fitting.strengths import Allowed, Arithmetic, arithmetics, half_spacing, simplest
from ..spelling.forms import Group
from ..text import listing, number_text, printable, shape_text
from ..view import IDENTITY, parse_view
from .merge_verdict import MergeVerdict, share

# Passes of the search for a strength, at most.
TRIES = 10
NO_MAGNITUDE = "the magnitudes are left out: of DoRA it is the LoRA alone"
# No strength is looked for beyond this, nor any longer where a step is smaller than what rounding leaves open.
FARTHEST, STILL = 1e6, 1e-8
# Tensors up to this many entries are evaluated whole to see what the other way round would have given.
WHOLE = 1 << 24
# (M, E) of the entries of a block that something is tried on; None where it cannot be tried.
Tried: TypeAlias = "tuple[Tensor, Tensor] | None"
Trial: TypeAlias = Callable[[Model, Block], Tried]


@dataclass(frozen=True)
class Found:
    """What a tensor is: a key of VERDICTS, what is to be said of it, and at which strengths it is that."""

    verdict: str
    detail: str | None = None
    strength: tuple[float, float] | None = None
    # The farthest entry, as a share of what rounding explains.
    farthest: float | None = None


def judge(touched: Touched, labels: Mapping[str, set[str]]) -> MergeVerdict:
    """The verdict on one tensor. `labels`: the keys of each adapter's tensors, by its name."""
    group, merged = touched.group, touched.merged.group
    stored = torch_dtype(merged.dtype)
    verdict = MergeVerdict(group.tensor, str(touched.chain), group.shape, dtype_name(merged.dtype), "another")
    if merged.shape != group.shape:
        return replace(verdict, detail=f"it is {shape_text(merged.shape)}, and {shape_text(group.shape)} in the base")
    if not stored.is_floating_point or stored.itemsize < 2:
        return replace(verdict, detail=f"it is {dtype_name(merged.dtype)}, and {dtype_name(group.dtype)} in the base")
    seen, found = _found(touched, labels, torch_dtype(group.dtype), stored)
    return replace(
        verdict,
        verdict=found.verdict,
        residual=seen.residual if seen.finite else None,
        of_rounding=_farthest(seen, found),
        differing=seen.differing / seen.entries if seen.finite and seen.entries else None,
        strength=found.strength,
        detail=found.detail,
    )


def _farthest(seen: Look, found: Found) -> float | None:
    """By the arithmetic that it holds by, else by that of one rounding."""
    if not seen.finite:
        return None
    return next(iter(seen.allowed.values())).farthest if found.farthest is None else found.farthest


def _found(
    touched: Touched, labels: Mapping[str, set[str]], before: torch.dtype, stored: torch.dtype
) -> tuple[Look, Found]:
    plain = [how for how in arithmetics(before, stored, touched.factors, adds=True) if how.change is None]
    seen = look(touched, plain, closely=False)
    if any(allowed.doubtful for allowed in seen.allowed.values()):
        seen = look(touched, plain)  # some rows leave open what all of them may tell
    if not seen.finite:
        return seen, Found("another", "NaN or infinity in it")
    if (how := seen.within()) is not None:
        return seen, _holding(touched, seen.allowed[how], how, stored, seen.unchanged)
    if seen.unchanged:
        return seen, Found("never_applied")
    if _twice(touched, plain):
        return seen, Found("twice")
    if any(allowed.unmoved for allowed in seen.allowed.values()):
        return seen, Found("never_applied", "but for rounding it is the base's")
    at = _strength(touched, plain, seen)
    # Where all but a few entries are rounded once, those few are not so by another arithmetic.
    ways = arithmetics(before, stored, touched.factors, bool(touched.adds))
    coarse = [how for how in ways if how.change is not None]
    coarse = [how for how in coarse if not any(allowed.rules_out(how) for allowed in seen.allowed.values())]
    if at is not None and all(map(at.rules_out, coarse)):
        return seen, _at_strength(touched, at, plain)
    rough = look(touched, coarse) if coarse else seen
    for how, allowed in rough.allowed.items() if coarse else ():
        if at is not None and at.rules_out(how):
            return seen, _at_strength(touched, at, plain)
        if allowed.within:
            return seen, _holding(touched, allowed, how, stored, seen.unchanged)
    if at is not None:
        return seen, _at_strength(touched, at, plain)
    return seen, _otherwise(touched, labels, [*plain, *coarse], rough, seen)


def _holding(touched: Touched, allowed: Allowed, how: Arithmetic, stored: torch.dtype, unchanged: bool) -> Found:
    """What is said of a tensor that is base plus adapter by this arithmetic, and may be something else as well."""
    strength, name = allowed.strengths, dtype_name(touched.merged.group.dtype)
    if unchanged or allowed.unmoved:
        return Found("below_rounding", f"the change is less than {name} can show", strength, allowed.farthest)
    if touched.adds and strength is not None and allowed.doubtful:
        low, high = map(number_text, strength)
        return Found("below_rounding", f"{name} allows strengths from {low} to {high}", strength, allowed.farthest)
    return Found("holds", how.text(stored), strength, allowed.farthest)


def _at_strength(touched: Touched, allowed: Allowed, ways: Sequence[Arithmetic]) -> Found:
    if touched.adds and allowed.has(2.0):
        return Found("twice", "or at twice its strength, which is the same", allowed.strengths)
    if touched.adds and allowed.has(0.0):
        return Found("never_applied", "but for rounding it is the base's", allowed.strengths)
    lesser = _without_magnitude(touched.group) if allowed.has(0.0) else None
    if lesser is not None and fits(touched, _lesser(lesser), ways) is not None:
        return Found("another", NO_MAGNITUDE)  # what LyCORIS means by no strength at all
    return Found("other_strength", strength=allowed.strengths)


def _strength(touched: Touched, ways: Sequence[Arithmetic], first: Look) -> Allowed | None:
    """What rounding allows of the strength that explains every entry; None where none does.

    Newton's steps towards where M - round(E) has nothing left along E's derivative: that is so at the strength itself,
    whatever rounding made of changes below a step of the dtype.
    """
    seen, at, known = first, 1.0, list(touched.known)
    for _ in range(TRIES):
        for allowed in seen.allowed.values():
            if allowed.strengths is not None and allowed.within and at != 1:
                touched.known[:] = [at, *(other for other in touched.known if other != at)][:2]
                return allowed
        close = next((a for a in seen.allowed.values() if a.any and a.strengths is not None), None)
        if close is not None:
            at = simplest(close.low, close.high)
        elif known:
            at = known.pop(0)
        elif seen.slope and seen.pull == seen.pull:
            at += seen.pull / seen.slope
        if abs(at - seen.at) <= STILL or not abs(at) < FARTHEST:
            return None
        try:
            seen = look(touched, ways, at, closely=False)
        except ParamcliError:
            return None  # a family that takes no such strength
    return None


def _otherwise(
    touched: Touched, labels: Mapping[str, set[str]], ways: Sequence[Arithmetic], rough: Look, seen: Look
) -> Found:
    """What is left to try where no strength explains the tensor to its last bit."""
    if _twice(touched, ways):
        return Found("twice")
    coarse = [how for how in ways if how.change is not None]
    at = _strength(touched, coarse, rough) if coarse else None
    if at is not None:
        return _at_strength(touched, at, ways)
    for what, verdict, detail in _mistakes(touched, labels):
        if fits(touched, what, ways) is not None:
            return Found(verdict, detail)
    astray = min(allowed.astray for allowed in seen.allowed.values())
    if astray <= seen.entries / 4:
        is_or_are = "is" if astray == 1 else "are"
        return Found("another", f"{astray} of {seen.entries} entries {is_or_are} off, the others hold")
    said = f"the adapter explains {share(seen.explained)} of what was changed"
    if seen.explained > 0.5 and seen.wanted:
        said += f", at {number_text(seen.along / seen.wanted)} times its strength"
    return Found("another", said)


def _mistakes(touched: Touched, labels: Mapping[str, set[str]]) -> list[tuple[Trial, str, str | None]]:
    """What may have been done in place of what should: the values to expect, the verdict, a word more."""
    found: list[tuple[Trial, str, str | None]] = []
    shape = touched.group.shape
    if len(shape) == 2 and shape[0] == shape[1] and shape[0] > 1:
        found.append((_change_transposed, "transposed", None))
        if touched.group.view.name in (None, "transpose") and shape[0] * shape[1] <= WHOLE and not touched.adds:
            found.append((_other_view, "transposed", None))
        found.append((_all_transposed, "transposed", "the whole tensor is"))
    parts = {name: keys for name, keys in labels.items() if keys & set(touched.group.keys.values())}
    for name, keys in parts.items() if len(parts) > 1 else ():
        rest = without(touched.group, keys)
        if rest is not None:
            others = listing([other for other in parts if other != name], 3)
            found.append((_lesser(rest), "never_applied", f"{printable(name)} is not in it, {others} is"))
    lesser = _without_magnitude(touched.group) if len(parts) <= 1 else None
    if lesser is not None:
        found.append((_lesser(lesser), "another", NO_MAGNITUDE))
    return found


def _lesser(rest: Group) -> Trial:
    """What is expected of a group with something left out."""

    def left_out(model: Model, block: Block) -> Tried:
        return block.merged, model.of(rest)

    return left_out


def _without_magnitude(group: Group) -> Group | None:
    """A DoRA without its lengths, as tools merge it that take it for a LoRA; None of any other chain."""
    assert group.chain is not None
    *before, last = group.chain.links
    if last.entry.without_lengths == "":
        return without(group, {key for role, key in group.keys.items() if role.startswith(f"{len(before)}.")})
    if last.entry.without_lengths is None or before:
        return None
    chain = parse_chain(last.with_arguments(last.entry.without_lengths))
    keys = {
        role: key for role, key in group.keys.items() if role in (chain.stores(group.view.shape(group.shape)) or {})
    }
    return replace(group, chain=chain, keys=keys, infos={role: group.infos[role] for role in keys})


def _tile(block: Block) -> slice:
    """The columns that have the numbers of the block's rows."""
    return slice(block.first_row, block.first_row + block.group.shape[0])


def _change_transposed(model: Model, block: Block) -> Tried:
    """Of a square matrix the squares on its diagonal, one in each block: they say it of themselves."""
    columns = _tile(block)
    W, E = model.W[:, columns], model.at(1.0)[0][:, columns]
    return block.merged[:, columns], W + (E - W).mT


def _all_transposed(model: Model, block: Block) -> Tried:
    columns = _tile(block)
    return block.merged[:, columns], model.at(1.0)[0][:, columns].mT


def _other_view(model: Model, block: Block) -> Tried:
    if block.group.shape[0] != block.group.shape[1]:
        return None  # a part of the rows
    other = parse_view("transpose") if model.view == IDENTITY else IDENTITY
    return block.merged, model.of(replace(block.group, view=other))


def fits(
    touched: Touched,
    expected: Trial,
    ways: Sequence[Arithmetic],
    unsure: bool = False,
) -> Arithmetic | None:
    """The first arithmetic by which the tensor is what is expected, entry by entry.

    `unsure`: what is expected was made of a rounded value, which next to the middle between two numbers may have been
    rounded to the other one.
    """
    left = list(ways)
    for block in blocks(touched):
        for how in list(left):
            model = Model(touched, block, how)
            tried = expected(model, block)
            if tried is None:
                return None
            E, slope, off = model.at(1.0)
            M, wanted = (T.reshape(-1).to(torch.float64) for T in tried)
            size = (E - model.W if slope is None else slope).abs().max()
            part = Part(M, M, wanted, size.expand_as(M), block.merged.dtype)
            tolerance, _ = part.tolerance(how, 2.0 if unsure else 1.0, off, model.adds())
            if unsure:
                tolerance = tolerance + _doubt(E.reshape(-1), block.merged.dtype, off)
            if not bool(((M - wanted).abs() <= tolerance).all()):
                left.remove(how)
        if not left:
            return None
    return left[0] if left else None


def _doubt(E: Tensor, stored: torch.dtype, off: float) -> Tensor:
    """A step of the dtype where E is so near to the middle between two numbers that another kernel rounds it to the
    other one.
    """
    half = half_spacing(E, stored)
    middle = half - (E - E.to(stored).to(torch.float64)).abs()
    doubtful = middle <= 16 * off + torch.finfo(torch.float32).eps * E.abs()
    return torch.where(doubtful, 2 * half, torch.zeros_like(half))


def _twice(touched: Touched, ways: Sequence[Arithmetic]) -> bool:
    """Were the adapters put on what they had been put on already, and rounded between?"""

    def again(model: Model, block: Block) -> Tried:
        once = model.at(1.0)[0].to(block.merged.dtype).to(torch.float64)
        return block.merged, model.value(touched.chain, once)

    return fits(touched, again, ways, unsure=True) is not None
