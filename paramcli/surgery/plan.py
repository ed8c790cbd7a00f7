"""(checkpoint headers, edit) -> Plan: every output name, dtype and shape before a tensor is read.

A plan is made of steps, one for each edited tensor, and copies, one for each tensor that is not.
Refusals that headers decide are all raised here, together, so that nothing is half done.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from ..chain import Chain
from ..checkpoint.header import Slot
from ..checkpoint.source import Rows, Source
from ..dtypes import dtype_name, kind_of, nbytes_of
from ..errors import PATH, TENSOR, InputRefused, ParamcliError
from ..spelling.forms import Group
from ..spelling.quantized_comfyui import spent_markers
from ..spelling.record import Entry
from ..text import size_text
from ..view import IDENTITY, View
from ..wording import LEAVE_OUT, call, given, in_python

if TYPE_CHECKING:
    from torch import Tensor

    from ..fitting.evaluate import Tensors

# A base as square as the longer side makes a long and narrow tensor many times larger. Past this factor a plan says
# so, if it is worth a word at all, and is refused where it is more than a slip should cost.
GROWTH, WORTH_A_WORD, TOO_MUCH = 16, 16 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one tensor; numbers are None where nothing was computed."""

    tensor: str
    action: str
    chain: str | None
    view: str | None
    shape: tuple[int, ...]
    dtype: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    moved: float | None = None
    residual: float | None = None
    tolerance: float | None = None
    remark: str | None = None
    # The chain as a person reads it; the dtype of the weight that is written, where it is in one tensor.
    short: str | None = None
    written: str | None = None

    @property
    def note(self) -> str | None:
        """What a person should know."""
        return self.remark and in_python(self.remark)

    @property
    def beyond(self) -> tuple[float, float] | None:
        """(residual, tolerance), where a residual was measured that is beyond its tolerance."""
        if self.residual is None or self.tolerance is None or self.residual <= self.tolerance:
            return None
        return self.residual, self.tolerance

    @property
    def off(self) -> bool:
        """Was a residual measured that is beyond its tolerance?"""
        return self.beyond is not None

    def document(self, speak: Callable[[str], str] = in_python) -> dict[str, object]:
        return {
            "tensor": self.tensor,
            "action": self.action,
            "chain": self.chain,
            "view": self.view,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "moved": self.moved,
            "residual": self.residual,
            "tolerance": self.tolerance,
            "reads": list(self.reads),
            "writes": list(self.writes),
            **({"note": speak(self.remark)} if self.remark else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a step's work says of its tensor: as of `Outcome`, and as of `Step` where that leaves it to the data."""

    moved: float | None = None
    residual: float | None = None
    tolerance: float | None = None
    note: str | None = None
    chain: Chain | None = None
    record: Entry | None = None


UNTOLD = Told()

# The blocks of rows of a large tensor.
Ranges = tuple[tuple[int, int], ...]
# A block of tensors, by role; and what is written, by key.
Block: TypeAlias = "Mapping[str, Tensor]"
Written: TypeAlias = "Mapping[str, Tensor]"
# What a step makes, and says of it.
Made: TypeAlias = "tuple[Written, Told]"
# (source, device, dtype to compute in) -> what a step on whole tensors makes.
Work: TypeAlias = "Callable[[Tensors, str, str], Made]"


class StepWork(Protocol):
    """Steps at work, on one block of their tensors after another, in order: blocks of rows, or (None) the only one."""

    def read(self, rows: Rows) -> Block:
        """The block; may run ahead in another thread."""

    def make(self, rows: Rows, block: Block) -> Sequence[Written]:
        """What each step writes for it, by key."""

    def told(self) -> Sequence[Told | None]:
        """What is said of each step, after the last block; refusals that need the whole tensor may come here. None:
        of several, for one that has more to say and is to be done alone.
        """


Begin: TypeAlias = "Callable[[Sequence[Step], Tensors, str, str, Ranges], StepWork]"


class Once:
    """The work of one step on whole tensors, where that is one function of the source, the device and the dtype."""

    def __init__(self, function: Work, source: Tensors, device: str, compute: str):
        self._function, self._source, self._device, self._compute = function, source, device, compute
        self._told = UNTOLD

    def read(self, rows: Rows) -> Block:
        """What the function reads it reads itself."""
        return {}

    def make(self, rows: Rows, block: Block) -> list[Written]:
        made, self._told = self._function(self._source, self._device, self._compute)
        return [made]

    def told(self) -> list[Told]:
        return [self._told]


def once(function: Work) -> Begin:
    """`Step.begin` of a step whose work is this function."""
    return lambda steps, source, device, compute, ranges: Once(function, source, device, compute)


class Asked(Protocol):
    """An edit, as far as its steps know it."""

    @property
    def command(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor's edit: the keys it reads, the slots it writes, and the work between them.

    `begin` starts the work; it is None for a step that only renames, whose `renames` (new key -> old key) are then
    copied byte for byte.
    """

    group: Group
    action: str
    writes: tuple[Slot, ...]
    chain: Chain | None = None
    view: View = IDENTITY
    # (steps, source, device, compute, ranges) -> their work: of this step alone, or of several of one `stack_key`,
    # equal in shape, dtype, chain and options; by these ranges of rows, or (none) whole. Where the work of several
    # raises, each is done alone, so that the error is its own.
    begin: Begin | None = None
    renames: Mapping[str, str] = field(default_factory=dict)
    # What the record says of the tensor afterwards; None takes it out. Where the data decide it (`longest` is given),
    # the work tells it, and this is what headers know of it.
    record: Entry | None = None
    # The longest word on the tensor that the data can lead to: the output keeps room for it.
    longest: Entry | None = None
    # The edits it carries out, in order.
    edits: tuple[Asked, ...] = ()
    # What the headers alone tell that a person should know.
    note: str | None = None
    stack_key: Hashable = None
    # The blocks of rows of what a step on a large tensor reads and writes; none where it is computed whole.
    ranges: Ranges = ()

    @property
    def decodes(self) -> bool:
        """Is what it writes the weight that codes stand for?"""
        return self.group.in_codes and [slot.name for slot in self.writes] == [self.group.tensor]

    @property
    def computes(self) -> bool:
        """Is there work to do, beyond copying?"""
        return self.begin is not None

    def run(self, source: Tensors, device: str, compute: str) -> Made:
        """What this step makes by itself, its tensors whole."""
        [made] = computed([self], source, device, compute)
        assert made is not None  # it is alone
        return made

    @property
    def nbytes(self) -> int:
        """Bytes read and written: what holding the step's tensors takes."""
        return sum(info.nbytes for info in self.group.infos.values()) + sum(slot.nbytes for slot in self.writes)

    def outcome(self, told: Told = UNTOLD) -> Outcome:
        chain = told.chain or self.chain
        return Outcome(
            tensor=self.group.tensor,
            action=self.action,
            chain=None if chain is None else str(chain),
            view=self.view.text,
            shape=self.group.shape,
            dtype=dtype_name(self.group.dtype),
            reads=tuple(self.group.keys.values()),
            writes=tuple(slot.name for slot in self.writes),
            moved=told.moved,
            residual=told.residual,
            tolerance=told.tolerance,
            remark="; ".join(filter(None, (self.note, told.note))) or None,
            # Where the data would decide between several, all of them are there still.
            written=next((dtype_name(slot.dtype) for slot in self.writes if slot.name == self.group.tensor), None),
            short=" or ".join(one.short for one in ([chain] if chain is not None else self.group.chains)) or None,
        )

    def work(self, steps: Sequence[Step], source: Tensors, device: str, compute: str, ranges: Ranges = ()) -> StepWork:
        """`begin`, of a step that computes."""
        assert self.begin is not None, f"{self.action} computes nothing"
        return self.begin(steps, source, device, compute, ranges)


def computed(steps: Sequence[Step], source: Tensors, device: str, compute: str) -> list[Made | None]:
    """What steps of one `stack_key` make, or one step, their tensors whole; of several None for one that is to be done
    alone.
    """
    work = steps[0].work(steps, source, device, compute)
    made = work.make(None, work.read(None))
    return [None if told is None else (one, told) for one, told in zip(made, work.told(), strict=True)]


@dataclass(frozen=True)
class Plan:
    """Everything that will be written."""

    command: str
    steps: tuple[Step, ...]
    copies: tuple[tuple[str, str], ...]  # (key in the output, key in the input)
    slots: tuple[Slot, ...]
    record: Mapping[str, Entry]
    # Key in the output -> the tensor of the record that it is a part of.
    recorded: Mapping[str, str]
    # The entries of the record that data decide, as long as they can become.
    longest: Mapping[str, Entry] = field(default_factory=dict)

    def with_record(self, entries: Mapping[str, Entry]) -> Plan:
        """The plan with these entries of the record in place of what headers knew."""
        return replace(self, record={**self.record, **entries})

    @property
    def untouched(self) -> int:
        return len(self.copies)

    @property
    def nbytes(self) -> int:
        return sum(slot.nbytes for slot in self.slots)


class Promise(NamedTuple):
    """What a step will write, and what the record will say of its tensor: as of `Step`."""

    slots: tuple[Slot, ...]
    record: Entry | None
    longest: Entry | None = None


def baked(group: Group) -> Promise:
    """The value in place of its originals; the record keeps the constraint that it satisfies, where a chain says one.

    The data have a word in it: which of several chains it is, and how far beyond rounding its own tensors left the
    value.
    """
    slots = (Slot(group.tensor, group.dtype, group.shape),)
    fitting = group.chains
    seen = group.view.shape(group.shape) if fitting else ()
    chains = [chain.at(seen) for chain in fitting]
    entries = [Entry("baked", chain, group.view, group.constraint or chain.constraint) for chain in chains]
    record = entries[0] if group.chain else None
    if not group.alternatives and not any(keeps_within(group, chain) for chain in chains):
        return Promise(slots, record)
    widest = [
        replace(entry, constraint=chain.widest_constraint if keeps_within(group, chain) else entry.constraint)
        for entry, chain in zip(entries, chains, strict=True)
    ]
    return Promise(slots, record, longest_of(widest))


def longest_of(entries: Sequence[Entry]) -> Entry:
    """The one that takes the most room in a record."""
    return max(entries, key=lambda entry: len(str(entry.chain)) + len(entry.constraint or "null"))


def keeps_within(group: Group, chain: Chain) -> bool:
    """Does the record of its value keep how far that may be from the chain's constraint? Not where it holds it to
    another one.
    """
    return bool(chain.links[-1].entry.keeps) and group.constraint in (None, chain.constraint)


def assigned(group: Group) -> Promise:
    """Other values under the same keys."""
    return Promise(
        tuple(Slot(key, group.infos[role].dtype, group.infos[role].shape) for role, key in group.keys.items()),
        group.record,
    )


def refuse_odd(source: Source, copies: Iterable[tuple[str, str]]) -> None:
    """Raise InputRefused where a tensor that is to be copied (name in the output, key in the input) cannot be."""
    found = {}
    for name, key in copies:
        odd = source.tensors[key].odd
        if odd is not None and not (odd.by_name and name != key):
            found[key] = odd
    if found:
        # One line that leaves all of them out: a line for each would be asked for one after another.
        keys = next(iter(found)) if len(found) == 1 else "re:" + "|".join(map(re.escape, found))
        leave = f"leave {'it' if len(found) == 1 else 'them'} out ({call('convert', PATH, drop=keys)})"
        raise together(
            [
                InputRefused(odd.why, hint=f"{leave}, or {odd.hint}", tensor=key, path=source.path)
                for key, odd in found.items()
            ]
        )


def slot_of(source: Source, key: str, name: str | None = None) -> Slot:
    info = source.tensors[key]
    return Slot(name or key, info.dtype, info.shape)


def assemble(command: str, source: Source, groups: Mapping[str, Group], steps: Sequence[Step]) -> Plan:
    """The plan of these steps: every other tensor is copied, and the record says what the steps say."""
    consumed = {key for step in steps for key in step.group.keys.values()}
    consumed |= spent_markers(groups, [step.group.tensor for step in steps if step.decodes])
    copies = tuple((key, key) for key in source.tensors if key not in consumed and key not in source.beside)
    refuse_odd(source, copies)
    slots = [slot_of(source, key) for _, key in copies] + [slot for step in steps for slot in step.writes]
    _refuse_collisions(slots)
    record: dict[str, Entry] = {}
    parts: dict[str, Iterable[str]] = {}
    longest: dict[str, Entry] = {}
    for name, group in groups.items():
        if group.record is not None:
            record[name], parts[name] = group.record, group.keys.values()
    for step in steps:
        record.pop(step.group.tensor, None)
        parts[step.group.tensor] = [slot.name for slot in step.writes]
        if step.record is not None:
            record[step.group.tensor] = step.record
        if step.longest is not None:
            longest[step.group.tensor] = step.longest
    recorded = {key: name for name in {**record, **longest} for key in parts[name]}
    return Plan(command, tuple(steps), copies, tuple(slots), record, recorded, longest)


def with_growth(step: Step) -> Step:
    """The step with a note where it stores far more than the weight; InputRefused where that is more than TOO_MUCH."""
    before, after = nbytes_of(step.group.dtype, step.group.shape), sum(slot.nbytes for slot in step.writes)
    if after <= GROWTH * before or after <= WORTH_A_WORD:
        return step
    links = step.chain.links if step.chain is not None else ()
    compact = [link.with_arguments(link.entry.compact) for link in links if link.entry.compact]
    hint = (
        f"{given('chain', compact[0])} needs no square base"
        if compact
        else f"{LEAVE_OUT}, or view it as squarer matrices"
    )
    what = (
        f"{step.chain} stores {size_text(after)} for a tensor of {size_text(before)}, {after // before} times as much"
    )
    if after > TOO_MUCH:
        raise InputRefused(what, hint=hint)
    return replace(step, note=f"{what}; {hint}")


def together(refusals: Sequence[ParamcliError]) -> ParamcliError:
    """One error for all of them: the first, with the others as its fields."""
    first, *others = refusals
    first.others = others
    return first


def _refuse_collisions(slots: Sequence[Slot]) -> None:
    seen: set[str] = set()
    for slot in slots:
        if slot.name in seen:
            raise InputRefused(
                f"the result would hold two tensors named {TENSOR}",
                tensor=slot.name,
                hint="the file already has that name; rename one of them first",
            )
        seen.add(slot.name)


def require_editable(group: Group) -> None:
    """Raise InputRefused for a dtype that no parametrization is defined on."""
    kind = kind_of(group.dtype)
    if kind not in ("float", "half", "complex"):
        raise InputRefused(
            f"{TENSOR} is {dtype_name(group.dtype)}; parametrizations need floating-point or complex numbers",
            hint=LEAVE_OUT,
            tensor=group.tensor,
        )
