"""Writing a torch zip checkpoint: the wrapper dict as it was, the state dict as the plan has it.

But for what asks its reader for calls that are not torch's own (pickle/carried): that is left out.

Storages are laid out before anything is written, so tensors can arrive in any order, one at a time.
Tensors that shared a storage and were not edited share it in the output too: ties and packed views
stay what they were.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

from ...dtypes import DTYPES
from ...errors import TENSOR, InputRefused
from ...text import printable
from ...wording import AS_SAFETENSORS, given
from ..disk.atomic import AtomicFile, Data, flat
from ..disk.stream import Stream
from ..header import Slot
from ..pickle.carried import LeftOut, left_out
from ..pickle.pickle_data import Items, StorageRef, TensorRef
from ..pickle.tree import element_width, storage_refs
from ..pickle.write_pickle import PickleWriter, unit
from ..pickle.write_zip import Member, directory, lay_out, members_of
from ..read.places import Path, Step, at, below, entries, text_of
from ..read.search import as_dict, is_tensor, type_text
from ..read.torch_file import PAIRS
from ..source import Part, Source, Storage
from .safetensors_file import copy_storage
from .writer import FileSink, MetadataOf


@dataclass
class _Record(Member):
    """A member whose bytes are copied from a storage of the source, or written."""

    source: Storage | None = None
    written: bool = False


@dataclass
class _Place:
    record: _Record
    key: str
    numel: int
    offset: int = 0


class TorchSink(FileSink):
    """One torch checkpoint being written."""

    def __init__(
        self,
        path: FilePath,
        source: Source,
        slots: Sequence[Slot],
        copies: Sequence[tuple[str, str]],
        renamed: Mapping[str, str],
        tied: Mapping[str, str] = {},
        *,
        overwrite: bool = False,
        sync: bool = True,
    ):
        """`copies`: (name here, name in the source); `renamed`: source key -> the first name that takes its place;
        `tied`: a slot that is written -> the one before it that it is one tensor with."""
        self.source = source
        self.slots = {slot.name: slot for slot in slots}
        self.records: list[_Record] = []
        self._tensors: dict[str, _Place] = {}
        self._whole: dict[_Spot, _Place] = {}
        self._foreign: dict[str, _Place] = {}
        self._refs: dict[str, TensorRef] = {}
        # Tensors that have come in part: bytes so far, and their checksum.
        self._parts: dict[str, tuple[int, int]] = {}
        self._plan_storages(copies, tied)
        self._own = {id(ref) for ref in self._refs.values()}
        tree = self._tree(renamed)
        left = left_out(tree)
        if left.top is not None:
            raise InputRefused(
                f"a torch file would have to hold {left.top}, which stands in no dict that could go without it",
                hint=AS_SAFETENSORS,
            )
        self._plan_foreign(tree, left)
        pickle = PickleWriter(self._place_of, left).finish(tree)
        self.members = members_of(pickle, self.records)
        self.directory = lay_out(self.members)
        size = self.directory + len(directory(self.members, self.directory))
        super().__init__(AtomicFile(path, overwrite=overwrite, sync=sync), size)
        self._sources[id(source)] = source

    # --- what goes where -------------------------------------------------------------------------

    def _plan_storages(self, copies: Sequence[tuple[str, str]], tied: Mapping[str, str]) -> None:
        """Whole source storages for those that only untouched tensors use; a storage of its own for every
        other tensor.
        """
        here = dict(copies)
        used: dict[_Spot, set[str]] = {}
        for key, stored in self.source.tensors.items():
            used.setdefault(_spot(stored.storage), set()).add(key)
        kept = set(here.values())
        untouched = {spot for spot, keys in used.items() if keys <= kept}
        alike: dict[Hashable, _Place] = {}
        for slot in self.slots.values():
            stride = strides(slot.shape)
            if (info := self.source.tensors.get(here.get(slot.name, ""))) is None:
                place = self._tensors[tied[slot.name]] if slot.name in tied else self._add(slot.nbytes, None, slot)
                self._remember(slot, place, stride)
                continue
            spot, width = _spot(info.storage), max(element_width(info.dtype), 1)
            # Of another shape than it was stored in, its bytes are written row by row.
            as_it_lies = (
                not info.pieces and info.storage.decode is None and (info.stride is None or slot.shape == info.shape)
            )
            if as_it_lies and spot in untouched and info.storage.nbytes % width == 0 and info.offset % width == 0:
                if spot not in self._whole:
                    self._whole[spot] = self._add(info.storage.nbytes, info.storage)
                whole = self._whole[spot]
                place = _Place(whole.record, whole.key, info.storage.nbytes // width, info.offset // width)
                self._remember(slot, place, info.stride or stride)
                continue
            twin = (info.pieces, *spot, info.offset, info.dtype, info.shape, info.stride)
            if twin not in alike:
                alike[twin] = self._add(slot.nbytes, None, slot)
            self._remember(slot, alike[twin], stride)

    def _add(self, size: int, storage: Storage | None, slot: Slot | None = None) -> _Place:
        key = str(len(self.records))
        record = _Record(f"data/{key}", size, source=storage)
        self.records.append(record)
        return _Place(record, key, math.prod(slot.shape) if slot else 0)

    def _remember(self, slot: Slot, place: _Place, stride: tuple[int, ...]) -> None:
        dtype, shape = as_torch(slot)
        numel = place.numel
        if dtype == PAIRS:
            stride, numel = strides(shape), place.record.size
        self._tensors[slot.name] = place
        self._refs[slot.name] = TensorRef(
            StorageRef(place.key, dtype, numel, "cpu"), dtype, place.offset, shape, stride
        )

    def _tree(self, renamed: Mapping[str, str]) -> object:
        """The source's tree with its state dict replaced; for a source without one, a plain state dict."""
        if self.source.tree is None:
            return dict(self._refs)
        homes = {part.name_of(key): part for part, key in _keys(self.source)}
        tops = [part for part in self.source.parts if not part.prefix]
        top = tops[0] if tops else Part(self.source.root_path)
        placed: dict[Path, dict[str, list[tuple[str, str]]]] = {}
        for name, first in renamed.items():
            home = homes[first]
            # What a new name puts out of a joined dict lies at the top.
            part = home if len(name) > len(home.prefix) and name.startswith(home.prefix) else top
            if part is top and not tops and not isinstance(above := at(self.source.tree, top.path), dict):
                raise InputRefused(
                    f"{TENSOR} has no place in a torch file: it was in {printable(text_of(home.path))}, and what is "
                    f"above that is no dict ({type_text(above)})",
                    hint=AS_SAFETENSORS,
                    tensor=name,
                )
            placed.setdefault(part.path, {}).setdefault(first, []).append((name, name[len(part.prefix) :]))
        parts = (*self.source.parts, *([] if top in self.source.parts or top.path not in placed else [top]))
        return rebuilt(self.source.tree, parts, lambda part, state: self._new_state(part, state, placed))

    def _new_state(
        self, part: Part, state: object, placed: dict[Path, dict[str, list[tuple[str, str]]]]
    ) -> dict[object, object]:
        """A part in its old order, each edited tensor's new keys where its first key stood.

        A pickled module, whose code no file can carry, becomes its state dict.
        """
        # torch's _metadata, among its attributes, names modules, not tensors; its versions still hold.
        new = _empty_like(state)
        here = placed.get(part.path, {})
        if part in self.source.parts:
            before = as_dict(state) or {}
            kept = {key: value for key, value in before.items() if not is_tensor(value)}
        else:
            # A dict above those that are joined: no tensor in it is the state dict's, and all of it stays.
            assert isinstance(state, dict), "_tree refuses names that would be anywhere else"
            before = kept = state
        for key in before:
            if key in kept:
                new[key] = kept[key]
            new.update(self._placed(kept, here.pop(part.name_of(key) or "", ())))
        for names in here.values():
            new.update(self._placed(kept, names))
        return new

    def _placed(
        self, kept: Mapping[object, object], names: Iterable[tuple[str, str]]
    ) -> Iterator[tuple[object, TensorRef]]:
        """(key, tensor) of each (name, key), in a dict that keeps `kept`."""
        for name, key in names:
            if key in kept:
                raise InputRefused(
                    f"{TENSOR} would take the place of something that is no tensor",
                    hint=f"another name, or {AS_SAFETENSORS}",
                    tensor=name,
                )
            yield key, self._refs[name]

    def _plan_foreign(self, tree: object, left: LeftOut) -> None:
        """A place for every storage outside the state dict (optimizer moments, an EMA copy), shared where it is copied
        whole.
        """
        for key in storage_refs(tree, self._own, left.has):
            if key not in self.source.storages:
                continue
            storage = self.source.storages[key]
            self._foreign[key] = self._whole.get(_spot(storage)) or self._add(storage.nbytes, storage)

    def _place_of(self, ref: TensorRef | StorageRef) -> tuple[str, int, int]:
        if isinstance(ref, TensorRef) and id(ref) in self._own:
            return ref.storage.key, ref.storage.numel * unit(ref.dtype), ref.offset
        storage = ref if isinstance(ref, StorageRef) else ref.storage
        place = self._foreign.get(storage.key)
        base = storage.view[1] if storage.view is not None else 0
        if place is None or not isinstance(base, int) or (isinstance(ref, StorageRef) and ref.view):
            raise InputRefused(
                "a tensor outside the state dict whose storage the file does not have",
                hint=AS_SAFETENSORS,
            )
        numel = place.record.size // element_width(ref.dtype) * unit(ref.dtype)
        if isinstance(ref, StorageRef):
            return place.key, place.record.size if ref.untyped else numel, 0
        return place.key, numel, base + ref.offset

    # --- writing ---------------------------------------------------------------------------------

    def begin(self) -> None:
        super().begin()
        for member in self.members:
            if member.data is not None:
                self.file.write_at(member.start, member.data)

    def _put(self, record: _Record, at: int, data: memoryview) -> None:
        self.file.write_at(record.start + at, data)
        record.crc = zlib.crc32(data, record.crc)

    def write(self, name: str, data: Data) -> None:
        size = self._tensors[name].record.size
        assert memoryview(data).nbytes == size, (name, memoryview(data).nbytes, size)
        self.write_part(name, 0, data)

    def write_part(self, name: str, at: int, data: Data) -> None:
        record = self._tensors[name].record
        view = flat(data)
        come, crc = self._parts.pop(name, (0, 0))
        assert at == come and at + view.nbytes <= record.size, (name, at, come, view.nbytes, record.size)
        if not record.written:
            self._put(record, at, view)
            crc = record.crc
        else:
            crc = zlib.crc32(view, crc)
        if at + view.nbytes < record.size:
            self._parts[name] = at + view.nbytes, crc
        elif record.written and crc != record.crc:
            raise InputRefused(
                f"{TENSOR} is tied to another tensor, and would get other values than that",
                hint=given("tied", "separate"),
                tensor=name,
            )
        else:
            record.written = True

    def copy(self, source: Source, pairs: Iterable[tuple[str, str]]) -> None:
        with Stream(self.file) as stream:
            for name, key in pairs:
                record = self._tensors[name].record
                if record.source is not None:
                    self._copy(record, record.source, stream)
                else:
                    self.write(name, source.read_bytes(key))

    def _copy(self, record: _Record, storage: Storage, stream: Stream) -> None:
        """A whole storage of the source, its recorded checksum compared."""
        if record.written:
            return
        record.crc = copy_storage(self.source, storage, stream, record.start)
        record.written = True

    def amend(self, metadata: MetadataOf) -> None:
        """A torch file has no metadata."""

    def finish(self) -> None:
        with Stream(self.file) as stream:
            for key, place in self._foreign.items():
                self._copy(place.record, self.source.storages[key], stream)
        missing = [record.name for record in self.records if not record.written]
        if missing:
            raise AssertionError(f"never written: {missing[:3]}")
        for member in self.members:
            self.file.write_at(member.header, member.local_header())
        self.file.write_at(self.directory, directory(self.members, self.directory))
        super().finish()


def _keys(source: Source) -> Iterator[tuple[Part, object]]:
    """Every key of the source's state dict, with the part it is in."""
    for part in source.parts:
        for key in as_dict(at(source.tree, part.path)) or {}:
            yield part, key


def names_left_out(source: Source) -> list[str]:
    """The dotted places of what a torch file made from this one leaves out, as it asks for calls that ours never do."""
    if source.tree is None:
        return []
    return left_out(rebuilt(source.tree, source.parts, _without_tensors)).names


def _without_tensors(part: Part, state: object) -> dict[object, object]:
    return {key: value for key, value in (as_dict(state) or {}).items() if not is_tensor(value)}


def as_torch(slot: Slot) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) as torch has them; InputRefused for a dtype that torch lacks."""
    dtype, shape = slot.dtype, tuple(slot.shape)
    if dtype == "F4" and shape and shape[-1] % 2 == 0:
        # torch counts bytes, each two values; the format counts values.
        return PAIRS, (*shape[:-1], shape[-1] // 2)
    if DTYPES[dtype].torch_name is None:
        raise InputRefused(
            f"{TENSOR} is {dtype}, which torch files cannot hold",
            hint=AS_SAFETENSORS,
            tensor=slot.name,
        )
    return dtype, shape


def strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a row-major tensor."""
    steps, step = [], 1
    for size in reversed(shape):
        steps.append(step)
        step *= max(size, 1)
    return tuple(reversed(steps))


_Spot = tuple[Hashable, ...]


def _spot(storage: Storage) -> _Spot:
    # An empty tensor begins where the next one does.
    # Two arrays may be made of the same bytes, and of other numbers.
    return storage.file, storage.offset, storage.nbytes, storage.decode


def _empty_like(value: object) -> dict[object, object]:
    """A dict of the same class without entries; a plain one in the place of what is no dict."""
    if not isinstance(value, Items):
        return {}
    empty = Items()
    empty.cls, empty.arguments, empty.attributes = value.cls, value.arguments, value.attributes
    return empty


def rebuilt(tree: object, parts: Iterable[Part], new_state: Callable[[Part, object], dict[object, object]]) -> object:
    """The tree with a new dict in the place of each part; what lies beside the ways to them is the same objects.

    An object on such a way, whose code no file can carry, becomes a dict of its attributes.
    """
    by_path = {part.path: part for part in parts}
    ways: dict[Path, dict[Step, None]] = {}
    for path in by_path:
        for depth, step in enumerate(path):
            ways.setdefault(path[:depth], {})[step] = None

    def build(value: object, path: Path) -> object:
        part = by_path.get(path)
        new = _copied(value) if part is None else new_state(part, value)
        for step in ways.get(path, ()):
            new[step] = build(below(value, step), (*path, step))  # type: ignore[index]  # a text for a dict, a number for a list
        return tuple(new) if isinstance(value, tuple) and isinstance(new, list) else new

    return build(tree, ())


def _copied(value: object) -> dict[object, object] | list[object]:
    """A dict or list of the same parts."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if not isinstance(value, dict):
        return dict(entries(value))
    copy = _empty_like(value)
    copy.update(value)
    return copy
