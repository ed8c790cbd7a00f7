"""paramcli diff: are two checkpoints the same weights?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import ParamcliError, UsageError
from ..show.console import Screen
from ..show.document import diff_document, document
from ..show.reports import check_report, gathering, spectra_of_pairs
from ..show.tables import diff_table
from ..text import printable_path
from . import options as o
from .session import Opened, check_tolerance, open_groups, write_file


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
            help="Relative distance that counts as equal; default 16 eps of the dtype.",
            show_default=False,
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Equal means every bit of every value.")] = False,
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
    """
    from ..answers.diff import advice, compare, summary

    screen = Screen(quiet)
    check_report(report, force)
    check_tolerance(tolerance)
    with (
        open_groups(a, root, ignore_record, screen) as one,
        _open_second(b, root, root_b, ignore_record, screen) as two,
        gathering(report is not None, context.obj, one.source, two.source) as gathered,
    ):
        if tensor:
            names = {group.tensor for side in (one, two) for group in side.choose_any(tensor, (one, two))}
            one.groups = {n: g for n, g in one.groups.items() if n in names}
            two.groups = {n: g for n, g in two.groups.items() if n in names}
        only_a = [name for name in one.groups if name not in two.groups]
        only_b = [name for name in two.groups if name not in one.groups]
        shared = [group for name, group in one.groups.items() if name in two.groups]
        found = []
        with screen.meter("diff", len(shared), sum(group.nbytes for group in shared)) as meter:
            for group, difference in zip(
                shared, compare(one.source, one.groups, two.source, two.groups, tolerance, exact)
            ):
                found.append(difference)
                meter.advance(group.nbytes)
        one.source.check_unchanged()
        two.source.check_unchanged()
        equal = not only_a and not only_b and all(d.equal for d in found)
        hint = advice(one.groups, two.groups, only_a, only_b, equal)
        says = ("equal: " if equal else "different: ") + summary(found, only_a, only_b)
        if report is not None:
            from ..show.html import diff_page

            drawn = spectra_of_pairs(one, two, [d.tensor for d in found if not d.equal])
            write_file(
                report,
                diff_page(one.where, two.where, equal, says, found, only_a, only_b, *drawn, gathered.evidence("cpu")),
                force,
            )
        if as_json:
            screen.answer(document(diff_document(equal, found, only_a, only_b)))
        else:
            screen.show(diff_table(found, only_a, only_b))
        screen.note(says)
        if report is not None:
            screen.note(f"wrote {printable_path(report)}")
        if hint:
            screen.note(hint)
        if not equal:
            raise typer.Exit(1)


def _open_second(b: Path, root: str | None, root_b: str | None, ignore_record: bool, screen: Screen) -> Opened:
    """B at --root-b, else where --root says, else at the only state dict it has: a result has fewer levels than its
    input.
    """
    try:
        return open_groups(b, root_b or root, ignore_record, screen)
    except UsageError as unknown:
        if root_b or not root:
            raise
        try:
            return open_groups(b, None, ignore_record, screen)
        except ParamcliError:
            raise unknown from None
