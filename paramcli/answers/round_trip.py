"""verify --round-trip: do the weights, quantized again onto the scales that are stored, give the codes that are stored?

Where the codes of a file are quantized from its own bake, what is proved is that codes and decoder agree: that the
product of every code is nearest to that code again. Where the weights are those of a file that was baked before, it is
that these are what the codes stood for: one code that was changed since has another product, and so has a scale. Every
tensor that was not decoded must be that of the quantized file, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..allocator import Holes, share_one_heap
from ..chain import Chain
from ..checkpoint.source import Rows
from ..dtypes import EDITABLE, dtype_name
from ..errors import PATH, TENSOR, InputRefused, UsageError, error_context
from ..fitting.blocks import Batch, bake_ranges, sliced_roles
from ..fitting.evaluate import chain_of, complete, effective, keys_fit, read_state, require_chain
from ..fitting.skeleton import loaded
from ..maths.base import Check
from ..maths.decoders import PART, Decoder, decodable
from ..maths.numbers import in_precision
from ..spelling.forms import Group, plain_group
from ..spelling.given import with_chain
from ..spelling.opened import Opened, choose_any
from ..spelling.quantized_comfyui import spent_markers
from ..spelling.unparametrized import proof_of_codes
from ..text import count_text, shape_text
from ..view import IDENTITY, View
from ..watch import NOBODY, Watch
from ..wording import call, given
from .kept import compare_kept
from .products import another_way, product_check, product_of, unrounded
from .verdict import ROUND_TRIP, Verdict, VerifyResult


def round_trip(
    quantized: Opened,
    path: Path,
    baked: Opened | None = None,
    tensor: Sequence[str] = (),
    *,
    chain: Chain | None = None,
    view: View = IDENTITY,
    device: torch.device | str = "cpu",
    watch: Watch = NOBODY,
) -> VerifyResult:
    """Of each weight that is stored in codes: the share of them that come back otherwise. `baked`: the file whose
    weights are quantized again, by default what the codes themselves give. `chain`, `view`: as a bake was told.
    """
    share_one_heap()
    if chain is not None and not chain.decodes:
        raise UsageError(f"{chain} decodes no codes, which {given('round-trip', True)} is about", option="chain")
    found = with_chain(quantized.choose(tensor, asked=chain is not None), chain, view, named=bool(tensor))
    meant = [group for group in found if _is_quantized(group)]
    # What is named is asked for: without an answer to that there is none.
    chosen = meant if tensor else [group for group in meant if not group.unknown]
    unread = [group for group in meant if group not in chosen]
    if unread and not chosen:
        raise unread[0].refusal(path)
    if not chosen:
        raise InputRefused(
            f"nothing to verify: {PATH} stores no weight in codes",
            hint=proof_of_codes(quantized.groups.values()) or f"{call('inspect', PATH)} shows what it holds",
            path=path,
            code="nothing_to_verify",
        )
    decoded = {group.tensor for group in chosen}
    if baked is not None:
        quantized, baked, unread = _as_stored(quantized, baked, unread)
    others = _others(quantized, baked, decoded, tensor) if baked is not None else _Others()
    total = sum(group.nbytes for group in chosen) + others.nbytes
    verdicts, holes = [], Holes()
    with watch.meter("verify", len(chosen) + len(others.names), total) as meter:
        for group in chosen:
            with error_context(tensor=group.tensor, path=quantized.source.path), torch.no_grad():
                require_chain(group)
                with keys_fit(group, chain_of(group), made_up=lambda: chain is not None):
                    checks = _of(quantized, group, baked, device, holes)
                verdicts.append(Verdict(group, str(group.chain), group.view.text, checks))
            meter.advance(group.nbytes)
        if baked is None:
            left = len(quantized.groups) - len(chosen) - len(unread)
            return VerifyResult(path, tuple(verdicts), tuple(unread), left)
        kept = compare_kept(baked, quantized, others.names, decoded, others.missing, others.extra, meter.advance)
    return VerifyResult(path, tuple(verdicts), tuple(unread), kept=kept)


def _as_stored(quantized: Opened, baked: Opened, unread: Sequence[Group]) -> tuple[Opened, Opened, list[Group]]:
    """(the two, of codes that are not read the tensors that are stored, which can be compared; and those codes that
    something decoded in the baked file, of which neither has any)
    """
    names = {group.tensor for group in unread}
    decoded = [g for g in unread if g.tensor in baked.groups and baked.groups[g.tensor].dtype in EDITABLE]
    lost = {group.tensor for group in decoded}

    def apart(opened: Opened) -> Opened:
        groups: dict[str, Group] = {}
        for name, group in opened.groups.items():
            if name not in names:
                groups[name] = group
            elif name not in lost:
                groups |= {key: plain_group(key, info) for key, info in group.stored}
        return Opened(opened.source, groups)

    return apart(quantized), apart(baked), decoded


@dataclass(frozen=True)
class _Others:
    """The names of what was not decoded: those that both files have, and those that one has."""

    names: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    nbytes: int = 0


def _others(quantized: Opened, baked: Opened, decoded: Collection[str], tensor: Sequence[str]) -> _Others:
    names = choose_any(tensor, (quantized, baked)) if tensor else {*quantized.groups, *baked.groups}
    own = [name for name in quantized.groups if name in names and name not in decoded]
    there = tuple(name for name in own if name in baked.groups)
    spent = spent_markers(quantized.groups, decoded)
    missing = tuple(name for name in own if name not in baked.groups and name not in spent)
    extra = tuple(name for name in baked.groups if name in names and name not in quantized.groups)
    return _Others(there, missing, extra, sum(baked.groups[name].nbytes for name in there))


def _is_quantized(group: Group) -> bool:
    return not group.is_plain and (group.chain is None or group.chain.decodes) and "original" in group.keys


@dataclass
class _Found:
    """What blocks of a weight have come to, and how many of their codes there were."""

    codes: int = 0
    # Codes that come back otherwise, and the weights that are others with those; weights that are not rounded once.
    off: int = 0
    depending: int = 0
    missed: int = 0
    # By role, how many are no numbers.
    bad: dict[str, int] = field(default_factory=dict)

    def add(self, part: Group, state: dict[str, Tensor], M: Tensor | None, shared: Collection[str]) -> None:
        """A block; of what is `shared` by all, the numbers are counted once."""
        decoder, codes = _decoder(part, state)
        for name, found in decoder.no_numbers((codes,)).items():
            self.bad[name] = found if name in shared else self.bad.get(name, 0) + found
        E = product_of(part, state).contiguous()
        if M is not None:
            for m, e in zip(M.reshape(-1).split(PART), E.view(-1).split(PART), strict=True):
                self.missed += unrounded(m, e)
                # A half does not tell 254 steps of a grid from 255: the product, rounded, is what its code stands for.
                if (other := e.to(m.dtype) != m).any():
                    e[other] = m[other].float()
        back = _codes_of(decoder, E)
        if differing := int((_bytes(codes) != _bytes(back)).sum()):
            self.off += differing
            self.depending += int((product_of(part, {**state, "original": back}) != product_of(part, state)).sum())
        self.codes += codes.numel()

    def checks(self) -> tuple[Check, Check]:
        off, detail = self.off, None
        if off:
            detail = f"{count_text(off, 'code')} of {self.codes} {'differs' if off == 1 else 'differ'}"
        if self.depending < off:
            few = count_text(self.depending, "weight") if self.depending else "no weight"
            detail = f"{detail}, and {few} with {'it' if off == 1 else 'them'}: a scale is 0 there, or too small"
        return decodable(sum(self.bad.values())), Check(ROUND_TRIP, off / max(self.codes, 1), 0.0, detail)


def _of(
    quantized: Opened, group: Group, baked: Opened | None, device: torch.device | str, holes: Holes
) -> tuple[Check, ...]:
    chain = chain_of(group)
    if len(chain) > 1:
        raise InputRefused(f"{TENSOR} is {chain}: of more than a decoder no codes come back")
    ranges = bake_ranges(group, chain, group.view)
    sliced = (sliced_roles(chain, group.view, group.shape) if ranges else None) or {}
    batch = Batch(quantized.source, [group], group.view, device, ranges, sliced)
    value = None if baked is None else _Baked(baked, group, ranges)

    def block(rows: Rows) -> tuple[Group, dict[str, Tensor], Tensor | None]:
        state = batch.on_device(batch.read(rows)) if ranges else read_state(quantized.source, group, device)
        part = group if rows is None else _rows_of(group, rows)
        return part, state, None if value is None else value.read(rows).to(state["original"].device)

    roles = [role for role in group.own_roles if not role.startswith("original") and role not in sliced]
    shared = [role.partition(".")[2] for role in roles] if ranges else []
    found = _Found()
    for rows in ranges or (None,):
        # Nothing of a block outlives the call: the next is read into what that had.
        found.add(*block(rows), shared)
        holes.tidy(group.nbytes // max(1, len(ranges)))
    if value is None:
        return found.checks()
    parts = ((part, state, M) for part, state, M in map(block, ranges or (None,)) if M is not None)
    way = another_way(parts) if found.missed else None
    return *found.checks(), product_check(found.missed, math.prod(group.shape), way)


def _rows_of(group: Group, rows: tuple[int, int]) -> Group:
    return replace(group, shape=(rows[1] - rows[0], *group.shape[1:]))


class _Baked:
    """The baked weight, in the blocks of rows that the codes are read in; InputRefused where it is not there, or of
    another shape.
    """

    def __init__(self, baked: Opened, group: Group, ranges: Sequence[tuple[int, int]]):
        other = baked.groups.get(group.tensor)
        if other is None or other.shape != group.shape or other.dtype not in EDITABLE:
            have = "not there" if other is None else f"{shape_text(other.shape)} ({dtype_name(other.dtype)})"
            raise InputRefused(
                f"{TENSOR} is {shape_text(group.shape)} in codes, and {have} in the baked file",
                tensor=group.tensor,
                path=baked.source.path,
            )
        self.by_rows = bool(ranges) and other.is_plain and other.infos["value"].run is not None
        self.source, self.group = baked.source, other
        self.whole = None if self.by_rows else effective(baked.source, other)

    def read(self, rows: Rows) -> Tensor:
        if self.whole is not None:
            return self.whole if rows is None else self.whole[rows[0] : rows[1]]
        assert rows is not None
        return self.source.read_rows(self.group.keys["value"], *rows)


def _decoder(group: Group, state: dict[str, Tensor]) -> tuple[Decoder, Tensor]:
    """With what it decodes with; and the codes that are stored."""
    chain = chain_of(group)
    whole = complete(group, state, chain)
    wide = {role: in_precision(tensor, torch.float32) for role, tensor in whole.items()}
    (decoder,) = loaded(chain, group.view, group.shape, wide, torch.float32)
    assert isinstance(decoder, Decoder)
    decoder.codes = whole["original"].dtype
    return decoder, whole["original"]


def _codes_of(decoder: Decoder, value: Tensor) -> Tensor:
    try:
        return decoder.inverse(value)
    except NotImplementedError:
        raise InputRefused(f"no codes come back of what {TENSOR} is decoded by") from None


def _bytes(codes: Tensor) -> Tensor:
    """As integers, so that NaN is equal to itself and -0 is not 0."""
    return codes.contiguous().view(torch.uint8) if codes.element_size() == 1 else codes
