"""paramcli remove: bake parametrizations into plain weights, or take them off."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o
from . import words
from .screen import open_screen


def attach(app: typer.Typer) -> None:
    app.command("remove", epilog="Write: ckpt.pt -> ckpt.baked.safetensors, or ckpt.unparametrized.safetensors")(remove)


def remove(
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    bake: Annotated[bool, typer.Option("--bake/--no-bake", help="Store the value, or go back to the original.")] = True,
    chain: o.Chain = None,
    view: o.View = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="D",
            help="Of the values: float64, float32, float16, bfloat16. Default: the weight's own.",
            show_default=False,
        ),
    ] = None,
    output: o.Output = None,
    force: o.Force = False,
    in_place: o.InPlace = False,
    check: o.Check = False,
    sync: o.Sync = True,
    verify: o.Verify = False,
    dry_run: o.DryRun = False,
    root: o.Root = None,
    tied: o.Tied = None,
    device: o.Device = "cpu",
    compute_dtype: o.Compute = "same",
    ignore_record: o.IgnoreRecord = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Bake every parametrized tensor into a plain weight (or restore its original with --no-bake).

    Every spelling is recognised: torch's new and old weight norm, spectral norm, pruning, and recorded chains.

    paramcli remove vocoder.pth --bake

    paramcli remove ckpt.parametrized.safetensors --no-bake -t fc.weight
    """
    from ..api import edits
    from ..show.edit import show_edit
    from ..surgery.edits.cast import check_dtype

    screen = open_screen(quiet)
    result = edits.remove(
        ckpt,
        tensor or (),
        bake=bake,
        chain=chain,
        view=view,
        dtype=check_dtype(dtype),
        tied=words.tied(tied),
        compute_dtype=words.compute_dtype(compute_dtype),
        output=output,
        force=force,
        in_place=in_place,
        check=check,
        sync=sync,
        verify=verify,
        dry_run=dry_run,
        root=root,
        device=device,
        ignore_record=ignore_record,
        watch=screen,
    )
    show_edit(screen, result, as_json)
