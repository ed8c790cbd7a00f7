"""Bytes of the containers, by hand, so that every field can lie."""

from __future__ import annotations

import struct
import zlib

VALUES = struct.pack("<4f", 1, 2, 3, 4)


# --- safetensors ---------------------------------------------------------------------------------


def safetensors(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(name: str = "w", dtype: object = '"F32"', shape: str = "[4]", offsets: str = "[0,16]", more: str = "") -> str:
    return f'"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}'


# --- pickles -------------------------------------------------------------------------------------


def name(module: str, word: str) -> bytes:
    return f"c{module}\n{word}\n".encode()


def text(words: str | bytes) -> bytes:
    data = words if isinstance(words, bytes) else words.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


REBUILD = name("torch._utils", "_rebuild_tensor_v2")
ORDERED = name("collections", "OrderedDict")


def storage(key: str = "0", numel: int = 4, cls: str = "FloatStorage", device: str = "cpu") -> bytes:
    return b"(" + text("storage") + name("torch", cls) + text(key) + text(device) + number(numel) + b"tQ"


def tensor(
    offset: int = 0,
    shape: bytes = b"K\x04\x85",
    stride: bytes = b"K\x01\x85",
    of: bytes | None = None,
    more: bytes = b"N",
) -> bytes:
    return REBUILD + b"(" + (of or storage()) + number(offset) + shape + stride + b"\x89" + more + b"tR"


def state_dict(*pairs: tuple[str | bytes, bytes], w: bytes | None = None) -> bytes:
    """{'w': tensor, **pairs}"""
    body = text("w") + (w or tensor()) + b"".join((text(k) if isinstance(k, str) else k) + v for k, v in pairs)
    return b"\x80\x02}(" + body + b"u."


def call(module: str, word: str, *arguments: bytes) -> bytes:
    return name(module, word) + b"(" + b"".join(arguments) + b"tR"


# --- zip -----------------------------------------------------------------------------------------


def member(where: str, data: bytes, **lies: object) -> dict:
    return {"name": where.encode(), "data": data, **lies}


def zipped(members: list[dict], comment: bytes = b"", tail: bytes = b"", **end: int) -> bytes:
    """Stored members with their directory. A member may say otherwise: local_name, method, size, crc, offset, flags,
    extra.
    """
    out, directory = b"", b""
    for m in members:
        data, size = m.get("bytes", m["data"]), m.get("size", len(m["data"]))
        crc = m.get("crc", zlib.crc32(m["data"]))
        method, flags, extra = m.get("method", 0), m.get("flags", 0), m.get("extra", b"")
        local = m.get("local_name", m["name"])
        offset = m.get("offset", len(out))
        stored = m.get("stored", len(data) if method else size)
        out += struct.pack(
            "<4s5H3L2H",
            b"PK\3\4",
            20,
            flags,
            method,
            0,
            33,
            m.get("local_crc", crc),
            stored,
            m.get("local_size", size),
            len(local),
            len(extra),
        )
        out += local + extra + data
        more = m.get("directory_extra", b"")
        directory += struct.pack(
            "<4s6H3L5H2L",
            b"PK\1\2",
            20,
            20,
            flags,
            method,
            0,
            33,
            crc,
            stored,
            size,
            len(m["name"]),
            len(more),
            0,
            0,
            0,
            m.get("attributes", 0),
            offset,
        )
        directory += m["name"] + more
    count = end.get("count", len(members))
    at, size = end.get("at", len(out)), end.get("size", len(directory))
    return (
        out
        + directory
        + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, at, len(comment))
        + comment
        + tail
    )


VERSION = member("archive/version", b"3\n")


def checkpoint(pickle: bytes, *more: dict, data: bytes = VALUES, **options) -> bytes:
    """A torch zip with this data.pkl and one storage of four floats."""
    return zipped([member("archive/data.pkl", pickle), member("archive/data/0", data), VERSION, *more], **options)


# --- legacy --------------------------------------------------------------------------------------

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
PROTOCOL = b"\x80\x02M\xe9\x03."
SYSTEM = b"\x80\x02}(" + text("protocol_version") + b"M\xe9\x03" + text("little_endian") + b"\x88u."


def legacy(
    pickle: bytes,
    keys: bytes = b"\x80\x02](" + text("0") + b"e.",
    storages: bytes = struct.pack("<Q", 4) + VALUES,
    magic: bytes = MAGIC,
    protocol: bytes = PROTOCOL,
    system: bytes = SYSTEM,
) -> bytes:
    return magic + protocol + system + pickle + keys + storages


def legacy_state(w: bytes | None = None) -> bytes:
    view = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04NtQ"
    return b"\x80\x02}" + text("w") + (w or tensor(of=view)) + b"s."
