"""Finding the state dict inside what a torch checkpoint holds.

A checkpoint is a state dict, or a dict that has one somewhere (`state_dict`, `model`, `ema`, ...), or a
pickled module. Optimizer state has tensors of the same shapes and is never looked into. One candidate
is taken; among several the user chooses, never we.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ...errors import TENSOR, InputRefused, Known, UsageError
from ...text import closest, count_text, listing, printable
from ..pickle.pickle_data import Global, Opaque, StorageRef, TensorRef, members, shown
from ..pickle.tree import walk
from ..source import Extra
from .recognise import ZERO_HINT

# Wrapper dicts nest a few deep; this bounds what a hostile file can make us walk.
MAX_DEPTH = 12
_NOT_MODELS = frozenset(
    [
        "scheduler",
        "schedulers",
        "lr_scheduler",
        "lr_schedulers",
        "callbacks",
        "loops",
        "scaler",
        "grad_scaler",
        "amp",
        "rng",
        "rng_state",
        "rng_states",
        "random_state",
        "native_amp_scaling_state",
    ]
)
# Their dotted place is a few words; a longer one would be copied into the name of everything below it.
MAX_PLACE = 200
# More state dicts than this are no checkpoint, and nobody could choose among them.
MAX_CANDIDATES = 1000
# Walking a pickled module visits shared parts again: steps and characters of names, for a whole file. The names of
# 500,000 tensors, or a safetensors header, are no more.
MAX_STEPS = 1_000_000
MAX_NAME_CHARACTERS = 100_000_000
# What DeepSpeed writes beside partitioned weights.
ZERO_MARKS = frozenset(("zero_stage", "ds_version", "ds_config"))


@dataclass
class Chosen:
    """The state dict of a checkpoint: its place, its tensors, all candidates, and everything else by name.

    `path` is the place as the keys that lead there, which a dotted name alone does not tell.
    """

    name: str
    path: tuple[str, ...]
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


def is_optimizer(value: dict[object, object]) -> bool:
    return "param_groups" in value and "state" in value


def holds_optimizers(value: dict[object, object] | list[object] | tuple[object, ...]) -> bool:
    """One optimizer's state, or several as a list (Lightning) or a dict (G and D of a GAN)."""
    if isinstance(value, dict) and is_optimizer(value):
        return True
    return any(
        isinstance(item, dict) and is_optimizer(item) for item in (value.values() if isinstance(value, dict) else value)
    )


class Budget:
    """What walking pickled modules may cost, all those of one file together."""

    def __init__(self) -> None:
        self.steps, self.characters = MAX_STEPS, MAX_NAME_CHARACTERS

    def spend(self, steps: int, characters: int = 0) -> None:
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0 or self.characters < 0:
            raise InputRefused("its pickled module contains itself, or more submodules than any model")


def module_tensors(module: Opaque, budget: Budget) -> dict[object, object] | None:
    """The state dict of a pickled nn.Module, by dotted names; None for any other object."""
    if not isinstance(module.state, dict) or not {"_parameters", "_buffers", "_modules"} <= set(module.state):
        return None
    found: dict[object, object] = {}
    todo: list[tuple[str, Opaque, int]] = [("", module, 0)]
    while todo:
        prefix, part, depth = todo.pop()
        # A submodule used twice has two names; one inside itself would have infinitely many.
        budget.spend(1 if depth <= 64 else MAX_STEPS + 1)
        state = part.state if isinstance(part.state, dict) else {}
        passing = members(state.get("_non_persistent_buffers_set"))
        budget.spend(len(passing))
        transient = {name for name in passing if isinstance(name, str)}
        for table in ("_parameters", "_buffers"):
            for name, value in _items(state.get(table), prefix, budget):
                if value is not None and not (table == "_buffers" and name in transient):
                    found[f"{prefix}{name}"] = value
        children = [
            (f"{prefix}{name}.", child, depth + 1)
            for name, child in _items(state.get("_modules"), prefix, budget)
            if isinstance(child, Opaque)
        ]
        todo.extend(reversed(children))
    return found


def _items(table: object, prefix: str, budget: Budget) -> list[tuple[str, object]]:
    if not isinstance(table, dict):
        return []
    named = [(key, value) for key, value in table.items() if isinstance(key, str)]
    budget.spend(len(table), sum(len(prefix) + len(key) for key, _ in named))
    return named


def as_dict(value: object, budget: Budget | None = None) -> dict[object, object] | None:
    """The name -> value mapping of a dict, a pickled module or a dict-like object; None for anything else."""
    if isinstance(value, Opaque):
        return module_tensors(value, budget or Budget()) or value.pairs or None
    return value if isinstance(value, dict) and not is_optimizer(value) else None


def has_tensors(mapping: dict[object, object]) -> bool:
    return any(isinstance(item, TensorRef) for item in mapping.values())


def looks_like_weights(mapping: dict[object, object]) -> bool:
    """More than counters, metrics and generator states: a dotted or usual name, or two dimensions."""
    return any(
        isinstance(item, TensorRef)
        and isinstance(key, str)
        and (len(item.shape) > 1 or "." in key or key.startswith(("weight", "bias")))
        for key, item in mapping.items()
    )


def candidates(value: object) -> dict[str, tuple[tuple[str, ...], dict[object, object]]]:
    """Dotted place -> (its keys, state dict), for every one in the nested dicts; '' is the top level.

    A dict with tensors is one. Where dicts nest, those that hold only counters and the like do not count:
    {"model": {...}, "step": tensor} is a wrapper.
    """
    found: dict[str, tuple[tuple[str, ...], dict[object, object]]] = {}
    todo: deque[tuple[tuple[str, ...], object]] = deque([((), value)])
    seen: set[int] = set()
    budget = Budget()
    while todo:
        path, item = todo.popleft()
        if id(item) in seen:
            continue
        seen.add(id(item))
        mapping = as_dict(item, budget)
        if mapping is None:
            continue
        if has_tensors(mapping):
            place = ".".join(path)
            if place in found:
                raise InputRefused(
                    f"two of its state dicts are both at {printable(place)}", hint="save them under other names"
                )
            if len(found) == MAX_CANDIDATES:
                raise InputRefused(
                    f"it holds more than {MAX_CANDIDATES} state dicts",
                    hint="save the model's state_dict() with torch.save",
                )
            found[place] = path, mapping
        if isinstance(item, dict) and len(path) < MAX_DEPTH:
            length = sum(map(len, path)) + len(path)
            todo.extend(
                ((*path, key), child)
                for key, child in item.items()
                if isinstance(key, str)
                and isinstance(child, (dict, Opaque))
                and length + len(key) <= MAX_PLACE
                and not _is_other(key)
            )
    weights = {place: at for place, at in found.items() if looks_like_weights(at[1])}
    return weights or found


def _is_other(key: str) -> bool:
    """Keys whose dicts hold tensors that are no weights: optimizers, schedulers, a module's extra state."""
    lower = key.lower()
    return "optim" in lower or lower in _NOT_MODELS or lower.endswith("_extra_state")


def choose_root(value: object, root: str | None) -> Chosen:
    """The state dict to work on; InputRefused where there is none or several, UsageError for an unknown --root."""
    found = candidates(value)
    listed = sorted((place, _count(state)) for place, (_, state) in found.items())
    if root is not None:
        place = "" if root == "." else root
        if place not in found:
            near = closest(place, [name or "." for name in found]) or [name or "." for name in found]
            raise UsageError(
                f"no state dict at --root {printable(root)}", hint=Known(f"known: {listing(near)}") if near else None
            )
    elif not found:
        raise _nothing(value)
    elif len(found) > 1:
        shown = "; ".join(f"{printable(name) or '.'} ({count_text(count, 'tensor')})" for name, count in listed[:40])
        shown += f" and {len(listed) - 40} more" if len(listed) > 40 else ""
        raise InputRefused(
            f"it holds {len(found)} state dicts: {shown}", hint=f"--root {printable(listed[0][0]) or '.'}"
        )
    else:
        place = next(iter(found))
    path, state = found[place]
    tensors, extras = _split(state, place)
    extras += _outside(value, path)
    notes = [f"read {printable(place)} ({count_text(len(tensors), 'tensor')})"] if place else []
    return Chosen(place, path, tensors, listed, extras, notes)


def _nothing(value: object) -> InputRefused:
    """The refusal of a file without a state dict: what it is instead."""
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
        return InputRefused(
            f"it holds tensors but no state dict (name -> tensor): {told}",
            hint="save the model's state_dict() with torch.save",
        )
    return InputRefused(
        f"it holds no state dict: {told} without tensors", hint="save the model's state_dict() with torch.save"
    )


def _count(state: dict[object, object]) -> int:
    return sum(isinstance(item, TensorRef) for item in state.values())


def _split(state: dict[object, object], place: str) -> tuple[dict[str, TensorRef], list[Extra]]:
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
    "_rebuild_qtensor": "a quantized tensor",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a meta tensor, a shape without data",
    "_rebuild_wrapper_subclass": "a tensor subclass",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "UninitializedParameter": "an uninitialised parameter",
    "UninitializedBuffer": "an uninitialised buffer",
}


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
        raise InputRefused(f"{TENSOR} is {kind}", hint="save it as a plain dense tensor where it was made", tensor=key)


def _check_name(name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise InputRefused(f"a tensor's name is no Unicode text: {printable(name, 80)}") from None


def _key_text(key: object) -> str:
    return printable(key) if isinstance(key, str) else shown(key)


def _outside(value: object, path: tuple[str, ...]) -> list[Extra]:
    """Everything beside the path to the root, one level at a time."""
    extras: list[Extra] = []
    here, prefix = value, ""
    for step in path:
        assert isinstance(here, dict), "`candidates` walks through dicts alone"
        extras += [Extra(f"{prefix}{_key_text(key)}", type_text(item)) for key, item in here.items() if key != step]
        here, prefix = here[step], f"{prefix}{step}."
    if isinstance(here, Opaque):
        extras.append(
            Extra(f"the pickled {type_text(here)}", "an object; its weights are read, its code is not", carried=False)
        )
    return extras
