"""The help of a command as a page: usage, text with its examples, a panel for each kind of option, and of command.

Drawn here, with nothing imported, so that `--help` is there at once: typer's own help would import rich with its
Markdown and its tracebacks. The page always has its colours; they are taken out where `wants_colour` or the stream
says so.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from typer.core import TyperOption

from .values import kinds

if TYPE_CHECKING:
    from typer._click.core import Command, Context, Parameter

BOLD, DIM, USAGE, NAME, SWITCH, NEGATIVE, KIND, MARK, REQUIRED = (
    "1",
    "2",
    "1;33",
    "1;36",
    "1;32",
    "1;35",
    "1;33",
    "2;33",
    "31",
)
# A narrower terminal gets lines that are too long for it.
NARROWEST = 60
# An option and a switch within a text; what separates the words of a metavar; what the parser puts behind a help:
# [default: 0].
_OPTION = re.compile(r"(?<![\w-])(?:(?P<name>--[\w-]+)|-\w)(?![\w-])")
_MARKS = re.compile(r"([\[\]<>|])")
_EXTRA = re.compile(r"  (\[[^\[\]]+\])$")
_CODES = re.compile(r"\x1b\[[\d;]*m")
_NO_BREAK = "\u00a0"

# What stands in the columns of a panel's row, and the text behind them.
Row = tuple[list[str], str]


def page(command: Command, context: Context, listed: dict[str, list[Row]]) -> str:
    """The help of a command, or of a group with what it lists: panel -> rows."""
    known = kinds(command)
    width = max(_width(), NARROWEST)
    panels: dict[str, list[Row]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(
                (_cells(parameter, known), record[1])
            )
    first, *rest = (command.help or "").split("\n\n")
    # Lines are kept where the parser's own mark says so, and flow elsewhere.
    flowing = (
        paragraph.removeprefix("\b\n") if paragraph.startswith("\b\n") else " ".join(paragraph.split())
        for paragraph in rest
    )
    paragraphs = [(first, ""), *((paragraph, DIM) for paragraph in flowing)]
    lines = ["", f" {_paint('Usage:', USAGE)}{_paint(command.get_usage(context).removeprefix('Usage:'), BOLD)}"]
    for paragraph, style in paragraphs:
        lines += ["", *_paragraph(paragraph, width, style)]
    lines.append("")
    for title, rows in panels.items():
        lines += _panel(title, rows, width) if rows else ()
    longest = max((len(name) for rows in listed.values() for (name,), _ in rows), default=0)
    for title, rows in listed.items():
        lines += _panel(title, [([_paint(name.ljust(longest), NAME)], text) for (name,), text in rows], width)
    for paragraph in command.epilog.split("\n\n") if command.epilog else ():
        lines += ["", *_paragraph(paragraph, width)]
    return "\n".join(lines)


def wants_colour() -> bool | None:
    """None leaves it to the stream: a terminal has colours, a pipe has none."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return False
    return True if os.environ.get("FORCE_COLOR") else None


def _width() -> int:
    """COLUMNS, or the width of the terminal that any of the streams is, or 80."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    for descriptor in range(3):
        try:
            return os.get_terminal_size(descriptor).columns or 80
        except OSError:
            pass
    return 80


def _cells(parameter: Parameter, known: dict[str, type]) -> list[str]:
    """The names of an option or argument, and the kind of its value."""
    metavar, star = parameter.metavar or "", _paint("*" if parameter.required else "", REQUIRED)
    if not isinstance(parameter, TyperOption):
        kind = _kind(f"<{known[parameter.name or ''].__name__.lower()}>")
        return [star, _paint(metavar, NAME), kind]
    long, short = ([name for name in parameter.opts if name.startswith("--") is wanted] for wanted in (True, False))
    names = [
        star,
        _paint(",".join(long), NAME),
        _paint(",".join(short), SWITCH),
        _paint(",".join(parameter.secondary_opts), NEGATIVE),
    ]
    return [*names, "" if parameter.is_flag or parameter.count else _kind(metavar)]


def _kind(metavar: str) -> str:
    return "".join(_paint(part, MARK if _MARKS.fullmatch(part) else KIND) for part in _MARKS.split(metavar))


def _panel(title: str, rows: list[Row], width: int) -> Iterator[str]:
    """A box of rows: each column as wide as what is in it, none for nothing, and the texts in the room that is left."""
    widths = [max(map(_columns, cells)) for cells in zip(*(cells for cells, _ in rows), strict=True)]
    room = width - 4 - sum(columns + 2 for columns in widths if columns)
    side = _paint("│", DIM)
    yield _paint(f"╭─ {title} {'─' * (width - len(title) - 5)}╮", DIM)
    for cells, text in rows:
        left = "".join(_padded(cell, columns + 2) for cell, columns in zip(cells, widths, strict=True) if columns)
        for line in _text(text, room):
            yield f"{side} {left}{_padded(line, room)} {side}"
            left = " " * _columns(left)
    yield _paint(f"╰{'─' * (width - 2)}╯", DIM)


def _text(text: str, room: int) -> Iterator[str]:
    """The lines of an option's help; what the parser put behind it is dim, and stays in one piece."""
    found = _EXTRA.search(text)
    extra = found[1].replace(" ", _NO_BREAK) if found else ""
    text = f"{text[: found.start()]} {extra}" if found else text
    for line in _wrapped(text, room):
        before, after = (line.removesuffix(extra), extra) if extra and line.endswith(extra) else (line, "")
        yield (_lit(before) + _paint(after, DIM)).replace(_NO_BREAK, " ")


def _paragraph(text: str, width: int, style: str = "") -> Iterator[str]:
    for line in text.split("\n"):
        for part in _wrapped(line, width - 2):
            yield " " + _lit(part, style)


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(text, room, break_on_hyphens=False) or [""]


def _lit(text: str, style: str = "") -> str:
    """The text in its style, with the options it names in theirs."""
    pieces, end = [], 0
    for found in _OPTION.finditer(text):
        pieces += [_paint(text[end : found.start()], style), _paint(found[0], NAME if found["name"] else SWITCH)]
        end = found.end()
    return "".join([*pieces, _paint(text[end:], style)])


def _paint(text: str, style: str) -> str:
    return f"\x1b[{style}m{text}\x1b[0m" if style and text else text


def _columns(text: str) -> int:
    return len(_CODES.sub("", text))


def _padded(text: str, columns: int) -> str:
    return text + " " * (columns - _columns(text))
