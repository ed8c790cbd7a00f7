"""What a chain claims of its value, measured as a reader of the written file would see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..chain import Chain
from ..maths.base import Check, Parametrization
from ..maths.numbers import compute_dtype, wide
from ..registry import constraint, target_class
from ..view import View
from . import measure
from .skeleton import loaded


class Claim:
    """What a chain claims of the values of a batch, or what the record holds them to (`spec`), with what the chain's
    own tensors explain.

    The values are seen at once, or one of them a block of `rows` after another (`measure.Measured`).
    """

    def __init__(
        self,
        chain: Chain,
        view: View,
        shape: Sequence[int],
        stored: torch.dtype,
        compute: str = "same",
        spec: str | None = None,
        *,
        count: int = 1,
        rows: bool = False,
    ):
        """`shape`: of all the values as they are stored."""
        self.chain, self.view, self.compute = chain, view, compute
        self.spec = (spec or chain.constraint) if 0 not in shape else None
        alone = count == 1 and not rows
        # Do the chain's own tensors have a word in it?
        self._own, self._slack = alone and self.spec is not None and self.spec == chain.constraint, 0.0
        self._measured = measure.Measured(
            self.spec,
            torch.Size(view.shape(shape)),
            stored,
            compute_dtype(stored, compute),
            count=count,
            rows=rows,
            details=alone,
        )

    @property
    def finite(self) -> bool:
        """Are all values finite that were seen?"""
        return self._measured.finite

    def add(self, value: Tensor, state: Mapping[str, Tensor]) -> None:
        """Take note of a block of the values; `state`: the stored tensors that it comes from, by role."""
        tolerance = None
        if self._own and self.spec is not None:
            self._slack = _slack(self.chain, self.view, value, state, self.spec)
            if self._slack:
                explained = rounding(self.spec, self.view, value.shape, value.dtype, self.compute)
                tolerance = explained + self._slack
        self._measured.add(self.view.into(value), tolerance)

    def result(self) -> list[Check | None]:
        """The check of each value; None where nothing is claimed of it and it is finite."""
        checks = self._measured.result()
        why = target_class(self.chain.links[-1].entry).unpromised
        if not why or not self._own or self._slack:
            return checks
        return [c if c is None or c.ok else replace(c, detail="; ".join(filter(None, (c.detail, why)))) for c in checks]


def claim_check(
    chain: Chain, view: View, value: Tensor, state: Mapping[str, Tensor], compute: str = "same", spec: str | None = None
) -> Check | None:
    """`Claim` of one value that is there."""
    claim = Claim(chain, view, value.shape, value.dtype, compute, spec)
    claim.add(value, state)
    return claim.result()[0]


def rounding(spec: str, view: View, shape: Sequence[int], stored: torch.dtype, compute: str = "same") -> float:
    """The constraint's own tolerance for a value of this shape and dtype."""
    return constraint(spec).tolerance(torch.Size(view.shape(shape)), stored, compute_dtype(stored, compute))


def _slack(chain: Chain, view: View, value: Tensor, state: Mapping[str, Tensor], spec: str) -> float:
    """`Parametrization.slack` of the chain's last link: how far from its image (`spec`) the tensors it stores leave the
    value.
    """
    if target_class(chain.links[-1].entry).slack is Parametrization.slack or not measure.all_finite(value):
        return 0.0
    *_, part = loaded(chain, view, value.shape, state)
    part.stored_dtype = value.dtype
    return part.slack(constraint(spec), view.into(value.to(wide(value.dtype, value.device))))


def kept_constraint(
    chain: Chain, view: View, shape: Sequence[int], stored: torch.dtype, check: Check | None, compute: str
) -> str | None:
    """What the record holds a baked value to: the chain's constraint, and how far beyond rounding the value was from
    it.

    A value that is off by more than its chain's tensors explain is held to the constraint itself, and `verify` says so.
    """
    if check is None or not check.ok or check.residual <= rounding(check.constraint, view, shape, stored, compute):
        return chain.constraint
    return chain.kept_constraint(check.residual)


def holds(check: Check | None, chain: Chain) -> bool:
    """Is the value a member, with the room that its chain's last map asks for (`safe_share`)?"""
    return check is None or (
        check.ok and check.residual <= target_class(chain.links[-1].entry).safe_share * check.tolerance
    )
