"""paramcli registry: the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer

from ..catalogue.entry import ConstraintEntry, Entry, MeasureEntry
from ..errors import Known, UsageError, error_context
from ..registry import CONSTRAINTS, DECODERS, MEASURES, PARAMETRIZATIONS, look_up
from ..show.cards import constraint_card, constraint_table, measure_card, measure_table, registry_card, registry_table
from ..show.console import Screen
from ..show.document import document, registry_document
from ..text import closest, printable
from . import complete
from . import options as o
from .screen import open_screen


def attach(app: typer.Typer) -> None:
    app.command("registry")(registry)


def registry(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="Show this entry's card.", show_default=False, autocompletion=complete.entries
        ),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            "--family",
            metavar="F",
            help="Only this family: orthogonal, norm, mask, ...",
            show_default=False,
            autocompletion=complete.families,
        ),
    ] = None,
    constraints: Annotated[
        bool, typer.Option("--constraints", help="The sets that values lie in, and what else verify measures.")
    ] = False,
    as_json: o.Json = False,
) -> None:
    """List the parametrizations by family; with NAME, its law, domain, image, arguments, inverse and source.

    paramcli registry cayley

    paramcli registry --family orthogonal

    A chain is a list of names: skew,cayley. Their values lie in constraints, which --constraints lists.
    """
    screen = open_screen()
    if name is not None:
        _card(screen, name, as_json)
        return
    entries = [*PARAMETRIZATIONS.values(), *DECODERS.values()]
    if family is not None:
        families = list(dict.fromkeys(entry.family for entry in entries))
        if family not in families:
            near = closest(family, families, 1)
            raise UsageError(
                f"no family named '{printable(family)}'",
                option="family",
                hint=Known(f"closest: {near[0]}" if near else f"families: {', '.join(families)}"),
            )
        entries = [entry for entry in entries if entry.family == family]
    if as_json:
        screen.answer(
            document(registry_document(entries, *((CONSTRAINTS.values(), MEASURES.values()) if family is None else ())))
        )
    elif constraints:
        screen.show(constraint_table(CONSTRAINTS.values()))
        screen.show("")
        screen.show(measure_table(MEASURES.values()))
    else:
        screen.show(registry_table(entries))
        screen.note("paramcli registry NAME shows one in full; a chain joins names: skew,cayley")


def _card(screen: Screen, name: str, as_json: bool) -> None:
    """A parametrization's card, or where there is none of that name a constraint's; and that of what is measured under
    it.
    """
    known: dict[str, Entry | ConstraintEntry | MeasureEntry] = {
        **MEASURES,
        **CONSTRAINTS,
        **DECODERS,
        **PARAMETRIZATIONS,
    }
    with error_context(option="name"):
        look_up(known, name, "parametrization, constraint or measure")
    measures = [MEASURES[name]] if name in MEASURES else []
    maps = [table[name] for table in (PARAMETRIZATIONS, DECODERS) if name in table]
    sets = [CONSTRAINTS[name]] if name in CONSTRAINTS and not maps else []
    if as_json:
        screen.answer(document(registry_document(maps, sets, measures)))
    else:
        screen.answer(
            "\n\n".join([*map(registry_card, maps), *map(constraint_card, sets), *map(measure_card, measures)])
        )
