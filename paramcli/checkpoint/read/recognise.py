"""What a file is, by its content; a refusal with the next step for everything that is no checkpoint."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

from ...errors import PATH, InputRefused
from ..disk.input_file import InputFile

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C

_LEGACY_START = b"\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
# DeepSpeed's own way from partitioned weights to whole ones.
ZERO_HINT = "python zero_to_fp32.py FOLDER OUT, the script DeepSpeed saved beside the checkpoint, joins the parts"

# A folder of torch.distributed.checkpoint is one by this file, which is written last.
DCP, DCP_METADATA = "torch DCP", ".metadata"

# Magic bytes -> what it is, and what to do.
_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "git lfs pull"),
    (b"GGUF", "a GGUF model", "convert it to safetensors with the tool that made it"),
    (b"ggml", "a GGML model", "convert it to safetensors with the tool that made it"),
    (b"tjgg", "a GGML model", "convert it to safetensors with the tool that made it"),
    (b"lmgg", "a GGML model", "convert it to safetensors with the tool that made it"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)", "load it with Keras or h5py and save the arrays with safetensors"),
    (b"\x93NUMPY", "a numpy array", "save it as a dict of tensors: safetensors.numpy.save_file"),
    (b"\x1f\x8b", "gzip-compressed", "gunzip it first"),
    (b"\xfd7zXZ\x00", "xz-compressed", "unxz it first"),
    (b"BZh", "bzip2-compressed", "bunzip2 it first"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed", "unzstd it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"%PDF", "a PDF", "look for the checkpoint itself"),
    (b"\x7fELF", "a program", "look for the checkpoint itself"),
    (b"PK\x05\x06", "an empty zip archive", "copy or download the file again"),
)


def is_dcp(folder: Path) -> bool:
    return os.path.isfile(folder / DCP_METADATA)


def container_of(file: InputFile) -> str:
    """'safetensors', 'torch zip' or 'torch legacy'; raises InputRefused naming what else it is."""
    head = bytes(file.read(0, min(512, file.size)))

    def refuse(what: str, hint: str) -> InputRefused:
        return InputRefused(f"{PATH} is {what}", hint=hint, path=file.path)

    if str(file.path).endswith(".distcp"):
        raise refuse("one part of a torch.distributed.checkpoint folder", "give the folder")
    if not head:
        raise refuse("empty", "copy or download it again")
    for magic, what, hint in _FOREIGN:
        if head.startswith(magic):
            raise refuse(what, hint)
    if head.startswith(b"PK\x03\x04"):
        return "torch zip"
    # Its length field comes first, so this test needs the brace that every header begins with.
    if len(head) >= 9 and head[8:9] == b"{" and head[6:8] == b"\0\0":
        return "safetensors"
    if head[0] == 0x80 and len(head) > 1 and 2 <= head[1] <= 5:
        # The magic number is the first value; protocol 4 puts a frame opcode of 9 bytes before it.
        if head[2:14].startswith(_LEGACY_START) or (head[2:3] == b"\x95" and head[11:23].startswith(_LEGACY_START)):
            return "torch legacy"
        raise refuse(
            "a pickle, but not one that torch.save writes",
            "load it where it was made and save its state_dict with torch.save",
        )
    if len(head) >= 512 and head[257:262] == b"ustar":
        raise refuse("a tar archive", "unpack it first; torch's tar format of 2016 needs an old torch to convert")
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise refuse(
            "a web page, not a checkpoint: the download went wrong", "download it again, with the file's own address"
        )
    if text.startswith((b"{", b"[")):
        raise refuse("a JSON text, not a checkpoint", "give the weights file beside it, or the folder")
    if (
        (head[:1] == b"\x08" and b"\x12" in head[:8])
        or b"onnx" in head.lower()
        or (b"pytorch" in head[:64] and head[:1] == b"\x08")
    ):
        raise refuse("an ONNX model (or another protobuf)", "export the weights from the torch model that made it")
    if head[:2] in (b"(d", b"(l", b"(i", b"cc") or (head[:1] == b"c" and b"\n" in head[:100]):
        raise refuse(
            "a pickle of protocol 0, not one that torch.save writes",
            "load it where it was made and save its state_dict with torch.save",
        )
    if len(head) < 9:
        raise refuse(f"only {file.size} bytes long, not a checkpoint", "copy or download it again")
    if _is_text(head):
        raise refuse("a text, not a checkpoint", "look for the weights file beside it")
    raise refuse(
        "not a checkpoint paramcli knows (safetensors, or torch.save of any version)",
        "paramcli inspect reads files that torch.save or safetensors wrote",
    )


def _is_text(head: bytes) -> bool:
    """UTF-8 without control characters; a character cut at the end still counts."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return all(character >= " " or character in "\t\n\r" for character in text)
