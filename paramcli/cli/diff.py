"""paramcli diff: are two checkpoints the same weights?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..show.document import document
from ..show.tables import diff_table
from ..text import printable_path
from . import options as o
from . import words
from .screen import open_screen
from .usage import typed


def attach(app: typer.Typer) -> None:
    app.command("diff", epilog="Exit code: 0 equal, 1 different.")(diff)


def diff(
    context: typer.Context,
    a: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint.", show_default=False)],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one.", show_default=False)],
    tensor: o.Tensors = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tol",
            metavar="X",
            help="Relative distance that counts as equal; default 16 eps of the dtype, 2 of a half.",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Equal means every bit of every value.")] = False,
    adapter: Annotated[
        list[Path] | None,
        typer.Option("--adapter", metavar="DIR", help="Adapter that A has on; repeatable.", show_default=False),
    ] = None,
    strength: o.Strengths = None,
    adapter_b: Annotated[
        list[Path] | None,
        typer.Option("--adapter-b", metavar="DIR", help="Adapter that B has on; repeatable.", show_default=False),
    ] = None,
    strength_b: Annotated[
        list[float] | None,
        typer.Option("--strength-b", metavar="S", help="The same for an adapter of B.", show_default=False),
    ] = None,
    adapter_prefix: o.AdapterPrefixes = None,
    root: o.Root = None,
    root_b: Annotated[
        str | None,
        typer.Option(
            "--root-b",
            metavar="A.B",
            help="Which state dict of B; default that of --root, or the only one there is.",
            show_default=False,
        ),
    ] = None,
    ignore_record: o.IgnoreRecord = False,
    report: o.Report = None,
    force: o.Force = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Compare effective weights: plain, baked, old and new spellings of one model are equal.

    paramcli diff vocoder.pth vocoder.baked.safetensors

    paramcli diff before.pt after.safetensors --exact

    paramcli diff model.safetensors merged.safetensors --adapter my_lora/
    """
    from ..api import questions

    screen = open_screen(quiet)
    result = questions.diff(
        a,
        b,
        tensor or (),
        tolerance=tolerance,
        exact=exact,
        adapter=adapter or (),
        strength=words.strengths(context, adapter, strength),
        adapter_b=adapter_b or (),
        strength_b=words.strengths(context, adapter_b, strength_b, "-b"),
        adapter_prefix=adapter_prefix or (),
        root=root,
        root_b=root_b,
        ignore_record=ignore_record,
        report=report,
        force=force,
        command=typed(context),
        watch=screen,
    )
    if as_json:
        screen.answer(document(result.document()))
    else:
        screen.show(diff_table(result))
    screen.note(result.summary())
    if report is not None:
        screen.note(f"wrote {printable_path(report)}")
    if result.said:
        screen.note(result.said)
    if not result.equal:
        raise typer.Exit(1)
