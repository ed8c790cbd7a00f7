"""paramcli verify: measure constraints against what rounding explains."""

from __future__ import annotations

from typing import Annotated

import typer

from ..show.document import document
from ..show.tables import verify_table
from ..text import printable_path
from . import complete, words
from . import options as o
from .screen import open_screen
from .usage import typed


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
    from ..api import questions

    screen = open_screen(quiet)
    result = questions.verify(
        ckpt,
        tensor or (),
        constraint=constraint,
        tolerance=tolerance,
        chain=chain,
        view=view,
        root=root,
        device=device,
        compute_dtype=words.compute_dtype(compute_dtype),
        ignore_record=ignore_record,
        report=report,
        force=force,
        sha256=sha256,
        command=typed(context),
        watch=screen,
    )
    if as_json:
        screen.answer(document(result.document()))
    else:
        screen.show(verify_table(result, fold=screen.folds(sum(max(len(verdict.checks), 1) for verdict in result))))
        for file in result.evidence.files if result.evidence else ():
            screen.note(f"{file.sha256}  {file.path}")
    if report is not None:
        screen.note(f"wrote {printable_path(report)}")
    screen.note(result.summary(f" in {printable_path(ckpt)}"))
    if result.failed:
        raise typer.Exit(1)
    if result.unverified:
        screen.note("say what they are with --chain, or name with -t what is to be verified")
        raise typer.Exit(3)
