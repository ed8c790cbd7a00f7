"""What the processes (ranks) of one FSDP run saved of a model, each in a file of its own, as one Source.

    model_world_size_2_rank_0.pt, model_world_size_2_rank_1.pt

Every file has the same names. A DTensor is a block of its tensor (dtensor.py), and all blocks together must be the
whole, each once; blocks that several ranks have must be the same, and the first one's is taken. Other tensors that
differ (statistics that each rank has for itself) are odd. All this is compared by the archives' checksums, and byte for
byte where those differ or say nothing. A tensor is put together when it is read. What other ranks have beside the state
dict, and the first one lacks, is named with the rank.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import PATH, TENSOR, InputRefused, error_context
from ...text import listing
from ...wording import given
from ..disk.input_file import InputFile, OpenFiles
from ..pickle.pickle_data import StorageRef, TensorRef
from ..pickle.tree import walk
from ..source import Extra, Part, Piece, Root, Source, TensorInfo, tensor_bytes
from .dtensor import Distributed, is_dtensor, read_dtensor
from .parts import Parts
from .places import reach, text_of
from .recognise import RANKS, container_of
from .roots import Chosen, choose_root
from .search import as_dict, is_tensor
from .torch_file import (
    PAIRS,
    Storages,
    any_info,
    check_description,
    check_expansion,
    collector_paused,
    odd_info,
    zip_parts,
)

_AGAIN = "copy the files of all ranks again, of one and the same run"
# Bytes that are compared at a time.
_BLOCK = 1 << 20


@dataclass(frozen=True)
class _Held:
    """What one rank has of a tensor: bytes in its file, and of a DTensor how it lies in the whole."""

    rank: int
    info: TensorInfo
    part: Distributed | None

    @property
    def layout(self) -> object:
        return (self.info.shape, self.info.dtype) if self.part is None else self.part.layout


def open_rank_files(path: Path, parts: Parts, there: Mapping[int, str], root: str | None = None) -> Source:
    """Open the files of all ranks; `path` is their folder, or the only file. InputRefused where one is missing."""
    if (lacking := parts.lacking(there)) is not None:
        raise InputRefused(f"{PATH} lacks {lacking}", hint="copy the files of all ranks", path=path, code="incomplete")
    folder, pool = path if os.path.isdir(path) else path.parent, OpenFiles()
    files: list[InputFile] = []
    try:
        for rank in range(parts.total):
            files.append(InputFile(folder / there[rank], pool))
        with collector_paused():
            return _open(path, files, root)
    except BaseException:
        for file in files:
            file.close()
        raise


def _open(path: Path, files: Sequence[InputFile], root: str | None) -> Source:
    notes: dict[str, None] = {}
    chosen: Chosen | None = None
    held: dict[str, list[_Held]] = {}
    others: list[list[Extra]] = []
    for rank, file in enumerate(files):
        with error_context(path=file.path):
            tree, storages, told = _described(file, rank)
            notes.update(dict.fromkeys(told))
            wholes = _with_wholes(tree)
            if chosen is None:
                chosen = choose_root(tree, root)
                _hold(held, rank, _tensors(tree, chosen.parts), wholes, storages)
                continue
            _hold(held, rank, _tensors(tree, chosen.parts), wholes, storages)
            others.append(_own_extras(tree, root, chosen))
    assert chosen is not None, "there is a file for each rank, and a rank at least"
    source = Source(
        path=path,
        container=RANKS,
        files=list(files),
        tensors={},
        extras=[*chosen.extras, *_of_others(chosen.extras, others)],
        roots=[Root(place, count) for place, count in chosen.candidates],
        root=chosen.name,
        root_path=chosen.path,
        is_loaded=chosen.is_loaded,
    )
    for name, each in held.items():
        with error_context(tensor=name, path=path):
            info = _joined(name, each, source)
            source.tensors[name] = replace(info, odd=info.odd or chosen.odd_names.get(name))
    source.notes = [*notes, *chosen.note(source.tensors.values())]
    check_expansion(source.blocks(), sum(file.size for file in files))
    return source


def _described(file: InputFile, rank: int) -> tuple[object, Storages, list[str]]:
    if container_of(file) != "torch zip":
        raise InputRefused(
            f"{PATH} is no archive of torch.save, as FSDP's ranks write it", hint=_AGAIN, code="damaged", path=file.path
        )
    loaded, storages, notes = zip_parts(file)
    check_description(loaded.value, storages)
    return loaded.value, {key: replace(storage, file=rank) for key, storage in storages.items()}, notes


def _with_wholes(tree: object) -> dict[int, Distributed]:
    """Put a reference of the whole's shape in the place of each DTensor in a dict: what the search for state dicts
    knows. Its id -> the DTensor.
    """
    found: dict[int, Distributed] = {}
    known: dict[int, TensorRef] = {}
    for mapping in walk(tree):
        if not isinstance(mapping, dict):
            continue
        for key, value in mapping.items():
            if not is_dtensor(value):
                continue
            if id(value) not in known:
                with error_context(tensor=key if isinstance(key, str) else None):
                    part = read_dtensor(value)
                storage = StorageRef("", part.dtype, math.prod(part.shape), "cpu")
                whole = known[id(value)] = TensorRef(storage, part.dtype, 0, part.shape, (0,) * len(part.shape))
                found[id(whole)] = part
            mapping[key] = known[id(value)]
    return found


def _tensors(tree: object, parts: Sequence[Part]) -> dict[str, object]:
    """What a rank has of the state dict: by name, as rank 0 has the names."""
    found: dict[str, object] = {}
    for part in parts:
        if (state := as_dict(reach(tree, part.path))) is None:
            raise InputRefused(f"{PATH} has no state dict where rank 0 has one", hint=_AGAIN, code="damaged")
        named = ((part.name_of(key), item) for key, item in state.items() if is_tensor(item))
        found.update((name, item) for name, item in named if name is not None)
    return found


def _own_extras(tree: object, root: str | None, chosen: Chosen) -> list[Extra]:
    """What a rank has beside the state dict; InputRefused where nobody chose among state dicts that rank 0 lacks."""
    name = chosen.name or "."
    own = choose_root(tree, name)
    there, known = {part.path for part in own.parts}, {part.path for part in chosen.parts}
    if there != known:
        raise InputRefused(
            f"{PATH} has other state dicts than rank 0: {listing(sorted(map(text_of, there ^ known)), 6)}",
            hint=f"name one that all have with {given('root')}",
            code="ambiguous",
        )
    more = {place for place, _ in own.candidates} - {place for place, _ in chosen.candidates}
    if more and root != name:
        raise InputRefused(
            f"{PATH} has state dicts that rank 0 lacks: {listing(sorted(more), 6)}",
            hint=f"{given('root', name)} for the one that all have",
            code="ambiguous",
        )
    return own.extras


def _of_others(first: Sequence[Extra], others: Sequence[Sequence[Extra]]) -> list[Extra]:
    """What rank 0 lacks, each once, under the number of the rank that has it first."""
    known = {extra.name for extra in first}
    found: list[Extra] = []
    for rank, extras in enumerate(others, 1):
        found += (replace(extra, name=f"rank {rank}: {extra.name}") for extra in extras if extra.name not in known)
        known.update(extra.name for extra in extras)
    return found


def _hold(
    held: dict[str, list[_Held]],
    rank: int,
    tensors: Mapping[str, object],
    wholes: Mapping[int, Distributed],
    storages: Storages,
) -> None:
    """Note what a rank has. All have the same names."""
    if rank and (odd := sorted(tensors.keys() ^ held.keys())):
        has = "has" if odd[0] in tensors else "lacks"
        raise InputRefused(f"{PATH} {has} {TENSOR}, unlike rank 0", hint=_AGAIN, code="damaged", tensor=odd[0])
    for name, item in tensors.items():
        part = wholes.get(id(item))
        info = any_info(name, part.local if part else item, storages)
        held.setdefault(name, []).append(_Held(rank, info, part))


def _joined(name: str, each: Sequence[_Held], source: Source) -> TensorInfo:
    """The tensor whose blocks the ranks hold."""
    first = each[0]
    for other in each:
        if (other.part is None) != (first.part is None) or other.layout != first.layout:
            raise InputRefused(f"rank {other.rank} has another {TENSOR} than rank 0", hint=_AGAIN, code="damaged")
    if (odd := next((one.info.odd for one in each if one.info.odd), None)) is not None:
        shape = first.info.shape if first.part is None else first.part.shape
        return odd_info(name, first.info.dtype, shape, odd.why, odd.hint)
    if first.part is None:
        apart = next((other.rank for other in each[1:] if not _equal(first.info, other.info, source)), None)
        if apart is None:
            return first.info
        why = f"{TENSOR} has other values on rank {apart} than on rank 0: it is no DTensor, and each rank has its own"
        return odd_info(name, first.info.dtype, first.info.shape, why, "save it from one rank, or the same in all")
    if first.part.dtype == PAIRS:
        why = f"{TENSOR} is packed in pairs, and spread over ranks"
        return odd_info(name, first.part.dtype, first.part.shape, why, "save it in one piece")
    blocks: dict[tuple[int, ...], _Held] = {}
    coordinates: set[tuple[int, ...]] = set()
    for one in each:
        if one.part is None or one.part.coordinate is None:
            continue
        begin, sizes = one.part.block
        if one.info.shape != sizes:
            raise InputRefused(
                f"rank {one.rank} has another block of {TENSOR} than its place in the mesh", hint=_AGAIN, code="damaged"
            )
        coordinates.add(one.part.coordinate)
        # An empty block can begin where the next one does.
        if one.info.numel and (twin := blocks.setdefault(begin, one)) is not one:
            _compare(twin, one, source)
    if len(coordinates) != math.prod(first.part.mesh):
        raise InputRefused(
            f"of {TENSOR} there are {len(coordinates)} of {math.prod(first.part.mesh)} blocks: a rank's file is there "
            "twice, or of another run",
            hint=_AGAIN,
            code="damaged",
        )
    pieces = tuple(Piece(block.info, begin) for begin, block in sorted(blocks.items()))
    if sum(piece.info.numel for piece in pieces) != math.prod(first.part.shape):
        raise InputRefused(f"the blocks of {TENSOR} are not the whole of it", hint=_AGAIN, code="damaged")
    if len(pieces) == 1:
        return pieces[0].info
    return TensorInfo(name, first.info.dtype, first.part.shape, first.info.storage, pieces=pieces)


def _compare(one: _Held, other: _Held, source: Source) -> None:
    """Raise InputRefused unless two ranks hold the same bytes of a block that is said to be the same."""
    if not _equal(one.info, other.info, source):
        raise InputRefused(
            f"rank {other.rank} has other values of {TENSOR} than rank {one.rank}, and both should have the same",
            hint=_AGAIN,
            code="damaged",
        )


def _equal(one: TensorInfo, other: TensorInfo, source: Source) -> bool:
    a, b = one.storage, other.storage
    alike = (one.offset, one.stride, a.nbytes) == (other.offset, other.stride, b.nbytes)
    if alike and a.crc is not None and a.crc == b.crc:
        return True
    for storage in (a, b):
        source.check_storage(storage)
    if one.run is None or other.run is None:
        return tensor_bytes(source.read_block(one)) == tensor_bytes(source.read_block(other))
    (file, begin, length), (other_file, other_begin, _) = one.run, other.run
    return all(
        source.files[file].read(begin + at, min(_BLOCK, length - at))
        == source.files[other_file].read(other_begin + at, min(_BLOCK, length - at))
        for at in range(0, length, _BLOCK)
    )
