"""--check finds every byte that was written otherwise than planned, before the result gets its name."""

from __future__ import annotations

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

EDITED, COPIED = 0.4321, 0.1234


@pytest.fixture
def inputs(tmp_path):
    """One model as a safetensors file, as shards and as a torch file with an optimizer."""
    state = {
        "fc.weight": torch.full((8, 8), EDITED),
        "other": torch.full((40, 5), COPIED),
        "half": torch.ones(7).half(),
    }
    folder = tmp_path / "in"
    folder.mkdir()
    save_file(state, folder / "m.safetensors", {"format": "pt", "note": "kept"})
    moments = {"state": {0: {"exp_avg": torch.full((9, 9), 0.777)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"state_dict": state, "optimizer": moments}, folder / "m.pt")
    from paramcli.cli.app import run

    assert (
        run(["convert", str(folder / "m.safetensors"), "-o", str(folder / "sharded"), "--max-shard-size", "500", "-q"])
        == 0
    )
    return folder


OUTPUTS = {"safetensors": ("m.safetensors", "o.safetensors"), "shards": ("sharded", "o"), "torch": ("m.pt", "o.pt")}
ADD = ["-t", "fc.weight", "--chain", "symmetric", "--json"]


@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_sound_result_passes(kind, inputs, tmp_path, paramcli):
    """Every container is read back, and the document and the message say so."""
    source, out = OUTPUTS[kind]
    for flag, said in (([], False), (["--check"], True)):
        result = paramcli("add", inputs / source, "-o", tmp_path / out, "-f", *ADD, *flag)
        assert result.json["checked"] is said and ("read back" in result.err) is said
    assert "other" in paramcli("inspect", tmp_path / out).out


def spoil(monkeypatch, value: float, bit: int = 1) -> list:
    """From now on the first byte of every written run of this float32 value is changed on its way to the disk."""
    pattern, real, hits = torch.full((4,), value).numpy().tobytes(), os.pwrite, []

    def pwrite(descriptor, data, offset):
        data = bytearray(data)
        place = data.find(pattern)
        if place >= 0:
            hits.append(place)
            data[place] ^= bit
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    return hits


@pytest.mark.parametrize("value", [EDITED, COPIED], ids=["edited", "untouched"])
@pytest.mark.parametrize("kind", OUTPUTS)
def test_a_flipped_bit_is_found_before_anything_appears(kind, value, inputs, tmp_path, paramcli, monkeypatch):
    """One bit changed on the way to the disk: exit 4 by the tensor's name and an empty folder; without --check nobody
    notices.
    """
    source, out = OUTPUTS[kind]
    before = sorted(os.listdir(tmp_path))
    hits = spoil(monkeypatch, value)
    error = paramcli("add", inputs / source, "-o", tmp_path / out, *ADD, "--check", code=4).json["error"]
    assert (
        hits
        and "not written as planned" in error["message"]
        and ("weight" if value == EDITED else "other") in error["tensor"]
    )
    assert sorted(os.listdir(tmp_path)) == before
    paramcli("add", inputs / source, "-o", tmp_path / out, *ADD)


def test_a_flipped_bit_in_an_optimizer_is_found(inputs, tmp_path, paramcli, monkeypatch):
    """What a torch file carries beside the state dict is read back too, by its checksums."""
    assert spoil(monkeypatch, 0.777) is not None
    paramcli("add", inputs / "m.pt", "-o", tmp_path / "o.pt", *ADD, "--check", code=4)
    assert not (tmp_path / "o.pt").exists()


@pytest.mark.parametrize("name", ["m.safetensors", "sharded"])
def test_in_place_is_always_checked(name, inputs, paramcli, monkeypatch):
    """--in-place needs no --check: a bad write leaves the input as it was, alone in its folder."""

    def state():
        return {path: path.read_bytes() for path in sorted(inputs.rglob("*")) if path.is_file()}

    before = state()
    with monkeypatch.context() as patch:
        spoil(patch, COPIED)
        paramcli("add", inputs / name, "--in-place", *ADD, code=4)
    assert state() == before
    assert paramcli("add", inputs / name, "--in-place", *ADD).json["checked"] is True


@pytest.mark.parametrize("what", ["name", "dtype", "metadata", "half the header"])
def test_a_wrong_header_is_found(what, inputs, tmp_path, paramcli, monkeypatch):
    """A name, a dtype and a metadata value that come out otherwise, and a header that no longer parses."""
    old, new = {
        "name": (b"other", b"othes"),
        "dtype": (b'"F16"', b'"I16"'),
        "metadata": (b"kept", b"lost"),
        "half the header": (b"data_off", b"\0\0\0\0\0\0\0\0"),
    }[what]
    real = os.pwrite
    monkeypatch.setattr(
        os, "pwrite", lambda descriptor, data, offset: real(descriptor, bytes(data).replace(old, new), offset)
    )
    result = paramcli("add", inputs / "m.safetensors", "-o", tmp_path / "o.safetensors", *ADD, "--check", code=4)
    assert "not written as planned" in result.json["error"]["message"]
    assert not (tmp_path / "o.safetensors").exists()


def test_an_input_that_is_damaged_meanwhile_is_the_input_s_fault(inputs, tmp_path, paramcli, monkeypatch):
    """A source cut while the result is compared is exit 3, not a failed write."""
    from paramcli.surgery import check

    real = check._drop_cache

    def cut(file):
        os.truncate(inputs / "m.safetensors", 100)
        real(file)

    monkeypatch.setattr(check, "_drop_cache", cut)
    message = paramcli("add", inputs / "m.safetensors", "-o", tmp_path / "o.safetensors", *ADD, "--check", code=3).json[
        "error"
    ]["message"]
    assert "m.safetensors" in message and not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["convert", "m.pt", "-o", "c.safetensors"],
        ["convert", "m.safetensors", "-o", "c.pt"],
        ["convert", "m.pt", "-o", "folder", "--max-shard-size", "300"],
        ["convert", "m.safetensors", "-o", "half.pt", "--dtype", "float16"],
        ["assign", "m.safetensors", "-t", "other", "--with", "normal", "-o", "a.safetensors"],
    ],
)
def test_every_command_takes_it(command, inputs, tmp_path, paramcli, monkeypatch):
    """The commands that write all check, conversions across containers, splits and casts included."""
    monkeypatch.chdir(inputs)
    assert "read back" in paramcli(*command, "--check").err


def test_bakes_and_renames_are_checked(inputs, tmp_path, paramcli, monkeypatch):
    """remove and migrate read their results back."""
    monkeypatch.chdir(inputs)
    paramcli("add", "m.safetensors", "-t", "fc.weight", "--chain", "weight_norm", "-o", "w.safetensors")
    for command in (
        ["remove", "w.safetensors", "-o", "b.safetensors"],
        ["migrate", "w.safetensors", "--to", "old", "-o", "o.safetensors"],
    ):
        assert "read back" in paramcli(*command, "--check").err
    assert "fc.weight_g" in load_file("o.safetensors")
