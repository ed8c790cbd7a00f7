"""docs/security.md: twenty-one promises, each with tests that exist; and what the source never contains."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS = re.findall(r"^\| (\d+) \| (.*) \| (.*) \|$", (ROOT / "docs/security.md").read_text(), re.M)
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/security.md").read_text())


def test_there_are_twenty_one_promises_and_each_names_a_test():
    """Numbered from 1 to 21, none without its proof."""
    assert [int(number) for number, _, _ in ROWS] == list(range(1, 22))
    assert all(re.search(r"`tests/[\w/]+\.py::test_\w+`", proof) for _, _, proof in ROWS)


@pytest.mark.parametrize("file, test", NAMED, ids=lambda value: str(value).rsplit("/", 1)[-1])
def test_each_named_test_exists(file, test):
    """The file defines the function, and no marker takes it out of the usual run."""
    functions = {
        node.name: node for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)
    }
    assert test in functions
    assert "slow" not in ast.unparse(
        ast.Module(functions[test].decorator_list and [ast.Expr(d) for d in functions[test].decorator_list], [])
    )


def runs_a_name(called: str) -> bool:
    """Is this the call of a function that runs code, or objects, that a text or a file names?"""
    owner, _, function = called.rpartition(".")
    return (
        (not owner and function in ("eval", "exec", "compile", "__import__"))
        or function in ("import_module", "exec_module", "Unpickler")
        or (function in ("load", "loads") and owner.partition(".")[0] in ("torch", "pickle", "numpy", "np", "point"))
    )


# The package's own modules, and the plug-ins that the user installed or named.
ALLOWED = {
    "import_module:paramcli/__init__.py",
    "import_module:paramcli/cli/group.py",
    "import_module:paramcli/registry.py",
    "point.load:paramcli/plugins.py",
    "found.loader.exec_module:paramcli/plugins.py",
}


def test_the_source_never_unpickles_or_evaluates():
    """No torch.load, pickle, eval, exec or import by name, but for the registry's own classes and plug-ins that the
    user installed.
    """
    found = []
    for path in sorted((ROOT / "paramcli").rglob("*.py")):
        tree, where = ast.parse(path.read_text()), str(path.relative_to(ROOT))
        for node in ast.walk(tree):
            # A relative import is of the package's own: its room for pickles only reads what they say.
            if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                if any(
                    name.split(".")[0] in ("pickle", "_pickle", "marshal", "dill", "joblib", "shelve") for name in names
                ):
                    found.append(f"{where}: {ast.unparse(node)}")
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if runs_a_name(called) and f"{called}:{where}" not in ALLOWED:
                    found.append(f"{where}: {called}")
            if isinstance(node, ast.keyword) and node.arg == "weights_only":
                assert ast.unparse(node.value) == "True", where
    assert found == []
