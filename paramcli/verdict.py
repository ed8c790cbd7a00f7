"""(Source, groups) -> verdicts: which constraint, how far off, against what tolerance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import host as hosting
from . import measure
from .chain import Chain
from .checkpoint.forms import Group
from .checkpoint.source import Source
from .errors import InputRefused, error_context
from .maths.base import Check, Parametrization, compute_dtype, wide
from .registry import parse_constraint, target_class
from .surgery.evaluate import complete, read_state, require_chain, settle, weight_of
from .surgery.fit import widened
from .view import View, parse_view


@dataclass(frozen=True)
class Verdict:
    """What verify says of one tensor."""

    group: Group
    chain: str | None
    view: str | None
    checks: tuple[Check, ...]

    @property
    def tensor(self) -> str:
        return self.group.tensor

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)


def verifiable(group: Group) -> bool:
    """Does this group make a claim: a record with a constraint, or a parametrization that is recognised?"""
    if group.is_plain:
        return group.constraint is not None
    return group.problem is None


def verify_group(
    source: Source,
    group: Group,
    constraint: str | None = None,
    tolerance: float | None = None,
    view: str | None = None,
    device: torch.device | str = "cpu",
    compute: str = "same",
) -> Verdict:
    """Evaluate one tensor and measure it; a group without any claim needs `constraint`."""
    with error_context(tensor=group.tensor, path=source.path), torch.no_grad():
        if constraint is not None:
            parse_constraint(constraint)
        state = read_state(source, group, device)
        chain, seen_through = (None, parse_view(group.view)) if group.is_plain else settle(group, state)
        seen_through = parse_view(view) if view is not None else seen_through
        value = state["value"] if group.is_plain else weight_of(group, state, chain, seen_through, compute)
        if not (value.is_floating_point() or value.is_complex()):
            raise InputRefused(f"{str(value.dtype).removeprefix('torch.')} tensors have no constraint to verify")
        if chain is None:
            return Verdict(group, group.chain, seen_through.text, (measure.check(constraint or group.constraint or "any", value, seen_through, tolerance),))
        whole = complete(group, state, chain)
        checks = measure_parts(chain, seen_through, value, whole, constraint or group.constraint, tolerance, compute, own=constraint is None)
        return Verdict(group, str(chain), seen_through.text, tuple(checks))


def measure_parts(
    chain: Chain, view: View, value: Tensor, state: Mapping[str, Tensor], constraint: str | None = None, tolerance: float | None = None,
    compute: str = "same", own: bool = True,
) -> list[Check]:  # fmt: skip
    """The constraint (default: the chain's) on the value, and what each link promises about its own tensors (`state`, by role)."""
    wanted = constraint or chain.constraint
    checks = []
    if wanted is not None:
        checks.append(measure.check(wanted, value, view, tolerance, compute_dtype(value.dtype, compute)))
    if own:
        checks += _own_checks(chain, view, value, state)
    return checks or [measure.check("any", value, view)]


def _own_checks(chain: Chain, view: View, value: Tensor, state: Mapping[str, Tensor]) -> list[Check]:
    """u and v of unit length, zeros under a mask, the norms g: whatever a link checks beyond its constraint."""
    if all(target_class(link.entry).checks is Parametrization.checks for link in chain.links):
        return []
    double = wide(value.dtype, value.device)
    host = hosting.load(chain, view, value.shape, widened(state, double))
    originals = tuple(tensor for role, tensor in hosting.roles(host).items() if role.startswith("original"))
    checks = []
    parts = hosting.parts(host)
    for index, part in enumerate(parts):
        seen = part.into_view(originals)
        made = view.into(value.to(double)) if index == len(parts) - 1 else part.map(*seen)
        checks += part.checks(seen, made)
        originals = (view.back(made, value.shape),)
    return checks


def select_claims(groups: Sequence[Group], path: object) -> list[Group]:
    """Everything that makes a claim; InputRefused where nothing does."""
    claims = [group for group in groups if verifiable(group)]
    if not claims:
        unknown = next((group for group in groups if group.problem), None)
        if unknown is not None:
            require_chain(unknown)
        raise InputRefused(
            "nothing to verify: no tensor is parametrized and no record names a constraint",
            hint="name tensors and a set: -t NAME --constraint orthogonal",
            path=path,
        )
    return claims
