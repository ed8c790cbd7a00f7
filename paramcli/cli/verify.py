"""paramcli verify: measure constraints against what rounding explains."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import ranks
from ..chain import parse_chain
from ..checkpoint.disk.interrupts import import_torch
from ..errors import UsageError
from ..registry import parse_constraint
from ..show.console import Screen
from ..show.document import document, verify_document
from ..show.reports import check_report, facts, gathering, spectra_for_report
from ..show.tables import verify_table
from ..spelling.forms import Group, with_chain
from ..text import printable, printable_path
from ..view import parse_view
from . import complete
from . import options as o
from .session import check_compute, check_device, check_tolerance, open_groups, write_file


def attach(app: typer.Typer) -> None:
    app.command("verify", epilog="Exit code: 0 all hold, 1 one does not, 3 some could not be read.")(verify)


def verify(
    context: typer.Context,
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    constraint: Annotated[
        str | None,
        typer.Option(
            "--constraint",
            metavar="SET",
            help="What to hold the tensors to, e.g. orthogonal; default what the record says.",
            show_default=False,
            autocompletion=complete.constraint,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tol", metavar="X", help="Tolerance in place of the constraint's own.", show_default=False),
    ] = None,
    chain: o.Chain = None,
    view: o.View = None,
    root: o.Root = None,
    device: o.Device = "cpu",
    compute_dtype: o.Compute = "same",
    ignore_record: o.IgnoreRecord = False,
    report: o.Report = None,
    force: o.Force = False,
    as_json: o.Json = False,
    sha256: Annotated[
        bool,
        typer.Option(
            "--sha256",
            help="Also say what was verified, and with what: the SHA-256 of every file that was read.",
            rich_help_panel=o.WHERE,
        ),
    ] = False,
    quiet: o.Quiet = False,
) -> None:
    """Prove that the constraints hold: evaluate each tensor, measure its residual, compare with the tolerance.

    Without -t: everything the record names or the keys tell. Nothing to verify is an error, never a pass.

    paramcli verify ckpt.baked.safetensors

    paramcli verify rnn.pt -t '*_hh*' --constraint orthogonal --view blocks=4
    """
    screen = Screen(quiet)
    if constraint is not None:
        parse_constraint(constraint)
    chain = str(parse_chain(chain)) if chain else None
    seen = parse_view(view).text if view is not None else None
    check_compute(compute_dtype)
    check_tolerance(tolerance)
    check_report(report, force)
    proves = (report is not None or sha256) and ranks.current().leads
    with (
        open_groups(ckpt, root, ignore_record, screen) as opened,
        gathering(proves, context.obj, opened.source) as gathered,
    ):
        import_torch()
        from ..answers.verify import Verdict, require_claims, select_claims, summary, verify_group
        from ..surgery.shares import shared_verdicts

        chosen = with_chain(opened.choose(tensor), chain, seen, named=bool(tensor))
        if chain and tensor and (plain := next((group for group in chosen if group.is_plain), None)) is not None:
            raise UsageError(
                f"{printable(plain.tensor)} is a plain tensor: no chain is left in it",
                tensor=plain.tensor,
                hint="--constraint SET holds it to the set of the chain's last map (paramcli registry NAME says which)",
            )
        unread = [] if tensor else [group for group in chosen if group.problem]
        if not tensor:
            chosen = select_claims(chosen, ckpt)
            for group in unread:
                screen.warn(f"{printable(group.tensor)} is not verified: {group.problem}")
        elif constraint is None:
            require_claims(chosen, ckpt)
        others = 0 if tensor else len(opened.groups) - len(chosen) - len(unread)
        where = check_device(device)
        with screen.meter("verify", len(chosen), sum(group.nbytes for group in chosen)) as meter:

            def measured(group: Group) -> Verdict:
                verdict = verify_group(opened.source, group, constraint, tolerance, seen, where, compute_dtype)
                meter.advance(group.nbytes)
                return verdict

            verdicts = shared_verdicts(chosen, measured)
        opened.source.check_unchanged()
        require_claims(chosen, ckpt, verdicts)
        drawn = (
            spectra_for_report(opened.source, [(v.group, v.view) for v in verdicts], where)
            if report is not None and proves
            else None
        )
        evidence = gathered.evidence(where) if gathered else None
        if drawn is not None:
            from ..show.html import verify_page

            write_file(
                report, verify_page(printable_path(ckpt), verdicts, *drawn, evidence, facts(opened.source)), force
            )
        if as_json:
            screen.answer(document(verify_document(ckpt, verdicts, unread, evidence if sha256 else None)))
        else:
            screen.show(
                verify_table(verdicts, fold=screen.folds(sum(max(len(verdict.checks), 1) for verdict in verdicts)))
            )
            for file in evidence.files if evidence and sha256 else ():
                screen.note(f"{file.sha256}  {file.path}")
        if report is not None:
            screen.note(f"wrote {printable_path(report)}")
        failed = any(verdict.ok is False for verdict in verdicts)
        screen.note(
            summary(
                verdicts, f" in {printable_path(ckpt)}", () if failed else [group.tensor for group in unread], others
            )
        )
        if failed:
            raise typer.Exit(1)
        if unread:
            screen.note("say what they are with --chain, or name with -t what is to be verified")
            raise typer.Exit(3)
