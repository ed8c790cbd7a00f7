"""Shards and their index as one Source: complete and consistent, or refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paramcli.chain import parse_chain
from paramcli.checkpoint.read.folder import index_name, open_folder_or_index, sibling_files
from paramcli.errors import InputRefused
from paramcli.spelling.record import Entry, record_in, record_text

from ..pace import calls

TENSORS = {f"layers.{i}.weight": torch.full((2, 3), float(i)) for i in range(5)}
SPLIT = {
    "model-00001-of-00002.safetensors": ["layers.0.weight", "layers.2.weight"],
    "model-00002-of-00002.safetensors": ["layers.1.weight", "layers.3.weight", "layers.4.weight"],
}
INDEX = "model.safetensors.index.json"
TOTAL = 5 * 6 * 4
METADATA = {"total_size": TOTAL}


def write_index(folder: Path, split=SPLIT, metadata: object = METADATA, name: str = INDEX) -> Path:
    weight_map = {tensor: shard for shard, names in split.items() for tensor in names}
    (folder / name).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))
    return folder / name


@pytest.fixture
def model(tmp_path) -> Path:
    """A folder with two shards, an index, and what else lies in such folders."""
    folder = tmp_path / "model"
    folder.mkdir()
    for shard, names in SPLIT.items():
        save_file({name: TENSORS[name] for name in names}, folder / shard, {"format": "pt"})
    write_index(folder)
    return folder


def refusal(path: Path) -> str:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InputRefused) as caught:
        open_folder_or_index(path)
    assert caught.value.message.isprintable() and os.listdir("/proc/self/fd") == before
    return caught.value.message


@pytest.mark.parametrize("which", ["", INDEX], ids=["folder", "index file"])
def test_a_folder_and_its_index_give_every_tensor(model, which):
    """All shards' tensors, with the shard each lies in, are one Source."""
    with open_folder_or_index(model / which) as source:
        assert source.container == "sharded safetensors" and source.path == model / which
        assert source.shards == SPLIT and source.notes == [] and source.metadata == {"format": "pt"}
        assert set(source.tensors) == set(TENSORS) and len(source.files) == 2
        for name, tensor in TENSORS.items():
            assert torch.equal(source.read(name), tensor)
        source.check_unchanged()


def test_a_folder_with_one_file_is_that_file(tmp_path):
    """A folder whose only checkpoint is one .safetensors opens it."""
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    with open_folder_or_index(tmp_path) as source:
        assert source.container == "safetensors" and source.path == tmp_path / "model.safetensors"


def test_shards_may_be_links_out_of_the_folder(model):
    """The hub's cache keeps links to blobs elsewhere; those are followed."""
    blobs = model.parent / "blobs"
    blobs.mkdir()
    for shard in SPLIT:
        os.rename(model / shard, blobs / f"{len(shard)}{shard[8]}{shard}.blob")
        (model / shard).symlink_to(blobs / f"{len(shard)}{shard[8]}{shard}.blob")
    with open_folder_or_index(model) as source:
        assert set(source.tensors) == set(TENSORS)


def test_many_shards_need_few_open_files(tmp_path):
    """Two hundred shards are read with a limit of sixty-four open files."""
    import resource

    split = {f"s{i:03d}.safetensors": [f"t{i}"] for i in range(200)}
    for shard, (name,) in split.items():
        save_file({name: torch.full((3,), float(name[1:]))}, tmp_path / shard)
    write_index(tmp_path, split, None)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with open_folder_or_index(tmp_path) as source:
            for i in (*range(200), 0):
                assert source.read(f"t{i}").tolist() == [i] * 3
            source.check_unchanged()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("size", [TOTAL + 1, 0, 10**30])
def test_a_wrong_total_size_is_a_note(model, size):
    """Real hub files have wrong sums: that is told, not refused."""
    write_index(model, metadata={"total_size": size, "other": [1.5, None, {"a": "b"}]})
    with open_folder_or_index(model) as source:
        (note,) = source.notes
        assert str(size) in note and str(TOTAL) in note


@pytest.mark.parametrize("metadata", [None, {}, [], "x", {"total_size": "120"}, {"total_size": 120.0}])
def test_an_index_without_a_total_is_read(model, metadata):
    """The index's metadata may be missing or of any kind."""
    write_index(model, metadata=metadata)
    with open_folder_or_index(model) as source:
        assert source.notes == []


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "a\\b.safetensors", "", ".", "..", "a\0b", "x" * 256],
)
def test_a_shard_name_that_is_a_path_is_refused(model, name):
    """A shard is a plain file name in the index's folder, whatever lies at the other end."""
    save_file({"t": torch.zeros(1)}, model.parent / "secret.safetensors")
    write_index(model, {**SPLIT, name: ["t"]})
    assert "no plain file name" in refusal(model)


def test_index_and_shards_must_name_the_same_tensors(model):
    """A tensor missing in a shard, in the index, or in the other shard is refused by name."""
    a, b = SPLIT
    write_index(model, {**SPLIT, a: [*SPLIT[a], "extra"]})
    assert "lacks 'extra'" in refusal(model)
    write_index(model, {a: SPLIT[a], b: SPLIT[b][1:]})
    assert "holds 'layers.1.weight', and the index does not name it" in refusal(model)
    write_index(model, {a: SPLIT[b], b: SPLIT[a]})
    assert "holds 'layers.0.weight', and the index puts it in model-00002" in refusal(model)
    write_index(model, {a: SPLIT[a], b: SPLIT[b], "none.safetensors": ["x"]})
    assert "none.safetensors, which is not there" in refusal(model)


def test_a_tensor_in_two_shards_is_refused(model):
    """A name that two shards hold is refused, though the index names it once."""
    a, b = SPLIT
    save_file({name: TENSORS[name] for name in [*SPLIT[b], SPLIT[a][0]]}, model / b)
    assert "holds 'layers.0.weight', and the index puts it in model-00001" in refusal(model)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"weight_map":{}}',
        '{"weight_map":[]}',
        '{"weight_map":null}',
        '{"weight_map":{"a":1}}',
        '{"weight_map":{"a":null}}',
        '{"weight_map":{"a":{"b":"c"}}}',
        '{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}',
        '{"weight_map":{"a":"x"},"weight_map":{"a":"x"}}',
        '{"weight_map":{"a":"x"}',
        '{"weight_map":{"a":"x"}} x',
        '{"weight_map":{"\\ud800":"x"}}',
        '{"x":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"metadata":' + '{"a":' * 100_000 + "1" + "}" * 100_001,
        "[" * 1_000_000,
    ],
)
def test_a_malformed_index_is_refused(model, text):
    """Anything but one object with a map of text to text is refused, nested bombs included."""
    (model / INDEX).write_text(text)
    assert "is not a sound index" in refusal(model)


def test_an_index_that_is_no_utf8_or_no_file_is_refused(model):
    """Latin-1 text, a FIFO and a folder in the index's place are refused."""
    (model / INDEX).write_bytes(b'{"weight_map":{"\xe9":"x"}}')
    assert "UTF-8" in refusal(model)
    os.unlink(model / INDEX)
    os.mkfifo(model / INDEX)
    assert "special file" in refusal(model / INDEX)


def test_a_broken_shard_is_named(model):
    """A cut shard, an LFS pointer and a FIFO are refused with the shard's name."""
    shard = model / list(SPLIT)[1]
    content = shard.read_bytes()
    for broken, says in ((content[:-1], "cut short"), (b"version https://git-lfs.github.com/spec/v1\n", "LFS")):
        shard.write_bytes(broken)
        message = refusal(model)
        assert says in message and shard.name in message
    shard.unlink()
    os.mkfifo(shard)
    assert shard.name in refusal(model)


def test_folders_without_one_clear_checkpoint_are_refused(tmp_path):
    """None, several files, several indexes and one of torch.distributed.checkpoint among them are refused, listing what
    is there.
    """
    assert "is a folder without a checkpoint" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert "it holds pytorch_model.bin" in refusal(tmp_path)
    for name in ("a.safetensors", "b.safetensors"):
        save_file({"t": torch.zeros(1)}, tmp_path / name)
    assert "several checkpoints: a.safetensors" in refusal(tmp_path)
    for name in ("a", "b"):
        write_index(tmp_path, {"a.safetensors": ["t"]}, None, f"{name}.safetensors.index.json")
    assert "several checkpoints: a.safetensors.index.json" in refusal(tmp_path)
    with open_folder_or_index(tmp_path / "b.safetensors.index.json") as source:
        assert list(source.tensors) == ["t"]
    (tmp_path / ".metadata").write_bytes(b"x")
    assert "several checkpoints" in refusal(tmp_path)


def test_the_hub_s_second_copy_and_hidden_files_do_not_confuse(model):
    """A folder that also has .bin shards, a single file and a killed run's leftovers opens by its safetensors index."""
    write_index(model, {"pytorch_model-00001-of-00001.bin": ["x"]}, None, "pytorch_model.bin.index.json")
    (model / "model.safetensors").write_bytes(b"old")
    (model / ".paramcli-0123abcd.safetensors").write_bytes(b"left over")
    (model / "onnx").mkdir()
    with open_folder_or_index(model) as source:
        assert set(source.tensors) == set(TENSORS)


def test_metadata_of_shards_is_merged(model):
    """Keys with one value are the checkpoint's, disputed ones are told; records are joined, and refused where they
    disagree.
    """
    a, b = SPLIT
    save_file({n: TENSORS[n] for n in SPLIT[a]}, model / a, {"format": "pt", "part": "1", "paramcli": "{}", "x": "y"})
    save_file({n: TENSORS[n] for n in SPLIT[b]}, model / b, {"format": "pt", "part": "2", "paramcli": "{}"})
    with open_folder_or_index(model) as source:
        assert source.metadata == {"format": "pt", "paramcli": "{}", "x": "y"}
        assert "part" in source.notes[0]
    first, other = (
        record_text({SPLIT[a][0]: Entry("baked", parse_chain(chain))}, "1") for chain in ("skew", "symmetric")
    )
    for shard, text in ((a, first), (b, other)):
        save_file({n: TENSORS[n] for n in SPLIT[shard]}, model / shard, {"paramcli": text})
    with open_folder_or_index(model) as source:
        assert source.shard_records == {a: first, b: other} and not source.metadata and not source.notes
        with pytest.raises(InputRefused, match="another paramcli record"):
            record_in(source)


def test_torch_shards_are_read_through_open_torch(tmp_path):
    """A folder of .bin shards with its index is one sharded torch checkpoint."""
    pytest.importorskip("paramcli.checkpoint.read.torch_file")
    split = {"pytorch_model-00001-of-00002.bin": ["a", "b"], "pytorch_model-00002-of-00002.bin": ["c"]}
    tied = torch.arange(6.0)
    torch.save({"a": tied, "b": tied}, tmp_path / next(iter(split)))
    torch.save({"c": torch.arange(4).reshape(2, 2).t()}, tmp_path / list(split)[1])
    write_index(tmp_path, split, {"total_size": 80}, "pytorch_model.bin.index.json")
    with open_folder_or_index(tmp_path) as source:
        assert source.container == "sharded torch" and source.shards == split
        assert torch.equal(source.read("a"), tied) and source.read("c").tolist() == [[0, 2], [1, 3]]
        assert source.tied() == [["a", "b"]]


@pytest.mark.parametrize(
    "other, place", [({"c": torch.ones(2, 2)}, "the top"), ({"ema": {"c": torch.ones(2, 2)}}, "ema")]
)
def test_torch_shards_without_an_index_have_one_root(other, place, tmp_path):
    """Each shard's state dict at the same place, or a refusal that names both; one root below the top is read."""
    first, second = (f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2))
    torch.save({"model": {"a": torch.ones(3, 3)}}, tmp_path / first)
    torch.save(other, tmp_path / second)
    with pytest.raises(InputRefused, match=f"{first} has its state dict at model, and {second} at {place}"):
        open_folder_or_index(tmp_path)
    torch.save({"model": {"c": torch.ones(2, 2)}, "epoch": 7}, tmp_path / second)
    with open_folder_or_index(tmp_path) as source:
        assert source.tensors.keys() == {"a", "c"}
        assert [extra.name for extra in source.extras] == [f"{second}: epoch"]


def test_siblings_are_the_files_that_belong_beside_the_weights(model):
    """Config and tokenizer go along; weights of any kind, indexes, hidden files, folders and pipes do not."""
    for name in ("config.json", "tokenizer.model", "merges.txt", "README.md"):
        (model / name).write_text("x")
    for name in (
        ".gitattributes",
        "model.safetensors",
        "optimizer.pt",
        "training_args.bin",
        "tf_model.h5",
        "x.gguf",
        "pytorch_model.bin.index.json",
        "model-00001-of-00003.safetensors",
    ):
        (model / name).write_text("x")
    (model / "onnx").mkdir()
    (model / "shard without an ending").write_text("x")
    write_index(model, {"shard without an ending": ["x"]}, None, "x.safetensors.index.json")
    os.mkfifo(model / "pipe")
    (model / "link.json").symlink_to(model / "config.json")
    expected = ["README.md", "config.json", "link.json", "merges.txt", "tokenizer.model"]
    assert [path.name for path in sibling_files(model)] == expected
    assert [path.name for path in sibling_files(model / INDEX)] == expected


def test_an_output_s_index_is_named_as_the_input_s(model):
    """diffusers' index keeps its name; a single file, or a torch index, becomes the usual one."""
    os.rename(model / INDEX, model / "diffusion_pytorch_model.safetensors.index.json")
    assert index_name(model) == "diffusion_pytorch_model.safetensors.index.json"
    assert index_name(model / "diffusion_pytorch_model.safetensors.index.json") == index_name(model)
    assert index_name(model.parent) == index_name(model / "pytorch_model.bin.index.json") == INDEX


def test_a_large_index_takes_linear_time(tmp_path):
    """An index of 100,000 tensors over 50 shards opens in some calls for each."""
    from paramcli.checkpoint.header import Slot, build_header

    split = {f"s{i:02d}.safetensors": [f"layers.{i}.{j}" for j in range(2000)] for i in range(50)}
    for shard, names in split.items():
        (tmp_path / shard).write_bytes(build_header([Slot(name, "U8", (0,)) for name in names], {}))
    write_index(tmp_path, split, {"total_size": 0})

    def opened() -> None:
        with open_folder_or_index(tmp_path) as source:
            assert len(source.tensors) == 100_000

    assert calls(opened) < 160 * 100_000
