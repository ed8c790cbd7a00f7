"""Finding the state dict inside what a torch checkpoint holds.

A checkpoint is a state dict, or a dict that has one somewhere (`state_dict`, `model`, `ema`, ...), or a
pickled module. Optimizer state has tensors of the same shapes and is never looked into. One candidate
is taken; among several the user chooses, never we.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputRefused, UsageError
from ..text import closest, count_text, listing, printable
from .pickle_data import Global, Opaque, StorageRef, TensorRef
from .source import Extra

# Wrapper dicts nest a few deep; this bounds what a hostile file can make us walk.
MAX_DEPTH = 12
_NOT_MODELS = ("optim", "scheduler", "callbacks", "loops", "rng", "scaler", "amp")


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
    if isinstance(value, dict):
        return "optimizer state" if is_optimizer(value) else f"dict of {len(value)}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    return "None" if value is None else type(value).__name__


def is_optimizer(value: dict) -> bool:
    return "param_groups" in value and "state" in value


def module_tensors(module: Opaque) -> dict[str, object] | None:
    """The state dict of a pickled nn.Module, by dotted names; None for any other object."""
    if not isinstance(module.state, dict) or not {"_parameters", "_buffers", "_modules"} <= set(module.state):
        return None
    found: dict[str, object] = {}
    todo: list[tuple[str, Opaque, int]] = [("", module, 0)]
    seen: set[int] = set()
    while todo:
        prefix, part, depth = todo.pop()
        # A submodule used twice has two names; one inside itself would have infinitely many.
        if depth > 64 or (id(part) in seen and depth > 32) or len(found) > 10_000_000:
            raise InputRefused("a pickled module nested in itself")
        seen.add(id(part))
        state = part.state if isinstance(part.state, dict) else {}
        transient = state.get("_non_persistent_buffers_set") or ()
        for table in ("_parameters", "_buffers"):
            for name, value in _items(state.get(table)):
                if value is not None and not (table == "_buffers" and name in transient):
                    found[f"{prefix}{name}"] = value
        children = [(f"{prefix}{name}.", child, depth + 1) for name, child in _items(state.get("_modules")) if isinstance(child, Opaque)]
        todo.extend(reversed(children))
    return found


def _items(table: object) -> list[tuple[str, object]]:
    return [(key, value) for key, value in table.items() if isinstance(key, str)] if isinstance(table, dict) else []


def as_state_dict(value: object) -> dict | None:
    """The value as name -> tensor (and whatever else is in it); None where it is no state dict.

    A dict is one when it has a tensor and no nested dict with tensors: {"model": {...}, "step": tensor} is a wrapper.
    """
    if isinstance(value, Opaque):
        made = module_tensors(value)
        if made is None and value.pairs:
            made = value.pairs
        return as_state_dict(made) if made else None
    if not isinstance(value, dict) or is_optimizer(value):
        return None
    if not any(isinstance(item, TensorRef) for item in value.values()):
        return None
    if any(isinstance(item, (dict, Opaque)) and as_state_dict_shallow(item) for item in value.values()):
        return None
    return value


def as_state_dict_shallow(value: object) -> bool:
    inner = value if isinstance(value, dict) else module_tensors(value) or value.pairs
    return isinstance(inner, dict) and not is_optimizer(inner) and any(isinstance(item, TensorRef) for item in inner.values())


def candidates(value: object) -> dict[str, dict]:
    """Dotted place -> state dict, for every one in the nested dicts; '' is the top level."""
    found: dict[str, dict] = {}
    todo: list[tuple[str, object, int]] = [("", value, 0)]
    seen: set[int] = set()
    while todo:
        place, item, depth = todo.pop(0)
        if id(item) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(item))
        state = as_state_dict(item)
        if state is not None:
            found[place] = state
            continue
        if isinstance(item, dict) and not is_optimizer(item):
            for key, child in item.items():
                if isinstance(key, str) and isinstance(child, (dict, Opaque)) and not key.lower().startswith(_NOT_MODELS):
                    todo.append((f"{place}.{key}" if place else key, child, depth + 1))
    return found


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
        raise InputRefused(f"it holds no state dict: it is a pickled {type_text(value)} without tensors" if not _any_tensor(value) else
                           f"it holds tensors but no state dict (name -> tensor): it is a {type_text(value)}",
                           hint="save the model's state_dict() with torch.save")  # fmt: skip
    elif len(found) > 1:
        shown = "; ".join(f"{printable(name) or '.'} ({count_text(count, 'tensor')})" for name, count in listed[:12])
        raise InputRefused(f"it holds {len(found)} state dicts: {shown}", hint=f"--root {printable(listed[0][0]) or '.'}")
    else:
        place = next(iter(found))
    state = found[place]
    tensors, extras = _split(state, place)
    extras += _outside(value, place)
    notes = [f"read {printable(place)} ({count_text(len(tensors), 'tensor')})"] if place else []
    return Chosen(place, tensors, listed, extras, notes)


def _count(state: dict) -> int:
    return sum(isinstance(item, TensorRef) for item in state.values())


def _any_tensor(value: object) -> bool:
    from .read_torch import walk

    return any(isinstance(item, TensorRef) for item in walk(value))


def _split(state: dict, place: str) -> tuple[dict[str, TensorRef], list[Extra]]:
    """Tensors by name, and what else lies in the state dict."""
    tensors, extras = {}, []
    for key, item in state.items():
        if not isinstance(key, str):
            if isinstance(item, TensorRef):
                raise InputRefused(f"the state dict has a tensor under {printable(repr(key), 60)}, which is no text")
            extras.append(Extra(f"{place}[{printable(repr(key), 40)}]", type_text(item)))
        elif isinstance(item, TensorRef):
            _check_name(key)
            tensors[key] = item
        else:
            if isinstance(item, Opaque) and any(isinstance(part, TensorRef) for part in item.arguments):
                raise InputRefused(
                    f"{printable(key, 120)} is a {type_text(item)}, a tensor subclass that only its own library can read",
                    hint="save it as plain tensors where it was made", tensor=key,
                )  # fmt: skip
            extras.append(Extra(f"{place}.{key}" if place else key, type_text(item)))
    return tensors, extras


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
        extras.append(Extra(prefix.rstrip(".") or "(top)", f"{type_text(here)} (its code is not carried)"))
    return extras
