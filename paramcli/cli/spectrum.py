"""paramcli spectrum: singular values and eigenvalues, as a picture and as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..show.document import document
from ..show.tables import spectrum_plot, spectrum_table
from ..text import printable
from . import options as o
from .screen import open_screen
from .usage import typed


def attach(app: typer.Typer) -> None:
    app.command("spectrum")(spectrum)


def spectrum(
    context: typer.Context,
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    view: o.View = None,
    chain: o.Chain = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Write the picture as SVG.", show_default=False)
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png", metavar="FILE", help="Write the picture as PNG; needs paramcli[plot].", show_default=False
        ),
    ] = None,
    report: o.Report = None,
    force: o.Force = False,
    root: o.Root = None,
    device: o.Device = "cpu",
    ignore_record: o.IgnoreRecord = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Draw singular values (log scale) and, of square matrices, eigenvalues; before and after a chain.

    paramcli spectrum ckpt.parametrized.safetensors -t fc.weight

    paramcli spectrum rnn.pt -t '*weight_hh*' --view blocks=4 --svg gates.svg
    """
    from ..api import questions

    screen = open_screen(quiet)
    result = questions.spectrum(
        ckpt,
        tensor or (),
        view=view,
        chain=chain,
        root=root,
        device=device,
        ignore_record=ignore_record,
        svg=svg,
        png=png,
        report=report,
        force=force,
        command=typed(context),
        watch=screen,
    )
    if as_json:
        screen.answer(document(result.document()))
    else:
        for part in spectrum_plot(result.tensors, screen.columns):
            screen.show(part)
        screen.show(spectrum_table(result.tensors))
    for name, error in result.skipped:
        screen.note(f"not drawn: {printable(name)}: {error.message}")
    many = next((s for s in result.tensors if any(m.count > 1 for m in s.matrices)), None)
    if many is not None:
        screen.note(
            f"{printable(many.tensor)} is a batch of many matrices, drawn together; --view flatten shows it as one"
        )
    for picture in (svg, png, report):
        if picture is not None:
            screen.note(f"wrote {printable(picture)}")
