"""Places in what a pickle holds, as steps and as text: `models.0.state_dict`.

A step is a key of a dict (a text or a whole number), an index of a list or tuple, or an attribute of an inert object.
State dicts are found, listed, named by --root and written again by these places alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...errors import InputRefused
from ...text import printable
from ..pickle.pickle_data import Opaque

Step = str | int
Path = tuple[Step, ...]
# Nobody names a place by more steps.
MAX_STEPS_OF_A_NAME = 64
_TABLES = ("_parameters", "_buffers", "_modules")


def is_module(value: object) -> bool:
    """Is this a pickled nn.Module? Its state dict is one, and nothing in it is a place of its own."""
    return isinstance(value, Opaque) and isinstance(value.state, dict) and all(t in value.state for t in _TABLES)


def holders(value: object) -> list[dict[object, object] | list[object] | tuple[object, ...]]:
    """What holds the parts of a value that steps lead to: itself, or an object's attributes, entries and items."""
    if isinstance(value, (dict, list, tuple)):
        return [value]
    if not isinstance(value, Opaque) or is_module(value):
        return []
    # With __slots__ the state is a pair: what is in __dict__, and what is in slots.
    states = value.state if isinstance(value.state, tuple) and len(value.state) == 2 else (value.state,)
    return [*(state for state in states if isinstance(state, dict)), value.pairs, value.items]


def entries(value: object) -> Iterator[tuple[Step, object]]:
    """Every part that a step leads to."""
    for holder in holders(value):
        if isinstance(holder, dict):
            for key, item in holder.items():
                if isinstance(key, str) or type(key) is int:
                    yield key, item
        else:
            yield from enumerate(holder)


def everything(value: object) -> Iterator[tuple[object, object]]:
    """Every part with its key, those too that no step leads to."""
    for holder in holders(value):
        yield from holder.items() if isinstance(holder, dict) else enumerate(holder)


def below(value: object, step: Step) -> object:
    """The part that a step leads to; it was found by `entries` or `find`."""
    for holder in holders(value):
        if isinstance(holder, dict):
            if step in holder:
                return holder[step]
        elif isinstance(step, int) and step < len(holder):
            return holder[step]
    raise AssertionError(f"no step {step!r}")


def at(value: object, path: Path) -> object:
    for step in path:
        value = below(value, step)
    return value


def reach(value: object, path: Path) -> object:
    """The same in another tree than the one that the steps were found in; None where they lead nowhere."""
    for step in path:
        value = dict(entries(value)).get(step)
    return value


def leads_to(value: object, path: Path) -> bool:
    """Do keys and indexes alone lead along the steps, and no attribute of an object?"""
    for step in path:
        if isinstance(value, Opaque):
            return False
        value = below(value, step)
    return True


def text_of(path: Sequence[Step]) -> str:
    return ".".join(map(str, path))


def find(value: object, place: str) -> Path | None:
    """The steps to a dotted place, whose keys may have dots themselves; None where there is nothing.

    Raises InputRefused where two lead there.
    """
    found: dict[int, Path] = {}
    todo: list[tuple[Path, object, str]] = [((), value, place)]
    seen: set[tuple[int, int]] = set()
    while todo:
        path, here, rest = todo.pop()
        if (id(here), len(rest)) in seen or len(path) > MAX_STEPS_OF_A_NAME:
            continue
        seen.add((id(here), len(rest)))
        for cut in [*(at for at, character in enumerate(rest) if character == "."), len(rest)]:
            for step, item in _steps(here, rest[:cut]):
                if cut == len(rest):
                    found.setdefault(id(item), (*path, step))
                else:
                    todo.append(((*path, step), item, rest[cut + 1 :]))
    if len(found) > 1:
        raise InputRefused(f"two of its parts are both at {printable(place)}", hint="save them under other names")
    return next(iter(found.values()), None)


def _steps(value: object, word: str) -> Iterator[tuple[Step, object]]:
    """The steps that a word can be, and where they lead."""
    number = int(word) if word.isascii() and word.isdigit() and len(word) < 10 and str(int(word)) == word else None
    for holder in holders(value):
        if isinstance(holder, dict):
            for step in (word, number):
                if step is not None and step in holder:
                    yield step, holder[step]
        elif number is not None and number < len(holder):
            yield number, holder[number]
