"""What a report and --sha256 say of the run: the files as they were read, the command, what it was computed with."""

import hashlib
import os
import re
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import paramcli as package
from paramcli import evidence
from paramcli.answers import measured as verdict

CONTAINERS = {
    "a file": ("m.safetensors", ["m.safetensors"]),
    "shards": (
        "shards",
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
    ),
    "DCP": ("m.dcp", [".metadata", "__0_0.distcp"]),
}


@pytest.fixture
def models(tmp_path, paramcli, monkeypatch):
    """One model in each container, in the working folder."""
    monkeypatch.chdir(tmp_path)
    save_file({"a": torch.eye(4), "b": torch.eye(6)}, "m.safetensors")
    paramcli("convert", "m.safetensors", "-o", "shards", "--max-shard-size", "150B")
    paramcli("convert", "m.safetensors", "-o", "m.dcp")
    return tmp_path


def sums(ckpt: str, names: list[str]) -> dict[str, tuple[int, str]]:
    """Path -> (bytes, SHA-256), by hashlib."""
    paths = [ckpt if name == ckpt else os.path.join(ckpt, name) for name in names]
    return {path: (os.path.getsize(path), hashlib.sha256(Path(path).read_bytes()).hexdigest()) for path in paths}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize(
    "command",
    [
        ["verify", "-t", "*", "--constraint", "orthogonal"],
        ["discover"],
        ["spectrum", "-t", "*"],
        ["diff", "m.safetensors"],
    ],
    ids=lambda c: c[0],
)
def test_a_report_names_every_file_that_was_read(command, container, models, paramcli):
    """Each with its size and SHA-256, beside the command as it was typed, versions, device and date."""
    ckpt, names = CONTAINERS[container]
    name, *rest = command
    paramcli(name, ckpt, *rest, "--report", "r.html")
    text = Path("r.html").read_text()
    for path, (nbytes, digest) in sums(ckpt, names).items():
        assert re.search(
            f'<td>{re.escape(path)}</td><td class="number" data-value="{nbytes}">{nbytes}</td><td>{digest}</td>', text
        )
    told = dict(re.findall("<dt>([^<]*)</dt><dd>([^<]*)</dd>", text))
    assert told["command"].startswith(f"paramcli {name} {ckpt} ") and told["command"].endswith(" --report r.html")
    assert told["made by"] == f"paramcli {package.__version__}, torch {torch.__version__}" and told["device"] == "cpu"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC", told["date"])


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_document_has_all_of_it_but_the_date(container, models, paramcli):
    """verify --json --sha256 is a function of files, command and installation."""
    ckpt, names = CONTAINERS[container]
    line = ["verify", ckpt, "-t", "*", "--constraint", "orthogonal", "--json", "--sha256"]
    result = paramcli(*line)
    assert result.json["evidence"] == {
        "files": [
            {"path": path, "bytes": nbytes, "sha256": digest} for path, (nbytes, digest) in sums(ckpt, names).items()
        ],
        "command": f"paramcli verify {ckpt} -t '*' --constraint orthogonal --json --sha256",
        "version": package.__version__,
        "torch": torch.__version__,
        "device": "cpu",
    }
    assert paramcli(*line).out == result.out


def test_nothing_is_hashed_that_was_not_asked_for(models, paramcli, monkeypatch):
    """Without --sha256 or --report no thread reads the file, and the document has no such key; a table leaves the sums
    to stderr.
    """
    line = ["verify", "m.safetensors", "-t", "a", "--constraint", "orthogonal"]
    told = paramcli(*line, "--sha256")
    assert f"{sums('m.safetensors', ['m.safetensors'])['m.safetensors'][1]}  m.safetensors" in told.err.splitlines()
    monkeypatch.setattr(evidence, "Gathering", None)
    assert "evidence" not in paramcli(*line, "--json").json
    assert paramcli(*line).out == told.out


@pytest.mark.parametrize(
    "changed", ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("how", ["rewritten", "replaced"])
def test_a_file_that_changes_meanwhile_is_refused(changed, how, models, paramcli, monkeypatch):
    """Written to, or another file under its name, after it was read and before the report: exit 3 and no report."""
    measure, path = verdict.verify_group, os.path.join("shards", changed)

    def changing(*arguments):
        data = Path(path).read_bytes()
        if how == "replaced":
            os.rename(path, "old")
        Path(path).write_bytes(data)
        os.utime(path, ns=(1, 1))
        return measure(*arguments)

    monkeypatch.setattr(verdict, "verify_group", changing)
    said = paramcli("verify", "shards", "-t", "a", "--constraint", "orthogonal", "--report", "r.html", code=3)
    assert f"{changed} changed while it was being read" in said.err and not os.path.exists("r.html")


def test_a_change_while_the_spectra_are_drawn_is_refused(models, paramcli, monkeypatch):
    """What was hashed is what every number of the page was computed from."""
    from paramcli.answers import spectrum

    draw = spectrum.spectra

    def changing(*arguments):
        os.utime("m.safetensors", ns=(1, os.stat("m.safetensors").st_mtime_ns - 1))
        return draw(*arguments)

    monkeypatch.setattr(spectrum, "spectra", changing)
    for line in (["verify", "m.safetensors", "-t", "a", "--constraint", "orthogonal"], ["discover", "m.safetensors"]):
        assert "changed while it was being read" in paramcli(*line, "--report", "r.html", code=3).err
    assert not os.path.exists("r.html")


def test_a_file_that_cannot_be_hashed_is_refused(models, paramcli, monkeypatch):
    """What the thread meets is the command's own error."""
    from paramcli.errors import InputRefused

    def failing(gathering, file, block):
        raise InputRefused("cannot read it", path=file.path)

    monkeypatch.setattr(evidence.Gathering, "_sum", failing)
    said = paramcli("verify", "m.safetensors", "-t", "a", "--constraint", "orthogonal", "--json", "--sha256", code=3)
    assert said.json["error"]["message"] == "cannot read it (in m.safetensors)"


def test_a_command_that_fails_leaves_no_thread(models, paramcli, monkeypatch):
    """Hashing ends with the command, at its next block."""
    before, begun, sum_of = threading.active_count(), threading.Event(), evidence.Gathering._sum

    def slow(gathering, file, block):
        begun.set()
        gathering._stopped.wait()
        return sum_of(gathering, file, block)

    monkeypatch.setattr(evidence.Gathering, "_sum", slow)
    paramcli("verify", "m.safetensors", "-t", "nothing", "--sha256", code=2)
    assert begun.is_set() and threading.active_count() == before


@pytest.mark.parametrize("name", ["<b onclick=x>&'\".html", "a\x1b[2J\u202e.html", "two words.html", "a\udcff.html"])
def test_the_command_is_text_that_a_shell_takes_back(name, models, paramcli):
    """Quoted for a shell; nothing in it is markup, and no character steers a terminal."""
    import html
    import shlex

    paramcli("discover", "m.safetensors", "--report", name)
    text = Path(name).read_text()
    shown = html.unescape(re.search("<dt>command</dt><dd>(.*?)</dd>", text)[1])
    assert "<b" not in text.partition("<dl>")[2].partition("</dl>")[0] and "\x1b" not in text and "\u202e" not in text
    escaped = name.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e").replace("\udcff", "\\xff")
    assert shlex.split(shown) == ["paramcli", "discover", "m.safetensors", "--report", escaped]
