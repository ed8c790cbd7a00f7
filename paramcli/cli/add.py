"""paramcli add: register a chain."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from ..chain import check_items
from ..console import Screen
from ..errors import UsageError
from ..view import parse_view
from . import options as o
from .session import check_compute, check_device, finish_edit, open_groups, output_path, tie, write_plan

INITS = ("project", "strict", "raw")


def attach(app: typer.Typer) -> None:
    app.command("add", epilog="Write: ckpt.pt -> ckpt.parametrized.safetensors")(add)


def add(
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    chain: Annotated[Optional[str], typer.Option("--chain", metavar="SPEC", help="Parametrizations in order, e.g. skew,cayley. See `paramcli registry`.", show_default=False)] = None,
    view: o.View = None,
    init: Annotated[str, typer.Option("--init", metavar="HOW", help="project: move to the nearest point; strict: refuse if off; raw: as torch registers.")] = "project",
    max_change: Annotated[Optional[float], typer.Option("--max-change", metavar="X", min=0.0, help="Refuse if a weight would move by more than this relative distance.", show_default=False)] = None,
    spelling: Annotated[str, typer.Option("--spelling", metavar="new|old", help="old: weight_g/_v and its like, for code from before parametrize.")] = "new",
    seed: o.Seed = 0,
    output: o.Output = None,
    force: o.Force = False,
    in_place: o.InPlace = False,
    check: o.Check = False,
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

    paramcli add rnn.safetensors -t 'rnn.weight_hh*' --view blocks=4 --chain skew,cayley
    """
    screen = Screen(quiet)
    if not chain:
        raise UsageError("add needs --chain: which parametrizations, in order", hint="--chain skew,cayley; paramcli registry lists them")
    if not tensor:
        raise UsageError("add needs -t/--tensor: which tensors to parametrize", hint="paramcli inspect lists them")
    if init not in INITS:
        raise UsageError(f"--init {init}: not one of {', '.join(INITS)}")
    if spelling not in ("new", "old"):
        raise UsageError(f"--spelling {spelling}: new or old")
    check_items(chain)
    seen = parse_view(view)
    check_compute(compute_dtype)
    with open_groups(ckpt, root, ignore_record, screen) as opened:
        chosen = opened.choose(tensor)
        chosen = tie(opened, chosen, tied)
        destination = output_path(opened.source, output, in_place, ".parametrized", force or dry_run)
        where = check_device(device)
        from ..surgery.edits import Register
        from ..surgery.execute import preview
        from ..surgery.plan import make_plan

        edit = Register(chain, seen, init, seed, max_change, spelling)
        plan = make_plan("add", opened.source, opened.groups, chosen, edit.plan)
        if dry_run:
            outcomes = preview(plan)
        else:
            outcomes = write_plan(plan, opened, destination, force=force, in_place=in_place, check=check, device=where, compute=compute_dtype)
        finish_edit(screen, as_json, plan, opened, destination, outcomes, dry_run, checked=check or in_place)
