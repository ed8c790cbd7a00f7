"""Tables in pipes: what rich would print, without its cost."""

from io import StringIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from paramcli.console import PIPE_WIDTH, plain_lines


def test_a_table_for_a_pipe_is_what_rich_prints():
    """Justified columns, wide characters, cells of several lines, empty cells and styles: the same text."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(Text("name"))
    table.add_column("size", justify="right")
    table.add_column("what")
    table.add_row(Text("層.weight", "bold"), "1.0 KiB", "one\ntwo")
    table.add_row("", "12", Text.assemble("holds", (": 3 of 4", "red")))
    table.add_row("a.very.long.name.of.a.tensor", "", "")
    out = StringIO()
    Console(file=out, width=PIPE_WIDTH, markup=False, emoji=False, highlight=False).print(table, crop=False)
    assert list(plain_lines(table)) == [line.rstrip() for line in out.getvalue().splitlines()]
