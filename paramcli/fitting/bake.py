"""Baking: the values that stored originals stand for, and what their chain claims of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..chain import Chain
from ..checkpoint.source import Rows
from ..maths.base import Check
from ..view import View
from . import measure
from .blocks import Batch
from .claims import Claim
from .evaluate import complete, explain_infinite, naming, settle, weight_of
from .originals import evaluate
from .skeleton import weight_dtype


@dataclass(frozen=True)
class Baked:
    """What became of a tensor: the chain and view that its value was computed by, and how well it keeps their claim."""

    chain: Chain
    view: View
    check: Check | None


class Baking:
    """The values of groups of one kind, block after block, and in the end what became of each."""

    def __init__(self, batch: Batch, compute: str = "same"):
        self.batch, self.compute = batch, compute
        self._group = replace(batch.groups[0], shape=batch.shape)
        self._settled: tuple[Chain, View] | None = None
        self._claim: Claim | None = None

    def make(
        self, rows: Rows, block: Mapping[str, Tensor], as_stored: Callable[[Tensor], Tensor] = lambda value: value
    ) -> list[Tensor]:
        """The value of each tensor of the block `as_stored`, of which the claim is; InputRefused where it, or an
        original, is not finite: of the whole.
        """
        with torch.no_grad():
            state = self.batch.on_device(block)
            # Codes and scales that are no numbers give values that are none: those are asked.
            decodes = self._group.chain is not None and self._group.chain.decodes
            if not decodes and not all(measure.all_finite(tensor) for tensor in state.values()):
                self._refuse(state)
            self._settled = self._settled or settle(self.batch.groups[0], state)
            chain, view = self._settled[0], self.batch.view
            count, part = len(self.batch.groups), self._group
            if rows is not None:
                part = replace(part, shape=(rows[1] - rows[0], *part.shape[1:]))
            if count > 1:
                stored = weight_dtype(state)
                value = evaluate(chain, view, part.shape, state, stored, self.compute, together=True)
            else:
                value = weight_of(part, state, chain, view, self.compute)
                state = complete(part, state, chain)
            made = as_stored(value)
            self._claim = self._claim or Claim(
                chain,
                view,
                self.batch.shape,
                made.dtype,
                self.compute,
                self._group.constraint,
                count=count,
                rows=rows is not None,
            )
            self._claim.add(made, state)
            # What a cast alone has no room for is told, and fails its claim.
            if not self._claim.finite and (made is value or not measure.all_finite(value)):
                self._refuse(state)
            return self.batch.apart(made)

    def _refuse(self, state: Mapping[str, Tensor]) -> None:
        """Say of the whole what is wrong with a block: first of the originals, then of the value."""
        for role in (role for role in state if role in self._group.keys):
            with naming(self.batch.source, self._group, role) as key:
                measure.require_finite_parts(self.batch.parts(role, state), f"its {key}")
        explain_infinite(self._group, self.batch.again(state))

    def result(self) -> list[Baked]:
        """What became of each tensor, once all blocks are made."""
        assert self._settled is not None and self._claim is not None
        chain, view = self._settled
        return [Baked(chain, view, check) for check in self._claim.result()]
