"""What every command does around its own work: open, select, write, report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import ranks
from ..checkpoint.read.open import open_checkpoint
from ..checkpoint.source import Source
from ..dtypes import COMPUTE_DTYPES
from ..errors import ParamcliError, UsageError, error_context
from ..show.console import Screen
from ..show.document import document, edit_document
from ..show.tables import edit_table
from ..spec import check_choice, select
from ..spelling import record as records
from ..spelling.forms import Group, detect
from ..text import count_text, listing, number_text, printable, printable_path, size_text

if TYPE_CHECKING:
    from ..surgery.commands import Edit
    from ..surgery.execute import Writing
    from ..surgery.plan import Plan

# What a torch result lacks of ours; a sentence of its own says what follows from that.
OWN_RECORD = f"metadata {records.KEY}"
# Steps after which every effective weight is what it was.
SAME_WEIGHT = ("bake", "migrate")


@dataclass
class Opened:
    """A checkpoint with its groups, ready for a command."""

    source: Source
    groups: dict[str, Group]

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exception: object) -> None:
        self.source.close()

    @property
    def where(self) -> str:
        return printable_path(self.source.path)

    def choose(self, patterns: Sequence[str] | None, default: Callable[[Group], bool] | None = None) -> list[Group]:
        """The groups that -t names, or without -t those that `default` accepts."""
        if patterns:
            return [self.groups[name] for name in select(list(self.groups), patterns, self.where)]
        return [group for group in self.groups.values() if default is None or default(group)]

    def choose_any(self, patterns: Sequence[str], sides: Sequence[Opened]) -> list[Group]:
        """The groups that -t names here, where each pattern must match something on one of the sides."""
        everywhere = list(dict.fromkeys(name for side in sides for name in side.groups))
        chosen = set(select(everywhere, patterns, " and ".join(side.where for side in sides)))
        return [group for name, group in self.groups.items() if name in chosen]


def open_groups(path: Path, root: str | None, ignore_record: bool, screen: Screen) -> Opened:
    """Open and group a checkpoint."""
    source = open_checkpoint(path, root)
    try:
        with error_context(path=path):
            for note in source.notes:
                screen.note(note)
            record = {} if ignore_record else records.record_in(source)
            plain = detect(source.tensors)
            records.check_against(record, {name: group.form for name, group in plain.items()})
            return Opened(source, detect(source.tensors, record) if record else plain)
    except BaseException:
        source.close()
        raise


def check_device(device: str) -> str:
    """The torch device to use; UsageError where the machine has none. Imports torch."""
    import re

    if not re.fullmatch(r"cpu|auto|mps|cuda(:[0-9]{1,3})?", device):
        raise UsageError(f"no device named '{printable(device)}'", hint="cpu, cuda, cuda:0, mps or auto")
    from ..checkpoint.disk.interrupts import import_torch

    import_torch()
    if device == "cpu":
        return device
    import torch

    have_cuda, have_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if have_cuda else "mps" if have_mps else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if have_cuda else 0
        if not have_cuda:
            why = (
                "this torch is built without CUDA"
                if not torch.backends.cuda.is_built()
                else "torch finds no CUDA device"
            )
            raise UsageError(f"--device {device}: {why}", hint="--device cpu, or --device auto")
        if ":" in device and int(device[5:]) >= count:
            raise UsageError(f"--device {device}: there are {count}, cuda:0 to cuda:{count - 1}")
        run = ranks.current()
        if device == "cuda" and run.local_size > 1:
            # Of a run's processes on one machine each has a device of its own.
            if run.local_size > count:
                raise UsageError(
                    f"{run.local_size} processes and {count} CUDA devices",
                    hint=f"--nproc-per-node {count}, or --device cuda:0 for all",
                )
            return f"cuda:{run.local_rank}"
    elif device == "mps" and not have_mps:
        raise UsageError("--device mps: torch finds no Metal device", hint="--device cpu, or --device auto")
    return device


def check_compute(name: str) -> str:
    check_choice("compute-dtype", name, COMPUTE_DTYPES)
    return name


def check_tolerance(value: float | None) -> None:
    if value is not None and not value >= 0:
        raise UsageError(f"--tol {value:g}: must be at least 0")


def output_path(source: Source, output: Path | None, in_place: bool, suffix: str, overwrite: bool) -> Path:
    """Where the result goes; refused early where it could not be written there."""
    from ..checkpoint.disk.atomic import refuse_existing
    from ..surgery.output import FOREIGN_SUFFIXES, NOT_IN_PLACE, default_output

    if output is not None and str(output) == "-":
        raise UsageError("-o -: a checkpoint is written to a file, never to a pipe", hint="-o FILE.safetensors")
    if in_place and output is not None:
        raise UsageError("--in-place and --output exclude each other")
    if in_place:
        return source.path if source.container not in NOT_IN_PLACE else _no_in_place(source)
    if output is not None and output.suffix.lower() in FOREIGN_SUFFIXES:
        raise UsageError(
            f"paramcli writes safetensors and torch checkpoints, not {printable(output.suffix)}",
            hint="-o FILE.safetensors, FILE.pt or FOLDER.dcp",
        )
    path = output if output is not None else default_output(source.path, suffix)
    refuse_existing(path, overwrite)
    return path


def _no_in_place(source: Source) -> Path:
    raise UsageError(
        "--in-place works on files and on safetensors shards; these are torch's own shards",
        hint="-o FOLDER or FOLDER.dcp",
        path=source.path,
    )


@dataclass(frozen=True)
class Target:
    """Where and how a command writes: the options that say so, as one value."""

    output: Path | None = None
    force: bool = False
    in_place: bool = False
    dry_run: bool = False
    root: str | None = None
    device: str = "cpu"
    ignore_record: bool = False
    as_json: bool = False
    quiet: bool = False
    check: bool = False
    verify: bool = False


def run_edits(
    command: str, edits: Sequence[Edit], suffix: str, ckpt: Path, target: Target, as_recipe: bool = False
) -> None:
    """Open, plan all edits, write once, report: what every editing command does.

    `as_recipe`: --dry-run shows the plan as a recipe instead of a table.
    """
    screen = Screen(target.quiet)
    with (
        open_groups(ckpt, target.root, target.ignore_record, screen) as opened,
        ExitStack() as stack,
        error_context(path=ckpt),
    ):
        if len(edits) == 1 and not edits[0].origin:
            edits[0].choose(
                opened.groups, opened.where
            )  # a name that is not there is said before anything of the output
        destination = output_path(opened.source, target.output, target.in_place, suffix, target.force or target.dry_run)
        output = Output(opened, destination, overwrite=target.force, in_place=target.in_place, check=target.check)
        computes = any(edit.computes for edit in edits)
        early = begin_early(command, edits, output, stack) if computes and not target.dry_run else None
        if (
            computes and early is None and not target.dry_run and ranks.current().size == 1
        ):  # of several processes each compares what it reads
            opened.source.check_ahead(opened.source.tensors)  # the sums take as long as importing torch does
        device = check_device(target.device) if computes else "cpu"
        from ..surgery.execute import preview
        from ..surgery.sequence import plan_edits

        plan = plan_edits(command, edits, opened.source, opened.groups, stack)
        if target.dry_run:
            outcomes = preview(plan)
        else:
            outcomes = write_plan(screen, plan, output, device, early, target.verify)
        shown = edit_table(outcomes, fold=screen.folds(len(outcomes)))
        if as_recipe and target.dry_run:
            from ..recipe import recipe_text

            shown = recipe_text(edits, plan.steps)
        finish_edit(
            screen,
            target.as_json,
            plan,
            opened,
            destination,
            outcomes,
            target.dry_run,
            edits=edits,
            shown=shown,
            checked=target.check or target.in_place,
            replaces=target.force or target.in_place,
        )


@dataclass(frozen=True)
class Output:
    """Where a plan's result goes, a file or a folder as the input is, and how; in place never without a check."""

    opened: Opened
    path: Path
    overwrite: bool = False
    in_place: bool = False
    check: bool = False
    max_shard_size: int | None = None

    def begin(self, plan: Plan, part: Plan, owner: dict[str, int] | None = None) -> Writing:
        """Open the sink, of `part` of the plan where other processes write the rest, and begin to copy. Use in a
        `with`.
        """
        from ..surgery.check import CheckedSink
        from ..surgery.execute import Writing, metadata_of
        from ..surgery.output import is_torch, open_sink

        source = self.opened.source
        metadata = partial(metadata_of, source, plan)
        longest = partial(metadata_of, source, plan.with_record(plan.longest)) if plan.longest else None
        sink = open_sink(
            self.path,
            source,
            plan,
            metadata,
            overwrite=self.overwrite or self.in_place,
            in_place=self.in_place,
            max_shard_size=self.max_shard_size,
            owner=owner,
            longest=longest,
        )
        checked = None
        if self.check or self.in_place:
            checked = CheckedSink(
                sink, part.slots, metadata, (source.root or ".") if is_torch(self.path, source) else None
            )
        return Writing(part, source, sink, checked)


def begin_early(command: str, edits: Sequence[Edit], output: Output, stack: ExitStack) -> Writing | None:
    """Begin to copy what no edit touches before torch is imported, where headers and tables foretell the plan."""
    from ..checkpoint.disk.interrupts import signals_held
    from ..surgery.foretell import foretell
    from ..surgery.output import is_torch

    # Several processes agree on a plan first; which tensors of a torch file are one, the edits' chains tell.
    if ranks.current().size > 1 or is_torch(output.path, output.opened.source):
        return None
    plan = foretell(command, edits, output.opened.source, output.opened.groups)
    if plan is None or not plan.copies:
        return None
    try:
        with signals_held():
            return stack.enter_context(output.begin(plan, plan))
    except ParamcliError:
        return None  # the output cannot be written: said after the plan, if that has nothing to say


def write_plan(
    screen: Screen, plan: Plan, output: Output, device: str = "cpu", early: Writing | None = None, verify: bool = False
) -> list:
    """Execute the plan into the output; `early` is what was begun for it, and is given up where it is for another.

    In a run of several processes each makes the tensors of its own shards; one file is written by the first alone.
    """
    from ..checkpoint.disk.interrupts import import_torch, signals_held
    from ..surgery.execute import execute
    from ..surgery.output import shards_of

    source, run, owner = output.opened.source, ranks.current(), None
    part, numbers = plan, list(range(len(plan.steps)))
    if run.size > 1:
        from ..surgery.shares import agree, gathered, owners, part_of

        agree(run, source, plan)
        shards = shards_of(output.path, source, plan, output.in_place, output.max_shard_size)
        if shards is None and not run.leads:
            return run.from_first("outcomes", lambda: None) or []
        if shards is None:
            screen.note(
                "one file is written by one process while the others wait; shards are shared out: paramcli convert -o FOLDER"
            )
        else:
            owner = owners(source, plan, shards, run.size)
            part, numbers = part_of(plan, shards, owner, run.rank)
    if early and not early.serves(plan):
        early.__exit__(None, None, None)
        early = None
    if any(step.computes for step in part.steps):
        import_torch()
    with ExitStack() as stack, screen.meter(plan.command, len(part.steps), part.nbytes) as meter:
        with signals_held():
            writing = early or stack.enter_context(output.begin(plan, part, owner))

        def progress(nbytes: int, tensors: int = 1) -> None:
            meter.advance(nbytes, tensors)
            run.check()

        outcomes = execute(part, writing, device, progress=progress, verify=verify)
    if run.size == 1:
        return outcomes
    if owner is None:
        run.from_first("outcomes", lambda: None)
        return outcomes
    return gathered(run, numbers, outcomes)


def finish_edit(
    screen: Screen,
    as_json: bool,
    plan,
    opened: Opened,
    output: Path,
    outcomes: Sequence,
    dry_run: bool,
    shown: object,
    left: list[str] | None = None,
    edits: Sequence[Edit] = (),
    checked: bool = False,
    replaces: bool = False,
) -> None:
    """The table or document on stdout, and on stderr what was written, what was not, and what to type next."""
    from ..chain import parse_chain
    from ..checkpoint.read.sharded import files_left
    from ..surgery.forecast import forecast
    from ..surgery.output import has_record, is_dcp_folder, is_file, is_torch, lost, untied

    source, left = opened.source, left or []
    dropped = left + lost(output, source, plan)
    costs = forecast(plan) if dry_run else None
    if as_json:
        screen.answer(
            document(
                edit_document(
                    plan.command,
                    source.path,
                    output,
                    dry_run,
                    outcomes,
                    plan.untouched,
                    dropped,
                    edits,
                    costs,
                    checked and not dry_run,
                )
            )
        )
    else:
        screen.show(shown)
    for outcome in outcomes:
        if outcome.note:
            screen.note(f"{printable(outcome.tensor)}: {outcome.note}")
    for outcome in outcomes:
        if outcome.residual is not None and not outcome.residual <= outcome.tolerance:
            screen.warn(
                f"{printable(outcome.tensor)} is off its constraint (residual {number_text(outcome.residual)}): verify will exit 1"
            )
    if set(dropped) - {OWN_RECORD}:
        screen.note(f"not carried over: {listing([name for name in dropped if name != OWN_RECORD], len(dropped))}")
    if source.root and has_record(output, source):
        screen.note(f"the names begin below {printable(source.root)}: safetensors has one level")
    if apart := untied(output, source, plan):
        what = "a DCP folder" if is_dcp_folder(output, source) else "safetensors"
        screen.note(f"tied tensors are stored once for each name, as {what} knows no ties: {listing(apart, 6)}")
    if source.shards and output != source.path and not is_file(output) and (files := files_left(source)):
        screen.note(f"left where they are: {listing(files, 12)}")
    if is_torch(output, source) and (plan.steps or left):
        _warn_of_optimizer(screen, source)
    if dry_run:
        screen.note(
            f"dry run: would write {printable_path(output)} ({size_text(plan.nbytes)}), {plan.untouched} tensors untouched"
        )
        screen.note(f"dry run: {costs}")
        if not replaces and os.path.lexists(output):
            screen.note(f"dry run: {printable_path(output)} exists already, and only --force replaces it")
        return
    screen.note(
        f"wrote {printable_path(output)}: {count_text(len(outcomes), 'tensor')} changed, {plan.untouched} untouched"
        + (", all read back and equal" if checked else "")
    )
    entries = plan.with_record(plan.longest).record.values()
    claims = any(
        entry.constraint or (entry.state == "parametrized" and parse_chain(entry.chain).claims) for entry in entries
    )
    if claims and not has_record(output, source):
        what = "DCP folder" if is_dcp_folder(output, source) else "torch file"
        views = {entry.view for entry in entries}
        view = "" if views == {None} else f" --view {views.pop()}" if len(views) == 1 else " and --view"
        screen.note(
            f"a {what} has no place for the record: verify it with --chain (baked: --constraint){view}, or write safetensors"
        )
    elif claims:
        screen.note(f"next: paramcli verify {shell_path(output)}")
    elif plan.steps and output != source.path and all(step.action in SAME_WEIGHT for step in plan.steps):
        root = f" --root {shlex.quote(printable(source.root or '.'))}" if len(source.roots) > 1 else ""
        screen.note(f"next: paramcli diff {shell_path(source.path)} {shell_path(output)}{root}")


def write_file(path: Path, data: bytes, overwrite: bool) -> None:
    """A picture or report, there whole or not at all."""
    from ..checkpoint.disk.atomic import AtomicFile

    with AtomicFile(path, overwrite=overwrite) as file:
        file.write_at(0, data)
        file.commit(len(data))


def _warn_of_optimizer(screen: Screen, source: Source) -> None:
    """An optimizer's state belongs to the parameters as they were: by position, in their order and shapes."""
    stale = [extra.name for extra in source.extras if extra.type == "optimizer state"]
    if stale:
        screen.warn(
            f"{listing(stale)} belongs to the tensors as they were: start the optimizer anew, or restore it by hand"
        )


def shell_path(path: Path) -> str:
    return shlex.quote(printable_path(path))
