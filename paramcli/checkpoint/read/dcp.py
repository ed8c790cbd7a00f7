"""A torch.distributed.checkpoint (DCP) folder as a Source: described from its pickles, never unpickled.

    .metadata        a pickle: every tensor's dtype, shape and chunks, and for each chunk a range of a part file
    __0_0.distcp     one after another what was written: each tensor chunk a torch.save archive, other values a pickle

torch reads .metadata with `pickle.load`. Here it is read symbolically (pickle_data), and every record in it is checked
field by field: plain file names, ranges that lie in their file and share no byte, chunks that tile their tensor. A
chunk's archive must hold one tensor, of the dtype and shape that .metadata says. A tensor in one chunk is then a byte
range as in any container; one in several is put together when it is read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import TENSOR, InputRefused
from ...text import printable
from ..disk.input_file import InputFile, OpenFiles
from ..pickle.pickle_data import (
    MAX_BYTES,
    Global,
    Key,
    Opaque,
    Size,
    StorageRef,
    TensorRef,
    check_structure,
    read_pickle,
    shown,
)
from ..pickle.pickle_globals import TORCH_DTYPES
from ..source import Piece, Root, Source, Storage, TensorInfo
from .recognise import DCP
from .recognise import DCP_METADATA as METADATA
from .roots import choose_root
from .torch_file import PAIRS, check_expansion, collector_paused, tensor_info, zip_parts

_MODULE = "torch.distributed.checkpoint.metadata"
_FILES = "torch.distributed.checkpoint.filesystem"
MAX_ENTRIES = 500_000
# Pairs of chunks of one tensor that are compared; chunks cut along one dimension need one comparison each.
_MAX_COMPARED = 2_000_000
# Dicts that may stand above an entry, on average.
_STEPS = 8
# What a small archive is whole, and the pickle and the directory of a larger one.
_END_BYTES = 1 << 13
_AGAIN = "copy the whole folder again"
# What a value that is no tensor is called in lists: its type is known to its pickle alone.
_PICKLED = type("pickled object", (), {})()


@dataclass(frozen=True)
class _Range:
    """Where one write of torch lies: a part file and a run of its bytes."""

    part: str
    offset: int
    length: int


# The name of an entry and the offsets of a chunk of it; None for what is no tensor.
_Place = tuple[str, tuple[int, ...] | None]


@dataclass(frozen=True)
class _Chunk:
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[_Chunk, ...]


def open_dcp(path: Path, root: str | None = None, metadata: str = METADATA) -> Source:
    """Open a DCP folder; `root` names the state dict where it holds several, `metadata` its .metadata file."""
    files: dict[str, InputFile] = {}
    try:
        with collector_paused():
            return _open(path, root, files, metadata)
    except InputRefused as error:
        _close(files)
        if error.path is None:
            error.path, error.of_file = path, True
        raise
    except BaseException:
        _close(files)
        raise


def _close(files: Mapping[str, InputFile]) -> None:
    for file in files.values():
        file.close()


def part_names(path: Path) -> set[str]:
    """The part files that a folder's .metadata names; none where it is broken."""
    try:
        with collector_paused(), closing(InputFile(path / METADATA)) as metadata:
            return {r.part for r in _described(metadata)[2].values()}
    except InputRefused:
        return set()


def _described(metadata: InputFile) -> tuple[dict[str, object], dict[str, _Tensor | None], dict[_Place, _Range]]:
    """What .metadata says: its fields, the entries, and where they lie."""
    if metadata.size > MAX_BYTES:
        raise InputRefused(f"its .metadata is {metadata.size} bytes long; {MAX_BYTES} is the limit")
    data = bytes(metadata.read(0, metadata.size))
    loaded = read_pickle(data)
    if loaded.end != len(data):
        raise _broken("bytes after its end belong to nothing")
    check_structure(loaded.value)
    top = _record(loaded.value, _MODULE, "Metadata")
    entries = _entries(top.get("state_dict_metadata"))
    return top, entries, _ranges(top.get("storage_data"), entries)


def _open(path: Path, root: str | None, files: dict[str, InputFile], metadata: str) -> Source:
    files[metadata] = InputFile(path / metadata)
    top, entries, ranges = _described(files[metadata])
    tree = _tree(entries, top.get("planner_data"))
    chosen = choose_root(tree, root)
    if "__metadata__" in chosen.tensors:
        raise InputRefused(
            "a tensor is named __metadata__, which safetensors cannot store", hint="rename it where it was made"
        )
    pool = OpenFiles()
    for part in sorted({r.part for r in ranges.values()}):
        if not os.path.lexists(path / part):
            raise InputRefused(f"its part {printable(part)} is not there", hint=_AGAIN)
        files[part] = InputFile(path / part, pool)
    _check_ranges(ranges, files)
    numbers = {part: number for number, part in enumerate(files)}
    notes: dict[str, None] = {}
    tensors = {}
    for name, ref in chosen.tensors.items():
        tensor = entries[ref.storage.key]
        assert tensor is not None, "`_tree` makes references of tensors alone"
        tensors[name] = _info(name, ref.storage.key, tensor, ranges, files, numbers, notes)
    stored = {f"{name} {piece.offsets}": piece.info for name, info in tensors.items() for piece in info.pieces}
    check_expansion(
        {name: info for name, info in tensors.items() if not info.pieces} | stored,
        sum(file.size for file in files.values()),
    )
    return Source(
        path=path,
        container=DCP,
        files=list(files.values()),
        tensors=tensors,
        extras=chosen.extras,
        roots=[Root(place, count) for place, count in chosen.candidates],
        root=chosen.name,
        root_path=chosen.path,
        notes=[*notes, *chosen.notes],
    )


def _broken(why: str) -> InputRefused:
    return InputRefused(f"its .metadata is broken: {why}", hint=_AGAIN)


# --- .metadata -------------------------------------------------------------------------------------


def _record(value: object, module: str, name: str) -> dict[str, object]:
    """The fields of an object of one class; every other object is refused."""
    if (
        not isinstance(value, Opaque)
        or value.cls != Global(module, name)
        or value.arguments
        or value.items
        or value.pairs
    ):
        raise _broken(
            f"{shown(value.cls) if isinstance(value, Opaque) else shown(value)} stands where a {name} belongs"
        )
    state = {} if value.state is None else value.state
    if not isinstance(state, dict):
        raise _broken(f"a {name} without fields")
    return state


def _sizes(value: object) -> tuple[int, ...]:
    if (
        not isinstance(value, (Size, tuple))
        or len(value) > 64
        or not all(type(v) is int and 0 <= v < 1 << 62 for v in value)
    ):
        raise _broken("a shape or offset that is no list of whole numbers")
    return tuple(value)


def _entries(value: object) -> dict[str, _Tensor | None]:
    """Full name -> the tensor, or None for what is no tensor."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise _broken("it has no state dict of named entries")
    if len(value) > MAX_ENTRIES:
        raise _broken(f"more than {MAX_ENTRIES} entries")
    return {name: _entry(name, item) for name, item in value.items()}


def _entry(name: str, item: object) -> _Tensor | None:
    if isinstance(item, Opaque) and item.cls == Global(_MODULE, "BytesStorageMetadata"):
        return None
    fields = _record(item, _MODULE, "TensorStorageMetadata")
    properties, chunks = fields.get("properties"), fields.get("chunks")
    if not isinstance(properties, Opaque) or properties.cls != Global(_MODULE, "TensorProperties"):
        raise _broken(f"{printable(name, 80)} has no properties")
    state = properties.state
    dtype, layout = state[:2] if isinstance(state, tuple) and len(state) > 1 else (None, None)
    if not isinstance(dtype, Global) or dtype.module != "torch":
        raise _broken(f"{printable(name, 80)} has no dtype")
    if not isinstance(layout, Opaque) or layout.arguments != ("torch.strided",):
        raise InputRefused(
            f"{TENSOR} is no strided tensor",
            hint="save it as a plain dense tensor where it was made",
            tensor=name,
        )
    if not isinstance(chunks, list):
        raise _broken(f"{printable(name, 80)} has no chunks")
    shape = _sizes(fields.get("size"))
    parts = [_record(chunk, _MODULE, "ChunkStorageMetadata") for chunk in chunks]
    tensor = _Tensor(
        TORCH_DTYPES.get(dtype.name, f"?{dtype.name}"),
        shape,
        tuple(_Chunk(_sizes(p.get("offsets")), _sizes(p.get("sizes"))) for p in parts),
    )
    _check_tiling(name, tensor)
    return tensor


def _check_tiling(name: str, tensor: _Tensor) -> None:
    """Raise InputRefused unless the chunks lie in the tensor, share no entry, and leave none out."""

    def refuse(why: str) -> InputRefused:
        return InputRefused(f"{TENSOR}: {why}", hint=_AGAIN, tensor=name)

    rank = len(tensor.shape)
    for chunk in tensor.chunks:
        if len(chunk.offsets) != rank or len(chunk.sizes) != rank:
            raise refuse("a chunk of another number of dimensions")
        if any(at + size > whole for at, size, whole in zip(chunk.offsets, chunk.sizes, tensor.shape, strict=True)):
            raise refuse("a chunk reaches outside the tensor")
    if not tensor.chunks or sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(tensor.shape):
        raise refuse("its chunks do not add up to the tensor: some are missing or given twice")
    if len({chunk.offsets for chunk in tensor.chunks}) != len(tensor.chunks):
        raise refuse("two chunks lie at one place")
    full = [chunk for chunk in tensor.chunks if 0 not in chunk.sizes]
    if len(full) < 2:
        return
    # Swept along the dimension with the most cuts: a chunk meets only those that it stands beside there.
    along = max(range(rank), key=lambda d: len({chunk.offsets[d] for chunk in full}))
    active: list[_Chunk] = []
    compared = 0
    for chunk in sorted(full, key=lambda chunk: chunk.offsets[along]):
        active = [other for other in active if other.offsets[along] + other.sizes[along] > chunk.offsets[along]]
        compared += len(active)
        if compared > _MAX_COMPARED:
            raise refuse("cut into more chunks than any checkpoint is")
        for other in active:
            if all(
                a < b + m and b < a + n
                for a, n, b, m in zip(chunk.offsets, chunk.sizes, other.offsets, other.sizes, strict=True)
            ):
                raise refuse("two of its chunks overlap")
        active.append(chunk)


def _ranges(value: object, entries: Mapping[str, _Tensor | None]) -> dict[_Place, _Range]:
    """The range of each chunk and value that the entries have, and of nothing else."""
    if not isinstance(value, dict):
        raise _broken("it does not say where its data is")
    found: dict[_Place, _Range] = {}
    for key, item in value.items():
        index = _record(key.value if isinstance(key, Key) else key, _MODULE, "MetadataIndex")
        name, offset = index.get("fqn"), index.get("offset")
        if not isinstance(name, str) or name not in entries:
            raise _broken(f"data of {shown(name)}, which it does not describe")
        place = (name, None if entries[name] is None else _sizes(offset))
        if place in found:
            raise _broken(f"data of {printable(name, 80)} is given twice")
        found[place] = _range(name, item)
    wanted = {
        (name, chunk and chunk.offsets)
        for name, tensor in entries.items()
        for chunk in (tensor.chunks if tensor else (None,))
    }
    if wanted != set(found):
        name = min(place[0] for place in wanted ^ set(found))
        raise _broken(f"the data of {printable(name, 80)} are not its chunks")
    return found


def _range(name: str, item: object) -> _Range:
    fields = _record(item, _FILES, "_StorageInfo")
    part, offset, length = fields.get("relative_path"), fields.get("offset"), fields.get("length")
    if (
        not isinstance(part, str)
        or part in ("", ".", "..", METADATA)
        or len(part) > 255
        or any(c in part for c in "/\\\0")
    ):
        raise _broken(f"{printable(name, 80)} is in {shown(part)}, which is no plain file name")
    if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
        raise _broken(f"{printable(name, 80)} lies at no place")
    if fields.get("transform_descriptors"):
        raise InputRefused(
            "its parts are compressed or encrypted by an extension of torch.distributed.checkpoint",
            hint="load it with torch and save it without the extension",
        )
    return _Range(part, offset, length)


def _check_ranges(ranges: Mapping[_Place, _Range], files: Mapping[str, InputFile]) -> None:
    """Raise InputRefused unless every range lies in its file and no two share a byte."""
    last: tuple[str, int] = ("", 0)
    for (name, _), r in sorted(ranges.items(), key=lambda item: (item[1].part, item[1].offset, item[1].length)):
        if r.offset + r.length > files[r.part].size:
            raise InputRefused(
                f"{printable(r.part)} is cut short: {TENSOR} reaches beyond its end",
                hint=_AGAIN,
                tensor=name,
            )
        if r.part == last[0] and r.offset < last[1]:
            raise _broken(f"{printable(name, 80)} shares bytes with another entry")
        last = r.part, r.offset + r.length


def _tree(entries: Mapping[str, _Tensor | None], paths: object) -> dict[object, object]:
    """The nested dicts that were saved, as .metadata's planner data has their paths; flat where it has none."""
    paths = paths if isinstance(paths, dict) else {}
    tree: dict[object, object] = {}
    room = _STEPS * len(entries) + 1000
    for name, tensor in entries.items():
        path = paths.get(name, (name,))
        if not isinstance(path, tuple) or not 0 < len(path) <= 100 or any(type(at) not in (str, int) for at in path):
            raise _broken(f"{printable(name, 80)} has no path")
        room -= len(path)
        if room < 0:
            raise _broken("its entries nest deeper than any checkpoint's")
        leaf = _PICKLED if tensor is None else _ref(name, tensor)
        # A list is no state dict, whatever is in it: its values are listed, not named.
        begin = next((at for at, step in enumerate(path) if type(step) is int), None)
        steps, in_list = path[:-1] if begin is None else path[:begin], begin is not None
        here, values = tree, None
        for number, step in enumerate(steps):
            last = in_list and number == len(steps) - 1
            below = here.setdefault(step, [] if last else {})
            if last and isinstance(below, list):
                values = below
            elif not last and isinstance(below, dict):
                here = below
            else:
                raise _broken(f"the path of {printable(name, 80)} leads through a value")
        if values is not None:
            values.append(leaf)
        elif in_list or path[-1] in here:
            raise _broken(f"the path of {printable(name, 80)} is taken")
        else:
            here[path[-1]] = leaf
    return tree


def _ref(name: str, tensor: _Tensor) -> TensorRef:
    """The tensor as the search for state dicts knows one; its storage's key is the entry's name."""
    stride = tuple(math.prod(tensor.shape[d + 1 :]) for d in range(len(tensor.shape)))
    return TensorRef(
        StorageRef(name, tensor.dtype, math.prod(tensor.shape), "cpu"), tensor.dtype, 0, tensor.shape, stride
    )


# --- the parts -------------------------------------------------------------------------------------


class _Window(InputFile):
    """One range of an open file, as a file by itself. Its two ends, where an archive describes itself, are read at
    once.
    """

    def __init__(self, file: InputFile, r: _Range):
        self._file, self._base = file, r.offset
        self.path, self.size = file.path, r.length
        ends = {0: min(r.length, _END_BYTES), max(0, r.length - _END_BYTES): min(r.length, _END_BYTES)}
        self._ends = {offset: file.read(r.offset + offset, length) for offset, length in ends.items()}

    def read(self, offset: int, length: int) -> bytearray:
        for start, data in self._ends.items():
            if offset - start >= 0 and offset - start + length <= len(data):
                return data[offset - start : offset - start + length]
        return super().read(offset, length)

    def read_into(self, offset: int, view: memoryview) -> None:
        self._file.read_into(self._base + offset, view)


def _info(
    name: str,
    entry: str,
    tensor: _Tensor,
    ranges: Mapping[_Place, _Range],
    files: Mapping[str, InputFile],
    numbers: Mapping[str, int],
    notes: dict[str, None],
) -> TensorInfo:
    pieces = []
    for chunk in tensor.chunks:
        r = ranges[entry, chunk.offsets]
        try:
            info = _chunk_info(name, tensor, chunk, _Window(files[r.part], r), numbers[r.part], r.offset, notes)
        except InputRefused as error:
            error.tensor, error.part = name, r.part
            raise
        pieces.append(Piece(info, chunk.offsets))
    if len(pieces) == 1:
        return pieces[0].info
    if tensor.dtype == PAIRS:
        raise InputRefused(
            f"{TENSOR} is packed in pairs, and cut into {len(pieces)} chunks",
            hint="save it in one piece",
            tensor=name,
        )
    full = [piece for piece in pieces if piece.info.numel]
    return TensorInfo(name, tensor.dtype, tensor.shape, pieces[0].info.storage, pieces=tuple(full))


def _chunk_info(
    name: str, tensor: _Tensor, chunk: _Chunk, window: InputFile, number: int, base: int, notes: dict[str, None]
) -> TensorInfo:
    """The chunk's tensor as a range of its part file."""
    if bytes(window.read(0, min(4, window.size))) != b"PK\x03\x04":
        raise InputRefused("its bytes are no archive of torch.save", hint=_AGAIN)
    loaded, storages, told = zip_parts(window)
    notes.update(dict.fromkeys(told))
    ref = loaded.value
    if not isinstance(ref, TensorRef) or ref.dtype != tensor.dtype or ref.shape != chunk.sizes:
        raise InputRefused("it holds another tensor than .metadata says", hint=_AGAIN)
    moved: dict[str, Storage] = {
        key: replace(storage, file=number, offset=base + storage.offset, tensor=name)
        for key, storage in storages.items()
    }
    return tensor_info(name, ref, moved)
