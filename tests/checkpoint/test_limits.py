"""What is written can be read again: one limit for both, found before anything is written."""

from __future__ import annotations

import argparse
import collections
import json
import pickletools
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from paramcli.checkpoint import header
from paramcli.checkpoint.disk.input_file import InputFile
from paramcli.checkpoint.pickle import pickle_data, write_pickle, write_zip
from paramcli.checkpoint.pickle.pickle_data import _Machine, read_pickle
from paramcli.checkpoint.pickle.write_pickle import PickleWriter
from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.checkpoint.read.torch_file import zip_parts
from paramcli.errors import InputRefused

W = torch.arange(6.0).reshape(2, 3)
NESTED = {
    "state_dict": collections.OrderedDict(
        w=W, b=W[0], t=W.t(), half=W.bfloat16(), e=torch.empty(0), s=torch.tensor(1.0)
    ),
    "epoch": 3,
    "long": 2**70,
    "float": 0.5,
    "flags": (True, False, None),
    "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    "list": [1, "a", b"bytes", []],
    "args": argparse.Namespace(lr=0.1, sizes=torch.Size([1, 2])),
    "counts": collections.Counter("aab"),
    "optimizer": {"state": {0: {"exp_avg": W, "step": 7}}, "param_groups": [{"params": [0], "lr": 0.1}]},
    "dtype": torch.float16,
}


@pytest.fixture
def value(tmp_path) -> object:
    """What a torch file's description says."""
    torch.save(NESTED, tmp_path / "nested.pt")
    return zip_parts(InputFile(tmp_path / "nested.pt"))[0].value


def written(value: object) -> tuple[PickleWriter, bytes]:
    writer = PickleWriter(lambda ref: (getattr(ref, "storage", ref).key, 100, 0))
    return writer, writer.finish(value)


def test_the_writer_counts_as_the_reader_does(value):
    """Every kind of value: as many opcodes as there are, and as many objects as the reader makes of them."""
    writer, data = written(value)
    machine = _Machine(data, 0)
    machine.run()
    assert writer.opcodes == len(list(pickletools.genops(data)))
    assert (writer.objects, writer.opaque) == (machine.objects, machine.opaque)


@pytest.mark.parametrize("limit", ["MAX_OPCODES", "MAX_OBJECTS", "MAX_OPAQUE", "MAX_BYTES"])
def test_a_description_at_the_limit_is_written_and_read(limit, value, monkeypatch):
    """At the limit both take it, and one less is refused by both (its bytes are counted before it is read)."""
    writer, data = written(value)
    exact = {
        "MAX_OPCODES": writer.opcodes,
        "MAX_OBJECTS": writer.objects,
        "MAX_OPAQUE": writer.opaque,
        "MAX_BYTES": len(data),
    }[limit]
    for module in (pickle_data, write_pickle):
        monkeypatch.setattr(module, limit, exact)
    assert written(value)[1] == data and read_pickle(data).end == len(data)
    for module in (pickle_data, write_pickle):
        monkeypatch.setattr(module, limit, exact - 1)
    with pytest.raises(InputRefused, match="larger than one that can be read again"):
        written(value)
    if limit != "MAX_BYTES":
        with pytest.raises(InputRefused, match="larger than any checkpoint's"):
            read_pickle(data)


@pytest.mark.parametrize("output", ["o.pt", "o.dcp"])
def test_too_many_tensors_for_a_container_are_refused_before_it_is_written(output, tmp_path, paramcli, monkeypatch):
    """One line with the container that holds them; nothing is there after it. At the limit they are read again."""
    save_file({f"w{i}": torch.ones(i + 1) for i in range(30)}, tmp_path / "m.safetensors")
    paramcli("convert", tmp_path / "m.safetensors", "-o", tmp_path / output)
    members = zipfile.ZipFile(tmp_path / output).namelist() if output == "o.pt" else []
    monkeypatch.setattr(write_zip, "MAX_MEMBERS", max(len(members), 5))
    monkeypatch.setattr("paramcli.checkpoint.write.dcp._WORTH_A_LOOK", 10)
    paramcli("convert", tmp_path / "m.safetensors", "-f", "-o", tmp_path / output)
    monkeypatch.setattr(write_zip, "MAX_MEMBERS", max(len(members) - 1, 5))
    monkeypatch.setattr(write_pickle, "MAX_OPCODES", 1500)
    err = paramcli("convert", tmp_path / "m.safetensors", "-o", tmp_path / f"more-{output}", code=3).err
    assert "read again" in err and "-o FILE.safetensors" in err and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("output", ["o.safetensors", "o", "o.dcp"])
def test_more_tensors_than_can_be_read_are_not_written(output, tmp_path, paramcli, monkeypatch):
    """An edit makes two keys of one: past the limit it is refused, in one file and in a folder."""
    save_file({f"w{i}.weight": torch.ones(2, 2) for i in range(5)}, tmp_path / "m.safetensors")
    line = ["add", tmp_path / "m.safetensors", "-t", "*", "--chain", "weight_norm", "-o", tmp_path / output]
    if output == "o":
        paramcli("convert", tmp_path / "m.safetensors", "-o", tmp_path / "shards", "--max-shard-size", "40B")
        line[1] = tmp_path / "shards"
    monkeypatch.setattr(header, "MAX_TENSORS", 9)
    assert "10 tensors; 9 is the limit" in paramcli(*line, code=3).err and not (tmp_path / output).exists()
    monkeypatch.setattr(header, "MAX_TENSORS", 10)
    paramcli(*line)
    with open_checkpoint(tmp_path / output) as source:
        assert len(source.tensors) == 10


def test_an_index_and_a_record_too_large_are_not_written(tmp_path, paramcli, monkeypatch):
    """By the limits that their readers have."""
    save_file({f"w{i}.weight": torch.ones(2, 2) for i in range(5)}, tmp_path / "m.safetensors")
    split = ["convert", tmp_path / "m.safetensors", "--max-shard-size", "40B", "-o", tmp_path / "o"]
    paramcli(*split)
    size = (tmp_path / "o" / "model.safetensors.index.json").stat().st_size
    monkeypatch.setattr("paramcli.checkpoint.write.sharded.MAX_INDEX_BYTES", size - 1)
    assert "the index would be" in paramcli(*split[:-1], tmp_path / "p", code=3).err
    add = ["add", tmp_path / "m.safetensors", "-t", "*", "--chain", "symmetric", "-o", tmp_path / "q.safetensors"]
    monkeypatch.setattr("paramcli.spelling.record.MAX_ENTRIES", 4)
    assert "the paramcli record of 5 tensors" in paramcli(*add, code=3).err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors", "o"]
    assert json.loads((tmp_path / "o" / "model.safetensors.index.json").read_text())["weight_map"]


COUNTED = """
import contextlib, io, sys
from paramcli.cli.app import run
from tests.pace import calls
def command():
    with contextlib.redirect_stdout(io.StringIO()):
        assert run(sys.argv[1:]) == 0
command()  # what it imports is imported
print(calls(command))
"""


@pytest.mark.parametrize(("command", "each"), [("inspect", 400), ("convert", 200)])
def test_inspect_and_convert_take_some_calls_for_each_tensor(tmp_path, request, command, each):
    """Of 20,000 tensors, in a process of its own."""
    slots = [header.Slot(f"model.layers.{i // 10}.block{i % 10}.weight", "F32", (2, 2)) for i in range(20_000)]
    path = tmp_path / "m.safetensors"
    path.write_bytes(header.build_header(slots, {}) + bytes(16 * 20_000))
    line = [command, path, *(["-f", "-o", tmp_path / "o.safetensors"] if command == "convert" else [])]
    argv = [sys.executable, "-c", COUNTED, *line]
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, cwd=request.config.rootpath)
    assert done.returncode == 0 and int(done.stdout) < each * 20_000, (done.stdout, done.stderr)
