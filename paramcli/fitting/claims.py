"""What a chain claims of its value, measured as a reader of the written file would see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ..chain import Chain
from ..maths.base import Check, Parametrization, compute_dtype, wide
from ..registry import constraint, target_class
from ..view import View
from . import measure
from . import torch_module as hosting


def claim_check(
    chain: Chain, view: View, value: Tensor, state: Mapping[str, Tensor], compute: str = "same", spec: str | None = None
) -> Check | None:
    """`measure.image_check`, or what the record holds the value to (`spec`), with what the chain's own tensors explain.

    `state`: the stored tensors by role. None where nothing is claimed of the value and it is finite.
    """
    spec = spec or chain.constraint
    if spec is None or not value.numel():
        return measure.image_check(chain, value, view, compute)
    slack = _slack(chain, view, value, state) if spec == chain.constraint else 0.0
    tolerance = rounding(spec, view, value, compute) + slack if slack else None
    check = measure.check(spec, value, view, tolerance, compute_dtype(value.dtype, compute))
    why = target_class(chain.links[-1].entry).unpromised
    if check.ok or not why or spec != chain.constraint or slack:
        return check
    return replace(check, detail="; ".join(filter(None, (check.detail, why))))


def rounding(spec: str, view: View, value: Tensor, compute: str = "same") -> float:
    """The constraint's own tolerance for this value."""
    return constraint(spec).tolerance(view.into(value).shape, value.dtype, compute_dtype(value.dtype, compute))


def _slack(chain: Chain, view: View, value: Tensor, state: Mapping[str, Tensor]) -> float:
    """`Parametrization.slack` of the chain's last link: how far from its image the tensors it stores leave the value."""
    if target_class(chain.links[-1].entry).slack is Parametrization.slack or not measure.all_finite(value):
        return 0.0
    host = hosting.load(chain, view, value.shape, state)
    part = hosting.parts(host)[-1]
    part.stored_dtype = value.dtype
    slack = part.slack(constraint(chain.constraint), view.into(value.to(wide(value.dtype, value.device))))
    hosting.release(host)
    return slack


def kept_constraint(chain: Chain, view: View, value: Tensor, check: Check | None, compute: str) -> str | None:
    """What the record holds a baked value to: the chain's constraint, and how far beyond rounding the value was from
    it.

    A value that is off by more than its chain's tensors explain is held to the constraint itself, and `verify` says so.
    """
    if check is None or not check.ok or check.residual <= rounding(check.constraint, view, value, compute):
        return chain.constraint
    return chain.kept_constraint(check.residual)


def holds(check: Check | None, chain: Chain) -> bool:
    """Is the value a member, with the room that its chain's last map asks for (`safe_share`)?"""
    return check is None or (
        check.ok and check.residual <= target_class(chain.links[-1].entry).safe_share * check.tolerance
    )


def checks_of_each(chain: Chain, values: Tensor, compute: str) -> list[Check | None]:
    """`measure.image_check` of each value; details are left to who measures one alone."""
    if chain.constraint is None:
        return [None] * len(values)
    return list(measure.checks(chain.constraint, values, compute_dtype(values.dtype, compute)))
