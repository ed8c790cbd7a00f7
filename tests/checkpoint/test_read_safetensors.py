"""A .safetensors file as a Source: tensors as the library reads them, refusals that name the file."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save, save_file

from paramcli.checkpoint.disk.input_file import InputFile, OpenFiles
from paramcli.checkpoint.read.safetensors_file import open_safetensors
from paramcli.dtypes import CODE_OF_TORCH
from paramcli.errors import InputRefused


def one_of_each_dtype() -> dict[str, torch.Tensor]:
    """Random bytes as every torch dtype safetensors has, NaN payloads and -0 among them."""
    raw = torch.randint(0, 256, (16,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = {name: raw % 2 == 0 if name == "bool" else raw.clone().view(getattr(torch, name)) for name in CODE_OF_TORCH}
    found["nan payload"] = torch.tensor([0x7FC00001, -0x80000000, 0x7F800001], dtype=torch.int32).view(torch.float32)
    return found


def test_tensors_equal_the_library_s_bit_for_bit(tmp_path):
    """Every dtype, NaN payload and -0 reads as safetensors.torch.load_file reads it."""
    path = tmp_path / "x.safetensors"
    save_file(one_of_each_dtype(), path, {"format": "pt", "note": "é"})
    with safe_open(path, "pt") as file:
        expected = {name: file.get_tensor(name) for name in sorted(file.keys())}
    with open_safetensors(path) as source:
        assert source.container == "safetensors" and source.metadata == {"format": "pt", "note": "é"}
        assert source.shards == {} and source.roots[0].tensors == len(expected)
        assert source.nbytes == os.path.getsize(path)
        assert set(source.tensors) == set(expected)
        for name, tensor in expected.items():
            got = source.read(name)
            assert got.dtype == tensor.dtype and got.shape == tensor.shape
            assert bytes(source.read_bytes(name)) == bytes(tensor.contiguous().view(torch.uint8).numpy())


def test_packed_dtypes_that_torch_lacks_are_bytes(tmp_path):
    """An F4 tensor is listed with its shape, and its bytes can be read without torch."""
    path = tmp_path / "x"
    text = b'{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\x12\x34")
    with open_safetensors(path) as source:
        assert source.tensors["a"].shape == (4,) and source.read_bytes("a") == b"\x12\x34"


def test_a_real_file_lists_what_safe_open_lists(fixtures):
    """silero-vad's own file has the library's names and shapes."""
    path = fixtures / "silero_vad_16k.safetensors"
    with open_safetensors(path) as source, safe_open(path, "pt") as file:
        expected = {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
        assert {name: list(info.shape) for name, info in source.tensors.items()} == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "too short"),
        (b"1234567", "too short"),
        (save({"a": torch.zeros(9)})[:-1], "is cut short: its header asks for 36 bytes of tensors, the file has 35"),
        (save({"a": torch.zeros(9)})[:40], "is cut short: its header alone"),
        (save({"a": torch.zeros(9)}) + b"x", "1 bytes after its last tensor"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"\x80\x02}q\x00.", "too short"),
        (b"PK\x03\x04" + bytes(100), "not a safetensors file"),
    ],
)
def test_what_is_broken_is_said_of_the_file(tmp_path, content, says):
    """A refusal is one line that begins with the file's name and says what is wrong."""
    path = tmp_path / "ckpt\n\x1b[31m.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputRefused) as caught:
        open_safetensors(path)
    assert says in caught.value.message and caught.value.message.isprintable()
    assert "ckpt\\x0a\\x1b[31m.safetensors" in caught.value.message and caught.value.path == path


def test_a_refused_file_is_closed(tmp_path):
    """No descriptor stays open after a refusal."""
    (tmp_path / "x").write_bytes(b"nonsense, and more nonsense")
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InputRefused):
        open_safetensors(tmp_path / "x")
    assert os.listdir("/proc/self/fd") == before


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    """A FIFO, a folder, a device, a loop and a missing file are refused without waiting."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("fifo", "loop", "device", "", "missing", "x" * 300, "a\0b"):
        with pytest.raises(InputRefused):
            open_safetensors(tmp_path / name)


def test_a_file_changed_meanwhile_is_noticed(tmp_path):
    """Growing, rewriting, cutting, replacing and removing the input all raise InputRefused."""
    content = save({"a": torch.zeros(100)})

    def replace(path):
        (tmp_path / "new").write_bytes(content)
        os.utime(tmp_path / "new", ns=(1, os.stat(path).st_mtime_ns))
        os.replace(tmp_path / "new", path)

    def rewrite(path):
        path.write_bytes(content[:-1] + b"\1")
        os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1))

    for change in (
        lambda path: path.write_bytes(content + b"x"),
        lambda path: os.truncate(path, len(content) - 1),
        rewrite,
        replace,
        os.unlink,
    ):
        path = tmp_path / "x.safetensors"
        path.write_bytes(content)
        with open_safetensors(path) as source:
            source.check_unchanged()
            change(path)
            with pytest.raises(InputRefused, match="changed while"):
                source.check_unchanged()


def test_a_cut_file_is_an_error_and_no_signal(tmp_path):
    """Reading what was cut off after opening raises InputRefused, where a mapped file would die of SIGBUS."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"a": torch.zeros(5000)}))
    with open_safetensors(path) as source:
        os.truncate(path, 4096)
        with pytest.raises(InputRefused, match="was cut"):
            source.read_bytes("a")


def test_files_of_a_pool_are_open_a_few_at_a_time(tmp_path):
    """Forty files of one pool need no more than its limit of descriptors, and a parked one that changed is refused."""
    pool, files = OpenFiles(4), []
    before = len(os.listdir("/proc/self/fd"))
    for number in range(40):
        (tmp_path / str(number)).write_bytes(b"%02d" % number)
        files.append(InputFile(tmp_path / str(number), pool))
        files[-1].read(0, 2)
    assert len(os.listdir("/proc/self/fd")) <= before + 4
    assert [bytes(file.read(0, 2)) for file in files] == [b"%02d" % number for number in range(40)]
    (tmp_path / "3").write_bytes(b"new")
    with pytest.raises(InputRefused, match="changed while"):
        files[3].read(0, 2)
    for file in files:
        file.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_threads_that_share_a_pool_never_read_through_a_parked_descriptor(tmp_path):
    """Eight threads over thirty files, two open at a time: every byte is its own file's."""
    from concurrent.futures import ThreadPoolExecutor

    pool, files = OpenFiles(2), []
    for number in range(30):
        (tmp_path / str(number)).write_bytes(bytes([number]) * 1000)
        files.append(InputFile(tmp_path / str(number), pool))
    work = [number * 7 % 30 for number in range(3000)]
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda number: set(files[number].read(0, 1000)), work))
    assert got == [{number} for number in work]
    for file in files:
        file.close()


def test_a_sparse_8_gib_file_is_listed_from_its_header(tmp_path):
    """Opening needs the header's memory only, whatever the size of the tensors."""
    path = tmp_path / "big.safetensors"
    text = b'{"a":{"dtype":"U8","shape":[8589934592],"data_offsets":[0,8589934592]}}'
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + (8 << 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_safetensors(path) as source:
        assert source.tensors["a"].nbytes == 8 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_closed_standard_streams_are_never_the_input():
    """With fds 0 to 2 closed, the input is opened above them."""
    code = (
        "import os\nfor n in (0, 1, 2): os.close(n)\n"
        "from paramcli.checkpoint.disk.input_file import InputFile\n"
        "f = InputFile(os.__file__)\n"
        "os._exit(0 if f.descriptor > 2 else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_opening_does_not_import_torch(fixtures):
    """Listing a safetensors file leaves torch and safetensors alone."""
    code = (
        "import sys; from paramcli.checkpoint.read.safetensors_file import open_safetensors\n"
        "import paramcli.checkpoint.write.writer, paramcli.checkpoint.read.sharded\n"
        f"open_safetensors({str(fixtures / 'silero_vad_16k.safetensors')!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
