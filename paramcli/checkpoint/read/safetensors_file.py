"""A .safetensors file as a Source: its header is read, its tensors are not."""

from __future__ import annotations

from pathlib import Path

from ...errors import PATH, InputRefused
from ..disk.input_file import InputFile
from ..header import header_length, parse_header
from ..source import Root, Source, Storage, TensorInfo


def open_safetensors(path: str | Path, file: InputFile | None = None) -> Source:
    """Open one file; raises InputRefused naming the file and what is broken in it. Takes over `file`."""
    file = file or InputFile(path)
    try:
        first = bytes(file.read(0, min(64, file.size)))
        _refuse_stand_in(first)
        start = 8 + header_length(first, file.size)
        header = parse_header(bytes(file.read(8, start - 8)), file.size - start)
    except InputRefused as error:
        file.close()
        if error.path is None:
            error.path = path
        raise
    except BaseException:
        file.close()
        raise
    tensors = {
        name: TensorInfo(name, dtype, shape, Storage(0, start + begin, end - begin, name))
        for name, (dtype, shape, begin, end) in header.tensors.items()
    }
    return Source(Path(path), "safetensors", [file], tensors, header.metadata, roots=[Root("", len(tensors))])


def _refuse_stand_in(first: bytes) -> None:
    """Name the two things that most often lie where a shard should."""
    if first.startswith(b"version https://git-lfs"):
        raise InputRefused(f"{PATH} is a Git LFS pointer, not the file itself", hint="git lfs pull")
    if first.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        raise InputRefused(f"{PATH} is a web page, not a checkpoint: the download went wrong", hint="download it again")
