"""A file is there whole or not at all, whatever goes wrong on the way."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import paramcli
from paramcli.checkpoint.disk import atomic
from paramcli.checkpoint.disk.atomic import AtomicFile, refuse_existing, rename_to_new
from paramcli.checkpoint.disk.interrupts import Interrupted, signals_as_exceptions, signals_held
from paramcli.checkpoint.read.safetensors_file import open_safetensors
from paramcli.checkpoint.write import writer
from paramcli.errors import OutputFailed, ParamcliError, UsageError
from paramcli.surgery.output import same_place
from paramcli.wording import in_shell

from ..pace import HANG_SECONDS


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def put(path: Path, data: bytes = b"new", **options: bool) -> None:
    with AtomicFile(path, **options) as file:
        file.write_at(0, data)
        file.commit(len(data))


def test_nothing_appears_before_commit_and_nothing_stays_without_it(tmp_path):
    """Until commit the folder shows one hidden temporary file, and none after leaving without commit."""
    with AtomicFile(tmp_path / "out.safetensors") as file:
        file.write_at(0, b"abc")
        (name,) = os.listdir(tmp_path)
        assert name.startswith(".paramcli-") and name.endswith(".tmp") and len(name) < 32
    assert os.listdir(tmp_path) == []


def test_commit_gives_exactly_the_bytes(tmp_path):
    """Parts written in any order at their places become the file."""
    with AtomicFile(tmp_path / "out") as file:
        file.reserve(6)
        file.write_at(3, memoryview(b"def"))
        file.write_at(0, bytearray(b"abc"))
        file.commit(6)
    assert listing(tmp_path) == {"out": b"abcdef"}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002, 0o000])
def test_a_new_file_follows_the_umask(tmp_path, umask):
    """The mode of a new file is 0666 without the umask's bits."""
    before = os.umask(umask)
    try:
        put(tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "out").st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_replaced_file_keeps_its_mode(tmp_path, mode):
    """Overwriting keeps the mode, and meanwhile the new bytes are nobody else's to read."""
    out = tmp_path / "out"
    out.write_bytes(b"old")
    out.chmod(mode)
    with AtomicFile(out, overwrite=True) as file:
        file.write_at(0, b"new")
        assert stat.S_IMODE(os.fstat(file.descriptor).st_mode) == 0o600
        assert out.read_bytes() == b"old"
        file.commit(3)
    assert stat.S_IMODE(os.stat(out).st_mode) == mode and listing(tmp_path) == {"out": b"new"}


def test_an_existing_file_needs_leave(tmp_path):
    """Without overwrite an existing file, folder or dangling link is refused with the way out."""
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "folder", "dangling"):
        with pytest.raises(OutputFailed, match="exists already") as caught:
            refuse_existing(tmp_path / name, False)
        assert "--force replaces it" in caught.value.advised(in_shell)
        assert "force=True replaces it" in caught.value.hint
        refuse_existing(tmp_path / name, True)
        with pytest.raises(OutputFailed, match="exists already"):
            put(tmp_path / name)
    assert listing(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize("links_work", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch, links_work):
    """One that another run publishes while we write stays, with hard links or without."""
    if not links_work:
        monkeypatch.setattr(os, "link", _raiser(errno.EPERM))
    with AtomicFile(tmp_path / "out") as file:
        file.write_at(0, b"ours")
        (tmp_path / "out").write_bytes(b"theirs")
        with pytest.raises(OutputFailed, match="exists already"):
            file.commit(4)
    assert listing(tmp_path) == {"out": b"theirs"}


@pytest.mark.parametrize("renameat2", [True, False])
def test_without_hard_links_a_rename_publishes(tmp_path, monkeypatch, renameat2):
    """A file system without links, or without renameat2 either, still gets the whole file."""
    monkeypatch.setattr(os, "link", _raiser(errno.EOPNOTSUPP))
    if not renameat2:
        monkeypatch.setattr(atomic, "_renameat2", lambda old, new: False)
    put(tmp_path / "out")
    with pytest.raises(OutputFailed, match="exists already"):
        put(tmp_path / "out", b"x")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with pytest.raises(FileExistsError):
        rename_to_new(tmp_path / "a", tmp_path / "b")
    assert listing(tmp_path) == {"out": b"new"}


def _raiser(number: int):
    def raise_it(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return raise_it


def test_a_link_is_written_through_and_stays(tmp_path):
    """Overwriting a symlink replaces the file it names, in that file's folder; follow_links=False replaces the link."""
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / "weights"
    target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to("real/weights")
    put(link, overwrite=True)
    assert link.is_symlink() and target.read_bytes() == b"new" and os.listdir(tmp_path / "real") == ["weights"]
    put(link, b"own", overwrite=True, follow_links=False)
    assert not link.is_symlink() and link.read_bytes() == b"own" and target.read_bytes() == b"new"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing/out", "folder does not exist"),
        ("file/out", "folder is a file"),
        ("folder", "it is a folder"),
        ("fifo", "pipe, socket or device"),
        ("loop", "loop of symbolic links"),
        ("x" * 256, "name is too long"),
        ("dangling", "folder does not exist"),
    ],
)
def test_places_that_cannot_be_written_are_said_clearly(tmp_path, name, says):
    """Each impossible place is OutputFailed with a reason a person understands, and nothing is left."""
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere/x")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OutputFailed) as caught:
        put(tmp_path / name, overwrite=True)
    assert says in caught.value.message and caught.value.exit_code == 4
    assert sorted(os.listdir(tmp_path)) == before


def test_a_device_is_never_replaced(tmp_path):
    """--force on /dev/null refuses, and leaves the device."""
    with pytest.raises(OutputFailed, match="device"):
        put(Path("/dev/null"), overwrite=True)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_255_byte_name_works(tmp_path):
    """The longest name a file system allows can be written and replaced."""
    out = tmp_path / ("é" * 126 + "xyz")
    put(out)
    put(out, b"again", overwrite=True)
    assert out.read_bytes() == b"again"


FAULTS = {
    "pwrite": (errno.ENOSPC, "disk full"),
    "fsync": (errno.EIO, "Input/output error"),
    "fstat": (errno.EIO, "Input/output error"),
    "replace": (errno.EACCES, "permission denied"),
    "posix_fallocate": (errno.EDQUOT, "quota"),
    "open": (errno.EROFS, "read-only file system"),
}


@pytest.mark.parametrize("function", FAULTS)
def test_a_failing_system_call_leaves_the_folder_as_it_was(tmp_path, monkeypatch, function):
    """Write, sync, rename, reserve and create may each fail: the old file stays, alone, and the reason is told."""
    number, says = FAULTS[function]
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(OutputFailed) as caught, monkeypatch.context() as patch:
        patch.setattr(os, function, _raiser(number))
        with AtomicFile(tmp_path / "out", overwrite=True) as file:
            file.reserve(3)
            file.write_at(0, b"new")
            file.commit(3)
    assert says in caught.value.message and str(tmp_path / "out") in caught.value.message
    assert listing(tmp_path) == {"out": b"old"}


def test_a_short_file_is_not_published(tmp_path):
    """A size other than promised is a failure."""
    with pytest.raises(OutputFailed, match="2 bytes of 3"), AtomicFile(tmp_path / "out") as file:
        file.write_at(0, b"ab")
        file.commit(3)
    assert os.listdir(tmp_path) == []


def test_partial_writes_are_completed(tmp_path, monkeypatch):
    """pwrite may take less than it is given; the rest follows."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:2], offset))
    put(tmp_path / "out", b"abcdefg")
    assert listing(tmp_path) == {"out": b"abcdefg"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_order_is_write_sync_name_sync(tmp_path, monkeypatch, overwrite):
    """The bytes are synced before the name appears, and the folder after it."""
    calls = []
    if overwrite:
        (tmp_path / "out").write_bytes(b"old")
    for function in ("pwrite", "fsync", "link", "replace", "unlink"):
        real = getattr(os, function)

        def record(*arguments, _real=real, _name=function, **options):
            is_folder = _name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            calls.append("fsync folder" if is_folder else _name)
            return _real(*arguments, **options)

        monkeypatch.setattr(os, function, record)
    put(tmp_path / "out", overwrite=overwrite)
    assert calls == ["pwrite", "fsync", *(["replace"] if overwrite else ["link", "unlink"]), "fsync folder"]


@pytest.mark.parametrize("exception", [KeyboardInterrupt, MemoryError, ValueError])
def test_an_exception_in_between_removes_the_temporary_file(tmp_path, exception):
    """Whatever is raised while writing passes on, and nothing is left."""
    (tmp_path / "out").write_bytes(b"old")
    with pytest.raises(exception), AtomicFile(tmp_path / "out", overwrite=True) as file:
        file.write_at(0, b"new")
        raise exception
    assert listing(tmp_path) == {"out": b"old"}


def test_interrupts_during_cleanup_still_clean_up(tmp_path, monkeypatch):
    """Ctrl-C pressed again and again leaves nothing behind."""

    def pressed(function):
        def call(*arguments):
            for _ in range(3):
                signal.raise_signal(signal.SIGINT)
            return function(*arguments)

        return call

    for name in ("unlink", "close"):
        monkeypatch.setattr(os, name, pressed(getattr(os, name)))
    with pytest.raises(KeyboardInterrupt), AtomicFile(tmp_path / "out"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_become_exceptions(number):
    """SIGTERM and SIGHUP raise Interrupted inside the block only."""
    with pytest.raises(Interrupted) as caught, signals_as_exceptions():
        signal.raise_signal(number)
        time.sleep(1)
    assert caught.value.signal == number
    assert signal.getsignal(number) is signal.SIG_DFL


def test_an_ignored_signal_stays_ignored():
    """Under nohup SIGHUP does nothing."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_exceptions():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_held_signals_come_after_the_block():
    """Within signals_held nothing is raised; the signal arrives when the block is done."""
    done = False
    with pytest.raises(KeyboardInterrupt), signals_held():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def run(code: str, folder: Path, **options) -> subprocess.Popen:
    prelude = (
        "import os, sys, time, signal\n"
        "from paramcli.checkpoint.disk.atomic import *\n"
        "from paramcli.checkpoint.disk.interrupts import *\n"
        "from paramcli.errors import *\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(atomic.__file__).parents[2])}
    command = [sys.executable, "-c", prelude + textwrap.dedent(code)]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, **options)


WRITE_SLOWLY = """
try:
    with signals_as_exceptions(), AtomicFile("out", overwrite=True) as file:
        file.write_at(0, b"x" * 1000)
        os.write(1, b"ready")
        time.sleep(20)
        file.commit(1000)
except Interrupted as stop:
    sys.exit(128 + stop.signal)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stopped_process_leaves_the_old_file(tmp_path, number):
    """After INT, TERM and HUP the folder is as before; after KILL the old file is whole, and the next run works."""
    (tmp_path / "out").write_bytes(b"old")
    process = run(WRITE_SLOWLY, tmp_path, stdout=subprocess.PIPE)
    assert process.stdout.read(5) == b"ready"
    process.send_signal(number)
    process.communicate(timeout=HANG_SECONDS)
    left = listing(tmp_path)
    assert left.pop("out") == b"old"
    if number == signal.SIGKILL:
        assert process.returncode == -9 and len(left) == 1
        put(tmp_path / "out", overwrite=True)
        assert len(listing(tmp_path)) == 2
    else:
        assert process.returncode == 128 + number and not left


def test_a_size_limit_is_a_clear_failure(tmp_path):
    """Under ulimit -f, writing with or without reserving ends in one line and an empty folder."""
    for reserve in (True, False):
        code = f"""
        try:
            with AtomicFile("out") as file:
                file.reserve(1 << 20) if {reserve} else None
                file.write_at(0, b"x" * (1 << 20))
                file.commit(1 << 20)
        except OutputFailed as error:
            sys.exit(error.message)
        """
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (10_000, 10_000))
        process = run(code, tmp_path, preexec_fn=limit)
        _, err = process.communicate(timeout=HANG_SECONDS)
        assert err.strip() == b"cannot write out: the file would pass the size limit" and process.returncode == 1
        assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_a_clear_failure(tmp_path):
    """A folder without write permission is refused."""
    tmp_path.chmod(0o555)
    with pytest.raises(OutputFailed, match="permission denied"):
        put(tmp_path / "out")
    tmp_path.chmod(0o755)


def test_closed_standard_streams_never_become_the_output(tmp_path):
    """With fds 0 to 2 closed, what is printed does not land in the file."""
    code = """
    for number in (0, 1, 2):
        os.close(number)
    with AtomicFile("out") as file:
        ok = file.descriptor > 2
        for number in (1, 2):
            try:
                os.write(number, b"noise")
            except OSError:
                pass
        file.write_at(0, b"data")
        file.commit(4)
    os._exit(0 if ok else 1)
    """
    process = run(code, tmp_path)
    process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0 and listing(tmp_path) == {"out": b"data"}


def test_two_runs_on_one_output_leave_one_whole_file(tmp_path):
    """Runs that race without overwrite: one wins, the others say that it exists, nothing else is left."""
    code = """
    data = sys.argv[1].encode() * 100_000
    try:
        with AtomicFile("out") as file:
            file.write_at(0, data)
            file.commit(len(data))
    except OutputFailed as error:
        sys.exit(error.exit_code)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(atomic.__file__).parents[2])}
    prelude = "import os, sys\nfrom paramcli.checkpoint.disk.atomic import *\nfrom paramcli.errors import *\n"
    runs = [
        subprocess.Popen([sys.executable, "-c", prelude + textwrap.dedent(code), letter], cwd=tmp_path, env=environment)
        for letter in "abc"
    ]
    codes = sorted(process.wait(20) for process in runs)
    assert codes == [0, 4, 4]
    (content,) = listing(tmp_path).values()
    assert len(content) == 100_000 and len(set(content)) == 1


def test_two_edits_in_place_are_both_kept_or_one_is_refused(tmp_path, monkeypatch):
    """Between the look at the input and the new name no other run comes: a second one waits, and sees the change."""
    path = tmp_path / "m.safetensors"
    save_file({"a.weight_g": torch.ones(3, 1), "a.weight_v": torch.eye(3)}, path)
    looked, go_on, codes = threading.Event(), threading.Event(), []
    look = writer.check_unchanged

    def looking(*sources):
        look(*sources)
        if not looked.is_set():
            looked.set()
            go_on.wait(2)  # nobody may come before this thread goes on

    monkeypatch.setattr(writer, "check_unchanged", looking)

    def migrate():
        try:
            paramcli.migrate(path, to="new", in_place=True)
            codes.append("done")
        except ParamcliError as error:
            codes.append(error.message)

    first = threading.Thread(target=migrate)
    first.start()
    assert looked.wait(60)
    second = threading.Thread(target=migrate)
    second.start()
    second.join(0.5)
    assert second.is_alive()  # at the lock, or on its way there
    go_on.set()
    first.join(60)
    second.join(60)
    assert codes[0] == "done" and len(codes) == 2 and codes[1] != "done"


def test_without_a_way_to_reserve_a_file_is_written(tmp_path, monkeypatch):
    """macOS has no posix_fallocate."""
    monkeypatch.delattr(os, "posix_fallocate")
    with AtomicFile(tmp_path / "x") as file:
        file.reserve(3)
        file.write_at(0, b"abc")
        file.commit(3)
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_the_input_is_recognised_under_every_name(tmp_path, monkeypatch):
    """The same path, another spelling, a symlink, a hard link and its own folder are the input; a copy is not."""
    path = tmp_path / "in.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "symlink").symlink_to(path)
    os.link(path, tmp_path / "hardlink")
    (tmp_path / "copy").write_bytes(path.read_bytes())
    monkeypatch.chdir(tmp_path)
    with open_safetensors(Path("in.safetensors")) as source:
        for name in (path, "in.safetensors", "folder/../in.safetensors", "symlink", "hardlink", ".", tmp_path):
            with pytest.raises(UsageError, match="is the input itself") as caught:
                same_place(name, source, True)
            assert "--in-place" in caught.value.advised(in_shell)
        for name in ("copy", "new", "folder", "missing/x"):
            same_place(name, source, True)


def test_an_error_at_a_close_in_between_names_the_file(tmp_path, monkeypatch):
    """Of many files some are closed while others are written; network file systems tell then what failed."""
    real = os.close

    def close(descriptor):
        real(descriptor)
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    file = AtomicFile(tmp_path / "out", overwrite=False, sync=False)
    with pytest.raises(OutputFailed, match="quota"), file:
        file.write_at(0, b"abc")
        monkeypatch.setattr("paramcli.checkpoint.disk.atomic.os.close", close)
        try:
            file.park()
        finally:
            monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc here")
def test_a_folder_that_is_there_is_not_said_to_be_missing(tmp_path, paramcli):
    """/proc makes no files, and answers ENOENT: its word is said. Of no folder, that."""
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    for name in ("x.safetensors", "x", "x.pt"):
        told = paramcli("convert", tmp_path / "a.safetensors", "-o", f"/proc/{name}", code=4).err
        assert f"cannot write /proc/{name}: No such file or directory\n  try: write elsewhere" in told
    for name in ("none/x.safetensors", "none/x", "none/x.pt"):
        told = paramcli("convert", tmp_path / "a.safetensors", "-o", tmp_path / name, code=4).err
        assert f"{name}: its folder does not exist" in told
