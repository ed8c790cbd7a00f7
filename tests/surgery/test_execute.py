"""The executor: work in threads, and a run that ends as one whatever fails in them."""

import threading
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.checkpoint.disk import direct
from paramcli.checkpoint.disk.atomic import Abandoned
from paramcli.checkpoint.disk.stream import Stream
from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.checkpoint.source import Source
from paramcli.checkpoint.write import safetensors_file as write_safetensors
from paramcli.errors import InputRefused


def test_a_flipped_bit_in_a_tensor_that_nobody_edits_is_refused(tmp_path, paramcli):
    """Checksums are compared beside the copy, and nothing is published before all of them are."""
    torch.save(
        {"edited": torch.eye(8), **{f"other.{n}": torch.full((1000,), float(n)) for n in range(20)}}, tmp_path / "a.pt"
    )
    data = bytearray((tmp_path / "a.pt").read_bytes())
    at = data.index(torch.full((1000,), 13.0).numpy().tobytes())
    data[at + 5] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    for output in ("o.safetensors", "o.pt"):
        said = paramcli(
            "add", tmp_path / "a.pt", "-t", "edited", "--chain", "symmetric", "-o", tmp_path / output, code=3
        ).err
        assert "damaged" in said and "checksum" in said
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_checksums_are_compared_once_however_many_threads_ask(tmp_path, monkeypatch):
    """Ahead of need and again at need is one comparison, and its error is kept for who needs the storage."""
    torch.save({f"t{n}": torch.full((1000,), float(n)) for n in range(10)}, tmp_path / "a.pt")
    with open_checkpoint(tmp_path / "a.pt") as source:
        compared, real = [], source._pass
        monkeypatch.setattr(
            source, "_pass", lambda storage, *how, **also: compared.append(storage.key) or real(storage, *how, **also)
        )
        source.check_ahead(source.tensors)
        for name in source.tensors:
            source.read(name)
        assert sorted(compared) == sorted(info.storage.key for info in source.tensors.values())
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(torch.full((1000,), 3.0).numpy().tobytes())] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with open_checkpoint(tmp_path / "a.pt") as source:
        source.check_ahead(source.tensors)
        assert source.read("t2")[0] == 2
        for _ in range(2):
            with pytest.raises(InputRefused, match="checksum"):
                source.read("t3")


@pytest.mark.parametrize("output", ["o.safetensors", "o.pt", "o.dcp"])
@pytest.mark.parametrize("much", [False, True])
def test_a_copy_and_its_checksum_are_one_pass(tmp_path, paramcli, monkeypatch, output, much):
    """Every block of an untouched storage is read once, whatever is written, by one thread or several."""
    if much:
        monkeypatch.setattr(write_safetensors, "KERNEL_BLOCK", 1)
    monkeypatch.setattr(direct, "BLOCK", 4096)
    tensors = {f"t{n}": torch.rand(9000) for n in range(9)}
    torch.save(tensors, tmp_path / "a.pt")
    monkeypatch.setattr(write_safetensors, "copy_run", lambda *run: pytest.fail("copied without its checksum"))
    passes, real = [], Source._pass
    monkeypatch.setattr(
        Source,
        "_pass",
        lambda self, storage, *how, **also: passes.append(storage.key) or real(self, storage, *how, **also),
    )
    paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / output)
    assert len(passes) == len(set(passes)) == 9
    with open_checkpoint(tmp_path / output) as got:
        assert all(torch.equal(got.read(name), tensors[name]) for name in tensors)


def test_what_another_thread_compares_is_copied_and_waits_for_its_verdict(tmp_path):
    """A storage whose comparison has begun elsewhere is given block by block all the same; damage is told to both."""
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes())] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    with open_checkpoint(tmp_path / "a.pt") as source:
        storage, came = source.tensors["a"].storage, []

        class Recorder(Stream):
            def came(self, count):
                came.append(bytes(self.room(count)))
                super().came(count)

        for _ in range(2):
            with pytest.raises(InputRefused, match="checksum"):
                source.pass_through(storage, Recorder())
        assert len(came) == 2 and came[0] == came[1] and len(came[0]) == 4000


def test_a_comparison_that_was_stopped_is_made_by_who_waits_for_it(tmp_path):
    """One thread's copy fails in the middle of a damaged storage; the thread that waited for its verdict compares it
    itself.
    """
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(torch.arange(1000.0).numpy().tobytes())] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    begun, told = threading.Event(), []
    with open_checkpoint(tmp_path / "a.pt") as source:
        storage = source.tensors["a"].storage

        class Stopped(Stream):
            def came(self, count):
                begun.set()
                time.sleep(0.3)  # the other thread is waiting by now
                raise Abandoned

        def wait():
            begun.wait()
            try:
                source.check_storage(storage)
            except Exception as error:
                told.append(error)

        waiter = threading.Thread(target=wait)
        waiter.start()
        with pytest.raises(Abandoned):
            source.pass_through(storage, Stopped())
        waiter.join()
        assert [type(error) for error in told] == [InputRefused] and "checksum" in str(told[0])


@pytest.mark.parametrize("output", ["o.safetensors", "o.pt", "o.dcp"])
def test_a_flipped_bit_beside_a_copied_view_is_refused(output, tmp_path, paramcli):
    """Of a storage whose tensors are parts of it the whole is compared, what no tensor shows too."""
    base = torch.randn(1000)
    torch.save({"a": base[:300], "b": base[200:500]}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    data[data.index(base[900:].numpy().tobytes())] ^= 1
    (tmp_path / "a.pt").write_bytes(data)
    assert "checksum" in paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / output, "-f", code=3).err
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_when_the_maths_fails_the_copy_stops_and_no_thread_or_file_stays(tmp_path, paramcli, monkeypatch):
    """A copy in its middle is told to stop at its next block; it ends before the sink is left."""
    monkeypatch.setattr(write_safetensors, "KERNEL_BLOCK", 1 << 12)
    stopped = []
    real = write_safetensors.copy_run

    def slow(*arguments):
        try:
            for _ in range(1000):
                real(*arguments)
        except Abandoned:
            stopped.append(True)
            raise

    monkeypatch.setattr(write_safetensors, "copy_run", slow)
    save_file({"bad": torch.full((4, 4), float("nan")), "large": torch.ones(1 << 20)}, tmp_path / "a.safetensors")
    before = threading.active_count()
    said = paramcli(
        "add", tmp_path / "a.safetensors", "-t", "bad", "--chain", "symmetric", "-o", tmp_path / "o.safetensors", code=3
    ).err
    assert "NaN" in said and stopped == [True]
    assert threading.active_count() == before and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_when_the_copy_fails_the_run_fails_with_its_reason(tmp_path, paramcli, monkeypatch):
    """What a thread meets is the user's message, and the output does not appear."""

    def cut(*arguments):
        raise InputRefused("a.safetensors was cut while it was being read")

    monkeypatch.setattr(write_safetensors, "copy_run", cut)
    save_file({"w": torch.eye(4), "other": torch.ones(9)}, tmp_path / "a.safetensors")
    said = paramcli(
        "add", tmp_path / "a.safetensors", "-t", "w", "--chain", "symmetric", "-o", tmp_path / "o.safetensors", code=3
    ).err
    assert "was cut" in said and not (tmp_path / "o.safetensors").exists()


def test_tensors_too_large_to_read_ahead_come_out_the_same(tmp_path, paramcli, monkeypatch):
    """With nothing read ahead and nothing written behind, the bytes are those of a run that does both."""
    from paramcli.surgery import execute

    save_file(
        {f"l{n}.weight_{s}": torch.rand((5, 1) if s == "g" else (5, 7)) for n in range(9) for s in "gv"},
        tmp_path / "a.safetensors",
    )
    paramcli("remove", tmp_path / "a.safetensors", "-o", tmp_path / "1.safetensors")
    monkeypatch.setattr(execute, "AHEAD_BYTES", 0)
    paramcli("remove", tmp_path / "a.safetensors", "-o", tmp_path / "2.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    assert len(load_file(tmp_path / "1.safetensors")) == 9


def test_the_heap_is_looked_after_while_tensors_are_computed(tmp_path, paramcli, monkeypatch):
    """Every computed byte is told to what gives holes back."""
    from paramcli.surgery import execute

    told = []
    monkeypatch.setattr(
        execute, "Holes", lambda: type("Recorder", (), {"tidy": lambda self, nbytes: told.append(nbytes)})()
    )
    save_file({"a": torch.rand(300, 300), "b": torch.rand(40, 40), "c": torch.rand(9)}, tmp_path / "a.safetensors")
    paramcli("add", tmp_path / "a.safetensors", "-t", "[ab]", "--chain", "symmetric", "-o", tmp_path / "o.safetensors")
    assert sum(told) >= 4 * (300 * 300 + 40 * 40)
