"""What is no checkpoint of torch or safetensors, by its first bytes, its name or its folder: with the next step."""

from __future__ import annotations

import os
import re
from pathlib import Path

# What it is, and what to do.
Foreign = tuple[str, str]

_AGAIN = "convert it to safetensors with the tool that made it"
_EXPORTED = "torch.save the state_dict() of the model it was exported from"
_ARRAYS = "load it where it was made, and save its arrays by name with safetensors.numpy.save_file"
_KERAS: Foreign = (
    "an HDF5 file (Keras, TensorFlow)",
    "load it with Keras or h5py and save the arrays with safetensors",
)
FLAX: Foreign = (
    "a Flax checkpoint (msgpack)",
    "in Python: flax.serialization.msgpack_restore, flatten the names, safetensors.flax.save_file",
)
_TENSORFLOW: Foreign = (
    "a TensorFlow checkpoint",
    "in Python: tf.train.load_checkpoint(PREFIX) has its arrays by name; save them with safetensors.numpy.save_file",
)
_SAVED_MODEL: Foreign = (
    "a TensorFlow SavedModel",
    "in Python: tf.saved_model.load(FOLDER), and its variables by name to safetensors.tensorflow.save_file",
)
_PADDLE: Foreign = (
    "a PaddlePaddle checkpoint",
    "in Python: paddle.load(FILE, return_numpy=True), and its arrays to safetensors.numpy.save_file",
)
_PADDLE_MODEL: Foreign = ("an exported PaddlePaddle model", "give the .pdparams it was exported from to paddle.load")
_ORBAX: Foreign = (
    "an Orbax checkpoint (JAX)",
    "in Python: orbax.checkpoint restores it; flatten the names, safetensors.flax.save_file",
)
_COREML: Foreign = ("a Core ML model", _EXPORTED)
ONNX: Foreign = ("an ONNX model (or another protobuf)", "export the weights from the torch model that made it")
_GGUF: Foreign = ("a GGUF model", _AGAIN)
_GGML: Foreign = ("a GGML model", _AGAIN)

# First bytes.
_MAGIC: tuple[tuple[bytes, Foreign], ...] = (
    (b"version https://git-lfs", ("a Git LFS pointer, not the file itself", "git lfs pull")),
    (b"GGUF", _GGUF),
    *((magic, _GGML) for magic in (b"ggml", b"tjgg", b"lmgg", b"ggjt")),
    (b"\x89HDF\r\n\x1a\n", _KERAS),
    (b"\x93NUMPY", ("a numpy array", "save it as a dict of tensors: safetensors.numpy.save_file")),
    (b"\x12\x01\0\0\0\0\0\0", ("an MXNet file of arrays", _ARRAYS)),
    (b"\x1f\x8b", ("gzip-compressed", "gunzip it first")),
    (b"\xfd7zXZ\x00", ("xz-compressed", "unxz it first")),
    (b"BZh", ("bzip2-compressed", "bunzip2 it first")),
    (b"\x28\xb5\x2f\xfd", ("zstd-compressed", "unzstd it first")),
    (b"7z\xbc\xaf\x27\x1c", ("a 7z archive", "unpack it first")),
    (b"Rar!", ("a RAR archive", "unpack it first")),
    (b"%PDF", ("a PDF", "look for the checkpoint itself")),
    (b"\x7fELF", ("a program", "look for the checkpoint itself")),
    (b"PK\x05\x06", ("an empty zip archive", "copy or download the file again")),
)
# Bytes 4 to 8, of what lies in flatbuffers.
_FLATBUFFERS = {b"TFL3": ("a TensorFlow Lite model", _EXPORTED), b"ET12": ("an ExecuTorch program", _EXPORTED)}
# The last bytes of a table of strings, which a TensorFlow checkpoint's index is.
_TABLE_END = bytes.fromhex("57fb808b247547db")

# Endings of names, for what has no first bytes of its own.
_NAMES: tuple[tuple[re.Pattern[str], Foreign], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), foreign)
    for pattern, foreign in (
        (r".*\.msgpack(-\d+-of-\d+)?", FLAX),
        (r".*\.(h5|hdf5|keras)", _KERAS),
        (r".*\.data-\d{5}-of-\d{5}|.*\.ckpt(-\d+)?\.(index|meta)", _TENSORFLOW),
        (r".*\.pb", _SAVED_MODEL),
        (r".*\.(pdparams|pdopt)", _PADDLE),
        (r".*\.(pdmodel|pdiparams(\.info)?)", _PADDLE_MODEL),
        (r".*\.onnx(_data|\.data)?", ONNX),
        (r".*\.gguf", _GGUF),
        (r".*\.ggml", _GGML),
        (r".*\.tflite", ("a TensorFlow Lite model", _EXPORTED)),
        (r".*\.mlmodel", _COREML),
        (r".*\.(engine|plan|trt)", ("a TensorRT engine", _EXPORTED)),
        (
            r".*\.t7",
            ("a file of Lua Torch", "in Python: torchfile.load, and torch.save its arrays by name"),
        ),
        (r".*\.caffemodel", ("a Caffe model", _ARRAYS)),
    )
)


def foreign_content(head: bytes, tail: bytes) -> Foreign | None:
    """By its first and last bytes."""
    for magic, foreign in _MAGIC:
        if head.startswith(magic):
            return foreign
    if tail.endswith(_TABLE_END):
        return _TENSORFLOW
    return _FLATBUFFERS.get(head[4:8])


def foreign_name(name: str) -> Foreign | None:
    """By its name alone, for what cannot be told by its content."""
    return next((foreign for pattern, foreign in _NAMES if pattern.fullmatch(name)), None)


def is_msgpack(head: bytes) -> bool:
    """Does it begin as a map whose first key is a text?"""
    sizes = {0xDE: 3, 0xDF: 5}
    begin = 1 if head[:1] and 0x81 <= head[0] <= 0x8F else sizes.get(head[0] if head else 0, 0)
    return bool(begin) and len(head) > begin and (0xA1 <= head[begin] <= 0xBF or head[begin] in (0xD9, 0xDA))


def foreign_folder(folder: Path) -> Foreign | None:
    """By what is in it."""
    try:
        with os.scandir(folder) as entries:
            names = {entry.name for entry in entries}
    except OSError:
        return None
    if "saved_model.pb" in names or "saved_model.pbtxt" in names:
        return _SAVED_MODEL
    if names & {"manifest.ocdbt", "ocdbt.process_0", "_CHECKPOINT_METADATA", "_METADATA", "_sharding"}:
        return _ORBAX
    if "Manifest.json" in names and folder.name.endswith(".mlpackage"):
        return _COREML
    return None
