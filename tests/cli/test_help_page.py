"""The pages that --help prints: typer's own help is the oracle for what is said, the terminal for how."""

import io
import re
import subprocess
import sys
from contextlib import redirect_stdout

import pytest
import typer
from rich.markup import escape
from typer import rich_utils

from paramcli.cli.app import app
from paramcli.cli.group import built
from paramcli.cli.usage import COMMANDS, PANELS

CODES = re.compile(r"\x1b\[[\d;]*m")


def context_of(name):
    group = typer.main.get_command(app)
    top = typer.Context(group, info_name="paramcli", **group.context_settings)
    return top if name is None else typer.Context(built(name), info_name=name, parent=top)


def words(page: str) -> list[str]:
    return re.sub("[─│╭╮╰╯\b]", " ", page).split()


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_a_page_says_what_typer_would_say(name, monkeypatch):
    """Word for word and in the same order: usage, texts, panels, options with their kinds and defaults, commands,
    epilog.
    """
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(rich_utils, "FORCE_TERMINAL", False)
    context, theirs = context_of(name), io.StringIO()
    if name is None:
        for title, commands in PANELS.items():
            for command in commands:
                context.command.commands[command].rich_help_panel = title
    ours = context.get_help()
    for parameter in context.command.params:
        monkeypatch.setattr(parameter, "help", escape(parameter.help))  # typer reads it as markup
    with redirect_stdout(theirs):
        rich_utils.rich_format_help(obj=context.command, ctx=context, markup_mode="rich")
    # From 0.29 on typer names the kind of a flag too, which has no value.
    assert words(CODES.sub("", ours)) == [word for word in words(theirs.getvalue()) if word != "<bool>"]


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_no_line_is_wider_than_the_terminal_and_boxes_are_straight(name, columns, monkeypatch):
    """Every line of a panel ends at the same column, and every character is one column wide."""
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = CODES.sub("", context_of(name).get_help()).split("\n")
    assert all(character.isascii() or character in "─│╭╮╰╯" for line in lines for character in line)
    assert {len(line) for line in lines if line[:1] in ("╭", "│", "╰") and line} == {columns}
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"GITHUB_ACTIONS": "true"}, False),
    ],
)
def test_a_pipe_has_colour_only_where_it_is_forced(environment, coloured, shell):
    """NO_COLOR is stronger; the name of a CI machine is no terminal."""
    environment = {"NO_COLOR": "", "FORCE_COLOR": "", **environment}
    for arguments in (["--help"], ["add", "-h"]):
        out = shell(*arguments, **environment).out
        assert ("\x1b[" in out) is coloured and "--help" in CODES.sub("", out)


@pytest.mark.parametrize(
    ("environment", "arguments", "coloured"),
    [
        ({}, ["add", "--help"], True),
        ({"NO_COLOR": "1"}, ["add", "--help"], False),
        ({"TERM": "dumb"}, ["add", "--help"], False),
        ({}, ["--help", "--no-color"], False),
        ({}, ["add", "--help", "--no-color"], False),
    ],
)
def test_a_terminal_has_colour_unless_it_wants_none(environment, arguments, coloured):
    """NO_COLOR, --no-color wherever it stands, and a dumb terminal are honoured."""
    code = (
        "import os, pty, sys\n"
        f"os.environ.pop('NO_COLOR', None); os.environ.update("
        f"{{'TERM': 'xterm', 'COLUMNS': '80', **{environment!r}}})\n"
        f"pty.spawn([sys.executable, '-m', 'paramcli', *{arguments!r}])"
    )
    out = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    assert ("\x1b[" in out) is coloured and "--help" in CODES.sub("", out)
