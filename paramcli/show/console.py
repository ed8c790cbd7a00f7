"""Results -> terminal or pipe. With progress.py the only module that imports rich, and only for a terminal.

stdout gets the answer, stderr everything else. Text that comes from files is escaped (text.printable)
and never read as markup; styles are only ever ours.
"""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Literal, TextIO

from ..errors import Known
from ..watch import Watch
from ..wording import in_shell

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    from .progress import Meter

# The side that a column's cells keep to.
Justify = Literal["left", "right"]

# Without a terminal there is no width to respect: a pipe gets whole lines.
PIPE_WIDTH = 10_000
# rich needs a third of a millisecond for a row.
MANY_ROWS = 5_000
# More rows than this are folded, where they are alike, for a person.
SCREENFUL = 40
# A picture has no lines to be whole: in a pipe it is as wide as a narrow terminal.
PIPE_PICTURE = 80
# With one of these set rich may take a pipe for a terminal.
FORCING = ("FORCE_COLOR", "TTY_COMPATIBLE")


class Styled:
    """Text with styles: pieces of (text, style), or plain text."""

    def __init__(self, *pieces: tuple[str, str] | str | Styled):
        self.pieces: list[tuple[str, str]] = []
        for piece in pieces:
            self.pieces += (
                piece.pieces if isinstance(piece, Styled) else [(piece, "") if isinstance(piece, str) else piece]
            )

    def __str__(self) -> str:
        return "".join(text for text, _ in self.pieces)

    def rich(self) -> Text:
        from rich.text import Text

        # The style of a single piece is the whole cell's, its padding too.
        return Text(*self.pieces[0]) if len(self.pieces) == 1 else Text.assemble(*self.pieces)


class Column:
    """A heading and the cells under it. `whole`: in a narrow terminal its cells are not folded."""

    def __init__(self, header: str, justify: Justify, cells: list[Styled | str]):
        self.header, self.justify, self.cells = header, justify, cells
        self.whole = False


class Table:
    """Columns of text; a heading is given alone, or with the side its cells keep to."""

    def __init__(self, *headings: str | tuple[str, Justify]):
        self.columns = [
            Column(*((heading, "left") if isinstance(heading, str) else heading), []) for heading in headings
        ]
        # Blank columns after each column.
        self.air = 2
        # What is to be known of its rows, for a person.
        self.note: str | None = None
        # Has every row with a tolerance its verdict beside it, and a good one?
        self.judged = False

    def add_row(self, *cells: Styled | str) -> None:
        """Columns for which there is no cell are left empty."""
        for number, column in enumerate(self.columns):
            column.cells.append(cells[number] if number < len(cells) else "")

    @property
    def row_count(self) -> int:
        return len(self.columns[0].cells)

    def without(self, headings: Sequence[str]) -> Table:
        """The same with these columns left out."""
        rest = Table()
        rest.columns, rest.air = [column for column in self.columns if column.header not in headings], self.air
        return rest

    def rich(self) -> Drawn:
        from rich.table import Table as Drawn
        from rich.text import Text

        drawn = Drawn(box=None, pad_edge=False, padding=(0, self.air, 0, 0), header_style="bold")
        for column in self.columns:
            drawn.add_column(Text(column.header), justify=column.justify, overflow="fold", no_wrap=column.whole)
        for row in zip(*(column.cells for column in self.columns), strict=True):
            drawn.add_row(*(cell.rich() if isinstance(cell, Styled) else cell for cell in row))
        return drawn


class Stream:
    """stdout or stderr: plain text for a pipe, and for a terminal rich's console."""

    def __init__(self, file: TextIO | None, no_color: bool):
        self.file: TextIO = io.StringIO() if file is None else file  # a stream that is closed takes everything
        self._no_color = no_color
        self._terminal = file is not None and hasattr(file, "isatty") and file.isatty()

    @functools.cached_property
    def console(self) -> Console:
        from rich.console import Console

        width = None if self._terminal else PIPE_WIDTH
        return Console(file=self.file, no_color=self._no_color, highlight=False, markup=False, emoji=False, width=width)

    @property
    def is_terminal(self) -> bool:
        return self.console.is_terminal if self._terminal or any(name in os.environ for name in FORCING) else False

    def print(self, shown: Table | Styled | str) -> None:
        if self.is_terminal and not isinstance(shown, str):
            self.console.print(shown.rich(), highlight=False, markup=False, soft_wrap=isinstance(shown, Styled))
            return
        for line in plain_lines(shown) if isinstance(shown, Table) else (str(shown),):
            self.file.write(line + "\n")


class Screen(Watch):
    """Where the answer and the messages go.

    `speaks`: of the processes of a run the first does; the others have a word only where they fail.
    """

    def __init__(self, quiet: bool = False, *, speaks: bool = True):
        no_color = bool(os.environ.get("NO_COLOR"))
        self.speaks = speaks
        self.quiet = quiet or not speaks
        self.out = Stream(sys.stdout, no_color)
        self.err = Stream(sys.stderr, no_color)

    def answer(self, text: str) -> None:
        """Plain text on stdout, exactly as it is."""
        self.out.file.write(text + "\n")

    def show(self, shown: Table | Styled | str) -> None:
        self._show(shown)
        if isinstance(shown, Table) and shown.note:
            self.note(shown.note)

    def _show(self, shown: Table | Styled | str) -> None:
        if isinstance(shown, Table) and shown.row_count > MANY_ROWS:
            for line in plain_lines(shown):
                self.answer(line)
        elif isinstance(shown, Table) and self.out.is_terminal:
            self.out.print(_fit(shown, self.out.console))
        else:
            self.out.print(shown)

    def folds(self, rows: int) -> bool:
        """Is a table of so many rows more than a person at a terminal wants? A pipe gets them all."""
        return self.out.is_terminal and rows > SCREENFUL

    @property
    def columns(self) -> int:
        """The width of a picture on stdout."""
        return self.out.console.width if self.out.is_terminal else PIPE_PICTURE

    def meter(self, what: str, tensors: int, nbytes: int) -> Meter:
        """A `progress.Meter` on stderr, which draws only there and only for a person."""
        from .progress import Meter

        return Meter(None if self.quiet or not self.err.is_terminal else self.err.console, what, tensors, nbytes)

    def note(self, text: str) -> None:
        """A message for the person at the terminal; -q silences it."""
        if not self.quiet:
            self.err.print(in_shell(text))

    def warn(self, text: str) -> None:
        if self.speaks:
            self.err.print(Styled(("warning: ", "yellow"), in_shell(text)))

    def error(self, message: str, hint: str | None) -> None:
        self.err.print(Styled(("error: ", "bold red"), message))
        if hint:
            self.err.print(f"  {hint}" if isinstance(hint, Known) else f"  try: {hint}")


def _columns(text: str) -> int:
    """How wide a terminal shows it; nearly every name is ASCII."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def plain_lines(table: Table) -> Iterator[str]:
    """The table for a pipe: columns as wide as their content, no line ends in padding."""
    columns = [[str(cell).split("\n") for cell in (column.header, *column.cells)] for column in table.columns]
    widths = [max(_columns(line) for cell in column for line in cell) for column in columns]
    right = [column.justify == "right" for column in table.columns]
    for row in zip(*columns, strict=True):
        for parts in zip_longest(*row, fillvalue=""):
            padding = [" " * (width - _columns(part)) for width, part in zip(widths, parts, strict=True)]
            yield "  ".join(
                pad + part if at_right else part + pad
                for part, pad, at_right in zip(parts, padding, right, strict=True)
            ).rstrip()


def _fit(table: Table, console: Console) -> Table:
    """In a terminal too narrow for the table: less air, then no column that says nothing new, and words are folded
    last.

    Without news are a column of dashes, and the tolerance where a verdict stands beside it.
    """

    def fits() -> bool:
        return table.rich().__rich_measure__(console, console.options.update(width=PIPE_WIDTH)).maximum <= console.width

    if fits():
        return table
    mute = [column.header for column in table.columns if column.header and set(map(str, column.cells)) <= {"-", ""}]
    for spare in (mute, ["tolerance"] if table.judged else []):
        if not fits():
            table = table.without(spare)
            table.air = 1
    for column in table.columns:
        column.whole = column.justify == "right" or column.header in ("shape", "dtype")
    names = table.columns[0]
    if max((_columns(str(cell)) for cell in names.cells), default=0) <= console.width // 2:
        names.whole = True
    return table
