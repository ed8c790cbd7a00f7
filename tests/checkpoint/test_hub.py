"""The hub's cache: read by refs/main, and never written into; and what is typed in the place of a path."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli import live
from paramcli.errors import OutputFailed, UsageError

REVISION = "0123abc"
PAIR = {"fc.weight_g": torch.full((2, 1), 3.0), "fc.weight_v": torch.ones(2, 2)}


@pytest.fixture
def cache(tmp_path) -> Path:
    """models--org--name with one snapshot of one file, as huggingface_hub lays it out."""
    folder = tmp_path / "hub" / "models--org--name"
    for part in ("blobs", "refs", f"snapshots/{REVISION}"):
        (folder / part).mkdir(parents=True)
    save_file(PAIR, folder / "blobs" / "f00d")
    (folder / "blobs" / "cafe").write_text("{}")
    (folder / "refs" / "main").write_text(REVISION)
    (folder / "snapshots" / REVISION / "model.safetensors").symlink_to("../../blobs/f00d")
    (folder / "snapshots" / REVISION / "config.json").symlink_to("../../blobs/cafe")
    return folder


@pytest.fixture
def shards(cache) -> Path:
    """The same with two shards and an index."""
    snapshot = cache / "snapshots" / REVISION
    (snapshot / "model.safetensors").unlink()
    weight_map = {}
    for number, (name, tensor) in enumerate(PAIR.items(), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensor}, cache / "blobs" / f"b{number}")
        (snapshot / shard).symlink_to(f"../../blobs/b{number}")
        weight_map[name] = shard
    (cache / "blobs" / "1dea").write_text(json.dumps({"weight_map": weight_map}))
    (snapshot / "model.safetensors.index.json").symlink_to("../../blobs/1dea")
    return cache


def contents(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


def test_a_folder_of_the_cache_is_the_snapshot_of_main(cache, tmp_path, paramcli):
    """refs/main says which; another snapshot beside it changes nothing."""
    other = cache / "snapshots" / "fff"
    other.mkdir()
    save_file({"other": torch.ones(1)}, other / "model.safetensors")
    told = paramcli("convert", cache, "-o", tmp_path / "o.safetensors").err
    assert f"read its snapshot {REVISION}" in told and set(load_file(tmp_path / "o.safetensors")) == set(PAIR)


@pytest.mark.parametrize("ref", [None, "fff", "../../../elsewhere", "", "x" * 5000, "\x1b[2J"])
def test_a_ref_that_names_no_snapshot_is_refused(ref, cache, paramcli):
    """Missing among several, of none, or a path: the snapshots are listed, none is chosen. A single one needs none."""
    (cache / "refs" / "main").unlink()
    if ref is None:
        assert paramcli("inspect", cache).code == 0
        (cache / "snapshots" / "eee").mkdir()
    else:
        (cache / "refs" / "main").write_text(ref)
    error, hint = paramcli("inspect", cache, code=3).err.splitlines()
    assert "a folder of the hub's cache" in error and REVISION in hint and (error + hint).isprintable()


@pytest.mark.parametrize(
    ("which", "out"),
    [
        ("models--org--name", "name.baked.safetensors"),
        (f"models--org--name/snapshots/{REVISION}", "name.baked.safetensors"),
        (f"models--org--name/snapshots/{REVISION}/model.safetensors", "model.baked.safetensors"),
    ],
)
def test_a_default_result_lands_outside_of_the_cache(which, out, cache, tmp_path, paramcli, monkeypatch):
    """In the working folder, named by the model or the file that was given; nothing in the cache changes."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = contents(cache.parent)
    told = paramcli("remove", f"../hub/{which}").err
    assert f"wrote {out}" in told and os.listdir() == [out]
    assert contents(cache.parent) == before


def test_a_default_folder_lands_outside_too(shards, tmp_path, paramcli, monkeypatch):
    """A snapshot in shards is named by the model, and not by a hash."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = contents(shards.parent)
    for given in (shards, shards / "snapshots" / REVISION / "model.safetensors.index.json"):
        paramcli("remove", given, "-f")
        assert os.listdir() == ["name.baked"] and (tmp_path / "work" / "name.baked" / "config.json").exists()
    assert contents(shards.parent) == before


def test_nothing_is_written_into_a_cache(cache, shards, tmp_path, paramcli, monkeypatch):
    """In place, through a link of one's own, by -o, by a default name in a snapshot one stands in, and from Python."""
    snapshot = cache / "snapshots" / REVISION
    save_file(PAIR, cache / "blobs" / "f00d")
    (snapshot / "one.safetensors").symlink_to("../../blobs/f00d")
    (tmp_path / "mine.safetensors").symlink_to(snapshot / "one.safetensors")
    (tmp_path / "out.safetensors").symlink_to(cache / "blobs" / "f00d")
    save_file(PAIR, tmp_path / "plain.safetensors")
    before = contents(tmp_path)
    for line in (
        ["remove", snapshot / "one.safetensors", "--in-place"],
        ["remove", tmp_path / "mine.safetensors", "--in-place"],
        ["remove", snapshot, "--in-place"],
        ["remove", tmp_path / "plain.safetensors", "-o", tmp_path / "out.safetensors", "-f"],
        ["remove", tmp_path / "plain.safetensors", "-o", snapshot / "new.safetensors"],
        ["convert", tmp_path / "plain.safetensors", "-o", cache / "blobs" / "f00d", "-f"],
        ["convert", tmp_path / "plain.safetensors", "-o", cache / "new", "--max-shard-size", "1KB"],
    ):
        assert "the hub's cache" in paramcli(*line, code=4).err
        assert contents(tmp_path) == before, line
    monkeypatch.chdir(snapshot)
    assert "the hub's cache" in paramcli("remove", "one.safetensors", code=4).err
    with pytest.raises(OutputFailed, match="the hub's cache"):
        live.save(torch.nn.Linear(2, 2), tmp_path / "out.safetensors", overwrite=True)
    assert contents(tmp_path) == before


def test_a_default_name_never_leads_out_of_its_folder(tmp_path, paramcli):
    """A link of that name to another folder is refused, even by --force; one to a file beside it is followed."""
    folder, home = tmp_path / "f", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    save_file(PAIR, folder / "m.safetensors")
    (home / "precious").write_text("precious")
    default = folder / "m.baked.safetensors"
    default.symlink_to("../home/precious")
    for more in ([], ["-n"], ["-q"]):
        assert "a link out of its folder" in paramcli("remove", folder / "m.safetensors", "-f", *more, code=4).err
    assert (home / "precious").read_text() == "precious" and default.is_symlink()
    paramcli("remove", folder / "m.safetensors", "-f", "-o", default)  # who names it, means it
    assert set(load_file(home / "precious")) == {"fc.weight"}
    default.unlink()
    (folder / "mine").write_text("x")
    default.symlink_to("mine")
    paramcli("remove", folder / "m.safetensors", "-f")
    assert set(load_file(folder / "mine")) == {"fc.weight"} and default.is_symlink()


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("https://huggingface.co/org/name/resolve/main/model.safetensors", "hf download org/name"),
        ("https://example.org/a b.pt", "curl -LO 'https://example.org/a b.pt'"),
        ("hf://org/name/model.safetensors", "hf download org/name"),
        ("s3://bucket/m.pt", "aws s3 cp s3://bucket/m.pt ."),
        ("file:///m.pt", "try: /m.pt"),
        ("~/m.pt", f"{Path.home()}/m.pt"),
    ],
)
def test_what_is_no_path_is_said_for_what_it_is(typed, hint, tmp_path, paramcli, monkeypatch):
    """An address and a ~ that no shell took: exit 3 where it is read, 2 where it is written to, with the way on."""
    monkeypatch.chdir(tmp_path)
    save_file(PAIR, "m.safetensors")
    error, way = paramcli("inspect", typed, code=3).err.splitlines()
    assert typed in error and hint in way
    add = ["add", "m.safetensors", "-t", "fc.weight", "--chain", "mask"]
    assert typed in paramcli(*add, "--mask", typed, code=3).err
    assert typed in paramcli("remove", "m.safetensors", "-o", typed, code=2).err
    assert os.listdir() == ["m.safetensors"]


def test_a_file_of_such_a_name_is_a_file(tmp_path, paramcli, monkeypatch):
    """What is there is a path, whatever it looks like."""
    monkeypatch.chdir(tmp_path)
    for folder in ("~", "https:"):
        os.mkdir(folder)
        save_file(PAIR, f"{folder}/m.safetensors")
        assert paramcli("remove", f"{folder}/m.safetensors").code == 0
    assert "no such file" in paramcli("inspect", "meta-llama/Llama-3-8B", code=3).err
    with pytest.raises(UsageError, match="is an address"):
        import paramcli as library

        library.remove("~/m.safetensors", output="hf://x/y")
