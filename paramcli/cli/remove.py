"""paramcli remove: bake parametrizations into plain weights, or take them off."""

from __future__ import annotations

from typing import Annotated

import typer

from ..chain import parse_chain
from ..checkpoint.forms import with_chain
from ..console import Screen
from ..errors import InputRefused
from ..view import parse_view
from . import options as o
from .session import check_compute, check_device, finish_edit, open_groups, output_path, tie, write_plan


def attach(app: typer.Typer) -> None:
    app.command("remove", epilog="Write: ckpt.pt -> ckpt.baked.safetensors, or ckpt.unparametrized.safetensors")(remove)


def remove(
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    bake: Annotated[bool, typer.Option("--bake/--no-bake", help="Store the value, or go back to the original.")] = True,
    chain: o.Chain = None,
    view: o.View = None,
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
    """Bake every parametrized tensor into a plain weight (or restore its original with --no-bake).

    Every spelling is recognised: torch's new and old weight norm, spectral norm, pruning, and recorded chains.

    paramcli remove vocoder.pth --bake

    paramcli remove ckpt.parametrized.safetensors --no-bake -t fc.weight
    """
    screen = Screen(quiet)
    chain = str(parse_chain(chain)) if chain else None
    view = parse_view(view).text
    check_compute(compute_dtype)
    with open_groups(ckpt, root, ignore_record, screen) as opened:
        chosen = [with_chain(group, chain, view) for group in opened.choose(tensor, lambda group: not group.is_plain)]
        plain = [group.tensor for group in chosen if group.is_plain]
        if plain and not any(not group.is_plain for group in chosen):
            raise InputRefused(f"{plain[0]} is a plain tensor already", hint="paramcli inspect shows the form of each", path=ckpt, tensor=plain[0])
        chosen = [group for group in chosen if not group.is_plain]
        if not chosen:
            raise InputRefused("no tensor is parametrized", hint="paramcli inspect shows what is there", path=ckpt)
        chosen = tie(opened, chosen, tied)
        destination = output_path(opened.source, output, in_place, ".baked" if bake else ".unparametrized", force or dry_run)
        from ..surgery.execute import preview
        from ..surgery.plan import make_plan

        if bake:
            where = check_device(device)
            from ..surgery.edits import Bake as Edit
        else:
            where = "cpu"
            from ..surgery.renames import Unparametrize as Edit
        plan = make_plan("remove", opened.source, opened.groups, chosen, Edit().plan)
        if dry_run:
            outcomes = preview(plan)
        else:
            outcomes = write_plan(plan, opened, destination, force=force, in_place=in_place, check=check, device=where, compute=compute_dtype)
        finish_edit(screen, as_json, plan, opened, destination, outcomes, dry_run, checked=check or in_place)
