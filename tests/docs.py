"""The documents as programs: every command and Python block in them runs, and what it prints is what they show.

    python -m tests.docs            does every document show what its commands print?
    python -m tests.docs --write    write what they print now

A document plays from top to bottom in one folder that holds a copy of `fixtures/`. Its blocks:

    ```console     lines with `$ ` are run, the lines below each are what it prints on a terminal of 100 columns
    ```sh          after <!-- NAME -->: one command line; what it prints stands in the block after <!-- NAME-output -->
    ```python      is run; all blocks of a document share their names
    ```yaml        a workflow for CI: its `- run: paramcli ...` lines are run, and must succeed
    <!-- file: NAME -->          before a block of any language: it is written to that file, and not run by itself
    <!-- setup: NAME -->         files that the reader is taken to have, made by that function of tests/doc_files.py
    | `paramcli ...` |   a cell of a table that is a command: it is run in a fresh folder, and must succeed
    <!-- generated: NAME -->     up to <!-- /generated -->: a table made from the code

`...` on a line of its own in an output stands for any lines. A block of another language (`text`) shows what nothing
prints.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import doc_files, doc_tables
from .terminal import ROOT, plain, run_line

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- (?P<name>[\w-]+)(?:: (?P<value>.+?))? -->")
# Commands of a shown line that the reader needs and the test does not.
INSTALLS = re.compile(r"^pip install [^&]*&& ")


@dataclass
class Block:
    """A fenced block: its language, the mark on the line before it, and where its lines stand in the document."""

    language: str
    mark: str
    value: str
    start: int
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines) + "\n"


def blocks(lines: list[str]) -> Iterator[Block]:
    open_block = None
    for number, line in enumerate(lines):
        if open_block is not None:
            if line == "```":
                yield open_block
                open_block = None
            else:
                open_block.lines.append(line)
        elif line.startswith("```"):
            mark = MARK.fullmatch(lines[number - 1]) if number else None
            open_block = Block(
                line[3:], mark["name"] if mark else "", (mark["value"] or "") if mark else "", number + 1
            )
    if open_block is not None:
        raise ValueError(f"line {open_block.start}: a block that does not end")


def play(document: Path) -> str:
    """The document as it should be: outputs that differ from what is shown are replaced."""
    lines = document.read_text().splitlines()
    with _work(lines) as folder:
        changes = list(_generated(lines)) + list(_played(lines, folder, document))
    for command in re.findall(r"\| `(paramcli .*?)` +(?=\|)", "\n".join(lines)):
        with _work(lines) as folder:
            code, printed = run_line(command, folder)
        if code:
            raise AssertionError(f"{document.name}: {command}: exit {code}\n{printed}")
    for start, end, new in sorted(changes, key=lambda change: change[0], reverse=True):
        lines[start:end] = new
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def _work(lines: list[str]) -> Iterator[Path]:
    """A folder with the fixtures and what the document's setup marks ask for."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "work"
        folder.mkdir()
        shutil.copytree(ROOT / "fixtures", folder / "fixtures")
        (folder / "fixtures" / "make.py").unlink()
        for line in lines:
            if (mark := MARK.fullmatch(line)) and mark["name"] == "setup":
                getattr(doc_files, mark["value"])(folder)
        yield folder


def _generated(lines: list[str]) -> Iterator[tuple[int, int, list[str]]]:
    for number, line in enumerate(lines):
        mark = MARK.fullmatch(line)
        if mark and mark["name"] == "generated":
            yield (
                number + 1,
                lines.index("<!-- /generated -->", number),
                getattr(doc_tables, mark["value"])().splitlines(),
            )


def _played(lines: list[str], folder: Path, document: Path) -> Iterator[tuple[int, int, list[str]]]:
    """(start, end, lines) for each output, in the order of the document."""
    names, code, due = {"__name__": "__main__"}, 0, {}
    for block in blocks(lines):
        where = f"{document.name} line {block.start}"
        if block.mark == "file":
            (folder / block.value).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.value).write_text(block.text)
        elif block.language == "console":
            for at, command, shown in _commands(block):
                code, printed = run_line(command, folder, before=code)
                yield at, at + len(shown), replace(shown, _tidy(printed, folder))
        elif block.language == "python":
            _python(block, names, folder, where)
        elif block.language == "yaml":
            for command in re.findall(r"- run: (paramcli .*)", block.text):
                code, printed = run_line(command, folder)
                if code:
                    raise AssertionError(f"{where}: {command}: exit {code}\n{printed}")
        elif block.language == "sh" and block.mark != "tests":
            _, due[block.mark] = run_line(_elsewhere(INSTALLS.sub("", block.lines[0]), folder), folder)
        elif block.mark.removesuffix("-output") in due:
            yield (
                block.start,
                block.start + len(block.lines),
                replace(block.lines, _tidy(due.pop(block.mark.removesuffix("-output")), folder)),
            )
        elif block.language not in ("text", "sh"):
            raise AssertionError(f"{where}: a block of '{block.language}' that nothing checks")


def _commands(block: Block) -> Iterator[tuple[int, str, list[str]]]:
    """(line where its output begins, command, shown output); a backslash carries a command on."""
    number, lines = 0, block.lines
    while number < len(lines):
        if not lines[number].startswith("$ "):
            raise AssertionError(f"line {block.start + number}: output of no command")
        command = lines[number][2:]
        while command.endswith("\\"):
            number += 1
            command = command[:-1] + lines[number]
        number += 1
        end = next((i for i in range(number, len(lines)) if lines[i].startswith("$ ")), len(lines))
        yield block.start + number, command, lines[number:end]
        number = end


def _python(block: Block, names: dict, folder: Path, where: str) -> None:
    """Run it in the folder; its asserts are the proof, and what it prints is not shown."""
    with _chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        exec(compile("\n" * (block.start - 1) + block.text, where, "exec"), names)


def _elsewhere(command: str, folder: Path) -> str:
    """/tmp/ of a document is a folder of the test."""
    (folder.parent / "tmp").mkdir(exist_ok=True)
    return command.replace("/tmp/", f"{folder.parent}/tmp/")


def _tidy(printed: str, folder: Path) -> list[str]:
    lines = plain(printed).replace(f"{folder.parent}/tmp/", "/tmp/").replace(f"{folder}/", "").split("\n")
    while lines and not lines[-1]:
        lines.pop()
    return lines


def replace(shown: list[str], printed: list[str]) -> list[str]:
    """The shown lines where they say what was printed, else the printed ones, elided at the same place.

    Numbers of the size of rounding errors differ between processors and are compared by their form.
    """
    if "..." in shown:
        cut = shown.index("...")
        tail = len(shown) - cut - 1
        if len(printed) >= cut + tail:
            shortened = [*printed[:cut], "...", *(printed[-tail:] if tail else [])]
            return shown if steady(shown) == steady(shortened) else shortened
    return shown if steady(shown) == steady(printed) else printed


def steady(lines: list[str]) -> str:
    """The text without what another processor may compute otherwise: rounding errors, and digits past the fourth."""
    text = re.sub(r"(?<![\w.])\d(\.\d+)?e-(0[5-9]|[1-9]\d)(?!\d)", "#", "\n".join(lines))
    text = re.sub(r"\d+\.\d{6,}", lambda number: f"{float(number[0]):.4g}", text)
    return re.sub(r" {2,}", "  ", text)


@contextlib.contextmanager
def _chdir(folder: Path) -> Iterator[None]:
    """contextlib.chdir came with Python 3.11."""
    where = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(where)


def main(arguments: list[str]) -> int:
    import torch

    from . import screens

    torch.set_num_threads(1)
    stale = []
    wanted = {path: play(path) for path in DOCUMENTS} | screens.screens()
    for path, text in wanted.items():
        if not path.is_file() or path.read_text() != text:
            stale.append(path)
            if "--write" in arguments:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    for path in sorted(set((ROOT / "docs" / "screens").rglob("*.txt")) - set(wanted)):
        stale.append(path)
        if "--write" in arguments:
            path.unlink()
    for path in stale:
        print("wrote" if "--write" in arguments else "stale:", path.relative_to(ROOT))
    return 1 if stale and "--write" not in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
