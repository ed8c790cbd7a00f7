"""Tables in a pipe are what rich would draw without a limit of width, and quick."""

import io
import time

import pytest
from rich.console import Console
from rich.text import Text

from paramcli.console import _table, plain_lines


def drawn(table) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=10_000, markup=False, highlight=False, emoji=False).print(table, crop=False)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("rows", [[], [("a", "1"), ("層層", "22")], [(Text("[red]x", "bold"), "a\nbb"), ("y\n\nz", "")]])
def test_plain_lines_are_rich_s(rows):
    """Wide characters, markup in data, cells of several lines and numbers on the right come out alike."""
    table = _table("tensor", ("bytes", "right"), "")
    for row in rows:
        table.add_row(*row)
    assert list(plain_lines(table)) == drawn(table)


def test_a_hundred_thousand_rows_are_quick():
    """A listing in a pipe costs microseconds a row."""
    table = _table("tensor", "form", "chain", "shape", "dtype", ("bytes", "right"))
    for n in range(100_000):
        table.add_row(Text(f"layer.{n}.weight"), "plain", Text(""), "4x4", "float32", "64 B")
    start = time.process_time()
    assert sum(1 for _ in plain_lines(table)) == 100_001
    assert time.process_time() - start < 8
