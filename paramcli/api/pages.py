"""Where the pictures and pages of an answer go: never onto what was asked about."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from ..checkpoint.source import Source
from ..errors import PATH, UsageError
from ..surgery.output import is_input
from ..wording import given


def require_elsewhere(written: Mapping[str, str | PathLike[str] | None], *sources: Source) -> None:
    """Raise UsageError where one of the files that an answer writes (option -> path) is one that it reads, under any
    name.
    """
    for option, path in written.items():
        if path is not None and any(is_input(path, source) for source in sources):
            raise UsageError(
                f"{PATH} is the input itself", hint=f"{given(option)} another file", path=path, option=option
            )
