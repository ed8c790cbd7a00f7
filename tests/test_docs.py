"""README and docs: every command prints what is shown, links resolve, screens and tables are current.

After a change that is meant: python -m tests.docs --write
"""

import re
import shlex
import subprocess

import pytest
import typer

from paramcli.cli.app import app
from paramcli.cli.group import built
from paramcli.cli.usage import COMMANDS

from . import doc_tables, docs, screens
from .terminal import ROOT, run_line

PAGES = [*docs.DOCUMENTS, *sorted((ROOT / "docs").glob("*/*.md")), ROOT / "fixtures" / "README.md"]


@pytest.mark.parametrize("document", docs.DOCUMENTS, ids=lambda path: path.name)
def test_a_document_shows_what_its_commands_print(document):
    """Played from top to bottom nothing changes in it."""
    assert docs.play(document) == document.read_text()


@pytest.mark.parametrize("name", screens.SESSIONS)
def test_the_screens_are_what_a_terminal_shows(name):
    """At both widths, with and without colour, and in a pipe."""
    for mode in screens.MODES:
        kept = screens.FOLDER / mode / f"{name}.txt"
        assert docs.steady([screens.screen(name, mode)]) == docs.steady([kept.read_text()]), (
            f"{mode}: python -m tests.docs --write"
        )


def test_every_command_has_its_screens_and_no_other_file_is_there():
    """Sessions are the commands, and the folder holds what they wrote."""
    assert set(screens.SESSIONS) == {"paramcli", *COMMANDS}
    wanted = {screens.FOLDER / mode / f"{name}.txt" for mode in screens.MODES for name in screens.SESSIONS}
    assert set(screens.FOLDER.rglob("*.txt")) == wanted


@pytest.mark.parametrize("mode", screens.MODES)
def test_screens_fit_their_width(mode):
    """No line of a table or of the help is wider than the terminal; without colour there are no control sequences."""
    columns, colour = screens.MODES[mode]
    for path in (screens.FOLDER / mode).glob("*.txt"):
        text = path.read_text()
        assert "\x1b" not in text and (colour or "\\e[" not in text)
        framed = [re.sub(r"\\e\[[\d;]*m", "", line) for line in text.splitlines() if re.search("[│╭╰⠀-⣿]", line)]
        assert columns is None or max(map(len, framed)) <= columns


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_anchors_resolve(page):
    """Each relative link names a file of the repository, and its anchor a heading in it."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists() and ROOT in [there, *there.parents], target
        assert not anchor or anchor in anchors(there.read_text()), target


def test_all_guides_are_reached_from_the_readme():
    """Each page of docs/ has its link."""
    text = (ROOT / "README.md").read_text()
    assert all(f"](docs/{page.name})" in text for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("document", docs.DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_the_prose_parse(document):
    """`paramcli X --option` between backticks names a command and options that exist."""
    group = typer.main.get_command(app)
    for command in re.findall(r"`paramcli ([^`\n]+)`", document.read_text()):
        words = shlex.split(command)
        name = next((word for word in words if word in COMMANDS), None)
        assert name or words[0].startswith("-"), command
        parsers = [group] if name is None else [group, built(name)]
        known = {option for parser in parsers for p in parser.params for option in (*p.opts, *p.secondary_opts)} | {
            "-h",
            "--help",
        }
        assert all(word in known for word in words if word.startswith("-")), command


def test_each_family_is_described():
    """A family that is new in the table has its line, and no line is left of one that went."""
    from paramcli.registry import PARAMETRIZATIONS

    assert {entry.family for entry in PARAMETRIZATIONS.values()} - {"example"} == set(doc_tables.FAMILIES)


def test_ci_finds_the_readmes_lines():
    """What .ci/run cuts out of the README is a whole command that begins with the installation."""
    script = (ROOT / ".ci" / "run").read_text()
    function = script[script.index("line() {") : script.index("tests=$")]
    for mark, end in (
        ("tests", "python -m pytest -n 2 --dist worksteal"),
        ("main-job", "paramcli verify /tmp/vad.baked.safetensors"),
    ):
        found = subprocess.run(
            ["bash", "-c", f"{function}\nline {mark}"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert (
            found.startswith("pip install torch==2.13.0 ") and found.rstrip().endswith(end) and found.count("\n") == 1
        )


def test_a_document_that_tells_another_story_is_mended(tmp_path):
    """A wrong output is replaced, an elision keeps its place, a rounding error of another machine is left alone."""
    page = tmp_path / "page.md"
    shown = (
        "```console\n$ echo one; echo two; echo three\none\n...\nthree\n"
        "$ echo 1.5e-07\n9.9e-08\n$ echo right\nwrong\n$ false\n$ echo $?\n0\n```\n"
    )
    page.write_text(shown)
    assert docs.play(page) == shown.replace("wrong", "right").replace("$?\n0", "$?\n1")
    page.write_text("```console\n$ echo 0.5\n0.4\n```\n")
    assert "0.5\n```" in docs.play(page)


def test_unchecked_blocks_are_refused(tmp_path):
    """A block of a language that nothing runs is an error; so is a Python block that raises."""
    for text, error in (
        ("```perl\nprint 1\n```\n", AssertionError),
        ("```python\nassert False\n```\n", AssertionError),
        ("```text\n", ValueError),
    ):
        page = tmp_path / "page.md"
        page.write_text(text)
        with pytest.raises(error):
            docs.play(page)


def test_a_terminal_is_a_terminal(tmp_path):
    """On the stage a program sees a terminal of that width on all three streams, and a pipe where none is asked for."""
    program = (
        "import os, sys\n"
        "print([os.isatty(i) for i in range(3)], sys.stdout.isatty() and os.get_terminal_size(1).columns)\n"
    )
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "p.py").write_text(program)
    assert run_line("python p.py", tmp_path / "work", 87)[1] == "[True, True, True] 87\n"
    assert run_line("python p.py | cat", tmp_path / "work", 87)[1] == "[True, False, True] False\n"
    assert run_line("python p.py", tmp_path / "work", None)[1] == "[False, False, False] False\n"
