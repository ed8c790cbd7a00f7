"""verify --round-trip: do the weights, quantized again onto the scales that are stored, give the codes that are stored?

Where the codes of a file are quantized from its own bake, what is proved is that codes and decoder agree: that the
product of every code is nearest to that code again. Where the weights are those of a file that was baked before, it is
that these are what the codes stood for: one code that was changed since has another product, and so has a scale. Every
tensor that was not decoded must be that of the quantized file, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.source import Rows
from ..dtypes import EDITABLE, dtype_name
from ..errors import PATH, TENSOR, InputRefused, error_context
from ..fitting.blocks import Batch, bake_ranges, sliced_roles
from ..fitting.evaluate import chain_of, complete, effective, read_state, require_chain, weight_of
from ..fitting.originals import in_precision
from ..fitting.skeleton import loaded
from ..maths.base import Check
from ..maths.decoders import Decoder
from ..spelling.forms import Group
from ..spelling.opened import Opened, choose_any
from ..spelling.quantized_comfyui import spent_markers
from ..text import count_text, shape_text
from ..watch import NOBODY, Watch
from ..wording import call
from .kept import compare_kept
from .verdict import PRODUCT, ROUND_TRIP, Verdict, VerifyResult


def round_trip(
    quantized: Opened,
    path: Path,
    baked: Opened | None = None,
    tensor: Sequence[str] = (),
    *,
    device: torch.device | str = "cpu",
    watch: Watch = NOBODY,
) -> VerifyResult:
    """Of each weight that is stored in codes: the share of them that come back otherwise. `baked`: the file whose
    weights are quantized again, by default what the codes themselves give.
    """
    chosen = [group for group in quantized.choose(tensor) if _is_quantized(group)]
    if not chosen:
        raise InputRefused(
            f"nothing to verify: {PATH} stores no weight in codes",
            hint=f"{call('inspect', PATH)} shows what it holds",
            path=path,
            code="nothing_to_verify",
        )
    decoded = {group.tensor for group in chosen}
    others = _others(quantized, baked, decoded, tensor) if baked is not None else _Others()
    total = sum(group.nbytes for group in chosen) + others.nbytes
    verdicts = []
    with watch.meter("verify", len(chosen) + len(others.names), total) as meter:
        for group in chosen:
            with error_context(tensor=group.tensor, path=quantized.source.path), torch.no_grad():
                require_chain(group)
                checks = _of(quantized, group, baked, device)
                verdicts.append(Verdict(group, str(group.chain), group.view.text, checks))
            meter.advance(group.nbytes)
        if baked is None:
            return VerifyResult(path, tuple(verdicts), others=len(quantized.groups) - len(chosen))
        kept = compare_kept(baked, quantized, others.names, decoded, others.missing, others.extra, meter.advance)
    return VerifyResult(path, tuple(verdicts), kept=kept)


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


def _of(quantized: Opened, group: Group, baked: Opened | None, device: torch.device | str) -> tuple[Check, ...]:
    chain = chain_of(group)
    if len(chain) > 1:
        raise InputRefused(f"{TENSOR} is {chain}: of more than a decoder no codes come back")
    ranges = bake_ranges(group, chain, group.view)
    sliced = sliced_roles(chain, group.view, group.shape) if ranges else None
    batch = Batch(quantized.source, [group], group.view, device, ranges, sliced or {})
    value = None if baked is None else _Baked(baked, group, ranges)
    product = _Product()
    off = count = 0
    for rows in ranges or (None,):
        state = batch.on_device(batch.read(rows) if ranges else read_state(quantized.source, group, device))
        part = group if rows is None else _rows_of(group, rows)
        E = weight_of(replace(part, dtype="F32"), state, chain, group.view)
        if value is not None:
            M = value.read(rows).to(E.device)
            product.add(M, E)
            # A half does not tell 254 steps of a grid from 255: the product, rounded, is what its code stands for.
            E = torch.where(E.to(M.dtype) == M, E, M.float())
        codes, back = _codes(part, state, E)
        off += int((_bytes(codes) != _bytes(back)).sum())
        count += codes.numel()
    detail = f"{count_text(off, 'code')} of {count} {'differs' if off == 1 else 'differ'}" if off else None
    check = Check(ROUND_TRIP, off / max(count, 1), 0.0, detail)
    return (check,) if value is None else (check, product.check())


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


class _Product:
    """How far a weight M is from the product E of codes and scales, over |E|; what rounding explains of that.

    Code that computes in the dtype of the weight rounds a product once, and one of a scale that is itself a product
    twice: eps / 2 each. A library's answer in a half may be stored wider: the narrowest dtype that has all its numbers
    is the one that they were rounded to.
    """

    def __init__(self) -> None:
        # Dtype that has all numbers so far -> the farthest, as a share of eps.
        self.farthest = dict.fromkeys((torch.bfloat16, torch.float16, torch.float32, torch.float64), 0.0)

    def add(self, M: Tensor, E: Tensor) -> None:
        wide = torch.promote_types(M.dtype, E.dtype)
        distance, size = (M.to(wide) - E).abs_(), E.to(wide).abs()
        for dtype, before in list(self.farthest.items()):
            if torch.promote_types(dtype, M.dtype) != M.dtype or not torch.equal(M.to(dtype).to(M.dtype), M):
                del self.farthest[dtype]
                continue
            # Below the smallest normal number the steps of a dtype are as there.
            limits = torch.finfo(dtype)
            far = float((distance / (size + limits.smallest_normal)).max()) / limits.eps if M.numel() else 0.0
            self.farthest[dtype] = max(before, far if far == far else math.inf)

    def check(self) -> Check:
        dtype = min(self.farthest, key=self.farthest.__getitem__, default=torch.float64)
        share, eps = self.farthest.get(dtype, math.inf), torch.finfo(dtype).eps
        off = None if share <= 1 else "a scale is another, or it was changed"
        return Check(PRODUCT, share * eps, eps, off)


def _codes(group: Group, state: dict[str, Tensor], value: Tensor) -> tuple[Tensor, Tensor]:
    """(the codes that are stored, those of the value)"""
    chain = chain_of(group)
    whole = complete(group, state, chain)
    wide = {role: in_precision(tensor, torch.float32) for role, tensor in whole.items()}
    (decoder,) = loaded(chain, group.view, group.shape, wide, torch.float32)
    assert isinstance(decoder, Decoder)
    decoder.codes = whole["original"].dtype
    try:
        back = decoder.inverse(value)
    except NotImplementedError:
        raise InputRefused(f"{TENSOR} is {chain}, of which codes do not come back") from None
    return whole["original"], back


def _bytes(codes: Tensor) -> Tensor:
    """As integers, so that NaN is equal to itself and -0 is not 0."""
    return codes.contiguous().view(torch.uint8) if codes.element_size() == 1 else codes
