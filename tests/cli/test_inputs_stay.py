"""What a question writes beside its answer is never what it asks about; a dry run knows what the run would refuse."""

import os

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def checkpoint(tmp_path):
    torch.save({"w": torch.eye(3)}, tmp_path / "v.pt")
    for name in ("v.html", "v.svg", "v.png"):
        os.symlink("v.pt", tmp_path / name)
    os.link(tmp_path / "v.pt", tmp_path / "hard.html")
    save_file({"w": torch.eye(3)}, tmp_path / "a.safetensors")
    return tmp_path / "v.pt"


QUESTIONS = {
    "spectrum --svg": (["spectrum", "v.pt", "-t", "w"], "--svg", "v.svg"),
    "spectrum --png": (["spectrum", "v.pt", "-t", "w"], "--png", "v.png"),
    "spectrum --report": (["spectrum", "v.pt", "-t", "w"], "--report", "v.html"),
    "verify": (["verify", "v.pt", "-t", "w", "--constraint", "orthogonal"], "--report", "v.html"),
    "verify, a hard link": (["verify", "v.pt", "-t", "w", "--constraint", "orthogonal"], "--report", "hard.html"),
    "discover": (["discover", "v.pt"], "--report", "v.html"),
    "diff, of B": (["diff", "a.safetensors", "v.pt"], "--report", "v.html"),
}


@pytest.mark.parametrize("what", QUESTIONS)
def test_no_page_is_written_onto_an_input(what, checkpoint, paramcli, monkeypatch):
    """Under any name, with --force too."""
    monkeypatch.chdir(checkpoint.parent)
    before = checkpoint.read_bytes()
    line, option, page = QUESTIONS[what]
    assert f"{page} is the input itself" in paramcli(*line, option, page, "-f", code=2).err
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize("option", ["--svg", "--png"])
def test_a_picture_has_a_picture_s_name(option, checkpoint, paramcli):
    """A slip of the hand is no reason to replace a file of another kind."""
    told = paramcli("spectrum", checkpoint, "-t", "w", option, checkpoint.parent / "other.json", "-f", code=2).err
    assert f"other.json does not end in .{option[2:]}" in told


REFUSED = {
    "onto the input": (["add", "a.safetensors", "-t", "w", "--chain", "symmetric", "-o", "a.safetensors", "-f"], 2),
    "into no folder": (["add", "a.safetensors", "-t", "w", "--chain", "symmetric", "-o", "no/x.safetensors"], 4),
    "shards into no folder": (["convert", "a.safetensors", "-o", "no/x/"], 4),
    "a name too long": (["convert", "a.safetensors", "-o", f"{'a' * 300}.safetensors"], 4),
    "an adapter's name too long": (["merge", "a.safetensors", "--adapter", "a" * 300, "-o", "b.safetensors"], 3),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_dry_run_refuses_what_the_run_does(what, checkpoint, paramcli, monkeypatch):
    """With its exit code and its words."""
    monkeypatch.chdir(checkpoint.parent)
    line, code = REFUSED[what]
    if what != "a name too long":  # known when it is made
        assert paramcli(*line, "-n", code=code).err == paramcli(*line, code=code).err
    paramcli(*line, code=code)


def test_the_folder_above_has_a_name(tmp_path, paramcli, monkeypatch):
    """Given as `..`, its result goes beside it, and not into the folder that one stands in."""
    (tmp_path / "model" / "sub").mkdir(parents=True)
    save_file({"w": torch.eye(3)}, tmp_path / "model" / "a.safetensors")
    monkeypatch.chdir(tmp_path / "model" / "sub")
    paramcli("convert", "../a.safetensors", "--max-shard-size", "40B", "-o", "../shards")
    monkeypatch.chdir(tmp_path / "model" / "shards")
    (tmp_path / "model" / "shards" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "model" / "shards" / "sub")
    paramcli("add", "..", "-t", "w", "--chain", "symmetric")
    assert os.listdir(".") == [] and (tmp_path / "model" / "shards.parametrized").is_dir()


def test_a_torch_name_in_capitals_is_a_torch_file(tmp_path, paramcli):
    """By its ending, as anybody would read it."""
    save_file({"w": torch.eye(3)}, tmp_path / "a.safetensors")
    paramcli("convert", tmp_path / "a.safetensors", "-o", tmp_path / "A.PT")
    assert torch.equal(torch.load(tmp_path / "A.PT", weights_only=True)["w"], torch.eye(3))
