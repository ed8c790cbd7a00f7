"""(Plan, Source) -> output, one tensor group in memory at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, ParamSpec, Protocol, TypeVar

from .. import __version__
from ..allocator import Holes, share_one_heap
from ..checkpoint.disk.interrupts import signals_held
from ..checkpoint.header import Slot
from ..checkpoint.source import Source, tensor_bytes
from ..checkpoint.write.writer import Sink
from ..errors import CheckFailed, InputRefused, ParamcliError, error_context
from ..fitting.costs import PART
from ..registry import target_class
from ..spelling import record as records
from ..spelling.quantized_comfyui import metadata_without
from ..spelling.record import Entry
from ..text import count_text, number_text
from ..wording import given
from .plan import UNTOLD, Block, Made, Outcome, Plan, Step, Told, computed

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor
    from pathlib import Path

    from torch import Tensor

    from ..fitting.evaluate import Tensors

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Progress(Protocol):
    """Told of each so many bytes, and tensors, that are done."""

    def __call__(self, nbytes: int, tensors: int = 1) -> None: ...


def metadata_of(source: Source, plan: Plan, keys: Iterable[str]) -> dict[str, str]:
    """The metadata of a file with these of the plan's keys: the input's, and the record of the tensors they belong to.

    `format: pt` is what loaders look for.
    """
    decoded = [step.group.tensor for step in plan.steps if step.decodes]
    metadata = metadata_without({key: text for key, text in source.metadata.items() if key != records.KEY}, decoded)
    metadata.setdefault("format", "pt")
    names = {plan.recorded[key] for key in keys if plan.recorded.get(key) in plan.record}
    if names:
        metadata[records.KEY] = records.record_text({name: plan.record[name] for name in names}, __version__)
    return metadata


class Writing:
    """An output while it is filled: its open sink, the threads that work for it, and the copying, begun at once.

    Three threads beside the main one: one copies what is untouched (two more help it with checksums), one reads the
    next tensors, one writes the last ones; others compare the checksums of what will be read. Use in a `with`; what is
    not committed by then is given up.
    """

    def __init__(self, plan: Plan, source: Source, sink: Sink):
        self.plan, self.source, self.sink = plan, source, sink
        self._opened = ExitStack()
        self._finished = False
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Writing:
        from concurrent.futures import ThreadPoolExecutor

        share_one_heap()
        with ExitStack() as opened:
            opened.enter_context(self.sink)
            opened.callback(self._stop)
            self._pool = ThreadPoolExecutor(3)
            self.source.check_ahead(
                key for step in self.plan.steps if not step.renames for key in step.group.keys.values()
            )
            renames = [pair for step in self.plan.steps for pair in step.renames.items()]
            self.copying = self.begin(self.sink.copy, self.source, [*self.plan.copies, *renames])
            self._opened = opened.pop_all()
        return self

    def begin(
        self, function: Callable[Parameters, Result], *arguments: Parameters.args, **named: Parameters.kwargs
    ) -> Future[Result]:
        """Have it done by one of the threads."""
        assert self._pool is not None, "used in a `with`"
        return self._pool.submit(function, *arguments, **named)

    def serves(self, plan: Plan) -> bool:
        """Is what was begun for one plan right for this one too?"""
        mine = self.plan
        promised = mine.copies == plan.copies and mine.record == plan.record and mine.longest == plan.longest
        return promised and sorted(mine.slots, key=_name) == sorted(plan.slots, key=_name)

    def finish(self) -> None:
        """Wait until everything that was begun is done, and raise what went wrong in it."""
        self.copying.result()
        if self._pool is not None:
            self._pool.shutdown()
        self._finished = True

    def give_up(self) -> None:
        """Leave before anything is committed; leaving the `with` once more does nothing."""
        self._opened.close()

    def __exit__(self, *exception: object) -> None:
        self._opened.close()

    def _stop(self) -> None:
        """End the threads; the sink is left after that, also where a signal that was held is raised here."""
        # It must not leave a thread writing to a descriptor that the sink is about to close.
        with signals_held():
            if not self._finished:
                self.sink.abandon()
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def _name(slot: Slot) -> str:
    return slot.name


def execute(
    plan: Plan,
    writing: Writing,
    device: str = "cpu",
    compute: str = "same",
    progress: Progress = lambda nbytes, tensors=1: None,
    verify: bool = False,
) -> list[Outcome]:
    """Write everything the plan says and commit it. The sink cleans up after any failure.

    `verify`: nothing is committed unless every residual that was measured is within its tolerance; CheckFailed says
    which.
    """
    outcomes: dict[int, Outcome] = {}
    settled: dict[str, Entry] = {}
    for number, told in _worked(plan, writing, device, compute, progress):
        step = plan.steps[number]
        if told.record is not None and told.record != step.record:
            settled[step.group.tensor] = told.record
        outcomes[number] = step.outcome(told)
    writing.finish()
    in_order = [outcomes[number] for number in range(len(plan.steps))]
    if verify:
        require_all_hold(in_order)
    if settled:
        writing.sink.amend(functools.partial(metadata_of, writing.source, plan.with_record(settled)))
    writing.source.check_unchanged()
    writing.sink.commit()
    return in_order


def _worked(plan: Plan, writing: Writing, device: str, compute: str, progress: Progress) -> Iterator[tuple[int, Told]]:
    """(the number of a step, what is told of it) for each that is computed and written, then for those that were
    copied; all is written when it ends.
    """
    source, sink = writing.source, writing.sink
    batches = batched([(number, step) for number, step in enumerate(plan.steps) if step.computes])
    ahead: Future[Held] | None = None
    written: Future[None] | None = None
    holes = Holes()
    for batch, following in zip(batches, [*batches[1:], None], strict=False):  # where there is none, None follows none
        if (step := batch[0][1]).ranges:
            if written:
                written.result()
            with error_context(tensor=step.group.tensor, path=source.path):
                told, written = _by_rows(step, writing, device, compute, progress)
            yield batch[0][0], told
            continue
        held = ahead.result() if ahead else _read(source, batch)
        ahead = writing.begin(_read, source, following) if following and _reads_ahead(following) else None
        made = _computed([step for _, step in batch], held, device, compute)
        for (number, step), (tensors, told) in zip(batch, made, strict=True):
            with error_context(tensor=step.group.tensor, path=source.path):
                ready = [(slot.name, tensor_bytes(_promised(tensors[slot.name], slot))) for slot in step.writes]
            if written:
                written.result()
            written = writing.begin(_write, sink, ready)
            del tensors, ready
            if step.nbytes > AHEAD_BYTES:
                written.result()
            progress(sum(slot.nbytes for slot in step.writes))
            yield number, told
        holes.tidy(_nbytes(batch))
        if writing.copying.done():
            writing.copying.result()  # a failure there ends the work here
    for number, step in enumerate(plan.steps):
        if not step.computes:
            progress(sum(slot.nbytes for slot in step.writes))
            yield number, UNTOLD
    if written:
        written.result()


def _reads_ahead(batch: Sequence[tuple[int, Step]]) -> bool:
    return not batch[0][1].ranges and _nbytes(batch) <= AHEAD_BYTES


def require_all_hold(outcomes: Sequence[Outcome]) -> None:
    off = [(*beyond, outcome.tensor) for outcome in outcomes if (beyond := outcome.beyond)]
    if off:
        residual, tolerance, tensor = max(off, key=lambda one: one[0] / one[1] if one[1] else math.inf)
        more = f" ({count_text(len(off) - 1, 'more tensor')} off too)" if len(off) > 1 else ""
        numbers = f"(residual {number_text(residual)}, tolerance {number_text(tolerance)})"
        raise CheckFailed(
            f"the constraint does not hold {numbers}{more}",
            tensor=tensor,
            hint=f"without {given('verify', True)} it is written all the same",
        )


# Tensors up to this size are read ahead of need and written behind the work; larger ones would double the memory.
AHEAD_BYTES = 64 << 20
# What a stack of small tensors may take together, and the size up to which a tensor joins one.
STACK_BYTES = 8 << 20
# Stacks of at least this many entries are worth several threads, which take parts of about PART entries.
SHARED_OUT = 1 << 18


class Held:
    """Tensors that were read ahead, standing for their source: each is given away once."""

    def __init__(self, source: Source, tensors: dict[str, Tensor]):
        self._source, self._tensors = source, tensors
        self.path: Path = source.path
        self.tells_strides, self.files, self.beside = source.tells_strides, source.files, source.beside

    def read(self, name: str) -> Tensor:
        return self._tensors.pop(name) if name in self._tensors else self._source.read(name)


def batched(steps: Sequence[tuple[int, Step]]) -> list[list[tuple[int, Step]]]:
    """Steps that are computed at once: stackable ones of one key up to STACK_BYTES together, every other one alone,
    and so is one that is computed by rows.
    """
    batches: list[list[tuple[int, Step]]] = []
    growing: dict[Hashable, tuple[list[tuple[int, Step]], int]] = {}
    for number, step in steps:
        if step.stack_key is None or step.ranges:
            batches.append([(number, step)])
            continue
        batch, room = growing.get(step.stack_key, ([], 0))
        if room < step.nbytes:
            batch, room = [], STACK_BYTES
            batches.append(batch)
        batch.append((number, step))
        growing[step.stack_key] = batch, room - step.nbytes
    return batches


def _nbytes(batch: Sequence[tuple[int, Step]]) -> int:
    return sum(step.nbytes for _, step in batch)


def _read(source: Source, batch: Sequence[tuple[int, Step]]) -> Held:
    tensors = {}
    for _, step in batch:
        with error_context(tensor=step.group.tensor, path=source.path):
            tensors.update({key: source.read(key) for key in step.group.keys.values()})
    return Held(source, tensors)


def _write(sink: Sink, ready: Sequence[tuple[str, memoryview]]) -> None:
    for name, data in ready:
        sink.write(name, data)


def _by_rows(
    step: Step, writing: Writing, device: str, compute: str, progress: Progress
) -> tuple[Told, Future[None] | None]:
    """(what a large step tells, the writing of its last block): one block is computed while the next is read and the
    last written.
    """
    source, begin, ranges = writing.source, writing.begin, step.ranges
    work = step.work([step], source, device, compute, ranges)
    ahead: Future[Block] | None = begin(work.read, ranges[0])
    written: Future[None] | None = None
    done = dict.fromkeys((slot.name for slot in step.writes), 0)
    try:
        for index, rows in enumerate(ranges):
            assert ahead is not None  # begun with the block before
            block, ahead = ahead.result(), None
            if index + 1 < len(ranges):
                ahead = begin(work.read, ranges[index + 1])
            with threads_for(step):
                [made] = work.make(rows, block)
            del block
            parts = [replace(slot, shape=(rows[1] - rows[0], *slot.shape[1:])) for slot in step.writes]
            ready = [(slot.name, done[slot.name], tensor_bytes(_promised(made[slot.name], slot))) for slot in parts]
            if written:
                written.result()
            written = begin(_write_parts, writing.sink, ready)
            for slot in parts:
                done[slot.name] += slot.nbytes
            del made, ready
            progress(sum(slot.nbytes for slot in parts), int(rows == ranges[-1]))
            if writing.copying.done():
                writing.copying.result()  # a failure there ends the work here
        with threads_for(step):
            [told] = work.told()
        assert told is not None  # it is alone
    except (InputRefused, CheckFailed):
        _compare_checksums(step, source)  # what is wrong with damaged bytes is the damage
        raise
    _compare_checksums(step, source)
    return told, written


def _compare_checksums(step: Step, source: Source) -> None:
    """Raise InputRefused where a tensor's bytes are not those that its container recorded; they were read without
    asking.
    """
    for info in step.group.infos.values():
        source.check_storage(info.storage)


def _write_parts(sink: Sink, ready: Sequence[tuple[str, int, memoryview]]) -> None:
    for name, at, data in ready:
        sink.write_part(name, at, data)


def _computed(steps: Sequence[Step], held: Held, device: str, compute: str) -> Iterator[Made]:
    """What each step makes."""
    several: list[Made | None] = [None] * len(steps)
    if len(steps) > 1:
        try:
            with error_context(), threads_for(steps[0]) as threads:
                several = by_parts(steps, held, device, compute, threads)
        except ParamcliError:
            pass  # what is wrong is said of one alone
    for step, made in zip(steps, several, strict=True):
        if made is None:
            with error_context(tensor=step.group.tensor, path=held.path), threads_for(step):
                made = step.run(held, device, compute)
        yield made
        del made


def together(steps: Sequence[Step], source: Tensors, device: str, compute: str) -> list[Made | None]:
    """What steps of one `stack_key` make, found by halves where one of them is refused; None for one that has something
    to say: alone, it says it of itself.
    """
    try:
        with error_context():
            return computed(steps, source, device, compute)
    except ParamcliError:
        if len(steps) == 1:
            return [None]
        half = len(steps) // 2
        return [made for part in (steps[:half], steps[half:]) for made in together(part, source, device, compute)]


def by_parts(steps: Sequence[Step], source: Tensors, device: str, compute: str, threads: int) -> list[Made | None]:
    """What steps of one `stack_key` make together, as of `together`.

    Kernels go through a stack one matrix after another, so it is taken in parts, each small enough for what is between
    its input and its result to stay in a core's cache; by threads in turn, where no link has a module for each tensor:
    those may draw, and torch has one generator for all threads.
    """
    entries = math.prod(steps[0].group.shape)
    if device != "cpu" or len(steps) * entries < SHARED_OUT:
        return together(steps, source, device, compute)
    size = max(1, PART // entries)
    parts = [steps[at : at + size] for at in range(0, len(steps), size)]
    if threads == 1 or not _is_batch(steps[0]):
        return [one for part in parts for one in together(part, source, device, compute)]
    import torch

    before = torch.get_num_threads()
    try:
        made = _pool(threads).map(lambda part: together(part, source, device, compute), parts)
        return [one for part in made for one in part]
    finally:
        torch.set_num_threads(before)  # torch keeps one number for all threads


def _is_batch(step: Step) -> bool:
    """Has every link of its chain kernels for a batch?"""
    return step.chain is not None and all(target_class(link.entry).stacks for link in step.chain.links)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads for `by_parts`, each of which lets torch use itself alone; kept, as linear algebra is slow in a new
    thread.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))


def threads_for(step: Step) -> AbstractContextManager[int]:
    """`fitting.threads.threads_for` of its tensor: while a pass over memory runs, the reader and the writer have the
    other cores.
    """
    from ..fitting.threads import threads_for

    return threads_for(step.group.shape, _threads_matter(step))


def _threads_matter(step: Step) -> bool:
    if step.chain is None or len(step.edits) > 1:
        return True
    return any(target_class(link.entry).threads_matter(**link.arguments) for link in step.chain.links)


def _promised(tensor: Tensor, slot: Slot) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    _check_promise(tensor, slot)
    return tensor


def _check_promise(tensor: Tensor, slot: Slot) -> None:
    from ..dtypes import code_of

    if code_of(tensor.dtype) != slot.dtype or tuple(tensor.shape) != tuple(slot.shape):
        raise AssertionError(
            f"{slot.name}: planned {slot.dtype} {slot.shape}, made {tensor.dtype} {tuple(tensor.shape)}"
        )


def preview(plan: Plan) -> list[Outcome]:
    """What --dry-run shows: the same list without the numbers that need data."""
    return [step.outcome() for step in plan.steps]
