"""paramcli merge: bake adapters into the base they belong to."""

from __future__ import annotations

import typer

from . import options as o
from . import words
from .screen import open_screen


def attach(app: typer.Typer) -> None:
    app.command("merge", epilog="Write: model.safetensors -> model.merged.safetensors")(merge)


def merge(
    context: typer.Context,
    base: o.Checkpoint,
    adapter: o.Adapters = None,
    strength: o.Strengths = None,
    adapter_prefix: o.AdapterPrefixes = None,
    like: o.Like = None,
    output: o.Output = None,
    force: o.Force = False,
    in_place: o.InPlace = False,
    check: o.Check = False,
    sync: o.Sync = True,
    dry_run: o.DryRun = False,
    dtype: o.Dtype = None,
    root: o.Root = None,
    tied: o.Tied = None,
    device: o.Device = "cpu",
    compute_dtype: o.Compute = "same",
    ignore_record: o.IgnoreRecord = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Add what an adapter changes to the weights of its base, and write plain weights: no model code, in flat memory.

    Every tensor of the adapter is used exactly once, or nothing is written.

    paramcli merge model.safetensors --adapter my_lora/

    paramcli merge model/ --adapter style/ --strength 0.8 --adapter facts/ --strength 1
    """
    from ..api import edits
    from ..show.edit import show_edit
    from ..surgery.edits.cast import check_dtype

    screen = open_screen(quiet)
    result = edits.merge(
        base,
        [str(path) for path in adapter or ()],
        strength=words.strengths(context, adapter, strength),
        adapter_prefix=adapter_prefix or (),
        like=words.like(like),
        dtype=check_dtype(dtype),
        tied=words.tied(tied),
        compute_dtype=words.compute_dtype(compute_dtype),
        output=output,
        force=force,
        in_place=in_place,
        check=check,
        sync=sync,
        dry_run=dry_run,
        root=root,
        device=device,
        ignore_record=ignore_record,
        watch=screen,
    )
    show_edit(screen, result, as_json)
