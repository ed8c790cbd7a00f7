"""Finding the state dict inside what a torch checkpoint holds.

A checkpoint is a state dict, or a dict that has one somewhere (`state_dict`, `model`, `ema`, ...), or a
pickled module. Optimizer state has tensors of the same shapes and is never looked into. One candidate
is taken; among several the user chooses, never we.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputRefused, UsageError
from ..text import closest, count_text, listing, printable
from .pickle_data import Global, Opaque, StorageRef, TensorRef, members, shown
from .recognise import ZERO_HINT
from .source import Extra

# Wrapper dicts nest a few deep; this bounds what a hostile file can make us walk.
MAX_DEPTH = 12
_NOT_MODELS = frozenset(
    "scheduler schedulers lr_scheduler lr_schedulers callbacks loops scaler grad_scaler amp rng rng_state rng_states "
    "random_state native_amp_scaling_state".split()
)
# What DeepSpeed writes beside partitioned weights.
ZERO_MARKS = frozenset(("zero_stage", "ds_version", "ds_config"))
# A submodule used more often than this is no model but a bomb.
MAX_MODULES = 200_000


@dataclass
class Chosen:
    """The state dict of a checkpoint: its place, its tensors, all candidates, and everything else by name."""

    name: str
    tensors: dict[str, TensorRef]
    candidates: list[tuple[str, int]]
    extras: list[Extra]
    notes: list[str] = field(default_factory=list)


def type_text(value: object) -> str:
    """What a value is, for a person: 'int', 'dict of 3', 'argparse.Namespace'."""
    if isinstance(value, Opaque):
        return printable(value.cls, 80)
    if isinstance(value, Global):
        return f"the name {printable(value, 80)}"
    if isinstance(value, TensorRef):
        return f"tensor {'x'.join(map(str, value.shape)) or 'scalar'}"
    if isinstance(value, StorageRef):
        return "storage"
    if isinstance(value, (dict, list, tuple)) and holds_optimizers(value):
        return "optimizer state"
    if isinstance(value, dict):
        return f"dict of {len(value)}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return "None" if value is None else type(value).__name__


def is_optimizer(value: dict) -> bool:
    return "param_groups" in value and "state" in value


def holds_optimizers(value: dict | list | tuple) -> bool:
    """One optimizer's state, or several as a list (Lightning) or a dict (G and D of a GAN)."""
    if isinstance(value, dict) and is_optimizer(value):
        return True
    return any(isinstance(item, dict) and is_optimizer(item) for item in (value.values() if isinstance(value, dict) else value))


def module_tensors(module: Opaque) -> dict[str, object] | None:
    """The state dict of a pickled nn.Module, by dotted names; None for any other object."""
    if not isinstance(module.state, dict) or not {"_parameters", "_buffers", "_modules"} <= set(module.state):
        return None
    found: dict[str, object] = {}
    todo: list[tuple[str, Opaque, int]] = [("", module, 0)]
    visits = 0
    while todo:
        prefix, part, depth = todo.pop()
        # A submodule used twice has two names; one inside itself would have infinitely many.
        visits += 1
        if depth > 64 or visits > MAX_MODULES:
            raise InputRefused("its pickled module contains itself, or more submodules than any model")
        state = part.state if isinstance(part.state, dict) else {}
        transient = members(state.get("_non_persistent_buffers_set"))
        for table in ("_parameters", "_buffers"):
            for name, value in _items(state.get(table)):
                if value is not None and not (table == "_buffers" and name in transient):
                    found[f"{prefix}{name}"] = value
        children = [(f"{prefix}{name}.", child, depth + 1) for name, child in _items(state.get("_modules")) if isinstance(child, Opaque)]
        todo.extend(reversed(children))
    return found


def _items(table: object) -> list[tuple[str, object]]:
    return [(key, value) for key, value in table.items() if isinstance(key, str)] if isinstance(table, dict) else []


def as_dict(value: object) -> dict | None:
    """The name -> value mapping of a dict, a pickled module or a dict-like object; None for anything else."""
    if isinstance(value, Opaque):
        return module_tensors(value) or value.pairs or None
    return value if isinstance(value, dict) and not is_optimizer(value) else None


def has_tensors(mapping: dict) -> bool:
    return any(isinstance(item, TensorRef) for item in mapping.values())


def looks_like_weights(mapping: dict) -> bool:
    """More than counters, metrics and generator states: a dotted or usual name, or two dimensions."""
    return any(
        isinstance(item, TensorRef) and isinstance(key, str)
        and (len(item.shape) > 1 or "." in key or key.startswith(("weight", "bias")))
        for key, item in mapping.items()
    )  # fmt: skip


def candidates(value: object) -> dict[str, dict]:
    """Dotted place -> state dict, for every one in the nested dicts; '' is the top level.

    A dict with tensors is one. Where dicts nest, those that hold only counters and the like do not count:
    {"model": {...}, "step": tensor} is a wrapper.
    """
    found: dict[str, dict] = {}
    todo: list[tuple[str, object, int]] = [("", value, 0)]
    seen: set[int] = set()
    while todo:
        place, item, depth = todo.pop(0)
        mapping = as_dict(item)
        if mapping is None or id(item) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(item))
        if has_tensors(mapping):
            if place in found:
                raise InputRefused(f"two of its state dicts are both at {printable(place)}", hint="save them under other names")
            found[place] = mapping
        if isinstance(item, dict):
            for key, child in item.items():
                if isinstance(key, str) and isinstance(child, (dict, Opaque)) and not _is_other(key):
                    todo.append((f"{place}.{key}" if place else key, child, depth + 1))
    weights = {place: mapping for place, mapping in found.items() if looks_like_weights(mapping)}
    return weights or found


def _is_other(key: str) -> bool:
    """Keys whose dicts hold tensors that are no weights: optimizers, schedulers, a module's extra state."""
    lower = key.lower()
    return "optim" in lower or lower in _NOT_MODELS or lower.endswith("_extra_state")


def choose_root(value: object, root: str | None) -> Chosen:
    """The state dict to work on; InputRefused where there is none or several, UsageError for an unknown --root."""
    found = candidates(value)
    listed = sorted((place, _count(state)) for place, state in found.items())
    if root is not None:
        place = "" if root == "." else root
        if place not in found:
            near = closest(place, [name or "." for name in found]) or [name or "." for name in found]
            raise UsageError(f"no state dict at --root {printable(root)}", hint=f"there are: {listing(near)}" if near else None)
    elif not found:
        raise _nothing(value)
    elif len(found) > 1:
        shown = "; ".join(f"{printable(name) or '.'} ({count_text(count, 'tensor')})" for name, count in listed[:40])
        shown += f" and {len(listed) - 40} more" if len(listed) > 40 else ""
        raise InputRefused(f"it holds {len(found)} state dicts: {shown}", hint=f"--root {printable(listed[0][0]) or '.'}")
    else:
        place = next(iter(found))
    state = found[place]
    tensors, extras = _split(state, place)
    extras += _outside(value, place)
    notes = [f"read {printable(place)} ({count_text(len(tensors), 'tensor')})"] if place else []
    return Chosen(place, tensors, listed, extras, notes)


def _nothing(value: object) -> InputRefused:
    """The refusal of a file without a state dict: what it is instead."""
    from .read_torch import walk

    below = walk(value)
    mappings = [item for item in below if isinstance(item, dict)]  # a module's parameters are in one too
    for mapping in mappings:
        for key, item in mapping.items():
            if isinstance(key, str):
                _refuse_unreadable(key, item)
    if any(not ZERO_MARKS.isdisjoint(key for key in mapping if isinstance(key, str)) for mapping in mappings):
        return InputRefused("it is one process's part of a DeepSpeed ZeRO optimizer, not a state dict", hint=ZERO_HINT)
    what = type_text(value)
    told = f"it is {'an' if what[0] in 'aeiou' else 'a'} {what}"
    if any(isinstance(item, TensorRef) for item in below):
        return InputRefused(f"it holds tensors but no state dict (name -> tensor): {told}", hint="save the model's state_dict() with torch.save")
    return InputRefused(f"it holds no state dict: {told} without tensors", hint="save the model's state_dict() with torch.save")


def _count(state: dict) -> int:
    return sum(isinstance(item, TensorRef) for item in state.values())


def _split(state: dict, place: str) -> tuple[dict[str, TensorRef], list[Extra]]:
    """Tensors by name, and what else lies in the state dict."""
    tensors, extras = {}, []
    for key, item in state.items():
        if not isinstance(key, str):
            if isinstance(item, TensorRef):
                raise InputRefused(f"the state dict has a tensor under {shown(key)}, which is no text")
            extras.append(Extra(f"{place}[{shown(key)}]", type_text(item)))
        elif isinstance(item, TensorRef):
            _check_name(key)
            tensors[key] = item
        else:
            _refuse_unreadable(key, item)
            extras.append(Extra(f"{place}.{key}" if place else key, type_text(item)))
    return tensors, extras


# How torch rebuilds tensors that are no plain strided data -> what to call them.
_SPECIAL_TENSORS = {
    "_rebuild_qtensor": "a quantized tensor", "_rebuild_sparse_tensor": "a sparse tensor", "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, a shape without data", "_rebuild_wrapper_subclass": "a tensor subclass",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device", "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "UninitializedParameter": "an uninitialised parameter", "UninitializedBuffer": "an uninitialised buffer",
}  # fmt: skip


def special_kind(item: object) -> str | None:
    """What to call a tensor that is no plain strided data; None for everything else."""
    if not isinstance(item, Opaque):
        return None
    if item.cls.module.startswith("torch") and item.cls.name in _SPECIAL_TENSORS:
        return _SPECIAL_TENSORS[item.cls.name]
    if item.made_by == "via" and item.arguments[0] == Global("torch._tensor", "_rebuild_from_type_v2"):
        return f"a {type_text(item)}, a tensor subclass that only its own library can read"
    if item.cls.name.startswith("_rebuild_") and item.cls.module.startswith("torch"):
        return f"a tensor of a special kind ({type_text(item)})"
    return None


def _refuse_unreadable(key: str, item: object) -> None:
    """Raise InputRefused for tensors of kinds that have no bytes to carry; a tensor is never dropped in silence."""
    kind = special_kind(item)
    if kind is not None:
        raise InputRefused(f"{printable(key, 120)} is {kind}", hint="save it as a plain dense tensor where it was made", tensor=key)


def _check_name(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise InputRefused(f"a tensor's name is no Unicode text: {printable(name, 80)}") from None


def _outside(value: object, place: str) -> list[Extra]:
    """Everything beside the path to the root, one level at a time."""
    extras: list[Extra] = []
    here, prefix = value, ""
    while place and isinstance(here, dict):
        step = next(
            key for key in sorted((k for k in here if isinstance(k, str)), key=len, reverse=True)
            if place == key or place.startswith(f"{key}.") and isinstance(here[key], (dict, Opaque))
        )  # fmt: skip
        extras += [Extra(f"{prefix}{printable(key)}", type_text(item)) for key, item in here.items() if key != step]
        here, prefix, place = here[step], f"{prefix}{step}.", place[len(step) + 1 :]
    if isinstance(here, Opaque):
        extras.append(Extra(f"the pickled {type_text(here)}", "an object; its weights are read, its code is not", carried=False))
    return extras
