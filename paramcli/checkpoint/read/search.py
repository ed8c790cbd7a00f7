"""Where the state dicts of a checkpoint are: every dict of tensors in what a pickle holds, by its place.

A checkpoint is a state dict, or a dict that has one somewhere (`state_dict`, `model`, `ema`, ...), or a
pickled module. Where nothing is in the dicts, lists, tuples and the attributes of objects are looked through
too. Optimizer state has tensors of the same shapes and is never looked into.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ...errors import InputRefused
from ...text import printable
from ..pickle.arrays import array_of
from ..pickle.pickle_data import Global, Opaque, StorageRef, TensorRef, members
from .optimizers import holds_optimizers, is_optimizer
from .places import Path, Step, entries, holders, is_module, text_of
from .special import is_special, special

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
# torch.compile's wrapper is pickled as a call with the module it wraps, and names that so.
_COMPILED, _WRAPPED = Global("torch._dynamo.eval_frame", "OptimizedModule"), "_orig_mod"

Mapping = dict[object, object]


class Budget:
    """What walking pickled modules, and shared parts again, may cost: all those of one file together."""

    def __init__(self) -> None:
        self.steps, self.characters = MAX_STEPS, MAX_NAME_CHARACTERS

    def spend(self, steps: int, characters: int = 0) -> None:
        self.steps -= steps
        self.characters -= characters
        if self.steps < 0 or self.characters < 0:
            raise InputRefused("a part of its pickle contains itself, or stands in too many places for any model")


def is_tensor(item: object) -> bool:
    return isinstance(item, TensorRef) or is_special(item)


def module_tensors(module: Opaque, budget: Budget) -> Mapping | None:
    """The state dict of a pickled nn.Module, by dotted names; None for any other object."""
    wrapped = module.arguments[0] if module.cls == _COMPILED and module.arguments else None
    start = [(f"{_WRAPPED}.", wrapped, 1)] if isinstance(wrapped, Opaque) and is_module(wrapped) else []
    if not start and not is_module(module):
        return None
    found: Mapping = {}
    todo: list[tuple[str, Opaque, int]] = start or [("", module, 0)]
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
    budget.spend(len(table))
    named = [(key, value) for key, value in table.items() if isinstance(key, str)]
    budget.spend(0, sum(len(prefix) + len(key) for key, _ in named))
    return named


def as_dict(value: object, budget: Budget | None = None) -> Mapping | None:
    """The name -> value mapping of a dict, a pickled module or a dict-like object; None for anything else."""
    if isinstance(value, Opaque):
        return module_tensors(value, budget or Budget()) or value.pairs or None
    return value if isinstance(value, dict) and not is_optimizer(value) else None


def looks_like_weights(tensors: Mapping) -> bool:
    """More than counters, metrics and generator states: a dotted or usual name, or two dimensions."""
    return any(
        isinstance(key, str) and ("." in key or key.startswith(("weight", "bias")) or _rank(item) > 1)
        for key, item in tensors.items()
    )


def _rank(item: object) -> int:
    if isinstance(item, TensorRef):
        return len(item.shape)
    seen = special(item) or array_of(item)
    return len(seen.shape) if seen else 0


@dataclass(frozen=True)
class Found:
    """A state dict: the steps to it, and its tensors by their keys."""

    path: Path
    tensors: Mapping

    @property
    def place(self) -> str:
        return text_of(self.path)


class Search:
    """Looks for state dicts in one file; what was walked once is not walked again. `is_tensor` says what is in them."""

    def __init__(self, is_tensor: Callable[[object], bool] = is_tensor) -> None:
        self.is_tensor = is_tensor
        self.budget = Budget()
        self._states: dict[int, Mapping | None] = {}
        self._kinds: dict[int, str] = {}

    def state_of(self, value: object) -> Mapping | None:
        """As `as_dict`, made once of each module."""
        if id(value) not in self._states:
            self._states[id(value)] = as_dict(value, self.budget)
        return self._states[id(value)]

    def below(self, value: object) -> list[Found]:
        """Every dict of tensors, in the dicts alone or, where none is in those, in everything; `value` is the top."""
        return self._walk(value, wide=False) or self._walk(value, wide=True)

    def all_below(self, value: object) -> list[Found]:
        """Every one in everything, those that stand under two names twice."""
        return self._walk(value, wide=True, twice=True)

    def ignored(self, value: object) -> list[Found]:
        """Those too that lie where no weights belong, and are read where they are named."""
        return self._walk(value, wide=True, ignored=True)

    def _walk(self, value: object, wide: bool, ignored: bool = False, twice: bool = False) -> list[Found]:
        found: dict[str, Found] = {}
        todo: deque[tuple[Path, int, object]] = deque([((), 0, value)])
        seen: set[int] = set()
        while todo:
            path, length, item = todo.popleft()
            if (id(item) in seen and not twice) or _is_optimizer_state(item) or is_special(item):
                continue
            state = self.state_of(item)
            # What is looked at again is not bounded by the size of the file.
            again = sum(map(len, (*holders(item), state or ()))) if id(item) in seen else 0
            self.budget.spend(int(twice) + again)
            seen.add(id(item))
            tensors = {key: part for key, part in (state or {}).items() if self.is_tensor(part)}
            if tensors:
                one = Found(path, tensors)
                if one.place in found:
                    raise InputRefused(
                        f"two of its state dicts are both at {printable(one.place)}", hint="save them under other names"
                    )
                if len(found) == MAX_CANDIDATES:
                    raise InputRefused(
                        f"it holds more than {MAX_CANDIDATES} state dicts",
                        hint="save the model's state_dict() with torch.save",
                    )
                found[one.place] = one
            if len(path) < MAX_DEPTH:
                todo.extend(
                    ((*path, step), length + len(str(step)) + 1, child)
                    for step, child in (entries(item) if wide else _texts(item))
                    if isinstance(child, _HOLD if wide else (dict, Opaque))
                    and length + len(str(step)) <= MAX_PLACE
                    and not _is_other(step, ignored)
                )
        return list(found.values())

    def kind(self, value: object) -> str:
        """What a value is, for a person: 'int', 'dict of 3', 'argparse.Namespace'."""
        if isinstance(value, (dict, list, tuple)):
            # Of shared values each is looked at once, however many keys lead to it.
            if id(value) not in self._kinds:
                self._kinds[id(value)] = type_text(value)
            return self._kinds[id(value)]
        return type_text(value)


_HOLD = (dict, list, tuple, Opaque)


def weights(found: Iterable[Found]) -> list[Found]:
    """Those that count: where some hold weights, not those with nothing but counters and the like.

    {"model": {...}, "step": tensor} is a wrapper.
    """
    found = list(found)
    return [one for one in found if looks_like_weights(one.tensors)] or found


def _texts(value: object) -> Iterator[tuple[Step, object]]:
    if isinstance(value, dict):
        yield from ((key, item) for key, item in value.items() if isinstance(key, str))


def _is_optimizer_state(value: object) -> bool:
    state = value.state if isinstance(value, Opaque) else value
    return isinstance(state, dict) and is_optimizer(state)


def _is_other(step: Step, ignored: bool) -> bool:
    """Keys whose dicts hold tensors that are no weights: optimizers, schedulers, a module's extra state."""
    if not isinstance(step, str):
        return False
    lower = step.lower()
    return "optim" in lower or (not ignored and (lower in _NOT_MODELS or lower.endswith("_extra_state")))


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
