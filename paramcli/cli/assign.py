"""paramcli assign: `layer.weight = X`, through the chain's right inverse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..chain import parse_chain
from ..checkpoint.forms import with_chain
from ..console import Screen
from ..errors import UsageError
from ..view import parse_view
from . import options as o
from .session import check_compute, check_device, finish_edit, open_groups, output_path, tie, write_plan


def attach(app: typer.Typer) -> None:
    app.command("assign", epilog="Write: ckpt.pt -> ckpt.parametrized.safetensors")(assign)


def assign(
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    from_file: Annotated[Optional[str], typer.Option("--from", metavar="FILE[:NAME]", help="Take the effective weight of that checkpoint; same name unless given.", show_default=False)] = None,
    with_init: Annotated[Optional[str], typer.Option("--with", metavar="INIT", help="A torch.nn.init name: orthogonal, xavier_uniform, ...", show_default=False)] = None,
    chain: o.Chain = None,
    view: o.View = None,
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
    """Set tensors to a value, as `layer.weight = X` does: parametrized ones through their chain's right inverse.

    paramcli assign ckpt.parametrized.safetensors -t fc.weight --with orthogonal

    paramcli assign ckpt.parametrized.safetensors -t fc.weight --from other.pt:head.weight
    """
    screen = Screen(quiet)
    if not tensor:
        raise UsageError("assign needs -t/--tensor: which tensors to set", hint="paramcli inspect lists them")
    if (from_file is None) == (with_init is None):
        raise UsageError("assign needs one of --from FILE[:NAME] and --with INIT")
    chain = str(parse_chain(chain)) if chain else None
    view = parse_view(view).text
    check_compute(compute_dtype)
    with open_groups(ckpt, root, ignore_record, screen) as opened:
        chosen = [with_chain(group, chain, view) for group in opened.choose(tensor)]
        chosen = tie(opened, chosen, tied)
        destination = output_path(opened.source, output, in_place, ".parametrized", force or dry_run)
        where = check_device(device)
        from ..surgery.edits import Assign
        from ..surgery.execute import preview
        from ..surgery.plan import make_plan
        from ..surgery.values import initialised, taken_from

        if with_init is not None:
            values = initialised(with_init, seed)
        else:
            values = taken_from(*_split(from_file), compute_dtype)
        with values as value_for:
            plan = make_plan("assign", opened.source, opened.groups, chosen, Assign(value_for, seed).plan)
            if dry_run:
                outcomes = preview(plan)
            else:
                outcomes = write_plan(plan, opened, destination, force=force, in_place=in_place, check=check, device=where, compute=compute_dtype)
            finish_edit(screen, as_json, plan, opened, destination, outcomes, dry_run, checked=check or in_place)


def _split(text: str) -> tuple[Path, str | None]:
    """FILE or FILE:NAME; a file that exists under the whole text is meant as a file."""
    if os.path.exists(text) or ":" not in text:
        return Path(text), None
    file, _, name = text.rpartition(":")
    return Path(file), name
