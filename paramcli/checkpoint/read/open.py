"""A path on disk -> an open Source, whatever the container. Dispatch is by content, never by name alone."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from ...dtypes import kind_of
from ...errors import PATH, TENSOR, InputRefused, UsageError
from ...text import count_text, listing, printable, printable_path
from ...wording import given, word
from ..disk.hub import is_cache, snapshot_in
from ..disk.input_file import InputFile
from ..source import Source
from .parts import Parts, adapter_weights, rank_sets, told_of_part, usual
from .recognise import PICKLE, ZERO_HINT, container_of, is_dcp
from .sharded import files_in


def open_checkpoint(path: str | Path, root: str | None = None) -> Source:
    """Open a checkpoint for reading; raises InputRefused for what is none. Close the Source, or use `with`."""
    path = Path(path)
    if os.path.isdir(path) and is_dcp(path):
        from .dcp import open_dcp

        source = open_dcp(path, root)
    elif os.path.isdir(path) and is_cache(path):
        snapshot = snapshot_in(path)
        source = open_checkpoint(snapshot, root)
        source.notes.insert(
            0, f"{printable_path(path)} is a folder of the hub's cache: read its snapshot {snapshot.name}"
        )
        return source
    elif sets := rank_sets(files_in(path) if os.path.isdir(path) else [path.name] if os.path.lexists(path) else []):
        source = _open_ranks(path, sets, root)
    elif os.path.isdir(path) and (weights := adapter_weights(files_in(path))) is not None:
        source = open_file(path / weights, root)
    elif os.path.isdir(path) or path.name.endswith(".index.json"):
        from .folder import open_folder_or_index

        source = open_folder_or_index(path)
        _refuse_root(source, root)
    else:
        source = open_file(path, root)
        if (part := told_of_part(path)) is not None:
            source.notes.append(part)
    if os.path.isdir(path) or path.name.endswith(".index.json"):
        source.home = path if os.path.isdir(path) else path.parent
    _refuse_placeholders(source)
    source.notes += _flattened(source)
    return source


def _open_ranks(path: Path, sets: Mapping[Parts, Mapping[int, str]], root: str | None) -> Source:
    """The files of all ranks of one run, by their folder; one of them alone is no model, but for the only one."""
    (parts, there), *others = sets.items()
    weights = [name for name in (files_in(path) if os.path.isdir(path) else []) if name.endswith(".safetensors")]
    if others or weights:
        every = sorted({parts.name(0) for parts in sets} | set(weights))
        raise InputRefused(
            f"{PATH} holds several checkpoints: {listing(every, 6)}",
            hint=f"give the one you mean: {word(path / usual(weights))}"
            if weights
            else "put each into a folder of its own",
            path=path,
            code="ambiguous",
        )
    if not os.path.isdir(path) and parts.total > 1:
        raise InputRefused(
            f"{PATH} is what one of {parts.total} ranks saved: a part of the model",
            hint="give the folder",
            path=path,
            code="incomplete",
        )
    from .rank_files import open_rank_files

    return open_rank_files(path, parts, there, root)


def open_file(path: Path, root: str | None = None) -> Source:
    """Open one checkpoint file of any container."""
    file = InputFile(path)
    try:
        container = container_of(file)
        if container == PICKLE:
            from .pickle_file import open_pickle

            return open_pickle(path, file, root)
        if container != "safetensors":
            from .torch_file import open_torch

            return open_torch(path, file, root)
        from .safetensors_file import open_safetensors

        source = open_safetensors(path, file)
    except BaseException:
        file.close()
        raise
    _refuse_root(source, root)
    return source


def _refuse_root(source: Source, root: str | None) -> None:
    if root:
        source.close()
        raise UsageError(
            f"{given('root')} is for nested torch checkpoints; {source.container} has one level",
            path=source.path,
            option="root",
        )


_FLAT = re.compile(r"(.*\.)?_?flat_param(_[0-9]+)?", re.S)


def _flattened(source: Source) -> list[str]:
    """What FSDP keeps in place of a module's parameters, named for what it is."""
    flat = [name for name in source.tensors if "flat_param" in name and _FLAT.fullmatch(name)]
    if not flat:
        return []
    what = "is one process's share of FSDP's flattened parameters: many weights in a row, and none by itself"
    more = f" (and {count_text(len(flat) - 1, 'more tensor')})" if len(flat) > 1 else ""
    return [f"{printable(flat[0])}{more} {what}; save a full state dict (torch.distributed.checkpoint.state_dict)"]


def _refuse_placeholders(source: Source) -> None:
    """DeepSpeed's ZeRO-3 saves weights that live in other processes as tensors of shape (0,): no weight is that."""
    empty = [
        name
        for name, info in source.tensors.items()
        if info.shape == (0,) and name.rpartition(".")[2] == "weight" and kind_of(info.dtype) in ("float", "half")
    ]
    if empty:
        source.close()
        more = f" (and {count_text(len(empty) - 1, 'more tensor')})" if len(empty) > 1 else ""
        raise InputRefused(
            f"{PATH}: {TENSOR}{more} is an empty placeholder of DeepSpeed ZeRO-3; its data is in other files",
            hint=ZERO_HINT,
            tensor=empty[0],
            path=source.path,
        )
