"""A path on disk -> an open Source, whatever the container. Dispatch is by content, never by name alone."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UsageError
from .recognise import container_of
from .source import InputFile, Source


def open_checkpoint(path: str | Path, root: str | None = None) -> Source:
    """Open a checkpoint for reading; raises InputRefused for what is none. Close the Source, or use `with`."""
    path = Path(path)
    if os.path.isdir(path) or path.name.endswith(".index.json"):
        from .read_sharded import open_folder_or_index

        source = open_folder_or_index(path)
        _refuse_root(source, root)
        return source
    return open_file(path, root)


def open_file(path: Path, root: str | None = None) -> Source:
    """Open one checkpoint file of any container."""
    file = InputFile(path)
    try:
        container = container_of(file)
        if container != "safetensors":
            from .read_torch import open_torch

            return open_torch(path, file, root)
        from .read_safetensors import open_safetensors

        source = open_safetensors(path, file)
    except BaseException:
        file.close()
        raise
    _refuse_root(source, root)
    return source


def _refuse_root(source: Source, root: str | None) -> None:
    if root:
        source.close()
        raise UsageError(f"--root is for nested torch checkpoints; {source.container} has one level", path=source.path)
