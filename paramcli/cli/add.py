"""paramcli add: register a chain."""

from __future__ import annotations

from typing import Annotated

import typer

from . import complete, words
from . import options as o
from .screen import open_screen


def attach(app: typer.Typer) -> None:
    app.command("add", epilog="Write: ckpt.pt -> ckpt.parametrized.safetensors")(add)


def add(
    context: typer.Context,
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    chain: Annotated[
        str | None,
        typer.Option(
            "--chain",
            metavar="SPEC",
            help="Parametrizations in order, e.g. skew,cayley. See `paramcli registry`.",
            show_default=False,
            autocompletion=complete.chain,
        ),
    ] = None,
    adapter: o.Adapters = None,
    strength: o.Strengths = None,
    adapter_prefix: o.AdapterPrefixes = None,
    like: o.Like = None,
    view: o.View = None,
    init: Annotated[
        str,
        typer.Option(
            "--init",
            metavar="HOW",
            help="project: move to the nearest point; strict: refuse if off; raw: as torch registers.",
            autocompletion=complete.words("project", "strict", "raw"),
        ),
    ] = "project",
    mask: Annotated[
        str | None,
        typer.Option(
            "--mask",
            metavar="FILE[:NAME]",
            help="The mask for the chain `mask`: a tensor of that checkpoint, of the same name unless given.",
            show_default=False,
        ),
    ] = None,
    max_change: Annotated[
        float | None,
        typer.Option(
            "--max-change",
            metavar="X",
            help="Refuse if a weight would move by more than this relative distance.",
            show_default=False,
        ),
    ] = None,
    spelling: Annotated[
        str,
        typer.Option(
            "--spelling",
            metavar="new|old",
            help="old: weight_g/_v and its like, for code from before parametrize.",
            autocompletion=complete.words("new", "old"),
        ),
    ] = "new",
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
    """Put a chain of parametrizations on tensors of a checkpoint.

    A weight that satisfies the constraint is kept; another moves to its nearest point, and how far is reported.

    paramcli add ckpt.pt -t fc.weight --chain skew,cayley

    paramcli add rnn.pt -t '*.weight_hh*' --view blocks=4 --chain skew,cayley

    paramcli add model.safetensors --adapter my_lora/
    """
    from ..api import edits
    from ..show.edit import show_edit

    screen = open_screen(quiet)
    if adapter:
        words.only_adapters(tensor, chain, view, mask)
        attached = edits.attach(
            ckpt,
            [str(path) for path in adapter],
            strength=words.strengths(context, adapter, strength),
            adapter_prefix=adapter_prefix or (),
            like=words.like(like),
            tied=words.tied(tied),
            output=output,
            force=force,
            in_place=in_place,
            check=check,
            sync=sync,
            dry_run=dry_run,
            root=root,
            ignore_record=ignore_record,
            watch=screen,
        )
        show_edit(screen, attached, as_json)
        return
    result = edits.add(
        ckpt,
        tensor or (),
        chain or "",
        tied=words.tied(tied),
        view=view,
        init=words.init(init),
        mask=mask,
        max_change=max_change,
        spelling=words.spelling(spelling),
        seed=seed,
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
