"""Which state dict of a torch checkpoint is read: its root.

    --root A.B     the state dict there; where there is none, the one below it, or several below it as one, under the
                   names that their places give them
    --root A.B.*   that at A.B and all below it as one
    --root .       the top (and * is all below it)

Without a root the only state dict of the file is taken; among several the user chooses, never we.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from ...errors import PATH, TENSOR, InputRefused, Known, UsageError
from ...text import closest, count_text, listing, printable
from ...wording import call, given, words
from ..pickle.pickle_data import Key, Opaque, shown
from ..pickle.tree import walk
from ..source import Extra, Odd, Part, TensorInfo
from .optimizers import optimizers_of
from .places import Path, Step, at, entries, everything, find, holders, leads_to, text_of
from .recognise import ZERO_HINT
from .search import Found, Search, is_tensor, type_text, weights

# What DeepSpeed writes beside partitioned weights.
ZERO_MARKS = frozenset(("zero_stage", "ds_version", "ds_config"))
# Of a list beside the way to the root so many values are named one by one.
_LISTED = 1000


@dataclass
class Chosen:
    """The state dict of a checkpoint: its place, its tensors as they were pickled, and everything else by name.

    `path` is the place as steps, and `parts` are the dicts that the tensors lie in, more than one where several are
    joined. `odd_names`: tensors whose names are none that a result could have. `optimizers`: the names of those states
    that are its own.
    """

    name: str
    path: Path
    parts: tuple[Part, ...]
    candidates: list[tuple[str, int]]
    tensors: dict[str, object] = field(default_factory=dict)
    odd_names: dict[str, Odd] = field(default_factory=dict)
    extras: list[Extra] = field(default_factory=list)
    optimizers: list[str] = field(default_factory=list)

    # Do keys and indexes alone lead to one state dict?
    is_loaded: bool = True

    def note(self, tensors: Iterable[TensorInfo]) -> list[str]:
        """What was read, where it is not the whole file."""
        readable = sum(info.is_readable for info in tensors)
        several = f" of {len(self.parts)} state dicts" if len(self.parts) > 1 else ""
        told = f"read {printable(self.name)} ({count_text(readable, 'tensor')}{several})"
        return [told] if self.name and readable else []


ALL = "*"


def choose_root(value: object, root: str | None, is_one: Callable[[object], bool] = is_tensor) -> Chosen:
    """The state dict to work on; InputRefused where there is none or several, UsageError for an unknown --root.

    `is_one`: what counts as a tensor there.
    """
    search = Search(is_one)
    every = search.below(value) if root is None else _quietly(search, value)
    listed = sorted((one.place, len(one.tensors)) for one in weights(every))
    if root is not None:
        name, path, found = _named(search, value, root, listed)
    elif not listed:
        raise _nothing(search, value)
    elif len(listed) > 1:
        raise _several(weights(every))
    else:
        (one,) = weights(every)
        name, path, found = one.place, one.path, [Found((), one.tensors)]
    parts = tuple(Part((*path, *one.path), f"{one.place}." if one.path else "") for one in found)
    if name not in dict(listed):
        listed = sorted([*listed, (name, sum(len(one.tensors) for one in found))])
    states = {one.path: one.tensors for one in weights(every)}
    states |= {part.path: one.tensors for part, one in zip(parts, found, strict=True)}
    chosen = Chosen(name, path, parts, listed, is_loaded=len(parts) == 1 and leads_to(value, parts[0].path))
    chosen.optimizers = optimizers_of(value, [part.path for part in parts], states)
    _Reading(search, chosen).read(value)
    return chosen


def _quietly(search: Search, value: object) -> list[Found]:
    """What there is beside a root that was named; where it cannot be told apart, nothing is."""
    try:
        return search.below(value)
    except InputRefused:
        return []


def _named(
    search: Search, value: object, root: str, listed: Sequence[tuple[str, int]]
) -> tuple[str, Path, list[Found]]:
    """(its name, the steps to it, the state dicts there and below)."""
    place, joined = ("" if root == "." else root), False
    path = find(value, place) if place else ()
    if path is None and (place == ALL or place.endswith(f".{ALL}")):
        place, joined = place.removesuffix(ALL).removesuffix("."), True
        path = find(value, place) if place else ()
    every = search.below(at(value, path)) if path is not None else []
    if path is None or not every:
        known = list(dict.fromkeys([name for name, _ in listed] + [o.place for o in weights(search.ignored(value))]))
        known = [name or "." for name in known]
        near = closest(root, known) or known
        raise UsageError(
            f"no state dict at {given('root', root)}",
            hint=Known(f"known: {words(near)}") if near else None,
            option="root",
        )
    counting = weights(every)
    exact = [one for one in counting if not one.path] or counting
    if len(exact) == 1 and not joined:
        path = (*path, *exact[0].path)
        return text_of(path), path, [Found((), exact[0].tensors)]
    return f"{place}.{ALL}" if place else ALL, path, search.all_below(at(value, path))


def _several(found: Sequence[Found]) -> InputRefused:
    """The refusal of a file with several: each with its size, how to take one, and how to take all."""
    listed = sorted((one.place, len(one.tensors)) for one in found)
    told = "; ".join(f"{printable(name) or '.'} ({count_text(count, 'tensor')})" for name, count in listed[:40])
    told += f" and {len(listed) - 40} more" if len(listed) > 40 else ""
    above = found[0].path
    for one in found:
        same = next((n for n, (a, b) in enumerate(zip(above, one.path, strict=False)) if a != b), None)
        above = above[: min(len(above), len(one.path)) if same is None else same]
    whole = text_of(above)
    if whole in dict(listed):
        whole = f"{whole}.{ALL}" if whole else ALL
    first, every = given("root", listed[0][0] or "."), given("root", whole or ".")
    return InputRefused(
        f"it holds {len(found)} state dicts: {told}",
        hint=f"{first} for that one, {every} for all of them as one model",
        code="ambiguous",
    )


def _nothing(search: Search, value: object) -> InputRefused:
    """The refusal of a file without a state dict: what it is instead, and what may be named all the same."""
    below = walk(value)
    mappings = [item for item in below if isinstance(item, dict)]  # a module's parameters are in one too
    if any(not ZERO_MARKS.isdisjoint(key for key in mapping if isinstance(key, str)) for mapping in mappings):
        return InputRefused(
            "it is one process's part of a DeepSpeed ZeRO optimizer, not a state dict",
            hint=ZERO_HINT,
            code="not_a_checkpoint",
        )
    what = type_text(value)
    told = f"it is {'an' if what[0] in 'aeiou' else 'a'} {what}"
    named = sorted(one.place for one in weights(search.ignored(value)) if one.path)
    if named:
        return InputRefused(
            f"it holds no state dict where weights belong: {told}; there are {listing(named, 6)}",
            hint=given("root", named[0] or "."),
            code="ambiguous",
        )
    if any(map(search.is_tensor, below)):
        return InputRefused(
            f"it holds tensors but no state dict (name -> tensor): {told}",
            hint="save the model's state_dict() with torch.save",
            code="not_a_checkpoint",
        )
    return InputRefused(
        f"it holds no state dict: {told} without tensors",
        hint="save the model's state_dict() with torch.save",
        code="not_a_checkpoint",
    )


# --- what is at the root, and what beside it -------------------------------------------------------


class _Node:
    """A place on the ways from the top to the parts: the part that it is, and the places below by their steps."""

    def __init__(self) -> None:
        self.part: Part | None = None
        self.below: dict[Step, _Node] = {}


class _Reading:
    """Walks from the top to the parts, and takes down the tensors in them and everything beside the ways."""

    def __init__(self, search: Search, chosen: Chosen):
        self.search, self.chosen = search, chosen
        self.unnamed = 0
        self.top = _Node()
        for part in chosen.parts:
            node = self.top
            for step in part.path:
                node = node.below.setdefault(step, _Node())
            node.part = part

    def read(self, value: object) -> None:
        parts: list[Part] = []
        todo: list[tuple[object, Path, _Node]] = [(value, (), self.top)]
        while todo:
            here, path, node = todo.pop()
            if node.part is not None:
                parts.append(self._part(node.part, here, node))
            else:
                self._beside(here, path, node)
            deeper = [(item, (*path, step), node.below[step]) for step, item in entries(here) if step in node.below]
            todo.extend(reversed(deeper))
        self.chosen.parts = tuple(parts)

    def _beside(self, here: object, path: Path, node: _Node) -> None:
        prefix = f"{text_of(path)}." if path else ""
        for number, (key, item) in enumerate(everything(here)):
            if number == _LISTED and not isinstance(here, dict):
                more = sum(len(holder) for holder in holders(here)) - number
                self._extra(f"{prefix}{number} and on", count_text(more, "more value"))
                break
            if isinstance(key, Key) or key not in node.below:
                self._extra(f"{prefix}{printable(key) if isinstance(key, str) else shown(key)}", self.search.kind(item))
        self._class_of(here)

    def _extra(self, name: str, kind: str) -> None:
        self.chosen.extras.append(Extra(name, kind))

    def _class_of(self, here: object) -> None:
        if isinstance(here, Opaque):
            what = f"the pickled {type_text(here)}"
            self.chosen.extras.append(Extra(what, "an object; its weights are read, its code is not", carried=False))

    def _part(self, part: Part, here: object, node: _Node) -> Part:
        place = text_of(part.path)
        renamed: dict[object, str] = {}
        for key, item in (self.search.state_of(here) or {}).items():
            if self.search.is_tensor(item):
                self._tensor(part, key, item, renamed)
            elif isinstance(key, Key) or key not in node.below:
                self._extra(
                    f"{place}[{shown(key)}]" if not isinstance(key, str) else f"{place}.{key}" if place else key,
                    self.search.kind(item),
                )
        self._class_of(here)
        return replace(part, renamed=renamed) if renamed else part

    def _tensor(self, part: Part, key: object, item: object, renamed: dict[object, str]) -> None:
        """Enter a tensor by its name; one whose key is no name gets a word in the place of it."""
        taken = self.chosen.tensors
        name = f"{part.prefix}{key if isinstance(key, str) else f'{type(key).__name__}_{shown(key)}'}"
        if part.prefix:
            self.search.budget.spend(0, len(name))
        why = _fault(key, name)
        if why is None:
            if name in taken:
                raise InputRefused(
                    f"two of its tensors are both named {TENSOR}", hint="save them under other names", tensor=name
                )
        else:
            name = name.encode("utf-8", "backslashreplace").decode()
            if not isinstance(key, (str, int)):
                name = self._word(part)
            while name in taken:
                name = self._word(part)
            renamed[key] = name
            self.chosen.odd_names[name] = Odd(
                why, f"give it another with {call('convert', PATH)} {given('rename')}", by_name=True
            )
        taken[name] = item

    def _word(self, part: Part) -> str:
        self.unnamed += 1
        return f"{part.prefix}unnamed_{self.unnamed}"


def _fault(key: object, name: str) -> str | None:
    """What is wrong with a key as a tensor's name; None where nothing is."""
    if not isinstance(key, str):
        return f"{TENSOR} stands under a key that is no text ({shown(key)}), which is no name"
    if name == "__metadata__":
        return f"{TENSOR} is a name that safetensors keeps for something else"
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return f"{TENSOR} is a name that is no Unicode text"
    return None
