"""From words to values: what the annotations of a command say, with any Typer and without pydantic."""

import os
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from paramcli.cli.app import app
from paramcli.cli.group import Command, built
from paramcli.cli.usage import COMMANDS, hoisted
from paramcli.cli.values import WANTED, kinds


@pytest.fixture(autouse=True)
def without_pydantic(monkeypatch):
    """An import of it fails here, wherever it stands."""
    monkeypatch.setitem(sys.modules, "pydantic", None)


@pytest.mark.parametrize("name", [None, *COMMANDS])
def test_all_parameters_are_of_a_kind_that_is_read_here(name):
    """An option of another type would be read by nothing."""
    command = built(name) if name else typer.main.get_command(app)
    known = kinds(command)
    own = [parameter.name for parameter in command.params if parameter.expose_value]
    assert own and {known[parameter] for parameter in own} <= {*WANTED, bool}


def test_words_become_what_the_annotations_say(monkeypatch):
    """Paths, whole numbers, numbers, lists and flags; what is not given is the default, and a list then None.

    What a path leads to is not looked at: a file that may not be read is an input that is refused, and no usage error.
    """
    monkeypatch.setattr(os, "access", lambda *arguments: False)
    seen = {}

    def command(
        path: Annotated[Path, typer.Argument(metavar="PATH")],
        texts: Annotated[list[str] | None, typer.Option("--text", metavar="T")] = None,
        paths: Annotated[list[Path] | None, typer.Option("--path", metavar="P")] = None,
        whole: Annotated[int, typer.Option("--whole", metavar="N")] = 7,
        number: Annotated[float | None, typer.Option("--number", metavar="X")] = None,
        flag: Annotated[bool, typer.Option("--flag")] = False,
        way: Annotated[bool | None, typer.Option("--this/--that")] = None,
    ):
        seen.update(locals())

    alone = typer.Typer(add_completion=False)
    alone.command(cls=Command)(command)

    def given(*words: str) -> dict:
        seen.clear()
        typer.main.get_command(alone).main(args=list(words), standalone_mode=False)
        return {name: value for name, value in seen.items() if name != "seen"}

    plain = {"path": Path("c.pt"), "texts": None, "paths": None, "whole": 7, "number": None, "flag": False, "way": None}
    assert given("c.pt") == plain and given(__file__) == plain | {"path": Path(__file__)}
    words = ["c.pt", "--text", "a", "--text=b", "--path", "p", "--whole", " 3", "--number", "1e-3", "--flag", "--that"]
    got = given(*words)
    assert got == {
        "path": Path("c.pt"),
        "texts": ["a", "b"],
        "paths": [Path("p")],
        "whole": 3,
        "number": 1e-3,
        "flag": True,
        "way": False,
    }
    assert type(got["whole"]) is int and type(got["flag"]) is bool


@pytest.mark.parametrize(
    ("typed", "parsed"),
    [
        ("registry skew --plugin p.py", "--plugin p.py registry skew"),
        ("registry --plugin=p.py --debug skew --plugin q.py:X", "--plugin=p.py --debug --plugin q.py:X registry skew"),
        ("inspect c.pt --no-color -t x", "--no-color inspect c.pt -t x"),
        ("inspect --debug -- --plugin --debug", "--debug inspect -- --plugin --debug"),
        ("registry skew --plugin", "--plugin"),
    ],
)
def test_what_holds_for_all_commands_may_stand_anywhere(typed, parsed):
    """In front is where the parser wants it; behind `--` are names; a --plugin without its file is left to
    be missed.
    """
    assert hoisted(typed.split()) == parsed.split()
