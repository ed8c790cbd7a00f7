"""What the functions of the library share: the types of their arguments, and how these are read."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from ..plugins import load_installed
from ..spec import path_of

FilePath = str | PathLike[str]
Paths = FilePath | Sequence[FilePath]
# One pattern or several: a tensor's name, a shell glob (* crosses dots), or re:REGEX.
Names = str | Sequence[str]


def ready() -> None:
    """Plug-ins of installed packages are there, as they are on the command line."""
    for problem in load_installed():
        warnings.warn(problem, stacklevel=3)


def patterns(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


def prefix_texts(given: Names | Mapping[str, str]) -> tuple[str, ...]:
    """OLD=NEW, or {OLD: NEW}, as --adapter-prefix has them."""
    return tuple(f"{old}={new}" for old, new in given.items()) if isinstance(given, Mapping) else patterns(given)


def paths(adapters: Paths) -> tuple[str, ...]:
    return tuple(map(str, [adapters] if isinstance(adapters, (str, PathLike)) else adapters))


def strengths(adapters: Paths, strength: float | Sequence[float]) -> tuple[float, ...]:
    """One for each adapter; none where all are 1."""
    from ..spelling.adapters import strengths_of

    found = strengths_of(paths(adapters), strength)
    return () if all(factor == 1 for factor in found) else tuple(found)


def path_or_none(path: FilePath | None, option: str) -> Path | None:
    return None if path is None else path_of(path, option)


def ends_in_slash(path: FilePath | None) -> bool:
    """Is this the name of a folder? A `Path` never is: it drops the slash."""
    return path is not None and os.fspath(path).endswith(("/", os.sep))


def typed(command: Sequence[str] | None) -> Sequence[str]:
    """What evidence names as the command: the command line, or the script that calls."""
    return command if command is not None else sys.argv
