"""Sinks: bytes equal to the library's, untouched tensors bit for bit, and a file that is there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
import time
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from paramcli.checkpoint.disk.input_file import InputFile
from paramcli.checkpoint.disk.stream import Stream
from paramcli.checkpoint.header import Slot
from paramcli.checkpoint.read.safetensors_file import open_safetensors
from paramcli.checkpoint.source import Source, Storage, TensorInfo, tensor_bytes
from paramcli.checkpoint.write import safetensors_file as write_safetensors
from paramcli.checkpoint.write.safetensors_file import SafetensorsSink, copy_storages, joined, stretches
from paramcli.dtypes import CODE_OF_TORCH
from paramcli.errors import InputRefused, OutputFailed

from ..pace import HANG_SECONDS


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
    """torch's conj() and the imaginary part of one are views that change values on reading; bytes must not
    miss that.
    """
    X = torch.randn(3, 4, dtype=torch.complex64)
    for view, real in (
        (X.conj(), torch.conj_physical(X)),
        (X.conj().imag.contiguous(), -X.imag),
        (torch._neg_view(X.real.contiguous()), -X.real),
    ):
        assert bytes(tensor_bytes(view)) == real.contiguous().numpy().tobytes()


def test_a_copy_of_everything_is_the_same_file(tmp_path, input_path, copying):
    """Copying every tensor gives the input's bytes, whatever the dtypes."""
    with (
        open_safetensors(input_path) as source,
        SafetensorsSink(tmp_path / "out", slots_of(source), source.metadata) as sink,
    ):
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
    with (
        Source(tmp_path / "raw", "torch zip", [InputFile(tmp_path / "raw")], {"t": info}) as source,
        SafetensorsSink(tmp_path / "out", [Slot("t", "F32", (3, 2))], {}) as sink,
    ):
        sink.copy(source, [("t", "t")])
        sink.commit()
    assert (tmp_path / "out").read_bytes() == save({"t": torch.arange(6.0).reshape(2, 3).t().contiguous()})


def test_a_record_with_a_wrong_checksum_is_not_copied(tmp_path):
    """A storage whose recorded CRC does not match its bytes is refused, even where only part of it is copied."""
    data = bytes(range(24))
    (tmp_path / "raw").write_bytes(data)
    for crc, fine in ((zlib.crc32(data), True), (zlib.crc32(data) ^ 1, False)):
        info = TensorInfo("t", "U8", (4,), Storage(0, 0, 24, "0", crc), 8)
        with (
            Source(tmp_path / "raw", "torch zip", [InputFile(tmp_path / "raw")], {"t": info}) as source,
            SafetensorsSink(tmp_path / "out", [Slot("t", "U8", (4,))], {}, overwrite=True) as sink,
        ):
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
    with (
        open_safetensors(input_path) as source,
        pytest.raises(InputRefused),
        SafetensorsSink(tmp_path / "out", slots_of(source), {}) as sink,
    ):
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
        with (
            pytest.raises(OutputFailed, match="disk full"),
            SafetensorsSink(tmp_path / "out", slots_of(source), {}) as sink,
        ):
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
    with open_safetensors(path) as source, SafetensorsSink(tmp_path / "out", slots_of(source), {}) as sink:
        with Stream(sink.file) as stream:
            write_safetensors.copy_run(source.files[0], stream, 0, 0, 1000)
        sink.copy(source, [("a", "a")])
        sink.commit()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    assert os.path.getsize(tmp_path / "out") == os.path.getsize(path)


@pytest.mark.parametrize("sizes", [[], [5], [1, 1, 1, 1], [7, 0, 1, 1, 1, 90, 3], [100, 1, 1], [1, 1, 100]])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_stretches_are_in_order_and_of_alike_sizes(sizes, count):
    """Every storage once, neighbours together; none has more than its share and one storage."""
    items = [(size, (number,)) for number, size in enumerate(sizes)]
    parts = stretches(items, count)
    assert len(parts) == count and [item for part in parts for item in part] == [arguments for _, arguments in items]
    assert all(sum(sizes[number] for (number,) in part) <= sum(sizes) / count + max(sizes) for part in parts if part)


def test_a_failure_ends_the_other_stretches(tmp_path, monkeypatch):
    """What is damaged is said at once, not when the rest of a terabyte is copied."""
    copied, began = [], threading.Event()

    def copy(source, storage, stream, place):
        if storage.key == "0":
            began.wait(HANG_SECONDS)
            raise InputRefused("damaged")
        copied.append(storage.key)
        began.set()
        time.sleep(0.01)

    monkeypatch.setattr(write_safetensors, "copy_storage", copy)
    places = [(Storage(0, number, write_safetensors.KERNEL_BLOCK, str(number)), number) for number in range(1000)]
    with pytest.raises(InputRefused, match="damaged"):
        copy_storages(None, None, places)
    assert 0 < len(copied) < 400
