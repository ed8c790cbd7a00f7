"""A torch.distributed.checkpoint (DCP) folder as a Source: described from its pickles, never unpickled.

    .metadata        a pickle: every tensor's dtype, shape and chunks, and for each chunk a range of a part file
    __0_0.distcp     one after another what was written: each tensor chunk a torch.save archive, other values a pickle

What .metadata says is checked by itself (dcp_metadata), and here against the parts: ranges lie in their file and share
no byte, and a chunk's archive holds one tensor, of the dtype and shape that .metadata says. A tensor in one chunk is
then a byte range as in any container; one in several is put together when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from ...errors import TENSOR, InputRefused
from ...text import printable
from ..disk.input_file import InputFile, OpenFiles
from ..pickle.pickle_data import TensorRef, Unpickled
from ..source import Piece, Root, Source, Storage, TensorInfo
from .dcp_metadata import AGAIN, Chunk, Entry, Place, Range, broken, read_metadata
from .recognise import DCP
from .recognise import DCP_METADATA as METADATA
from .roots import choose_root
from .torch_file import DENSE, PAIRS, check_expansion, collector_paused, odd_info, tensor_info, zip_parts

# What a small archive is whole, and the pickle and the directory of a larger one.
_END_BYTES = 1 << 13


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
            return read_metadata(metadata).parts
    except InputRefused:
        return set()


def _open(path: Path, root: str | None, files: dict[str, InputFile], metadata: str) -> Source:
    files[metadata] = InputFile(path / metadata)
    said = read_metadata(files[metadata])
    chosen = choose_root(said.tree(), root)
    pool = OpenFiles()
    for part in sorted(said.parts):
        if not os.path.lexists(path / part):
            raise InputRefused(f"its part {printable(part)} is not there", hint=AGAIN, code="incomplete")
        files[part] = InputFile(path / part, pool)
    _check_ranges(said.ranges, files)
    numbers = {part: number for number, part in enumerate(files)}
    notes: dict[str, None] = {}
    known: dict[bytes, Unpickled] = {}
    tensors = {}
    for name, ref in chosen.tensors.items():
        tensor = said.entries[ref.storage.key] if isinstance(ref, TensorRef) else None
        assert isinstance(ref, TensorRef) and tensor is not None, "the tree has references of tensors alone"
        info = _info(name, ref.storage.key, tensor, said.ranges, files, numbers, notes, known)
        tensors[name] = replace(info, odd=info.odd or chosen.odd_names.get(name))
    source = Source(
        path=path,
        container=DCP,
        files=list(files.values()),
        tensors=tensors,
        extras=chosen.extras,
        roots=[Root(place, count) for place, count in chosen.candidates],
        root=chosen.name,
        root_path=chosen.path,
        is_loaded=chosen.is_loaded,
        notes=[*notes, *chosen.note(tensors.values())],
    )
    check_expansion(source.blocks(), source.nbytes)
    return source


def _check_ranges(ranges: Mapping[Place, Range], files: Mapping[str, InputFile]) -> None:
    """Raise InputRefused unless every range lies in its file and no two share a byte."""
    last: tuple[str, int] = ("", 0)
    for (name, _), r in sorted(ranges.items(), key=lambda item: (item[1].part, item[1].offset, item[1].length)):
        if r.offset + r.length > files[r.part].size:
            raise InputRefused(
                f"{printable(r.part)} is cut short: {TENSOR} reaches beyond its end",
                hint=AGAIN,
                tensor=name,
                code="cut_short",
            )
        if r.part == last[0] and r.offset < last[1]:
            raise broken(f"{printable(name, 80)} shares bytes with another entry")
        last = r.part, r.offset + r.length


class _Window(InputFile):
    """One range of an open file, as a file by itself. Its two ends, where an archive describes itself, are read at
    once.
    """

    def __init__(self, file: InputFile, r: Range):
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
    tensor: Entry,
    ranges: Mapping[Place, Range],
    files: Mapping[str, InputFile],
    numbers: Mapping[str, int],
    notes: dict[str, None],
    known: dict[bytes, Unpickled],
) -> TensorInfo:
    if not tensor.is_strided:
        return odd_info(name, tensor.dtype, tensor.shape, f"{TENSOR} is no strided tensor", DENSE)
    pieces = []
    for chunk in tensor.chunks:
        r = ranges[entry, chunk.offsets]
        try:
            window = _Window(files[r.part], r)
            info = _chunk_info(name, tensor, chunk, window, numbers[r.part], r.offset, notes, known)
        except InputRefused as error:
            error.tensor, error.part = name, r.part
            raise
        pieces.append(Piece(info, chunk.offsets))
    if len(pieces) == 1:
        return pieces[0].info
    if tensor.dtype == PAIRS:
        why = f"{TENSOR} is packed in pairs, and cut into {len(pieces)} chunks"
        return odd_info(name, tensor.dtype, tensor.shape, why, "save it in one piece")
    if (odd := next((piece.info.odd for piece in pieces if piece.info.odd), None)) is not None:
        return odd_info(name, tensor.dtype, tensor.shape, odd.why, odd.hint)
    full = [piece for piece in pieces if piece.info.numel]
    return TensorInfo(name, tensor.dtype, tensor.shape, pieces[0].info.storage, pieces=tuple(full))


def _chunk_info(
    name: str,
    tensor: Entry,
    chunk: Chunk,
    window: InputFile,
    number: int,
    base: int,
    notes: dict[str, None],
    known: dict[bytes, Unpickled],
) -> TensorInfo:
    """The chunk's tensor as a range of its part file."""
    if bytes(window.read(0, min(4, window.size))) != b"PK\x03\x04":
        raise InputRefused("its bytes are no archive of torch.save", hint=AGAIN, code="damaged")
    loaded, storages, told = zip_parts(window, known)
    notes.update(dict.fromkeys(told))
    ref = loaded.value
    if not isinstance(ref, TensorRef) or ref.dtype != tensor.dtype or ref.shape != chunk.sizes:
        raise InputRefused("it holds another tensor than .metadata says", hint=AGAIN, code="damaged")
    moved: dict[str, Storage] = {
        key: replace(storage, file=number, offset=base + storage.offset, tensor=name)
        for key, storage in storages.items()
    }
    return tensor_info(name, ref, moved)
