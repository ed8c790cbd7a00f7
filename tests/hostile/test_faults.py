"""Whole commands when something fails: a clear line, exit 4 or 3, and the folder as it was."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.checkpoint import source as reading

from ..pace import HANG_SECONDS
from .test_hostile import check_one_line, state_of
from .test_kills import quietly, wait

ADD = ["-t", "w", "--chain", "symmetric"]
FOLDERS = ["folder", "folder.dcp"]
OUTPUTS = ["out.safetensors", "out.pt", *FOLDERS]


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working folder with one model, of one file and of two shards."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    save_file({"w": torch.randn(64, 64), "other": torch.randn(3000)}, "in.safetensors", {"format": "pt"})
    assert wait(quietly(["convert", "in.safetensors", "-o", "shards", "--max-shard-size", "13KB"], folder)) == 0
    return folder


def command(output: str) -> list[str]:
    return ["add", "shards" if output in FOLDERS else "in.safetensors", "-o", output, *ADD]


FAULTS = {
    "pwrite": errno.ENOSPC,
    "fsync": errno.EIO,
    "posix_fallocate": errno.ENOSPC,
    "copy_file_range": errno.ENOSPC,
    "link": errno.EACCES,
    "rename": errno.EIO,
    "replace": errno.EIO,
    "mkdir": errno.EROFS,
    "fchmod": errno.EPERM,
}


# Copying begins before the maths is there; where that fails, all is done again in the ordinary way.
DONE_AGAIN = {"mkdir", "posix_fallocate", "pwrite"}


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("function", FAULTS)
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_failing_call_leaves_the_folder_as_it_was(output, function, existing, place, paramcli, monkeypatch):
    """Write, sync, reserve, copy, link, rename, replace and mkdir fail, the first time or the second, over nothing or
    over an old output: exit 4 and the folder as it was, or, of calls that are made again, the result as ever.
    """

    def made() -> dict[str, object]:
        return {name: content for name, content in state_of(place).items() if name.startswith(output)}

    def start() -> None:
        shutil.rmtree(output) if os.path.isdir(output) else os.path.exists(output) and os.unlink(output)
        if existing:
            paramcli(*command(output)[:-2], "--chain", "skew")

    more = ["-f"] if existing else []
    start()
    paramcli(*command(output), *more)
    wanted = made()
    for nth in (1, 2):
        start()
        before, real, calls = state_of(place), getattr(os, function), []

        def fail(*arguments, calls=calls, real=real, nth=nth, **options):
            calls.append(1)
            if len(calls) == nth:
                raise OSError(FAULTS[function], os.strerror(FAULTS[function]))
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            result = paramcli(*command(output), *more, code=None)
        after = state_of(place)
        if result.code == 0:  # this output does without the call, or the call was made again
            assert len(calls) < nth or function in DONE_AGAIN, f"{function} number {nth} failed, and nothing was said"
            assert made() == wanted
            continue
        assert result.code == 4 and len(calls) >= nth
        check_one_line(result.err, function)
        if after != before and ((existing and output in FOLDERS) or (function == "fsync" and nth == 2)):
            # The names had changed by then, and what they lead to is complete: only the folder's own sync failed.
            check_whole(place / output)
            assert {n: c for n, c in after.items() if not n.startswith(output)} == {
                n: c for n, c in before.items() if not n.startswith(output)
            }
        else:
            assert after == before, f"{function} number {nth}: {set(after) ^ set(before)}"


def check_whole(folder: Path) -> None:
    from paramcli.checkpoint.read.open import open_checkpoint

    with open_checkpoint(folder) as source:
        assert {"other"} <= set(source.tensors)


def limited(arguments: list[str], before) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "paramcli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(reading.__file__).parents[2])}
    return subprocess.run(
        command, capture_output=True, text=True, preexec_fn=before, env=environment, timeout=HANG_SECONDS
    )


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_size_limit(output, place):
    """RLIMIT_FSIZE, as a full disk does, ends in one line, exit 4 and the folder as it was."""
    before = state_of(place)
    done = limited(command(output), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)))
    assert done.returncode == 4 and "size limit" in done.stderr and done.stdout == ""
    check_one_line(done.stderr, output)
    assert f"cannot write {output}" in done.stderr and ".paramcli" not in done.stderr
    assert state_of(place) == before


def ended_by_a_library(arguments: list[str], call: str) -> subprocess.CompletedProcess:
    """The command, in which the first linear algebra ends the process as libgomp does: by C's exit or abort."""
    script = (
        "import ctypes, sys\n"
        "from paramcli.checkpoint.disk import interrupts\n"
        "from paramcli.cli import app\n"
        "real = interrupts.import_torch\n"
        "def imported():\n"
        "    real()\n"
        "    import torch\n"
        f"    torch.linalg.vector_norm = torch.Tensor.abs = lambda *a, **k: ctypes.CDLL(None).{call}\n"
        "interrupts.import_torch = imported\n"
        "app.main(sys.argv[1:])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(reading.__file__).parents[2])}
    line = [sys.executable, "-c", script, *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=HANG_SECONDS)


@pytest.mark.parametrize("output", [*OUTPUTS, "--in-place"])
def test_a_library_that_ends_the_process_leaves_nothing(output, place):
    """libgomp calls exit(1) where it gets no thread: exit 70, one line and its hint, and the folder as it was."""
    before = state_of(place)
    arguments = ["add", "shards", "--in-place", *ADD] if output == "--in-place" else command(output)
    done = ended_by_a_library(arguments, "exit(1)")
    assert done.returncode == 70 and done.stdout == "" and state_of(place) == before
    assert (
        done.stderr.startswith("error: a library that paramcli computes with ended it") and "\n  try: " in done.stderr
    )


def test_no_verdict_is_made_by_a_library_that_ends_the_process(place):
    """Of verify exit 1 means that a constraint does not hold."""
    name = ADD[ADD.index("-t") + 1]
    line = ["verify", "in.safetensors", "-t", name, "--constraint", "symmetric"]
    assert ended_by_a_library(line, "exit(1)").returncode == 70
    assert ended_by_a_library(line, "exit(0)").returncode == 70
    assert limited(line, lambda: None).returncode == 1


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_memory_limit(output, place):
    """RLIMIT_AS below what torch's libraries take: exit 70, one line, and the folder as it was."""
    before = state_of(place)
    done = limited(command(output), lambda: resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20)))
    assert done.returncode == 70 and done.stdout == "" and state_of(place) == before
    assert done.stderr.startswith("error: out of memory\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("output", [*OUTPUTS, "--in-place"])
def test_a_user_without_permission(output, place, paramcli):
    """Who may read and not write gets exit 4 and 'permission denied'; who may not read, exit 3."""
    for folder in [place, *list(place.parents)[:-2]]:
        if folder.stat().st_uid == 0 and folder != Path(tempfile.gettempdir()):
            folder.chmod(0o755)
    for file in place.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)
    # The user may not be allowed to read the installed packages: they are loaded first.
    for arguments in (command(output if output != "--in-place" else "x.safetensors"), ["inspect", "in.safetensors"]):
        paramcli(*arguments)
    for made in (output, "x.safetensors"):
        shutil.rmtree(made) if os.path.isdir(made) else os.path.exists(made) and os.unlink(made)
    before = state_of(place)

    def become_nobody() -> None:
        os.setgid(65534)
        os.setuid(65534)

    def as_nobody(arguments: list[str]) -> int:
        child = os.fork()
        if not child:
            become_nobody()
            code = 99
            try:
                from paramcli.cli.app import run

                os.dup2(log, 2)
                code = run(arguments)
                sys.stderr.flush()
            finally:
                os._exit(code)
        return wait(child)

    with tempfile.TemporaryFile() as err:
        log = err.fileno()
        arguments = command(output) if output != "--in-place" else ["add", "in.safetensors", "--in-place", *ADD]
        assert as_nobody(arguments) == 4
        (place / "in.safetensors").chmod(0o600)
        code = as_nobody(["inspect", "in.safetensors"])
        err.seek(0)
        assert code == 3, err.read()
        (place / "in.safetensors").chmod(0o644)
    assert state_of(place) == before


def in_shell(line: str) -> int:
    environment = {**os.environ, "PYTHONPATH": str(Path(reading.__file__).parents[2])}
    return subprocess.run(
        ["sh", "-c", line.replace("paramcli", f"{sys.executable} -m paramcli")],
        env=environment,
        timeout=HANG_SECONDS,
        stderr=subprocess.DEVNULL,
    ).returncode


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", ">/dev/full 2>/dev/full", ">/dev/full", "| true", "2>&-"])
def test_streams_that_fail_never_harm_the_output(streams, place):
    """Closed, full and broken standard streams: the file is whole and nothing of the streams is in it."""
    in_shell(f"paramcli add in.safetensors -t w --chain symmetric -o out.safetensors {streams}")
    in_shell("paramcli add in.safetensors -t w --chain symmetric -o other.safetensors")
    assert (place / "out.safetensors").read_bytes() == (place / "other.safetensors").read_bytes()
    assert not [name for name in os.listdir(place) if name.startswith(".paramcli")]


CHANGES = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 3000),
    "grown": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "rewritten": lambda path: path.write_bytes(bytes(reversed(path.read_bytes()))),
    "replaced": lambda path: (shutil.copy(path, f"{path}.new"), os.replace(f"{path}.new", path)),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_changes_while_it_is_read(change, output, place, paramcli, monkeypatch):
    """Cut, grown, rewritten, replaced or gone between the header and the data: exit 3, no output, no signal."""
    from paramcli.surgery import run as engine

    real = engine.open_sink

    def then(path, source, *rest, **options):
        CHANGES[change](source.files[0].path)
        return real(path, source, *rest, **options)

    monkeypatch.setattr(engine, "open_sink", then)
    before = set(os.listdir(place))
    result = paramcli(*command(output), code=3)
    check_one_line(result.err, change)
    assert set(os.listdir(place)) <= before


def test_an_output_on_another_file_system(place, paramcli):
    """The temporary file is in the output's own folder, so the rename never crosses file systems."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == place.stat().st_dev:
        pytest.skip("no second file system")
    with tempfile.TemporaryDirectory(dir=shared) as there:
        for output in OUTPUTS:
            paramcli(*command(output), "--check")
            paramcli(*command(output)[:2], "-o", Path(there) / output, *ADD, "--check")
            assert state_of(Path(there)).keys() == {name for name in state_of(Path(there)) if ".paramcli" not in name}
        assert (Path(there) / "out.safetensors").read_bytes() == (place / "out.safetensors").read_bytes()


@pytest.mark.parametrize("output", ["out.safetensors", *FOLDERS])
def test_runs_that_race_for_one_output(output, place):
    """Four runs with different results on one output: one wins, the others say that it exists, and the result is one of
    theirs.
    """
    chains = ["symmetric", "skew", "weight_norm", "spectral_norm"]
    children = [quietly([*command(output)[:-1], chain], place) for chain in chains]
    codes = sorted(wait(child) for child in children)
    assert codes == [0, 4, 4, 4]
    raced = state_of(place / output) if output in FOLDERS else (place / output).read_bytes()
    alone = []
    for chain in chains:
        shutil.rmtree(place / output) if output in FOLDERS else (place / output).unlink()
        assert wait(quietly([*command(output)[:-1], chain], place)) == 0
        alone.append(state_of(place / output) if output in FOLDERS else (place / output).read_bytes())
    assert raced in alone
    assert not [name for name in os.listdir(place) if name.startswith(".paramcli")]


def test_in_place_on_a_link_writes_through_to_its_target(place, paramcli):
    """The link stays a link, the file it names is new, and nothing appears beside the link."""
    (place / "blobs").mkdir()
    os.rename("in.safetensors", "blobs/abc")
    (place / "blobs/abc").chmod(0o640)
    (place / "in.safetensors").symlink_to("blobs/abc")
    paramcli("add", "in.safetensors", "--in-place", *ADD)
    assert (place / "in.safetensors").is_symlink() and sorted(os.listdir("blobs")) == ["abc"]
    assert "parametrizations.w.original" in load_file("blobs/abc")
    assert stat.S_IMODE(os.stat("blobs/abc").st_mode) == 0o640


def test_what_a_killed_run_left_disturbs_nobody(place, paramcli):
    """Stale temporary files and folders of any content, under our own names: runs ignore them and add none."""
    (place / ".paramcli-00000000.tmp").write_bytes(b"junk")
    (place / ".paramcli-11111111.tmp").mkdir()
    (place / "shards" / ".paramcli-22222222.safetensors").write_bytes(b"junk")
    (place / "shards" / ".paramcli-33333333.tmp").write_bytes(b"junk")
    left = {name for name in state_of(place) if ".paramcli" in name}
    for output in OUTPUTS:
        paramcli(*command(output))
    paramcli("add", "shards", "--in-place", *ADD)
    assert {name for name in state_of(place) if ".paramcli" in name} == left


def test_a_folder_s_other_files_are_carried_only_from_inside(place, paramcli):
    """A config is carried along, and so is a link into the hub's blobs; a link to elsewhere in the system is not."""
    (place / "secret").write_text("the user's key")
    (place / "shards/config.json").write_text("{}")
    (place / "shards/tokenizer.json").symlink_to("../secret")
    (place / "shards/passwd").symlink_to("/etc/passwd")
    paramcli(*command("folder"))
    assert (place / "folder/config.json").exists()
    assert not (place / "folder/tokenizer.json").exists() and not (place / "folder/passwd").exists()
    snapshot = place / "models--x" / "snapshots" / "0123"
    snapshot.parent.mkdir(parents=True)
    (place / "models--x/blobs").mkdir()
    shutil.copytree("shards", snapshot, symlinks=True)
    (place / "models--x/blobs/aa").write_text("[]")
    (snapshot / "vocab.json").symlink_to("../../blobs/aa")
    paramcli("add", snapshot, "-o", "hub", *ADD)
    assert (place / "hub/vocab.json").read_text() == "[]" and not (place / "hub/passwd").exists()


def test_nothing_in_the_working_folder_or_beside_the_checkpoint_is_imported(place):
    """Modules named like libraries, and a config, lie in both folders; none is imported or read."""
    for folder in (place, place / "shards"):
        for module in ("torch", "rich", "safetensors", "json", "paramcli_plugin", "sitecustomize"):
            (folder / f"{module}.py").write_text(f"open({str(place / 'CANARY')!r}, 'w')")
        for config in ("pyproject.toml", "paramcli.toml", "setup.cfg", ".paramclirc"):
            (folder / config).write_text("[tool.paramcli]\nplugin = 'torch.py'\n")
    script = (
        f"import sys; sys.path = [p for p in sys.path if p not in ('', {str(place)!r})]; "
        "from paramcli.cli.app import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(reading.__file__).parents[2])}
    for arguments in (["inspect", "shards"], ["add", "shards", "-o", "out", *ADD], ["verify", "out"]):
        done = subprocess.run(
            [sys.executable, "-P" if sys.version_info >= (3, 11) else "-I", "-c", script, *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=HANG_SECONDS,
        )
        assert done.returncode in (0, 1), done.stderr
    assert not (place / "CANARY").exists()


def test_python_m_imports_nothing_of_ours_from_the_working_folder(place):
    """`python -m paramcli` begins with the working folder on the path. Modules of every name in Python's library lie
    there, after Python's own start, which imports some itself.
    """
    names = {"__future__", *sys.stdlib_module_names} - {"torch"}
    for module in (*sorted(name for name in names if name.isidentifier()), "torch", "typer", "rich", "safetensors"):
        (place / f"{module}.py").write_text(f"open({str(place / 'CANARY')!r}, 'a').write('{module} ')")
    script = (
        "import runpy, sys; sys.modules.pop('__future__', None); sys.path.insert(0, ''); "
        "runpy.run_module('paramcli', run_name='__main__', alter_sys=True)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(reading.__file__).parents[2])}
    for arguments in (["inspect", "shards"], ["add", "shards", "-o", "out", *ADD]):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path[:] = filter(None, sys.path); {script}", *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=HANG_SECONDS,
        )
        assert done.returncode == 0, done.stderr
    assert not (place / "CANARY").exists(), (place / "CANARY").read_text()


# --- the order of system calls -------------------------------------------------------------------


def order(lines: list[str], folder: Path, name: str) -> list[str]:
    """The calls of a trace that touch the output or its temporary file, in words."""
    said, temporary, folder_descriptor, descriptors = [], None, set(), set()
    for line in lines:
        if "openat(" in line and ".paramcli-" in line and "O_EXCL" in line and "= -1" not in line:
            temporary = line.split('"')[1]
            assert "O_CREAT" in line and "O_NOFOLLOW" in line
            descriptors.add(line.rsplit("= ", 1)[1].strip())
            said.append("create")
        elif (
            "openat(" in line
            and "O_DIRECTORY" in line
            and f'"{folder}"' in line.replace('"."', f'"{folder}"')
            and "= -1" not in line
        ):
            folder_descriptor.add(line.rsplit("= ", 1)[1].strip())
        # A thread that ends at this moment makes strace say it in two lines: the call, unfinished, and its result.
        elif any(f"fsync({d}{end}" in line for d in folder_descriptor for end in (")", " <unfinished")):
            said.append("sync folder")
        elif any(f"fsync({d}{end}" in line for d in descriptors for end in (")", " <unfinished")):
            said.append("sync")
        elif temporary and ("pwrite64(" in line or "copy_file_range(" in line) and (not said or said[-1] != "write"):
            said.append("write")
        elif (
            temporary
            and ("rename" in line or "link(" in line or "linkat(" in line)
            and temporary in line
            and "unlink" not in line
        ):
            assert name in line
            said.append("name")
        elif temporary and "unlink" in line and temporary in line:
            said.append("unlink temporary")
    return said


@pytest.mark.parametrize("existing", [False, True])
def test_the_order_of_system_calls(existing, place, paramcli):
    """strace: create with O_EXCL in the output's folder, write, fsync, rename or link, fsync of the folder."""
    if shutil.which("strace") is None:
        pytest.skip("no strace")
    output = place / "out.safetensors"
    if existing:
        output.write_bytes(b"old")
    calls = "openat,pwrite64,copy_file_range,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat"
    environment = {**os.environ, "PYTHONPATH": str(Path(reading.__file__).parents[2])}
    done = subprocess.run(
        [
            "strace",
            "-f",
            "-o",
            "trace",
            "-e",
            f"trace={calls}",
            sys.executable,
            "-m",
            "paramcli",
            "convert",
            "in.safetensors",
            "-o",
            str(output),
            "-f",
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    assert order(Path("trace").read_text().splitlines(), place, "out.safetensors") == [
        "create",
        "write",
        "sync",
        "name",
        "sync folder",
    ]


@pytest.mark.parametrize("output", OUTPUTS)
def test_every_file_is_synced_before_it_gets_its_name_and_the_index_last(output, place, paramcli, monkeypatch):
    """By os's own functions: no file is linked or renamed that was not synced after its last write; the index of shards
    is named last.
    """
    dirty, named, synced_folders = {}, [], 0
    real = {name: getattr(os, name) for name in ("pwrite", "copy_file_range", "fsync", "link", "rename", "replace")}

    def inode(where) -> int:
        status = os.fstat(where) if isinstance(where, int) else os.lstat(where)
        return status.st_ino

    def wrote(name, position):
        def call(*arguments, **options):
            dirty[inode(arguments[position])] = True
            return real[name](*arguments, **options)

        return call

    def fsync(descriptor):
        nonlocal synced_folders
        synced_folders += stat.S_ISDIR(os.fstat(descriptor).st_mode)
        dirty[inode(descriptor)] = False
        return real["fsync"](descriptor)

    def naming(name):
        def call(old, new, **options):
            assert dirty.get(inode(old), False) is False, f"{new} was named before it was synced"
            named.append(Path(new).name)
            return real[name](old, new, **options)

        return call

    monkeypatch.setattr(os, "pwrite", wrote("pwrite", 0))
    monkeypatch.setattr(os, "copy_file_range", wrote("copy_file_range", 1))
    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("link", "rename", "replace"):
        monkeypatch.setattr(os, name, naming(name))
    paramcli(*command(output))
    assert synced_folders >= 1
    if output in FOLDERS:
        assert named[-1].endswith((".index.json", ".metadata")) and len(named) >= 3
    else:
        assert named == [output]
