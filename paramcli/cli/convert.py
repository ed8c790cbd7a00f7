"""paramcli convert: between containers, shards, names and dtypes."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UsageError
from ..show.console import Screen
from ..show.tables import convert_table
from ..text import listing
from . import options as o
from .session import Output, finish_edit, open_groups, output_path, write_plan


def attach(app: typer.Typer) -> None:
    app.command(
        "convert",
        epilog="Write: ckpt.pt -> ckpt.safetensors; -o x.pt writes a torch checkpoint, -o FOLDER shards, -o FOLDER.dcp a folder of torch.distributed.checkpoint.",
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
            help="Take this prefix off the names, e.g. module. ; repeatable.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="PATTERN", help="Carry only these tensors; repeatable.", show_default=False),
    ] = None,
    drop: Annotated[
        list[str] | None,
        typer.Option("--drop", metavar="PATTERN", help="Leave these tensors out; repeatable.", show_default=False),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="D",
            help="Cast floating tensors: float64, float32, float16, bfloat16.",
            show_default=False,
        ),
    ] = None,
    force: o.Force = False,
    check: o.Check = False,
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
    from ..surgery.convert import Convert, check_dtype, parse_size
    from ..surgery.execute import preview
    from ..surgery.output import DEFAULT_SHARD_SIZE, default_output, is_file

    screen = Screen(quiet)
    edit = Convert(strip_prefix or (), keep or (), drop or (), check_dtype(dtype))
    size = parse_size(max_shard_size) if max_shard_size else None
    with open_groups(ckpt, root, ignore_record, screen) as opened:
        if output is None and (opened.source.shards or default_output(ckpt, "") == ckpt):
            what = "a folder of shards" if opened.source.shards else "safetensors already"
            raise UsageError(
                f"{opened.where} is {what}: convert needs -o",
                hint="-o FILE.safetensors, FILE.pt, FOLDER.dcp, or a FOLDER for shards",
            )
        destination = output_path(opened.source, output, False, "", force or dry_run)
        if size is None and output is not None and destination.suffix == "" and not opened.source.shards:
            size = DEFAULT_SHARD_SIZE
        if size is not None and is_file(destination):
            raise UsageError("--max-shard-size writes a folder of shards", hint="-o FOLDER")
        plan, left = edit.plan(opened.source, opened.groups, opened.where)
        if max_shard_size and (larger := [slot.name for slot in plan.slots if slot.nbytes > size]):
            screen.note(f"larger than --max-shard-size, and each in a file of its own: {listing(larger, 4)}")
        if dry_run:
            outcomes = preview(plan)
        else:
            outcomes = write_plan(
                screen, plan, Output(opened, destination, overwrite=force, check=check, max_shard_size=size)
            )
        finish_edit(
            screen,
            as_json,
            plan,
            opened,
            destination,
            outcomes,
            dry_run,
            convert_table(outcomes, edit.dtype, fold=screen.folds(len(outcomes))),
            left,
            checked=check,
            replaces=force,
        )
