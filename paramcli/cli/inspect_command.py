"""paramcli inspect: what a checkpoint holds, from its headers."""

from __future__ import annotations

import typer

from ..console import Screen, inspect_head, inspect_table, inspect_tail
from ..report import document, inspect_document
from . import options as o
from .session import open_groups


def attach(app: typer.Typer) -> None:
    app.command("inspect")(inspect)


def inspect(
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
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
        screen.show(inspect_table(groups))
        for line in inspect_tail(opened.source, groups, ties):
            screen.show(line)
