"""A .safetensors file as a Source: its header is read, its tensors are not."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputRefused
from ..text import printable_path
from .header import header_length, parse_header
from .source import InputFile, Root, Source, Storage, TensorInfo


def open_safetensors(path: Path, file: InputFile | None = None) -> Source:
    """Open one file; raises InputRefused naming the file and what is broken in it."""
    file = file or InputFile(path)
    try:
        length = header_length(bytes(file.read(0, min(8, file.size))), file.size)
        start = 8 + length
        header = parse_header(bytes(file.read(8, length)), file.size - start)
    except InputRefused as error:
        file.close()
        if error.path is None:
            error.path = path
            error.message = f"{printable_path(path)} is not a sound safetensors file: {error.message}"
        raise
    tensors = {
        name: TensorInfo(name, slot.dtype, slot.shape, Storage(0, start + begin, end - begin, name))
        for name, (slot, begin, end) in header.tensors.items()
    }
    return Source(Path(path), "safetensors", [file], tensors, dict(header.metadata), roots=[Root("", len(tensors))])
