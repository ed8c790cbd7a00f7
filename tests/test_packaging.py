"""The package as others install it."""

import ast
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import paramcli

ROOT = Path(__file__).resolve().parent.parent


def test_importing_the_package_warns_of_nothing_and_is_cheap():
    """With every warning an error, and without torch or rich."""
    code = "import sys, paramcli; assert not {'torch', 'rich', 'typer'} & set(sys.modules), sys.modules"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr


@pytest.mark.parametrize(
    "path", sorted((ROOT / "paramcli").rglob("*.py")), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_every_file_is_python_3_10(path):
    """No syntax that came later: the oldest version the package says it runs on can parse it."""
    ast.parse(path.read_text(), feature_version=(3, 10))


def test_any_typer_from_the_oldest_on_will_do():
    """No dependency has an upper bound, and the tests run with versions that are allowed."""
    project = (ROOT / "pyproject.toml").read_text()
    needed = re.findall(
        r'^  "(\w+)>=([\d.]+)(.*)",$', project[project.index("dependencies = [") :].split("\n]\n")[0], re.M
    )
    assert {"torch", "typer", "rich", "safetensors"} <= {name for name, *_ in needed}
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for name, oldest, rest in needed:
        assert not re.search("[<~=]", rest.partition(";")[0]), name
        assert name not in pinned or [*map(int, pinned[name].split("."))] >= [*map(int, oldest.split("."))]


def test_ci_runs_the_command_line_with_the_oldest_typer():
    """The version that .ci/run cuts out of pyproject.toml is the one there, and the tests that it names exist."""
    script = (ROOT / ".ci" / "run").read_text()
    cut = re.search(r"oldest=\$\((sed .*)\)$", script, re.M)[1]
    oldest = subprocess.run(cut, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert oldest and f'"typer>={oldest}"' in (ROOT / "pyproject.toml").read_text()
    for file, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", script):
        assert f"def {name or 'test_'}" in (ROOT / file).read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "paramcli" / "cli").glob("*.py")), ids=lambda path: path.name)
def test_of_the_parser_only_what_is_public_is_used(path):
    """No module and no attribute with an underscore in front, which the next version may not have; where it only has
    types to give, nothing of it is there when the command runs.
    """
    tree = ast.parse(path.read_text())
    for block in [node for node in tree.body if isinstance(node, ast.If)]:
        if isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            tree.body.remove(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any("._" in name.name or name.name == "click" for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            assert not re.search(
                r"\b_[a-z]|^click\b",
                f"{node.module} {' '.join(name.name for name in node.names)}".replace("__future__", ""),
            )
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            # `os._exit` is documented, and as public as a name gets.
            assert node.attr == "_exit" or not re.match("_[a-z]", node.attr), node.attr


@pytest.mark.slow
def test_a_wheel_holds_what_is_needed_and_runs_by_itself(tmp_path):
    """pip wheel, then the installed files alone: py.typed, licence, entry point, version, and a command that works."""
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "-q", "-w", str(tmp_path)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"paramcli-{paramcli.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
        points = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
        archive.extractall(tmp_path / "site")
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "paramcli").rglob("*.py")}
    assert (
        modules <= set(names)
        and "paramcli/py.typed" in names
        and not any(n.startswith(("tests/", "fixtures/")) for n in names)
    )
    assert "License-Expression: Apache-2.0" in metadata and re.search(
        r"Requires-Dist: tomli.*python_version < \"3.11\"", metadata
    )
    assert "paramcli = paramcli.__main__:main" in points
    done = subprocess.run(
        [sys.executable, "-m", "paramcli", "registry"],
        capture_output=True,
        text=True,
        cwd=tmp_path / "site",
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
    )
    assert "cayley" in done.stdout, done.stderr
