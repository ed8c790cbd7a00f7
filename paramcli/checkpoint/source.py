"""A checkpoint as named tensors and the byte ranges they lie in.

Every container, safetensors or torch, one file or many shards, becomes one `Source`: `TensorInfo`
by name, each pointing at a `Storage` (a byte range of one file), checked against the file's size.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..dtypes import DTYPES, nbytes_of, torch_dtype
from ..errors import PATH, TENSOR, InputRefused
from ..text import printable
from ..wording import LEAVE_OUT
from .disk.input_file import InputFile
from .disk.memory import Blocks

if TYPE_CHECKING:
    from concurrent.futures import Future

    from torch import Tensor

    from .disk.stream import Stream

# Threads that compare checksums ahead of need, without the interpreter's lock.
CHECKERS = 2
# Rows of a tensor, indices [first, end) of dimension 0; None for all of them.
Rows = tuple[int, int] | None


# The one key of metadata of which each shard has a part of its own; spelling/record.py reads it.
RECORD_KEY = "paramcli"


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes in one file of the source: file number, offset, length.

    `crc` is the checksum the container recorded for these bytes (None: it records none).
    Tensors of a torch file that share a storage share this object's `key`. `tensor`: the only one it can be of, where
    the container gives each its own.
    """

    file: int
    offset: int
    nbytes: int
    key: str
    crc: int | None = None
    tensor: str | None = None
    # What gives the bytes where the file holds them otherwise, or not at all.
    decode: Callable[[InputFile], bytearray] | None = None


@dataclass(frozen=True, slots=True)
class Odd:
    """Why a tensor can be listed and not be carried.

    `why`: a sentence with TENSOR in the place of its name; `hint`: what would mend that. `by_name`: its bytes are as
    any other's, and only its name is none that a result could have.
    """

    why: str
    hint: str
    by_name: bool = False


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor by name, without its data.

    `offset` counts bytes from the storage's start; `stride` counts elements and is None for a
    row-major tensor, whose bytes are then exactly one run of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    storage: Storage
    offset: int = 0
    stride: tuple[int, ...] | None = None
    # The blocks of a tensor that was stored in several; `storage` is then that of the first.
    pieces: tuple[Piece, ...] = ()
    # Why there is no more of it than its name; its dtype may then be "?" and torch's word for it.
    odd: Odd | None = None

    @property
    def is_readable(self) -> bool:
        return self.odd is None or self.odd.by_name

    @property
    def nbytes(self) -> int:
        """Bytes of its values; none where they cannot be read."""
        return nbytes_of(self.dtype, self.shape) if self.is_readable else 0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def run(self) -> tuple[int, int, int] | None:
        """(file, offset, length) of the row-major bytes; None where they lie otherwise, or cannot be read."""
        if self.stride is not None or self.pieces or not self.is_readable or self.storage.decode is not None:
            return None
        return self.storage.file, self.storage.offset + self.offset, self.nbytes


@dataclass(frozen=True)
class Piece:
    """A block of a tensor, stored by itself: its own place in the files, and its first entry's place in the tensor."""

    info: TensorInfo
    offsets: tuple[int, ...]


@dataclass(frozen=True)
class Extra:
    """Something in the file that is not a tensor of the chosen state dict: its dotted name and type.

    `carried` is False for what not even a torch result can carry: the code of a pickled object.
    """

    name: str
    type: str
    carried: bool = True


@dataclass(frozen=True)
class Part:
    """A dict of a torch file that tensors lie in: the steps to it, and what stands before its keys in their names.

    `renamed`: key -> name, of tensors whose name is another than prefix and key.
    """

    path: tuple[str | int, ...]
    prefix: str = ""
    renamed: Mapping[object, str] = field(default_factory=dict)

    def name_of(self, key: object) -> str | None:
        """The name of the tensor under a key, if it is one; None for a key that can be none's."""
        return self.renamed.get(key) or (self.prefix + key if isinstance(key, str) else None)


@dataclass(frozen=True)
class Root:
    """A state dict inside a torch checkpoint: where it is ('' is the top level), and its size."""

    name: str
    tensors: int


@dataclass
class Source:
    """An open checkpoint. Close it, or use it in a `with`."""

    path: Path
    # "safetensors", "sharded safetensors", "torch zip", "torch legacy", "sharded torch", "torch DCP", "pickle"
    container: str
    files: list[InputFile]
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)
    extras: list[Extra] = field(default_factory=list)
    roots: list[Root] = field(default_factory=lambda: [Root("", 0)])
    root: str = ""
    # The steps that lead to the root; its dotted name alone does not tell them apart. `is_loaded`: as keys and indexes
    # they lead to one state dict in what torch.load gives.
    root_path: tuple[str | int, ...] = ()
    is_loaded: bool = True
    # The dicts that the tensors lie in; none but for a torch file.
    parts: tuple[Part, ...] = ()
    notes: list[str] = field(default_factory=list)
    # The names of those extras, or of parts of them, that are the state of this state dict's optimizers.
    optimizers: list[str] = field(default_factory=list)
    # The folder whose checkpoint this is, where that was given, or its index: its other files belong to a result.
    home: Path | None = None
    # Shard file name -> its tensors' names, in order; empty for one file.
    shards: dict[str, list[str]] = field(default_factory=dict)
    # Shard file name -> its paramcli record, where they are not all one text; each speaks of the tensors in its shard.
    shard_records: dict[str, str] = field(default_factory=dict)
    # The index of a sharded checkpoint, and what it says beside total_size.
    index: InputFile | None = None
    index_metadata: dict[str, object] = field(default_factory=dict)
    # The whole decoded pickle of a torch file (pickle_data values), for outputs that keep it.
    tree: object = None
    # Every storage of a torch file by its key, those outside the state dict too.
    storages: dict[str, Storage] = field(default_factory=dict)
    # Tensors of adapters that were opened with it: no result has a copy of them.
    beside: frozenset[str] = frozenset()
    # (file, offset) of a storage -> its comparison, made by whoever asked first: True, or why it is refused.
    _checks: dict[tuple[int, int], Future[bool]] = field(default_factory=dict, repr=False)
    _checking: list[threading.Thread] = field(default_factory=list, repr=False)
    # Each thread's stream of what is only summed up.
    _kept: threading.local = field(default_factory=threading.local, repr=False)
    _blocks: Blocks = field(default_factory=Blocks, repr=False)
    _closing: threading.Event = field(default_factory=threading.Event, repr=False)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        for thread in self._checking:
            thread.join()
        for file in self.read_files:
            file.close()

    @property
    def read_files(self) -> list[InputFile]:
        """Every file that was opened for this: those with tensors, and the index that names them."""
        return [*self.files, *([self.index] if self.index else [])]

    @property
    def folder(self) -> Path:
        """The folder that it lies in, whether it was opened by folder, by index or by file."""
        return self.path if os.path.isdir(self.path) else self.path.parent

    @property
    def tells_strides(self) -> bool:
        """Is a tensor without strides row-major where it was saved? torch's files keep strides, others have none."""
        return self.container in ("torch zip", "torch legacy", "sharded torch", "pickle")

    @property
    def nbytes(self) -> int:
        """Bytes of all files as they lie on disk."""
        return sum(file.size for file in self.files)

    def check_unchanged(self) -> None:
        for file in self.read_files:
            file.check_unchanged()

    def check_storage(self, storage: Storage) -> None:
        """Compare a storage with the checksum its container recorded: once, and for all threads that ask."""
        if storage.crc is not None:
            self.pass_through(storage)

    def pass_through(self, storage: Storage, stream: Stream | None = None) -> int:
        """Send a storage's bytes along `stream`, and compare their checksum as `check_storage` does; gives the
        checksum.

        Both in one pass, unless another thread has begun the comparison: the sum of a block that was just read, and is
        about to be written, costs no second way from memory.
        """
        from concurrent.futures import Future

        place = storage.file, storage.offset
        mine: Future[bool] = Future()
        while storage.crc is not None:
            check = self._checks.setdefault(place, mine)
            if check is mine:
                break
            if stream is not None:
                self._pass(storage, stream, compare=False)
                stream = None
            if check.result():
                return storage.crc
            # Who had begun the comparison was stopped by something else, and it is still to be made.
        try:
            crc = self._pass(storage, stream, compare=storage.crc is not None)
        except InputRefused as error:
            mine.set_exception(error)
            raise
        except BaseException:
            self._checks.pop(place, None)
            mine.set_result(False)
            raise
        mine.set_result(True)
        return crc

    def check_ahead(self, names: Iterable[str]) -> None:
        """Begin comparing the checksums of tensors that will be read, in threads of their own.

        What is wrong with a storage is raised when it is needed.
        """
        storages = [self.tensors[name].storage for name in names]
        waiting = {(s.file, s.offset): s for s in storages if s.crc is not None}
        # Largest first, so that the threads end together.
        queue = iter(sorted(waiting.values(), key=lambda storage: -storage.nbytes))
        lock = threading.Lock()

        def work() -> None:
            while not self._closing.is_set():
                with lock:
                    storage = next(queue, None)
                if storage is None:
                    return
                try:
                    self.check_storage(storage)
                except Exception:
                    return  # kept, and raised where the storage is needed

        for _ in range(min(CHECKERS, os.cpu_count() or 1) if waiting else 0):
            self._checking.append(threading.Thread(target=work, daemon=True))
            self._checking[-1].start()

    def _pass(self, storage: Storage, stream: Stream | None, compare: bool) -> int:
        import zlib

        if stream is None:
            if not hasattr(self._kept, "stream"):
                from .disk.stream import Stream

                self._kept.stream = Stream()
            stream = self._kept.stream
        file, crc, at = self.files[storage.file], 0, 0
        summed = compare or storage.crc is None
        while at < storage.nbytes:
            if self._closing.is_set():
                raise ValueError(f"{file.path} is closed")
            part = stream.room(storage.nbytes - at)
            file.read_into(storage.offset + at, part)
            if summed:
                crc = zlib.crc32(part, crc)
            stream.came(len(part))
            at += len(part)
        if compare and crc != storage.crc:
            key = printable(storage.key) if storage.tensor is None else f"{TENSOR}: {printable(storage.key)}"
            raise InputRefused(
                f"{PATH} is damaged: the checksum of '{key}' does not match its bytes",
                hint="copy or download the file again",
                tensor=storage.tensor,
                path=file.path,
                code="damaged",
            )
        return crc

    def read_bytes(self, name: str) -> bytearray:
        """The tensor's row-major bytes in new memory, their checksums compared; InputRefused for one that is odd."""
        info = self._readable(name)
        if not info.pieces:
            self.check_storage(info.storage)
        run = info.run
        if run is not None:
            file, offset, length = run
            return self.files[file].read(offset, length)
        tensor = self.read(name)  # alive until its bytes are copied
        return bytearray(tensor_bytes(tensor))

    def read(self, name: str) -> Tensor:
        """The tensor as a new contiguous torch.Tensor on the CPU; InputRefused for one that is odd."""
        import torch

        info = self._readable(name)
        if not info.pieces:
            return self.read_block(info)
        whole = torch.empty(info.shape, dtype=torch_dtype(info.dtype))
        for piece in info.pieces:
            place = tuple(slice(at, at + size) for at, size in zip(piece.offsets, piece.info.shape, strict=True))
            whole[place] = self.read_block(piece.info)
        return whole

    def _readable(self, name: str) -> TensorInfo:
        info = self.tensors[name]
        if info.odd is not None and not info.odd.by_name:
            raise InputRefused(info.odd.why, hint=f"{LEAVE_OUT}, or {info.odd.hint}", tensor=name, path=self.path)
        return info

    def read_rows(self, name: str, begin: int, end: int, seen: TensorInfo | None = None) -> Tensor:
        """Rows [begin, end) of a row-major tensor, indices of dimension 0, as a new torch.Tensor on the CPU, its bytes
        read as `seen` says. The checksum of its storage, which covers more, is left to who asks for the rows.
        """
        import torch

        info = seen or self.tensors[name]
        place = info.storage.offset + info.offset
        shape = (end - begin, *info.shape[1:])
        each = nbytes_of(info.dtype, info.shape[1:])
        dtype = torch_dtype(info.dtype)
        if not math.prod(shape):
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(
            self._bytes_for(info.storage.file, place + begin * each, nbytes_of(info.dtype, shape)), dtype=dtype
        ).reshape(shape)

    def read_block(self, info: TensorInfo) -> Tensor:
        """The same of a tensor that lies in one storage, or a block of one that lies in several."""
        import torch

        assert info.is_readable, info
        dtype = torch_dtype(info.dtype)
        if info.numel == 0:
            return torch.empty(info.shape, dtype=dtype)
        self.check_storage(info.storage)
        file, place = info.storage.file, info.storage.offset + info.offset
        data: bytearray | memoryview
        if info.storage.decode is not None:
            data = info.storage.decode(self.files[file])
        elif info.stride is None:
            data = self._bytes_for(file, place, info.nbytes)
        else:
            last = sum((size - 1) * step for size, step in zip(info.shape, info.stride, strict=True))
            data = self.files[file].read(place, (last + 1) * (DTYPES[info.dtype].bits // 8))
        flat = torch.frombuffer(data, dtype=dtype)
        return (
            flat.reshape(info.shape) if info.stride is None else flat.as_strided(info.shape, info.stride).contiguous()
        )

    def _bytes_for(self, file: int, offset: int, length: int) -> memoryview:
        """Bytes of a file for a tensor to lie over."""
        self.files[file].require(offset, length)
        view = self._blocks.take(length)
        self.files[file].read_into(offset, view)
        return view

    def blocks(self) -> dict[str, TensorInfo]:
        """Each tensor as it is stored: whole, or (under names that tell them apart) the blocks that it is made of."""
        whole = {name: info for name, info in self.tensors.items() if not info.pieces}
        return whole | {
            f"{name} {piece.offsets}": piece.info for name, info in self.tensors.items() for piece in info.pieces
        }

    def tied(self) -> list[list[str]]:
        """Groups of names that are one tensor: same storage, offset, shape and stride."""
        if self.container in ("safetensors", "sharded safetensors"):
            return []  # no two tensors share a byte
        groups: dict[Hashable, list[str]] = {}
        for name, info in self.tensors.items():
            if info.numel and info.is_readable:
                blocks = tuple((_place(piece.info), piece.offsets) for piece in info.pieces)
                groups.setdefault((blocks or _place(info), info.dtype, info.shape), []).append(name)
        return [names for names in groups.values() if len(names) > 1]


def _place(info: TensorInfo) -> tuple[Hashable, ...]:
    # Two arrays may be made of the same bytes, and of other numbers.
    return info.storage.file, info.storage.offset, info.storage.decode, info.offset, info.stride


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, without numpy; they keep the tensor alive."""
    import ctypes

    # A conjugate or negated view is contiguous too, over memory that holds other values than it has.
    tensor = tensor.resolve_conj().resolve_neg()

    if not tensor.numel():
        return memoryview(b"")
    size = tensor.numel() * tensor.element_size()
    buffer = (ctypes.c_char * size).from_address(tensor.data_ptr())
    # Without this the memory of a temporary tensor is reused while it is being written.
    buffer.owner = tensor  # type: ignore[attr-defined]  # an attribute of our own
    return memoryview(buffer).cast("B")
