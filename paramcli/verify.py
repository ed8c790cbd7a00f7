"""(Source, groups) -> verdicts: which constraint, how far off, against what tolerance."""

from __future__ import annotations

from collections.abc import Sequence
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
from .registry import parse_constraint
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
        wanted = constraint or group.constraint or (chain.constraint if chain else None)
        checks = []
        if wanted is not None:
            checks.append(measure.check(wanted, value, seen_through, tolerance, compute_dtype(value.dtype, compute)))
        if chain is not None and constraint is None:
            checks += _own_checks(group, state, chain, seen_through, value)
        if not checks:
            checks.append(measure.check("any", value, seen_through))
        return Verdict(group, str(chain) if chain else group.chain, seen_through.text, tuple(checks))


def _own_checks(group: Group, state: dict[str, Tensor], chain: Chain, view: View, value: Tensor) -> list[Check]:
    """What each link promises about its own tensors: u and v of unit length, zeros under a mask, the norms g."""
    classes = [type(part).checks for part in hosting.parts(hosting.load(chain, view, group.shape, complete(group, state, chain)))]
    if all(method is Parametrization.checks for method in classes):
        return []
    double = wide(value.dtype, value.device)
    host = hosting.load(chain, view, group.shape, widened(complete(group, state, chain), double))
    names = sorted(role for role in hosting.roles(host) if role.startswith("original"))
    originals = tuple(hosting.roles(host)[name] for name in names)
    checks = []
    parts = hosting.parts(host)
    for index, part in enumerate(parts):
        seen = part.into_view(originals)
        made = view.into(value.to(double)) if index == len(parts) - 1 else part.map(*seen)
        checks += part.checks(seen, made)
        originals = (view.back(made, group.shape),)
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
