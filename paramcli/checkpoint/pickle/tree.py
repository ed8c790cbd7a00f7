"""What hangs together below one unpickled value: its objects, the storages that its tensors use, and their widths."""

from __future__ import annotations

from collections.abc import Callable, Set

from ...dtypes import DTYPES
from ...errors import InputRefused
from ...text import printable
from .pickle_data import ATTRIBUTES, Key, Opaque, StorageRef, TensorRef
from .pickle_globals import OTHER_WIDTHS


def storage_refs(
    value: object,
    without: Set[int] = frozenset(),
    is_left: Callable[[dict[object, object], object], bool] | None = None,
) -> dict[str, StorageRef]:
    """Every storage of the tree by key, but those of tensors whose id is in `without`, and of what is left out as in
    `walk`; one key with two sizes is refused.
    """
    found: dict[str, StorageRef] = {}
    for ref in walk(value, is_left):
        if id(ref) in without:
            continue
        storage = ref.storage if isinstance(ref, TensorRef) else ref
        if isinstance(storage, StorageRef):
            known = found.setdefault(storage.key, storage)
            if known.numel * element_width(known.dtype) != storage.numel * element_width(storage.dtype):
                raise InputRefused(
                    f"storage '{printable(storage.key, 40)}' has two sizes", hint="copy or download the file again"
                )
    return found


_WORDS = frozenset((str, int, float, bool, bytes, type(None)))


def walk(value: object, is_left: Callable[[dict[object, object], object], bool] | None = None) -> list[object]:
    """Every object below `value` that is more than a text or number, each once, without recursion; without what lies
    under the entries of dicts for which `is_left` holds.
    """
    seen: set[int] = set()
    todo, out = [value], []
    while todo:
        item = todo.pop()
        kind = type(item)
        if kind in _WORDS or id(item) in seen:
            continue
        seen.add(id(item))
        out.append(item)
        if kind is TensorRef or kind is StorageRef:
            continue
        if isinstance(item, dict):
            if is_left is None:
                todo.extend(item.values())
            else:
                todo.extend(below for key, below in item.items() if not is_left(item, key))
            todo.extend(key.value for key in item if isinstance(key, Key))
            attributes = getattr(item, "attributes", None)
            if attributes is not None and not (is_left and is_left(item, ATTRIBUTES)):
                todo.append(attributes)
        elif isinstance(item, (list, tuple)):
            todo.extend(item)
        elif isinstance(item, Opaque):
            todo.extend((item.arguments, item.state, item.items, item.pairs))
    return out


def element_width(dtype: str) -> int:
    """Bytes of one element as torch counts them."""
    # A dtype that nothing here can carry ("?bits8") counts as bytes until the tensor is refused by name.
    return DTYPES[dtype].bits // 8 if dtype in DTYPES else OTHER_WIDTHS.get(dtype, 1)
