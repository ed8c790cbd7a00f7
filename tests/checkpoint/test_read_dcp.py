"""torch.distributed.checkpoint folders: torch's own, in one piece and sharded over processes, and hostile ones."""

from __future__ import annotations

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
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.errors import InputRefused

from ..pace import HANG_SECONDS, steps

# Two processes save tensors cut along either dimension, unevenly, one replicated and one that is not sharded.
SHARDED = """
import sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
SHAPES = {"rows": (7, 5), "columns": (4, 6), "same": (2, 2), "one": (1, 8)}
def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole = {name: torch.arange(float(a * b)).reshape(a, b) for name, (a, b) in SHAPES.items()}
    state = {
        "rows.weight": distribute_tensor(whole["rows"], mesh, [Shard(0)]),
        "columns.weight": distribute_tensor(whole["columns"].bfloat16(), mesh, [Shard(1)]),
        "same.weight": distribute_tensor(whole["same"], mesh, [Replicate()]),
        "one.weight": distribute_tensor(whole["one"], mesh, [Shard(0)]),
        "plain.bias": torch.ones(3, dtype=torch.int64),
    }
    dcp.save({"model": state, "step": 7}, checkpoint_id=folder)
    dist.destroy_process_group()
work(int(sys.argv[1]), sys.argv[2])
"""


def save(state: dict, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder, no_dist=True)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("dcp")
    (place / "save.py").write_text(SHARDED)
    lines = [[sys.executable, "save.py", str(rank), str(place / "model")] for rank in (0, 1)]
    started = [subprocess.Popen(line, cwd=place, stderr=subprocess.PIPE, text=True) for line in lines]
    errors = [process.communicate(timeout=HANG_SECONDS)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    return place / "model"


@pytest.fixture
def state() -> dict:
    torch.manual_seed(0)
    return {
        "fc.weight": torch.randn(4, 6),
        "fc.bias": torch.randn(4).bfloat16(),
        "ids": torch.arange(5),
        "scale": torch.tensor(2.0),
        "none": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
        "turned": torch.randn(3, 5).t(),
    }


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_what_torch_saves_is_read(tmp_path, state):
    """Every tensor of a plain state dict comes out as it was, in shape, dtype and value."""
    with open_checkpoint(save(state, tmp_path / "a")) as source:
        assert source.container == "torch DCP"
        assert same({name: source.read(name) for name in source.tensors}, state)


def test_convert_copies_bytes(tmp_path, state, paramcli):
    """convert writes the tensors as safetensors, or as a torch file, and names what is no tensor."""
    folder = save(
        {"model": state, "epoch": 3, "optimizer": {"param_groups": [1.5], "state": {"0": {"m": torch.ones(2)}}}},
        tmp_path / "a",
    )
    told = paramcli("convert", folder)
    assert "epoch" in told.err and "optimizer" in told.err
    assert same(load_file(tmp_path / "a.safetensors"), state)
    paramcli("convert", folder, "-o", tmp_path / "a.pt")
    assert same(torch.load(tmp_path / "a.pt", weights_only=True), state)


def test_a_second_state_dict_asks_for_root(tmp_path, paramcli):
    """Two state dicts in one folder are candidates, as in a nested torch file."""
    folder = save({"model": {"a.weight": torch.ones(2, 2)}, "ema": {"a.weight": torch.zeros(2, 2)}}, tmp_path / "a")
    assert "--root" in paramcli("inspect", folder, code=3).err
    paramcli("convert", folder, "--root", "ema", "-o", tmp_path / "e.safetensors")
    assert same(load_file(tmp_path / "e.safetensors"), {"a.weight": torch.zeros(2, 2)})


def test_chunks_of_two_processes_are_put_together(sharded, tmp_path, paramcli):
    """Tensors that two ranks hold halves of, by rows or by columns, are whole again in every container."""
    whole = {
        name: torch.arange(float(a * b)).reshape(a, b)
        for name, (a, b) in {"rows": (7, 5), "columns": (4, 6), "same": (2, 2), "one": (1, 8)}.items()
    }
    wanted = {f"{name}.weight": tensor for name, tensor in whole.items()} | {
        "plain.bias": torch.ones(3, dtype=torch.int64)
    }
    wanted["columns.weight"] = wanted["columns.weight"].bfloat16()
    with open_checkpoint(sharded) as source:
        assert len(source.tensors["rows.weight"].pieces) == len(source.tensors["columns.weight"].pieces) == 2
    paramcli("convert", sharded, "-o", tmp_path / "x.safetensors")
    paramcli("convert", sharded, "-o", tmp_path / "x.pt")
    paramcli("convert", sharded, "-o", tmp_path / "x", "--max-shard-size", "100")
    assert same(load_file(tmp_path / "x.safetensors"), wanted)
    assert same(torch.load(tmp_path / "x.pt", weights_only=True), wanted)
    assert same({k: v for shard in (tmp_path / "x").glob("*.safetensors") for k, v in load_file(shard).items()}, wanted)


def test_edits_work_on_the_folder(tmp_path, paramcli):
    """add and remove take a DCP folder; the default output is one file beside it, -o FOLDER shards, in place is
    refused.
    """
    folder = save({"fc.weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(0))}, tmp_path / "a")
    paramcli("add", folder, "-t", "fc.weight", "--chain", "weight_norm")
    paramcli("verify", tmp_path / "a.parametrized.safetensors")
    paramcli("add", folder, "-t", "fc.weight", "--chain", "weight_norm", "-o", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["model.safetensors", "model.safetensors.index.json"]
    assert "in-place" in paramcli("add", folder, "-t", "fc.weight", "--chain", "weight_norm", "--in-place", code=2).err


# --- hostile folders --------------------------------------------------------------------------------


def changed(folder: Path, change) -> None:
    """.metadata as `change` leaves it."""
    place = folder / ".metadata"
    metadata = pickle.loads(place.read_bytes())  # written by this test
    place.write_bytes(pickle.dumps(change(metadata) or metadata, protocol=4))


def info_of(metadata, name: str):
    return next(info for index, info in metadata.storage_data.items() if index.fqn == name)


def chunks_of(metadata, name: str = "fc.weight") -> list:
    return metadata.state_dict_metadata[name].chunks


def chunk(offsets, sizes) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


def renamed(metadata, path: str) -> None:
    info_of(metadata, "fc.weight").relative_path = path


def shared(metadata) -> None:
    info_of(metadata, "fc.weight").offset = info_of(metadata, "fc.bias").offset
    info_of(metadata, "fc.weight").length = info_of(metadata, "fc.bias").length


def halves(metadata, *places) -> None:
    """fc.weight said to be in these chunks, each with a range of its own."""
    metadata.state_dict_metadata["fc.weight"].chunks[:] = [chunk(*place) for place in places]
    info = metadata.storage_data.pop(next(i for i in metadata.storage_data if i.fqn == "fc.weight"))
    for number, (offsets, _) in enumerate(places):
        metadata.storage_data[MetadataIndex("fc.weight", offsets)] = type(info)(
            info.relative_path, info.offset + number, 1
        )


def far(metadata) -> None:
    info_of(metadata, "fc.weight").offset = 1 << 40


def unknown(metadata) -> None:
    metadata.storage_data[MetadataIndex("ghost")] = info_of(metadata, "fc.bias")


def lost(metadata) -> None:
    metadata.storage_data.pop(next(i for i in metadata.storage_data if i.fqn == "fc.weight"))


def other_dtype(metadata) -> None:
    metadata.state_dict_metadata["fc.weight"].properties.dtype = torch.int32


def other_shape(metadata) -> None:
    metadata.state_dict_metadata["fc.weight"].size = torch.Size((2, 12))
    chunks_of(metadata)[0].sizes = torch.Size((2, 12))


def shifted(metadata) -> None:
    info_of(metadata, "fc.weight").offset += 1
    info_of(metadata, "fc.weight").length -= 1


def negative(metadata) -> None:
    info_of(metadata, "fc.weight").offset = -1


def compressed(metadata) -> None:
    info_of(metadata, "fc.weight").transform_descriptors = ["stream.zstd"]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda m: renamed(m, "../secret"), "no plain file name"),
        (lambda m: renamed(m, "/etc/passwd"), "no plain file name"),
        (lambda m: renamed(m, "absent.distcp"), "is not there"),
        (far, "cut short"),
        (negative, "lies at no place"),
        (shifted, "no archive of torch.save"),
        (shared, "shares bytes"),
        (unknown, "does not describe"),
        (lost, "are not its chunks"),
        (other_dtype, "another tensor"),
        (other_shape, "another tensor"),
        (compressed, "extension"),
        (lambda m: halves(m, ((0, 0), (2, 6))), "do not add up"),
        (lambda m: halves(m, ((0, 0), (2, 6)), ((1, 0), (2, 6))), "overlap"),
        (lambda m: halves(m, ((0, 0), (2, 6)), ((0, 0), (2, 6))), "one place|are not its chunks"),
        (lambda m: halves(m, ((0, 0), (4, 3)), ((0, 4), (4, 3))), "outside"),
        (lambda m: halves(m, ((0, 0), (4, 6)), ((0, 0, 0), (0, 0, 0))), "dimensions"),
        (lambda m: {"state_dict_metadata": {}}, "where a Metadata belongs"),
        (lambda m: m.state_dict_metadata.__setitem__("fc.weight", 5), "TensorStorageMetadata belongs"),
        (lambda m: setattr(m, "planner_data", {"fc.weight": ("fc.bias", "x"), "fc.bias": ("fc.bias",)}), "path"),
    ],
)
def test_a_lie_in_the_metadata_is_refused(tmp_path, paramcli, change, said):
    """Each lie is one line and exit 3, before anything is written."""
    folder = save({"fc.weight": torch.randn(4, 6), "fc.bias": torch.randn(4)}, tmp_path / "a")
    changed(folder, change)
    with pytest.raises(InputRefused, match=said):
        open_checkpoint(folder)
    paramcli("convert", folder, "-o", tmp_path / "x.safetensors", code=3)
    assert sorted(os.listdir(tmp_path)) == ["a"]


class Payload:
    """Pickled, it is a call of os.system."""

    def __reduce__(self):
        return os.system, ("touch payload-ran",)


def test_a_pickle_that_calls_is_refused_and_calls_nothing(tmp_path, paramcli, monkeypatch):
    """A .metadata that names os.system is refused by that name; nothing runs."""
    monkeypatch.chdir(tmp_path)
    folder = save({"fc.weight": torch.randn(4, 6)}, tmp_path / "a")
    changed(folder, lambda metadata: setattr(metadata, "planner_data", Payload()))
    assert "could run code" in paramcli("inspect", folder, code=3).err
    (folder / ".metadata").write_bytes(pickle.dumps(Payload()))
    assert "could run code" in paramcli("inspect", folder, code=3).err
    assert not (tmp_path / "payload-ran").exists()


def test_a_part_that_is_cut_or_damaged_is_refused(tmp_path, paramcli):
    """A truncated part is refused at once, a flipped bit in a tensor when its checksum is compared."""
    folder = save({"fc.weight": torch.randn(400, 6)}, tmp_path / "a")
    part = next(folder.glob("*.distcp"))
    data = part.read_bytes()
    part.write_bytes(data[:-100])
    assert "cut short" in paramcli("inspect", folder, code=3).err
    at = len(data) // 2
    part.write_bytes(data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :])
    assert "checksum" in paramcli("convert", folder, "-o", tmp_path / "x.safetensors", code=3).err
    part.unlink()
    part.mkdir()
    paramcli("inspect", folder, code=3)


def test_a_view_that_would_blow_up_is_refused(tmp_path, paramcli):
    """A chunk of one number that is said to be a huge tensor by stride 0 is not written out."""
    folder = save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "a")
    part = next(folder.glob("*.distcp"))
    torch.save(torch.zeros(1).expand(100_000, 100_000), part)

    def claim(metadata):
        metadata.state_dict_metadata["fc.weight"].size = torch.Size((100_000, 100_000))
        chunks_of(metadata)[0].sizes = torch.Size((100_000, 100_000))
        info_of(metadata, "fc.weight").length = part.stat().st_size

    changed(folder, claim)
    assert "expanded view" in paramcli("inspect", folder, code=3).err


def test_a_folder_without_its_metadata_is_half_a_checkpoint(tmp_path, paramcli):
    """Parts alone are refused with what is missing."""
    folder = save({"fc.weight": torch.randn(4, 6)}, tmp_path / "a")
    (folder / ".metadata").unlink()
    assert "without its .metadata" in paramcli("inspect", folder, code=3).err


def test_chunks_that_differ_from_what_they_hold_are_refused(sharded, tmp_path):
    """Two chunks of one tensor whose ranges are swapped, of another size each, do not pass for each other."""
    folder = shutil.copytree(sharded, tmp_path / "a")

    def swap(metadata):
        one, two = (i for i in metadata.storage_data if i.fqn == "model.rows.weight")
        data = metadata.storage_data
        data[one], data[two] = data[two], data[one]

    changed(folder, swap)
    with pytest.raises(InputRefused, match="another tensor"):
        open_checkpoint(folder)


def test_thousands_of_chunks_cost_linear_time(tmp_path):
    """The tiling of a tensor in 20,000 chunks along one dimension is checked without comparing all pairs."""
    from paramcli.checkpoint.read.dcp_metadata import Chunk, Entry, _check_tiling

    for turn in (1, -1):
        chunks = tuple(Chunk((i, 0)[::turn], (1, 2)[::turn]) for i in range(20_000))
        _check_tiling("w", Entry("F32", (20_000, 2)[::turn], chunks))


@pytest.mark.parametrize("whole", [True, False], ids=["one entry", "one list of chunks"])
def test_names_that_share_chunks_cost_their_bytes(whole, tmp_path):
    """A hundred names recall one tensor of 5,000 chunks, or its list alone: refused before the product is built."""
    chunks = [ChunkStorageMetadata(torch.Size([i]), torch.Size([1])) for i in range(5000)]

    def tensor() -> TensorStorageMetadata:
        return TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([5000]), chunks)

    one = tensor()
    entries = {f"w{i}": one if whole else tensor() for i in range(100)}
    data = {MetadataIndex("w0", torch.Size([i])): _StorageInfo("__0_0.distcp", i, 1) for i in range(5000)}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(Metadata(entries, storage_data=data)))
    (tmp_path / "__0_0.distcp").write_bytes(b"x" * 5000)

    def opened() -> None:
        with pytest.raises(InputRefused, match="more chunks than it has data of"):
            open_checkpoint(tmp_path)

    assert steps(opened, 40_000_000) < 40_000_000


@pytest.mark.parametrize("numel", [1, 2000, 4000, 300_000])
def test_archives_of_every_size_are_read(tmp_path, numel):
    """Archives smaller than what is read of their ends, about as large, and much larger."""
    state = {f"w{i}": torch.arange(numel, dtype=torch.float32) + i for i in range(3)}
    with open_checkpoint(save(state, tmp_path / "a")) as source:
        assert same({name: source.read(name) for name in source.tensors}, state)
