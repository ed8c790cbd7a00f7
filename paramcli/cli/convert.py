"""paramcli convert: between containers, shards, names and dtypes."""

from __future__ import annotations

from typing import Annotated

import typer

from ..show.tables import convert_table
from . import options as o
from .screen import open_screen


def attach(app: typer.Typer) -> None:
    app.command(
        "convert",
        epilog="Write: ckpt.pt -> ckpt.safetensors; -o x.pt writes a torch checkpoint, -o FOLDER shards, "
        "-o FOLDER.dcp a folder of torch.distributed.checkpoint.",
    )(convert)


def convert(
    ckpt: o.Checkpoint,
    output: o.Output = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            "--max-shard-size",
            metavar="SIZE",
            help="Split into a folder of shards of at most this size, e.g. 5GB.",
            show_default=False,
        ),
    ] = None,
    strip_prefix: Annotated[
        list[str] | None,
        typer.Option(
            "--strip-prefix",
            metavar="P",
            help="Take this prefix off the names, e.g. module. (_orig_mod. and FSDP's anywhere); repeatable.",
            show_default=False,
        ),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename",
            metavar="OLD=NEW",
            help="Give a tensor, or all in a module, another name; repeatable.",
            show_default=False,
        ),
    ] = None,
    add_prefix: Annotated[
        str | None,
        typer.Option("--add-prefix", metavar="P", help="Put this prefix before every name.", show_default=False),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="PATTERN", help="Carry only these tensors; repeatable.", show_default=False),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="PATTERN", help="Leave these tensors out; repeatable.", show_default=False),
    ] = None,
    dtype: o.Dtype = None,
    force: o.Force = False,
    check: o.Check = False,
    sync: o.Sync = True,
    dry_run: o.DryRun = False,
    root: o.Root = None,
    ignore_record: o.IgnoreRecord = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write the same tensors in another container, split or merged, renamed or cast; nothing else changes.

    paramcli convert training.ckpt -o model.safetensors

    paramcli convert model.safetensors -o folder --max-shard-size 2GB
    """
    from ..api import edits
    from ..show.edit import show_edit
    from ..surgery.edits.cast import check_dtype
    from ..surgery.edits.names import parse_renames

    screen = open_screen(quiet)
    result = edits.convert(
        ckpt,
        output,
        max_shard_size=max_shard_size,
        strip_prefix=strip_prefix or (),
        rename=parse_renames(rename or ()),
        add_prefix=add_prefix,
        keep=keep or (),
        drop=drop or (),
        dtype=check_dtype(dtype),
        force=force,
        check=check,
        sync=sync,
        dry_run=dry_run,
        root=root,
        ignore_record=ignore_record,
        watch=screen,
    )
    show_edit(screen, result, as_json, convert_table(result.tensors, dtype, fold=screen.folds(len(result.tensors))))
