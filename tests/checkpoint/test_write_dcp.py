"""Folders of torch.distributed.checkpoint as output: torch's own readers load them in full, and nobody else's files are
touched.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.checkpoint.write import dcp as write_dcp
from paramcli.dtypes import CODE_OF_TORCH

from ..pace import HANG_SECONDS

# Two processes load their halves, by rows and by columns, and put the whole together again.
SHARDED = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
state = {name: distribute_tensor(torch.zeros(7, 6), mesh, [Shard(dim)]) for name, dim in (("rows", 0), ("columns", 1))}
dcp.load(state, checkpoint_id=folder)
assert all(torch.equal(tensor.full_tensor(), torch.arange(42.0).reshape(7, 6)) for tensor in state.values())
dist.barrier()
os._exit(0)  # torch's own end of a group aborts now and then
"""
ODD_NAMES = ("", ".", "a..b", "ünï [x]/..\\", "tab\tand\x07", "日本", "model", "x" * 300)


def every_kind() -> dict[str, torch.Tensor]:
    """Random bytes in every dtype that safetensors and torch share (NaN payloads, -0 and all), 0-d, empty, and names of
    all sorts.
    """
    raw = torch.randint(0, 256, (4, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = {f"t.{n}": raw % 2 == 0 if n == "bool" else raw.clone().view(getattr(torch, n)) for n in CODE_OF_TORCH}
    found |= {
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(-0.0),
        "pairs": raw.clone().view(torch.float4_e2m1fn_x2),
    }
    return found | {name: torch.full((2,), float(number)) for number, name in enumerate(ODD_NAMES)}


def bits(state: dict) -> dict:
    return {
        name: (
            t.dtype,
            tuple(t.shape),
            bytes(t.contiguous().flatten().view(torch.uint8).tolist()) if t.numel() else b"",
        )
        for name, t in state.items()
    }


def loaded(folder: Path, like: dict) -> dict:
    """What torch.distributed.checkpoint.load puts into a state dict of other values."""
    state = {
        name: torch.full(t.shape, 7, dtype=torch.uint8).to(t.dtype)
        if t.dtype.itemsize > 1
        else torch.full(t.shape, 1, dtype=torch.uint8).view(t.dtype)
        for name, t in like.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def by_torch(folder: Path) -> dict:
    """The whole folder through torch's own conversion to one file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(folder, f"{folder}.by_torch.pt")
    return torch.load(f"{folder}.by_torch.pt", weights_only=True)


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in os.listdir(folder)}


@pytest.fixture
def model(tmp_path) -> tuple[Path, dict]:
    state = {"fc.weight": torch.arange(16.0).reshape(4, 4), "fc.bias": torch.ones(4), "big": torch.arange(600_000.0)}
    save_file(state, tmp_path / "m.safetensors", {"format": "pt"})
    return tmp_path / "m.safetensors", state


def test_torch_loads_every_dtype_and_name(tmp_path, paramcli):
    """load and dcp_to_torch_save give every tensor bit for bit, and so does the way back."""
    state = every_kind()
    save_file(state, tmp_path / "m.safetensors")
    paramcli("convert", tmp_path / "m.safetensors", "-o", tmp_path / "m.dcp")
    assert sorted(os.listdir(tmp_path / "m.dcp")) == [".metadata", "__0_0.distcp"]
    assert bits(by_torch(tmp_path / "m.dcp")) == bits(state)
    assert bits(loaded(tmp_path / "m.dcp", state)) == bits(state)
    paramcli("convert", tmp_path / "m.dcp", "-o", tmp_path / "back.safetensors")
    assert bits(load_file(tmp_path / "back.safetensors")) == bits(state)
    paramcli("convert", tmp_path / "m.dcp", "-o", tmp_path / "again.dcp")
    assert files(tmp_path / "again.dcp") == files(tmp_path / "m.dcp")


def test_torch_finds_nested_names(tmp_path, paramcli):
    """A training script that loads into nested dicts finds the tensors by their dotted names."""
    save_file({"model.fc.weight": torch.ones(2, 2), "model.fc.bias": torch.zeros(2)}, tmp_path / "m.safetensors")
    paramcli("convert", tmp_path / "m.safetensors", "-o", tmp_path / "m.dcp")
    state = {"model": {"fc.weight": torch.zeros(2, 2), "fc.bias": torch.ones(2)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=tmp_path / "m.dcp", no_dist=True)
    assert torch.equal(state["model"]["fc.weight"], torch.ones(2, 2)) and torch.equal(
        state["model"]["fc.bias"], torch.zeros(2)
    )


def test_processes_load_their_shards(tmp_path, paramcli):
    """Two ranks with DTensors cut along either dimension find their parts."""
    state = {name: torch.arange(42.0).reshape(7, 6) for name in ("rows", "columns")}
    save_file(state, tmp_path / "m.safetensors")
    paramcli("convert", tmp_path / "m.safetensors", "-o", tmp_path / "m.dcp", "--max-shard-size", "200B")
    (tmp_path / "load.py").write_text(SHARDED)
    lines = [[sys.executable, "load.py", str(rank), str(tmp_path / "m.dcp")] for rank in (0, 1)]
    started = [subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for line in lines]
    errors = [process.communicate(timeout=HANG_SECONDS)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors


def test_the_description_is_torch_s_own(model, tmp_path, paramcli):
    """.metadata, unpickled, is the object that torch's writer makes, but for places in the files and for
    who saved it.
    """
    path, state = model
    paramcli("convert", path, "-o", tmp_path / "m.dcp")
    ours = pickle.loads((tmp_path / "m.dcp" / ".metadata").read_bytes())  # written by this test
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            {name: state[name] for name in ours.state_dict_metadata}, checkpoint_id=tmp_path / "torch", no_dist=True
        )
    theirs = pickle.loads((tmp_path / "torch" / ".metadata").read_bytes())
    assert ours.state_dict_metadata == theirs.state_dict_metadata and list(ours.state_dict_metadata) == list(
        theirs.state_dict_metadata
    )
    assert (ours.planner_data, ours.version) == (theirs.planner_data, theirs.version)
    assert ours.storage_data.keys() == theirs.storage_data.keys()
    assert [index.index for index in ours.storage_data] == [index.index for index in theirs.storage_data]
    assert all(info.offset % 64 == 0 for info in ours.storage_data.values())  # mapped tensors are aligned
    assert vars(next(iter(ours.storage_data.values()))).keys() == vars(next(iter(theirs.storage_data.values()))).keys()


def test_every_container_can_be_the_input(model, tmp_path, paramcli):
    """Shards keep their split and bring their config; strided, tied and packed tensors of torch files, and chunks of
    two ranks, are plain ones.
    """
    path, state = model
    paramcli("convert", path, "-o", tmp_path / "shards", "--max-shard-size", "1MB")
    (tmp_path / "shards" / "config.json").write_text("{}")
    paramcli("convert", tmp_path / "shards", "-o", tmp_path / "s.dcp")
    assert sorted(os.listdir(tmp_path / "s.dcp")) == [".metadata", "__0_0.distcp", "__0_1.distcp", "config.json"]
    assert bits(by_torch(tmp_path / "s.dcp")) == bits(state)
    turned, packed = torch.randn(300, 5).t(), torch.randn(700, 700)
    nested = {
        "turned": turned,
        "first": packed[:300],
        "second": packed[300:],
        "tied": turned,
        "whole": torch.randn(600, 600),
    }
    for name, options in (("new.pt", {}), ("old.pt", {"_use_new_zipfile_serialization": False})):
        torch.save(
            {"state_dict": nested, "epoch": 3, "optimizer": {"param_groups": [], "state": {}}},
            tmp_path / name,
            **options,
        )
        told = paramcli("convert", tmp_path / name, "-o", tmp_path / f"{name}.dcp", "--check")
        assert bits(by_torch(tmp_path / f"{name}.dcp")) == bits(nested)
        assert (
            "not carried over: epoch, optimizer" in told.err
            and "a DCP folder knows no ties: tied = turned" in told.err.replace("turned = tied", "tied = turned")
        )


def test_parts_are_of_at_most_the_size_that_is_asked_for(tmp_path, paramcli):
    """--max-shard-size splits the parts, in any kind of command that takes it."""
    save_file({f"w{number}": torch.ones(100) for number in range(5)}, tmp_path / "m.safetensors")
    paramcli("convert", tmp_path / "m.safetensors", "-o", tmp_path / "m.dcp", "--max-shard-size", "800B")
    assert sorted(os.listdir(tmp_path / "m.dcp")) == [".metadata", "__0_0.distcp", "__0_1.distcp", "__0_2.distcp"]
    assert by_torch(tmp_path / "m.dcp").keys() == {f"w{number}" for number in range(5)}


def test_edits_write_such_folders_too(model, tmp_path, paramcli):
    """add, remove and migrate take -o FOLDER.dcp, and say that the record has no place there."""
    path, _ = model
    told = paramcli("add", path, "-t", "fc.weight", "--chain", "weight_norm", "-o", tmp_path / "added.dcp", "--check")
    assert "a DCP folder has no place for the record" in told.err
    paramcli("add", path, "-t", "fc.weight", "--chain", "weight_norm", "-o", tmp_path / "added.safetensors")
    assert bits(by_torch(tmp_path / "added.dcp")) == bits(load_file(tmp_path / "added.safetensors"))
    paramcli("remove", tmp_path / "added.dcp", "-o", tmp_path / "baked.dcp")
    paramcli("diff", tmp_path / "added.dcp", tmp_path / "baked.dcp")
    paramcli("migrate", tmp_path / "added.dcp", "--to", "old", "-o", tmp_path / "old.dcp")
    assert {"fc.weight_g", "fc.weight_v"} <= by_torch(tmp_path / "old.dcp").keys()
    names = json.loads(paramcli("convert", tmp_path / "added.safetensors", "-o", tmp_path / "c.dcp", "--json").out)[
        "dropped"
    ]
    assert names == ["metadata paramcli"]


def test_the_way_back_is_named_after_the_folder(model, tmp_path, paramcli):
    """The default output of m.dcp is m.safetensors, and in place is refused."""
    path, state = model
    paramcli("convert", path, "-o", tmp_path / "x.dcp")
    paramcli("convert", tmp_path / "x.dcp")
    assert bits(load_file(tmp_path / "x.safetensors")) == bits(state)
    assert (
        "FOLDER.dcp"
        in paramcli("add", tmp_path / "x.dcp", "-t", "fc.weight", "--chain", "skew", "--in-place", code=2).err
    )
    said = paramcli("convert", tmp_path / "x.dcp", "-o", tmp_path / "x.dcp", "-f", code=2).err
    assert "is the input itself" in said and "--in-place" not in said  # which neither convert nor this container has
    assert ".distcp" in paramcli("convert", path, "-o", tmp_path / "x.distcp", code=2).err


def test_a_dtype_that_torch_lacks_is_refused(tmp_path, paramcli):
    """Six-bit floats are refused by name before anything is written."""
    header = json.dumps({"six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"abc")
    assert "six is F6_E2M3" in paramcli("convert", tmp_path / "m.safetensors", "-o", tmp_path / "m.dcp", code=3).err
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """200 MB in tensors of 20 MB, from safetensors and from a torch zip, take no more memory than a start does and a
    block.
    """
    state = {f"w{number}": torch.full((5_000_000,), float(number)) for number in range(10)}
    save_file(state, tmp_path / "m.safetensors")
    torch.save(state, tmp_path / "m.pt")
    script = """
import sys
from paramcli.cli.app import run
code = run(["convert", sys.argv[1], "-o", sys.argv[1] + ".dcp", "-q"])
assert "torch" not in sys.modules
print(code, next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
    for name in ("m.safetensors", "m.pt"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)],
            capture_output=True,
            text=True,
            env=os.environ,
            check=True,
        )
        code, kibibytes = map(int, done.stdout.split()[-2:])
        assert code == 0 and kibibytes < 100_000
        shutil.rmtree(tmp_path / f"{name}.dcp")


# --- folders that exist -----------------------------------------------------------------------------


def test_a_checkpoint_that_is_replaced_leaves_none_of_its_parts(model, tmp_path, paramcli):
    """--force puts the new parts in place of all the old ones, torch's own too, and other people's files stay."""
    path, state = model
    out = tmp_path / "out.dcp"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(
            {"a": torch.ones(3), "b": torch.ones(4)},
            checkpoint_id=out,
            no_dist=True,
            storage_writer=dcp.FileSystemWriter(out, single_file_per_rank=False),
        )
    assert {"__0_0.distcp", "__0_1.distcp"} < set(os.listdir(out))
    (out / "notes.txt").write_text("mine")
    (out / "mine.distcp").write_text("mine")
    assert "exists already" in paramcli("convert", path, "-o", out, code=4).err
    paramcli("convert", path, "-o", out, "--force")
    assert sorted(os.listdir(out)) == [".metadata", "__0_0.distcp", "mine.distcp", "notes.txt"]
    assert bits(by_torch(out)) == bits(state)
    paramcli("convert", path, "-o", out, "--force", "--max-shard-size", "1MB", "--check")
    assert sorted(os.listdir(out)) == [".metadata", "__0_0.distcp", "__0_1.distcp", "mine.distcp", "notes.txt"]
    assert bits(by_torch(out)) == bits(state)


def test_a_hostile_old_description_removes_nothing_but_parts(model, tmp_path, paramcli):
    """Names in the .metadata that is replaced are followed to part files beside it alone; one that is
    broken, to none.
    """
    path, state = model
    out = tmp_path / "out.dcp"
    for name in ("thesis.pdf", "../outside.distcp", str(tmp_path / "outside.distcp")):
        paramcli("convert", path, "-o", out, "--force")
        (out / "thesis.pdf").write_text("mine")
        (tmp_path / "outside.distcp").write_text("mine")
        metadata = pickle.loads((out / ".metadata").read_bytes())  # written by this test
        next(iter(metadata.storage_data.values())).relative_path = name
        (out / ".metadata").write_bytes(pickle.dumps(metadata))
        paramcli("convert", path, "-o", out, "--force")
        assert (
            (out / "thesis.pdf").exists()
            and (tmp_path / "outside.distcp").exists()
            and bits(by_torch(out)) == bits(state)
        )
    (out / ".metadata").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    paramcli("convert", path, "-o", out, "--force")
    assert bits(by_torch(out)) == bits(state) and not Path("ran").exists()


def test_a_folder_of_something_else_is_left_alone(model, tmp_path, paramcli):
    """--force writes into a DCP folder or an empty one; another folder, and a file, stay as they are."""
    path, state = model
    (tmp_path / "photos.dcp").mkdir()
    (tmp_path / "photos.dcp" / "cat.jpg").write_text("mine")
    (tmp_path / "file.dcp").write_text("mine")
    (tmp_path / "empty.dcp").mkdir()
    assert (
        "not a folder of torch.distributed.checkpoint"
        in paramcli("convert", path, "-o", tmp_path / "photos.dcp", "-f", code=4).err
    )
    assert "is no folder" in paramcli("convert", path, "-o", tmp_path / "file.dcp", "-f", code=4).err
    assert os.listdir(tmp_path / "photos.dcp") == ["cat.jpg"] and (tmp_path / "file.dcp").read_text() == "mine"
    paramcli("convert", path, "-o", tmp_path / "empty.dcp", "-f")
    assert bits(by_torch(tmp_path / "empty.dcp")) == bits(state)


def test_shards_are_not_written_into_a_dcp_folder(model, tmp_path, paramcli):
    """Beside .metadata new shards would never be read: the folder is refused, and stays the checkpoint it is."""
    path, _ = model
    paramcli("convert", path, "-o", tmp_path / "x.dcp")
    os.rename(tmp_path / "x.dcp", tmp_path / "step")
    before = files(tmp_path / "step")
    assert (
        "holds a checkpoint of torch.distributed.checkpoint"
        in paramcli("convert", path, "-o", tmp_path / "step", "-f", code=4).err
    )
    assert files(tmp_path / "step") == before


def test_a_bad_write_is_never_published(model, tmp_path, paramcli, monkeypatch):
    """--check reads the parts back through their description: a flipped byte is exit 4, and nothing appears."""
    path, _ = model
    paramcli("convert", path, "-o", tmp_path / "good.dcp", "--check")
    with open_checkpoint(tmp_path / "good.dcp") as source:
        _, at, _ = source.tensors["fc.weight"].run
    real = write_dcp.PartFile.finish

    def finish(self):
        real(self)
        with open(self.file.temporary, "r+b") as file:
            file.seek(at + 9)
            file.write(b"!")

    monkeypatch.setattr(write_dcp.PartFile, "finish", finish)
    assert "was not written as planned" in paramcli("convert", path, "-o", tmp_path / "bad.dcp", "--check", code=4).err
    assert sorted(os.listdir(tmp_path)) == ["good.dcp", "m.safetensors"]
