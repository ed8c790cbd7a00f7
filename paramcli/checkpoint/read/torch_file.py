"""A torch checkpoint, zip or legacy, as a Source: described from its pickle, never unpickled.

The pickle is read symbolically (pickle_data), so tensors come out as byte ranges of the file whose
sizes were checked against it; `torch.load` plays no part, and with it go uninitialised memory,
ignored checksums, and calls of what a file names.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ...dtypes import DTYPES
from ...errors import TENSOR, InputRefused
from ...text import listing, printable
from ..disk.input_file import InputFile
from ..pickle.arrays import Array, array_of, tensor_of_another_device
from ..pickle.pickle_data import (
    MAX_BYTES,
    PARTITIONED,
    Payload,
    TensorRef,
    Unpickled,
    check_structure,
    read_pickle,
    read_pickle_in,
    shown,
)
from ..pickle.torch_zip import compare_member, member_bytes, read_archive
from ..pickle.tree import element_width, storage_refs, walk
from ..source import Extra, Odd, Root, Source, Storage, TensorInfo
from .recognise import LEGACY_MAGIC, ZERO_HINT, ZIP_START
from .roots import Chosen, choose_root
from .special import is_special_class, special

# A tensor expanded by stride 0 is stored whole in safetensors: allowed as long as that cannot blow up.
EXPANSION = 64 << 20
# So is one storage under several names: a model may be one block used over and over, but not without end.
MAX_SHARING = 200
# So many descriptions, of at most so many bytes, are kept in case another is alike.
_KNOWN, _SMALL = 1000, 1 << 12
# Two 4-bit values to a byte, as torch counts them.
PAIRS = "F4x2"
_LEGACY_PROTOCOL = 1001


def open_torch(path: Path, file: InputFile | None = None, root: str | None = None) -> Source:
    """Open a torch checkpoint; `root` names the state dict where there are several.

    Raises InputRefused for broken, dangerous and foreign files, naming the file and the reason.
    """
    file = file or InputFile(path)
    try:
        with collector_paused():
            return _open(Path(path), file, root)
    except InputRefused as error:
        file.close()
        if error.path is None:
            error.path, error.of_file = path, True
        raise
    except BaseException:
        file.close()
        raise


@contextmanager
def collector_paused() -> Iterator[None]:
    """A description is many small objects and no garbage: the collector would go through all of them again
    and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _open(path: Path, file: InputFile, root: str | None) -> Source:
    head = bytes(file.read(0, min(4, file.size)))
    container = "torch zip" if head[2:] == ZIP_START[2:] else "torch legacy"
    loaded, storages, notes = zip_parts(file) if container == "torch zip" else _legacy(file)
    check_description(loaded.value, storages)
    chosen = choose_root(loaded.value, root)
    tensors = Listing(chosen, storages).tensors()
    check_expansion(tensors, file.size)
    if container == "torch zip" and not head.startswith(ZIP_START):
        mark = printable(head[:2].decode("latin-1"))
        notes.append(f"its first two bytes are '{mark}' in the place of a zip's PK, as GPT-SoVITS marks its versions")
        chosen.extras.append(Extra(f"the first two bytes '{mark}'", "a mark in the place of PK", carried=False))
    skipped = [str(cls) for cls in loaded.classes if not is_special_class(cls)]
    if skipped:
        notes.append(f"read past classes paramcli does not know: {listing(skipped, 100)}")
    return Source(
        path=path,
        container=container,
        files=[file],
        tensors=tensors,
        extras=chosen.extras,
        roots=[Root(name, count) for name, count in chosen.candidates],
        root=chosen.name,
        root_path=chosen.path,
        is_loaded=chosen.is_loaded,
        parts=chosen.parts,
        notes=notes + chosen.note(tensors.values()),
        optimizers=chosen.optimizers,
        tree=loaded.value,
        storages=storages,
    )


Storages = dict[str, Storage]


def zip_parts(file: InputFile, known: dict[bytes, Unpickled] | None = None) -> tuple[Unpickled, Storages, list[str]]:
    """What torch.save wrote: the description of its pickle, its storages, and what is to be noted.

    `known`: of many small archives the descriptions that were read, as many of them are alike.
    """
    archive = read_archive(file)
    if "data.pkl" not in archive.members:
        raise InputRefused(
            "a zip archive without the data.pkl of a torch checkpoint",
            hint="unpack it and give the checkpoint inside",
        )
    order = member_bytes(file, archive, "byteorder", 100) if "byteorder" in archive.members else b"little"
    if order.strip() != b"little":
        raise InputRefused("it was written on a big-endian machine", hint="save it again on a little-endian one")
    pickle = archive.members["data.pkl"]
    if pickle.size <= MAX_BYTES:
        data = member_bytes(file, archive, "data.pkl", MAX_BYTES)
        loaded = (known or {}).get(data) or read_pickle(data)
        if known is not None and len(known) < _KNOWN and len(data) < _SMALL:
            known[data] = loaded
    else:  # torch_xla keeps its tensors in the pickle itself
        compare_member(file, archive, "data.pkl")
        loaded = read_pickle_in(file, pickle.offset, pickle.size)
        loaded.end -= pickle.offset
    if loaded.end != pickle.size:
        raise InputRefused(
            "bytes after the end of its pickle belong to nothing", hint="copy or download the file again"
        )
    notes = [] if archive.checksums else ["the file records no checksums, so damage to its tensors cannot be noticed"]
    storages = {
        name.removeprefix("data/"): Storage(
            0, member.offset, member.size, name, member.crc if archive.checksums else None
        )
        for name, member in archive.members.items()
        if name.startswith("data/")
    }
    return loaded, storages, notes


def _legacy(file: InputFile) -> tuple[Unpickled, Storages, list[str]]:
    """Five pickles (magic, protocol, system, the object, storage keys), then each storage: 8 bytes of size,
    its bytes.
    """
    # The pickles stand in front; of the storages behind them as little as possible is read.
    most = min(file.size, MAX_BYTES)
    for size in (1 << 18, 1 << 22):
        if size < most:
            try:
                return _legacy_from(file, bytes(file.read(0, size)))
            except InputRefused:
                pass  # the pickles may go on behind; the whole read below decides
    return _legacy_from(file, bytes(file.read(0, most)))


def _legacy_from(file: InputFile, data: bytes) -> tuple[Unpickled, Storages, list[str]]:
    magic = read_pickle(data)
    if magic.value != LEGACY_MAGIC:
        raise InputRefused("a pickle, but not one that torch.save writes")
    protocol = read_pickle(data, magic.end)
    system = read_pickle(data, protocol.end)
    if protocol.value != _LEGACY_PROTOCOL:
        raise InputRefused(
            f"a torch checkpoint of protocol {shown(protocol.value)}; {_LEGACY_PROTOCOL} is the one known"
        )
    if isinstance(system.value, dict) and system.value.get("little_endian") is False:
        raise InputRefused("it was written on a big-endian machine", hint="save it again on a little-endian one")
    loaded = read_pickle(data, system.end)
    keys = read_pickle(data, loaded.end)
    if not isinstance(keys.value, list) or not all(isinstance(key, str) for key in keys.value):
        raise InputRefused("its list of storages is none", hint="copy or download the file again")
    used = storage_refs(loaded.value)
    if len(set(keys.value)) != len(keys.value) or set(keys.value) != set(used):
        raise InputRefused(
            "its list of storages is not the one its tensors use; reading it would give memory of this machine as "
            "weights",
            hint="copy or download the file again, from a source you trust",
        )
    storages: Storages = {}
    position = keys.end
    for key in keys.value:
        count = int.from_bytes(file.read(position, 8), "little") if position + 8 <= file.size else -1
        size = count * element_width(used[key].dtype)
        if count < 0 or count != used[key].numel or position + 8 + size > file.size:
            raise InputRefused(
                f"cut short, or storage '{printable(key, 40)}' has another size than it says",
                hint="copy or download the file again",
            )
        storages[key] = Storage(0, position + 8, size, key)
        position += 8 + size
    if position != file.size:
        raise InputRefused(
            f"{file.size - position} bytes after its last storage belong to nothing",
            hint="copy or download the file again",
        )
    return loaded, storages, []


def _span(ref: TensorRef, storages: Storages) -> tuple[Storage, int]:
    """(the storage, the tensor's first byte in it), checked; the message of a broken one names no tensor."""
    storage = storages.get(ref.storage.key)
    if storage is None:
        raise InputRefused(f"uses storage '{printable(ref.storage.key, 40)}', which the file does not have")
    said = ref.storage.numel * element_width(ref.storage.dtype)
    if storage.nbytes != said:
        raise InputRefused(f"uses a storage of {storage.nbytes} bytes that is said to have {said}")
    base = ref.storage.view[1] if ref.storage.view is not None else 0
    if type(base) is not int or base < 0:
        raise InputRefused("uses a broken storage view")
    start = (base + ref.offset) * element_width(ref.dtype)
    last = 0 if 0 in ref.shape else 1 + sum((size - 1) * step for size, step in zip(ref.shape, ref.stride, strict=True))
    if start + last * element_width(ref.dtype) > storage.nbytes:
        raise InputRefused("lies outside its storage")
    return storage, start


def check_description(value: object, storages: Storages) -> None:
    """Raise InputRefused for a tree that cannot be walked, or with a tensor in it that lies in no storage."""
    check_structure(value)
    for ref in walk(value):
        if isinstance(ref, TensorRef):
            _check_extra(ref, storages)


def _check_extra(ref: TensorRef, storages: Storages) -> None:
    """Tensors outside the state dict (optimizer moments) must be sound too: a lie there is a broken file."""
    if ref.storage.device != "meta":
        try:
            _span(ref, storages)
        except InputRefused as error:
            raise InputRefused(f"one of its tensors {error.message}", hint="copy or download the file again") from None


class Listing:
    """The tensors of the state dict as they can be listed: read, or odd."""

    def __init__(self, chosen: Chosen, storages: Storages):
        self.chosen, self.storages = chosen, storages
        self._arrays: dict[int, tuple[Array, Storage]] = {}

    def tensors(self) -> dict[str, TensorInfo]:
        """By name."""
        odd_names = self.chosen.odd_names
        found = {name: self._info(name, item) for name, item in self.chosen.tensors.items()}
        for name in odd_names:
            if found[name].odd is None:
                found[name] = replace(found[name], odd=odd_names[name])
        return found

    def _info(self, name: str, item: object) -> TensorInfo:
        array = array_of(item)
        return any_info(name, item, self.storages) if array is None else self._array(name, item, array)

    def _array(self, name: str, item: object, array: Array) -> TensorInfo:
        if array.dtype not in DTYPES:
            why = f"{TENSOR} is {printable(array.dtype.removeprefix('?'), 40)}, which safetensors cannot store"
            return odd_info(name, array.dtype, array.shape, why, "convert it where it was made")
        if id(item) not in self._arrays:
            self._arrays[id(item)] = array, self._storage(array)
        # An array that stands under two names has one place, as a tensor has.
        array, storage = self._arrays[id(item)]
        contiguous = is_contiguous(array.shape, array.stride)
        return TensorInfo(name, array.dtype, array.shape, storage, 0, None if contiguous else array.stride)

    def _storage(self, array: Array) -> Storage:
        if isinstance(array.data, Payload):
            at, size = array.data.at, array.data.size
            return Storage(0, at, size, f"bytes at {at}", decode=None if array.is_in_file else array.read)
        # Bytes that the file does not hold as they are have a place before its first.
        return Storage(0, -1 - len(self._arrays), array.nbytes, "bytes of its pickle", decode=array.read)


def any_info(name: str, item: object, storages: Storages) -> TensorInfo:
    """A tensor of any kind that is no array: as `tensor_info` has it, or odd."""
    ref = item if isinstance(item, TensorRef) else tensor_of_another_device(item)
    if ref is not None:
        return tensor_info(name, ref, storages)
    seen = special(item)
    assert seen is not None, "what is no TensorRef and is a tensor is a special one"
    return odd_info(name, seen.dtype, seen.shape, f"{TENSOR} is {seen.kind}", DENSE)


DENSE = "save it as a plain dense tensor where it was made"


def odd_info(name: str, dtype: str, shape: tuple[int, ...], why: str, hint: str) -> TensorInfo:
    """A tensor that can be listed and not be read."""
    return TensorInfo(name, dtype, shape, Storage(0, 0, 0, name), odd=Odd(why, hint))


def tensor_info(name: str, ref: TensorRef, storages: Storages) -> TensorInfo:
    """The tensor as a checked byte range; odd where safetensors has no form for it. InputRefused for a broken one."""

    def odd(why: str, hint: str) -> TensorInfo:
        return odd_info(name, ref.dtype, ref.shape, f"{TENSOR} {why}", hint)

    if ref.dtype not in DTYPES and ref.dtype != PAIRS:
        return odd(
            f"is {printable(ref.dtype.removeprefix('?'), 40)}, which safetensors cannot store",
            "convert it where it was made",
        )
    if PARTITIONED in ref.flags:
        return odd("is one process's part of a DeepSpeed ZeRO-3 parameter", ZERO_HINT)
    if ref.flags:
        return odd(
            f"is a lazy view ({', '.join(printable(f, 20) for f in ref.flags)})",
            "save it after .resolve_conj().resolve_neg()",
        )
    if ref.storage.device == "meta":
        return odd("is on the meta device: it has a shape and no data", "save it with its data")
    storage, start = _span(ref, storages)
    contiguous = is_contiguous(ref.shape, ref.stride)
    if ref.dtype != PAIRS:
        return TensorInfo(name, ref.dtype, ref.shape, storage, start, None if contiguous else ref.stride)
    if not contiguous or not ref.shape:
        return odd("is a strided view of packed 4-bit pairs", "save it after .contiguous()")
    # torch counts bytes, each two values; the format counts values.
    return TensorInfo(name, "F4", (*ref.shape[:-1], 2 * ref.shape[-1]), storage, start)


def check_expansion(tensors: dict[str, TensorInfo], file_size: int) -> None:
    """Strided and shared tensors are stored whole in safetensors: all of them together may not blow up."""
    strided = [info for info in tensors.values() if info.stride is not None]
    for what, infos, factor in (
        ("an expanded view", strided, 2),
        ("one of many that share a storage", tensors.values(), MAX_SHARING),
    ):
        total = sum(info.nbytes for info in infos)
        if total > max(EXPANSION, factor * file_size):
            largest = max(infos, key=lambda info: info.nbytes)
            raise InputRefused(
                f"{TENSOR} is {what}: written out, they take {total} bytes, the file has {file_size}",
                hint="save it after .contiguous()",
                tensor=largest.name,
            )


def is_contiguous(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Row-major without gaps; dimensions of size 1, and empty tensors, have no stride that matters."""
    if 0 in shape:
        return True
    expected = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        if size != 1:
            if step != expected:
                return False
            expected *= size
    return True
