"""Writing past the page cache: the same bytes as through it, and back to it wherever it cannot be or is no gain."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paramcli.checkpoint.disk import direct
from paramcli.checkpoint.disk.atomic import Abandoned, AtomicFile
from paramcli.checkpoint.disk.direct import Disk
from paramcli.checkpoint.disk.input_file import OpenFiles
from paramcli.checkpoint.disk.stream import Stream
from paramcli.checkpoint.header import PAGE
from paramcli.checkpoint.write import safetensors_file as write_safetensors
from paramcli.errors import OutputFailed

SIZE = 50 * PAGE + 123


@pytest.fixture(autouse=True)
def past_the_cache(monkeypatch):
    """Every file is large enough, a call writes two pages, and no disk is too slow."""
    monkeypatch.setattr(direct, "LEAST", 1)
    monkeypatch.setattr(direct, "BLOCK", 2 * PAGE)
    monkeypatch.setattr(direct, "FAST", 0)


@pytest.fixture
def calls(monkeypatch) -> list[tuple[int, bool, int, int]]:
    """Of every write: its offset, whether it went past the cache, its length, and its place in a page of memory."""
    import ctypes
    import fcntl

    found, real = [], os.pwrite

    def pwrite(descriptor, data, offset):
        straight = bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)
        view = memoryview(data)
        place = 0 if view.readonly else ctypes.addressof(ctypes.c_char.from_buffer(view)) % PAGE
        found.append((offset, straight, len(view), place))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return found


def supported(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except (OSError, AttributeError):
        return False
    os.unlink(folder / "probe")
    return True


@pytest.fixture
def folder(tmp_path) -> Path:
    if not supported(tmp_path):
        pytest.skip("the file system here has no way past the cache")
    return tmp_path


def pieces(data: bytes, seed: int) -> list[tuple[int, bytes]]:
    """The data in pieces of all sorts of lengths, in random order."""
    generator, cuts = random.Random(seed), {0, len(data)}
    while len(cuts) < 12:
        cuts.add(generator.choice((generator.randrange(len(data)), generator.randrange(len(data) // PAGE) * PAGE)))
    places = sorted(cuts)
    found = [(begin, data[begin:end]) for begin, end in itertools.pairwise(places)]
    generator.shuffle(found)
    return found


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_pieces_in_any_order_give_the_same_file(folder, calls, seed, kind):
    """Whole pages go past the cache, in calls that the disk can take; what shares a page with another piece
    does not.
    """
    data = random.Random(seed).randbytes(SIZE)
    with AtomicFile(folder / "out") as file:
        file.reserve(SIZE)
        for offset, piece in pieces(data, seed):
            file.write_at(offset, kind(piece))
        file.commit(SIZE)
    assert (folder / "out").read_bytes() == data
    assert any(straight for _, straight, *_ in calls)
    for offset, straight, length, place in calls:
        assert not straight or (not (offset % PAGE or length % PAGE or place) and 0 < length <= direct.BLOCK)
        assert straight or length < PAGE, "a whole page went through the cache"


def test_threads_write_one_file(folder):
    """Each has a block of its own for bytes that begin anywhere in memory."""
    data = random.Random(1).randbytes(SIZE)
    with AtomicFile(folder / "out") as file:
        file.reserve(SIZE)
        threads = [threading.Thread(target=file.write_at, args=item) for item in pieces(data, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        file.commit(SIZE)
    assert (folder / "out").read_bytes() == data


def test_bytes_that_begin_at_a_page_are_not_moved(folder, calls):
    """A stream's block goes to the disk as it is."""
    memory = memoryview(mmap.mmap(-1, 4 * PAGE))
    memory[:] = os.urandom(4 * PAGE)
    direct._kept.__dict__.clear()
    with AtomicFile(folder / "out") as file:
        file.reserve(4 * PAGE)
        file.write_at(0, memory)
        assert not hasattr(direct._kept, "block"), "there was no other way through memory"
        file.commit(4 * PAGE)
    assert (folder / "out").read_bytes() == memory and all(straight for _, straight, *_ in calls)


def test_small_outputs_go_through_the_cache(folder, calls, monkeypatch):
    """An output is counted whole: files of a large one go past the cache however small they are."""
    monkeypatch.setattr(direct, "LEAST", SIZE + 1)
    for disk, straight in ((None, False), (Disk(SIZE + 1), True)):
        calls.clear()
        with AtomicFile(folder / "out", overwrite=True, disk=disk) as file:
            file.reserve(SIZE)
            file.write_at(0, bytes(SIZE))
            file.commit(SIZE)
        assert any(went for _, went, *_ in calls) == straight


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.EOPNOTSUPP])
@pytest.mark.parametrize("function", ["open", "pwrite"])
def test_where_there_is_no_such_way_the_cache_is_used(folder, monkeypatch, function, number):
    """A file system that refuses, at the opening or at the first write, costs one call."""
    real, refused = getattr(os, function), []

    def refuse(*arguments, **options):
        import fcntl

        flags = arguments[1] if function == "open" else fcntl.fcntl(arguments[0], fcntl.F_GETFL)
        if flags & os.O_DIRECT:
            refused.append(1)
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    monkeypatch.setattr(os, function, refuse)
    data = os.urandom(SIZE)
    with AtomicFile(folder / "out") as file:
        file.reserve(SIZE)
        file.write_at(0, data)
        file.commit(SIZE)
    assert (folder / "out").read_bytes() == data and len(refused) == 1


def test_a_write_that_stops_short_is_gone_on_with(folder):
    """Where the disk took less than it was given, in the middle of a page even, the rest follows."""
    written: list[int] = []

    class Half(Disk):
        def write(self, descriptor, data, offset):
            written.append(os.pwrite(descriptor, data, offset))
            return written[-1] - 512

    data = os.urandom(SIZE)
    with AtomicFile(folder / "out", disk=Half(SIZE)) as file:
        file.reserve(SIZE)
        file.write_at(0, data)
        file.commit(SIZE)
    assert written and (folder / "out").read_bytes() == data


def test_a_slow_disk_is_left_to_the_cache(folder, calls, monkeypatch):
    """It is judged after some writes, by the quickest of them: one that waited for something else does not decide."""
    monkeypatch.setattr(direct, "ENOUGH", 10)
    monkeypatch.setattr(direct, "FAST", 2e6)

    file = os.open(folder / "out", os.O_WRONLY | os.O_CREAT)

    def write(disk: Disk, seconds: list[float], size: int = direct.BLOCK) -> None:
        moments = [moment for number, took in enumerate(seconds) for moment in (number * 10.0, number * 10.0 + took)]
        monkeypatch.setattr(time, "monotonic", iter(moments).__next__)
        for _ in seconds:
            disk.write(file, memoryview(bytes(size)), 0)

    fast, slow = Disk(1), Disk(1)
    write(fast, [0.001, *[5.0] * 9])  # eight million bytes a second, once
    write(fast, [1.0] * 20, PAGE)
    write(slow, [0.009] * 9)
    assert fast.direct and slow.direct
    write(slow, [0.009])
    os.close(file)
    assert fast.direct and not slow.direct


def test_a_file_that_is_given_up_stops_its_threads(folder):
    """At the next block, past the cache too."""
    with AtomicFile(folder / "out") as file:
        file.reserve(SIZE)
        file.abandon()
        for count in (SIZE, 4 * PAGE):
            with pytest.raises(Abandoned):
                file.write_at(0, bytes(count))
    assert os.listdir(folder) == []


def test_a_full_disk_is_said_in_one_line(folder, monkeypatch):
    """What the way past the cache cannot write, the ordinary one says."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputFailed, match="disk full"), AtomicFile(folder / "out") as file:
        file.reserve(SIZE)
        monkeypatch.setattr(os, "pwrite", full)
        file.write_at(0, bytes(SIZE))
    assert os.listdir(folder) == []


def test_parked_files_have_no_descriptor_open(folder):
    """Of many files few are open at once, in either way, and none at the end."""
    pool, data = OpenFiles(2), os.urandom(3 * PAGE)
    before = set(os.listdir("/proc/self/fd"))
    files = [AtomicFile(folder / str(number), pool=pool) for number in range(6)]
    for file in files:
        file.__enter__()
        file.reserve(6 * PAGE)
    for offset in (0, 3 * PAGE):
        for file in files:
            file.write_at(offset, data)
            assert len(set(os.listdir("/proc/self/fd")) - before) <= 2 * 2 + 1
    for file in files:
        file.commit(6 * PAGE)
        file.__exit__()
    assert set(os.listdir("/proc/self/fd")) == before
    assert all((folder / str(number)).read_bytes() == data * 2 for number in range(6))


def test_publication_needs_no_descriptor_more_than_before(folder):
    """A finished file is one descriptor, and an error at closing the other says nothing of its bytes."""
    with AtomicFile(folder / "out") as file:
        file.reserve(SIZE)
        file.write_at(0, bytes(SIZE))
        before = len(os.listdir("/proc/self/fd"))
        file.finish(SIZE)
        assert len(os.listdir("/proc/self/fd")) == before - 1
        file.publish()
    assert (folder / "out").read_bytes() == bytes(SIZE)


def test_an_error_at_closing_hides_nothing(folder, monkeypatch):
    """NFS may tell of an old error there; the result is out, and what went wrong elsewhere is what is said."""
    real, failed = os.close, []

    def close(descriptor):
        import fcntl

        straight = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT
        real(descriptor)
        if straight:
            failed.append(1)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "close", close)
    for commits in (True, False):
        with pytest.raises(ZeroDivisionError), AtomicFile(folder / "out", overwrite=True) as file:
            file.reserve(SIZE)
            file.write_at(0, bytes(SIZE))
            if commits:
                file.commit(SIZE)
            raise ZeroDivisionError
    assert len(failed) == 2 and os.listdir(folder) == ["out"]


def test_another_file_under_the_name_is_left_alone(folder):
    """Whoever moves the folder away and puts a file of the same name there gets nothing written into it."""
    inside, data = folder / "inside", os.urandom(SIZE)
    inside.mkdir()
    with AtomicFile(inside / "out") as file:
        file.reserve(SIZE)
        inside.rename(folder / "moved")
        inside.mkdir()
        other = inside / file.temporary.name
        other.write_bytes(b"other" * SIZE)
        file.write_at(0, data)
        assert os.pread(file.descriptor, SIZE, 0) == data and other.read_bytes() == b"other" * SIZE


@pytest.mark.parametrize("given", ["a.safetensors", "a.pt"])
@pytest.mark.parametrize("output", ["o.safetensors", "o.pt", "o.dcp", "o"])
def test_commands_write_the_same_files_in_both_ways(folder, paramcli, monkeypatch, calls, given, output):
    """An edit of one tensor, what it leaves untouched in several threads, and all of it in shards."""
    monkeypatch.setattr(write_safetensors, "KERNEL_BLOCK", 3 * PAGE)
    state = {"w": torch.randn(130, 130), **{f"t{n}": torch.randn(1000 * n + 7) for n in range(12)}}
    save_file(state, folder / "a.safetensors")
    torch.save(state, folder / "a.pt")
    split = ("--max-shard-size", "100KB") if output == "o" else ()
    edit = ("convert", folder / given) if split else ("add", folder / given, "-t", "w", "--chain", "symmetric")
    found = []
    for least in (1, 1 << 40):
        monkeypatch.setattr(direct, "LEAST", least)
        calls.clear()
        paramcli(*edit, "-o", folder / output, "-f", *split)
        assert any(straight for _, straight, *_ in calls) == (least == 1)
        files = sorted((folder / output).iterdir()) if (folder / output).is_dir() else [folder / output]
        found.append([(file.name, file.read_bytes()) for file in files])
    assert found[0] == found[1]


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_writes_what_came_where_it_belongs(folder, calls, seed):
    """Runs of any lengths at any places, some side by side; neighbours share calls, and pages of memory lie as in the
    file.
    """
    generator = random.Random(seed)
    data, runs, at = generator.randbytes(SIZE), [], 0
    while at < SIZE:
        length = min(generator.choice((1, 7, 100, PAGE, 3 * PAGE + 5)), SIZE - at)
        runs.append((at, length))
        at += length
    cut = generator.randrange(len(runs))
    with AtomicFile(folder / "out") as file:
        file.reserve(SIZE)
        with Stream(file) as stream:
            for place, length in runs[cut:] + runs[:cut]:
                stream.go(place)
                done = 0
                while done < length:
                    room = stream.room(length - done)
                    room[:] = data[place + done : place + done + len(room)]
                    stream.came(len(room))
                    done += len(room)
        file.commit(SIZE)
    assert (folder / "out").read_bytes() == data
    assert all(offset % PAGE == place for offset, straight, _, place in calls if not straight)
    assert len(calls) <= SIZE // direct.BLOCK + 8


def test_a_stream_that_fails_writes_nothing_more(folder, calls):
    """What is in its block belongs to a file that is given up."""
    with AtomicFile(folder / "out") as file:
        file.reserve(SIZE)
        with pytest.raises(ZeroDivisionError), Stream(file) as stream:
            stream.go(5)
            stream.came(100)
            raise ZeroDivisionError
    assert not calls
