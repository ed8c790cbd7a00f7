"""The zip layout of torch.save, read strictly.

Members are stored, not deflated; they share one root folder; names are unique, and the same in the
directory and in front of the data; nothing overlaps or lies outside the file. So a member is a byte
range of the file with a checksum, and no reader of ours can be made to allocate more than it.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from ...errors import InputRefused
from ...text import printable
from ..disk.input_file import InputFile

_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_ENTRY = struct.Struct("<4s4B4HL2L5H2L")
_LOCAL = struct.Struct("<4s2B4HL2L2H")
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
# A member for each of 200,000 tensors: each costs a look at the header before its data.
MAX_MEMBERS = 200_000
# A directory entry is 46 bytes and a name of some 30.
_MAX_DIRECTORY = 32 << 20
_IS_FOLDER = 0x10  # among a member's attributes
# The versions of the format that torch's reader takes, from the record of that name; another may mean another layout.
# (.format_version is about where a reader without the directory looks, and torch takes any.)
_VERSIONS = range(1, 11)
_DAMAGED = "copy or download the file again"


@dataclass(frozen=True)
class Member:
    """A stored member: its name without the root folder, and its bytes in the file."""

    name: str
    offset: int
    size: int
    crc: int


@dataclass(frozen=True)
class Archive:
    """The members of a torch zip by name; `checksums` is False where the writer recorded none.

    `mark`: what stands in the place of the file's first two bytes, where that is not PK.
    """

    root: str
    members: dict[str, Member]
    checksums: bool
    mark: bytes = b""


def broken(why: str) -> InputRefused:
    return InputRefused(f"its zip archive is broken: {why}", hint=_DAMAGED, code="damaged")


def read_archive(file: InputFile) -> Archive:
    """The directory of a torch zip checkpoint, checked against the file; InputRefused for any lie in it."""
    try:
        return _read_archive(file)
    except struct.error:
        raise broken("its directory ends too early") from None


def _read_archive(file: InputFile) -> Archive:
    offset, size, count, _ = _directory_place(file)
    if count > MAX_MEMBERS:
        raise broken(f"{count} members; {MAX_MEMBERS} is the limit")
    entries = _directory(bytes(file.read(offset, size)), count)
    names = [name for name, *_ in entries]
    if len(set(names)) != len(names):
        raise broken("a name appears twice")
    if all(name.endswith(".npy") for name in names):
        raise InputRefused(
            "a numpy archive (.npz), not a checkpoint",
            hint="save its arrays as tensors: safetensors.numpy.save_file",
            code="not_a_checkpoint",
        )
    if "model.weights.h5" in names:
        raise InputRefused(
            "a Keras model, not a checkpoint",
            hint="load it with Keras and save its arrays with safetensors",
            code="not_a_checkpoint",
        )
    roots = {name.partition("/")[0] for name in names}
    if len(roots) != 1 or not all("/" in name for name in names):
        raise InputRefused(
            "a zip archive, but not one that torch.save writes",
            hint="unpack it and give the checkpoint inside",
            code="not_a_checkpoint",
        )
    root = roots.pop()
    if root in ("", ".", ".."):
        raise broken("its members lie in no folder of their own")
    _refuse_other_archives({name.partition("/")[2] for name in names})
    members = {}
    position = 0
    for name, local, compressed, stored, crc, method, flags in sorted(entries, key=lambda entry: entry[1]):
        shown = printable(name, 80)
        if method != 0 or compressed != stored:
            raise InputRefused(
                f"'{shown}' in its zip archive is compressed; torch.save stores tensors as they are",
                hint="save it again with torch.save",
            )
        if flags & 1:
            raise broken(f"'{shown}' is encrypted")
        if local < position:
            raise broken(f"'{shown}' overlaps another member")
        start = _local_start(file, name, local, stored, crc, flags)
        position = start + stored
        if position > offset:
            raise broken(f"'{shown}' runs past the end of the data")
        short = name.partition("/")[2]
        if ".." in short.split("/") or short.startswith("/") or not short:
            if short:
                raise broken(f"'{shown}' points outside the archive")
            continue
        members[short] = Member(short, start, stored, crc)
    checksums = any(member.crc for member in members.values() if member.size)
    first = bytes(file.read(0, 2))
    archive = Archive(root, members, checksums, first if first != b"PK" else b"")
    _check_version(file, archive)
    return archive


def _check_version(file: InputFile, archive: Archive) -> None:
    if "version" not in archive.members:
        return
    said = member_bytes(file, archive, "version", 100).strip()
    if not said.isdigit():
        raise broken("its version is no number")
    if int(said) not in _VERSIONS:
        raise InputRefused(
            f"its zip archive has the version {int(said)}; {_VERSIONS[0]} to {_VERSIONS[-1]} are known",
            hint="save it again with torch.save" if int(said) < _VERSIONS[0] else "a newer version may read it",
        )


def _refuse_other_archives(names: set[str]) -> None:
    """Archives that look like torch.save's and hold a program: each with its own way out."""
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        raise InputRefused(
            "a TorchScript archive: a program with weights, not a checkpoint",
            hint="in Python: torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')",
            code="not_a_checkpoint",
        )
    if ".data/extern_modules" in names:
        raise InputRefused(
            "a torch.package archive: code with weights, not a checkpoint",
            hint="in Python: load it with torch.package and torch.save its state_dict()",
            code="not_a_checkpoint",
        )
    if "model.json" in names or "models" in {name.partition("/")[0] for name in names}:
        raise InputRefused(
            "an exported program, not a checkpoint",
            hint="torch.save the state_dict() of the model it was exported from",
            code="not_a_checkpoint",
        )


def _directory_place(file: InputFile) -> tuple[int, int, int, int]:
    """(offset, size, entries of the central directory, offset of the end record)."""
    tail_size = min(file.size, _END.size + _MAX16)
    tail = bytes(file.read(file.size - tail_size, tail_size))
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or len(tail) - found < _END.size:
        raise InputRefused(
            "cut short: it begins as a torch checkpoint, but the end of its zip archive is missing",
            hint=_DAMAGED,
            code="cut_short",
        )
    end = file.size - tail_size + found
    _, disk, start_disk, here, total, size, offset, comment = _END.unpack_from(tail, found)
    if disk or start_disk or here != total or end + _END.size + comment != file.size:
        raise broken("bytes after its end, or more than one disk")
    limit = end
    if _MAX16 in (total,) or _MAX32 in (size, offset):
        place = end - _LOCATOR64.size
        magic, _, end64, _ = (
            _LOCATOR64.unpack(bytes(file.read(place, _LOCATOR64.size))) if place >= 0 else (b"", 0, 0, 0)
        )
        if magic == b"PK\x06\x07":
            if end64 + _END64.size > place:
                raise broken("its 64-bit end record lies outside the file")
            fields = _END64.unpack(bytes(file.read(end64, _END64.size)))
            if fields[0] != b"PK\x06\x06" or fields[6] != fields[7]:
                raise broken("its 64-bit end record is none")
            total, size, offset, limit = fields[7], fields[8], fields[9], end64
    else:
        # torch writes the 64-bit records always; the directory then ends where the first of them begins.
        place = end - _LOCATOR64.size
        if place >= 0:
            magic, _, end64, _ = _LOCATOR64.unpack(bytes(file.read(place, _LOCATOR64.size)))
            if magic == b"PK\x06\x07" and end64 < place:
                limit = end64
    if offset + size != limit or size > _MAX_DIRECTORY:
        raise broken("its directory does not lie where the end record says")
    return offset, size, total, end


def _directory(data: bytes, count: int) -> list[tuple[str, int, int, int, int, int, int]]:
    """(name, local header offset, compressed size, size, crc, method, flags) of each entry."""
    entries, at = [], 0
    for _ in range(min(count, len(data) // _ENTRY.size + 1)):
        fields = _ENTRY.unpack_from(data, at)
        magic, flags, method, crc, compressed, size = fields[0], fields[5], fields[6], fields[9], fields[10], fields[11]
        name_size, extra_size, comment_size, local = fields[12], fields[13], fields[14], fields[18]
        if magic != b"PK\x01\x02":
            raise broken("a directory entry that is none")
        if fields[17] & _IS_FOLDER and size:
            # torch's reader fills such a tensor with whatever is in memory.
            raise broken("a member with content that is marked as a folder")
        body = at + _ENTRY.size
        raw = data[body : body + name_size]
        extra = data[body + name_size : body + name_size + extra_size]
        at = body + name_size + extra_size + comment_size
        if at > len(data):
            raise broken("its directory ends too early")
        size, compressed, local = _wide(extra, size, compressed, local)
        entries.append((_name(raw), local, compressed, size, crc, method, flags))
    if len(entries) != count or at != len(data):
        raise broken("its directory holds another number of entries than it says")
    return entries


def _name(raw: bytes) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise broken("a member's name is no UTF-8") from None
    if not name or "\0" in name:
        raise broken("a member without a name")
    return name


def _wide(extra: bytes, size: int, compressed: int, local: int) -> tuple[int, int, int]:
    """Sizes and offset with the 64-bit ones of the zip64 field where the 32-bit ones are full."""
    wanted = [size == _MAX32, compressed == _MAX32, local == _MAX32]
    at = 0
    while any(wanted) and at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            values = list(struct.unpack_from(f"<{min(length // 8, 3)}Q", extra, at + 4))
            if len(values) < sum(wanted):
                raise broken("a 64-bit size is missing")
            size, compressed, local = (
                values.pop(0) if full else value for full, value in zip(wanted, (size, compressed, local), strict=True)
            )
            break
        at += 4 + length
    return size, compressed, local


def _local_start(file: InputFile, name: str, local: int, size: int, crc: int, flags: int) -> int:
    """Where the member's bytes begin; its local header must say what the directory says."""
    if local + _LOCAL.size > file.size:
        raise broken(f"'{printable(name, 80)}' lies outside the file")
    fields = _LOCAL.unpack(bytes(file.read(local, _LOCAL.size)))
    magic, method, name_size, extra_size = fields[0], fields[4], fields[10], fields[11]
    raw = bytes(file.read(local + _LOCAL.size, name_size))
    # The file's first two bytes are `Archive.mark`.
    begins = magic[2:] == b"\x03\x04" if local == 0 else magic == b"PK\x03\x04"
    if not begins or method != 0 or raw.decode("utf-8", "replace") != name:
        raise broken(f"the header before '{printable(name, 80)}' says something else than the directory")
    extra = bytes(file.read(local + _LOCAL.size + name_size, extra_size))
    if not flags & 8:  # sizes and checksum stand here too, unless they follow the data
        stored, _, _ = _wide(extra, fields[9], fields[8], 0)
        if stored != size or fields[7] != crc:
            raise broken(f"the header before '{printable(name, 80)}' says something else than the directory")
    start = local + _LOCAL.size + name_size + extra_size
    if start + size > file.size:
        raise broken(f"'{printable(name, 80)}' runs past the end of the file")
    return start


_BLOCK = 1 << 20


def compare_member(file: InputFile, archive: Archive, name: str) -> None:
    """Raise InputRefused where a member's checksum is not that of its bytes, which are read block by block."""
    member, crc = archive.members[name], 0
    for done in range(0, member.size if archive.checksums else 0, _BLOCK):
        crc = zlib.crc32(file.read(member.offset + done, min(_BLOCK, member.size - done)), crc)
    if archive.checksums and crc != member.crc:
        raise _damaged(name)


def _damaged(name: str) -> InputRefused:
    return InputRefused(
        f"it is damaged: the checksum of '{printable(name, 80)}' does not match its bytes",
        hint=_DAMAGED,
        code="damaged",
    )


def member_bytes(file: InputFile, archive: Archive, name: str, limit: int) -> bytes:
    """A small member's content, its checksum compared."""
    member = archive.members[name]
    if member.size > limit:
        raise InputRefused(f"'{printable(name, 80)}' in it is {member.size} bytes long; {limit} is the limit")
    data = bytes(file.read(member.offset, member.size))
    if archive.checksums and zlib.crc32(data) != member.crc:
        raise _damaged(name)
    return data
