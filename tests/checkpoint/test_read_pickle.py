"""Pickles of numpy arrays, as detectron2's model zoo has them and torch_xla keeps its tensors: against numpy itself."""

from __future__ import annotations

import os
import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file

from paramcli.checkpoint.disk.input_file import InputFile
from paramcli.checkpoint.pickle import pickle_data
from paramcli.checkpoint.read import torch_file
from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.errors import InputRefused

from ..hostile.build import call, name, number, text

RANDOM = numpy.random.default_rng(0)
LARGE = RANDOM.standard_normal((60, 70))  # more bytes than are kept in memory
ARRAYS = {
    "float32": RANDOM.standard_normal((4, 3, 3)).astype("f4"),
    "large": LARGE,
    "by columns": numpy.asfortranarray(LARGE),
    "a part by columns": numpy.asfortranarray(RANDOM.standard_normal((2, 3, 4))),
    "turned": LARGE.astype(">f8"),
    "turned, by columns": numpy.asfortranarray(LARGE.astype(">f4")),
    "turned complex": (LARGE + 1j * LARGE.T.reshape(LARGE.shape)).astype(">c8"),
    "turned, small": numpy.arange(5, dtype=">i2"),
    "half": numpy.arange(3, dtype="f2"),
    "bool": numpy.array([[True, False]]),
    "one number": numpy.array(2.5),
    "nothing": numpy.zeros((0, 3), "f4"),
    "every byte": numpy.arange(256, dtype="u1").repeat(40),
    **{
        code: numpy.arange(6).astype(code).reshape(3, 2)
        for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "c8")
    },
}


def dumped(folder: Path, value: object, protocol: int = 4, suffix: str = "pkl") -> Path:
    path = folder / f"m.{suffix}"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("what", ARRAYS)
def test_the_numbers_are_numpy_s(what, protocol, tmp_path):
    """Every dtype and order, under every protocol, large and small."""
    path = dumped(tmp_path, {"model": {"w.weight": ARRAYS[what]}, "__author__": "x"}, protocol)
    with open_checkpoint(path) as source:
        assert source.container == "pickle" and source.root == "model"
        got = source.read("w.weight")
    wanted = ARRAYS[what].astype(ARRAYS[what].dtype.newbyteorder("="))
    assert tuple(got.shape) == wanted.shape and numpy.array_equal(got.numpy(), wanted)
    assert got.numpy().dtype == wanted.dtype


@pytest.mark.parametrize("out", ["o.safetensors", "o.pt", "o.dcp"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_all_of_a_file_comes_out(protocol, out, tmp_path, paramcli):
    """Into each container, checked; what is no array of numbers is named, and so is damage that nobody could notice."""
    arrays = {what.replace(" ", "_"): array for what, array in ARRAYS.items()}
    path = dumped(tmp_path, {**arrays, "classes": numpy.array(["a"]), "objects": numpy.array([None]), "n": 3}, protocol)
    said = paramcli("convert", path, "--check", "-o", tmp_path / out).err
    assert all(word in said for word in ("classes", "objects", "no checksums"))
    with open_checkpoint(tmp_path / out) as source:
        assert set(source.tensors) == set(arrays)
        for what, array in arrays.items():
            assert numpy.array_equal(source.read(what).numpy(), array)


def test_one_array_under_two_names_is_tied(tmp_path, paramcli):
    """As pickle has it: one object."""
    path = dumped(tmp_path, {"a.weight": LARGE, "b.weight": LARGE, "c.weight": LARGE.copy()})
    with open_checkpoint(path) as source:
        assert source.tied() == [["a.weight", "b.weight"]]
    paramcli("convert", path, "-o", tmp_path / "o.pt")
    state = torch.load(tmp_path / "o.pt")
    assert state["a.weight"].data_ptr() == state["b.weight"].data_ptr() != state["c.weight"].data_ptr()


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("spelt", ["bytes", "text"])
def test_arrays_of_the_same_bytes_and_other_numbers_are_two(spelt, fold, tmp_path, paramcli):
    """They share a place in the file, and no torch result makes them one."""
    held = numpy.arange(1, 2049, dtype="f4")
    data = b"B" + struct.pack("<I", held.nbytes) + held.tobytes()
    if spelt == "text":
        data = call("_codecs", "encode", text(held.tobytes().decode("latin-1")), text("latin1"))
    first, again = old_array(held, data=data + b"q\x63") + b"q\x62", b"h\x62"
    arrays = text("a.w") + first + text("b.w") + old_array(held.view(">f4"), data=b"h\x63")
    path = tmp_path / "m.pkl"
    path.write_bytes(b"\x80\x03}(" + arrays + (text("c.w") + again if fold else b"") + b"u.")
    wanted = pickle.loads(path.read_bytes(), encoding="latin1")
    with open_checkpoint(path) as source:
        assert source.tied() == ([["a.w", "c.w"]] if fold else [])
    paramcli("convert", path, "--check", "-o", tmp_path / "o.pt")
    for what, tensor in torch.load(tmp_path / "o.pt").items():
        assert numpy.array_equal(tensor.numpy(), wanted[what])


def test_an_edit_of_a_pickle_is_a_file_beside_it(tmp_path, paramcli):
    """m.pkl -> m.baked.safetensors; in place there is nothing to write."""
    g, v = RANDOM.standard_normal((4, 1)).astype("f4"), RANDOM.standard_normal((4, 3)).astype("f4")
    path = dumped(tmp_path, {"l.weight_g": g, "l.weight_v": v})
    paramcli("remove", path)
    baked = load_file(tmp_path / "m.baked.safetensors")["l.weight"]
    assert torch.equal(baked, torch._weight_norm(torch.from_numpy(v), torch.from_numpy(g), 0))
    before = path.read_bytes()
    assert "pickle" in paramcli("remove", path, "--in-place", code=2).err and path.read_bytes() == before


@pytest.mark.parametrize("dtype", ["c16", "g"])
def test_an_array_without_a_safetensors_form_is_odd(dtype, tmp_path, paramcli):
    """Listed, passed by, and refused where it would be carried."""
    path = dumped(tmp_path, {"w.weight": LARGE, "odd": numpy.ones(3, dtype)})
    paramcli("inspect", path)
    assert "odd is " in paramcli("convert", path, "-o", tmp_path / "o.safetensors", code=3).err
    paramcli("convert", path, "--drop", "odd", "-o", tmp_path / "o.safetensors")


RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")


def python2(word: bytes) -> bytes:
    """A text of Python 2, which has its bytes."""
    return b"U" + bytes([len(word)]) + word if len(word) < 256 else b"T" + struct.pack("<I", len(word)) + word


def old_array(values: numpy.ndarray, shape: bytes | None = None, data: bytes | None = None) -> bytes:
    """As Python 2's cPickle writes an array."""
    dtype = values.dtype.str
    kind = name("numpy", "dtype") + python2(dtype[1:].encode()) + b"K\x00K\x01\x87R(K\x03" + python2(dtype[:1].encode())
    kind += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    sizes = shape or b"(" + b"".join(number(size) for size in values.shape) + b"t"
    made = RECONSTRUCT + name("numpy", "ndarray") + b"K\x00\x85" + python2(b"b") + b"\x87R"
    return made + b"(K\x01" + sizes + kind + b"\x89" + (python2(values.tobytes()) if data is None else data) + b"tb"


@pytest.mark.parametrize("values", [numpy.arange(6.0).reshape(2, 3), LARGE, numpy.arange(256, dtype="u1")], ids=len)
def test_python_2_s_pickles_are_read(values, tmp_path):
    """Caffe2's and the first detectron's: bytes are texts there."""
    path = tmp_path / "m.pkl"
    path.write_bytes(b"\x80\x02}" + python2(b"blobs") + b"}(" + python2(b"w.weight") + old_array(values) + b"us.")
    assert numpy.array_equal(pickle.loads(path.read_bytes(), encoding="latin1")["blobs"]["w.weight"], values)
    with open_checkpoint(path) as source:
        assert source.root == "blobs" and numpy.array_equal(source.read("w.weight").numpy(), values)


FOUR = numpy.arange(4, dtype="f4")
HOSTILE = {
    "bytes missing": old_array(FOUR, data=python2(bytes(12))),
    "bytes more": old_array(FOUR, data=python2(bytes(20))),
    "no bytes": old_array(FOUR, data=b"K\x04"),
    "a shape of 2^62": old_array(FOUR, shape=number(1 << 62) + b"\x85"),
    "a negative shape": old_array(FOUR, shape=number(-4) + b"\x85"),
    "a shape of texts": old_array(FOUR, shape=text("4") + b"\x85"),
    "65 dimensions": old_array(FOUR, shape=b"(" + b"K\x01" * 64 + b"K\x04t"),
    "bytes past the end": old_array(FOUR, data=b"T" + struct.pack("<I", 1 << 30)),
    "letters that are no bytes": old_array(FOUR, data=call("_codecs", "encode", text("\u0100" * 16), text("latin1"))),
    "letters beyond Latin-1 for bytes": old_array(FOUR, data=text("\u0100\u2603" * 8)),
    "letters in another plane for bytes": old_array(FOUR, data=text("abcdefgh1234567\U0001f600")),
    "a call of os.system": old_array(FOUR, data=call("os", "system", text("touch CANARY"))),
    "memory of the machine": old_array(FOUR, data=call("builtins", "bytearray", number(16))),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_lie_in_a_pickle_is_refused(what, tmp_path, paramcli, monkeypatch):
    """Exit 3, one line, nothing written and nothing run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.pkl").write_bytes(b"\x80\x02}" + text("w.weight") + HOSTILE[what] + b"s.")
    said = paramcli("convert", "m.pkl", "-o", "o.safetensors", code=3).err
    assert said.startswith("error: ") and "m.pkl" in said and sorted(os.listdir(tmp_path)) == ["m.pkl"]


def test_letters_that_are_no_bytes_are_found_when_they_are_read(tmp_path):
    """A long text is decoded where it is read, not before."""
    spelt = call("_codecs", "encode", text("\u0100" * 4096), text("latin1"))
    (tmp_path / "m.pkl").write_bytes(
        b"\x80\x02}" + text("w.weight") + old_array(numpy.zeros(4096, "u1"), data=spelt) + b"s."
    )
    with open_checkpoint(tmp_path / "m.pkl") as source, pytest.raises(InputRefused, match="bytes"):
        source.read_bytes("w.weight")


def test_a_text_of_fewer_bytes_is_found_when_it_is_read(tmp_path):
    """Two letters of UTF-8 are one byte each of Latin-1: its length tells only the most there can be."""
    spelt = call("_codecs", "encode", text("\u00ff" * 4096), text("latin1"))
    (tmp_path / "m.pkl").write_bytes(
        b"\x80\x02}" + text("w.weight") + old_array(numpy.zeros(5000, "u1"), data=spelt) + b"s."
    )
    with open_checkpoint(tmp_path / "m.pkl") as source, pytest.raises(InputRefused, match="another number of bytes"):
        source.read_bytes("w.weight")


@pytest.mark.parametrize("more", [b"x", b"\x80\x02}."])
def test_bytes_after_it_are_refused(more, tmp_path):
    """They could be anything."""
    path = dumped(tmp_path, {"w.weight": LARGE})
    path.write_bytes(path.read_bytes() + more)
    with pytest.raises(InputRefused, match="belong to nothing"):
        open_checkpoint(path)


def test_every_cut_is_refused(tmp_path):
    """Wherever it ends too early."""
    whole = dumped(tmp_path, {"model": {"w.weight": LARGE, "b": FOUR}, "n": [1, 2.5, "x" * 5000]}).read_bytes()
    for at in [*range(0, 600, 7), *range(600, len(whole), 997), len(whole) - 1]:
        (tmp_path / "cut.pkl").write_bytes(whole[:at])
        with pytest.raises(InputRefused):
            open_checkpoint(tmp_path / "cut.pkl")


@pytest.mark.parametrize("gap", range(0, 5000, 131))
def test_it_is_read_in_pages_wherever_they_end(gap, tmp_path, monkeypatch):
    """Opcodes, names and numbers that lie over the end of what is held are read all the same."""
    monkeypatch.setattr(pickle_data, "CHUNK", 6000)
    value = {
        "pad": ["x" * 90] * 3 + ["y" * (gap % 97)] * 40,
        "z": "p" * gap,
        "model": {"w.weight": LARGE, "b.weight": FOUR},
    }
    path = dumped(tmp_path, {**value, "end": [{str(n): float(n)} for n in range(900)]}, protocol=2 + gap % 4)
    with open_checkpoint(path) as source:
        assert numpy.array_equal(source.read("w.weight").numpy(), LARGE)
        assert numpy.array_equal(source.read("b.weight").numpy(), FOUR)


@pytest.mark.parametrize("before", [0, 700_000])
def test_a_long_integer_takes_no_more_memory_than_a_pickle_may(before, tmp_path, monkeypatch):
    """Refused before it is read: alone, and with what came before it."""
    monkeypatch.setattr(pickle_data, "MAX_BYTES", 2 << 20)
    size = (2 << 20) - before + 1
    spelt = b"(" + b"N" * before + b"1\x8b" + struct.pack("<I", size) + bytes(size)
    (tmp_path / "m.pkl").write_bytes(b"\x80\x02}" + text("w") + old_array(FOUR) + b"s0" + spelt + b".")
    reads, read = [], InputFile.read
    monkeypatch.setattr(InputFile, "read", lambda file, at, size: reads.append(size) or read(file, at, size))
    with pytest.raises(InputRefused, match="larger than any checkpoint's"):
        open_checkpoint(tmp_path / "m.pkl")
    assert max(reads) <= pickle_data.CHUNK


def test_a_large_one_is_listed_from_its_description(tmp_path):
    """Arrays of 4 GiB are not read to be listed."""
    array = numpy.zeros(64, "u1")
    head, tail = pickle.dumps({"w.weight": array}, protocol=4).split(array.tobytes())
    head = head[:-2].replace(b"\x95" + head[3:11], b"") + b"\x8e" + struct.pack("<Q", 4 << 30)  # no frame, a long run
    head = head.replace(b"K\x40\x85", b"\x8a\x05\x00\x00\x00\x00\x01\x85")
    with open(tmp_path / "m.pkl", "wb") as file:
        file.write(head)
        file.seek(4 << 30, os.SEEK_CUR)
        file.write(tail)
    done = subprocess.run(
        [sys.executable, "-m", "paramcli", "inspect", str(tmp_path / "m.pkl"), "--json"],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30)),
    )
    assert done.returncode == 0 and '"bytes": 4294967296' in done.stdout, done.stderr


# --- torch_xla -------------------------------------------------------------------------------------


class OnDevice:
    """A tensor of a device, as torch itself pickles one: an array of numpy, the dtype, the device."""

    def __init__(self, tensor: torch.Tensor, function: str = "_rebuild_device_tensor_from_numpy"):
        self.tensor, self.function = tensor, function

    def __reduce__(self):
        of_cpu = self.function.endswith("cpu_tensor")
        wide = self.tensor.float() if self.tensor.dtype == torch.bfloat16 else self.tensor
        held = self.tensor if of_cpu else wide.numpy()
        return getattr(torch._utils, self.function), (held, self.tensor.dtype, "cpu", False)


DEVICE = {
    "float32": torch.randn(40, 30),
    "bfloat16": torch.randn(40, 30).bfloat16(),
    "bfloat16, small": torch.tensor([1.5, float("nan"), -0.0]).bfloat16(),
    "int64": torch.arange(5),
    "transposed": torch.randn(3, 4).t().contiguous().t(),
}
FUNCTIONS = ["_rebuild_device_tensor_from_numpy", "_rebuild_xla_tensor", "_rebuild_device_tensor_from_cpu_tensor"]


@pytest.mark.parametrize("long", [False, True], ids=["short", "long"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_tensors_of_another_device_are_read(function, protocol, long, tmp_path, monkeypatch):
    """What torch gives, byte for byte, also where the pickle is longer than one is that holds no arrays."""
    if long:
        monkeypatch.setattr(torch_file, "MAX_BYTES", 1000)
    saved = {what: OnDevice(tensor, function) for what, tensor in DEVICE.items()}
    torch.save({"model": saved, "epoch": 3}, tmp_path / "x.pt", pickle_protocol=protocol)
    theirs = torch.load(tmp_path / "x.pt", weights_only=False)["model"]
    with open_checkpoint(tmp_path / "x.pt") as source:
        assert source.root == "model"
        for what, tensor in theirs.items():
            got = source.read(what)
            assert got.dtype == tensor.dtype and got.shape == tensor.shape
            assert got.contiguous().view(torch.uint8).equal(tensor.contiguous().view(torch.uint8))


def test_a_bfloat16_that_was_none_is_refused(tmp_path):
    """float32 numbers with more digits would be rounded: by torch when it loads them, by nobody here."""

    class Rounded:
        def __reduce__(self):
            held = numpy.full((2, 2), 0.1, "f4")
            return torch._utils._rebuild_device_tensor_from_numpy, (held, torch.bfloat16, "cpu", False)

    torch.save({"w.weight": Rounded()}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as source, pytest.raises(InputRefused, match="none of bfloat16"):
        source.read("w.weight")


@pytest.mark.parametrize("depth", [1, 490, 100_000])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_tensor_of_a_device_that_holds_another_is_none(function, depth, tmp_path):
    """However deep: listed, and not read."""
    rebuild = name("torch._utils", function)
    end = name("torch", "float32") + text("cpu") + b"\x89tR"
    made = rebuild + b"q\x63" + b"(" + b"h\x63(" * depth + old_array(FOUR) + end * (depth + 1)
    (tmp_path / "m.pkl").write_bytes(b"\x80\x02}(" + text("w") + old_array(FOUR) + text("x") + made + b"u.")
    try:
        with open_checkpoint(tmp_path / "m.pkl") as source, pytest.raises(InputRefused, match="another device"):
            source.read("x")
    except InputRefused:
        assert depth > 10_000


@pytest.mark.parametrize("at", [0.2, 0.5, 0.9])
def test_damage_in_a_long_pickle_is_found(at, tmp_path, monkeypatch):
    """The archive's checksum is compared before anything in it is believed."""
    monkeypatch.setattr(torch_file, "MAX_BYTES", 1000)
    torch.save({"w.weight": OnDevice(torch.randn(100, 100))}, tmp_path / "x.pt")
    data = bytearray((tmp_path / "x.pt").read_bytes())
    data[int(len(data) * at)] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(InputRefused, match="checksum"):
        open_checkpoint(tmp_path / "x.pt")
