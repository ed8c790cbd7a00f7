"""paramcli migrate: rename between the older spellings and torch's parametrize."""

from __future__ import annotations

from typing import Annotated

import typer

from . import complete, words
from . import options as o
from .screen import open_screen


def attach(app: typer.Typer) -> None:
    app.command("migrate", epilog="Write: ckpt.pt -> ckpt.migrated.safetensors")(migrate)


def migrate(
    ckpt: o.Checkpoint,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="new|old",
            help="new: torch's parametrizations.*; old: weight_g/_v, weight_orig/_u/_v/_mask.",
            show_default=False,
            autocompletion=complete.words("new", "old"),
        ),
    ] = None,
    tensor: o.Tensors = None,
    output: o.Output = None,
    force: o.Force = False,
    in_place: o.InPlace = False,
    check: o.Check = False,
    sync: o.Sync = True,
    dry_run: o.DryRun = False,
    root: o.Root = None,
    tied: o.Tied = None,
    ignore_record: o.IgnoreRecord = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Rename weight norm, spectral norm and pruning between the old spelling and the new one, byte for byte.

    With --in-place the file is still written anew and renamed over the old one: a header patched where it stands could
    be read half old and half new.

    paramcli migrate vocoder.pth --to new

    paramcli migrate model.safetensors --to old -o for_old_code.safetensors
    """
    from ..api import edits
    from ..show.edit import show_edit
    from ..surgery.edits.migrate import direction

    screen = open_screen(quiet)
    result = edits.migrate(
        ckpt,
        tensor or (),
        tied=words.tied(tied),
        to=direction(to),
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
    show_edit(screen, result, as_json)
