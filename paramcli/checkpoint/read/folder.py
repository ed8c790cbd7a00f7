"""A checkpoint's folder: which of its files are the checkpoint, and which belong beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ...errors import PATH, InputRefused
from ...text import listing, printable
from ...wording import word
from ..source import Source
from .foreign import foreign_folder, foreign_name
from .parts import Parts, shard_sets, usual
from .recognise import DCP_METADATA, ZERO_HINT
from .safetensors_file import open_safetensors
from .sharded import INDEX_NAME, INDEX_SUFFIX, TORCH_INDEX_SUFFIX, files_in, open_index, open_set, read_index

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
_TORCH = (".bin", ".pt", ".pth", ".ckpt")


def open_folder_or_index(path: str | Path) -> Source:
    """Open a sharded checkpoint by its folder or its index file; a folder with one .safetensors opens that."""
    path = Path(path)
    return _open_folder(path) if os.path.isdir(path) else open_index(path, path)


def _open_folder(path: Path) -> Source:
    names = files_in(path)
    _refuse_other_folders(path, names)
    names = [name for name in names if not name.startswith(".")]
    # A folder from the hub often holds the same model twice; safetensors comes first, as in every loader.
    for suffix in (INDEX_SUFFIX, ".safetensors", TORCH_INDEX_SUFFIX):
        if found := [name for name in names if name.endswith(suffix)]:
            break
    sets = shard_sets(found or [name for name in names if name.endswith(_TORCH)])
    alone = set(found).difference(*(there.values() for there in sets.values()))
    if len(alone) + len(sets) > 1:
        every = found or [name for there in sets.values() for name in there.values()]
        raise InputRefused(
            f"{PATH} holds several checkpoints: {listing(sorted(every), 6)}",
            hint=f"give the one you mean: {word(path / usual(alone))}"
            if alone
            else "put each into a folder of its own",
            path=path,
            code="ambiguous",
        )
    if sets:
        ((parts, there),) = sets.items()
        return _open_parts(path, parts, list(there.values()), parts.lacking(there))
    if not found:
        raise _nothing(path, names)
    if found[0].endswith(".safetensors"):
        return open_safetensors(path / found[0])
    return open_index(path, path / found[0])


def _open_parts(path: Path, parts: Parts, shards: Sequence[str], lacking: str | None) -> Source:
    """All shards of a set without an index; InputRefused where some are not there."""
    if lacking is not None:
        raise InputRefused(
            f"{PATH} lacks {lacking}",
            hint="download what is missing; one shard alone is read by its own name",
            path=path,
            code="incomplete",
        )
    if parts.total == 1 and shards[0].endswith(".safetensors"):
        return open_safetensors(path / shards[0])
    return open_set(path, shards)


def _refuse_other_folders(path: Path, names: Sequence[str]) -> None:
    """Raise InputRefused for the folders of other tools."""
    if any(name.endswith(".distcp") for name in names):
        raise InputRefused(
            f"{PATH} is a torch.distributed.checkpoint folder (DCP) without its {DCP_METADATA} file, "
            "which is written last",
            hint="copy the whole folder again, hidden files too",
            path=path,
            code="incomplete",
        )
    if "zero_to_fp32.py" in names or any(name.endswith("_optim_states.pt") for name in names):
        raise InputRefused(
            f"{PATH} is a DeepSpeed checkpoint folder, its weights spread over processes", hint=ZERO_HINT, path=path
        )
    if (foreign := foreign_folder(path)) is not None:
        raise InputRefused(f"{PATH} is {foreign[0]}", hint=foreign[1], path=path, code="not_a_checkpoint")


def _nothing(path: Path, names: Sequence[str]) -> InputRefused:
    """The refusal of a folder without a checkpoint that can be opened."""
    weights = [name for name in names if name.endswith(_WEIGHTS)]
    others = {name: foreign for name in names if (foreign := foreign_name(name)) is not None}
    if others and all(name in others for name in weights):
        name, (what, hint) = next(iter(others.items()))
        return InputRefused(
            f"{PATH} is a folder without a checkpoint of torch or safetensors: {printable(name)} is {what}",
            hint=hint,
            path=path,
            code="not_a_checkpoint",
        )
    instead = f"; it holds {listing(weights, 6)}" if weights else ""
    return InputRefused(
        f"{PATH} is a folder without a checkpoint: no .safetensors file, no index{instead}",
        hint="give the checkpoint file itself",
        path=path,
        code="not_a_checkpoint",
    )


def index_name(path: str | Path, part: str | None = None) -> str:
    """The name of an output's index: the input's (diffusers and transformers differ), or that of `part`, the one file
    that the checkpoint is, else transformers' own.

    `path` is the input, folder or file.
    """
    path = Path(path)
    names = files_in(path) if os.path.isdir(path) else [path.name]
    found = [name for name in names if name.endswith(INDEX_SUFFIX) and not name.startswith(".")]
    if len(found) == 1:
        return found[0]
    return f"{part.removesuffix('.safetensors')}{INDEX_SUFFIX}" if part is not None else INDEX_NAME


def sibling_files(path: str | Path) -> list[Path]:
    """The other files of a checkpoint's folder (config, tokenizer) that belong beside its weights.

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
    """What else lies in the folder that was given and is neither part of the checkpoint nor carried along: training
    state, folders.
    """
    if source.home is None:
        return []
    folder, names, _ = _contents(source.home)
    mine = {path.name for path in (*(file.path for file in source.files), *sibling_files(folder))}
    with os.scandir(folder) as entries:
        folders = sorted(f"{entry.name}/" for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return [name for name in names if name not in mine and not name.endswith(".index.json")] + folders


def _contents(path: str | Path) -> tuple[Path, list[str], set[str]]:
    """(the folder, its files that are not hidden, those of them that an index names)."""
    path = Path(path)
    folder = path if os.path.isdir(path) else path.parent
    names = [name for name in files_in(folder) if not name.startswith(".")]
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
