"""paramcli extract: the nearest low-rank adapter of a change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import complete, words
from . import options as o
from .screen import open_screen


def attach(app: typer.Typer) -> None:
    app.command(
        "extract",
        epilog="Write: tuned.safetensors -> tuned.adapter/; --spelling kohya -> tuned.adapter.safetensors",
    )(extract)


def extract(
    tuned: o.Checkpoint,
    base: Annotated[
        Path,
        typer.Option("--base", "-b", metavar="CKPT", help="The checkpoint it was tuned from.", show_default=False),
    ],
    rank: Annotated[
        int | None, typer.Option("--rank", "-r", metavar="R", help="Rank of every change.", show_default=False)
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            "--energy",
            metavar="E",
            help="The least rank with this share of the change's squared norm, e.g. 0.99.",
            show_default=False,
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option(
            "--max-error",
            metavar="X",
            help="The least rank that loses at most this share of the change's norm.",
            show_default=False,
        ),
    ] = None,
    tensor: o.Tensors = None,
    whole: Annotated[
        list[str] | None,
        typer.Option(
            "--whole", metavar="PATTERN", help="Tensors that are held whole, not by factors.", show_default=False
        ),
    ] = None,
    spelling: Annotated[
        str,
        typer.Option(
            "--spelling",
            metavar="S",
            help="peft (a folder) or kohya (one file).",
            autocompletion=complete.words("peft", "kohya"),
        ),
    ] = "peft",
    prefix: Annotated[
        str,
        typer.Option("--prefix", metavar="P", help="What the keys of a kohya file begin with: of which model it is."),
    ] = "lora_unet_",
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            metavar="D",
            help="Of the factors; default float32, of float64 checkpoints float64.",
            show_default=False,
        ),
    ] = None,
    output: o.Output = None,
    force: o.Force = False,
    sync: o.Sync = True,
    dry_run: o.DryRun = False,
    root: o.Root = None,
    root_base: Annotated[
        str | None,
        typer.Option(
            "--root-base",
            metavar="A.B",
            help="Which state dict of a nested base.",
            show_default=False,
            rich_help_panel=o.HOW,
        ),
    ] = None,
    device: o.Device = "cpu",
    ignore_record: o.IgnoreRecord = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Write the nearest low-rank adapter of what a checkpoint changes in its base, as PEFT or kohya's scripts read it.

    What no factors can hold (norms, biases, embeddings) goes whole; how much of each change is lost is told.

    paramcli extract tuned/ --base model/ --rank 16 -o adapter/

    paramcli extract tuned.safetensors --base model.safetensors --energy 0.99
    """
    from ..api.extract import extract as extracted
    from ..show.extract import show_extract
    from ..surgery.edits.cast import check_dtype

    screen = open_screen(quiet)
    result = extracted(
        tuned,
        base,
        tensor or (),
        rank=rank,
        energy=energy,
        max_error=max_error,
        whole=whole or (),
        spelling=words.adapter_spelling(spelling),
        prefix=prefix,
        dtype=check_dtype(dtype),
        output=output,
        force=force,
        sync=sync,
        dry_run=dry_run,
        root=root,
        root_base=root_base,
        device=device,
        ignore_record=ignore_record,
        watch=screen,
    )
    show_extract(screen, result, as_json)
