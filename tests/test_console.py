"""Tables in a terminal."""

import io
import re

import pytest

from paramcli.console import Screen, _console, edit_table
from paramcli.surgery.plan import Outcome


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
    screen.out = _console(stream, True)
    outcome = Outcome(name, "register", "skew,cayley", "blocks=4", (512, 128), "float32", (name,), (name,), 0.84, 6.4e-06, 9.2e-05)
    screen.show(edit_table([outcome]))
    lines = [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue()).splitlines()]
    assert max(map(len, lines)) <= 80 and "(blocks=4)" in "\n".join(lines) and "6.4e-06" in lines[1]
    first = lines[0].index("chain")
    assert "".join(line[:first].strip() for line in lines[1:]) == name
    assert len(name) > 40 or name in lines[1]
