"""paramcli inspect: what a checkpoint holds, from its headers."""

from __future__ import annotations

from typing import Annotated

import typer

from ..show.console import Screen
from ..show.document import document, inspect_document
from ..show.tables import inspect_head, inspect_table, inspect_tail, inspect_tree
from . import options as o
from .session import open_groups


def attach(app: typer.Typer) -> None:
    app.command("inspect")(inspect)


def inspect(
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    tree: Annotated[
        bool | None,
        typer.Option(
            "--tree/--flat",
            help="By module with repeated layers folded, or one line a tensor. Default: tree on a terminal, flat in a pipe.",
            show_default=False,
        ),
    ] = None,
    root: o.Root = None,
    ignore_record: o.IgnoreRecord = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Show the tensors of a checkpoint: how each is spelt, its chain, shape, dtype and size.

    paramcli inspect model.safetensors

    paramcli inspect training.ckpt --root state_dict --json
    """
    screen = Screen(quiet)
    with open_groups(ckpt, root, ignore_record, screen) as opened:
        groups = opened.choose(tensor)
        ties = opened.source.tied()
        if as_json:
            tied = {name: [other for other in names if other != name] for names in ties for name in names}
            screen.answer(document(inspect_document(opened.source, groups, tied)))
            return
        for line in inspect_head(opened.source):
            screen.show(line)
        as_tree = screen.out.is_terminal if tree is None else tree
        screen.show(inspect_tree(groups) if as_tree else inspect_table(groups))
        for line in inspect_tail(opened.source, groups, ties):
            screen.show(line)
