"""A torch.distributed.checkpoint (DCP) folder, as torch's own FileSystemReader reads it.

    __0_0.distcp, ...   one after another a torch.save archive for each tensor
    .metadata           a pickle: every tensor's dtype, shape and place; written last

torch's FileSystemWriter is not used: with one file for a process it holds every tensor until the file is closed, and
it stores a random id and the path it writes to, so that no two runs give the same bytes. Here the places of all
archives are known before a tensor is, and tensors come in any order.
"""

from __future__ import annotations

import functools
import math
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ...errors import PATH, OutputFailed
from ...wording import given
from ..disk.atomic import ELSEWHERE, AtomicFile, Data, failures, flat, hidden_name
from ..disk.direct import Disk
from ..disk.input_file import OpenFiles
from ..disk.stream import Stream
from ..header import Slot, refuse_too_many
from ..pickle.pickle_data import MAX_OPAQUE, Global, Key, Opaque, Size, StorageRef, TensorRef
from ..pickle.write_pickle import DTYPE_NAMES, PickleWriter, unit
from ..pickle.write_zip import ALIGNMENT, Member, directory, lay_out, members_of
from ..read.dcp import part_names
from ..read.recognise import DCP_METADATA, is_dcp
from ..source import Source, Storage
from .folder import FolderSink, Run
from .safetensors_file import copy_storage
from .torch_file import as_torch, strides
from .writer import Check, FileSink, MetadataOf

PART_SUFFIX = ".distcp"
_MODULE = "torch.distributed.checkpoint.metadata"
_FILES = "torch.distributed.checkpoint.filesystem"
_VERSION = "1.0.0"
# So many tensors, if no two of them are alike, may be more than can be described.
_WORTH_A_LOOK = MAX_OPAQUE // 5
# A tensor up to this size is written with its archive around it in one call.
_WHOLE = 1 << 20


def part_name(number: int) -> str:
    """As torch names the files of one process."""
    return f"__0_{number}{PART_SUFFIX}"


class _Archive:
    """What torch.save writes for one tensor, but for the tensor's bytes."""

    def __init__(self, slot: Slot):
        dtype, shape = as_torch(slot)
        self.storage = Member("data/0", slot.nbytes)
        numel = slot.nbytes if slot.dtype != dtype else math.prod(shape)
        ref = TensorRef(StorageRef("0", dtype, numel, "cpu"), dtype, 0, shape, strides(shape))
        pickle = PickleWriter(lambda ref: ("0", numel * unit(dtype), 0)).finish(ref)
        self.members = members_of(pickle, [self.storage])
        self.directory = lay_out(self.members)

    @property
    def size(self) -> int:
        return self.directory + len(directory(self.members, self.directory))

    def around(self) -> tuple[bytes, bytes]:
        """What stands before the tensor's bytes, and after them; their checksum is known by now."""
        out = bytearray(self.directory - self.storage.size)
        for member in self.members:
            # Places behind the tensor are counted without it here.
            gap = self.storage.size if member.header > self.storage.header else 0
            out[member.header - gap : member.start - gap] = member.local_header()
            if member.data is not None:
                out[member.start - gap : member.start - gap + member.size] = member.data
        return bytes(out[: self.storage.start]), bytes(out[self.storage.start :]) + directory(
            self.members, self.directory
        )


def places_of(slots: Sequence[Slot]) -> dict[str, tuple[int, int]]:
    """Name -> (offset, length) of each tensor's archive in a part."""
    found, end, lengths = {}, 0, {}
    for slot in slots:
        begin, kind = end + -end % ALIGNMENT, (slot.dtype, slot.shape)
        if kind not in lengths:
            lengths[kind] = _Archive(slot).size
        found[slot.name] = begin, lengths[kind]
        end = begin + lengths[kind]
    return found


class PartFile(FileSink):
    """One part being written."""

    def __init__(
        self,
        path: Path,
        slots: Sequence[Slot],
        places: Mapping[str, tuple[int, int]],
        *,
        overwrite: bool,
        sync: bool,
        pool: OpenFiles,
        disk: Disk,
    ):
        self._slots = {slot.name: slot for slot in slots}
        self._places = places
        self._missing = set(self._slots)
        # Tensors that have come in part: their archive's place, itself, and the bytes so far.
        self._begun: dict[str, tuple[int, _Archive, int]] = {}
        super().__init__(
            AtomicFile(path, overwrite=overwrite, sync=sync, follow_links=False, pool=pool, disk=disk),
            max(offset + length for offset, length in places.values()),
        )

    def write(self, name: str, data: Data) -> None:
        begin, archive = self._take(name)
        data = flat(data)
        assert data.nbytes == archive.storage.size, (name, data.nbytes, archive.storage.size)
        archive.storage.crc = zlib.crc32(data)
        if data.nbytes <= _WHOLE:
            before, after = archive.around()
            self.file.write_at(begin, b"".join((before, data, after)))
            return
        self.file.write_at(begin + archive.storage.start, data)
        self._close(begin, archive)

    def write_part(self, name: str, at: int, data: Data) -> None:
        begin, archive, come = self._begun.pop(name) if at else (*self._take(name), 0)
        data = flat(data)
        end = at + data.nbytes
        assert at == come and end <= archive.storage.size, (name, at, come, end, archive.storage.size)
        self.file.write_at(begin + archive.storage.start + at, data)
        archive.storage.crc = zlib.crc32(data, archive.storage.crc)
        if end == archive.storage.size:
            self._close(begin, archive)
        else:
            self._begun[name] = begin, archive, end

    def copy(self, source: Source, pairs: Iterable[tuple[str, str]]) -> None:
        self._sources[id(source)] = source
        with Stream(self.file) as stream:
            for name, key in pairs:
                info = source.tensors[key]
                if info.run is None or info.nbytes <= _WHOLE:
                    self.write(name, source.read_bytes(key))
                    continue
                begin, archive = self._take(name)
                storage, (number, offset, length) = info.storage, info.run
                if storage.crc is None or length != storage.nbytes:
                    source.check_storage(storage)
                    storage = Storage(number, offset, length, storage.key)
                archive.storage.crc = copy_storage(source, storage, stream, begin + archive.storage.start)
                self._close(begin, archive)

    def _take(self, name: str) -> tuple[int, _Archive]:
        assert name in self._missing, f"{name} is written twice"
        self._missing.remove(name)
        return self._places[name][0], _Archive(self._slots[name])

    def _close(self, begin: int, archive: _Archive) -> None:
        before, after = archive.around()
        self.file.write_at(begin, before)
        self.file.write_at(begin + archive.storage.start + archive.storage.size, after)

    def amend(self, metadata: MetadataOf) -> None:
        """A part has no metadata."""

    def finish(self) -> None:
        unfinished = sorted({*self._missing, *self._begun})
        assert not unfinished, f"never written: {unfinished[:3]}"
        super().finish()


class DcpSink(FolderSink):
    """A DCP folder being written; `parts` is file name (see part_name) -> slots. The rest is FolderSink's."""

    index_name = DCP_METADATA
    part_suffix = PART_SUFFIX

    def __init__(
        self,
        folder: str | os.PathLike[str],
        parts: Mapping[str, Sequence[Slot]],
        siblings: Iterable[str | os.PathLike[str]] = (),
        *,
        run: Run,
        overwrite: bool = False,
        sync: bool = True,
        owner: Mapping[str, int] | None = None,
        rewritten: Mapping[str, bytes] = MappingProxyType({}),
    ):
        super().__init__(
            folder, parts, siblings, run=run, overwrite=overwrite, sync=sync, owner=owner, rewritten=rewritten
        )
        self.places = {part: places_of(slots) for part, slots in self.parts.items()}
        refuse_too_many(len(self.home))
        if len(self.home) > _WORTH_A_LOOK:
            self.index_bytes({part: part for part in self.parts})  # what is too much is refused before it is written

    def part_sink(self, path: Path, part: str, pool: OpenFiles, disk: Disk) -> PartFile:
        slots, places = self.parts[part], self.places[part]
        return PartFile(path, slots, places, overwrite=self.overwrite, sync=self.sync, pool=pool, disk=disk)

    def index_bytes(self, names: Mapping[str, str]) -> bytes:
        tensors, data, paths = {}, {}, {}
        # Equal parts are one object, which the pickle holds once: it can then describe three times as many tensors.
        one = functools.cache(functools.partial(_tensor, functools.cache(Size)))
        for part in filter(names.__contains__, self.parts):  # in one order, whichever ranks the parts come from
            for slot in self.parts[part]:
                offset, length = self.places[part][slot.name]
                tensors[slot.name], first = one(*as_torch(slot))
                paths[slot.name] = (slot.name,)
                index = _object(_MODULE, "MetadataIndex", {"fqn": slot.name, "offset": first, "index": 0})
                data[Key(index)] = _object(
                    _FILES, "_StorageInfo", {"relative_path": names[part], "offset": offset, "length": length}
                )
        fields = {
            "state_dict_metadata": tensors,
            "planner_data": paths,
            "storage_data": data,
            "storage_meta": None,
            "version": _VERSION,
        }
        return PickleWriter(_no_tensor).finish(_object(_MODULE, "Metadata", fields))

    def check_replaced(self) -> None:
        if os.listdir(self.folder) and not is_dcp(self.folder):
            raise OutputFailed(
                f"{PATH} is not a folder of torch.distributed.checkpoint, "
                f"and {given('force', True)} replaces no other there",
                hint=f"remove it, or {ELSEWHERE}",
                path=self.path,
            )

    def old_parts(self) -> set[str]:
        return part_names(self.folder)

    def check_written(self, check: Check) -> None:
        """`check` gets a .metadata of these parts alone, under a hidden name beside them, and removed again."""
        if not self._sinks:
            return  # more ranks than parts
        index = hidden_name(self._place, DCP_METADATA)
        with failures(self.path):
            try:
                index.write_bytes(self.index_bytes({part: sink.file.hidden.name for part, sink in self._sinks.items()}))
                check(self.path, [index])
            finally:
                index.unlink(missing_ok=True)


# --- .metadata, object for object ------------------------------------------------------------------

_LAYOUT = Opaque(Global("torch.serialization", "_get_layout"), ("torch.strided",))
_CONTIGUOUS = Opaque(Global(_MODULE, "_MEM_FORMAT_ENCODING"), (0,))


def _object(module: str, name: str, state: object) -> Opaque:
    return Opaque(Global(module, name), (), "new", state)


def _tensor(size: Callable[[tuple[int, ...]], Size], dtype: str, shape: tuple[int, ...]) -> tuple[Opaque, Size]:
    """(what is said of a tensor in one chunk, where that begins)"""
    first, whole = size((0,) * len(shape)), size(shape)
    properties = (Global("torch", DTYPE_NAMES[dtype]), _LAYOUT, False, _CONTIGUOUS, False)
    fields = {
        "properties": _object(_MODULE, "TensorProperties", properties),
        "size": whole,
        "chunks": [_object(_MODULE, "ChunkStorageMetadata", {"offsets": first, "sizes": whole})],
    }
    return _object(_MODULE, "TensorStorageMetadata", fields), first


def _no_tensor(ref: object) -> tuple[str, int, int]:
    raise AssertionError("a tensor in .metadata")
