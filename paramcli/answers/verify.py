"""verify: which tensors keep what they claim, how far off each is, and against what tolerance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

from ..chain import Chain, parse_chain
from ..checkpoint.disk.interrupts import import_torch
from ..checkpoint.sample import sampled
from ..checkpoint.source import Source
from ..devices import torch_device
from ..errors import PATH, InputRefused, UsageError
from ..fitting.costs import cost, share_out
from ..ranks import Alone, require_alike
from ..registry import parse_constraint
from ..spelling.forms import Group
from ..spelling.given import require_parametrized, with_chain
from ..spelling.opened import Opened
from ..spelling.unparametrized import ONTO_BASE, instead_of_chains
from ..text import listing, printable
from ..view import IDENTITY, View, parse_view
from ..watch import NOBODY, Watch
from ..wording import call, given
from .verdict import Verdict, VerifyResult


def verify(
    opened: Opened,
    path: Path,
    tensor: Sequence[str] = (),
    *,
    constraint: str | None = None,
    tolerance: float | None = None,
    chain: Chain | None = None,
    view: View | None = None,
    device: str = "cpu",
    compute_dtype: str = "same",
    run: Alone,
    watch: Watch = NOBODY,
) -> VerifyResult:
    """Measure what the tensors claim; without `tensor`, of all that claim something. As `paramcli.verify` has it.

    `run`: the processes that share the work.
    """
    import_torch()
    from .measured import Together, verify_group

    chosen = with_chain(
        opened.choose(tensor, asked=chain is not None), chain, IDENTITY if view is None else view, named=bool(tensor)
    )
    if chain is not None and tensor:
        of_set = f"the set of the chain's last map ({call('registry', 'NAME')} says which)"
        require_parametrized(chosen, f"{given('constraint')} holds it to {of_set}")
    unread = [] if tensor else [group for group in chosen if claims_unread(group)]
    if not tensor:
        chosen = select_claims(chosen, path)
        for group in unread:
            watch.warn(f"{printable(group.tensor)} is not verified: {group.problem}")
    elif constraint is None:
        require_claims(chosen, path)
    others = 0 if tensor else len(opened.groups) - len(chosen) - len(unread)
    where = torch_device(device)
    with watch.meter("verify", len(chosen), sum(group.nbytes for group in chosen)) as meter:
        plain = constraint is None and tolerance is None and view is None and run.size == 1
        together = Together(opened.source, chosen if plain else (), where, compute_dtype)

        def measured(group: Group) -> Verdict:
            verdict = together.verdict(group) or verify_group(
                opened.source, group, constraint, tolerance, view, where, compute_dtype
            )
            meter.advance(group.nbytes)
            return verdict

        verdicts = shared_verdicts(opened.source, chosen, measured, run)
    opened.source.check_unchanged()
    require_claims(chosen, path, verdicts)
    return VerifyResult(path, tuple(verdicts), tuple(unread), others)


def check_options(
    constraint: str | None, chain: str | None, view: str | None, tolerance: float | None
) -> tuple[Chain | None, View | None]:
    """The chain and the view, where they are given; UsageError for an option that cannot be."""
    if constraint is not None:
        parse_constraint(constraint)
    check_tolerance(tolerance)
    return parse_chain(chain) if chain else None, None if view is None else parse_view(view)


def check_tolerance(value: float | None) -> None:
    if value is not None and not value >= 0:
        raise UsageError(f"{given('tol', value)}: must be at least 0", option="tol")


def verifiable(group: Group) -> bool:
    """Does this group make a claim: a record with a constraint, or a parametrization that is recognised?"""
    if group.is_plain:
        return group.constraint is not None
    return group.problem is None


def claims_unread(group: Group) -> bool:
    """Does this group claim something which nothing tells? A plain tensor that cannot be read claims nothing."""
    return group.problem is not None and not (group.is_plain and group.odd is not None)


def require_claims(groups: Sequence[Group], path: Path, found: Sequence[Verdict] | None = None) -> None:
    """Raise InputRefused where none of the tensors makes a claim: by what headers tell, or by the verdicts found."""
    claims = (
        any(verifiable(group) or group.problem for group in groups)
        if found is None
        else any(verdict.checks for verdict in found)
    )
    if not claims:
        makes = "makes" if len(groups) == 1 else "make"
        raise InputRefused(
            f"nothing to verify: {listing([group.tensor for group in groups], 4)} {makes} no claim",
            hint=f"name a set that they must lie in: {given('constraint', 'orthogonal')}",
            path=path,
            code="nothing_to_verify",
        )


def select_claims(groups: Sequence[Group], path: Path) -> list[Group]:
    """Everything that may make a claim; InputRefused where nothing does."""
    claims = [group for group in groups if verifiable(group)]
    if not claims:
        unknown = next((group for group in groups if claims_unread(group)), None)
        if unknown is not None:
            raise unknown.refusal(path)
        holds = instead_of_chains({group.tensor: group for group in groups}, path)
        named = call("verify", PATH, tensor="NAME", constraint="orthogonal")
        hint = f"name tensors and a set: {named}" if holds.plain else holds.hint
        if holds.hint == ONTO_BASE:
            hint = f"{ONTO_BASE}, and {call('verify', 'MERGED', base='BASE', adapter=PATH)} proves that"
        raise InputRefused(
            f"nothing to verify: no tensor is parametrized and no record names a constraint; {holds.what}",
            hint=hint,
            path=path,
            code="nothing_to_verify",
        )
    return claims


def shared_verdicts(
    source: Source, chosen: Sequence[Group], verify: Callable[[Group], Verdict], run: Alone
) -> list[Verdict]:
    """What verify says of each group, in order; every rank measures its share, and all know the whole."""
    if run.size == 1:
        return [verify(group) for group in chosen]
    asked = [(group.tensor, str(group.chain), str(group.view), str(group.constraint)) for group in chosen]
    require_alike(run, "asked", repr((sampled(source), asked)), source.path)
    from ..maths.base import Check

    owner = share_out({group.tensor: cost(group, group.chain, group.view) for group in chosen}, run.size)
    said = []
    for group in chosen:
        if owner[group.tensor] == run.rank:
            run.check()
            verdict = verify(group)
            said.append((group.tensor, verdict.chain, verdict.view, [astuple(check) for check in verdict.checks]))
    groups = {group.tensor: group for group in chosen}
    every = {
        tensor: Verdict(groups[tensor], chain, view, tuple(Check(*fields) for fields in checks))
        for part in run.exchange("verdicts", said)
        for tensor, chain, view, checks in part
    }
    return [every[group.tensor] for group in chosen]
