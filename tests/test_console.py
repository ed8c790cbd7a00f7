"""Tables in a terminal; in a pipe, as rich would draw them without a limit of width, and quick."""

import io
import re

import pytest
from rich.console import Console

from paramcli.show.console import Screen, Stream, Styled, Table, plain_lines
from paramcli.show.tables import edit_table
from paramcli.surgery.plan import Outcome

from .pace import calls


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("name", ["lstm_cell.weight_hh", "encoder.layers.0.attention.self.query_projection.weight"])
def test_a_narrow_terminal_loses_nothing(name, monkeypatch):
    """80 columns hold the table: a usual name stays whole, a long one is folded, and no character is cut."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    screen, stream = Screen(), Terminal()
    screen.out = Stream(stream, True)
    outcome = Outcome(
        name, "register", "skew,cayley", "blocks=4", (512, 128), "float32", (name,), (name,), 0.84, 6.4e-06, 9.2e-05
    )
    screen.show(edit_table([outcome]))
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()]
    assert max(map(len, lines)) <= 80 and "(blocks=4)" in "\n".join(lines) and "6.4e-06" in lines[1]
    first = lines[0].index("chain")
    assert "".join(line[:first].strip() for line in lines[1:]) == name
    assert len(name) > 40 or name in lines[1]


def narrow(table, monkeypatch) -> list[str]:
    """The lines of the table on a terminal of 80 columns."""
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    screen, stream = Screen(), Terminal()
    screen.out = Stream(stream, True)
    screen.show(table)
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()]


def edited(name, chain, view, *measured):
    return Outcome(name, "bake", chain, view, (512, 256, 16), "float32", (name,), (name,), 0.0, *measured)


def test_a_narrow_terminal_drops_columns_of_dashes(monkeypatch):
    """Folded weight norm has no residual: without its two empty columns each tensor is one line."""
    lines = narrow(
        edit_table([edited(f"resblocks.0.convs1.{n}.weight", "weight_norm:dim=0", None) for n in range(3)]), monkeypatch
    )
    assert len(lines) == 4 and "residual" not in lines[0] and "moved" in lines[0]
    assert all("weight_norm:dim=0" in line and "512x256x16" in line for line in lines[1:])


def test_a_narrow_terminal_leaves_the_tolerance_to_the_verdict(monkeypatch):
    """What holds needs no tolerance beside it; what fails keeps it, and the numbers are whole either way."""
    for residual, judged in ((1.6e-06, "holds"), (0.25, "FAILS")):
        lines = narrow(
            edit_table([edited("rnn.weight_hh_l0_reverse", "orthogonal", "blocks=4", residual, 4.6e-05)]), monkeypatch
        )
        assert ("tolerance" in lines[0], "4.6e-05" in lines[1]) == (judged == "FAILS",) * 2
        assert judged in lines[1] and "512x256x16" in lines[1] and max(map(len, lines)) <= 80


def drawn(table) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=10_000, markup=False, highlight=False, emoji=False).print(table.rich(), crop=False)
    return [line.rstrip() for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    "rows", [[], [("a", "1"), ("層層", "22")], [(Styled(("[red]x", "bold")), "a\nbb"), ("y\n\nz", "")]]
)
def test_plain_lines_are_rich_s(rows):
    """Wide characters, markup in data, cells of several lines and numbers on the right come out alike."""
    table = Table("tensor", ("bytes", "right"), "")
    for row in rows:
        table.add_row(*row)
    assert list(plain_lines(table)) == drawn(table)


def test_a_hundred_thousand_rows_are_quick():
    """A listing in a pipe costs a handful of calls for each of its cells, however many rows there are."""
    table = Table("tensor", "form", "chain", "shape", "dtype", ("bytes", "right"))
    rows = [(f"layer.{n}.weight", "plain", "", "4x4", "float32", "64 B") for n in range(100_000)]
    for row in rows:
        table.add_row(*row)
    lines = []
    assert calls(lambda: lines.extend(plain_lines(table))) < 120 * len(rows)
    assert len(lines) == 100_001
