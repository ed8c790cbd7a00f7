"""Optimizer state in what a torch checkpoint holds: told from weights, and whose it is.

Its tensors have the shapes of a model's, so it is never looked into for a state dict. An edit of the model makes it
stale, and of several models each has its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from ..pickle.pickle_data import Opaque, TensorRef, shown
from .places import Path, below, everything, text_of

Shapes = Counter[tuple[int, ...]]
# On a level, or in what holds several there.
Name = tuple[str, ...]
# What is shared in a pickle can stand in it a million times, so of each no more is looked at than a model has: items
# among which an optimizer is sought, and parts of the state of one parameter.
MOST, FEW = 1000, 16


def is_optimizer(value: dict[object, object]) -> bool:
    return "param_groups" in value and "state" in value


def holds_optimizers(value: dict[object, object] | list[object] | tuple[object, ...]) -> bool:
    """One optimizer's state, or several as a list (Lightning) or a dict (G and D of a GAN); no model beside them."""
    if isinstance(value, dict) and is_optimizer(value):
        return True
    items = list(islice(value.values() if isinstance(value, dict) else value, MOST))
    dicts = [item for item in items if isinstance(item, dict)]
    others = [item for item in dicts if not is_optimizer(item)]
    return (
        len(others) < len(dicts)
        and not any(isinstance(item, TensorRef) for other in others for item in islice(other.values(), FEW))
        and not any(isinstance(item, Opaque) for item in items)
    )


def optimizers_of(value: object, paths: Sequence[Path], states: Mapping[Path, Mapping[object, object]]) -> list[str]:
    """The dotted names of the optimizer states of the state dicts at `paths`, which are among `states`.

    They lie on the nearest level around each that has some. Of several there an optimizer is that of the state dict
    whose tensors have the shapes of its moments, and of several such of the one that its name speaks of. One of which
    neither tells may be this one's.
    """
    owners = _Owners(states)
    return list(dict.fromkeys(name for path in paths for name in _own(owners, value, path)))


def _own(owners: _Owners, value: object, path: Path) -> list[str]:
    levels, here = [], value
    for depth in range(len(path) + 1):
        levels.append((path[:depth], here, path[depth : depth + 1]))
        here = below(here, path[depth]) if depth < len(path) else None
    for level, beside, way in reversed(levels):
        found = {name: at for name, at in owners.around(level, beside).items() if name[:1] != tuple(map(_text, way))}
        own = [name for name in found if path in found[name] or not found[name]]
        if any(_speaks_of(name, path) for name in own):
            own = [name for name in own if _speaks_of(name, path)]
        if found:
            return _joined(level, own, list(found))
    return []


class _Owners:
    """The optimizers on each level, with the places of the state dicts that have the shapes of their moments.

    Each level is looked at once, and each optimizer, however many state dicts are asked for.
    """

    def __init__(self, states: Mapping[Path, Mapping[object, object]]) -> None:
        self.shapes = {at: _shapes(state) for at, state in states.items()}
        self._levels: dict[Path, dict[Name, list[Path]]] = {}
        self._found: dict[int, dict[Name, Mapping[object, object]]] = {}
        self._moments: dict[int, Shapes] = {}

    def around(self, level: Path, here: object) -> dict[Name, list[Path]]:
        if level not in self._levels:
            if id(here) not in self._found:
                self._found[id(here)] = dict(islice(_optimizers(here), MOST))
            found = self._found[id(here)]
            inside = [at for at in self.shapes if at[: len(level)] == level] if found else []
            fitting: dict[int, list[Path]] = {}
            for optimizer in found.values():
                if id(optimizer) not in self._moments:
                    self._moments[id(optimizer)] = _moments(optimizer)
                kept = self._moments[id(optimizer)]
                if id(optimizer) not in fitting:
                    fitting[id(optimizer)] = [at for at in inside if kept and kept <= self.shapes[at]]
            self._levels[level] = {name: fitting[id(optimizer)] for name, optimizer in found.items()}
        return self._levels[level]


def _optimizers(level: object) -> Iterator[tuple[Name, Mapping[object, object]]]:
    empty: set[int] = set()  # of what stands under many keys it is asked once
    for key, item in everything(level):
        if isinstance(item, dict) and is_optimizer(item):
            yield (_text(key),), item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in empty:
            if not holds_optimizers(item):
                empty.add(id(item))
                continue
            for name, part in everything(item):
                if isinstance(part, dict) and is_optimizer(part):
                    yield (_text(key), _text(name)), part


def _text(key: object) -> str:
    return key if isinstance(key, str) else shown(key)


def _shapes(state: Mapping[object, object]) -> Shapes:
    return Counter(tuple(item.shape) for item in state.values() if isinstance(item, TensorRef))


def _moments(optimizer: Mapping[object, object]) -> Shapes:
    """The shapes of what it keeps of each parameter: none where it keeps nothing."""
    kept = optimizer["state"]
    moments: Shapes = Counter()
    for entry in kept.values() if isinstance(kept, dict) else ():
        parts = islice(entry.values(), FEW) if isinstance(entry, dict) else ()
        first = next((part for part in parts if isinstance(part, TensorRef) and part.shape), None)
        if first is not None:
            moments[tuple(first.shape)] += 1
    return moments


def _speaks_of(name: Name, path: Path) -> bool:
    """Is the state dict's key, or the beginning of it, a word of the name? optim_g of generator, critic1_optim of
    critic1.
    """
    key = str(path[-1]).lower() if path else ""
    return bool(key) and any(key.startswith(said) for said in re.findall(r"[a-z0-9]+", "_".join(name).lower()))


def _joined(level: Path, own: list[Name], found: list[Name]) -> list[str]:
    """Dotted; what holds several that are all own is named once."""
    whole = {name[0] for name in found} - {name[0] for name in found if name not in own}
    return list(dict.fromkeys(text_of((*level, *(name[:1] if name[0] in whole else name))) for name in own))
