"""Text to parsed form: chain specs and tensor patterns. No tensors, no torch.

chain := item ("," item)*            skew,cayley    weight_norm:dim=0
item  := name (":" key "=" value)*
"""

from __future__ import annotations

import fnmatch
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NoReturn, TypeVar

from .errors import PATH, TENSOR, Known, UsageError
from .text import closest, printable
from .wording import given, keyword, words

Value = int | float | bool | str | None
# One of a few words that an option takes: a type of literals.
Word = TypeVar("Word", bound=str)
_NAME = re.compile(r"[a-z][a-z0-9_.]*")
# A chain longer than this is no chain anyone trains; it bounds what a hostile record can ask for.
MAX_SPEC_LENGTH = 2000


def is_name(text: object) -> bool:
    """Can this be the name of an entry: lower snake case, dots allowed?"""
    return isinstance(text, str) and bool(_NAME.fullmatch(text))


@dataclass(frozen=True)
class Item:
    """One item of a spec: a name and its arguments, still text."""

    name: str
    arguments: tuple[tuple[str, str], ...] = ()


def parse_items(text: str, what: str = "chain", example: str = "skew,cayley, or weight_norm:dim=0") -> list[Item]:
    """'weight_norm:dim=0' -> [Item]; raises UsageError with the grammar for anything else. `what` it is, with an
    `example`.
    """
    if len(text) > MAX_SPEC_LENGTH:
        raise UsageError(f"a {what} of {len(text)} characters; {MAX_SPEC_LENGTH} is the limit", option=what)
    items = []
    for part in text.split(","):
        name, *pairs = part.strip().split(":")
        arguments: list[tuple[str, str]] = []
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not (equals and value and _NAME.fullmatch(key)):
                raise UsageError(
                    f"'{printable(pair)}' in {what} '{printable(text)}' is not key=value",
                    hint=f"e.g. {example.rpartition(' ')[2]}",
                    option=what,
                )
            if key in dict(arguments):
                raise UsageError(f"'{printable(key)}' is given twice in {what} '{printable(text)}'", option=what)
            arguments.append((key, value))
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"'{printable(name)}' in {what} '{printable(text)}' is no name",
                hint=f"names are lower case, arguments follow as :key=value  e.g. {example}",
                option=what,
            )
        items.append(Item(name, tuple(arguments)))
    return items


@dataclass(frozen=True)
class Argument:
    """One argument of a registry entry: its type, default, and range, for parsing and for its card."""

    name: str
    type: str  # "int", "float", "amount", "dim", "bool", "choice", "text"
    help: str
    default: Value = None
    required: bool = False
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        if not hasattr(self, f"_{self.type}"):
            raise ValueError(f"the argument {self.name} has a type '{self.type}' that no text is read as")

    def parse(self, text: str, who: str) -> Value:
        """The typed value; raises UsageError saying what would be one."""
        try:
            value = getattr(self, f"_{self.type}")(text)
        except ValueError as error:
            raise UsageError(
                f"{who}:{self.name}={printable(text)}: {error}", hint=f"{self.name}: {self.help}"
            ) from None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = self.minimum, self.maximum
            if (low is not None and value < low) or (high is not None and value > high):
                wanted = (
                    f"at least {low:g}"
                    if high is None
                    else f"from {low:g} to {high:g}"
                    if low is not None
                    else f"at most {high:g}"
                )
                raise UsageError(
                    f"{who}:{self.name}={printable(text)}: must be {wanted}", hint=f"{self.name}: {self.help}"
                )
        return value

    def _int(self, text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", text):
            raise ValueError("must be a whole number")
        return int(text)

    def _float(self, text: str) -> float:
        if not re.fullmatch(r"-?[0-9]{0,20}\.?[0-9]{0,20}(e[+-]?[0-9]{1,3})?", text) or not any(map(str.isdigit, text)):
            raise ValueError("must be a number")
        value = float(text)
        if math.isinf(value):
            raise ValueError("must be a number, and not beyond all of them")
        return value

    def _amount(self, text: str) -> int | float:
        if re.fullmatch(r"[0-9]{1,18}", text):
            return int(text)
        value = self._float(text)
        if not 0 <= value <= 1:
            raise ValueError("a fraction must be from 0 to 1 (a whole number counts entries)")
        return value

    def _dim(self, text: str) -> int | None:
        return None if text == "none" else self._int(text)

    def _bool(self, text: str) -> bool:
        if text not in ("true", "false"):
            raise ValueError("must be true or false")
        return text == "true"

    def _choice(self, text: str) -> str:
        if text not in self.choices:
            raise ValueError(f"must be one of {', '.join(self.choices)}")
        return text

    def _text(self, text: str) -> str:
        return text


def value_text(value: Value) -> str:
    """The spelling that `Argument.parse` reads back."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


def path_of(path: str | PathLike[str], option: str = "ckpt") -> Path:
    """The path that an option gives; UsageError for an empty one, which pathlib takes for the working folder."""
    if not os.fspath(path):
        raise UsageError(f"{keyword(option)} is an empty path", option=option)
    return Path(path)


def check_choice(option: str, value: str, choices: Sequence[Word]) -> Word:
    """The value as the choice that it is; raises UsageError where it is none."""
    for choice in choices:
        if choice == value:
            return choice
    near = closest(value, choices, 1) or choices
    raise UsageError(
        f"{given(option, value)}: not one of {', '.join(choices)}",
        hint=" or ".join(given(option, choice) for choice in near[:4]),
        option=option,
    )


def select(names: Sequence[str], patterns: Iterable[str], where: str | PathLike[str]) -> list[str]:
    """The names that the patterns choose, in the order of `names`.

    A pattern is a full name, a shell glob (`*` crosses dots), or `re:REGEX` matched against the whole name. What it
    means is the user's: a tensor that is named `*` does not make `*` mean itself alone. One that matches nothing raises
    UsageError with the closest names; `where` is the file, or words for another place.
    """
    chosen: set[str] = set()
    known = set(names)
    for pattern in patterns:
        found = {pattern} & known
        if pattern.startswith("re:"):
            try:
                regex = re.compile(pattern[3:])
            except re.error as error:
                if not found:
                    what = f"bad regular expression '{printable(pattern[3:])}': {error}"
                    hint = f"without re: it is a name, or a glob as in {given('tensor', '*.weight')}"
                    raise UsageError(what, hint=hint) from None
            else:
                found |= {name for name in names if regex.fullmatch(name)}
        elif _is_glob(pattern):
            found |= {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not found:
            _nothing_matches(pattern, names, where)
        chosen |= found
    return [name for name in names if name in chosen]


def _is_glob(pattern: str) -> bool:
    return any(c in pattern for c in "*?[")


def _nothing_matches(pattern: str, names: Sequence[str], where: str | PathLike[str]) -> NoReturn:
    near = closest(pattern, names)
    hint = Known(f"closest: {words(near)}" if near else f"tensors there: {words(names, 4)}") if names else None
    is_plain = not _is_glob(pattern) and not pattern.startswith("re:")
    what = f"no tensor named '{TENSOR}'" if is_plain else f"no tensor matches '{printable(pattern)}'"
    place, path = (PATH, where) if isinstance(where, PathLike) else (where, None)
    raise UsageError(f"{what} in {place}", hint=hint, tensor=pattern if is_plain else None, path=path)
