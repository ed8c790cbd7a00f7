"""A folder of shards, or its index file, as one Source.

The index and the shards must name exactly the same tensors, each once; shard names are plain file
names in the index's folder. Every shard's header is read and checked before anything else happens.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ..errors import InputRefused
from ..text import listing, printable, printable_path
from .header import _unique
from .source import Extra, InputFile, Root, Source, TensorInfo, merge_metadata

INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json", ".pt.index.json", ".pth.index.json")
# 100 bytes a tensor: room for a million.
MAX_INDEX_BYTES = 100 << 20
# Descriptors are a scarce thing (often 1024); real models have a few hundred shards.
MAX_SHARDS = 900
_CHECKPOINTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def open_folder_or_index(path: Path) -> Source:
    """Open a sharded checkpoint by its folder or index; a folder with one checkpoint file opens that file."""
    path = Path(path)
    if not path.is_dir():
        return _open_index(path)
    shown = printable_path(path)
    if (path / ".metadata").exists():
        raise InputRefused(
            f"{shown} is a torch.distributed.checkpoint folder",
            hint="in Python: torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, 'ckpt.pt')", path=path,
        )  # fmt: skip
    try:
        names = sorted(entry.name for entry in path.iterdir() if entry.is_file() and not entry.name.startswith("."))
    except OSError as error:
        raise InputRefused(f"cannot read the folder {shown}: {error.strerror}", path=path) from None
    indexes = [name for name in names if name.endswith(INDEX_SUFFIXES)]
    for family in (".safetensors.index.json", ""):
        fitting = [name for name in indexes if name.endswith(family)]
        if len(fitting) == 1:
            return _open_index(path / fitting[0])
    files = [name for name in names if name.endswith(".safetensors")] or [name for name in names if name.endswith(_CHECKPOINTS)]
    if len(files) == 1:
        from .open import open_checkpoint

        return open_checkpoint(path / files[0])
    if not files and not indexes:
        raise InputRefused(f"{shown} is a folder without a checkpoint", hint="give the checkpoint file, or a folder with shards and index", path=path)
    raise InputRefused(
        f"{shown} holds several checkpoints and no single index: {listing(indexes + files)}", hint="give the one you mean", path=path
    )


def _open_index(path: Path) -> Source:
    weight_map, total_size = _read_index(path)
    names = sorted(set(weight_map.values()))
    if len(names) > MAX_SHARDS:
        raise InputRefused(f"{printable_path(path)} names {len(names)} shards; {MAX_SHARDS} is the limit", path=path)
    shards: list[Source] = []
    try:
        for name in names:
            shards.append(_open_shard(path, name))
        return _joined(path, names, shards, weight_map, total_size)
    except BaseException:
        for shard in shards:
            shard.close()
        raise


def _read_index(path: Path) -> tuple[dict[str, str], int | None]:
    """(tensor -> shard name, total size said) of an index file; InputRefused for anything malformed."""
    shown = printable_path(path)

    def refuse(why: str) -> InputRefused:
        return InputRefused(f"{shown} is no sound index: {why}", hint="copy or download it again", path=path)

    file = InputFile(path)
    try:
        if file.size > MAX_INDEX_BYTES:
            raise refuse(f"{file.size} bytes long")
        text = bytes(file.read(0, file.size))
    finally:
        file.close()
    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise refuse("not a JSON document, or a key twice") from None
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise refuse("it has no weight_map")
    for name, shard in weight_map.items():
        plain = isinstance(shard, str) and shard not in ("", ".", "..") and not any(c in shard for c in "/\\\0")
        if not plain:
            raise refuse(f"{printable(name, 80)} is in '{printable(shard, 80)}', which is no plain file name")
    metadata = document.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    return weight_map, total if type(total) is int else None


def _open_shard(index: Path, name: str) -> Source:
    from .open import open_file

    shard = index.parent / name
    if not shard.exists():
        raise InputRefused(
            f"{printable_path(index)} names the shard {printable(name)}, which is not there", hint="copy or download the missing shard", path=index
        )
    return open_file(shard)


def _joined(path: Path, names: list[str], parts: list[Source], weight_map: dict[str, str], total_size: int | None) -> Source:
    tensors: dict[str, TensorInfo] = {}
    shards: dict[str, list[str]] = {}
    extras: list[Extra] = []
    for number, (name, part) in enumerate(zip(names, parts)):
        wanted = {tensor for tensor, shard in weight_map.items() if shard == name} if len(names) < 50 else None
        mine = [tensor for tensor in part.tensors if weight_map.get(tensor) == name]
        stray = [tensor for tensor in part.tensors if weight_map.get(tensor) != name]
        if stray:
            where = weight_map.get(stray[0])
            told = f"the index puts it in {printable(where)}" if where else "the index does not name it"
            raise InputRefused(f"{printable(name)} holds {printable(stray[0], 80)}, and {told}", hint="copy or download index and shards together", path=path)
        if wanted is not None and len(wanted) != len(mine):
            lacking = sorted(wanted - set(mine))[0]
            raise InputRefused(f"{printable(name)} lacks {printable(lacking, 80)}, which the index puts there", hint="copy or download it again", path=path)
        shards[name] = mine
        extras += [Extra(f"{name}: {extra.name}", extra.type) for extra in part.extras]
        for tensor in mine:
            info = part.tensors[tensor]
            tensors[tensor] = replace(info, storage=replace(info.storage, file=number))
    missing = [tensor for tensor in weight_map if tensor not in tensors]
    if missing:
        raise InputRefused(f"no shard holds {printable(missing[0], 80)}, which the index names", hint="copy or download the shards again", path=path)
    notes = [note for part in parts for note in part.notes]
    actual = sum(info.nbytes for info in tensors.values())
    if total_size is not None and total_size != actual:
        notes.append(f"the index says {total_size} bytes in all; the shards hold {actual}")
    kinds = {part.container for part in parts}
    if len(kinds) > 1:
        raise InputRefused(f"the shards are of different kinds: {', '.join(sorted(kinds))}", path=path)
    container = "sharded safetensors" if kinds == {"safetensors"} else "sharded torch"
    metadata = merge_metadata([part.metadata for part in parts])
    files = [file for part in parts for file in part.files]
    return Source(path, container, files, tensors, metadata, extras, [Root("", len(tensors))], notes=notes, shards=shards)


def sibling_files(source: Source) -> list[Path]:
    """The folder's other files (config, tokenizer) that belong with the model; no checkpoint, index, hidden file or folder."""
    folder = source.folder
    shards = set(source.shards)
    return sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_file()
        and not entry.name.startswith(".")
        and entry.name not in shards
        and not entry.name.endswith((*INDEX_SUFFIXES, *_CHECKPOINTS))
    )
