"""Folders of shards and of parts: whole at every instant, and nothing else in them is touched."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from paramcli.checkpoint.header import Slot
from paramcli.checkpoint.read.folder import open_folder_or_index, sibling_files
from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.checkpoint.read.sharded import INDEX_NAME
from paramcli.checkpoint.write.dcp import DcpSink, part_name
from paramcli.checkpoint.write.sharded import ShardedSink, plan_shards
from paramcli.errors import InputRefused, OutputFailed
from paramcli.ranks import Alone


def test_shards_are_filled_in_order_up_to_the_size():
    """Shards hold at most the size, a larger tensor is alone, and one shard alone has the plain name."""
    slots = [Slot(name, "U8", (size,)) for name, size in zip("abcdef", (4, 6, 1, 20, 5, 5), strict=True)]
    plan = plan_shards(slots, 10)
    assert list(plan) == [f"model-{i:05d}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    assert ["".join(slot.name for slot in part) for part in plan.values()] == ["ab", "c", "d", "ef"]
    assert plan_shards(slots, 41) == {"model.safetensors": slots}
    assert plan_shards([], 10) == {"model.safetensors": []}


NAMES = ["a", "b", "c", "d"]


def NO_METADATA(names):
    return {}


def write_model(
    folder: Path,
    value: int,
    *,
    shards: int = 2,
    overwrite: bool = False,
    sync: bool = True,
    dcp: bool = False,
    **options,
) -> None:
    """Four one-element tensors of one value, over so many shards, or parts of a DCP folder."""
    slots = [Slot(name, "F32", (1,)) for name in NAMES]
    plan = plan_shards(slots, 16 // shards)
    if dcp:
        sink = DcpSink(
            folder,
            {part_name(number): slots for number, slots in enumerate(plan.values())},
            run=Alone(),
            overwrite=overwrite,
            sync=sync,
        )
    else:
        options = {"overwrite": overwrite, "sync": sync, **options}
        sink = ShardedSink(folder, plan, lambda names: {"format": "pt"}, run=Alone(), **options)
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
        with ShardedSink(
            tmp_path / "out", shards, NO_METADATA, None, sibling_files(tmp_path / "in"), run=Alone()
        ) as sink:
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
    with (
        pytest.raises(OutputFailed, match="exists already"),
        ShardedSink(tmp_path / "new", {}, NO_METADATA, run=Alone()) as sink,
    ):
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
        with ShardedSink(
            tmp_path / "m", shards, NO_METADATA, None, sibling_files(tmp_path / "m"), run=Alone(), overwrite=True
        ) as sink:
            sink.write("a", torch.tensor([9.0]).numpy().tobytes())
            sink.copy(source, [(name, name) for name in "bcd"])
            sink.commit(source)
    with open_folder_or_index(tmp_path / "m") as source:
        assert [source.read(name).item() for name in NAMES] == [9, 1, 1, 1]
    assert not (tmp_path / "m" / first).is_symlink() and (tmp_path / "blob").read_bytes() == blob
    assert sorted(os.listdir(tmp_path)) == ["blob", "m"] and len(os.listdir(tmp_path / "m")) == 4


# Every call that changes a folder or a file in it.
STEPS = (
    "open",
    "pwrite",
    "fsync",
    "rename",
    "replace",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "fchmod",
    "posix_fallocate",
)


WAITING = pytest.mark.parametrize("sync", [True, False], ids=["waiting", "not waiting"])
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


def outcomes(
    tmp_path,
    monkeypatch,
    error: BaseException,
    existing: bool,
    dcp: bool,
    links_work: bool = True,
    sync: bool = True,
):
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
            with suppress(OutputFailed, Killed, KeyboardInterrupt):
                write_model(folder / "out", 2, overwrite=existing, sync=sync, dcp=dcp)
        yield folder
        if step.count < number:
            assert value_of(folder / "out") == 2
            return
    raise AssertionError("no end of steps")


@WAITING
@BOTH_FOLDERS
def test_a_kill_at_any_step_leaves_no_folder_or_a_whole_one(tmp_path, monkeypatch, dcp, sync):
    """A new folder is absent until it is complete, whether the disk is waited for or not."""
    seen = []
    for folder in outcomes(tmp_path, monkeypatch, Killed(), False, dcp, sync=sync):
        seen.append((folder / "out").exists())
        assert not seen[-1] or value_of(folder / "out") == 2
    assert seen == sorted(seen) and set(seen) == {False, True}


@WAITING
@BOTH_FOLDERS
def test_a_kill_at_any_step_leaves_the_old_checkpoint_or_the_new(tmp_path, monkeypatch, dcp, sync):
    """In a folder that exists, every instant shows all old shards or all new ones, by an index that names them."""
    seen = [value_of(folder / "out") for folder in outcomes(tmp_path, monkeypatch, Killed(), True, dcp, sync=sync)]
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
    sink = ShardedSink(tmp_path / "m", slots, NO_METADATA, run=Alone(), overwrite=True)
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
        with ShardedSink(tmp_path / "out", plan_shards(slots, 1), NO_METADATA, run=Alone()) as sink:
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
