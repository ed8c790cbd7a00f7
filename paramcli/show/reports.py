"""--report: the page that verify, diff, discover and spectrum write, and what it shows beside their answer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.source import Source
from ..errors import OutputFailed, ParamcliError, UsageError
from ..spelling.forms import Group
from ..spelling.opened import Opened
from ..text import printable, size_text
from ..view import IDENTITY, View
from ..wording import given

if TYPE_CHECKING:
    from ..answers.spectrum import Spectra
    from ..evidence import Gathering
    from .html import Drawn


def require_suffix(option: str, path: Path, kind: str, *others: str) -> None:
    """Raise UsageError for a page or picture whose name is that of another kind of file: of a checkpoint, perhaps."""
    if path.suffix.lower().removeprefix(".") not in (kind, *others):
        raise UsageError(
            f"{given(option)} writes {kind.upper()}, and {printable(path.name)} does not end in .{kind}",
            hint=given(option, path.with_suffix(f".{kind}")),
            option=option,
        )


def check_report(report: str | PathLike[str] | None, force: bool) -> Path | None:
    """Where the page goes; refused early where it could not be written at the end."""
    if report is None:
        return None
    report = Path(report)
    from ..checkpoint.disk.atomic import refuse_existing

    require_suffix("report", report, "html", "htm")
    try:
        refuse_existing(report, force)
    except OutputFailed as error:
        error.advice = f"{given('force', True)} replaces it, or {given('report')} another FILE.html"
        raise
    return report


def gathering(wanted: bool, typed: Sequence[str], *sources: Source) -> AbstractContextManager[Gathering | None]:
    """The evidence of a command, gathered while its block runs where it is wanted; `typed` is the command line."""
    if not wanted:
        return nullcontext()
    from ..evidence import Gathering

    return Gathering(typed, *sources)


def facts(source: Source) -> list[tuple[str, str]]:
    return [
        ("container", source.container),
        ("size", size_text(source.nbytes)),
        ("tensor keys", str(len(source.tensors))),
    ]


def spectra_for_report(source: Source, groups: Sequence[tuple[Group, View | None]], device: str) -> Drawn:
    """The spectra of the first that fit a page; what has none is left out."""
    from ..answers.spectrum import spectra
    from .html import Drawn, drawable

    found: list[Spectra] = []
    skipped: list[str] = []
    for group, view in groups:
        if len(group.shape) < 2:
            continue
        if not drawable(group.shape, len(found)):
            skipped.append(group.tensor)
            continue
        try:
            found.append(spectra(source, group, view, device))
        except ParamcliError:
            continue
    return Drawn(tuple(found), tuple(skipped))


def spectra_of_pairs(a: Opened, b: Opened, names: Sequence[str]) -> Drawn:
    """The same of two checkpoints' values, A's in the place of what was before."""
    views = {name: b.groups[name].view if b.groups[name].view != IDENTITY else a.groups[name].view for name in names}
    one = spectra_for_report(a.source, [(a.groups[name], views[name]) for name in names], "cpu")
    two = spectra_for_report(b.source, [(b.groups[s.tensor], views[s.tensor]) for s in one.found], "cpu")
    other = {s.tensor: s for s in two.found}
    found = []
    for s in one.found:
        if s.tensor in other:
            values = [replace(m, of="A") for m in s.matrices if m.of == "value"]
            now = other[s.tensor]
            found.append(replace(now, matrices=(*values, *(m for m in now.matrices if m.of == "value"))))
    return replace(one, found=tuple(found))


def write_page(path: Path, page: bytes, overwrite: bool) -> None:
    """A picture or report, there whole or not at all."""
    from ..checkpoint.disk.atomic import AtomicFile

    with AtomicFile(path, overwrite=overwrite) as file:
        file.write_at(0, page)
        file.commit(len(page))
