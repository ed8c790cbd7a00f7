"""paramcli apply: many edits in one pass over the data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options as o
from .screen import open_screen


def attach(app: typer.Typer) -> None:
    app.command("apply", epilog="Write: ckpt.pt -> ckpt.edited.safetensors")(apply)


def apply(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE",
            help="TOML with [[edit]] tables, or the --json output of an editing command.",
            show_default=False,
        ),
    ],
    ckpt: o.Checkpoint,
    output: o.Output = None,
    force: o.Force = False,
    in_place: o.InPlace = False,
    check: o.Check = False,
    sync: o.Sync = True,
    verify: o.Verify = False,
    dry_run: o.DryRun = False,
    root: o.Root = None,
    device: o.Device = "cpu",
    ignore_record: o.IgnoreRecord = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Make many edits in one pass over the data, from a recipe that is checked as a whole first.

    paramcli apply recipe.toml ckpt.pt

    paramcli apply recipe.toml ckpt.pt --dry-run

    A recipe is a list of edits; their keys are the commands' options. Edits of one tensor happen in their order,
    each on the result of the one before, as if the commands had run one after another.
    """
    from ..api import edits
    from ..show.edit import show_edit

    screen = open_screen(quiet)
    result = edits.apply(
        recipe,
        ckpt,
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
    if not dry_run:
        show_edit(screen, result, as_json)
        return
    from ..recipe import recipe_text

    show_edit(screen, result, as_json, recipe_text(result.edit, result.plan.steps))
