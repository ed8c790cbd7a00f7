"""paramcli discover: the structure that tensors already have."""

from __future__ import annotations

import typer

from ..show.document import document
from ..show.tables import discover_table
from ..text import printable, printable_path
from . import options as o
from .screen import open_screen
from .usage import typed


def attach(app: typer.Typer) -> None:
    app.command("discover")(discover)


def discover(
    context: typer.Context,
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    view: o.View = None,
    root: o.Root = None,
    device: o.Device = "cpu",
    ignore_record: o.IgnoreRecord = False,
    report: o.Report = None,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Show which constraints each tensor already satisfies, or nearly: symmetric, orthogonal, low rank, N:M sparse, ...

    It tries the sets that a look at a tensor can suggest. A line at the end says which it does not try, and what
    tensors it left out; verify --constraint measures any set.

    paramcli discover model.safetensors

    paramcli discover rnn.pt -t '*weight_hh*' --view blocks=4
    """
    from ..api import questions

    screen = open_screen(quiet)
    result = questions.discover(
        ckpt,
        tensor or (),
        view=view,
        root=root,
        device=device,
        ignore_record=ignore_record,
        report=report,
        force=force,
        command=typed(context),
        watch=screen,
    )
    if as_json:
        screen.answer(document(result.document()))
    else:
        screen.show(discover_table(result.structured))
    screen.note(result.summary())
    if gaps := result.gaps(3):
        screen.note("; ".join([*(f"{heading}: {text}" for heading, text in gaps), "--json lists all"]))
    for said in result.said:
        screen.note(said)
    if report is not None:
        screen.note(f"wrote {printable_path(report)}")
    for name, why in result.skipped:
        screen.warn(f"not looked at: {printable(name)}: {why}")
