"""What the .metadata of a torch.distributed.checkpoint (DCP) folder says, checked field by field.

torch reads it with `pickle.load`. Here it is read symbolically (pickle_data): entries whose chunks tile their tensor,
and for each chunk a range of a part with a plain file name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import TENSOR, InputRefused
from ...text import printable
from ..disk.input_file import InputFile
from ..header import MAX_TENSORS
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
from .recognise import DCP_METADATA

_MODULE = "torch.distributed.checkpoint.metadata"
_FILES = "torch.distributed.checkpoint.filesystem"
# Pairs of chunks of one tensor that are compared; chunks cut along one dimension need one comparison each.
_MAX_COMPARED = 2_000_000
# Dicts that may stand above an entry, on average.
_STEPS = 8
AGAIN = "copy the whole folder again"
# What a value that is no tensor is called in lists: its type is known to its pickle alone.
_PICKLED = type("pickled object", (), {})()


@dataclass(frozen=True)
class Range:
    """Where one write of torch lies: a part file and a run of its bytes."""

    part: str
    offset: int
    length: int


# The name of an entry and the offsets of a chunk of it; None for what is no tensor.
Place = tuple[str, tuple[int, ...] | None]


@dataclass(frozen=True)
class Chunk:
    """A block of a tensor that was written by itself."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A tensor of the checkpoint."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    is_strided: bool = True


@dataclass(frozen=True)
class Metadata:
    """The entries by full name (None: no tensor), where each of their chunks lies, and the nested dicts that were
    saved.
    """

    entries: dict[str, Entry | None]
    ranges: dict[Place, Range]
    paths: object

    @property
    def parts(self) -> set[str]:
        return {r.part for r in self.ranges.values()}

    def tree(self) -> dict[object, object]:
        """With references in the places of tensors, whose storages have the entries' names for keys."""
        return _tree(self.entries, self.paths)


def read_metadata(file: InputFile) -> Metadata:
    """Raises InputRefused for anything broken in it."""
    if file.size > MAX_BYTES:
        raise InputRefused(f"its .metadata is {file.size} bytes long; {MAX_BYTES} is the limit")
    data = bytes(file.read(0, file.size))
    loaded = read_pickle(data)
    if loaded.end != len(data):
        raise broken("bytes after its end belong to nothing")
    check_structure(loaded.value)
    top = _record(loaded.value, _MODULE, "Metadata")
    ranges = _ranges(top.get("storage_data"))
    # Names may share one long list of chunks, but each of them has data of its own.
    entries = _entries(top.get("state_dict_metadata"), 2 * len(ranges) + 1000)
    _check_places(entries, ranges)
    return Metadata(entries, ranges, top.get("planner_data"))


def broken(why: str) -> InputRefused:
    """The refusal of a .metadata."""
    return InputRefused(f"its .metadata is broken: {why}", hint=AGAIN, code="damaged")


def _record(value: object, module: str, name: str) -> dict[str, object]:
    """The fields of an object of one class; every other object is refused."""
    if (
        not isinstance(value, Opaque)
        or value.cls != Global(module, name)
        or value.arguments
        or value.items
        or value.pairs
    ):
        raise broken(f"{shown(value.cls) if isinstance(value, Opaque) else shown(value)} stands where a {name} belongs")
    state = {} if value.state is None else value.state
    if not isinstance(state, dict):
        raise broken(f"a {name} without fields")
    return state


def _sizes(value: object) -> tuple[int, ...]:
    if (
        not isinstance(value, (Size, tuple))
        or len(value) > 64
        or not all(type(v) is int and 0 <= v < 1 << 62 for v in value)
    ):
        raise broken("a shape or offset that is no list of whole numbers")
    return tuple(value)


def _entries(value: object, most: int) -> dict[str, Entry | None]:
    """Full name -> the tensor, or None for what is no tensor; at most so many chunks of them."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise broken("it has no state dict of named entries")
    if len(value) > MAX_TENSORS:
        raise broken(f"more than {MAX_TENSORS} entries")
    found: dict[str, Entry | None] = {}
    for name, item in value.items():
        fields = _tensor_fields(item)
        chunks = fields and fields.get("chunks")
        most -= len(chunks) if isinstance(chunks, list) else 1
        if most < 0:
            raise broken("it describes more chunks than it has data of")
        found[name] = None if fields is None else _entry(name, fields)
    return found


def _tensor_fields(item: object) -> dict[str, object] | None:
    """Of a tensor's entry; None for that of another value."""
    if isinstance(item, Opaque) and item.cls == Global(_MODULE, "BytesStorageMetadata"):
        return None
    return _record(item, _MODULE, "TensorStorageMetadata")


def _entry(name: str, fields: Mapping[str, object]) -> Entry:
    properties, chunks = fields.get("properties"), fields.get("chunks")
    if not isinstance(properties, Opaque) or properties.cls != Global(_MODULE, "TensorProperties"):
        raise broken(f"{printable(name, 80)} has no properties")
    state = properties.state
    dtype, layout = state[:2] if isinstance(state, tuple) and len(state) > 1 else (None, None)
    if not isinstance(dtype, Global) or dtype.module != "torch":
        raise broken(f"{printable(name, 80)} has no dtype")
    if not isinstance(chunks, list):
        raise broken(f"{printable(name, 80)} has no chunks")
    shape = _sizes(fields.get("size"))
    parts = [_record(chunk, _MODULE, "ChunkStorageMetadata") for chunk in chunks]
    tensor = Entry(
        TORCH_DTYPES.get(dtype.name, f"?{dtype.name}"),
        shape,
        tuple(Chunk(_sizes(p.get("offsets")), _sizes(p.get("sizes"))) for p in parts),
        is_strided=isinstance(layout, Opaque) and layout.arguments == ("torch.strided",),
    )
    _check_tiling(name, tensor)
    return tensor


def _check_tiling(name: str, tensor: Entry) -> None:
    """Raise InputRefused unless the chunks lie in the tensor, share no entry, and leave none out."""

    def refuse(why: str) -> InputRefused:
        return InputRefused(f"{TENSOR}: {why}", hint=AGAIN, tensor=name, code="damaged")

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
    active: list[Chunk] = []
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


def _ranges(value: object) -> dict[Place, Range]:
    """The range of each chunk and value that there are data of."""
    if not isinstance(value, dict):
        raise broken("it does not say where its data is")
    found: dict[Place, Range] = {}
    for key, item in value.items():
        index = _record(key.value if isinstance(key, Key) else key, _MODULE, "MetadataIndex")
        name, offset = index.get("fqn"), index.get("offset")
        if not isinstance(name, str):
            raise broken(f"data of {shown(name)}, which is no name")
        place = (name, None if offset is None else _sizes(offset))
        if place in found:
            raise broken(f"data of {printable(name, 80)} is given twice")
        found[place] = _range(name, item)
    return found


def _check_places(entries: Mapping[str, Entry | None], ranges: Mapping[Place, Range]) -> None:
    """Raise InputRefused unless there are data of what the entries have, and of nothing else."""
    wanted = {
        (name, chunk and chunk.offsets)
        for name, tensor in entries.items()
        for chunk in (tensor.chunks if tensor else (None,))
    }
    if wanted != ranges.keys():
        name = min(place[0] for place in wanted ^ ranges.keys())
        if name not in entries:
            raise broken(f"data of {printable(name, 80)}, which it does not describe")
        raise broken(f"the data of {printable(name, 80)} are not its chunks")


def _range(name: str, item: object) -> Range:
    fields = _record(item, _FILES, "_StorageInfo")
    part, offset, length = fields.get("relative_path"), fields.get("offset"), fields.get("length")
    if (
        not isinstance(part, str)
        or part in ("", ".", "..", DCP_METADATA)
        or len(part) > 255
        or any(c in part for c in "/\\\0")
    ):
        raise broken(f"{printable(name, 80)} is in {shown(part)}, which is no plain file name")
    if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
        raise broken(f"{printable(name, 80)} lies at no place")
    if fields.get("transform_descriptors"):
        raise InputRefused(
            "its parts are compressed or encrypted by an extension of torch.distributed.checkpoint",
            hint="load it with torch and save it without the extension",
        )
    return Range(part, offset, length)


def _tree(entries: Mapping[str, Entry | None], paths: object) -> dict[object, object]:
    """The nested dicts that were saved, as .metadata's planner data has their paths; flat where it has none."""
    paths = paths if isinstance(paths, dict) else {}
    tree: dict[object, object] = {}
    room = _STEPS * len(entries) + 1000
    for name, tensor in entries.items():
        path = paths.get(name, (name,))
        if not isinstance(path, tuple) or not 0 < len(path) <= 100 or any(type(at) not in (str, int) for at in path):
            raise broken(f"{printable(name, 80)} has no path")
        room -= len(path)
        if room < 0:
            raise broken("its entries nest deeper than any checkpoint's")
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
                raise broken(f"the path of {printable(name, 80)} leads through a value")
        if values is not None:
            values.append(leaf)
        elif in_list or path[-1] in here:
            raise broken(f"the path of {printable(name, 80)} is taken")
        else:
            here[path[-1]] = leaf
    return tree


def _ref(name: str, tensor: Entry) -> TensorRef:
    """The tensor as the search for state dicts knows one; its storage's key is the entry's name."""
    stride = tuple(math.prod(tensor.shape[d + 1 :]) for d in range(len(tensor.shape)))
    return TensorRef(
        StorageRef(name, tensor.dtype, math.prod(tensor.shape), "cpu"), tensor.dtype, 0, tensor.shape, stride
    )
