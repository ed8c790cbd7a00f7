"""The archive that torch.save writes, as places: where each member lies is known before its bytes are.

local header, bytes     one after another; bytes aligned, as a mapped file should have aligned tensors
directory, end record   with every member's size and checksum
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import InputRefused
from ...wording import AS_SAFETENSORS
from .torch_zip import MAX_MEMBERS

_ROOT = "archive"
# torch aligns storages so that a mapped file has aligned tensors.
ALIGNMENT = 64
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_MAX32 = 0xFFFFFFFF


@dataclass
class Member:
    """One member of an archive. Places count from the archive's first byte; `crc` is that of the bytes so far."""

    name: str
    size: int
    data: bytes | None = None  # of small members; the bytes of a storage stream
    header: int = 0
    start: int = 0
    crc: int = 0

    def __post_init__(self) -> None:
        if self.data is not None:
            self.crc = zlib.crc32(self.data)

    def local_header(self) -> bytes:
        """What stands before the bytes, up to their first."""
        name = f"{_ROOT}/{self.name}".encode()
        large = self.size >= _MAX32
        extra = struct.pack("<HHQQ", 1, 16, self.size, self.size) if large else b""
        padding = self.start - self.header - _LOCAL.size - len(name) - len(extra) - 4
        extra += struct.pack("<HH", 0x4246, padding) + b"Z" * padding
        size = _MAX32 if large else self.size
        return (
            _LOCAL.pack(b"PK\x03\x04", 45 if large else 20, 0, 0, 0, 0x21, self.crc, size, size, len(name), len(extra))
            + name
            + extra
        )

    def _entry(self) -> bytes:
        name = f"{_ROOT}/{self.name}".encode()
        wide = [value for value in (self.size, self.size, self.header) if value >= _MAX32]
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        size, header = min(self.size, _MAX32), min(self.header, _MAX32)
        version = 45 if wide else 20
        fields = (
            b"PK\x01\x02",
            version,
            version,
            0,
            0,
            0,
            0x21,
            self.crc,
            size,
            size,
            len(name),
            len(extra),
            0,
            0,
            0,
            0,
            header,
        )
        return _ENTRY.pack(*fields) + name + extra


def members_of(pickle: bytes, storages: Sequence[Member]) -> list[Member]:
    """All members of an archive with these storages, in torch's order; InputRefused for more than can be read again."""
    if len(storages) + 3 > MAX_MEMBERS:
        raise InputRefused(
            f"{len(storages)} tensors are more than a torch file holds that can be read again",
            hint=AS_SAFETENSORS,
        )
    return [
        Member("data.pkl", len(pickle), pickle),
        Member("byteorder", 6, b"little"),
        *storages,
        Member("version", 2, b"3\n"),
    ]


def lay_out(members: Sequence[Member]) -> int:
    """Give every member its place; returns where the directory begins."""
    position = 0
    for member in members:
        member.header = position
        fixed = position + _LOCAL.size + len(_ROOT) + 1 + len(member.name) + (20 if member.size >= _MAX32 else 0) + 4
        member.start = fixed + -fixed % ALIGNMENT
        position = member.start + member.size
    return position


def directory(members: Sequence[Member], place: int) -> bytes:
    """The directory, which begins at `place`, and the end record. Its length depends on names and sizes alone."""
    entries = b"".join(member._entry() for member in members)
    count, end = len(members), place + len(entries)
    out = b""
    if count >= 0xFFFF or len(entries) >= _MAX32 or place >= _MAX32:
        out += struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, len(entries), place)
        out += struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1)
    few = min(count, 0xFFFF)
    return (
        entries
        + out
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, few, few, min(len(entries), _MAX32), min(place, _MAX32), 0)
    )
