"""Sinks: bytes equal to the library's, untouched tensors bit for bit, and folders that are whole at every instant."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from paramcli.checkpoint import write_safetensors
from paramcli.checkpoint.open import open_checkpoint
from paramcli.checkpoint.read_safetensors import open_safetensors
from paramcli.checkpoint.read_sharded import open_folder_or_index, sibling_files
from paramcli.checkpoint.input_file import InputFile
from paramcli.checkpoint.source import Source, Storage, TensorInfo, tensor_bytes
from paramcli.checkpoint.write_dcp import DcpSink, part_name
from paramcli.checkpoint.write_safetensors import joined
from paramcli.checkpoint.writer import INDEX_NAME, SafetensorsSink, ShardedSink, Slot, plan_shards
from paramcli.dtypes import CODE_OF_TORCH
from paramcli.errors import InputRefused, OutputFailed


def random_tensors() -> dict[str, torch.Tensor]:
    """One tensor of every dtype made of random bytes (NaN payloads, -0 and all), an empty one and a scalar."""
    raw = torch.randint(0, 256, (64,), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = {f"t.{n}": raw % 2 == 0 if n == "bool" else raw.clone().view(getattr(torch, n)) for n in CODE_OF_TORCH}
    return found | {"empty": torch.empty(0, 3), "scalar": torch.tensor(-0.0)}


def slots_of(source: Source) -> list[Slot]:
    return [Slot(name, info.dtype, info.shape) for name, info in source.tensors.items()]


@pytest.fixture
def input_path(tmp_path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    save_file(random_tensors(), folder / "in.safetensors", {"format": "pt"})
    return folder / "in.safetensors"


@pytest.fixture(params=["kernel", "plain", "kernel gives up half way"])
def copying(request, monkeypatch) -> str:
    """The two ways bytes move, and the change from one to the other."""
    real = getattr(os, "copy_file_range", None)
    if request.param == "plain":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif real is None:
        pytest.skip("no copy_file_range")
    elif request.param != "kernel":
        calls = []

        def give_up(reading, writing, count, *offsets):
            calls.append(1)
            if len(calls) > 1:
                raise OSError(errno.EXDEV, "")
            return real(reading, writing, min(count, 5), *offsets)

        monkeypatch.setattr(os, "copy_file_range", give_up)
    return request.param


def test_the_bytes_of_a_lazy_conjugate_are_its_values():
    """torch's conj() and the imaginary part of one are views that change values on reading; bytes must not miss that."""
    X = torch.randn(3, 4, dtype=torch.complex64)
    for view, real in ((X.conj(), torch.conj_physical(X)), (X.conj().imag.contiguous(), -X.imag), (torch._neg_view(X.real.contiguous()), -X.real)):
        assert bytes(tensor_bytes(view)) == real.contiguous().numpy().tobytes()


def test_a_copy_of_everything_is_the_same_file(tmp_path, input_path, copying):
    """Copying every tensor gives the input's bytes, whatever the dtypes."""
    with open_safetensors(input_path) as source:
        with SafetensorsSink(tmp_path / "out", slots_of(source), source.metadata) as sink:
            sink.copy(source, [(name, name) for name in source.tensors])
            sink.commit()
    assert (tmp_path / "out").read_bytes() == input_path.read_bytes()


def test_edited_and_renamed_tensors_give_the_library_s_file(tmp_path, input_path, copying):
    """Writing one tensor, renaming one and leaving one out equals saving that state dict with the library."""
    expected = random_tensors()
    expected["new"] = torch.arange(12.0).reshape(3, 4)
    expected["z.renamed"] = expected.pop("t.float16")
    del expected["t.int64"]
    with open_safetensors(input_path) as source:
        kept = [slot for slot in slots_of(source) if slot.name not in ("t.int64", "t.float16")]
        slots = [Slot("new", "F32", (3, 4)), Slot("z.renamed", "F16", (32,)), *kept]
        with SafetensorsSink(tmp_path / "out", slots, source.metadata) as sink:
            sink.write("new", expected["new"].numpy().tobytes())
            sink.copy(source, [("z.renamed", "t.float16"), *((slot.name, slot.name) for slot in reversed(kept))])
            sink.commit(source)
    assert (tmp_path / "out").read_bytes() == save(expected, {"format": "pt"})


def test_neighbouring_runs_become_one():
    """Runs that touch in both files are one; a gap on either side, or another file, parts them."""
    runs = [(0, 20, 120, 5), (0, 0, 100, 10), (0, 10, 110, 10), (0, 25, 300, 5), (1, 30, 305, 5), (0, 40, 0, 0)]
    assert joined(runs) == [(0, 0, 100, 25), (0, 25, 300, 5), (1, 30, 305, 5)]


def test_strided_tensors_are_written_row_major(tmp_path):
    """A transposed tensor of a torch file comes out contiguous."""
    (tmp_path / "raw").write_bytes(torch.arange(6.0).numpy().tobytes())
    storage = Storage(0, 0, 24, "0")
    info = TensorInfo("t", "F32", (3, 2), storage, 0, (1, 3))
    with Source(tmp_path / "raw", "torch zip", [InputFile(tmp_path / "raw")], {"t": info}) as source:
        with SafetensorsSink(tmp_path / "out", [Slot("t", "F32", (3, 2))], {}) as sink:
            sink.copy(source, [("t", "t")])
            sink.commit()
    assert (tmp_path / "out").read_bytes() == save({"t": torch.arange(6.0).reshape(2, 3).t().contiguous()})


def test_a_record_with_a_wrong_checksum_is_not_copied(tmp_path):
    """A storage whose recorded CRC does not match its bytes is refused, even where only part of it is copied."""
    data = bytes(range(24))
    (tmp_path / "raw").write_bytes(data)
    for crc, fine in ((zlib.crc32(data), True), (zlib.crc32(data) ^ 1, False)):
        info = TensorInfo("t", "U8", (4,), Storage(0, 0, 24, "0", crc), 8)
        with Source(tmp_path / "raw", "torch zip", [InputFile(tmp_path / "raw")], {"t": info}) as source:
            with SafetensorsSink(tmp_path / "out", [Slot("t", "U8", (4,))], {}, overwrite=True) as sink:
                if fine:
                    sink.copy(source, [("t", "t")])
                    sink.commit()
                else:
                    with pytest.raises(InputRefused, match="checksum"):
                        sink.copy(source, [("t", "t")])
    assert sorted(os.listdir(tmp_path)) == ["out", "raw"]


def test_every_slot_is_written_once_and_whole(tmp_path):
    """Forgetting a tensor, writing one twice, giving too few bytes or an unknown name is a bug, not a file."""
    slots = [Slot("a", "F32", (2,)), Slot("b", "U8", (0,))]
    with SafetensorsSink(tmp_path / "out", slots, {}) as sink:
        with pytest.raises(AssertionError, match="has 8 bytes, 4"):
            sink.write("a", bytes(4))
        sink.write("a", bytes(8))
        with pytest.raises(AssertionError, match="written twice"):
            sink.write("a", bytes(8))
        with pytest.raises(KeyError):
            sink.write("c", b"")
        with pytest.raises(AssertionError, match="never written: \\['b'\\]"):
            sink.commit()
        sink.write("b", b"")
        sink.commit()
    assert (tmp_path / "out").read_bytes() == save({"a": torch.zeros(2), "b": torch.zeros(0, dtype=torch.uint8)})


def test_a_tensor_that_comes_in_parts_is_whole_or_the_file_is_none(tmp_path):
    """Parts come in order; a gap, a part twice, one too many and one too few are bugs, not a file."""
    with SafetensorsSink(tmp_path / "out", [Slot("a", "U8", (4,))], {}) as sink:
        with pytest.raises(AssertionError, match="0 bytes so far"):
            sink.write_part("a", 2, b"cd")
        sink.write_part("a", 0, b"ab")
        with pytest.raises(AssertionError, match="2 bytes so far"):
            sink.write_part("a", 0, b"ab")
        with pytest.raises(AssertionError, match="2 bytes so far"):
            sink.write("a", b"abcd")
        with pytest.raises(AssertionError, match="never written: \\['a'\\]"):
            sink.commit()
        with pytest.raises(AssertionError, match="has 4 bytes, 5"):
            sink.write_part("a", 2, b"cde")
        sink.write_part("a", 2, b"cd")
        with pytest.raises(AssertionError, match="written twice"):
            sink.write_part("a", 4, b"")
        sink.commit()
    assert (tmp_path / "out").read_bytes() == save({"a": torch.tensor(list(b"abcd"), dtype=torch.uint8)})


@pytest.mark.parametrize("how", ["grown", "replaced", "cut"])
def test_an_input_that_changes_meanwhile_gives_no_output(tmp_path, input_path, copying, how):
    """A changed input is refused at commit or while copying, and the folder is as it was."""
    with open_safetensors(input_path) as source:
        with pytest.raises(InputRefused), SafetensorsSink(tmp_path / "out", slots_of(source), {}) as sink:
            if how == "cut":
                os.truncate(input_path, os.path.getsize(input_path) - 60)
            sink.copy(source, [(name, name) for name in source.tensors])
            if how == "grown":
                input_path.open("ab").write(b"x")
            elif how == "replaced":
                shutil.copy(input_path, tmp_path / "new")
                os.replace(tmp_path / "new", input_path)
            sink.commit()
    assert os.listdir(tmp_path) == ["in"]


def test_in_place_is_the_same_replacement(tmp_path, input_path):
    """Writing over the file that is being read gives the new content, and the mode stays."""
    input_path.chmod(0o640)
    expected = random_tensors()
    with open_safetensors(input_path) as source:
        slots = [slot for slot in slots_of(source) if slot.name != "t.float64"]
        with SafetensorsSink(input_path, slots, source.metadata, overwrite=True) as sink:
            sink.copy(source, [(slot.name, slot.name) for slot in slots])
            sink.commit()
    del expected["t.float64"]
    assert input_path.read_bytes() == save(expected, {"format": "pt"})
    assert stat.S_IMODE(input_path.stat().st_mode) == 0o640 and os.listdir(input_path.parent) == ["in.safetensors"]


@pytest.mark.parametrize("function", ["pwrite", "copy_file_range", "fsync", "link", "posix_fallocate"])
def test_a_full_disk_leaves_nothing(tmp_path, input_path, monkeypatch, function):
    """No space while reserving, writing, copying, syncing or linking ends in OutputFailed and a clean folder."""

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_safetensors(input_path) as source:
        monkeypatch.setattr(os, function, full)
        with pytest.raises(OutputFailed, match="disk full"):
            with SafetensorsSink(tmp_path / "out", slots_of(source), {}) as sink:
                sink.copy(source, [(name, name) for name in source.tensors])
                sink.commit()
    assert os.listdir(tmp_path) == ["in"]


def test_copying_does_not_depend_on_the_size(tmp_path):
    """A 64 MB tensor is copied with a few MB of memory."""
    import resource

    path = tmp_path / "in"
    with SafetensorsSink(path, [Slot("a", "U8", (64 << 20,))], {}) as sink:
        sink._missing.clear()  # the reserved zeros are the tensor
        sink.commit()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_safetensors(path) as source:
        with SafetensorsSink(tmp_path / "out", slots_of(source), {}) as sink:
            write_safetensors.copy_run(source.files[0], 0, sink.file, 0, 1000)
            sink.copy(source, [("a", "a")])
            sink.commit()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    assert os.path.getsize(tmp_path / "out") == os.path.getsize(path)


# Folders of shards


def test_shards_are_filled_in_order_up_to_the_size():
    """Shards hold at most the size, a larger tensor is alone, and one shard alone has the plain name."""
    slots = [Slot(name, "U8", (size,)) for name, size in zip("abcdef", (4, 6, 1, 20, 5, 5))]
    plan = plan_shards(slots, 10)
    assert list(plan) == [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    assert ["".join(slot.name for slot in part) for part in plan.values()] == ["ab", "c", "d", "ef"]
    assert plan_shards(slots, 41) == {"model.safetensors": slots}
    assert plan_shards([], 10) == {"model.safetensors": []}


NAMES = ["a", "b", "c", "d"]


def write_model(folder: Path, value: int, *, shards: int = 2, overwrite: bool = False, dcp: bool = False, **options) -> None:
    """Four one-element tensors of one value, over so many shards, or parts of a DCP folder."""
    slots = [Slot(name, "F32", (1,)) for name in NAMES]
    plan = plan_shards(slots, 16 // shards)
    if dcp:
        sink = DcpSink(folder, {part_name(number): slots for number, slots in enumerate(plan.values())}, overwrite=overwrite)
    else:
        sink = ShardedSink(folder, plan, {"format": "pt"}, overwrite=overwrite, **options)
    with sink:
        for name in NAMES:
            sink.write(name, torch.tensor([float(value)]).numpy().tobytes())
        sink.commit()


def value_of(folder: Path) -> float:
    """The one value that all tensors of a folder have; an assertion fails where shards are mixed."""
    with open_checkpoint(folder) as source:
        assert sorted(source.tensors) == NAMES and not source.notes
        values = {source.read(name).item() for name in NAMES}
    assert len(values) == 1, "old and new shards are mixed"
    return values.pop()


def test_a_new_folder_has_shards_index_and_siblings(tmp_path):
    """Each shard is the library's bytes, the index is the hub's format, config is carried along."""
    (tmp_path / "config.json").write_text("{}")
    before = os.umask(0o027)
    try:
        extra = {"total_parameters": 4, "total_size": 9}
        write_model(tmp_path / "out", 1, siblings=[tmp_path / "config.json"], index_metadata=extra)
    finally:
        os.umask(before)
    out = tmp_path / "out"
    one, two = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    assert sorted(os.listdir(tmp_path)) == ["config.json", "out"]
    assert sorted(os.listdir(out)) == ["config.json", one, two, INDEX_NAME]
    assert (out / one).read_bytes() == save({"a": torch.ones(1), "b": torch.ones(1)}, {"format": "pt"})
    weight_map = {"a": one, "b": one, "c": two, "d": two}
    document = {"metadata": {"total_parameters": 4, "total_size": 16}, "weight_map": weight_map}
    assert (out / INDEX_NAME).read_text() == json.dumps(document, indent=2, sort_keys=True) + "\n"
    assert stat.S_IMODE(out.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}
    assert value_of(out) == 1


def test_a_sharded_checkpoint_is_copied_shard_by_shard(tmp_path):
    """The same split, renamed tensors in place, siblings carried, and shards left without tensors not written."""
    write_model(tmp_path / "in", 3)
    (tmp_path / "in" / "config.json").write_text("{}")
    with open_folder_or_index(tmp_path / "in") as source:
        first, second = source.shards
        shards = {first: [Slot("a", "F32", (1,)), Slot("x.b", "F32", (1,))], second: []}
        with ShardedSink(tmp_path / "out", shards, {}, None, sibling_files(tmp_path / "in")) as sink:
            sink.copy(source, [("x.b", "b"), ("a", "a")])
            sink.commit(source)
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", first, INDEX_NAME]
    with open_folder_or_index(tmp_path / "out") as source:
        assert source.read("x.b").item() == 3 and list(source.tensors) == ["a", "x.b"]


def test_a_folder_that_exists_needs_leave(tmp_path):
    """Without overwrite a folder, a file or one that appears meanwhile is not touched."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder"):
        with pytest.raises(OutputFailed, match="exists already"):
            write_model(tmp_path / name, 1)
    with pytest.raises(OutputFailed, match="is no folder"):
        write_model(tmp_path / "file", 1, overwrite=True)
    with pytest.raises(OutputFailed, match="folder does not exist"):
        write_model(tmp_path / "missing" / "out", 1)
    with pytest.raises(OutputFailed, match="name is too long"):
        write_model(tmp_path / ("x" * 256), 1)
    with pytest.raises(OutputFailed, match="exists already"), ShardedSink(tmp_path / "new", {}, {}) as sink:
        (tmp_path / "new").mkdir()
        sink.commit()
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "new"] and os.listdir(tmp_path / "new") == []


def test_overwriting_replaces_the_checkpoint_and_nothing_else(tmp_path):
    """New shards and index stand in place of the old, stale shards go, other files, folders and modes stay."""
    out = tmp_path / "out"
    write_model(out, 1, shards=4)
    (out / "README.md").write_text("mine")
    (out / "other.safetensors").write_bytes(b"mine")
    (out / ".git").mkdir()
    (out / "model-00001-of-00002.safetensors").write_bytes(b"old")
    (out / "model-00001-of-00002.safetensors").chmod(0o600)
    write_model(out, 2, shards=2, overwrite=True)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert sorted(os.listdir(out)) == [".git", "README.md", *shards, INDEX_NAME, "other.safetensors"]
    assert value_of(out) == 2 and (out / "README.md").read_text() == "mine"
    assert stat.S_IMODE((out / "model-00001-of-00002.safetensors").stat().st_mode) == 0o600


def test_a_hostile_old_index_removes_nothing_but_shards(tmp_path):
    """File names in the index that is replaced are only followed to .safetensors files beside it."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.pdf").write_text("mine")
    save_file({"a": torch.zeros(1)}, tmp_path / "outside.safetensors")
    for shard in ("thesis.pdf", "../outside.safetensors", "x.safetensors"):
        (out / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": shard}}))
        write_model(out, 1, overwrite=True)
        assert (out / "thesis.pdf").exists() and (tmp_path / "outside.safetensors").exists() and value_of(out) == 1


def test_a_single_file_that_loaders_would_prefer_is_replaced_too(tmp_path):
    """A folder whose checkpoint was model.safetensors is the new shards' afterwards."""
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    write_model(tmp_path, 1, overwrite=True)
    assert not (tmp_path / "model.safetensors").exists() and value_of(tmp_path) == 1


def test_a_folder_with_another_index_is_refused(tmp_path):
    """Two checkpoints in one folder could not be told apart, so the second is not written."""
    (tmp_path / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(OutputFailed, match="another sharded checkpoint"):
        write_model(tmp_path, 1, overwrite=True)
    assert os.listdir(tmp_path) == ["other.safetensors.index.json"]


def test_in_place_edits_a_folder_it_reads(tmp_path):
    """A sharded checkpoint is written over itself; links to blobs become files, and the blobs stay."""
    write_model(tmp_path / "m", 1)
    first = "model-00001-of-00002.safetensors"
    os.rename(tmp_path / "m" / first, tmp_path / "blob")
    (tmp_path / "m" / first).symlink_to(tmp_path / "blob")
    blob = (tmp_path / "blob").read_bytes()
    (tmp_path / "m" / "config.json").write_text("{}")
    with open_folder_or_index(tmp_path / "m") as source:
        shards = {shard: [Slot(name, "F32", (1,)) for name in names] for shard, names in source.shards.items()}
        with ShardedSink(tmp_path / "m", shards, {}, None, sibling_files(tmp_path / "m"), overwrite=True) as sink:
            sink.write("a", torch.tensor([9.0]).numpy().tobytes())
            sink.copy(source, [(name, name) for name in "bcd"])
            sink.commit(source)
    with open_folder_or_index(tmp_path / "m") as source:
        assert [source.read(name).item() for name in NAMES] == [9, 1, 1, 1]
    assert not (tmp_path / "m" / first).is_symlink() and (tmp_path / "blob").read_bytes() == blob
    assert sorted(os.listdir(tmp_path)) == ["blob", "m"] and len(os.listdir(tmp_path / "m")) == 4


# Every call that changes a folder or a file in it.
STEPS = (
    "open", "pwrite", "fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir", "fchmod", "posix_fallocate",
)  # fmt: skip


BOTH_FOLDERS = pytest.mark.parametrize("dcp", [False, True], ids=["shards", "DCP folder"])


class Killed(BaseException):
    pass


class Step:
    """Counts the calls that change a folder; at call `number` raises, and from then on too if it is a kill."""

    def __init__(self, monkeypatch, number: int, error: BaseException, links_work: bool = True):
        self.count = 0
        for name in STEPS:
            real = getattr(os, name) if name != "fsync" else lambda descriptor: None  # only its failure matters here

            def call(*arguments, _real=real, _name=name, **options):
                if _name != "open" or arguments[1] & os.O_CREAT:
                    self.count += 1
                    dead = self.count > number and isinstance(error, Killed)
                    if self.count == number or dead:
                        raise error
                if _name == "link" and not links_work:
                    raise OSError(errno.EPERM, "no hard links")
                return _real(*arguments, **options)

            monkeypatch.setattr(os, name, call)


def outcomes(tmp_path, monkeypatch, error: BaseException, existing: bool, dcp: bool, links_work: bool = True):
    """For a failure at each step in turn: (folder, whether the write finished)."""
    template = tmp_path / "template"
    template.mkdir()
    if existing:
        write_model(template / "out", 1, shards=4, dcp=dcp)
    for number in range(1, 500):
        folder = tmp_path / str(number)
        shutil.copytree(template, folder)
        with monkeypatch.context() as patch:
            step = Step(patch, number, error, links_work)
            try:
                write_model(folder / "out", 2, overwrite=existing, dcp=dcp)
            except (OutputFailed, Killed, KeyboardInterrupt):
                pass
        yield folder
        if step.count < number:
            assert value_of(folder / "out") == 2
            return
    raise AssertionError("no end of steps")


@BOTH_FOLDERS
def test_a_kill_at_any_step_leaves_no_folder_or_a_whole_one(tmp_path, monkeypatch, dcp):
    """A new folder is absent until it is complete."""
    seen = []
    for folder in outcomes(tmp_path, monkeypatch, Killed(), False, dcp):
        seen.append((folder / "out").exists())
        assert not seen[-1] or value_of(folder / "out") == 2
    assert seen == sorted(seen) and set(seen) == {False, True}


@BOTH_FOLDERS
def test_a_kill_at_any_step_leaves_the_old_checkpoint_or_the_new(tmp_path, monkeypatch, dcp):
    """In a folder that exists, every instant shows all old shards or all new ones, by an index that names them."""
    seen = [value_of(folder / "out") for folder in outcomes(tmp_path, monkeypatch, Killed(), True, dcp)]
    assert seen == sorted(seen) and set(seen) == {1, 2}


@BOTH_FOLDERS
def test_without_hard_links_a_kill_never_leaves_a_mixture(tmp_path, monkeypatch, dcp):
    """Where links do not work there is a moment without an index: refused, and never mixed."""
    seen = []
    for folder in outcomes(tmp_path, monkeypatch, Killed(), True, dcp, links_work=False):
        try:
            seen.append(value_of(folder / "out"))
        except InputRefused:
            seen.append(1.5)
    assert set(seen) == {1, 1.5, 2} and seen[-1] == 2


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
@pytest.mark.parametrize("existing", [False, True])
@BOTH_FOLDERS
def test_an_error_at_any_step_cleans_up(tmp_path, monkeypatch, dcp, error, existing):
    """A failing step leaves the old state without any other file, or the new checkpoint whole."""
    for folder in outcomes(tmp_path, monkeypatch, error, existing, dcp):
        if not (folder / "out").exists() or value_of(folder / "out") == 1:
            left = [name for _, _, names in os.walk(folder) for name in names if name.startswith(".paramcli-")]
            assert len(left) <= 1, "one unlink may be the step that fails"
            if left:
                assert len(os.listdir(folder)) <= 2


def test_a_signal_while_names_change_waits_until_they_have(tmp_path, monkeypatch):
    """Ctrl-C between the renames of a folder that exists is heard after the last of them."""
    write_model(tmp_path / "m", 1, shards=4)
    real, signals = os.replace, []

    def replace(old, new):
        real(old, new)
        signals.append(signal.raise_signal(signal.SIGINT))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_model(tmp_path / "m", 2, overwrite=True)
    assert len(signals) == 4 and value_of(tmp_path / "m") == 2 and len(os.listdir(tmp_path / "m")) == 3


def test_two_runs_in_place_do_not_lose_an_edit(tmp_path):
    """The run that comes second finds its input changed and gives up; the first one's result stays."""
    write_model(tmp_path / "m", 1)
    slots = {"model.safetensors": [Slot(name, "F32", (1,)) for name in NAMES]}
    sink = ShardedSink(tmp_path / "m", slots, {}, overwrite=True)
    with open_folder_or_index(tmp_path / "m") as source, sink:
        sink.copy(source, [(name, name) for name in NAMES])
        write_model(tmp_path / "m", 2, overwrite=True)
        with pytest.raises(InputRefused, match="changed while"):
            sink.commit(source)
    assert value_of(tmp_path / "m") == 2 and len(os.listdir(tmp_path / "m")) == 3


def test_hundreds_of_shards_need_few_open_files(tmp_path):
    """Two hundred shards are written with forty open files."""
    import resource

    slots = [Slot(f"t{i:03d}", "U8", (1,)) for i in range(200)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 40, hard))
    try:
        with ShardedSink(tmp_path / "out", plan_shards(slots, 1), {}) as sink:
            for i in reversed(range(200)):
                sink.write(f"t{i:03d}", bytes([i]))
            sink.commit()
        with open_folder_or_index(tmp_path / "out") as source:
            assert [source.read_bytes(f"t{i:03d}")[0] for i in range(200)] == list(range(200))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_same_input_gives_the_same_bytes(tmp_path):
    """Two runs of one write differ in nothing, file names included."""
    contents = []
    for name in ("x", "y"):
        write_model(tmp_path / name, 5, index_metadata={"b": 1, "a": 2})
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
