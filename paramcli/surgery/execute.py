"""(Plan, Source) -> output, one tensor group in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .. import __version__
from ..checkpoint import record as records
from ..checkpoint.source import Source, tensor_bytes
from ..checkpoint.header import Slot
from ..errors import error_context
from .plan import Outcome, Plan


def metadata_of(source: Source, record: Mapping[str, records.Entry]) -> dict[str, str]:
    """The input's metadata with the new record; `format: pt` is what loaders look for."""
    metadata = {key: value for key, value in source.metadata.items() if key != records.KEY}
    metadata.setdefault("format", "pt")
    if record:
        metadata[records.KEY] = records.record_text(dict(record), __version__)
    return metadata


def execute(plan: Plan, source: Source, sink: object, device: str = "cpu", compute: str = "same",
            progress: Callable[[int], None] = lambda nbytes: None) -> list[Outcome]:
    """Write everything the plan says into an open sink and commit it. The sink cleans up after any failure."""
    outcomes = []
    for step in plan.steps:
        with error_context(tensor=step.group.tensor, path=source.path):
            if step.run is None:
                sink.copy(source, step.renames.items())
                outcomes.append(step.outcome(moved=None))
                continue
            tensors, told = step.run(source, device, compute)
            for slot in step.writes:
                tensor = tensors[slot.name].detach().cpu().contiguous()
                _check_promise(tensor, slot)
                sink.write(slot.name, tensor_bytes(tensor))
            outcomes.append(step.outcome(**told))
        progress(sum(slot.nbytes for slot in step.writes))
    sink.copy(source, plan.copies)
    source.check_unchanged()
    sink.commit()
    return outcomes


def _check_promise(tensor: object, slot: Slot) -> None:
    from ..dtypes import code_of

    if code_of(tensor.dtype) != slot.dtype or tuple(tensor.shape) != tuple(slot.shape):
        raise AssertionError(f"{slot.name}: planned {slot.dtype} {slot.shape}, made {tensor.dtype} {tuple(tensor.shape)}")


def preview(plan: Plan) -> list[Outcome]:
    """What --dry-run shows: the same list without the numbers that need data."""
    return [step.outcome() for step in plan.steps]
