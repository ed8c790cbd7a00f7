"""What of a pickle may be written into a new file: values, bare objects, and the calls that only make values.

Nothing is called here; who loads the result may call everything in it. So only calls whose effect is known
are written on: torch's own that rebuild tensors, and those that make plain data of Python and numpy. Any
other, however harmless it looks, is left out with the smallest thing around it that has a name: the entry
of a dict. An object that is made without arguments and filled with a state is no call.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass, field

from ...text import printable
from .pickle_data import ATTRIBUTES, Global, Items, Key, Opaque, TensorRef, shown
from .pickle_globals import OTHER_DTYPES, OTHER_STORAGES
from .tree import walk

# Functions and classes that may be called.
_CALLED = {
    f"{module}.{name}"
    for modules, names in (
        (
            "torch._utils",
            "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state "
            "_rebuild_qtensor _rebuild_sparse_tensor _rebuild_nested_tensor _rebuild_meta_tensor_no_storage "
            "_rebuild_wrapper_subclass _rebuild_xla_tensor _rebuild_device_tensor_from_numpy "
            "_rebuild_device_tensor_from_cpu_tensor",
        ),
        ("torch", "device Size"),
        ("torch._C", "Generator"),
        ("torch.serialization", "_get_layout"),
        ("torch.nn.parameter", "Parameter Buffer UninitializedParameter UninitializedBuffer"),
        ("builtins __builtin__", "dict set frozenset complex bytearray slice range xrange"),
        ("collections", "OrderedDict Counter deque"),
        ("datetime", "datetime date time timedelta timezone"),
        ("decimal", "Decimal"),
        ("fractions", "Fraction"),
        ("pathlib", "PurePath PurePosixPath PureWindowsPath Path PosixPath WindowsPath"),
        ("types", "SimpleNamespace"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray numpy._core.multiarray", "scalar"),
        ("numpy.core.numeric numpy._core.numeric", "_frombuffer"),
        ("numpy.random._pickle", "__randomstate_ctor __generator_ctor __bit_generator_ctor"),
        ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"),
        ("_codecs", "encode"),
    )
    for module in modules.split()
    for name in names.split()
}
# Classes of Python itself of which a bare object may be made (`cls.__new__`), to be filled with a state. Of libraries'
# and authors' classes, torch's among them, every one: the objects that a training script keeps beside its weights.
_MADE = {"argparse.Namespace", "uuid.UUID"}
_PYTHON_S = {*sys.stdlib_module_names, "__builtin__", "copy_reg"}
# Those that are made with arguments.
_MADE_OF_ARGUMENTS = {"torch.torch_version.TorchVersion"}
_ARRAYS = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
# How protocols 0 and 1 make a bare object: of a class, its base and the base's state.
_BARE, _OBJECT = {"copyreg._reconstructor", "copy_reg._reconstructor"}, {"builtins.object", "__builtin__.object"}
_SUBCLASS = {"torch._tensor._rebuild_from_type_v2"}
_DEFAULT = Global("collections", "defaultdict")
# Dtypes that only torch has, and what a tensor may be a lazy view of.
_OTHERS, _LAZY = OTHER_DTYPES | {code[1:] for code, _ in OTHER_STORAGES.values()}, {"conj", "neg"}
# What a defaultdict may make of nothing.
_FACTORIES = {
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("list", "dict", "set", "int", "float", "str")
}
# Longer places of entries are cut.
_LONGEST = 300


def _is_value(value: object) -> bool:
    """Is this all right by itself, whatever is in it?"""
    if isinstance(value, TensorRef):
        return (value.dtype[:1] != "?" or value.dtype[1:] in _OTHERS) and _LAZY.issuperset(value.flags)
    if isinstance(value, Global):
        return not value.dangerous
    if isinstance(value, Items):
        makes_values = _is_one_of(value.cls, _CALLED) and not value.arguments
        return makes_values or (value.cls == _DEFAULT and all(_is_one_of(made, _FACTORIES) for made in value.arguments))
    if not isinstance(value, Opaque):
        return True
    if value.made_by == "call":
        is_array = _is_one_of(value.cls, _ARRAYS) and value.arguments[:1] == (Global("numpy", "ndarray"),)
        return is_array or _is_one_of(value.cls, _CALLED)
    if value.made_by == "new":
        return _may_be_made(value.cls) and (not value.arguments or _is_one_of(value.cls, _MADE_OF_ARGUMENTS))
    function, *arguments = value.arguments
    if _is_one_of(function, _SUBCLASS):
        return _is_one_of(arguments[0], _CALLED) and value.cls.module.partition(".")[0] == "torch"
    return _is_one_of(function, _BARE) and _is_one_of(arguments[1], _OBJECT) and _may_be_made(value.cls)


def _is_one_of(value: object, names: Set[str]) -> bool:
    return isinstance(value, Global) and str(value) in names


def _may_be_made(cls: Global) -> bool:
    return _is_one_of(cls, _MADE) or not (cls.dangerous or cls.module.partition(".")[0] in _PYTHON_S)


@dataclass(frozen=True)
class LeftOut:
    """The entries of a tree's dicts that are not written on, by the dict's id and the key; `names`: their places.

    `top` says for what nothing of the tree can be, as no dict is above it.
    """

    entries: frozenset[tuple[int, object]] = frozenset()
    names: list[str] = field(default_factory=list)
    top: str | None = None

    def has(self, mapping: dict[object, object], key: object) -> bool:
        return bool(self.entries) and (id(mapping), key) in self.entries


NOTHING = LeftOut()


def left_out(tree: object) -> LeftOut:
    """What a file that is to hold `tree` leaves out."""
    values = walk(tree)
    spoilt = {id(value): value for value in values if not _is_value(value)}
    if not spoilt:
        return NOTHING
    # What holds a spoilt value otherwise than under a key is spoilt itself.
    holders: dict[int, list[object]] = {}
    for value in values:
        for part in _unnamed(value):
            holders.setdefault(id(part), []).append(value)
    todo = list(spoilt)
    while todo:
        for holder in holders.get(todo.pop(), ()):
            if id(holder) not in spoilt:
                spoilt[id(holder)] = holder
                todo.append(id(holder))
    if id(tree) in spoilt:
        return LeftOut(top=_worst(spoilt))
    return _entries(tree, spoilt)


def _unnamed(value: object) -> Iterator[object]:
    """The parts of a value that stand under no key of a dict."""
    if isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, Opaque):
        yield value.arguments
        yield value.items
        if not isinstance(value.state, dict):
            yield value.state


def _entries(tree: object, spoilt: dict[int, object]) -> LeftOut:
    entries: dict[tuple[int, object], None] = {}
    places: list[tuple[int, object]] = []  # (the place above, the step from there), by number
    left: list[int] = []
    seen: set[int] = set()
    todo: list[tuple[object, int]] = [(tree, -1)]
    while todo:
        value, above = todo.pop()
        if id(value) in seen or not isinstance(value, (dict, list, tuple, Opaque)):
            continue
        seen.add(id(value))
        below: list[tuple[object, int]] = []
        for key, item in _named(value):
            places.append((above, key))
            if id(item) in spoilt or _is_spoilt_key(key, spoilt):
                entries[id(value), key] = None
                left.append(len(places) - 1)
            else:
                below.append((item, len(places) - 1))
        below += [(part, above) for part in _unnamed(value)]
        if isinstance(value, Opaque):
            below += [(value.state, above), (value.pairs, above)]
        todo.extend(reversed(below))
    return LeftOut(frozenset(entries), [_place(places, number) for number in left])


def _named(value: object) -> Iterator[tuple[object, object]]:
    """The entries of a dict, and what BUILD put on it as one more; none of anything else."""
    if isinstance(value, dict):
        yield from value.items()
        if isinstance(value, Items) and value.attributes is not None:
            yield ATTRIBUTES, value.attributes


def _is_spoilt_key(key: object, spoilt: dict[int, object]) -> bool:
    return not _is_value(key) if isinstance(key, Global) else isinstance(key, Key) and id(key.value) in spoilt


def _place(places: list[tuple[int, object]], number: int) -> str:
    words: list[str] = []
    while number >= 0 and sum(map(len, words)) < _LONGEST:
        number, key = places[number]
        words.append(
            "(attributes)" if key is ATTRIBUTES else printable(key, 80) if isinstance(key, str) else shown(key)
        )
    return ".".join(reversed(words))


def _worst(spoilt: dict[int, object]) -> str:
    made = next((value for value in spoilt.values() if isinstance(value, (Opaque, Items, Global))), None)
    if made is None:
        return "a tensor of a kind that torch does not save"
    return f"a call of {printable(made if isinstance(made, Global) else made.cls, 80)}"
