"""A folder of shards, or its index file, as one Source.

    model.safetensors.index.json   {"metadata": {"total_size": n}, "weight_map": {tensor name: shard file name}}
    model-00001-of-00002.safetensors, model-00002-of-00002.safetensors

The index and the shards must name exactly the same tensors, each once, and a shard name is a plain
file name in the index's folder. Every shard's header is checked before anything else happens; of the
shards' files only a few are open at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...errors import PATH, TENSOR, InputRefused
from ...text import count_text, listing, printable, printable_path
from ..disk.input_file import InputFile, OpenFiles
from ..source import RECORD_KEY, Extra, Root, Source, Storage, TensorInfo
from ..strict_json import BrokenJson, decode_utf8, read_any, read_text, walk_document, walk_object
from .recognise import DCP_METADATA, ZERO_HINT
from .safetensors_file import open_safetensors

INDEX_SUFFIX = ".safetensors.index.json"
INDEX_NAME = f"model{INDEX_SUFFIX}"
TORCH_INDEX_SUFFIX = ".bin.index.json"
# The cap of a safetensors header, which names the same tensors.
MAX_INDEX_BYTES = 100_000_000
MAX_TENSORS = 500_000
# Other tools' keys, in the index and in its metadata; transformers writes one.
MAX_OTHER_KEYS = 10_000
# Weights and training state, in any framework's spelling: a new checkpoint's folder must not show old ones.
_WEIGHTS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".tar",
    ".pkl",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".gguf",
    ".ggml",
    ".npz",
    ".ot",
    ".tflite",
    ".distcp",
    ".index.json",
)


@dataclass(frozen=True)
class Index:
    """What an index file says: tensor name -> shard file name, the total size if it is a number, and its other
    metadata.
    """

    weight_map: dict[str, str]
    total_size: int | None
    metadata: dict[str, object] = field(default_factory=dict)


def open_folder_or_index(path: str | Path) -> Source:
    """Open a sharded checkpoint by its folder or its index file; a folder with one .safetensors opens that."""
    path = Path(path)
    return _open_folder(path) if path.is_dir() else _open_index(path, path)


def _open_folder(path: Path) -> Source:
    names = _files_in(path)
    if any(name.endswith(".distcp") for name in names):
        raise InputRefused(
            f"{PATH} is a torch.distributed.checkpoint folder (DCP) without its {DCP_METADATA} file, "
            "which is written last",
            hint="copy the whole folder again, hidden files too",
            path=path,
        )
    names = [name for name in names if not name.startswith(".")]
    if "zero_to_fp32.py" in names or any(name.endswith("_optim_states.pt") for name in names):
        raise InputRefused(
            f"{PATH} is a DeepSpeed checkpoint folder, its weights spread over processes", hint=ZERO_HINT, path=path
        )
    found: list[str] = []
    # A folder from the hub often holds the same model twice; safetensors comes first, as in every loader.
    for suffix in (INDEX_SUFFIX, ".safetensors", TORCH_INDEX_SUFFIX):
        found = [name for name in names if name.endswith(suffix)]
        if found:
            break
    if len(found) > 1:
        raise InputRefused(
            f"{PATH} holds several checkpoints: {listing(found, 6)}", hint="give the one you mean", path=path
        )
    if not found:
        weights = [name for name in names if name.endswith(_WEIGHTS)]
        instead = f"; it holds {listing(weights, 6)}" if weights else ""
        raise InputRefused(
            f"{PATH} is a folder without a checkpoint: no .safetensors file, no index{instead}",
            hint="give the checkpoint file itself",
            path=path,
        )
    if found[0].endswith(".safetensors"):
        return open_safetensors(path / found[0])
    return _open_index(path, path / found[0])


def _files_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_file())
    except OSError as error:
        raise InputRefused(f"cannot read the folder {PATH}: {error.strerror}", path=folder) from None


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
        others[0] += 1
        if others[0] > MAX_OTHER_KEYS:
            raise BrokenJson(f"it has more than {MAX_OTHER_KEYS} keys beside its weight_map")
        return read_any(text, at)

    def read_metadata(key: str, at: int) -> int:
        metadata[key], at = read_other(at)
        return at

    def read_part(key: str, at: int) -> int:
        if key == "weight_map":
            return walk_object(text, at, read_place)
        if key == "metadata" and text[at : at + 1] == "{":
            return walk_object(text, at, read_metadata)
        return read_other(at)[1]

    others = [0]
    shards: dict[str, str] = {}
    text = decode_utf8(data)
    walk_document(text, read_part)
    if not weight_map:
        raise BrokenJson("it has no weight_map that names a tensor")
    total_size = metadata.pop("total_size", None)
    return Index(weight_map, total_size if type(total_size) is int else None, metadata)


def _open_index(path: Path, index_path: Path) -> Source:
    """The Source of an index file; `path` is what the user gave, the index or its folder."""
    open_shard = open_safetensors if not index_path.name.endswith(TORCH_INDEX_SUFFIX) else _open_torch
    parts: dict[str, Source] = {}
    pool = OpenFiles()
    index_file = InputFile(index_path, pool)
    try:
        index = _index_in(index_file)
        expected: dict[str, list[str]] = {}
        for name, shard in index.weight_map.items():
            expected.setdefault(shard, []).append(name)
        for shard in sorted(expected):
            place = index_path.parent / shard
            if not os.path.lexists(place):
                raise InputRefused(
                    f"{PATH} names the shard {printable(shard)}, which is not there",
                    hint="download the missing shard, or the whole folder again",
                    path=index_path,
                )
            parts[shard] = open_shard(place, InputFile(place, pool))
            _compare(index_path, index, shard, expected[shard], parts[shard])
        return _combine(path, index_file, index, parts)
    except BaseException:
        index_file.close()
        for part in parts.values():
            part.close()
        raise


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
        )

    for name in part.tensors:
        other = index.weight_map.get(name)
        if other != shard:
            told = f"puts it in {printable(other)}" if other else "does not name it"
            raise refuse(name, f"holds '{TENSOR}', and the index {told}")
    for name in expected:
        if name not in part.tensors:
            raise refuse(name, f"lacks '{TENSOR}', which the index puts there")


def _combine(path: Path, index_file: InputFile, index: Index, parts: Mapping[str, Source]) -> Source:
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
            tensors[name] = TensorInfo(name, info.dtype, info.shape, storage, info.offset, info.stride)
        extras += [Extra(f"{shard}: {extra.name}", extra.type) for extra in part.extras]
        notes += [f"{printable(shard)}: {note}" for note in part.notes]
    total = sum(info.nbytes for info in tensors.values())
    if index.total_size is not None and index.total_size != total:
        notes.append(
            f"{printable_path(index_file.path)} promises {index.total_size} bytes of tensors; there are {total}"
        )
    by_shard = {shard: part.metadata for shard, part in parts.items()}
    metadata = _merged_metadata(by_shard, notes)
    records = {shard: its[RECORD_KEY] for shard, its in by_shard.items() if RECORD_KEY in its}
    return Source(
        path,
        "sharded torch" if index_file.path.name.endswith(TORCH_INDEX_SUFFIX) else "sharded safetensors",
        files,
        tensors,
        metadata,
        extras,
        [Root("", len(tensors))],
        notes=notes,
        shards={shard: list(part.tensors) for shard, part in parts.items()},
        shard_records=records if RECORD_KEY not in metadata else {},
        index=index_file,
        index_metadata=index.metadata,
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


def index_name(path: str | Path) -> str:
    """The name of an output's index: the input's (diffusers and transformers differ), else transformers' own.

    `path` is the input as the user gave it, folder or file.
    """
    path = Path(path)
    names = _files_in(path) if path.is_dir() else [path.name]
    found = [name for name in names if name.endswith(INDEX_SUFFIX) and not name.startswith(".")]
    return found[0] if len(found) == 1 else INDEX_NAME


def sibling_files(path: str | Path) -> list[Path]:
    """The other files of a sharded checkpoint's folder (config, tokenizer) that belong beside its weights.

    Not shards or anything else that holds weights or training state, not an index, not hidden, no folders. No link
    out of the folder either, which could carry any file of this machine into a result that is published later; but
    for those of the hub's cache, whose snapshots are links to blobs.
    """
    folder, names, shards = _contents(path)
    return [
        folder / name
        for name in names
        if name not in shards and not name.endswith(_WEIGHTS) and _stays_inside(folder / name)
    ]


def files_left(source: Source) -> list[str]:
    """What else lies in a sharded checkpoint's folder and is neither part of it nor carried along: training state,
    folders.
    """
    folder, names, _ = _contents(source.path)
    mine = {*source.shards, *(path.name for path in sibling_files(source.path))}
    with os.scandir(folder) as entries:
        folders = sorted(f"{entry.name}/" for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return [name for name in names if name not in mine and not name.endswith(".index.json")] + folders


def _contents(path: str | Path) -> tuple[Path, list[str], set[str]]:
    """(the folder, its files that are not hidden, those of them that an index names)."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    names = [name for name in _files_in(folder) if not name.startswith(".")]
    shards: set[str] = set()
    for index in names:
        if index.endswith((INDEX_SUFFIX, TORCH_INDEX_SUFFIX)):
            # One that is not ours, and not sound: its shards are known by their endings.
            with suppress(InputRefused):
                shards.update(read_index(folder / index).weight_map.values())
    return folder, names, shards


def _stays_inside(path: Path) -> bool:
    """Is the file in its folder, or in `blobs` of the cache in whose `snapshots` the folder is?"""
    folder, target = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    blobs = [above.parent / "blobs" for above in (folder, *folder.parents) if above.name == "snapshots"]
    return target.parent == folder or target.parent in blobs
