"""The README's shown output is what its commands print."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def block(name: str) -> str:
    """The fenced block after the marker <!-- name -->."""
    return re.search(rf"<!-- {re.escape(name)} -->\n```\w*\n(.*?)```", README, re.S).group(1)


def test_the_main_job_prints_what_the_readme_shows(paramcli, capfd, tmp_path, monkeypatch):
    """Each command after the installation, its stdout and then its messages, line by line."""
    monkeypatch.chdir(ROOT)
    shown = []
    for command in block("main-job").split(" && ")[1:]:
        words = [w.replace("/tmp/", f"{tmp_path}/") for w in shlex.split(command)]
        assert words[0] == "paramcli"
        result = paramcli(*words[1:])
        shown.append((result.out + result.err).replace(f"{tmp_path}/", "/tmp/"))
    numbers = re.compile(r"\d\.\d+e-\d+")
    # Residuals are rounding errors and differ between processors; everything else is compared as it stands.
    assert numbers.sub("N", "".join(shown)) == numbers.sub("N", block("main-job-output"))


def test_the_registry_table_is_current(paramcli):
    """The table in the README is what `paramcli registry` prints."""
    assert paramcli("registry").out == block("registry")


@pytest.mark.parametrize("command", re.findall(r"\| `(paramcli [^`]*)` \|", README))
def test_the_commands_of_the_table_parse(command, paramcli, tmp_path, monkeypatch):
    """Each shown command gets as far as looking for its file."""
    monkeypatch.chdir(tmp_path)
    result = paramcli(*shlex.split(command)[1:], code=3)
    assert "no such file" in result.err
