"""paramcli assign: `layer.weight = X`, through the chain's right inverse."""

from __future__ import annotations

from typing import Annotated

import typer

from . import complete, words
from . import options as o
from .screen import open_screen


def attach(app: typer.Typer) -> None:
    app.command("assign", epilog="Write: ckpt.pt -> ckpt.parametrized.safetensors")(assign)


def assign(
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    from_file: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE[:NAME]",
            help="Take the effective weight of that checkpoint; same name unless given.",
            show_default=False,
        ),
    ] = None,
    with_init: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="INIT",
            help="A torch.nn.init name: orthogonal, xavier_uniform, ...",
            show_default=False,
            autocompletion=complete.initialisers,
        ),
    ] = None,
    chain: o.Chain = None,
    view: o.View = None,
    seed: o.Seed = 0,
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
    """Set tensors to a value, as `layer.weight = X` does: parametrized ones through their chain's right inverse.

    paramcli assign ckpt.safetensors -t fc.weight --with orthogonal

    paramcli assign ckpt.safetensors -t fc.weight --from other.pt:head.weight
    """
    from ..api import edits
    from ..show.edit import show_edit

    screen = open_screen(quiet)
    result = edits.assign(
        ckpt,
        tensor or (),
        from_=from_file,
        with_=with_init,
        chain=chain,
        view=view,
        seed=seed,
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
