"""paramcli discover: the structure that tensors already have."""

from __future__ import annotations

import typer

from ..show.console import Screen
from ..show.document import discover_document, document
from ..show.reports import check_report, facts, gathering, spectra_for_report
from ..show.tables import discover_table
from ..text import count_text, printable, printable_path
from ..view import parse_view
from . import options as o
from .session import check_device, open_groups, write_file


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

    paramcli discover model.safetensors

    paramcli discover rnn.pt -t '*weight_hh*' --view blocks=4
    """
    screen = Screen(quiet)
    seen = parse_view(view) if view is not None else None
    check_report(report, force)
    with (
        open_groups(ckpt, root, ignore_record, screen) as opened,
        gathering(report is not None, context.obj, opened.source) as gathered,
    ):
        chosen = opened.choose(tensor)
        where = check_device(device)
        from ..answers.discover import findings

        with screen.meter("discover", len(chosen), sum(group.nbytes for group in chosen)) as meter:
            found, skipped = findings(opened.source, chosen, where, meter.advance, seen)
        opened.source.check_unchanged()
        shown = [f for f in found if f.holds or f.nearly]
        says = f"{count_text(len(shown), 'tensor')} of {len(found)} with structure"
        if report is not None:
            from ..show.html import discover_page

            drawn = spectra_for_report(opened.source, [(opened.groups[f.tensor], view) for f in shown], where)
            write_file(
                report,
                discover_page(opened.where, shown, says, *drawn, gathered.evidence(where), facts(opened.source)),
                force,
            )
        if as_json:
            screen.answer(document(discover_document(found)))
        else:
            screen.show(discover_table(shown))
        screen.note(says)
        if report is not None:
            screen.note(f"wrote {printable_path(report)}")
        for name, why in skipped:
            screen.warn(f"not looked at: {printable(name)}: {why}")
