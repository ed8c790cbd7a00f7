"""Are two tensors one, by dtype, shape and bytes? Of one file or of two, a piece at a time."""

from __future__ import annotations

from .source import Source

_PIECE = 8 << 20


def same_bytes(source: Source, name: str, other: Source, other_name: str) -> bool:
    """Raises InputRefused for one that is odd, and where what was read has not the checksum that its file has of it."""
    here, there = source.tensors[name], other.tensors[other_name]
    if (here.dtype, here.shape) != (there.dtype, there.shape):
        return False
    if here.run is None or there.run is None:
        return source.read_bytes(name) == other.read_bytes(other_name)
    source.check_storage(here.storage)
    other.check_storage(there.storage)
    (file, at, size), (other_file, other_at, _) = here.run, there.run
    return all(
        source.files[file].read(at + part, min(_PIECE, size - part))
        == other.files[other_file].read(other_at + part, min(_PIECE, size - part))
        for part in range(0, size, _PIECE)
    )
