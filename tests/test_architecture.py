"""The picture in docs/architecture.md holds: imports go down, in no circle, and files and functions stay readable."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "paramcli").rglob("*.py"))

# From the bottom to the top. A module may import what stands in its own line or below; the longest name counts.
FLOORS = (
    ("", "errors", "text", "dtypes", "allocator", "watch"),
    ("spec", "view"),
    ("checkpoint", "maths"),
    ("ranks", "devices", "evidence"),
    ("catalogue", "registry", "plugins"),
    ("chain",),
    ("spelling",),
    ("fitting",),
    ("answers",),
    ("surgery",),
    ("recipe", "live", "plugin"),
    ("show",),
    ("api",),
    ("cli", "__main__"),
)
# File or function -> why it is longer than the rest.
LONG_FILES = {
    "checkpoint/pickle/pickle_data.py": "the machine and the few calls it may make are one thing to read for safety",
}
LONG_FUNCTIONS: dict[str, str] = {}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 450, 60


def name_of(path: Path) -> str:
    """checkpoint/read/open.py -> checkpoint.read.open; a package by its own name."""
    parts = path.relative_to(ROOT / "paramcli").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in FILES}


def floor(name: str) -> int:
    heights = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    parts = name.split(".")
    return next(heights[room] for n in range(len(parts), -1, -1) if (room := ".".join(parts[:n])) in heights)


def imports(path: Path) -> set[str]:
    """The modules of this package that a file imports, anywhere in it, for types too."""
    here = name_of(path).split(".")
    package = [part for part in here if part] if path.name == "__init__.py" else here[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            module = ".".join([*base, *((node.module or "").split(".") if node.module else [])])
            for alias in node.names:
                inner = f"{module}.{alias.name}" if module else alias.name
                found.add(inner if inner in NAMES else module)
    return found - {name_of(path)}


GRAPH = {name_of(path): imports(path) for path in FILES if name_of(path)}


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_go_down(name):
    """No file knows one that stands above it. (The package's own face names everything, and is asked for
    its version.)
    """
    up = {other for other in GRAPH[name] if floor(other) > floor(name)}
    assert not up, f"{name} imports {', '.join(sorted(up))}"


def test_no_circle():
    """Of any two files at most one needs the other, however long the way."""
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name in done:
            return
        for other in sorted(GRAPH.get(name, ())):
            visit(other, (*way, name))
        done.add(name)

    for name in sorted(GRAPH):
        visit(name, ())


def test_files_can_be_read_at_a_sitting():
    """No file above 450 lines without a reason beside it, and none that needs its reason no more."""
    lengths = {str(path.relative_to(ROOT / "paramcli")): len(path.read_text().splitlines()) for path in FILES}
    assert {name for name, lines in lengths.items() if lines > MOST_LINES} == set(LONG_FILES)


def test_functions_can_be_read_at_a_glance():
    """No function above 60 lines of its own without a reason beside it; declared options are no lines of work."""
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                if lines > MOST_LINES_OF_A_FUNCTION:
                    long[f"{name_of(path)}:{node.name}"] = lines
    assert set(long) == set(LONG_FUNCTIONS), long
