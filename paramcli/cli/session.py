"""What every command does around its own work: open, select, write, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint import record as records
from ..checkpoint.forms import Group, detect
from ..checkpoint.open import open_checkpoint
from ..checkpoint.source import Source
from ..console import Screen, edit_table
from ..errors import InputRefused, UsageError, error_context
from ..report import document, edit_document
from ..spec import select
from ..text import count_text, listing, printable, printable_path, size_text

COMPUTE_DTYPES = ("same", "float32", "float64")


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
    source = open_checkpoint(path, root)
    try:
        with error_context(path=path):
            for note in source.notes:
                screen.note(note)
            record = {} if ignore_record else records.parse_record(source.metadata.get(records.KEY))
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
    if device == "cpu":
        return device
    import torch

    have_cuda, have_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if have_cuda else "mps" if have_mps else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if have_cuda else 0
        if not have_cuda:
            why = "this torch is built without CUDA" if not torch.backends.cuda.is_built() else "torch finds no CUDA device"
            raise UsageError(f"--device {device}: {why}", hint="--device cpu, or --device auto")
        if ":" in device and int(device[5:]) >= count:
            raise UsageError(f"--device {device}: there are {count}, cuda:0 to cuda:{count - 1}")
    elif not have_mps:
        raise UsageError("--device mps: torch finds no Metal device", hint="--device cpu, or --device auto")
    return device


def check_compute(name: str) -> str:
    if name not in COMPUTE_DTYPES:
        raise UsageError(f"--compute-dtype {printable(name)}: not one of {', '.join(COMPUTE_DTYPES)}")
    return name


def output_path(source: Source, output: Path | None, in_place: bool, suffix: str, overwrite: bool) -> Path:
    """Where the result goes; refused early where it could not be written there."""
    from ..checkpoint.atomic import refuse_existing
    from ..surgery.output import default_output

    if in_place and output is not None:
        raise UsageError("--in-place and --output exclude each other")
    if in_place:
        return source.path if source.container != "sharded torch" else _no_in_place(source)
    path = output if output is not None else default_output(source.path, suffix)
    refuse_existing(path, overwrite)
    return path


def _no_in_place(source: Source) -> Path:
    raise UsageError("--in-place works on files and on safetensors shards; these are torch shards", hint="-o FOLDER", path=source.path)


def tie(opened: Opened, chosen: Sequence[Group], how: str | None) -> list[Group]:
    """The chosen groups with --tied applied; InputRefused where an edit would silently untie a tensor.

    together: every name of a tied tensor gets the edit, and the same random numbers. separate: only the chosen ones.
    """
    if how not in (None, "together", "separate"):
        raise UsageError(f"--tied {printable(how)}: together or separate")
    groups = list(chosen)
    keys = {key for group in groups for key in group.keys.values()}
    owner = {key: group for group in opened.groups.values() for key in group.keys.values()}
    for names in opened.source.tied():
        touched = [name for name in names if name in keys]
        if not touched or how == "separate":
            continue
        if how is None and len(touched) < len(names):
            raise InputRefused(
                f"{' and '.join(printable(n) for n in names)} are one tensor (they share storage); editing one would untie them",
                hint="--tied together edits each of them alike, --tied separate unties them",
                tensor=touched[0],
                path=opened.source.path,
            )
        first = owner[names[0]].tensor
        have = {group.tensor for group in groups}
        groups += [owner[name] for name in names if owner[name].tensor not in have]
        members = {owner[name].tensor for name in names}
        groups = [replace(group, twin=first) if group.tensor in members else group for group in groups]
    return groups


def write_plan(
    plan, opened: Opened, output: Path, *, force: bool, in_place: bool, check: bool = False, device: str = "cpu", compute: str = "same", max_shard_size: int | None = None
) -> list:  # fmt: skip
    """Execute the plan into the output, a file or a folder as the input is; in place never without a check."""
    from ..surgery.check import CheckedSink
    from ..surgery.execute import execute, metadata_of
    from ..surgery.output import is_torch, open_sink

    source = opened.source
    metadata = metadata_of(source, plan.record)
    with open_sink(output, source, plan, metadata, overwrite=force or in_place, in_place=in_place, max_shard_size=max_shard_size) as sink:
        if check or in_place:
            sink = CheckedSink(sink, plan.slots, metadata, (source.root or ".") if is_torch(output) else None)
        return execute(plan, source, sink, device, compute)


def finish_edit(
    screen: Screen, as_json: bool, plan, opened: Opened, output: Path, outcomes: Sequence, dry_run: bool, left: list[str] | None = None, table: Callable = edit_table,
    checked: bool = False,
) -> None:
    """The table or document on stdout, and on stderr what was written, what was not, and what to type next."""
    from ..surgery.output import is_torch

    source, left = opened.source, left or []
    to_torch = is_torch(output)
    dropped = left + ([] if to_torch else [extra.name for extra in source.extras])
    if to_torch and (source.metadata or plan.record):
        dropped += [f"metadata {name}" for name in sorted({*source.metadata, *(["paramcli"] if plan.record else [])} - {"format"})]
    if as_json:
        screen.answer(document(edit_document(plan.command, source.path, output, dry_run, outcomes, plan.untouched, dropped, checked and not dry_run)))
    else:
        screen.show(table(outcomes))
    for outcome in outcomes:
        if outcome.note:
            screen.note(f"{printable(outcome.tensor)}: {outcome.note}")
    if dropped:
        screen.note(f"not carried over: {listing(dropped, 12)}")
    _warn_of_optimizer(screen, source, plan, to_torch)
    if dry_run:
        screen.note(f"dry run: would write {printable_path(output)} ({size_text(plan.nbytes)}), {plan.untouched} tensors untouched")
        return
    screen.note(f"wrote {printable_path(output)}: {count_text(len(outcomes), 'tensor')} changed, {plan.untouched} untouched" + (", all read back and equal" if checked else ""))
    claims = any(entry.constraint or entry.state == "parametrized" for entry in plan.record.values())
    if claims and not to_torch:
        screen.note(f"next: paramcli verify {shell_path(output)}")


def _warn_of_optimizer(screen: Screen, source: Source, plan, to_torch: bool) -> None:
    """An optimizer's state belongs to the parameters as they were: by position, in their order and shapes."""
    stale = [extra.name for extra in source.extras if extra.type == "optimizer state"]
    if to_torch and stale and plan.steps:
        screen.warn(f"{listing(stale)} belongs to the tensors as they were: start the optimizer anew, or restore it by hand")


def shell_path(path: Path) -> str:
    import shlex

    return shlex.quote(printable_path(path))
