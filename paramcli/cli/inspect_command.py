"""paramcli inspect: what a checkpoint holds, from its headers."""

from __future__ import annotations

from typing import Annotated

import typer

from ..show.document import document
from ..show.tables import inspect_head, inspect_table, inspect_tail, inspect_tree
from . import options as o
from .screen import open_screen


def attach(app: typer.Typer) -> None:
    app.command("inspect")(inspect)


def inspect(
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    tree: Annotated[
        bool | None,
        typer.Option(
            "--tree/--flat",
            help="By module with repeated layers folded, or one line a tensor. "
            "Default: tree on a terminal, flat in a pipe.",
            show_default=False,
        ),
    ] = None,
    adapter: o.Adapters = None,
    adapter_prefix: o.AdapterPrefixes = None,
    root: o.Root = None,
    ignore_record: o.IgnoreRecord = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Show the tensors of a checkpoint: how each is spelt, its chain, shape, dtype and size.

    paramcli inspect model.safetensors

    paramcli inspect training.ckpt --root state_dict --json

    paramcli inspect model/ --adapter my_lora/
    """
    from ..api import questions

    screen = open_screen(quiet)
    result = questions.inspect(
        ckpt,
        tensor or (),
        adapter=adapter or (),
        adapter_prefix=adapter_prefix or (),
        root=root,
        ignore_record=ignore_record,
        watch=screen,
    )
    if as_json:
        screen.answer(document(result.document()))
        return
    for line in inspect_head(result):
        screen.show(line)
    as_tree = screen.out.is_terminal if tree is None else tree
    screen.show(inspect_tree(result.tensors) if as_tree else inspect_table(result.tensors))
    for line in inspect_tail(result):
        screen.show(line)
