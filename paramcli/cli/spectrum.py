"""paramcli spectrum: singular values and eigenvalues, as a picture and as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..checkpoint.disk.atomic import refuse_existing
from ..checkpoint.disk.interrupts import import_torch
from ..errors import InputRefused, UsageError
from ..show.console import Screen
from ..show.document import document, spectrum_document
from ..show.reports import check_report, facts, gathering
from ..show.tables import spectrum_plot, spectrum_table
from ..spelling.forms import with_chain
from ..surgery.commands import reading
from ..text import count_text, number_text, printable
from ..view import parse_view
from . import options as o
from .session import check_device, open_groups, write_file


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
    screen = Screen(quiet)
    seen = parse_view(view).text if view is not None else None
    for picture in (svg, png):
        if picture is not None:
            refuse_existing(picture, force)
    check_report(report, force)
    with (
        open_groups(ckpt, root, ignore_record, screen) as opened,
        gathering(report is not None, context.obj, opened.source) as gathered,
    ):
        import_torch()
        from ..answers.spectrum import choose_groups, spectra

        chosen = choose_groups(
            with_chain(opened.choose(tensor), *reading(chain, view), named=bool(tensor)), bool(tensor)
        )
        if not chosen:
            raise UsageError(
                "spectrum needs -t/--tensor: no tensor is parametrized", hint="paramcli inspect lists them"
            )
        where = check_device(device)
        found, skipped = [], []
        with screen.meter("spectrum", len(chosen), sum(group.nbytes for group in chosen)) as meter:
            for group in chosen:
                try:
                    found.append(spectra(opened.source, group, seen, where))
                except InputRefused as error:
                    skipped.append((group.tensor, error))
                meter.advance(group.nbytes)
        if not found:
            raise skipped[0][1]
        opened.source.check_unchanged()
        if svg is not None or png is not None:
            _write(found, svg, png, force)
        if report is not None:
            from ..show.html import spectrum_page

            says = f"{count_text(len(found), 'tensor')}: singular values from {number_text(min(m.smallest for s in found for m in s.matrices))} to {number_text(max(m.largest for s in found for m in s.matrices))}"
            write_file(
                report, spectrum_page(opened.where, found, says, gathered.evidence(where), facts(opened.source)), force
            )
        if as_json:
            screen.answer(document(spectrum_document(ckpt, found)))
        else:
            for part in spectrum_plot(found, screen.columns):
                screen.show(part)
            screen.show(spectrum_table(found))
        for name, error in skipped:
            screen.note(f"not drawn: {printable(name)}: {error.message}")
        many = next((s for s in found if any(m.count > 1 for m in s.matrices)), None)
        if many is not None:
            screen.note(
                f"{printable(many.tensor)} is a batch of many matrices, drawn together; --view flatten shows it as one"
            )
        for picture in (svg, png, report):
            if picture is not None:
                screen.note(f"wrote {printable(picture)}")


def _write(found, svg: Path | None, png: Path | None, force: bool) -> None:
    from ..show.drawing.panels import panels

    shown = [panel for s in found for panel in panels(s, title=printable(s.tensor) if len(found) > 1 else None)]
    # In a row what belongs together: a matrix before and after its chain has three panels.
    across = 3 if any(m.of != "value" for s in found for m in s.matrices) else 4
    title = f"{printable(found[0].tensor)}  {found[0].title}" if len(found) == 1 else ""
    if svg is not None:
        from ..show.drawing.svg import grid

        write_file(svg, grid(shown, across, alone=True, title=title).encode(), force)
    if png is not None:
        from ..show.drawing.png import png as draw

        write_file(png, draw(shown, across, title), force)
