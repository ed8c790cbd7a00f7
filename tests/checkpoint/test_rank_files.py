"""What FSDP's ranks saved, joined: torch's own files of two and of four processes, and what is not a whole."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.checkpoint.pickle.pickle_data import Global, Opaque, Size, StorageRef, TensorRef
from paramcli.checkpoint.read.dtensor import Distributed, read_dtensor
from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.errors import InputRefused

from ..hostile.test_mutations import mutate
from ..pace import HANG_SECONDS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    script = str(Path(__file__).with_name("fsdp_ranks.py"))
    lines = [[sys.executable, script, str(rank), "4", str(place)] for rank in range(4)]
    started = [subprocess.Popen(line, cwd=place, stderr=subprocess.PIPE, text=True) for line in lines]
    errors = [process.communicate(timeout=HANG_SECONDS)[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, errors
    return place


@pytest.fixture(params=[2, 4])
def whole(request, made) -> tuple[Path, dict[str, torch.Tensor]]:
    """(the folder of the ranks' files, the tensors they were made of)"""
    return made / str(request.param), torch.load(made / str(request.param) / "whole.pt")


def rank_file(folder: Path, rank: int, size: int = 2) -> Path:
    return folder / f"model_world_size_{size}_rank_{rank}.pt"


def rewritten(path: Path, change) -> None:
    """The archive again with `change(member, bytes)` for each member's bytes, and checksums that are right."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, change(name.partition("/")[2], data))


def refusal(folder: Path) -> InputRefused:
    with pytest.raises(InputRefused) as caught:
        open_checkpoint(folder)
    assert str(caught.value).isprintable()
    return caught.value


def test_blocks_join_to_the_whole(whole):
    """Uneven cuts, empty ones, two dimensions of a mesh, strided cuts, replicas: torch.equal to what was spread."""
    folder, tensors = whole
    with open_checkpoint(folder) as source:
        assert source.container == "FSDP rank files" and list(source.tensors) == list(tensors)
        for name, tensor in tensors.items():
            read = source.read(name)
            assert read.dtype == tensor.dtype and torch.equal(read, tensor), name
        assert ["rows", "tied"] in source.tied()


def test_every_command_takes_them(whole, tmp_path, paramcli):
    """convert to each container, diff against the whole, an edit, and the default name beside the folder."""
    folder, tensors = whole
    tensors.pop("tied")
    for output in ("o.safetensors", "o.pt", "o.dcp", "o"):
        paramcli("convert", folder, "-o", tmp_path / output, "--drop", "tied", "--check")
        with open_checkpoint(tmp_path / output) as source:
            assert source.tensors.keys() == tensors.keys()
            assert all(torch.equal(source.read(name), tensor) for name, tensor in tensors.items())
    assert paramcli("diff", folder, folder / "whole.pt", "--exact", "--json").json["equal"]
    moved = shutil.copytree(folder, tmp_path / "actor")
    paramcli("add", moved, "-t", "a.0.weight", "--chain", "weight_norm")
    assert "a.0.parametrizations.weight.original1" in load_file(tmp_path / "actor.parametrized.safetensors")
    assert (
        "--in-place works on files"
        in paramcli("add", moved, "-t", "a.0.weight", "--chain", "positive", "--in-place", code=2).err
    )


def test_a_root_is_found_in_all_of_them(made, paramcli):
    """The state dict may be one level down; what is beside it is named."""
    document = paramcli("inspect", made / "nested", "--json").json
    assert [group["tensor"] for group in document["tensors"]] == ["w"] and document["root"] == "model"
    assert document["extra"] == [{"name": "step", "type": "int"}]


def ranks_of(folder: Path, *states: object) -> Path:
    """A folder of rank files of plain tensors."""
    folder.mkdir()
    for rank, state in enumerate(states):
        torch.save(state, rank_file(folder, rank, len(states)))
    return folder


def test_what_only_other_ranks_have_is_named(tmp_path, paramcli):
    """An epoch, a note in the state dict, an optimizer: each once, with the first rank that has it."""
    fc = {"fc.weight": torch.ones(2, 3)}
    others = [{"model": {**fc, "note": "x"}, "step": 1, "epoch": 7}, {"model": fc, "epoch": 7, "lr": [0.1]}]
    folder = ranks_of(tmp_path / "m", {"model": fc, "step": 1}, *others)
    said = paramcli("convert", folder, "-o", tmp_path / "o.safetensors").err
    assert torch.equal(load_file(tmp_path / "o.safetensors")["fc.weight"], torch.ones(2, 3))
    extra = paramcli("inspect", folder, "--json").json["extra"]
    assert [one["name"] for one in extra] == ["step", "rank 1: epoch", "rank 1: model.note", "rank 2: lr"]
    assert all(one["name"] in said for one in extra)


def test_state_dicts_that_rank_0_lacks_are_asked_for(tmp_path, paramcli):
    """An EMA on the other rank: refused with the root that reads the one, and then named; a join has no way without."""
    fc = {"fc.weight": torch.ones(2, 3)}
    folder = ranks_of(tmp_path / "m", {"model": fc}, {"model": fc, "ema": {"fc.weight": torch.zeros(2, 3)}})
    convert = ("convert", folder, "-o", tmp_path / "o.safetensors")
    said = paramcli(*convert, code=3).err
    assert "_rank_1.pt has state dicts that rank 0 lacks: ema" in said and "--root model" in said
    assert "_rank_1.pt has other state dicts than rank 0: ema" in paramcli(*convert, "--root", "*", code=3).err
    assert not (tmp_path / "o.safetensors").exists()
    assert "rank 1: ema" in paramcli(*convert, "--root", "model").err


def test_one_rank_is_not_the_model(made, tmp_path, paramcli):
    """A file alone, by its name or in a folder, is refused by the others' names; two runs are two checkpoints."""
    for path in (rank_file(made / "4", 2, 4), rank_file(made / "2", 0)):
        assert "what one of" in paramcli("inspect", path, code=3).err
    folder = tmp_path / "m"
    folder.mkdir()
    shutil.copy(rank_file(made / "4", 2, 4), folder)
    assert "lacks 3 of its 4 parts: model_world_size_4_rank_0.pt" in paramcli("inspect", folder, code=3).err
    shutil.copy(rank_file(made / "2", 0), folder)
    assert "several checkpoints" in paramcli("inspect", folder, code=3).err
    folder = shutil.copytree(made / "2", tmp_path / "n")
    save_file({"w": torch.ones(1)}, folder / "model.safetensors")
    assert "several checkpoints" in paramcli("inspect", folder, code=3).err


@pytest.mark.parametrize(
    ("folder", "message", "tensor"),
    [
        ("sums", "w is a DTensor with the placement Partial", "w"),
        ("names", "has more, unlike rank 0", "more"),
        ("kinds", "rank 1 has another w than rank 0", "w"),
        ("shapes", "rank 1 has another w than rank 0", "w"),
    ],
)
def test_what_is_no_whole_is_refused_by_name(folder, message, tensor, made):
    """Sums that are still to be made, replicas that differ, and ranks that do not have the same."""
    error = refusal(made / folder)
    assert message in str(error) and error.tensor == tensor and error.hint


def test_what_each_rank_has_for_itself_is_odd(made, tmp_path, paramcli):
    """Running statistics that differ: listed with the reason, refused where they would be carried, and left out."""
    (group,) = [g for g in paramcli("inspect", made / "statistics", "--json").json["tensors"] if g["tensor"] == "mean"]
    assert "has other values on rank 1 than on rank 0" in group["problem"]
    line = ["convert", made / "statistics", "-o", tmp_path / "o.safetensors"]
    assert "mean has other values on rank 1" in paramcli(*line, code=3).err
    paramcli(*line, "--drop", "mean")
    assert list(load_file(tmp_path / "o.safetensors")) == ["w"]


def test_one_rank_s_odd_block_makes_the_whole_odd(made, tmp_path, paramcli):
    """A lazy view on the second rank, as a DTensor's block and as a plain tensor: listed whole, refused, left out."""
    plain = torch.ones(2, 3)
    folder = ranks_of(tmp_path / "m", {"w": plain, "view": plain}, {"w": plain, "view": torch._neg_view(plain)})
    for path, shape in ((made / "lazy", [4, 2]), (folder, [2, 3])):
        (view,) = [g for g in paramcli("inspect", path, "--json").json["tensors"] if g["tensor"] == "view"]
        assert "view is a lazy view" in view["problem"] and view["shape"] == shape
        line = ["convert", path, "-o", tmp_path / "o.safetensors", "-f"]
        assert "view is a lazy view" in paramcli(*line, code=3).err
        paramcli(*line, "--drop", "view")
        assert list(load_file(tmp_path / "o.safetensors")) == ["w"]


def test_a_file_that_is_there_twice_is_missed(made, tmp_path):
    """Rank 0's file under rank 1's name has no block that is missing."""
    folder = shutil.copytree(made / "2", tmp_path / "m")
    shutil.copy(rank_file(folder, 0), rank_file(folder, 1))
    assert "there are 1 of 2 blocks" in str(refusal(folder))


def test_names_of_files_do_not_decide_the_order(made, tmp_path):
    """Each rank says where its blocks belong: files that were swapped join to the same."""
    folder = shutil.copytree(made / "2", tmp_path / "m")
    os.rename(rank_file(folder, 0), folder / "x")
    os.rename(rank_file(folder, 1), rank_file(folder, 0))
    os.rename(folder / "x", rank_file(folder, 1))
    with open_checkpoint(folder) as source, open_checkpoint(folder / "whole.pt") as whole:
        assert all(torch.equal(source.read(name), whole.read(name)) for name in whole.tensors)


@pytest.mark.parametrize("sums", [True, False], ids=["checksums", "no checksums"])
def test_replicas_are_compared_and_not_believed(sums, made, tmp_path):
    """One bit in the copy that is not taken is found, whether the archives have checksums or not."""
    folder = shutil.copytree(made / "2", tmp_path / "m")
    with open_checkpoint(folder) as source:
        members = {name: source.tensors[name].storage.key for name in ("alike", "plain")}
    for name, member in members.items():
        changed = shutil.copytree(folder, tmp_path / f"{name}{sums}")

        def flip(at: str, data: bytes, member=member) -> bytes:
            return bytes([data[0] ^ 1]) + data[1:] if at == member else data

        rewritten(rank_file(changed, 1), flip)
        if not sums:
            for rank in (0, 1):
                without_sums(rank_file(changed, rank))
        if name == "alike":
            error = refusal(changed)
            assert error.tensor == name and "other values" in str(error)
        else:
            with open_checkpoint(changed) as source:
                assert [name for name, info in source.tensors.items() if not info.is_readable] == [name]
    if not sums:
        for rank in (0, 1):
            without_sums(rank_file(folder, rank))
        with open_checkpoint(folder) as source:
            assert "alike" in source.tensors


def without_sums(path: Path) -> None:
    """Zeros in the places of all checksums, as torch writes them when it is told not to sum."""
    with zipfile.ZipFile(path) as archive:
        infos, data = archive.infolist(), bytearray(path.read_bytes())
        place = archive.start_dir
    for info in infos:
        data[info.header_offset + 14 : info.header_offset + 18] = bytes(4)
        data[place + 16 : place + 20] = bytes(4)
        lengths = [int.from_bytes(data[place + at : place + at + 2], "little") for at in (28, 30, 32)]
        place += 46 + sum(lengths)
    path.write_bytes(data)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_cuts_are_those_of_torch_chunk(count):
    """Of every size over every number of processes: where the pieces begin, how long they are, and which are empty."""
    local = TensorRef(StorageRef("", "F32", 0, "cpu"), "F32", 0, (0,), (1,))
    for size in range(12):
        pieces = [piece.tolist() for piece in torch.arange(size).chunk(count) if piece.numel()]
        for rank in range(count):
            (begin,), (length,) = Distributed(local, (size,), "F32", (count,), (0,), (0,), (rank,)).block
            assert list(range(begin, begin + length)) == (pieces[rank] if rank < len(pieces) else [])


def opaque(name: str, state: dict | None = None, *arguments: object) -> Opaque:
    return Opaque(Global("torch.distributed.tensor", name), arguments, "new", state)


@pytest.mark.parametrize(
    "mesh",
    [
        {"mesh": TensorRef(StorageRef("", "I32", 6, "cpu"), "I32", 0, (3, 2), (2, 1))},
        {"_layout": opaque("_MeshLayout", {"shape": (3, 2), "stride": (2, 1)})},
        {"_layout": opaque("_MeshLayout", {"shape": (3, (1, 2)), "stride": (2, (2, 1))})},
        {"_layout": opaque("_MeshLayout", {"axes": (opaque("A", {"shape": (3,)}), opaque("A", {"shape": (2,)}))})},
    ],
    ids=["a tensor, to 2.8", "a layout", "a flattened dimension", "axes, 2.13"],
)
def test_a_mesh_is_read_as_every_torch_has_it(mesh):
    """A tensor of ranks or a layout of sizes: three processes cut the rows, and two of each cut again, or first."""
    local = TensorRef(StorageRef("", "F32", 4, "cpu"), "F32", 0, (2, 2), (2, 1))
    spec = {
        "mesh": opaque("DeviceMesh", {**mesh, "_coordinate_on_dim": [1, 1]}),
        "placements": (opaque("Shard", {"dim": 0}), opaque("Shard", {"dim": 0})),
        "tensor_meta": opaque("TensorMeta", None, Size((11, 2)), (2, 1), Global("torch", "float32")),
    }

    def read(**more: object) -> Distributed:
        state = {"_local_tensor": local, "_spec": opaque("DTensorSpec", {**spec, **more})}
        return read_dtensor(opaque("DTensor", None, None, None, None, (), (None, state)))

    assert read().mesh == (3, 2) and read().block == ((6, 0), (2, 2))  # 4, 4, 3; then 2, 2
    first = opaque("ShardOrderEntry", None, 0, (1, 0))
    assert read(shard_order=(first,)).block == ((8, 0), (2, 2))  # 6, 5; then 2, 2, 1
    strided = (opaque("_StridedShard", {"dim": 0, "split_factor": 2}), opaque("Shard", {"dim": -2}))
    assert read(placements=strided).block == ((8, 0), (2, 2)) and read(placements=strided).order == (1, 0)
    unknown = (opaque("_StridedShard", {"dim": 0, "split_factor": 3}), opaque("Shard", {"dim": 0}))
    with pytest.raises(InputRefused, match="in an order that is not known"):
        read(placements=unknown)


def test_a_lie_in_a_dtensor_is_refused(made, tmp_path):
    """Coordinates outside the mesh, dimensions that are none, another split: refused, and never a bug."""
    for number, (old, new) in enumerate(
        {
            b"_coordinate_on_dim": b"_coordinate_no_dims",
            b"placements": b"placement_",
            b"tensor_meta": b"tensor_mete",
            b"split_factor": b"split_fact__",
            b"_local_tensor": b"_local_tensox",
            b"DeviceMesh": b"DeviceMush",
            b"Replicate": b"Replikate",
        }.items()
    ):
        folder = shutil.copytree(made / "4", tmp_path / str(number))
        for rank in range(4):
            rewritten(
                rank_file(folder, rank, 4),
                lambda at, data, old=old, new=new: data.replace(old, new[: len(old)]) if at == "data.pkl" else data,
            )
        refusal(folder)


@pytest.mark.parametrize("count", [150, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutations_of_a_rank_s_description(count, made, tmp_path):
    """Bytes changed, taken out and put in: refused in one line, or read; never a bug, and never without an end."""
    folder = shutil.copytree(made / "nested", tmp_path / "m")
    sound, refused = rank_file(folder, 1).read_bytes(), 0
    with zipfile.ZipFile(rank_file(folder, 1)) as archive:
        description = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    for number in range(count):
        changed = mutate(description, random.Random(number))
        rank_file(folder, 1).write_bytes(sound)
        rewritten(rank_file(folder, 1), lambda at, data, changed=changed: changed if at == "data.pkl" else data)
        try:
            with open_checkpoint(folder) as source:
                for name in source.tensors:
                    source.read(name)
        except InputRefused as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > count / 2
