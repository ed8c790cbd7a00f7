"""Inert data -> one pickle stream of protocol 2, as torch.save writes it.

The inverse of pickle_data: what was read comes out again, so that a training checkpoint keeps its epoch,
optimizer and hyper-parameters through an edit; but for what a file of ours may not ask its reader to call
(`carried`). Objects met twice are written once and remembered.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from ...errors import InputRefused
from ...wording import AS_SAFETENSORS
from .carried import NOTHING, LeftOut
from .pickle_data import (
    ATTRIBUTES,
    MAX_BYTES,
    MAX_OBJECTS,
    MAX_OPAQUE,
    MAX_OPCODES,
    Global,
    Items,
    Key,
    Opaque,
    RawInteger,
    Size,
    StorageRef,
    TensorRef,
)
from .pickle_globals import OTHER_DTYPES, OTHER_STORAGES, STORAGE_DTYPES, TORCH_DTYPES
from .tree import element_width

# Of no, one, two and three values; longer ones begin with a mark.
_TUPLES = (b")", b"\x85", b"\x86", b"\x87")
# Real checkpoints nest a dozen deep; this keeps a hostile one from exhausting Python's stack.
MAX_NESTING = 200
_ORDERED = Global("collections", "OrderedDict")
_STORAGE_NAMES = {code: name for name, code in STORAGE_DTYPES.items() if name != "UntypedStorage"}
_STORAGE_NAMES |= {code: name for name, (code, _) in OTHER_STORAGES.items()}
DTYPE_NAMES = {code: name for name, code in reversed(TORCH_DTYPES.items())}
DTYPE_NAMES |= {f"?{name}": name for name in OTHER_DTYPES}


def unit(dtype: str) -> int:
    """What a storage is counted in: 1 for its own elements, or their bytes where torch has no class for the dtype."""
    return 1 if dtype in _STORAGE_NAMES else element_width(dtype)


def _key(value: object) -> object:
    """What an object is remembered by: the names of classes and functions by what they say, all others by identity."""
    return value if isinstance(value, Global) else id(value)


class PickleWriter:
    """Writes values; `storage` turns a tensor's storage into (key, numel) of the file being written."""

    def __init__(self, place: Callable[[TensorRef | StorageRef], tuple[str, int, int]], left: LeftOut = NOTHING):
        """`left`: entries that are not written."""
        # -> (storage key, elements of the storage, element offset in it)
        self.place = place
        self.left = left
        self.out = bytearray(b"\x80\x02")
        # As the reader counts them, whose limits are the writer's: what is written can be read again.
        self.opcodes, self.objects, self.opaque = 2, 0, 0
        self.memo: dict[object, int] = {}
        self.sizes: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.alive: list[object] = []  # ids stay unique while their objects live
        self.depth = 0

    def finish(self, value: object) -> bytes:
        self.write(value)
        self._refuse_too_large()
        return bytes(self.out + b".")

    def _refuse_too_large(self) -> None:
        counted = (len(self.out) + 1, MAX_BYTES), (self.opcodes, MAX_OPCODES), (self.objects, MAX_OBJECTS)
        if any(count > most for count, most in (*counted, (self.opaque, MAX_OPAQUE))):
            raise InputRefused(
                "the checkpoint's description is larger than one that can be read again", hint=AS_SAFETENSORS
            )

    def put(self, data: bytes, opcodes: int = 1, objects: int = 0) -> None:
        """Write opcodes, which make so many objects of those that are counted."""
        self.out += data
        self.opcodes += opcodes
        self.objects += objects

    def write(self, value: object) -> None:
        known = self.memo.get(_key(value))
        if known is not None:
            self.put(b"j" + struct.pack("<I", known))
            return
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise InputRefused(
                "the checkpoint is nested too deep to be written as a torch file",
                hint=AS_SAFETENSORS,
            )
        if len(self.out) > MAX_BYTES:
            self._refuse_too_large()
        self._by_type(value)
        self.depth -= 1

    def remember(self, value: object) -> None:
        self.memo[_key(value)] = number = len(self.memo)
        self.alive.append(value)
        self.put(b"r" + struct.pack("<I", number))

    def _by_type(self, value: object) -> None:
        if value is None or value is True or value is False:
            self.put({None: b"N", True: b"\x88", False: b"\x89"}[value])
        elif isinstance(value, int):
            self._integer(value)
        elif isinstance(value, float):
            self.put(b"G" + struct.pack(">d", value))
        elif isinstance(value, str):
            self._text(value)
        elif isinstance(value, RawInteger):
            self.put(b"\x8b" + struct.pack("<I", len(value)) + value)
            self.remember(value)
        elif isinstance(value, (bytes, bytearray)):
            self._call(Global("_codecs", "encode"), (bytes(value).decode("latin-1"), "latin1"))
            self.remember(value)
        elif isinstance(value, Global):
            self.put(f"c{value.module}\n{value.name}\n".encode(), objects=1)
            self.remember(value)
        elif isinstance(value, TensorRef):
            self._tensor(value)
        elif isinstance(value, StorageRef):
            key, numel, _ = self.place(value)
            self._storage(None if value.untyped else value.dtype, key, numel)
        elif isinstance(value, Size):
            self._call(Global("torch", "Size"), (tuple(value),))
            self.remember(value)
        elif isinstance(value, tuple):
            self._tuple(value)
            self.remember(value)
        elif isinstance(value, list):
            self.put(b"]", objects=1)
            self.remember(value)
            self._items(value)
        elif isinstance(value, dict):
            self._mapping(value)
        elif isinstance(value, Opaque):
            self._opaque(value)
        else:
            raise InputRefused(
                f"a {type(value).__name__} that cannot be written as a torch file",
                hint=AS_SAFETENSORS,
            )

    def _integer(self, value: int) -> None:
        if -(2**31) <= value < 2**31:
            self.put(b"J" + struct.pack("<i", value))
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            self.put(b"\x8a" + bytes([len(data)]) + data)

    def _text(self, value: str) -> None:
        data = value.encode("utf-8", "surrogatepass")
        self.put(b"X" + struct.pack("<I", len(data)) + data)
        self.remember(value)

    def _tuple(self, values: tuple[object, ...]) -> None:
        """Not remembered."""
        if len(values) >= len(_TUPLES):
            self.put(b"(")
        for value in values:
            self.write(value)
        self.put(_TUPLES[len(values)] if len(values) < len(_TUPLES) else b"t", objects=int(bool(values)))

    def _items(self, values: list[object]) -> None:
        if values:
            self.put(b"(")
            for item in values:
                self.write(item)
            self.put(b"e")

    def _pairs(self, pairs: dict[object, object]) -> None:
        if pairs:
            self.put(b"(")
            for key, item in pairs.items():
                if self.left.has(pairs, key):
                    continue
                self.write(key.value if isinstance(key, Key) else key)
                self.write(item)
            self.put(b"u")

    def _call(self, function: Global, arguments: tuple[object, ...], opcode: bytes = b"R") -> None:
        self.write(function)
        self._tuple(arguments)
        self.put(opcode, objects=1)

    def _mapping(self, value: dict[object, object]) -> None:
        if isinstance(value, Items):
            self._call(value.cls, value.arguments)
        else:
            self.put(b"}", objects=1)
        self.remember(value)
        self._pairs(value)
        if isinstance(value, Items) and value.attributes is not None and not self.left.has(value, ATTRIBUTES):
            self.write(value.attributes)
            self.put(b"b")

    def _opaque(self, value: Opaque) -> None:
        self.opaque += 1
        if value.made_by == "via":
            function = value.arguments[0]
            assert isinstance(function, Global), "what it is made by is a name"
            self._call(function, value.arguments[1:])
        else:
            self._call(value.cls, value.arguments, b"\x81" if value.made_by == "new" else b"R")
        self.remember(value)
        self._items(value.items)
        self._pairs(value.pairs)
        if value.state is not None:
            self.write(value.state)
            self.put(b"b")

    def _tensor(self, ref: TensorRef) -> None:
        key, numel, offset = self.place(ref)
        if ref.storage.device == "meta":
            raise InputRefused("a meta tensor that cannot be written as a torch file", hint=AS_SAFETENSORS)
        by_class = ref.dtype in _STORAGE_NAMES
        function = "_rebuild_tensor_v2" if by_class else "_rebuild_tensor_v3"
        self.write(Global("torch._utils", function))
        self.put(b"(")
        self._storage(ref.dtype if by_class else None, key, numel)
        # Equal shapes are one tuple, which is written once.
        shape, stride = (self.sizes.setdefault(sizes, sizes) for sizes in (tuple(ref.shape), tuple(ref.stride)))
        for part in (offset, shape, stride, False):
            self.write(part)
        self._call(_ORDERED, ())
        if not by_class:
            self.write(Global("torch", DTYPE_NAMES[ref.dtype]))
        if ref.flags:
            self.write(dict.fromkeys(ref.flags, True))
        self.put(b"tR", 2, objects=2)
        self.remember(ref)

    def _storage(self, dtype: str | None, key: str, numel: int) -> None:
        """The persistent id; an untyped storage counts bytes."""
        cls = "UntypedStorage" if dtype is None else _STORAGE_NAMES[dtype]
        self.put(b"(")
        for part in ("storage", Global("torch.storage" if dtype is None else "torch", cls), key, "cpu", numel):
            self.write(part)
        self.put(b"tQ", 2, objects=2)
