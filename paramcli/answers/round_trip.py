"""verify --round-trip: do the weights, quantized again onto the scales that are stored, give the codes that are stored?

Where the codes of a file are quantized from its own bake, what is proved is that codes and decoder agree: that the
product of every code is nearest to that code again. Where the weights are those of a file that was baked before, it is
that these are what the codes stood for: one code that was changed since has another product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint.source import Rows
from ..errors import PATH, TENSOR, InputRefused, error_context
from ..fitting.blocks import Batch, bake_ranges, sliced_roles
from ..fitting.evaluate import chain_of, complete, effective, read_state, require_chain, weight_of
from ..fitting.originals import in_precision, loaded
from ..maths.base import Check
from ..maths.decoders import Decoder
from ..spelling.forms import Group
from ..spelling.opened import Opened
from ..text import count_text, shape_text
from ..watch import NOBODY, Watch
from ..wording import call
from .verdict import Verdict, VerifyResult


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
    verdicts = []
    with watch.meter("verify", len(chosen), sum(group.nbytes for group in chosen)) as meter:
        for group in chosen:
            with error_context(tensor=group.tensor, path=quantized.source.path), torch.no_grad():
                require_chain(group)
                check = _of(quantized, group, baked, device)
                verdicts.append(Verdict(group, str(group.chain), group.view.text, (check,)))
            meter.advance(group.nbytes)
    return VerifyResult(path, tuple(verdicts), others=len(quantized.groups) - len(chosen))


def _is_quantized(group: Group) -> bool:
    return not group.is_plain and (group.chain is None or group.chain.decodes) and "original" in group.keys


def _of(quantized: Opened, group: Group, baked: Opened | None, device: torch.device | str) -> Check:
    chain = chain_of(group)
    if len(chain) > 1:
        raise InputRefused(f"{TENSOR} is {chain}: of more than a decoder no codes come back")
    value = None if baked is None else _baked(group, baked)
    ranges = bake_ranges(group, chain, group.view)
    sliced = sliced_roles(chain, group.view, group.shape) if ranges else None
    batch = Batch(quantized.source, [group], group.view, device, ranges, sliced or {})
    off = count = 0
    for rows in ranges or (None,):
        state = batch.on_device(batch.read(rows) if ranges else read_state(quantized.source, group, device))
        part = group if rows is None else _rows_of(group, rows)
        wanted = _part(value, rows)
        codes, back = _codes(part, state, wanted)
        off += int((_bytes(codes) != _bytes(back)).sum())
        count += codes.numel()
    detail = f"{count_text(off, 'code')} of {count} differ" if off else None
    return Check("round_trip", off / max(count, 1), 0.0, detail)


def _rows_of(group: Group, rows: tuple[int, int]) -> Group:
    return replace(group, shape=(rows[1] - rows[0], *group.shape[1:]))


def _baked(group: Group, baked: Opened) -> Tensor:
    """The baked weight; InputRefused where it is not there, or of another shape."""
    other = baked.groups.get(group.tensor)
    if other is None or tuple(other.shape) != tuple(group.shape):
        have = "not there" if other is None else shape_text(other.shape)
        raise InputRefused(
            f"{TENSOR} is {shape_text(group.shape)} in codes, and {have} in the baked file",
            tensor=group.tensor,
            path=baked.source.path,
        )
    return effective(baked.source, other)


def _part(value: Tensor | None, rows: Rows) -> Tensor | None:
    return value if value is None or rows is None else value[rows[0] : rows[1]]


def _codes(group: Group, state: dict[str, Tensor], wanted: Tensor | None) -> tuple[Tensor, Tensor]:
    """(the codes that are stored, those of the weight)"""
    chain = chain_of(group)
    value = weight_of(replace(group, dtype="F32"), state, chain, group.view)
    if wanted is not None:
        # A half does not tell 254 steps of a grid from 255: what is the product rounded is what its code stands for.
        wanted = wanted.to(value.device)
        value = torch.where(value.to(wanted.dtype) == wanted, value, wanted.float())
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
