"""A checkpoint with its tensors read as groups: what every command starts from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from ..checkpoint.read.open import open_checkpoint
from ..checkpoint.source import Source
from ..errors import ParamcliError, error_context
from ..spec import select
from ..text import printable_path
from . import record as records
from .forms import Group, detect
from .given import named
from .quantized import quantized


@dataclass
class Opened:
    """An open checkpoint and its groups by tensor name. Use in a `with`, which closes the files."""

    source: Source
    groups: dict[str, Group]

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, ParamcliError) and error.path == self.source.path and len(self.source.roots) > 1:
            error.root = self.source.root or "."
        self.source.close()

    @property
    def where(self) -> str:
        return printable_path(self.source.path)

    def choose(
        self,
        patterns: Sequence[str] | None,
        default: Callable[[Group], bool] = lambda group: True,
        asked: bool = False,
    ) -> list[Group]:
        """The groups that the patterns name, as of `named`, or without any those that `default` accepts."""
        if patterns:
            return named(self.groups, patterns, self.source.path, asked)
        return [group for group in self.groups.values() if default(group)]


def choose_any(patterns: Sequence[str], sides: Sequence[Opened]) -> set[str]:
    """The names that the patterns choose, where each pattern must match something on one of the sides."""
    everywhere = list(dict.fromkeys(name for side in sides for name in side.groups))
    with error_context(option="tensor"):
        return set(select(everywhere, patterns, " and ".join(side.where for side in sides)))


def open_groups(
    path: str | PathLike[str],
    root: str | None = None,
    ignore_record: bool = False,
    tell: Callable[[str], None] = lambda note: None,
) -> Opened:
    """Open a checkpoint and group its keys, by its record unless that is to be ignored; `tell` is given its notes.

    Raises InputRefused for what is no checkpoint, and for a record that contradicts the tensors.
    """
    source = open_checkpoint(Path(path), root)
    try:
        with error_context(path=path):
            for note in source.notes:
                tell(note)
            record = {} if ignore_record else records.record_in(source)
            groups = quantized(detect(source.tensors, record), source)
            records.check_against(record, {name: group.form for name, group in groups.items()})
            return Opened(source, groups)
    except BaseException:
        source.close()
        raise
