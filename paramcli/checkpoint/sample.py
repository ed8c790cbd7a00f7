"""A checkpoint told from others of the same names and shapes without reading it whole."""

from __future__ import annotations

from collections.abc import Iterator

from .source import Source, TensorInfo

# Tensors of up to so many bytes are taken whole; of others PLACES blocks, evenly from the first byte to the last.
SMALL, PLACES, BLOCK = 1 << 12, 8, 64
# Reads that a checkpoint may cost in all: with more tensors each has fewer, but its begin, middle and end.
MOST_READS = 200_000


def sampled(source: Source) -> str:
    """A digest of the files' names and sizes, of every tensor's place, and of some bytes of each; where the container
    has checksums, of those.
    """
    from hashlib import sha256

    digest = sha256()
    for file in source.read_files:
        digest.update(repr((file.path.name, file.size)).encode())
    blocks = source.blocks()
    places = min(PLACES, max(3, MOST_READS // max(len(blocks), 1)))
    for name, info in blocks.items():
        stored = info.storage
        digest.update(
            repr((name, info.dtype, info.shape, stored.file, stored.offset, info.offset, stored.crc)).encode()
        )
        if stored.crc is None:
            for part in _some(source, info, places):
                digest.update(part)
    return digest.hexdigest()


def _some(source: Source, info: TensorInfo, places: int) -> Iterator[bytearray]:
    file, run = source.files[info.storage.file], info.run
    if info.storage.offset < 0 and info.storage.decode is not None:  # the file does not hold them as they are
        yield info.storage.decode(file)
        return
    begin, length = run[1:] if run else (info.storage.offset, info.storage.nbytes)
    if length <= SMALL:
        yield file.read(begin, length)
        return
    for place in range(places):
        yield file.read(begin + place * (length - BLOCK) // (places - 1), BLOCK)
