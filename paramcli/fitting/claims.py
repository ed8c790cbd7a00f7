"""What a chain claims of its value, measured as a reader of the written file would see it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
        self._count = count
        # Do the chain's own tensors have a word in it, and how much of each residual do they explain?
        self._own = not rows and self.spec is not None and self.spec == chain.constraint
        self._slacks = [0.0] * count
        self._measured = measure.Measured(
            self.spec,
            torch.Size(view.shape(shape)),
            stored,
            compute_dtype(stored, compute),
            count=count,
            rows=rows,
            details=count == 1 and not rows,
        )

    @property
    def finite(self) -> bool:
        """Are all values finite that were seen?"""
        return self._measured.finite

    def add(self, value: Tensor, state: Mapping[str, Tensor]) -> None:
        """Take note of a block of the values; `state`: the stored tensors that it comes from, by role."""
        tolerances = None
        if (
            self._own
            and self.spec is not None
            and target_class(self.chain.links[-1].entry).slack is not Parametrization.slack
        ):
            spec, shape = self.spec, value.shape if self._count == 1 else value.shape[1:]
            self._slacks = [_slack(self.chain, self.view, W, own, spec) for W, own in self._apart(value, state)]
            explained = rounding(spec, self.view, shape, value.dtype, self.compute)
            tolerances = [explained + slack if slack else None for slack in self._slacks]
        self._measured.add(self.view.into(value), tolerances)

    def _apart(self, value: Tensor, state: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Mapping[str, Tensor]]]:
        """Each tensor's value, and what it comes from."""
        if self._count == 1:
            yield value, state
            return
        for index, one in enumerate(value):
            yield one, {role: tensor[index] for role, tensor in state.items()}

    def result(self) -> list[Check | None]:
        """The check of each value; None where nothing is claimed of it and it is finite."""
        checks = self._measured.result()
        why = target_class(self.chain.links[-1].entry).unpromised
        if not why or not self._own:
            return checks
        return [
            c if c is None or c.ok or slack else replace(c, detail="; ".join(filter(None, (c.detail, why))))
            for c, slack in zip(checks, self._slacks, strict=True)
        ]


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
    if not measure.all_finite(value):
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


def share_of_room(check: Check | None, chain: Chain) -> float:
    """The residual of a value as a share of what `holds` lets it be."""
    if check is None or check.residual == 0:
        return 0.0
    most = target_class(chain.links[-1].entry).safe_share * check.tolerance
    return check.residual / most if most > 0 and check.residual > 0 else math.inf
