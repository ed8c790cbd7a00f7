"""paramcli migrate: rename between the older spellings and torch's parametrize."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ..console import Screen
from ..errors import InputRefused, UsageError
from . import options as o
from .session import finish_edit, open_groups, output_path, tie, write_plan


def attach(app: typer.Typer) -> None:
    app.command("migrate", epilog="Write: ckpt.pt -> ckpt.migrated.safetensors")(migrate)


def migrate(
    ckpt: o.Checkpoint,
    to: Annotated[Optional[str], typer.Option("--to", metavar="new|old", help="new: torch's parametrizations.*; old: weight_g/_v, weight_orig/_u/_v/_mask.", show_default=False)] = None,
    tensor: o.Tensors = None,
    output: o.Output = None,
    force: o.Force = False,
    in_place: o.InPlace = False,
    check: o.Check = False,
    dry_run: o.DryRun = False,
    root: o.Root = None,
    tied: o.Tied = None,
    ignore_record: o.IgnoreRecord = False,
    as_json: o.Json = False,
    quiet: o.Quiet = False,
) -> None:
    """Rename weight norm, spectral norm and pruning between the old spelling and the new one, byte for byte.

    paramcli migrate vocoder.pth --to new

    paramcli migrate model.safetensors --to old -o for_old_code.safetensors
    """
    screen = Screen(quiet)
    if to not in ("new", "old"):
        raise UsageError("migrate needs --to new or --to old", hint="new is torch's parametrizations.*; old is weight_g/weight_v and its like")
    from ..surgery.execute import preview
    from ..surgery.plan import make_plan
    from ..surgery.renames import Migrate

    edit = Migrate(to)
    with open_groups(ckpt, root, ignore_record, screen) as opened:
        chosen = [group for group in opened.choose(tensor) if edit.applies(group)]
        if not chosen:
            there = sorted({group.form for group in opened.groups.values()})
            raise InputRefused(
                f"nothing to migrate: no weight norm, spectral norm or pruning is spelt the {'old' if to == 'new' else 'new'} way",
                hint=f"the tensors are {', '.join(there)}; paramcli inspect shows each", path=ckpt,
            )  # fmt: skip
        chosen = tie(opened, chosen, tied)
        destination = output_path(opened.source, output, in_place, ".migrated", force or dry_run)
        plan = make_plan("migrate", opened.source, opened.groups, chosen, edit.plan)
        outcomes = preview(plan) if dry_run else write_plan(plan, opened, destination, force=force, in_place=in_place, check=check)
        finish_edit(screen, as_json, plan, opened, destination, outcomes, dry_run, checked=check or in_place)
