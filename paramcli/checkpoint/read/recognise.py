"""What a file is, by its content; a refusal with the next step for everything that is no checkpoint."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from ...errors import PATH, InputRefused
from ...wording import call
from ..disk.input_file import InputFile
from .foreign import FLAX, ONNX, Foreign, foreign_content, foreign_name, is_msgpack

ZIP_START = b"PK\x03\x04"
PICKLE = "pickle"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_LEGACY_START = b"\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
# DeepSpeed's own way from partitioned weights to whole ones.
ZERO_HINT = "python zero_to_fp32.py FOLDER OUT, the script DeepSpeed saved beside the checkpoint, joins the parts"

# A folder of torch.distributed.checkpoint is one by this file, which is written last.
DCP, DCP_METADATA = "torch DCP", ".metadata"
# What the processes of one FSDP run saved, each in a file of its own.
RANKS = "FSDP rank files"


def is_dcp(folder: Path) -> bool:
    return os.path.isfile(folder / DCP_METADATA)


def container_of(file: InputFile) -> str:
    """'safetensors', 'torch zip', 'torch legacy' or 'pickle'; raises InputRefused naming what else it is."""
    head = bytes(file.read(0, min(512, file.size)))
    if file.path.name.endswith(".distcp"):
        raise InputRefused(
            f"{PATH} is one part of a torch.distributed.checkpoint folder",
            hint="give the folder",
            path=file.path,
            code="incomplete",
        )
    if head.startswith(ZIP_START) or _is_marked_zip(head):
        return "torch zip"
    # Its length field comes first, so this test needs the brace that every header begins with.
    if len(head) >= 9 and head[8:9] == b"{" and head[6:8] == b"\0\0":
        return "safetensors"
    # The magic number is the first value; protocol 4 puts a frame opcode of 9 bytes before it.
    if _is_pickle(head) and (
        head[2:14].startswith(_LEGACY_START) or (head[2:3] == b"\x95" and head[11:23].startswith(_LEGACY_START))
    ):
        return "torch legacy"
    found = _known(file, head)
    if found is None and _is_pickle(head):
        return PICKLE
    what, hint = found or _stranger(file, head)
    code = "not_a_checkpoint" if head else "cut_short"
    raise InputRefused(f"{PATH} is {what}", hint=hint, path=file.path, code=code)


def _is_marked_zip(head: bytes) -> bool:
    """Is it torch.save's archive but for its first two bytes? GPT-SoVITS writes the version of its model over them."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head[2:4] == ZIP_START[2:] and name.endswith(b"/data.pkl")


def _is_pickle(head: bytes) -> bool:
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5


def _known(file: InputFile, head: bytes) -> Foreign | None:
    """What other programs write, by content or name."""
    if not head:
        return "empty", "copy or download it again"
    tail = bytes(file.read(max(0, file.size - 8), min(8, file.size)))
    return foreign_content(head, tail) or _page_or_text_format(head) or foreign_name(file.path.name)


def _stranger(file: InputFile, head: bytes) -> Foreign:
    """What else a file looks like that is no checkpoint, and what to do."""
    if len(head) >= 512 and head[257:262] == b"ustar":
        return "a tar archive", "unpack it first; torch's tar format of 2016 needs an old torch to convert"
    if is_msgpack(head):
        return FLAX
    if (head[:1] == b"\x08" and b"\x12" in head[:8]) or b"onnx" in head.lower():
        return ONNX
    if head[:2] in (b"(d", b"(l", b"(i", b"cc") or (head[:1] == b"c" and b"\n" in head[:100]):
        return (
            "a pickle of protocol 0, not one that torch.save writes",
            "load it where it was made and save its state_dict with torch.save",
        )
    if len(head) < 9:
        return f"only {file.size} bytes long, not a checkpoint", "copy or download it again"
    if _is_text(head):
        return "a text, not a checkpoint", "look for the weights file beside it"
    return (
        "not a checkpoint paramcli knows (safetensors, or torch.save of any version)",
        f"{call('inspect')} reads files that torch.save or safetensors wrote",
    )


def _page_or_text_format(head: bytes) -> Foreign | None:
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return "a web page, not a checkpoint: the download went wrong", "download it again, with the file's own address"
    if text.startswith((b"{", b"[")):
        return "a JSON text, not a checkpoint", "give the weights file beside it, or the folder"
    return None


def _is_text(head: bytes) -> bool:
    """UTF-8 without control characters; a character cut at the end still counts."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character >= " " or character in "\t\n\r" for character in text)
