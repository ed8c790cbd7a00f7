"""One pickle stream -> inert data.

torch.save describes tensors in a pickle; unpickling means calling what the file names. This reads the
same opcodes as a description: dicts, lists and numbers become themselves, tensors become `TensorRef`s
that point into the container, and every other object an `Opaque` that remembers its parts. Nothing is
imported, called or formatted, so there is nothing to trust.
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeGuard

from ...errors import InputRefused
from ...text import printable
from ..disk.input_file import InputFile
from .pickle_globals import (
    TORCH_DTYPES,
    dangerous,
    is_dangerous,
    is_dangerous_step,
    is_harmless_call,
    refuse_built_memory,
    storage_dtype,
)

# torch.save spends about 35 opcodes and 100 bytes on a tensor: room for 125,000 of them, by each of these bounds.
MAX_BYTES = 64 << 20
MAX_OPCODES = 5_000_000
# Tuples, dicts, names, storages and calls take a hundred times the bytes that spell them; a tensor needs eight.
MAX_OBJECTS = 1_000_000
# Objects of unknown classes cost most. The largest pickled modules and trainer states have some ten thousand, and a
# description of torch.distributed.checkpoint two for each tensor.
MAX_OPAQUE = 300_000
# Seeds and generator states are the longest integers anyone saves; longer ones are kept as bytes.
MAX_INTEGER_BYTES = 64
# Of a pickle that is read from its file: runs of bytes from this length on stay there, and so much is read at once.
LONG, CHUNK = 4096, 1 << 20
# The longest qualified names are a few hundred characters.
MAX_GLOBAL_NAME = 1000


@dataclass(frozen=True)
class Global:
    """A name the pickle mentions: module.name, never imported. `dangerous`: a call of it could run code."""

    module: str
    name: str
    dangerous: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Opaque:
    """An object of a class that is not understood: what it was made from, inert.

    `made_by` and `arguments` are the call the pickle makes; `cls` is the class for people. `names`: the attribute of a
    class that it is, made by getattr.
    """

    cls: Global
    arguments: tuple[object, ...] = ()
    made_by: str = "call"  # "call", "new" (cls.__new__), or "via" (arguments[0] is the function that was called)
    state: object = None
    items: list[object] = field(default_factory=list)
    pairs: dict[object, object] = field(default_factory=dict)
    names: Global | None = None


class Items(dict[object, object]):
    """A dict subclass: `cls` with the arguments it was called with, and the `attributes` BUILD put on it
    (`_metadata`).
    """

    cls: Global
    arguments: tuple[object, ...] = ()
    attributes: object = None


# Stands for the key of those attributes, where they are counted among a dict's entries.
ATTRIBUTES = object()


@dataclass(frozen=True, eq=False)
class Key:
    """A dict key that is no text or number: kept as it is, told apart by identity, never hashed through."""

    value: object


class Size(tuple[object, ...]):
    """torch.Size, which a checkpoint's plain tuples are not."""


@dataclass(frozen=True, eq=False)
class Payload:
    """Bytes of a pickle that were left in its file: `size` of them from `at`; `is_text`: as the UTF-8 of Latin-1."""

    at: int
    size: int
    is_text: bool = False

    def read(self, file: InputFile) -> bytearray:
        """The bytes, in new memory."""
        if not self.is_text:
            return file.read(self.at, self.size)
        decoder, data = codecs.getincrementaldecoder("utf-8")(), bytearray()
        try:
            for done in range(0, self.size, CHUNK):
                part = file.read(self.at + done, min(CHUNK, self.size - done))
                data += decoder.decode(part, done + CHUNK >= self.size).encode("latin-1")
        except UnicodeError:
            raise broken("bytes that are none") from None
        return data


class RawInteger(bytes):
    """A long integer too large to be a size, as the pickle spells it."""


# Never changed once made. Freezing them would say so, and take three times as long for each of a file's tensors.
@dataclass(eq=False, slots=True)
class StorageRef:
    """A persistent id: the container's storage `key`, seen as `numel` elements of a dtype."""

    key: str
    dtype: str
    numel: int
    device: str
    # Legacy files: (key of this view, offset, size) into the storage.
    view: tuple[object, object, object] | None = None
    untyped: bool = False


@dataclass(eq=False, slots=True)
class TensorRef:
    """A strided tensor over a storage; offsets and strides count elements."""

    storage: StorageRef
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    flags: tuple[str, ...] = ()


# Deeper than anything a training script nests, shallow enough for every walk.
MAX_DEPTH = 1000
# Leaves of the tree a reader without memory of shared objects would visit.
MAX_LEAVES = 1 << 28


def check_structure(top: object) -> None:
    """Raise InputRefused for dicts and lists that hold themselves, nest endlessly, or multiply by sharing."""
    sizes: dict[int, tuple[int, int]] = {}  # id -> (depth, leaves)
    open_now: set[int] = set()
    todo: list[tuple[object, list[object] | None, int]] = [(top, None, 0)]
    while todo:
        value, parts, leaves = todo.pop()
        key = id(value)
        if parts is not None:  # all that it holds is known by now, but for objects that know their parent
            open_now.discard(key)
            known = [sizes.get(id(part), (0, 1)) for part in parts]
            depth = 1 + max(deep for deep, _ in known)
            leaves += sum(many for _, many in known)
            if depth > MAX_DEPTH or leaves > MAX_LEAVES:
                raise InputRefused("its pickle nests deeper, or shares its parts more often, than any checkpoint")
            sizes[key] = depth, leaves
        elif key in open_now:
            # Objects are not walked through without a memory; dicts and lists are.
            if not isinstance(value, Opaque):
                raise InputRefused("its pickle holds a dict or list that contains itself")
        elif key not in sizes:
            children = _children(value)
            parts = [child for child in children if isinstance(child, _CONTAINERS)]
            if parts:
                open_now.add(key)
                todo.append((value, parts, len(children) - len(parts)))
                todo.extend((part, None, 0) for part in parts)
            else:
                sizes[key] = 1, len(children) or 1


_CONTAINERS = (dict, list, tuple, Opaque, Key)


def _children(value: object) -> list[object] | tuple[object, ...]:
    if isinstance(value, dict):
        return [*value.values(), *[key for key in value if type(key) is Key]] if value else ()
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, Key):
        return [value.value]
    if isinstance(value, Opaque):
        return [value.arguments, value.state, value.items, value.pairs]
    return []


def broken(why: str) -> InputRefused:
    return InputRefused(f"its pickle is broken: {why}", hint="copy or download the file again", code="damaged")


def _too_large() -> InputRefused:
    return InputRefused("its pickle is larger than any checkpoint's, in bytes, opcodes or objects")


def _sizes(values: object) -> TypeGuard[tuple[int, ...] | list[int]]:
    return isinstance(values, (tuple, list)) and all(type(v) is int for v in values) and len(values) <= 64


def _tensor(arguments: tuple[object, ...], dtype: str | None = None, metadata_at: int = 6) -> TensorRef:
    if len(arguments) < 4 or not isinstance(arguments[0], StorageRef):
        raise broken("a tensor without a storage")
    storage, (offset, shape, stride) = arguments[0], arguments[1:4]
    if type(offset) is not int or not _sizes(shape) or not _sizes(stride) or len(shape) != len(stride):
        raise broken("a tensor whose shape, stride or offset is no list of whole numbers")
    if offset < 0 or any(v < 0 for v in (*shape, *stride)):
        raise broken("a tensor with a negative size, stride or offset")
    metadata = arguments[metadata_at] if len(arguments) > metadata_at else None
    metadata = metadata if isinstance(metadata, dict) else {}
    if not all(isinstance(key, str) for key in metadata):
        raise broken("a tensor whose flags are no texts")
    flags = tuple(key for key, value in metadata.items() if value)
    return TensorRef(storage, dtype or storage.dtype, offset, tuple(shape), tuple(stride), flags)


def _tensor_v3(arguments: tuple[object, ...]) -> TensorRef:
    dtype = arguments[6] if len(arguments) > 6 else None
    if not isinstance(dtype, Global) or dtype.module != "torch":
        raise broken(f"a tensor of the unknown dtype {shown(dtype)}")
    return _tensor(arguments, TORCH_DTYPES.get(dtype.name, f"?{dtype.name}"), 7)


def _parameter(arguments: tuple[object, ...]) -> object:
    if not arguments:
        raise broken("a parameter without a tensor")
    return arguments[0]


# What DeepSpeed's ZeRO-3 hangs on a parameter whose data is spread over processes.
PARTITIONED = "ds_tensor"


def _parameter_with_state(arguments: tuple[object, ...]) -> object:
    """(data, requires_grad, hooks, attributes): of the attributes only those of a partition matter here."""
    made = _parameter(arguments)
    state = arguments[3] if len(arguments) > 3 else None
    attributes = state[0] if isinstance(state, tuple) and state else state
    if (
        isinstance(made, TensorRef)
        and isinstance(attributes, dict)
        and ("ds_tensor" in attributes or "ds_shape" in attributes)
    ):
        return replace(made, flags=(*made.flags, PARTITIONED))
    return made


def _is_beside_values(state: object) -> bool:
    """Does a state that is set on a tensor leave its values as they are? Of any other torch makes new ones, or nothing.

    torch before 0.4 sets (requires_grad, volatile, hooks) on each parameter; no torch since sets anything.
    """
    return isinstance(state, tuple) and len(state) == 3 and isinstance(state[0], bool)


def _from_type(arguments: tuple[object, ...]) -> object:
    if len(arguments) < 3 or not isinstance(arguments[0], Global) or not isinstance(arguments[2], tuple):
        raise broken("a tensor subclass without its parts")
    if (arguments[0].module, arguments[0].name) in _CALLS.keys() - _TENSORS:
        raise broken("a tensor subclass that is rebuilt as something else")
    made = _call(arguments[0], arguments[2])
    if isinstance(arguments[1], Global) and arguments[1] not in _PLAIN_TENSORS:
        return Opaque(arguments[1], (Global("torch._tensor", "_rebuild_from_type_v2"), *arguments), "via")
    return made


_PLAIN_TENSORS = {
    Global("torch", "Tensor"),
    Global("torch.nn.parameter", "Parameter"),
    Global("torch.nn.parameter", "Buffer"),
}


def _mapping(cls: Global) -> Callable[[tuple[object, ...]], Items]:
    """OrderedDict() and its relatives, from nothing, from pairs or from a dict."""

    def make(arguments: tuple[object, ...]) -> Items:
        made = Items()
        made.cls = cls
        made.arguments = tuple(a for a in arguments if isinstance(a, Global))
        for argument in arguments:
            if isinstance(argument, dict):
                made.update(argument)
            elif isinstance(argument, (list, tuple)):
                for pair in argument:
                    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                        raise broken("a dict of no pairs")
                    _set(made, pair[0], pair[1])
        return made

    return make


def _set(mapping: dict[object, object], key: object, value: object) -> None:
    if not isinstance(key, (str, int, float, bytes, Global, type(None))):
        if isinstance(key, (list, dict)):
            raise broken("a dict key that cannot be one")
        # Hashing a tuple walks what is in it, which a hostile file makes endless.
        key = Key(key)
    elif isinstance(key, int) and not -(1 << 63) <= key < 1 << 64:
        # Python hashes integers modulo a known prime: long ones can all be made to collide.
        key = Key(key)
    elif key in mapping:
        raise broken("a dict that sets one key twice")
    mapping[key] = value


def shown(value: object) -> str:
    """A file's value or key in a message: a name, a short text or number as it is, anything else by its type alone."""
    value = value.value if isinstance(value, Key) else value
    return printable(value, 80) if isinstance(value, (Global, str, int, float)) else type(value).__name__


def _encode(arguments: tuple[object, ...]) -> bytes | Payload:
    """_codecs.encode(text, 'latin1'): how protocol 2 writes bytes."""
    if len(arguments) != 2 or arguments[1] not in ("latin1", "latin-1"):
        raise broken("bytes in another encoding")
    if isinstance(arguments[0], Payload) and arguments[0].is_text:
        return arguments[0]
    if not isinstance(arguments[0], str):
        raise broken("bytes in another encoding")
    try:
        return arguments[0].encode("latin-1")
    except UnicodeEncodeError:
        raise broken("bytes that are none") from None


def _bytes(arguments: tuple[object, ...]) -> object:
    """bytes(): how protocol 2 writes none."""
    if not arguments:
        return b""
    refuse_built_memory("builtins", "bytes", arguments)
    return Opaque(Global("builtins", "bytes"), arguments)


def _size(arguments: tuple[object, ...]) -> Size:
    if len(arguments) != 1 or not isinstance(arguments[0], (list, tuple)):
        raise broken("a torch.Size of no list")
    return Size(arguments[0])


_TENSORS = {("torch._utils", name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")}
_CALLS: dict[tuple[str, str], Callable[[tuple[object, ...]], object]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter_with_state,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch", "Size"): _size,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): _bytes,
    ("__builtin__", "bytes"): _bytes,
    **{
        name: _mapping(Global(*name))
        for name in (
            ("collections", "OrderedDict"),
            ("collections", "defaultdict"),
            ("collections", "Counter"),
            ("builtins", "dict"),
        )
    },
}


_GETATTR = {Global("builtins", "getattr"), Global("__builtin__", "getattr")}
_MAKERS = {Global(module, name) for module in ("copyreg", "copy_reg") for name in ("_reconstructor", "__newobj__")}


def _attribute(arguments: tuple[object, ...]) -> Global | None:
    """What getattr(class, "method") is a name of; None where it is none."""
    holder, name = arguments if len(arguments) == 2 else (None, None)
    owner = (holder.names or holder.cls) if isinstance(holder, Opaque) else holder
    if not isinstance(owner, Global) or not isinstance(name, str) or len(owner.name) + len(name) > MAX_GLOBAL_NAME:
        return None
    dangerous_now = owner.dangerous or is_dangerous_step(owner.name.rpartition(".")[2], name)
    return Global(owner.module, f"{owner.name}.{name}", dangerous_now)


def _refuse_dangerous(function: Global, arguments: tuple[object, ...], built: bool) -> None:
    """Raise InputRefused where the call could run code: by itself, or by what it is given to call."""
    if function.dangerous and not is_harmless_call(function.module, function.name, arguments, built):
        raise dangerous(f"calls {shown(function)}")
    for argument in arguments:
        given = argument.names if isinstance(argument, Opaque) else argument
        if isinstance(given, Global) and given.dangerous and not is_harmless_call(given.module, given.name, (), True):
            raise dangerous(f"gives {shown(given)} to {shown(function)}")


def _call(function: object, arguments: tuple[object, ...], built: bool = False) -> object:
    """What REDUCE and NEWOBJ (`built`) make of a global and its arguments."""
    if isinstance(function, Opaque) and function.names is not None:
        function = function.names
    if not isinstance(function, Global):
        raise broken("a call of something that is no name")
    _refuse_dangerous(function, arguments, built)
    known = _CALLS.get((function.module, function.name))
    if known is not None:
        return known(arguments)
    refuse_built_memory(function.module, function.name, arguments)
    if function in _MAKERS and arguments and isinstance(arguments[0], Global):
        refuse_built_memory(arguments[0].module, arguments[0].name, arguments[1:])
        return Opaque(arguments[0], (function, *arguments), "via")
    names = _attribute(arguments) if function in _GETATTR else None
    return Opaque(function, arguments, "new" if built else "call", names=names)


def _persistent(identity: object) -> object:
    """('storage', class, key, device, numel[, view]) -> StorageRef; ('module', class, ...) -> the class."""
    if not isinstance(identity, tuple) or not identity:
        raise broken("a reference to no storage")
    if identity[0] == "module" and len(identity) >= 2 and isinstance(identity[1], Global):
        return identity[1]
    if identity[0] != "storage" or len(identity) not in (5, 6):
        raise broken("a reference to no storage")
    _, cls, key, device, numel, *view = identity
    dtype = storage_dtype(cls.module, cls.name) if isinstance(cls, Global) else None
    if dtype is None:
        raise broken(f"a storage of the unknown class {shown(cls)}")
    if not isinstance(key, str) or not isinstance(device, str) or type(numel) is not int or numel < 0:
        raise broken("a storage whose key, device or size is none")
    window = view[0] if view else None
    if window is not None and not (isinstance(window, tuple) and len(window) == 3):
        raise broken("a storage view that is none")
    return StorageRef(key, dtype, numel, device, window, cls.name == "UntypedStorage")


class Unpickled:
    """The result: the top value, the unknown classes it was made of, and where the stream ended."""

    def __init__(self, value: object, classes: dict[Global, None], end: int):
        self.value, self.classes, self.end = value, classes, end


def read_pickle(data: bytes, start: int = 0) -> Unpickled:
    """Interpret the stream that begins at `start`; raises InputRefused for broken and dangerous ones."""
    try:
        return _Machine(data, start).run()
    except (IndexError, struct.error):
        raise broken("it ends too early") from None
    except UnicodeDecodeError:
        raise broken("text that is no UTF-8") from None


def read_pickle_in(file: InputFile, offset: int, size: int) -> Unpickled:
    """The same of a stream in a file; long runs of bytes stay there, as `Payload`s, and do not count as its own."""
    try:
        return _FileMachine(file, offset, offset + size).run()
    except (IndexError, struct.error):
        raise broken("it ends too early") from None
    except UnicodeDecodeError:
        raise broken("text that is no UTF-8") from None


_U16, _U32, _I32, _U64, _F64 = (struct.Struct(code) for code in ("<H", "<I", "<i", "<Q", ">d"))


_SET, _FROZENSET = Global("builtins", "set"), Global("builtins", "frozenset")
# Classes of Python and torch themselves, which nobody needs to be told about.
_FAMILIAR = {
    _SET,
    _FROZENSET,
    Global("__builtin__", "set"),
    Global("torch", "device"),
    Global("torch.serialization", "_get_layout"),
}


def members(value: object) -> list[object]:
    """The elements of a set as the pickle has it; [] for anything else."""
    if (
        isinstance(value, Opaque)
        and value.cls.name in ("set", "frozenset")
        and value.arguments
        and isinstance(value.arguments[0], list)
    ):
        return value.arguments[0]
    return []


class _Machine:
    """The stack machine. One method for each family of opcodes torch.save and common libraries write."""

    def __init__(self, data: bytes, start: int):
        self.data, self.at = data, start
        # Up to here `at` may go before `advance` is asked; what work on remembered values may cost.
        self.most, self.worth = start + MAX_BYTES, len(data)
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, object] = {}
        self.classes: dict[Global, None] = {}
        self.names: dict[tuple[str, str], Global] = {}
        self.storages: dict[int, tuple[object, object]] = {}
        self.paid = 0
        self.objects = 0
        self.opaque = 0

    def run(self) -> Unpickled:
        find = _OPCODES.get
        for _ in range(MAX_OPCODES):
            if self.at > self.most:
                self.advance()
            data, at = self.data, self.at
            handler = find(data[at])
            self.at = at + 1
            if handler is not None:
                handler(self)
            elif data[at] != 0x2E:
                raise broken(f"opcode {data[at]:#04x} is none that torch.save writes")
            elif len(self.stack) != 1 or self.outer:
                raise broken("it leaves other than one value")
            else:  # STOP
                return Unpickled(self.stack.pop(), self.classes, self.place)
        raise _too_large()

    @property
    def place(self) -> int:
        """Where the next opcode is."""
        return self.at

    def advance(self) -> None:
        """More is read than any checkpoint's pickle has."""
        raise _too_large()

    def run_of(self, size: int, is_text: bool) -> bytes | Payload:
        """So many bytes, or where they are."""
        return self.take(size)

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise broken("it ends too early")
        part = self.data[self.at : end]
        self.at = end
        return part

    def byte(self) -> int:
        value = self.data[self.at]
        self.at += 1
        return value

    def number(self, layout: struct.Struct) -> int:
        (value,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return value

    def real(self) -> float:
        (value,) = _F64.unpack(self.take(_F64.size))
        return value

    def push_new(self, value: object) -> None:
        """Push an object that takes far more memory than its opcode."""
        self.objects += 1
        if isinstance(value, Opaque):
            self.opaque += 1
            if value.cls not in _FAMILIAR:
                self.classes[value.cls] = None
        if self.objects > MAX_OBJECTS or self.opaque > MAX_OPAQUE:
            raise _too_large()
        self.stack.append(value)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise broken("a name without an end")
        part = self.data[self.at : end].decode("utf-8")
        self.at = end + 1
        return part

    def to_mark(self) -> list[Any]:
        items = self.stack
        if not self.outer:
            raise broken("a mark that is missing")
        self.stack = self.outer.pop()
        return items

    def named(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise broken("a name that is no text")
        known = self.names.get((module, name))
        if known is not None:
            self.stack.append(known)
            return
        if len(module) + len(name) > MAX_GLOBAL_NAME or not f"{module}{name}".isprintable():
            raise broken("the name of a class that is none")  # a line break in it would be opcodes to who copies it
        known = self.names[module, name] = Global(module, name, is_dangerous(module, name))
        self.push_new(known)

    def made(self, function: object, arguments: object, built: bool = False) -> None:
        if not isinstance(arguments, tuple):
            raise broken("a call without arguments")
        # What a call looks at was written out once; calling with a remembered argument over and over is a bomb. It is
        # paid for before it is looked at.
        self.charge(len(arguments))
        inner = arguments[2] if len(arguments) > 2 and isinstance(arguments[2], tuple) else ()  # of a tensor subclass
        self.charge(len(inner))
        self.charge(sum(len(a) for a in (*arguments, *inner) if isinstance(a, (str, list, tuple, dict))))
        self.push_new(_call(function, arguments, built))

    def charge(self, parts: int) -> None:
        """Pay for work on so many parts of remembered values; in all there are no more than the pickle has bytes."""
        self.paid += parts
        if self.paid > self.worth:
            raise InputRefused("its pickle would grow far beyond its own size when it is read")

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        try:
            self.stack.append(self.memo[index])
        except KeyError:
            raise broken("a reference to nothing") from None

    def integer(self, size: int) -> None:
        if size > MAX_INTEGER_BYTES:
            self.stack.append(RawInteger(self.take(size)))
        else:
            self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def append(self, values: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Opaque):
            target.items.extend(values)
        else:
            raise broken("an item added to what is no list")

    def set_items(self, values: list[object]) -> None:
        target = self.stack[-1]
        into = target if isinstance(target, dict) else target.pairs if isinstance(target, Opaque) else None
        if into is None or len(values) % 2:
            raise broken("an item set on what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            _set(into, key, value)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Opaque):
            target.state = state
        elif isinstance(target, Items):
            target.attributes = state
        elif isinstance(target, TensorRef):
            if not _is_beside_values(state):
                raise broken("a tensor that is given other values after it was made")
        else:
            raise broken("a state set on what has none")

    def persistent(self) -> None:
        identity = self.stack.pop()
        # A remembered identity is one storage, however often it is asked for; it is held, so that its id stays its own.
        known = self.storages.get(id(identity))
        if known is not None:
            self.stack.append(known[1])
            return
        self.push_new(made := _persistent(identity))
        self.storages[id(identity)] = identity, made

    def reduce(self, built: bool = False) -> None:
        arguments = self.stack.pop()
        self.made(self.stack.pop(), arguments, built)

    def new(self) -> None:
        self.reduce(built=True)

    def new_ex(self) -> None:
        keywords, arguments = self.stack.pop(), self.stack.pop()
        cls = self.stack.pop()
        if not isinstance(cls, Global) or not isinstance(arguments, tuple):
            raise broken("a call without arguments")
        self.charge(len(arguments))
        _refuse_dangerous(cls, arguments, built=True)
        refuse_built_memory(cls.module, cls.name, arguments)
        self.push_new(Opaque(cls, (Global("copyreg", "__newobj_ex__"), cls, arguments, keywords), "via"))

    def stack_global(self) -> None:
        name = self.stack.pop()
        self.named(self.stack.pop(), name)

    def top(self, count: int) -> None:
        if len(self.stack) < count:
            raise broken("a tuple of missing parts")
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push_new(values)

    def dictionary(self) -> None:
        values = self.to_mark()
        self.push_new({})
        self.set_items(values)

    def mark(self) -> None:
        if len(self.outer) > 10 * MAX_DEPTH:
            raise _too_large()
        self.outer.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def protocol(self) -> None:
        version = self.take(1)[0]
        if not 2 <= version <= 5:
            raise broken(f"protocol {version} is none that torch.save writes")

    def new_set(self, values: list[object]) -> None:
        self.push_new(Opaque(_SET, (values,)))

    def add_to_set(self, values: list[object]) -> None:
        target = self.stack[-1]
        held = target.arguments[0] if isinstance(target, Opaque) and target.cls == _SET and target.arguments else None
        if not isinstance(held, list):
            raise broken("an item added to what is no set")
        held.extend(values)


class _FileMachine(_Machine):
    """The same on a file, of which it holds a few pages at a time."""

    def __init__(self, file: InputFile, start: int, end: int):
        super().__init__(b"", 0)
        self.file, self.base, self.end = file, start, end
        self.held, self.worth = 0, min(end - start, MAX_BYTES)
        self.most = -1

    @property
    def place(self) -> int:
        return self.base + self.at

    def advance(self) -> None:
        self._load(CHUNK)

    def _load(self, size: int) -> None:
        """Hold so many bytes from here on, where the file has them."""
        self.held += self.at
        if self.held > MAX_BYTES:
            raise _too_large()
        self.base, self.at = self.base + self.at, 0
        self.data = bytes(self.file.read(self.base, max(0, min(size, self.end - self.base))))
        # An opcode with its names and numbers is shorter than this.
        self.most = len(self.data) - 4 * MAX_GLOBAL_NAME if self.base + len(self.data) < self.end else len(self.data)

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            if self.base + self.at + size > self.end:
                raise broken("it ends too early")
            if self.held + self.at + size > MAX_BYTES:
                raise _too_large()
            self._load(max(size, CHUNK))
        return super().take(size)

    def run_of(self, size: int, is_text: bool) -> bytes | Payload:
        if size < LONG:
            return self.take(size)
        found = Payload(self.base + self.at, size, is_text)
        if found.at + size > self.end:
            raise broken("it ends too early")
        self.held += self.at
        self.base, self.at, self.data, self.most = found.at + size, 0, b"", -1
        return found


def _run(layout: struct.Struct, *encoding: str) -> Callable[[_Machine], None]:
    """Push so many bytes, or the text they spell."""

    def read(m: _Machine) -> None:
        part = m.run_of(m.number(layout), encoding == _TEXT)
        m.stack.append(part.decode(*encoding) if encoding and isinstance(part, bytes) else part)

    return read


# Lone surrogates are legal in a pickle's text; what becomes a tensor name is checked there.
_TEXT, _STRING = ("utf-8", "surrogatepass"), ("latin-1",)


_U8 = struct.Struct("<B")
_ACTIONS: dict[str | int, Callable[[_Machine], object]] = {
    0x80: _Machine.protocol,
    0x95: lambda m: m.take(8),  # FRAME: its length only helps streaming readers
    "(": _Machine.mark,
    "}": lambda m: m.push_new({}),
    "]": lambda m: m.push_new([]),
    ")": lambda m: m.stack.append(()),
    0x8F: lambda m: m.new_set([]),
    "N": lambda m: m.stack.append(None),
    0x88: lambda m: m.stack.append(True),
    0x89: lambda m: m.stack.append(False),
    "K": lambda m: m.stack.append(m.byte()),
    "M": lambda m: m.stack.append(m.number(_U16)),
    "J": lambda m: m.stack.append(m.number(_I32)),
    "G": lambda m: m.stack.append(m.real()),
    0x8A: lambda m: m.integer(m.byte()),
    0x8B: lambda m: m.integer(m.number(_U32)),
    "X": _run(_U32, *_TEXT),
    0x8C: _run(_U8, *_TEXT),
    0x8D: _run(_U64, *_TEXT),
    "U": _run(_U8, *_STRING),
    "T": _run(_U32, *_STRING),
    "C": _run(_U8),
    "B": _run(_U32),
    0x8E: _run(_U64),
    0x96: _run(_U64),
    "q": lambda m: m.remember(m.byte()),
    "r": lambda m: m.remember(m.number(_U32)),
    0x94: lambda m: m.remember(len(m.memo)),
    "h": lambda m: m.recall(m.byte()),
    "j": lambda m: m.recall(m.number(_U32)),
    "c": lambda m: m.named(m.line(), m.line()),
    0x93: _Machine.stack_global,
    "R": _Machine.reduce,
    0x81: _Machine.new,
    0x92: _Machine.new_ex,
    "b": _Machine.build,
    "Q": _Machine.persistent,
    "t": lambda m: m.push_new(tuple(m.to_mark())),
    0x85: lambda m: m.top(1),
    0x86: lambda m: m.top(2),
    0x87: lambda m: m.top(3),
    "l": lambda m: m.push_new(m.to_mark()),
    "d": _Machine.dictionary,
    "s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    "u": lambda m: m.set_items(m.to_mark()),
    "a": lambda m: m.append([m.stack.pop()]),
    "e": lambda m: m.append(m.to_mark()),
    0x90: lambda m: m.add_to_set(m.to_mark()),
    0x91: lambda m: m.push_new(Opaque(_FROZENSET, (m.to_mark(),))),
    "0": _Machine.pop,
    "1": _Machine.to_mark,
}
_OPCODES = {ord(code) if isinstance(code, str) else code: action for code, action in _ACTIONS.items()}
