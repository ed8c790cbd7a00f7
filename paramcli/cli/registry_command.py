"""paramcli registry: the catalogue."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ..console import Screen, registry_card, registry_table
from ..registry import PARAMETRIZATIONS, look_up
from ..report import document, registry_document
from . import options as o


def attach(app: typer.Typer) -> None:
    app.command("registry")(registry)


def registry(
    name: Annotated[Optional[str], typer.Argument(metavar="NAME", help="Show this entry's card.", show_default=False)] = None,
    as_json: o.Json = False,
) -> None:
    """List the built-in parametrizations; with NAME, its law, domain, image, arguments, inverse and source.

    paramcli registry

    paramcli registry cayley
    """
    screen = Screen()
    entries = list(PARAMETRIZATIONS.values()) if name is None else [look_up(PARAMETRIZATIONS, name, "parametrization")]
    if as_json:
        screen.answer(document(registry_document(entries)))
    elif name is None:
        screen.show(registry_table(entries))
        screen.note("paramcli registry NAME shows one in full; a chain joins names: skew,cayley")
    else:
        screen.answer(registry_card(entries[0]))
