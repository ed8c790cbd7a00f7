"""extract: an adapter of what one checkpoint changes in another, each change by the nearest factors or whole.

    headers of both -> what factors may change -> each tensor: compare, decompose, put aside -> where each goes -> write

Which tensors changed and how many numbers each takes is known when all are read, and the header of a safetensors file
comes first: so factors wait in a file without a name. One tensor is in memory at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..answers.diff import DiffResult, same_state, what_to_say
from ..checkpoint.disk.aside import Aside
from ..checkpoint.disk.atomic import Data
from ..checkpoint.header import Slot
from ..checkpoint.read.parts import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ..checkpoint.source import Source, tensor_bytes
from ..checkpoint.write.described import DescribedSink
from ..checkpoint.write.safetensors_file import SafetensorsSink
from ..checkpoint.write.writer import Sink
from ..devices import torch_device
from ..dtypes import CAST_DTYPES, CODE_OF_TORCH, CastDtype, code_of, dtype_name, kind_of
from ..errors import PATH, TENSOR, InputRefused, UsageError, error_context
from ..spec import check_choice, select
from ..spelling.forms import Group
from ..spelling.opened import Opened, choose_any
from ..spelling.written import (
    ADAPTER_SPELLINGS,
    AdapterSpelling,
    Held,
    Layer,
    Layout,
    ModelFacts,
    Spelling,
    is_embedding,
)
from ..spelling.written_kohya import FLAT_PREFIXES, Kohya
from ..spelling.written_peft import Peft
from ..text import listing, printable, shape_text
from ..watch import Watch
from ..wording import LEAVE_OUT, call, given
from .extracted import Extracted, ExtractResult
from .output import default_output, refuse_link_out, same_place
from .run import Target, output_path

if TYPE_CHECKING:
    from torch import Tensor

    from ..fitting.pairs import Pair
    from ..maths.nearest import Factors, Wanted

# What may be asked of the change, of which one is.
_HOW = ("rank", "energy", "max-error")
MAX_RANK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Extract:
    """What is held and how near: one of `rank`, `energy` (a share of the change's squared norm) and `max_error` (the
    share of its norm that may be lost).
    """

    rank: int | None = None
    energy: float | None = None
    max_error: float | None = None
    tensor: Sequence[str] = ()
    whole: Sequence[str] = ()
    spelling: AdapterSpelling = "peft"
    prefix: str = "lora_unet_"
    dtype: CastDtype | None = None

    def __post_init__(self) -> None:
        asked = [name for name in _HOW if getattr(self, name.replace("-", "_")) is not None]
        if len(asked) != 1:
            raise UsageError(
                f"extract needs one of {', '.join(map(given, _HOW[:2]))} and {given(_HOW[2])}"
                + (f", not {' and '.join(map(given, asked))}" if asked else ""),
                hint=f"{given('rank', 16)}, or {given('energy', 0.99)}",
                option=asked[1] if asked else "rank",
            )
        if self.rank is not None and not 1 <= self.rank <= MAX_RANK:
            raise UsageError(f"{given('rank', self.rank)}: between 1 and {MAX_RANK}", option="rank")
        for name, value in (("energy", self.energy), ("max-error", self.max_error)):
            if value is not None and not 0 < value < 1:
                raise UsageError(f"{given(name, value)}: a share between 0 and 1", option=name)
        check_choice("spelling", self.spelling, ADAPTER_SPELLINGS)
        check_choice("prefix", self.prefix, FLAT_PREFIXES)
        if self.dtype is not None:
            check_choice("dtype", self.dtype, CAST_DTYPES)

    @property
    def wanted(self) -> Wanted:
        from ..maths.nearest import Wanted

        lost = self.max_error if self.energy is None else math.sqrt(1 - self.energy)
        return Wanted(self.rank, lost)

    def spelt(self, base: Opened) -> Spelling:
        facts = ModelFacts.beside(base.source)
        tied = frozenset(name for names in base.source.tied() for name in names)
        if self.spelling == "peft":
            return Peft(base.groups, facts, tied)
        return Kohya(base.groups, facts, tied, self.prefix)


def extract(job: Extract, tuned: Opened, base: Opened, asked: Path, target: Target, watch: Watch) -> ExtractResult:
    """Write the adapter of what `tuned` changes in `base`, or in a dry run say what may be in it. As `paramcli.extract`
    has it; `asked` is the tuned checkpoint as it was named.
    """
    output = _place(job, tuned, base, asked, target)
    names, said = _shared(job, tuned, base)
    spelling = job.spelt(base)
    with error_context(option="whole"):
        whole = set(select(names, job.whole, base.source.path)) if job.whole else set()
    layers = {name: "asked for" if name in whole else spelling.layer_of(name) for name in names}
    result = ExtractResult(
        checkpoint=tuned.source.path,
        base=base.source.path,
        output=output,
        spelling=job.spelling,
        dry_run=target.dry_run,
        tensors=(),
        unchanged=0,
        said=said,
    )
    if target.dry_run:
        return replace(result, tensors=tuple(_foretold(job, name, layers[name], tuned.groups[name]) for name in names))
    device = torch_device(target.device)
    with Aside(output) as aside:
        work = _Work(job, tuned, base, spelling, layers, aside, device)
        found = list(work.changes(names, watch))
        if not found:
            raise InputRefused(
                f"no tensor of {PATH} differs from {base.where}: there is no change to extract",
                hint=call("diff", tuned.source.path, base.source.path),
                path=tuned.source.path,
            )
        layout = spelling.layout([one.held for one in found], frozenset(one.name for one in found if one.resized))
        work.write(found, layout, output, target)
    if layout.beside:
        said = (*said, f"held beside them, as PEFT keeps modules whole: {listing(list(layout.beside), 4)}")
    outcomes = tuple(_outcome(one, layout) for one in found)
    # Of another shape it is for a model that was resized, which no merge does.
    tied = {"tied": "together"} if any(base.source.tied()) else {}
    merge = None if any(one.resized for one in found) else call("merge", base.source.path, adapter=output, **tied)
    return replace(result, tensors=outcomes, unchanged=len(names) - len(found), said=(*said, *layout.said), next=merge)


def _place(job: Extract, tuned: Opened, base: Opened, asked: Path, target: Target) -> Path:
    """Where the adapter goes: a folder for PEFT, a file for kohya."""
    one_file, output = job.spelling == "kohya", target.output
    if output is None:
        output = default_output(asked, ".adapter", sharded=False)
        output = output if one_file else output.with_name(output.name.removesuffix(".safetensors"))
        refuse_link_out(output)
    elif one_file != (output.name.endswith(".safetensors") and not target.slash):
        raise UsageError(
            "kohya's adapters are one file of safetensors" if one_file else "PEFT's adapters are a folder",
            hint=given("output", "FILE.safetensors" if one_file else "FOLDER")
            + ("" if one_file else f", or {given('spelling', 'kohya')}"),
            option="output",
        )
    place = output_path(tuned.source, asked, replace(target, output=output), "")
    for side in (tuned, base):
        same_place(place, side.source, False)
    return place


@dataclass(frozen=True)
class _Found:
    """A changed tensor, measured. `places`: role -> (slot without a name, where its bytes lie aside)."""

    held: Held
    group: Group
    lost: float | None = None
    moved: float | None = None
    places: Mapping[str, tuple[Slot, int]] = field(default_factory=dict)
    resized: bool = False

    @property
    def name(self) -> str:
        return self.held.tensor


def _foretold(job: Extract, name: str, layer: Layer | str, group: Group) -> Extracted:
    from ..maths.nearest import most

    why = layer if isinstance(layer, str) else None
    if isinstance(layer, Layer) and (job.rank or 1) > most(*layer.matrix(group.shape)):
        why = _NO_GAIN
    return Extracted(name, None if why else job.rank, None, None, group.shape, dtype_name(group.dtype), why)


def _outcome(one: _Found, layout: Layout) -> Extracted:
    group, held = one.group, one.held
    writes = tuple(layout.keys[one.name].values())
    return Extracted(one.name, held.rank, one.lost, one.moved, group.shape, dtype_name(group.dtype), held.why, writes)


_NO_GAIN = "factors would be no smaller"


# --- which tensors --------------------------------------------------------------------------------------------------


def _shared(job: Extract, tuned: Opened, base: Opened) -> tuple[list[str], tuple[str, ...]]:
    """(the tensors to compare, in the base's order; what is to be said of others)"""
    chosen = choose_any(job.tensor, (tuned, base)) if job.tensor else {*tuned.groups, *base.groups}
    names = [name for name in base.groups if name in chosen and name in tuned.groups]
    more = [name for name in tuned.groups if name in chosen and name not in base.groups]
    fewer = [name for name in base.groups if name in chosen and name not in tuned.groups]
    if not names:
        advice = what_to_say(tuned, base, chosen, DiffResult((), tuple(more), tuple(fewer)))
        raise InputRefused(
            f"{PATH} has no tensor in common with {base.where}",
            hint=advice or call("diff", tuned.source.path, base.source.path),
            path=tuned.source.path,
        )
    twins = {name for tied in _ties(tuned, base, names) for name in tied[1:]}
    said = []
    more = [name for name in more if not _is_copy(tuned, name, names)]
    if more:
        raise InputRefused(
            f"{TENSOR}"
            + (f" and {len(more) - 1} more are" if len(more) > 1 else " is")
            + f" not in {base.where}, and an adapter changes what its base has",
            hint=f"{given('tensor')} names those that are to be compared",
            tensor=more[0],
            path=tuned.source.path,
        )
    if fewer:
        said.append(f"not in the tuned checkpoint, so they stay as they are: {listing(fewer, 4)}")
    if twins:
        said.append(f"one tensor with another, and held once: {listing(sorted(twins), 4)}")
    return [name for name in names if name not in twins], tuple(said)


def _ties(tuned: Opened, base: Opened, names: Sequence[str]) -> Iterator[list[str]]:
    """Groups of names that are one tensor in the base, and must be in the tuned checkpoint too."""
    there = set(names)
    for tied in base.source.tied():
        alike = [name for name in tied if name in there and base.groups[name].is_plain]
        for name in alike[1:]:
            groups = tuned.groups[alike[0]], tuned.groups[name]
            if not same_state(tuned.source, groups[0], tuned.source, groups[1]):
                raise InputRefused(
                    f"{TENSOR} is one tensor with {printable(alike[0])} in the base, and another here",
                    hint=f"an adapter cannot part them: {LEAVE_OUT}",
                    tensor=name,
                    path=tuned.source.path,
                )
        if len(alike) > 1:
            yield alike


def _is_copy(tuned: Opened, name: str, names: Sequence[str]) -> bool:
    """Is it the embedding of the model once more, as an output layer that is tied to it is saved?"""
    group = tuned.groups[name]
    return any(
        (other := tuned.groups[one]).shape == group.shape
        and is_embedding(one, other, ModelFacts())
        and same_state(tuned.source, group, tuned.source, other)
        for one in names
    )


# --- the work -------------------------------------------------------------------------------------------------------


@dataclass
class _Work:
    """Two open checkpoints, and where what is computed of them waits."""

    job: Extract
    tuned: Opened
    base: Opened
    spelling: Spelling
    layers: Mapping[str, Layer | str]
    aside: Aside
    device: str

    def changes(self, names: Sequence[str], watch: Watch) -> Iterator[_Found]:
        """Every tensor that is another one than in the base."""
        size = sum(self.tuned.groups[name].nbytes for name in names)
        with watch.meter("extract", len(names), size) as meter:
            for name in names:
                group = self.tuned.groups[name]
                with error_context(tensor=name, path=self.tuned.source.path):
                    found = self._change(name, group, self.base.groups[name])
                    if found is not None:
                        self.spelling.require(found.held, group)
                        yield found
                meter.advance(group.nbytes)

    def _change(self, name: str, group: Group, before: Group) -> _Found | None:
        layer = self.layers[name]
        if group.shape != before.shape:
            why = f"{shape_text(before.shape)} in the base"
            return _Found(Held(name, why=why), group, 0.0, resized=True)
        known = not (group.problem or before.problem)
        if not (known and all(kind_of(one.dtype) in ("float", "half") for one in (group, before))):
            return self._unlike(name, group, before)
        from ..fitting.pairs import Pair

        pair = Pair(self.tuned.source, group, self.base.source, before)
        if not pair.differs():
            return None
        moved = pair.moved()
        if isinstance(layer, Layer):
            factors = self._factors(pair, layer)
            if factors is not None:
                held = Held(name, layer, factors.rank)
                return _Found(held, group, factors.lost, moved, self._put(factors, layer, group))
        why = layer if isinstance(layer, str) else _NO_GAIN
        return _Found(Held(name, why=why), group, 0.0, moved)

    def _unlike(self, name: str, group: Group, before: Group) -> _Found | None:
        """Of tensors that cannot be subtracted: None where they are the same."""
        if same_state(self.tuned.source, group, self.base.source, before):
            return None
        for one, opened in ((group, self.tuned), (before, self.base)):
            if one.problem:
                raise one.refusal(opened.source.path)
        if kind_of(group.dtype) in ("int", "bool") and group.dtype == before.dtype:
            return _Found(Held(name, why=f"of {dtype_name(group.dtype)}"), group, 0.0)
        raise InputRefused(
            f"{TENSOR} is {dtype_name(group.dtype)} here and {dtype_name(before.dtype)} in the base, and their bytes "
            "differ: an adapter changes numbers of floating point",
            hint=f"dequantize both first, or {LEAVE_OUT}",
            tensor=name,
        )

    def _factors(self, pair: Pair, layer: Layer) -> Factors | None:
        import torch

        from ..maths.nearest import nearest

        stored = pair.dtype if self.job.dtype is None else getattr(torch, self.job.dtype)
        with torch.no_grad():
            D = pair.difference().to(self.device)
            found = nearest(D.mT if layer.across else D.reshape(layer.matrix(D.shape)), self.job.wanted, stored)
        if found is not None:
            _require_room(found.A, found.B)
        return found

    def _put(self, factors: Factors, layer: Layer, group: Group) -> dict[str, tuple[Slot, int]]:
        places = {}
        shapes = layer.shapes(group.shape, factors.rank)
        for role, tensor, shape in zip("AB", (factors.A, factors.B), shapes, strict=True):
            data = tensor_bytes(tensor.cpu().contiguous())
            places[role] = Slot("", code_of(tensor.dtype), shape), self.aside.put(data)
        return places

    # --- writing ---

    def write(self, found: Sequence[_Found], layout: Layout, output: Path, target: Target) -> None:
        slots, copies = [], []
        for one in found:
            for role, key in layout.keys[one.name].items():
                slots.append(self._slot(one, role, key))
                if role == "value" and one.group.is_plain:
                    copies.append((key, one.group.keys["value"]))
        for name, key in layout.beside.items():
            group = self.tuned.groups.get(name) or self.base.groups[name]
            slots.append(Slot(key, group.dtype, group.shape))
        slots += [self._zero(name, key) for name, key in layout.zeros.items()]
        with self._sink(output, slots, layout, target) as sink:
            sink.copy(self.tuned.source, copies)
            for one in found:
                for role, key in layout.keys[one.name].items():
                    if role != "value" or not one.group.is_plain:
                        sink.write(key, self._data(one, role))
            for name, key in layout.beside.items():
                sides = [side for side in (self.tuned, self.base) if name in side.groups]
                sink.write(key, _value(sides[0].source, sides[0].groups[name]))
            for name, key in layout.zeros.items():
                sink.write(key, bytes(self._zero(name, key).nbytes))
            sink.commit(self.tuned.source, self.base.source)

    def _sink(self, output: Path, slots: Sequence[Slot], layout: Layout, target: Target) -> Sink:
        metadata = {"format": "pt"}
        if layout.config is None:
            return SafetensorsSink(output, slots, metadata, overwrite=target.force, sync=target.sync)
        files = ADAPTER_WEIGHTS[0], ADAPTER_CONFIG
        return DescribedSink(
            output, files[0], slots, metadata, files[1], layout.config, overwrite=target.force, sync=target.sync
        )

    def _zero(self, name: str, key: str) -> Slot:
        return Slot(key, "F32", self.base.groups[name].shape)

    def _slot(self, one: _Found, role: str, key: str) -> Slot:
        if role in one.places:
            return replace(one.places[role][0], name=key)
        if role == "rank":
            return Slot(key, "F32", ())
        if role == "value":
            return Slot(key, one.group.dtype, one.group.shape)
        wide = "F64" if {one.group.dtype, self.base.groups[one.name].dtype} == {"F64"} else "F32"
        return Slot(key, wide if self.job.dtype is None else CODE_OF_TORCH[self.job.dtype], one.group.shape)

    def _data(self, one: _Found, role: str) -> Data:
        import torch

        if role in one.places:
            slot, at = one.places[role]
            return self.aside.get(at, slot.nbytes)
        if role == "rank":
            return tensor_bytes(torch.tensor(float(one.held.rank or 1)))
        if role == "value":
            return _value(self.tuned.source, one.group)
        from ..fitting.pairs import Pair

        D = Pair(self.tuned.source, one.group, self.base.source, self.base.groups[one.name]).difference()
        made = D if self.job.dtype is None else D.to(getattr(torch, self.job.dtype))
        with error_context(tensor=one.name):
            _require_room(made)
        return tensor_bytes(made)


def _require_room(*tensors: Tensor) -> None:
    """Raise InputRefused for a change that its dtype has no room for: an adapter with infinities is none."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        dtype = str(tensors[0].dtype).removeprefix("torch.")
        raise InputRefused(
            f"the change of {TENSOR} is too large for {dtype}", hint=f"{given('dtype', 'float32')}, or {LEAVE_OUT}"
        )


def _value(source: Source, group: Group) -> Data:
    if group.is_plain:
        return source.read_bytes(group.keys["value"])
    from ..fitting.evaluate import effective

    return tensor_bytes(effective(source, group).contiguous())
