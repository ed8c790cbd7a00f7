"""--no-sync: the same files in the same steps, and the disk is waited for nowhere."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import paramcli as library
from paramcli.checkpoint.disk import atomic, direct
from paramcli.checkpoint.disk.atomic import AtomicFile
from paramcli.errors import OutputFailed

from .test_hostile import state_of

OUTPUTS = {
    "out.safetensors": ["add", "in.safetensors", "-t", "w", "--chain", "symmetric"],
    "out.pt": ["add", "in.safetensors", "-t", "w", "--chain", "symmetric"],
    "folder": ["add", "shards", "-t", "w", "--chain", "symmetric"],
    "folder.dcp": ["add", "shards", "-t", "w", "--chain", "symmetric"],
    "renamed.safetensors": ["convert", "in.safetensors", "--rename", "w=v"],
    "adapter": ["extract", "tuned.safetensors", "--base", "in.safetensors", "--rank", "2"],
    "kohya.safetensors": ["extract", "tuned.safetensors", "-b", "in.safetensors", "-r", "2", "--spelling", "kohya"],
}


@pytest.fixture
def place(tmp_path, monkeypatch, paramcli) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = {"w.weight": torch.randn(64, 64), "other": torch.randn(3000)}
    save_file({"w": state["w.weight"], "other": state["other"]}, "in.safetensors", {"format": "pt"})
    save_file({"w.weight": state["w.weight"]}, "base.safetensors", {"format": "pt"})
    save_file({"w.weight": state["w.weight"] + 1}, "tuned.safetensors", {"format": "pt"})
    paramcli("convert", "in.safetensors", "-o", "shards", "--max-shard-size", "13KB")
    Path("shards/config.json").write_text("{}")
    return tmp_path


def command(output: str, *more: str) -> list[str]:
    line = [word.replace("in.safetensors", "base.safetensors") for word in OUTPUTS[output]]
    return [*(line if line[0] == "extract" else OUTPUTS[output]), "-o", output, *more]


def counted(monkeypatch, *names: str) -> list[str]:
    calls: list[str] = []
    for name in names:
        real = getattr(os, name)

        def call(*arguments, _real=real, _name=name, **options):
            calls.append(_name)
            return _real(*arguments, **options)

        monkeypatch.setattr(os, name, call)
    return calls


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("output", OUTPUTS)
def test_no_file_and_no_folder_is_waited_for(output, existing, place, paramcli, monkeypatch):
    """Of every container: the bytes that a run with the waiting writes, the same names given, and not one fsync."""
    force = ["-f"] if existing else []
    written, calls = {}, {}
    for sync in ("--sync", "--no-sync"):
        shutil.rmtree(output) if os.path.isdir(output) else os.path.exists(output) and os.unlink(output)
        if existing:
            paramcli(*command(output))
        with monkeypatch.context() as patch:
            calls[sync] = counted(patch, "fsync", "link", "rename", "replace", "fchmod")
            paramcli(*command(output, sync, *force))
        written[sync] = state_of(place)
    assert written["--sync"] == written["--no-sync"]
    # Each file of the result and a folder at least: twice as many for a folder of several.
    files = sum(path.is_file() for path in Path(output).rglob("*")) if os.path.isdir(output) else 1
    assert calls["--sync"].count("fsync") > files
    assert calls["--no-sync"] == [name for name in calls["--sync"] if name != "fsync"]


def test_nothing_goes_past_the_cache_and_the_disk_is_not_set_to_work(tmp_path, monkeypatch):
    """What is not waited for stays in the cache, which a write past it would wait for in its own way."""
    monkeypatch.setattr(direct, "LEAST", 1)
    monkeypatch.setattr(atomic, "WRITEBACK", 1)
    began = []
    monkeypatch.setattr(atomic, "begin_writeback", began.append)
    for sync in (False, True):
        with AtomicFile(tmp_path / f"out{sync}", sync=sync) as file:
            file.reserve(1 << 20)
            assert file.goes_direct is sync
            file.write_at(1, b"x" * 100)
            file.write_at(101, bytes((1 << 20) - 101))
            file.commit(1 << 20)
        assert bool(began) is sync


@pytest.mark.parametrize("option", ["--in-place", "--check"])
def test_what_needs_the_disk_is_refused_with_it(option, place, paramcli):
    """The input is replaced by nothing that a power cut may take, and a check reads what is on the disk: exit 2."""
    before = state_of(place)
    said = paramcli("add", "in.safetensors", "-t", "w", "--chain", "symmetric", option, "--no-sync", code=2).err
    assert option in said and "--no-sync" in said
    assert state_of(place) == before
    with pytest.raises(library.UsageError, match="waits for the disk") as caught:
        library.convert("in.safetensors", "out.safetensors", check=True, sync=False)
    assert caught.value.option == "sync" and state_of(place) == before


def test_what_a_network_file_system_says_on_closing_is_heard(tmp_path, monkeypatch):
    """There a write may fail only when the file is closed: nothing gets the name, and the old file stays."""
    (tmp_path / "out").write_bytes(b"old")
    real, closed = os.close, []

    def close(descriptor: int) -> None:
        real(descriptor)
        closed.append(descriptor)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with (
        pytest.raises(OutputFailed, match="quota"),
        AtomicFile(tmp_path / "out", overwrite=True, sync=False) as file,
        monkeypatch.context() as patch,
    ):
        file.write_at(0, b"new")
        patch.setattr(os, "close", close)
        file.commit(3)
    assert len(closed) == 1 and state_of(tmp_path) == {"out": b"old"}


def test_a_recipe_says_that_it_is_for_the_whole_run(place, paramcli):
    """`sync` and `no-sync` stand on apply's command line, where they work, and not in an edit."""
    table = '[[edit]]\ncommand = "add"\ntensor = ["w"]\nchain = "symmetric"\n'
    Path("r.toml").write_text(table)
    paramcli("apply", "r.toml", "in.safetensors", "--no-sync", "-o", "out.safetensors")
    Path("r.toml").write_text(table + "no-sync = true\n")
    assert "--no-sync" in paramcli("apply", "r.toml", "in.safetensors", "-o", "o.safetensors", code=2).err


@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_save_does_not_wait_either(tmp_path, monkeypatch, name):
    """`paramcli.save(..., sync=False)`: the same bytes, and no fsync."""
    model = torch.nn.Linear(4, 4)
    calls = counted(monkeypatch, "fsync")
    library.save(model, tmp_path / name, sync=False)
    assert calls == []
    saved = (tmp_path / name).read_bytes()
    library.save(model, tmp_path / name, overwrite=True)
    assert (tmp_path / name).read_bytes() == saved and len(calls) == 2
