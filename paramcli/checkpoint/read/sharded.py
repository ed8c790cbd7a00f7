"""Shards as one Source, by their index or by their names.

    model.safetensors.index.json   {"metadata": {"total_size": n}, "weight_map": {tensor name: shard file name}}
    model-00001-of-00002.safetensors, model-00002-of-00002.safetensors

The index and the shards must name exactly the same tensors, each once, and a shard name is a plain
file name in the index's folder. Without an index the shards' names say whether all are there. Every
shard's header is checked before anything else happens; of the shards' files only a few are open at once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import PATH, TENSOR, InputRefused
from ...text import count_text, listing, printable, printable_path
from ..disk.input_file import InputFile, OpenFiles
from ..header import MAX_HEADER_BYTES, MAX_TENSORS
from ..source import RECORD_KEY, Extra, Root, Source, Storage, TensorInfo
from ..strict_json import BrokenJson, decode_utf8, read_any, read_text, walk_document, walk_object
from .parts import shard_sets
from .safetensors_file import open_safetensors

INDEX_SUFFIX = ".safetensors.index.json"
INDEX_NAME = f"model{INDEX_SUFFIX}"
TORCH_INDEX_SUFFIX = ".bin.index.json"
# The cap of a safetensors header, which names the same tensors.
MAX_INDEX_BYTES = MAX_HEADER_BYTES
# Other tools' keys, in the index and in its metadata, and the characters of their values; transformers writes one key.
MAX_OTHER_KEYS, MAX_OTHER_CHARACTERS = 10_000, 1 << 20


@dataclass(frozen=True)
class Index:
    """What an index file says: tensor name -> shard file name, the total size if it is a number, and its other
    metadata.
    """

    weight_map: dict[str, str]
    total_size: int | None
    metadata: dict[str, object] = field(default_factory=dict)


def read_index(path: Path) -> Index:
    """An index file, checked by itself; raises InputRefused for anything malformed in it."""
    with closing(InputFile(path)) as file:
        return _index_in(file)


def _index_in(file: InputFile) -> Index:
    try:
        if file.size > MAX_INDEX_BYTES:
            raise BrokenJson(f"it is {file.size} bytes long")
        return _parse_index(bytes(file.read(0, file.size)))
    except BrokenJson as error:
        raise InputRefused(
            f"{PATH} is not a sound index: {error}",
            hint="copy or download it again",
            path=file.path,
            code="damaged",
        ) from None


def _parse_index(data: bytes) -> Index:
    weight_map: dict[str, str] = {}
    metadata: dict[str, object] = {}

    def read_place(name: str, at: int) -> int:
        shard, at = read_text(text, at)
        if shard in ("", ".", "..") or len(shard) > 255 or any(character in shard for character in "/\\\0"):
            raise BrokenJson(f"'{printable(name, 80)}' is in '{printable(shard, 80)}', which is no plain file name")
        if len(weight_map) == MAX_TENSORS:
            raise BrokenJson(f"it names more than {MAX_TENSORS} tensors")
        # One object for each shard name, however many tensors are in it.
        weight_map[name] = shards.setdefault(shard, shard)
        return at

    def read_other(at: int) -> tuple[object, int]:
        found, end = read_any(text, at, min(1 << 16, MAX_OTHER_CHARACTERS - others["characters"]))
        others.update(keys=others["keys"] + 1, characters=others["characters"] + end - at)
        if others["keys"] > MAX_OTHER_KEYS:
            raise BrokenJson(f"it has more than {MAX_OTHER_KEYS} keys beside its weight_map")
        return found, end

    def read_metadata(key: str, at: int) -> int:
        metadata[key], at = read_other(at)
        return at

    def read_part(key: str, at: int) -> int:
        if key == "weight_map":
            return walk_object(text, at, read_place)
        if key == "metadata" and text[at : at + 1] == "{":
            return walk_object(text, at, read_metadata)
        return read_other(at)[1]

    others = {"keys": 0, "characters": 0}
    shards: dict[str, str] = {}
    text = decode_utf8(data)
    walk_document(text, read_part)
    if not weight_map:
        raise BrokenJson("it has no weight_map that names a tensor")
    total_size = metadata.pop("total_size", None)
    return Index(weight_map, total_size if type(total_size) is int else None, metadata)


def open_index(path: Path, index_path: Path) -> Source:
    """The Source of an index file; `path` is what the user gave, the index or its folder."""
    pool = OpenFiles()
    file = InputFile(index_path, pool)
    try:
        index = _index_in(file)
        names: dict[str, list[str]] = {}
        for name, shard in index.weight_map.items():
            names.setdefault(shard, []).append(name)
        _refuse_incomplete(index_path, names)
        open_shard = _open_torch if index_path.name.endswith(TORCH_INDEX_SUFFIX) else open_safetensors
        with _opened() as parts:
            for shard in sorted(names):
                parts[shard] = open_shard(index_path.parent / shard, InputFile(index_path.parent / shard, pool))
                _compare(index_path, index, shard, names[shard], parts[shard])
            return _combine(path, parts, file, index)
    except BaseException:
        file.close()
        raise


def open_set(folder: Path, shards: Collection[str]) -> Source:
    """The Source of all shards of a set that has no index."""
    pool = OpenFiles()
    home: dict[str, str] = {}
    with _opened() as parts:
        for shard in sorted(shards):
            open_shard = open_safetensors if shard.endswith(".safetensors") else _open_torch
            parts[shard] = open_shard(folder / shard, InputFile(folder / shard, pool))
            for name in parts[shard].tensors:
                if (other := home.setdefault(name, shard)) != shard:
                    raise InputRefused(
                        f"{TENSOR} is in {printable(other)} and in {printable(shard)} ({PATH} has no index)",
                        hint="two checkpoints are mixed here; download the index, or all shards together again",
                        tensor=name,
                        path=folder,
                        code="damaged",
                    )
        _refuse_mixed_roots(folder, parts)
        source = _combine(folder, parts)
    source.notes.insert(
        0, f"{printable_path(folder)} has no index: its {len(shards)} shards are taken together by name"
    )
    return source


def _refuse_mixed_roots(folder: Path, parts: Mapping[str, Source]) -> None:
    """Raise InputRefused where the shards' state dicts lie at different places: nothing says that they are one."""
    first, *others = parts
    for shard in others:
        if parts[shard].root_path != parts[first].root_path:
            here, there = (printable(parts[one].root) or "the top" for one in (first, shard))
            raise InputRefused(
                f"{printable(first)} has its state dict at {here}, and {printable(shard)} at {there} "
                f"({PATH} has no index)",
                hint="two checkpoints are mixed here; download the index, or all shards together again",
                path=folder,
                code="damaged",
            )


@contextmanager
def _opened() -> Iterator[dict[str, Source]]:
    """The shards' Sources, which are closed where the block raises."""
    parts: dict[str, Source] = {}
    try:
        yield parts
    except BaseException:
        for part in parts.values():
            part.close()
        raise


def _refuse_incomplete(index_path: Path, shards: Collection[str]) -> None:
    """Raise InputRefused for shards that the index names and that are not there, or that it does not name, lie beside
    those, and are of one set with them.
    """
    if absent := sorted(shard for shard in shards if not os.path.lexists(index_path.parent / shard)):
        what = f"the shard {printable(absent[0])}" if len(absent) == 1 else f"the shards {listing(absent, 6)}"
        raise InputRefused(
            f"{PATH} names {what}, which {'is' if len(absent) == 1 else 'are'} not there",
            hint="download what is missing, or the whole folder again",
            path=index_path,
            code="incomplete",
        )
    named = {parts._replace(first=1) for parts in shard_sets(shards)}
    for parts, there in shard_sets(files_in(index_path.parent)).items():
        if parts._replace(first=1) in named and (others := sorted(set(there.values()).difference(shards))):
            raise InputRefused(
                f"{PATH} does not name {listing(others, 6)}, which by name is of its shards",
                hint="download the index and all shards together again",
                path=index_path,
                code="damaged",
            )


def files_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_file())
    except OSError as error:
        raise InputRefused(f"cannot read the folder {PATH}: {error.strerror}", path=folder) from None


def _open_torch(path: Path, file: InputFile) -> Source:
    from .torch_file import open_torch

    return open_torch(path, file)


def _compare(index_path: Path, index: Index, shard: str, expected: Sequence[str], part: Source) -> None:
    """Raise InputRefused unless the shard holds exactly the tensors that the index puts there."""

    def refuse(name: str, why: str) -> InputRefused:
        return InputRefused(
            f"{printable(shard)} {why} (index {PATH})",
            hint="download the index and all shards together again",
            tensor=name,
            path=index_path,
            code="damaged",
        )

    for name in part.tensors:
        other = index.weight_map.get(name)
        if other != shard:
            told = f"puts it in {printable(other)}" if other else "does not name it"
            raise refuse(name, f"holds '{TENSOR}', and the index {told}")
    for name in expected:
        if name not in part.tensors:
            raise refuse(name, f"lacks '{TENSOR}', which the index puts there")


def _combine(
    path: Path, parts: Mapping[str, Source], index_file: InputFile | None = None, index: Index | None = None
) -> Source:
    tensors: dict[str, TensorInfo] = {}
    files: list[InputFile] = []
    extras: list[Extra] = []
    notes: list[str] = []
    for shard, part in parts.items():
        first = len(files)
        files += part.files
        moved: dict[int, Storage] = {}
        for name, info in part.tensors.items():
            storage = moved.get(id(info.storage))
            if storage is None:
                storage = moved[id(info.storage)] = replace(info.storage, file=first + info.storage.file)
            # Spelt out: dataclasses.replace takes longer than all the rest for 100,000 tensors.
            tensors[name] = TensorInfo(name, info.dtype, info.shape, storage, info.offset, info.stride, odd=info.odd)
        extras += [Extra(f"{shard}: {extra.name}", extra.type) for extra in part.extras]
        notes += [f"{printable(shard)}: {note}" for note in part.notes]
    total = sum(info.nbytes for info in tensors.values())
    if index_file and index and index.total_size is not None and index.total_size != total:
        notes.append(
            f"{printable_path(index_file.path)} promises {index.total_size} bytes of tensors; there are {total}"
        )
    by_shard = {shard: part.metadata for shard, part in parts.items()}
    metadata = _merged_metadata(by_shard, notes)
    records = {shard: its[RECORD_KEY] for shard, its in by_shard.items() if RECORD_KEY in its}
    return Source(
        path,
        "sharded safetensors" if all(part.container == "safetensors" for part in parts.values()) else "sharded torch",
        files,
        tensors,
        metadata,
        extras,
        [Root("", len(tensors))],
        notes=notes,
        shards={shard: list(part.tensors) for shard, part in parts.items()},
        shard_records=records if RECORD_KEY not in metadata else {},
        index=index_file,
        index_metadata=index.metadata if index else {},
    )


def _merged_metadata(by_shard: Mapping[str, Mapping[str, str]], notes: list[str]) -> dict[str, str]:
    """The shards' metadata as one; a key they disagree about belongs to a shard and not to the checkpoint.

    But for the record, of which each shard has the part that speaks of its tensors: `Source.shard_records`.
    """
    merged: dict[str, str] = {}
    disputed: set[str] = set()
    for metadata in by_shard.values():
        for key, value in metadata.items():
            if merged.setdefault(key, value) != value:
                disputed.add(key)
    for key in disputed:
        del merged[key]
    disputed.discard(RECORD_KEY)
    if disputed:
        keys = f"{count_text(len(disputed), 'metadata key')}, not carried over: {listing(sorted(disputed), 6)}"
        notes.append(f"the shards disagree about {keys}")
    return merged
