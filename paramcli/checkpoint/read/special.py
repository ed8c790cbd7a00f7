"""Tensors that are no plain strided data: what each is called, its shape and its dtype, as far as its pickle tells."""

from __future__ import annotations

from dataclasses import dataclass

from ...text import printable
from ..pickle.pickle_data import Global, Opaque, Size, StorageRef, TensorRef
from ..pickle.pickle_globals import TORCH_DTYPES

# How torch rebuilds them -> what to call them.
_KINDS = {
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, a shape without data",
    "_rebuild_wrapper_subclass": "a tensor subclass",
    "_rebuild_xla_tensor": "a tensor of another device",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "UninitializedParameter": "an uninitialised parameter",
    "UninitializedBuffer": "an uninitialised buffer",
}
# Where the arguments of such a call have the size, and the dtype or the storage that tells it.
_PLACES = {
    "_rebuild_tensor": (2, 0),
    "_rebuild_tensor_v2": (2, 0),
    "_rebuild_tensor_v3": (2, 6),
    "_rebuild_qtensor": (2, 0),
    "_rebuild_meta_tensor_no_storage": (1, 0),
    "_rebuild_wrapper_subclass": (2, 1),
}
_SUBCLASS = Global("torch._tensor", "_rebuild_from_type_v2")


@dataclass(frozen=True)
class Special:
    """A special tensor: `kind` says what it is."""

    kind: str
    shape: tuple[int, ...]
    dtype: str


def is_special(item: object) -> bool:
    return isinstance(item, Opaque) and (
        is_special_class(item.cls) or (item.made_by == "via" and item.arguments[0] == _SUBCLASS)
    )


def is_special_class(cls: Global) -> bool:
    """Is this what torch rebuilds special tensors by?"""
    return cls.module.startswith("torch") and (cls.name in _KINDS or cls.name.startswith("_rebuild_"))


def special(item: object) -> Special | None:
    """What a special tensor is; None for everything else."""
    if not isinstance(item, Opaque) or not is_special(item):
        return None
    if item.made_by == "via":
        function, arguments = item.arguments[1], item.arguments[3] if len(item.arguments) > 3 else ()
        outline = _outline(getattr(function, "name", ""), arguments if isinstance(arguments, tuple) else ())
        return Special(_subclass(item.cls), *outline)
    outline = _outline(item.cls.name, item.arguments)
    if item.cls.name == "_rebuild_wrapper_subclass" and item.arguments and isinstance(item.arguments[0], Global):
        return Special(_subclass(item.arguments[0]), *outline)
    return Special(_KINDS.get(item.cls.name, f"a tensor of a special kind ({printable(item.cls, 80)})"), *outline)


def _subclass(cls: Global) -> str:
    word = printable(cls, 80)
    return f"{'an' if word[:1] in 'aeiou' else 'a'} {word}, a tensor subclass that only its own library can read"


def _outline(function: str, arguments: tuple[object, ...]) -> tuple[tuple[int, ...], str]:
    """(shape, dtype) where the arguments of the call that rebuilds it say them; ((), "?") where they do not."""
    if function == "_rebuild_sparse_tensor" and len(arguments) == 2 and isinstance(arguments[1], tuple):
        # (indices, values, size, is it coalesced) or (compressed indices, plain ones, values, size).
        parts = arguments[1]
        values = next((part for part in reversed(parts[:3]) if isinstance(part, TensorRef)), None)
        size = next((part for part in parts[2:4] if isinstance(part, Size)), None)
        return _shape(size), values.dtype if values else "?"
    at_size, at_dtype = _PLACES.get(function, (None, 0))
    if at_size is None or len(arguments) <= at_size:
        return (), "?"
    of = arguments[at_dtype] if len(arguments) > at_dtype else None
    return _shape(arguments[at_size]), of.dtype if isinstance(of, StorageRef) else _dtype(of)


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > 64:
        return ()
    sizes = tuple(v for v in value if type(v) is int and 0 <= v < 1 << 62)
    return sizes if len(sizes) == len(value) else ()


def _dtype(value: object) -> str:
    if not isinstance(value, Global) or value.module != "torch":
        return "?"
    return TORCH_DTYPES.get(value.name, f"?{value.name[:40]}")
