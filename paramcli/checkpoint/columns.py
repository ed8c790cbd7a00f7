"""Columns of a matrix, of which a file has a piece in each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..dtypes import DTYPES, torch_dtype
from .source import Source, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor


def read_columns(source: Source, info: TensorInfo, begin: int, end: int) -> Tensor:
    """Columns [begin, end) of a row-major matrix, as a new torch.Tensor on the CPU. The checksum of its storage is left
    to who asks, as of `Source.read_rows`. Cost: one read of the file for each row.
    """
    import torch

    (rows, width), each = info.shape, DTYPES[info.dtype].bits // 8
    place, length = info.storage.offset + info.offset, (end - begin) * each
    file = source.files[info.storage.file]
    file.require(place, info.nbytes)
    data = bytearray(rows * length)
    view = memoryview(data)
    for row in range(rows):
        file.read_into(place + (row * width + begin) * each, view[row * length : (row + 1) * length])
    return torch.frombuffer(data, dtype=torch_dtype(info.dtype)).reshape(rows, end - begin)
