"""The engine: open, plan, write once. What every editing command does, on the command line and in Python.

    headers and options -> plan -> execute: read, compute, write, fsync, rename -> EditResult

What is said meanwhile goes to a `Watch`; nothing here prints, and nothing decides by who is asking.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import ranks
from ..allocator import is_limited
from ..checkpoint.disk.building import sweep_after_run
from ..checkpoint.read.recognise import PICKLE
from ..devices import torch_device
from ..errors import PATH, InputRefused, Known, ParamcliError, UsageError, error_context
from ..spelling.opened import Opened, open_groups
from ..text import listing, printable
from ..watch import NOBODY, Watch
from ..wording import AS_SAFETENSORS, LEAVE_OUT, given, word
from .edits.convert import Convert, parse_size
from .output import (
    DEFAULT_SHARD_SIZE,
    FOREIGN_SUFFIXES,
    NOT_IN_PLACE,
    default_output,
    foretell_place,
    is_file,
    is_torch,
    open_sink,
    refuse_link_out,
    shards_of,
)
from .plan import Outcome, Plan
from .result import EditResult, result_of

if TYPE_CHECKING:
    from ..checkpoint.source import Source
    from .edits.base import Edit
    from .execute import Writing


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where and how a command reads and writes: the options that say so, as one value."""

    output: Path | None = None
    # `output` is named as a folder, by a slash at its end.
    slash: bool = False
    force: bool = False
    in_place: bool = False
    dry_run: bool = False
    root: str | None = None
    device: str = "cpu"
    ignore_record: bool = False
    check: bool = False
    sync: bool = True
    verify: bool = False

    @property
    def as_folder(self) -> bool:
        """Is the output asked for as a folder, by its slash or by what is there?"""
        return self.output is not None and (self.slash or os.path.isdir(self.output))


@contextmanager
def _in_options_of(edits: Sequence[Edit]) -> Iterator[None]:
    """What is to be done next, where no edit takes tensors by name: adapters say which those are."""
    try:
        yield
    except ParamcliError as error:
        for one in (error, *error.others):
            if one.advice and not any(edit.by_name for edit in edits):
                one.advice = type(one.advice)(one.advice.replace(LEAVE_OUT, "leave it out of the adapter"))
            if one.code == "not_found" and one.origin is not None and one.path is not None:
                beside = Path(one.origin.path).parent / one.path
                if os.path.exists(beside):
                    one.advice = Known(
                        f"beside the recipe it is {word(beside)}: a recipe's paths start where apply runs"
                    )
        raise


def edit(
    command: str,
    edits: Sequence[Edit],
    suffix: str,
    path: Path,
    target: Target,
    watch: Watch = NOBODY,
) -> EditResult:
    """Plan all edits of a checkpoint, and write what comes of them once."""
    with (
        open_groups(path, target.root, target.ignore_record, watch.note) as opened,
        ExitStack() as stack,
        error_context(path=path),
        _in_options_of(edits),
    ):
        ready = []
        for edit in edits:
            try:
                one, opened = edit.opening(opened, stack)
            except ParamcliError as error:
                error.origin = error.origin or edit.origin
                raise
            ready.append(one)
        edits = ready
        if len(edits) == 1 and not edits[0].origin:
            # A name that is not there is said before the output's faults.
            edits[0].choose(opened.groups, opened.source.path)
        destination = output_path(opened.source, path, target, suffix)
        output = Output.of(opened, destination, target)
        computes = any(edit.computes for edit in edits)
        early = begin_early(command, edits, output, stack) if computes and not target.dry_run else None
        # The sums take as long as importing torch does; of several processes each compares what it reads.
        if computes and early is None and not target.dry_run and output.run.size == 1:
            opened.source.check_ahead(opened.source.tensors)
        device = torch_device(target.device) if computes else "cpu"
        from .execute import preview
        from .sequence import plan_edits

        plan = plan_edits(command, edits, opened.source, opened.groups, stack)
        dry = target.dry_run
        if dry and not target.in_place:
            foretell_place(destination, opened.source, command)
        with _nothing_left(output):
            outcomes = preview(plan) if dry else write_plan(plan, output, device, early, target.verify, watch)
        return result_of(
            plan,
            opened,
            destination,
            outcomes,
            dry_run=target.dry_run,
            checked=target.check or target.in_place,
            replaces=target.force or target.in_place,
            edit=tuple(edits),
        )


def convert(
    job: Convert, path: Path, target: Target, max_shard_size: str | None = None, watch: Watch = NOBODY
) -> EditResult:
    """Write the tensors of a checkpoint in another container, split, under other names or in another dtype."""
    size = parse_size(max_shard_size) if max_shard_size else None
    with open_groups(path, target.root, target.ignore_record, watch.note) as opened:
        if target.output is None and (opened.source.shards or default_output(path, "") == path):
            what = "a folder of shards" if opened.source.shards else "safetensors already"
            raise UsageError(
                f"{PATH} is {what}: convert needs {given('output')}",
                hint=f"{given('output', 'FILE.safetensors')}, FILE.pt, FOLDER.dcp, or a FOLDER for shards",
                path=opened.source.path,
                option="output",
            )
        destination = output_path(opened.source, path, target, "")
        to_folder = target.output is not None and (destination.suffix == "" or target.as_folder)
        if size is None and to_folder and opened.source.home is None:
            size = DEFAULT_SHARD_SIZE
        if size is not None and is_file(destination):
            raise UsageError(
                f"{given('max-shard-size')} writes a folder of shards", hint=given("output", "FOLDER"), option="output"
            )
        plan, left = job.plan(opened.source, opened.groups, opened.source.path)
        if not plan.slots and not destination.name.endswith(".safetensors"):
            raise InputRefused(
                f"{PATH} holds no tensor, and of the containers only a safetensors file may hold none",
                hint=AS_SAFETENSORS,
                path=opened.source.path,
            )
        larger = [slot.name for slot in plan.slots if max_shard_size and size is not None and slot.nbytes > size]
        if larger:
            watch.note(f"larger than a shard may be, and each in a file of its own: {listing(larger, 4)}")
        if (uncast := job.uncast(opened.source, plan)) is not None:
            watch.note(uncast)
        if target.dry_run:
            from .execute import preview

            if not target.in_place:
                foretell_place(destination, opened.source, "convert")
            outcomes = preview(plan)
        else:
            output = Output.of(opened, destination, target, size)
            with _nothing_left(output):
                outcomes = write_plan(plan, output, watch=watch)
        return result_of(
            plan,
            opened,
            destination,
            outcomes,
            dry_run=target.dry_run,
            checked=target.check,
            replaces=target.force,
            left=left,
        )


def output_path(source: Source, asked: Path, target: Target, suffix: str) -> Path:
    """Where the result goes, of what was `asked` for; refused early where it could not be written there."""
    from ..checkpoint.disk.addresses import not_a_path
    from ..checkpoint.disk.atomic import refuse_existing
    from ..checkpoint.disk.hub import refuse_cache

    output, in_place = target.output, target.in_place
    if output is not None and (other := not_a_path(output)) is not None:
        raise UsageError(other[0], hint=f"{given('output')} a path on this machine", path=other[1], option="output")
    if output is not None and str(output) == "-":
        raise UsageError(
            "a checkpoint is written to a file, never to a pipe",
            hint=given("output", "FILE.safetensors"),
            option="output",
        )
    if in_place and output is not None:
        raise UsageError(f"{given('in-place', True)} and {given('output')} exclude each other", option="in-place")
    if not target.sync and (in_place or target.check):
        why = "replaces the input" if in_place else "compares what the disk gives back"
        option = "in-place" if in_place else "check"
        raise UsageError(
            f"{given(option, True)} {why}, so it waits for the disk, which {given('sync', False)} does not",
            hint=f"leave out {given('sync', False)}",
            option="sync",
        )
    if in_place:
        if source.container in NOT_IN_PLACE:
            folder = f"{given('output', 'FOLDER')} or FOLDER.dcp"
            raise UsageError(
                f"{given('in-place', True)} works on files of safetensors and torch.save, and on safetensors shards; "
                f"{PATH} is {NOT_IN_PLACE[source.container]}",
                hint=given("output", "FILE.safetensors") if source.container == PICKLE else folder,
                path=source.path,
                option="in-place",
            )
        refuse_cache(source.path)
        return source.path
    if output is not None and output.suffix.lower() in FOREIGN_SUFFIXES:
        raise UsageError(
            f"paramcli writes safetensors and torch checkpoints, not {printable(output.suffix)}",
            hint=f"{given('output', 'FILE.safetensors')}, FILE.pt or FOLDER.dcp",
            option="output",
        )
    if target.slash and output is not None and is_file(output):
        raise UsageError(
            f"{PATH} has a file's ending, and a folder's slash behind it",
            hint=f"{given('output', output)} for a file, or {given('output', 'FOLDER')}",
            path=output,
            option="output",
        )
    path = output if output is not None else default_output(asked, suffix, sharded=bool(source.shards))
    refuse_existing(path, target.force or target.dry_run)
    if output is None:
        refuse_link_out(path)
    refuse_cache(path)
    return path


@dataclass(frozen=True)
class Output:
    """Where a plan's result goes, a file or a folder as the input is, and how; in place never without a check."""

    opened: Opened
    path: Path
    overwrite: bool = False
    in_place: bool = False
    check: bool = False
    sync: bool = True
    max_shard_size: int | None = None
    as_folder: bool = False
    run: ranks.Alone = field(default_factory=ranks.current)

    @classmethod
    def of(cls, opened: Opened, path: Path, target: Target, max_shard_size: int | None = None) -> Output:
        """As the options say."""
        return cls(
            opened,
            path,
            overwrite=target.force,
            in_place=target.in_place,
            check=target.check,
            sync=target.sync,
            max_shard_size=max_shard_size,
            as_folder=target.as_folder,
        )

    def begin(self, plan: Plan, part: Plan, owner: dict[str, int] | None = None) -> Writing:
        """Open the sink, of `part` of the plan where other processes write the rest, and begin to copy. Use in a
        `with`.
        """
        from .check import CheckedSink
        from .execute import Writing, metadata_of

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
            sync=self.sync,
            max_shard_size=self.max_shard_size,
            as_folder=self.as_folder,
            run=self.run,
            owner=owner,
            longest=longest,
        )
        if self.check or self.in_place:
            at = source.root if source.tree is not None else ""
            root = (at or ".") if is_torch(self.path, source) else None
            sink = CheckedSink(sink, part.slots, metadata, root)
        return Writing(part, source, sink)


def begin_early(command: str, edits: Sequence[Edit], output: Output, stack: ExitStack) -> Writing | None:
    """Begin to copy what no edit touches before torch is imported, where headers and tables foretell the plan."""
    from ..checkpoint.disk.interrupts import signals_held
    from .foretell import foretell

    # Several processes agree on a plan first; which tensors of a torch file are one, the edits' chains tell. With too
    # little memory importing torch aborts the process, which removes no file.
    if output.run.size > 1 or is_torch(output.path, output.opened.source) or is_limited():
        return None
    plan = foretell(command, edits, output.opened.source, output.opened.groups)
    if plan is None or not plan.copies:
        return None
    try:
        with signals_held():
            return stack.enter_context(output.begin(plan, plan))
    except ParamcliError:
        return None  # the output cannot be written: said after the plan, if that has nothing to say


@contextmanager
def _nothing_left(output: Output) -> Iterator[None]:
    """Of a run of several processes that fails each takes away what a first one left that was killed, also where it had
    not heard of its folder yet.
    """
    try:
        yield
    except BaseException:
        if output.run.size > 1:
            sweep_after_run(output.path.absolute().parent)
        raise


def write_plan(
    plan: Plan,
    output: Output,
    device: str = "cpu",
    early: Writing | None = None,
    verify: bool = False,
    watch: Watch = NOBODY,
) -> list[Outcome]:
    """Execute the plan into the output; `early` is what was begun for it, and is given up where it is for another.

    In a run of several processes each makes the tensors of its own shards; one file is written by the first alone.
    """
    from ..checkpoint.disk.interrupts import import_torch, signals_held
    from .execute import execute

    source, run, owner = output.opened.source, output.run, None
    part, numbers = plan, list(range(len(plan.steps)))
    if run.size > 1:
        from .shares import agree, gathered, owners, part_of

        agree(run, source, plan)
        shards = shards_of(output.path, source, plan, output.in_place, output.max_shard_size, output.as_folder)
        if shards is None and not run.leads:
            run.from_first("outcomes", lambda: None)
            return []
        if shards is None:
            watch.note(
                "one file is written by one process while the others wait; shards are shared out: "
                "a folder of them is what can be shared out"
            )
        else:
            owner = owners(source, plan, shards, run.size)
            part, numbers = part_of(plan, shards, owner, run.rank)
    if early and not early.serves(plan):
        early.give_up()
        early = None
    if any(step.computes for step in part.steps):
        import_torch()
    with ExitStack() as stack, watch.meter(plan.command, len(part.steps), part.nbytes) as meter:
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
