"""Hostile, broken and odd files of every class: name, how to make it, and what must become of it."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .build import (
    MAGIC,
    ORDERED,
    REBUILD,
    VALUES,
    VERSION,
    call,
    checkpoint,
    entry,
    legacy,
    legacy_state,
    member,
    name,
    number,
    safetensors,
    state_dict,
    storage,
    tensor,
    text,
    zipped,
)


@dataclass(frozen=True)
class Case:
    """`make` writes the file into a folder and returns the path to give to paramcli."""

    kind: str
    name: str
    make: Callable[[Path], Path]
    # The tensors of a file that is odd but valid; None: it must be refused.
    tensors: frozenset[str] | None = None
    heavy: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


CASES: list[Case] = []


def _file(
    kind: str,
    suffix: str,
    cases: dict[str, bytes | Callable[[], bytes]],
    tensors: str | None = None,
    heavy: bool = False,
) -> None:
    for case, content in cases.items():

        def make(folder: Path, content=content) -> Path:
            path = folder / f"made{suffix}"
            path.write_bytes(content() if callable(content) else content)
            return path

        CASES.append(Case(kind, case, make, None if tensors is None else frozenset(tensors.split()), heavy))


# --- safetensors headers -------------------------------------------------------------------------

W, DATA = "{" + entry() + "}", VALUES
_file(
    "header",
    ".safetensors",
    {
        "empty file": b"",
        "seven bytes": b"\1\0\0\0\0\0\0",
        "length alone": struct.pack("<Q", 2),
        "length one more": safetensors(W, DATA, len(W) + 1),
        "length one less": safetensors(W, DATA, len(W) - 1),
        "length past the file": safetensors(W, DATA, 10_000),
        "length 2^63": safetensors(W, DATA, 1 << 63),
        "length 2^64-1": safetensors(W, DATA, (1 << 64) - 1),
        "length 0": safetensors(W, DATA, 0),
        "length past the cap": safetensors(W, DATA, 100_000_001),
        "not UTF-8": safetensors(b'{"\xff":1}'),
        "a lone surrogate": safetensors('{"a\\ud800":' + entry()[4:] + "}", DATA),
        "an encoded surrogate": safetensors(("{" + entry("a\ud800") + "}").encode("utf-8", "surrogatepass"), DATA),
        "a list": safetensors("[1]"),
        "two objects": safetensors(W + W, DATA),
        "text after": safetensors(W + "x", DATA),
        "null bytes after": safetensors(W + "\0\0", DATA),
        "a byte order mark": safetensors("\ufeff" + W, DATA),
        "no quotes": safetensors("{w:1}"),
        "a trailing comma": safetensors("{" + entry() + ",}", DATA),
        "a comment": safetensors("{" + entry() + "/*x*/}", DATA),
        "a raw control character": safetensors("{" + entry("a\nb") + "}", DATA),
        "a name twice": safetensors("{" + entry() + "," + entry() + "}", DATA),
        "a name twice, one escaped": safetensors("{" + entry() + "," + entry("\\u0077") + "}", DATA),
        "a field twice": safetensors("{" + entry(more=',"dtype":"F32"') + "}", DATA),
        "an unknown field": safetensors("{" + entry(more=',"x":1') + "}", DATA),
        "a missing field": safetensors('{"w":{"dtype":"F32","shape":[4]}}', DATA),
        "an entry as a list": safetensors('{"w":["F32",[4],[0,16]]}', DATA),
        "an entry null": safetensors('{"w":null}', DATA),
        "an unknown dtype": safetensors("{" + entry(dtype='"F128"') + "}", DATA),
        "dtype in small letters": safetensors("{" + entry(dtype='"f32"') + "}", DATA),
        "dtype a number": safetensors("{" + entry(dtype="32") + "}", DATA),
        "dtype null": safetensors("{" + entry(dtype="null") + "}", DATA),
        "shape null": safetensors("{" + entry(shape="null") + "}", DATA),
        "shape a number": safetensors("{" + entry(shape="4") + "}", DATA),
        "shape of floats": safetensors("{" + entry(shape="[4.0]") + "}", DATA),
        "shape 4e0": safetensors("{" + entry(shape="[4e0]") + "}", DATA),
        "shape negative": safetensors("{" + entry(shape="[-4]") + "}", DATA),
        "shape -1 x -4": safetensors("{" + entry(shape="[-1,-4]") + "}", DATA),
        "shape of true": safetensors("{" + entry(shape="[true,4]") + "}", DATA),
        "shape of texts": safetensors("{" + entry(shape='["4"]') + "}", DATA),
        "shape nested": safetensors("{" + entry(shape="[[4]]") + "}", DATA),
        "shape with a leading zero": safetensors("{" + entry(shape="[04]") + "}", DATA),
        "shape NaN": safetensors("{" + entry(shape="[NaN]") + "}", DATA),
        "shape Infinity": safetensors("{" + entry(shape="[Infinity]") + "}", DATA),
        "shape overflows to the right size": safetensors(
            "{" + entry(shape=f"[{1 << 62},4]", offsets="[0,16]") + "}", DATA
        ),
        "shape 2^32 x 2^32": safetensors("{" + entry(shape="[4294967296,4294967296]", offsets="[0,0]") + "}"),
        "shape with zero and beyond 64 bits": safetensors("{" + entry(shape=f"[0,{1 << 63}]", offsets="[0,0]") + "}"),
        "shape of 65 ones": safetensors("{" + entry(shape="[4" + ",1" * 64 + "]") + "}", DATA),
        "shape of 10^30": safetensors("{" + entry(shape="[1" + "0" * 30 + "]") + "}", DATA),
        "shape of 10,000 digits": safetensors("{" + entry(shape="[" + "9" * 10_000 + "]") + "}", DATA),
        "offsets backwards": safetensors("{" + entry(offsets="[16,0]") + "}", DATA),
        "offsets negative": safetensors("{" + entry(offsets="[-16,0]") + "}", DATA),
        "offsets of three": safetensors("{" + entry(offsets="[0,16,16]") + "}", DATA),
        "offsets floats": safetensors("{" + entry(offsets="[0.0,16]") + "}", DATA),
        "offsets past the file": safetensors("{" + entry(shape="[5]", offsets="[0,20]") + "}", DATA),
        "offsets 2^64": safetensors("{" + entry(offsets=f"[{1 << 64},{(1 << 64) + 16}]") + "}", DATA),
        "an overlap": safetensors("{" + entry("a") + "," + entry("b", offsets="[8,24]") + "}", DATA + b"x" * 8),
        "the same range twice": safetensors("{" + entry("a") + "," + entry("b") + "}", DATA),
        "a gap in front": safetensors("{" + entry(offsets="[1,17]") + "}", DATA + b"x"),
        "a gap between": safetensors("{" + entry("a") + "," + entry("b", offsets="[20,36]") + "}", DATA * 2 + b"gap!"),
        "bytes behind": safetensors(W, DATA + b"x"),
        "a byte missing": safetensors(W, DATA[:-1]),
        "half a byte": safetensors("{" + entry(dtype='"F4"', shape="[3]", offsets="[0,2]") + "}", b"ab"),
        "metadata of numbers": safetensors('{"__metadata__":{"a":1},' + entry() + "}", DATA),
        "metadata nested": safetensors('{"__metadata__":{"a":{"b":"c"}},' + entry() + "}", DATA),
        "metadata null": safetensors('{"__metadata__":null,' + entry() + "}", DATA),
        "metadata a list": safetensors('{"__metadata__":["a"],' + entry() + "}", DATA),
        "metadata key twice": safetensors('{"__metadata__":{"a":"1","a":"2"},' + entry() + "}", DATA),
        "metadata twice": safetensors('{"__metadata__":{},"__metadata__":{},' + entry() + "}", DATA),
        "a tensor called __metadata__": safetensors("{" + entry("__metadata__") + "}", DATA),
    },
)
_file(
    "header",
    ".safetensors",
    {
        "spaces after": safetensors(W + "    ", DATA),
        "line breaks inside": safetensors(W.replace(",", ",\n\t "), DATA),
        "all escapes": safetensors("{" + entry("\\u0077") + "}", DATA),
        "empty metadata": safetensors('{"__metadata__":{},' + entry() + "}", DATA),
        "a wrong extension": safetensors(W, DATA),
    },
    tensors="w",
)
_file("header", ".pt", {"safetensors called .pt": safetensors(W, DATA)}, tensors="w")
_file(
    "header",
    ".safetensors",
    {
        "100 MB of brackets": lambda: safetensors('{"w":' + "[" * 99_000_000),
        "nested objects": safetensors('{"a":' * 100_000 + "1" + "}" * 100_000),
        "90 MB of metadata keys": lambda: safetensors(
            '{"__metadata__":{' + ",".join(f'"{n}":""' for n in range(7_000_000)) + "}}"
        ),
        "two million tensors": lambda: safetensors(
            "{" + ",".join(entry(str(n), '"U8"', "[0]", "[0,0]") for n in range(1_500_000)) + "}"
        ),
        "a name of 90 MB, twice": lambda: safetensors("{" + ",".join([entry("n" * 45_000_000)] * 2) + "}", DATA),
    },
    heavy=True,
)

# --- names and metadata that would steer a terminal ----------------------------------------------

_file(
    "names",
    ".safetensors",
    {
        "an escape sequence": safetensors("{" + entry("a\\u001b[2J\\u001b]0;x\\u0007") + "}", DATA),
        "metadata with an escape": safetensors(
            '{"__metadata__":{"k\\u001b[31m":"v\\u001b[31m"},' + entry() + "}", DATA
        ),
        "rich markup": safetensors("{" + entry("[bold red]x[/]") + "}", DATA),
        "a bidi override": safetensors("{" + entry("a\u202egnp.exe") + "}", DATA),
        "line breaks": safetensors("{" + entry("a\\nerror: forged\\r\\u2028b\\u0085c") + "}", DATA),
        "C1 controls": safetensors("{" + entry("a\u009b31m\u007f") + "}", DATA),
        "zero width": safetensors("{" + entry("a\u200bb\ufeff") + "}", DATA),
        "10,000 characters": safetensors("{" + entry("n" * 10_000) + "}", DATA),
        "an empty name": safetensors("{" + entry("") + "}", DATA),
        "a path as a name": safetensors("{" + entry("../../etc/passwd") + "}", DATA),
    },
    tensors="*",
)

# --- zips ----------------------------------------------------------------------------------------

GOOD = state_dict()
DEFLATED = zlib.compressobj(9, zlib.DEFLATED, -15)
BOMB = DEFLATED.compress(bytes(1 << 22)) + DEFLATED.flush()
BIG = state_dict(w=tensor(of=storage(numel=1 << 20), shape=number(1 << 20) + b"\x85"))


def damaged_zip(at: bytes, change: int = 1) -> bytes:
    data = bytearray(checkpoint(GOOD))
    data[data.index(at)] ^= change
    return bytes(data)


def of_version(said: bytes) -> bytes:
    return zipped([member("archive/data.pkl", GOOD), member("archive/data/0", VALUES), member("archive/version", said)])


def zip64(extra: bytes, **lies) -> bytes:
    return zipped([member("archive/data.pkl", GOOD), member("archive/data/0", VALUES, **lies, directory_extra=extra)])


_file(
    "zip",
    ".pt",
    {
        "cut at the directory": checkpoint(GOOD)[:-100],
        "cut in the pickle": checkpoint(GOOD)[:60],
        "end record alone": b"PK\5\6" + bytes(18),
        "bytes after the end": checkpoint(GOOD, tail=b"x"),
        "two zips in a row": checkpoint(GOOD) * 2,
        "a comment that lies": checkpoint(GOOD)[:-2] + b"\x05\0",
        "a flipped bit in a weight": damaged_zip(VALUES),
        "a flipped bit in the pickle": damaged_zip(b"FloatStorage"),
        "deflated tensor": zipped(
            [member("archive/data.pkl", BIG), member("archive/data/0", bytes(1 << 22), bytes=BOMB, method=8), VERSION]
        ),
        "deflated pickle": zipped(
            [member("archive/data.pkl", bytes(1 << 22), bytes=BOMB, method=8), member("archive/data/0", VALUES)]
        ),
        "stored, but sizes differ": zipped(
            [member("archive/data.pkl", GOOD), member("archive/data/0", VALUES, stored=8)]
        ),
        "an unknown method": zipped([member("archive/data.pkl", GOOD), member("archive/data/0", VALUES, method=99)]),
        "encrypted": zipped([member("archive/data.pkl", GOOD), member("archive/data/0", VALUES, flags=1)]),
        "a member twice": checkpoint(GOOD, member("archive/data/0", VALUES)),
        "the pickle twice": checkpoint(GOOD, member("archive/data.pkl", GOOD)),
        "overlapping members": zipped(
            [
                member("archive/data.pkl", GOOD),
                member("archive/data/0", VALUES),
                member("archive/data/1", VALUES, offset=0),
            ]
        ),
        "two names for one member": zipped(
            [
                member("archive/data.pkl", GOOD),
                member("archive/data/0", VALUES),
                member("archive/data/1", b"", offset=len(GOOD) + 46),
            ]
        ),
        "another name before the data": zipped(
            [member("archive/data.pkl", GOOD), member("archive/data/0", VALUES, local_name=b"archive/data/1")]
        ),
        "another size before the data": zipped(
            [member("archive/data.pkl", GOOD), member("archive/data/0", VALUES, local_size=15)]
        ),
        "another checksum before the data": zipped(
            [member("archive/data.pkl", GOOD), member("archive/data/0", VALUES, local_crc=1)]
        ),
        "a size past the file": zipped(
            [member("archive/data.pkl", GOOD), member("archive/data/0", VALUES, size=1 << 30)]
        ),
        "a size of 4 GiB without the 64-bit field": zip64(b"", size=0xFFFFFFFF),
        "a 64-bit field cut short": zip64(struct.pack("<HH", 1, 16), size=0xFFFFFFFF),
        "a 64-bit size of 2^64-1": zip64(struct.pack("<HHQQ", 1, 16, (1 << 64) - 1, (1 << 64) - 1), size=0xFFFFFFFF),
        "a 64-bit field cut short before the data": zipped(
            [
                member("archive/data.pkl", GOOD),
                member("archive/data/0", VALUES, local_size=0xFFFFFFFF, extra=struct.pack("<HH", 1, 16)),
            ]
        ),
        "an offset past the file": zipped(
            [member("archive/data.pkl", GOOD), member("archive/data/0", VALUES, offset=1 << 30)]
        ),
        "more entries than there are": checkpoint(GOOD, count=4),
        "fewer entries than there are": checkpoint(GOOD, count=2),
        "a directory elsewhere": checkpoint(GOOD, at=0),
        "a directory of no size": checkpoint(GOOD, size=0),
        "traversal": checkpoint(GOOD, member("archive/../../evil", b"x")),
        "an absolute name": zipped([member("/data.pkl", GOOD), member("/data/0", VALUES)]),
        "no folder": zipped([member("data.pkl", GOOD), member("data/0", VALUES)]),
        "two folders": checkpoint(GOOD, member("other/x", b"x")),
        "a folder called ..": zipped([member("../data.pkl", GOOD), member("../data/0", VALUES)]),
        "a tensor marked as a folder: memory as weights": zipped(
            [member("archive/data.pkl", GOOD), member("archive/data/0", VALUES, attributes=0x10), VERSION]
        ),
        "no pickle": zipped([member("archive/data/0", VALUES)]),
        "no storage": zipped([member("archive/data.pkl", GOOD)]),
        "a storage too small": checkpoint(GOOD, data=VALUES[:8]),
        "a storage too large": checkpoint(GOOD, data=VALUES * 2),
        "an empty storage": checkpoint(GOOD, data=b""),
        "big endian": checkpoint(GOOD, member("archive/byteorder", b"big")),
        "a name of null": checkpoint(GOOD, member("archive/a\0b", b"x")),
        "a name that is no UTF-8": zipped(
            [member("archive/data.pkl", GOOD), {"name": b"archive/\xff", "data": b""}, member("archive/data/0", VALUES)]
        ),
        "TorchScript": checkpoint(GOOD, member("archive/constants.pkl", b"x"), member("archive/code/x.py", b"x")),
        "an npz": zipped([member("a.npy", b"\x93NUMPY")]),
        "an empty zip": zipped([]),
        "any zip": zipped([member("a.txt", b"hello")]),
        "a pickle with bytes behind": checkpoint(GOOD + b"cos\nsystem\n"),
        "version 0": of_version(b"0\n"),
        "version 11": of_version(b"11\n"),
        "a version of 90 digits": of_version(b"9" * 90),
        "a version of a megabyte": of_version(b"3" + b" " * (1 << 20)),
        "a version that is no number": of_version(b"-3\n"),
    },
)
NO_SUMS = zipped([member("archive/data.pkl", GOOD, crc=0), member("archive/data/0", VALUES, crc=0)])
_file(
    "zip",
    ".pt",
    {
        "as torch.save writes it": checkpoint(GOOD),
        "with a comment": checkpoint(GOOD, comment=b"hello"),
        "no checksums": NO_SUMS,
        "data behind the sizes": zipped(
            [member("archive/data.pkl", GOOD), member("archive/data/0", VALUES, flags=8, local_size=0, local_crc=0)]
        ),
        "another member": checkpoint(GOOD, member("archive/other", b"x")),
        "version 1": of_version(b"1"),
        "version 10": of_version(b"10\n"),
    },
    tensors="w",
)
_file(
    "zip",
    ".pt",
    {
        "60,000 members in another folder": lambda: zipped(
            [member(f"a/{n}", b"") for n in range(60_000)], count=60_000
        ),
        "40 MB of directory": lambda: (
            checkpoint(GOOD)[:-22]
            + bytes(40 << 20)
            + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 3, 3, 40 << 20, len(checkpoint(GOOD)) - 22, 0)
        ),
    },
    heavy=True,
)

# --- pickles -------------------------------------------------------------------------------------

CANARY = text("touch CANARY")
SHARED = b"K\x01" + b"q\x01h\x01\x86" * 60
DEEP = b"K\x01" + b"\x85" * 200_000
MANY = b"}q\x05(" + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(8000)) + b"u0"
FROM_TYPE = name("torch._tensor", "_rebuild_from_type_v2")


def pickles(cases: dict[str, bytes], **options) -> None:
    _file(
        "pickle",
        ".pt",
        {what: (lambda p=p: checkpoint(p() if callable(p) else p)) for what, p in cases.items()},
        **options,
    )


def net(parameters: bytes = b"}", buffers: bytes = b"}", modules: bytes = b"}", more: bytes = b"") -> bytes:
    return (
        name("m", "Net")
        + b")\x81}("
        + text("_parameters")
        + parameters
        + text("_buffers")
        + buffers
        + text("_modules")
        + modules
        + more
        + b"ub"
    )


pickles(
    {
        **{
            f"calls {m}.{w}": state_dict(("x", call(m, w, CANARY)))
            for m, w in (
                ("os", "system"),
                ("posix", "system"),
                ("subprocess", "Popen"),
                ("builtins", "eval"),
                ("builtins", "exec"),
                ("builtins", "__import__"),
                ("runpy", "run_path"),
                ("importlib", "import_module"),
                ("pickle", "loads"),
                ("torch", "load"),
                ("torch.hub", "load"),
                ("io", "open"),
                ("shutil", "rmtree"),
                ("ctypes", "CDLL"),
                ("webbrowser", "open"),
                ("marshal", "loads"),
                ("torch.storage", "_load_from_bytes"),
                ("builtins", "getattr"),
                ("types", "FunctionType"),
                ("operator", "attrgetter"),
                ("numpy", "load"),
            )
        },
        "os.system by STACK_GLOBAL": b"\x80\x04}("
        + text("w")
        + tensor()
        + text("x")
        + text("os")
        + text("system")
        + b"\x93"
        + CANARY
        + b"\x85Ru.",
        "os.system through an attribute": b"\x80\x04}("
        + text("w")
        + tensor()
        + text("x")
        + text("torch")
        + text("serialization.os.system")
        + b"\x93"
        + CANARY
        + b"\x85Ru.",
        "os.system by INST": b"\x80\x02}(" + text("w") + tensor() + text("x") + b"(" + CANARY + b"ios\nsystem\nu.",
        "os.system by NEWOBJ": state_dict(("x", name("os", "system") + CANARY + b"\x85\x81")),
        "os.system by NEWOBJ_EX": state_dict(("x", name("os", "system") + CANARY + b"\x85}\x92")),
        "os.system as a reduce of copyreg": state_dict(
            ("x", call("copyreg", "_reconstructor", name("os", "system"), CANARY, b"N"))
        ),
        "an extension code": state_dict(("x", b"\x82\x01")),
        "a line break in a global": b"\x80\x04}("
        + text("w")
        + tensor()
        + text("x")
        + text("m\nos")
        + text("system")
        + b"\x93)Ru.",
        "a surrogate in a global": b"\x80\x04}("
        + text("w")
        + tensor()
        + text("x")
        + text("\ud800")
        + text("y")
        + b"\x93)Ru.",
        "a global of 20,000 dots": b"\x80\x04}("
        + text("w")
        + tensor()
        + text("x")
        + text("m")
        + text("a." * 20_000)
        + b"\x93)Ru.",
        "FloatTensor(n)": state_dict(w=call("torch", "FloatTensor", number(4000))),
        "TypedStorage(n)": state_dict(("x", call("torch.storage", "TypedStorage", number(4000)))),
        "UntypedStorage by NEWOBJ": state_dict(
            ("x", name("torch.storage", "UntypedStorage") + number(4000) + b"\x85\x81")
        ),
        "Tensor(n)": state_dict(w=call("torch", "Tensor", number(4000))),
        "bytearray(3e9)": state_dict(("x", call("builtins", "bytearray", number(3_000_000_000)))),
        "Storage through copyreg": state_dict(
            ("x", call("copyreg", "_reconstructor", name("torch", "FloatStorage"), number(4000), b"N"))
        ),
        "a tensor past its storage": state_dict(w=tensor(offset=1)),
        "a stride past the storage": state_dict(w=tensor(stride=b"K\x02\x85")),
        "a shape past the storage": state_dict(w=tensor(shape=b"K\x05\x85")),
        "a shape of 2^62": state_dict(w=tensor(shape=number(1 << 62) + b"\x85")),
        "a shape of 2^500": state_dict(w=tensor(shape=number(1 << 500) + b"\x85")),
        "an offset of 2^62": state_dict(w=tensor(offset=1 << 62)),
        "a negative offset": state_dict(w=tensor(offset=-1)),
        "a negative shape": state_dict(w=tensor(shape=number(-4) + b"\x85")),
        "a negative stride": state_dict(w=tensor(stride=number(-1) + b"\x85")),
        "more strides than sizes": state_dict(w=tensor(stride=b"K\x01K\x01\x86")),
        "a shape of True": state_dict(w=tensor(shape=b"\x88\x85")),
        "a shape of 4.0": state_dict(w=tensor(shape=b"G" + struct.pack(">d", 4) + b"\x85")),
        "a shape that is a text": state_dict(w=tensor(shape=text("4"))),
        "a shape of 65 dimensions": state_dict(
            w=tensor(shape=b"(K\x04" + b"K\x01" * 64 + b"t", stride=b"(" + b"K\x01" * 65 + b"t")
        ),
        "a storage of another size": state_dict(w=tensor(of=storage(numel=5))),
        "a storage of -4": state_dict(w=tensor(of=storage(numel=-4))),
        "a storage of 2^62": state_dict(w=tensor(of=storage(numel=1 << 62))),
        "a storage that is not there": state_dict(w=tensor(of=storage(key="7"))),
        "a storage key that is a path": state_dict(w=tensor(of=storage(key="../data.pkl"))),
        "one storage, two sizes": state_dict(("x", tensor(of=storage(numel=8)))),
        "an unknown storage class": state_dict(w=tensor(of=storage(cls="EvilStorage"))),
        "an unknown persistent id": state_dict(w=tensor(of=text("secret") + b"Q")),
        "a persistent id of no storage": state_dict(
            w=tensor(of=b"(" + text("file") + text("/etc/passwd") + b"K\x04K\x04K\x04tQ")
        ),
        "a tensor of no storage": state_dict(w=tensor(of=b"N")),
        "a meta tensor": state_dict(w=tensor(of=storage(device="meta"))),
        "a conjugate view": state_dict(w=tensor(more=b"N}" + text("conj") + b"\x88s")),
        "flags that are bombs": state_dict(
            w=REBUILD + b"(" + storage() + b"K\x00K\x04\x85K\x01\x85\x89N}" + SHARED + b"\x88stR"
        ),
        "a state dict key of bytes": state_dict((call("_codecs", "encode", text("a"), text("latin1")), tensor())),
        "a state dict key of None": state_dict((b"N", tensor())),
        "a state dict key of a tuple": state_dict((b"K\x01\x85", tensor())),
        "1 beside '1'": state_dict((b"K\x01", tensor()), ("1", tensor())),
        "a name with a surrogate": state_dict(("a\ud800", tensor())),
        "a tensor named __metadata__": state_dict(("__metadata__", tensor())),
        "a key set twice": state_dict(("w", tensor())),
        "a dict in itself": state_dict(("x", b"}q\x01" + text("me") + b"h\x01s")),
        "a list in itself": state_dict(("x", b"]q\x01h\x01a")),
        "lists 100,000 deep": state_dict(("x", b"]" * 100_000 + b"a" * 99_999)),
        "a dict with 2^130 leaves": state_dict(
            ("x", b"}" + (b"q\x020}(" + text("a") + b"h\x02" + text("b") + b"h\x02u") * 130)
        ),
        "a key of 2^60 leaves": state_dict(("x", b"}" + SHARED + b"Ns")),
        "a key 200,000 deep": state_dict(("x", b"}" + DEEP + b"Ns")),
        "a dtype of 2^60 leaves": state_dict(
            w=name("torch._utils", "_rebuild_tensor_v3") + b"(" + storage() + b"K\x00))\x89N" + SHARED + b"tR"
        ),
        "OrderedDict(many) 8000 times": state_dict(
            ("x", b"(" + MANY + ORDERED + b"q\x060" + b"h\x06h\x05\x85R" * 8000 + b"l")
        ),
        "copies inside a subclass": state_dict(
            (
                "x",
                b"("
                + MANY
                + FROM_TYPE
                + b"q\x060("
                + ORDERED
                + name("m", "T")
                + b"h\x05\x85}tq\x070"
                + b"h\x06h\x07R" * 8000
                + b"l",
            )
        ),
        "a rebuild in a rebuild, 5000 deep": state_dict(
            ("x", FROM_TYPE + b"q\x070h\x07" + b"(h\x07h\x07" * 5000 + b")" + b"Nt" * 5000 + b"R")
        ),
        "200 names for expanded tensors of 60 MB": b"\x80\x02}("
        + b"".join(text(f"w{n}") + tensor(shape=number(15_000_000) + b"\x85", stride=b"K\x00\x85") for n in range(200))
        + b"u.",
        "no stop": GOOD[:-1],
        "stack underflow": b"\x80\x02R.",
        "a mark without end": b"\x80\x02(((((.",
        "a memo that is not there": b"\x80\x02h\x07.",
        "protocol 0": b"(dp0\n.",
        "protocol 9": b"\x80\x09}.",
        "two values": b"\x80\x02}}.",
        "a text past the end": b"\x80\x02X\xff\xff\xff\xff.",
        "a frame that lies": b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
        "a number of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "an empty pickle": b"",
        "a number alone": b"\x80\x02K\x01.",
        "an empty dict": b"\x80\x02}.",
        "ints that collide": lambda: (
            state_dict(w=b"N")[:-2]
            + text("x")
            + b"}("
            + b"".join(number(((1 << 61) - 1) * (n + 5)) + b"N" for n in range(20_000))
            + b"uu."
        ),
        "marks without end": b"\x80\x02" + b"(" * 1_000_000 + b".",
        "a sparse tensor": state_dict(w=call("torch._utils", "_rebuild_sparse_tensor", b"N")),
        "a quantized tensor": state_dict(w=call("torch._utils", "_rebuild_qtensor", b"N")),
        "a subclass nobody knows": state_dict(
            w=FROM_TYPE
            + b"("
            + REBUILD
            + name("torchao", "Quantized")
            + b"("
            + storage()
            + b"K\x00K\x04\x85K\x01\x85\x89Nt}tR"
        ),
    }
)
pickles(
    {
        "an unknown class": state_dict(("x", name("argparse", "Namespace") + b")\x81}" + text("lr") + b"K\x01sb")),
        "a set": state_dict(("x", b"\x8f(K\x01\x90")),
        "a class with an alarming name": state_dict(("x", name("code.model", "system") + b")\x81")),
        "an attribute cycle of objects": state_dict(("x", name("m", "A") + b")\x81q\x01}" + text("me") + b"h\x01sb")),
    },
    tensors="w",
)
pickles(
    {
        "5 million opcodes": lambda: b"\x80\x02(" + b"N" * 5_000_001 + b"l.",
        "5 million sets": lambda: b"\x80\x02(" + b"\x8f" * 4_900_000 + b"l.",
        "65 MB of text": lambda: b"\x80\x02" + text(b"x" * (65 << 20)) + b".",
        "a million objects": lambda: b"\x80\x02" + name("m", "C") + b"q\x010(" + b"h\x01)\x81" * 1_600_000 + b"l.",
        "a million storages": lambda: (
            b"\x80\x02("
            + text("storage")
            + name("torch", "FloatStorage")
            + text("0")
            + text("cpu")
            + b"K\x04tq\x010("
            + b"h\x01Q" * 990_000
            + b"l."
        ),
        "300,000 dicts in a dict": lambda: (
            b"\x80\x02}(" + b"".join(text(f"{n:06d}") + b"}" for n in range(300_000)) + b"u."
        ),
        "a key of 20 MB before 2000 dicts": lambda: (
            b"\x80\x02}"
            + text("k" * 20_000_000)
            + b"}("
            + b"".join(text(f"{n:06d}") + b"}" for n in range(2000))
            + b"us."
        ),
        "modules that share a table": lambda: (
            b"\x80\x02}("
            + b"".join(
                text(f"{n:06d}")
                + (
                    net(b"}(" + b"".join(text(f"{j:05d}") + b"N" for j in range(3000)) + b"u")[:-1] + b"q\x09b"
                    if n == 0
                    else name("m", "Net") + b")\x81h\x09b"
                )
                for n in range(3000)
            )
            + b"u."
        ),
        "2000 modules, one name list": lambda: (
            b"\x80\x02"
            + net(
                buffers=b"}(" + text("b") + tensor() + b"u",
                modules=b"}("
                + b"".join(
                    text(f"m{n}")
                    + net(
                        more=text("_non_persistent_buffers_set")
                        + (
                            b"\x8f(" + b"".join(text(f"{j}") for j in range(2000)) + b"\x90q\x0a"
                            if n == 0
                            else b"h\x0a"
                        )
                    )
                    for n in range(2000)
                )
                + b"u",
            )
            + b"."
        ),
    },
    heavy=True,
)

# --- legacy files --------------------------------------------------------------------------------

LEGACY = legacy_state()
KEYS = b"\x80\x02](" + text("0") + b"e."
_file(
    "legacy",
    ".pt",
    {
        "no storages listed: memory as weights": legacy(LEGACY, keys=b"\x80\x02].", storages=b""),
        "a key more": legacy(LEGACY, keys=b"\x80\x02](" + text("0") + text("1") + b"e."),
        "a key twice": legacy(LEGACY, keys=b"\x80\x02](" + text("0") * 2 + b"e."),
        "another key": legacy(LEGACY, keys=b"\x80\x02](" + text("9") + b"e."),
        "keys that are no list": legacy(LEGACY, keys=b"\x80\x02}."),
        "keys that are numbers": legacy(LEGACY, keys=b"\x80\x02](K\x00e."),
        "a storage cut": legacy(LEGACY, storages=struct.pack("<Q", 4) + VALUES[:-1]),
        "a storage missing": legacy(LEGACY, storages=b""),
        "a storage of another count": legacy(LEGACY, storages=struct.pack("<Q", 5) + VALUES),
        "a storage of 2^63": legacy(LEGACY, storages=struct.pack("<Q", 1 << 63) + VALUES),
        "a storage of -1": legacy(LEGACY, storages=struct.pack("<q", -1) + VALUES),
        "bytes behind": legacy(LEGACY, storages=struct.pack("<Q", 4) + VALUES + b"x"),
        "another protocol": legacy(LEGACY, protocol=b"\x80\x02K\x05."),
        "a magic that is a bomb": legacy(LEGACY, magic=MAGIC[:-1] + b"q\x01" + b"h\x01\x86" * 50 + b"."),
        "big endian": legacy(LEGACY, system=b"\x80\x02}" + text("little_endian") + b"\x89s."),
        "magic alone": MAGIC,
        "no pickle": legacy(b"", b"", b""),
        "calls os.system": legacy(b"\x80\x02" + call("os", "system", CANARY) + b"."),
        "os.system among the keys": legacy(LEGACY, keys=b"\x80\x02](" + call("os", "system", CANARY) + b"e."),
        "os.system in the system's dict": legacy(LEGACY, system=b"\x80\x02" + call("os", "system", CANARY) + b"."),
        "a view past the storage": legacy(
            legacy_state(
                tensor(
                    of=b"("
                    + text("storage")
                    + name("torch", "FloatStorage")
                    + text("0")
                    + text("cpu")
                    + b"K\x04("
                    + text("v")
                    + b"K\x02K\x04ttQ"
                )
            )
        ),
        "a view that is none": legacy(
            legacy_state(
                tensor(
                    of=b"("
                    + text("storage")
                    + name("torch", "FloatStorage")
                    + text("0")
                    + text("cpu")
                    + b"K\x04"
                    + text("v")
                    + b"tQ"
                )
            )
        ),
        "a tar of 2016": b"\0" * 257 + b"ustar" + b"\0" * 300,
        "a pickle of protocol 4": b"\x80\x04}.",
        "a whole-memory read": legacy(
            legacy_state(call("torch", "FloatTensor", number(4000))), keys=b"\x80\x02].", storages=b""
        ),
    },
)
_file("legacy", ".pt", {"as torch.save wrote it": legacy(LEGACY)}, tensors="w")

# --- records -------------------------------------------------------------------------------------


def recorded(record: object, *entries: str, data: bytes = DATA) -> bytes:
    words = record if isinstance(record, str) else json.dumps(record)
    return safetensors(
        "{" + ",".join([f'"__metadata__":{{"paramcli":{json.dumps(words)}}}', *(entries or (entry(),))]) + "}", data
    )


def claim(tensor_name: str = "w", **fields: object) -> dict:
    return {
        "schema": 1,
        "version": "0.1.0",
        "tensors": {tensor_name: {"state": "baked", "chain": "mask", "view": None, "constraint": None, **fields}},
    }


_file(
    "record",
    ".safetensors",
    {
        "no JSON": recorded("{"),
        "a list": recorded([]),
        "NaN": recorded('{"schema":NaN,"version":"1","tensors":{}}'),
        "deep": recorded("[" * 100_000),
        "schema 2": recorded({**claim(), "schema": 2}),
        "schema 1.0": recorded({**claim(), "schema": 1.0}),
        "an unknown key": recorded({**claim(), "import": "os"}),
        "no version": recorded({"schema": 1, "tensors": {}}),
        "a key twice": recorded('{"schema":1,"schema":1,"version":"1","tensors":{}}'),
        "a tensor twice": recorded(json.dumps(claim())[:-2] + "," + json.dumps(claim()["tensors"])[1:] + "}"),
        "an unknown chain": recorded(claim(chain="os.system")),
        "a chain that is a path": recorded(claim(chain="../../x.py:f")),
        "a plugin as a chain": recorded(claim(chain="evil:plugin=x.py")),
        "a chain of 20,000 items": recorded(claim(chain="skew," * 20_000 + "skew")),
        "an unknown view": recorded(claim(view="__import__")),
        "a view of 5000 digits": recorded(claim(view="blocks=0000000001" + "9" * 5000)),
        "an unknown constraint": recorded(claim(constraint="eval")),
        "an unknown state": recorded(claim(state="half")),
        "a chain that is a list": recorded(claim(chain=["mask"])),
        "a chain of null": recorded(claim(chain=None)),
        "a field more": recorded(claim(code="x")),
        "a shape of texts": recorded(claim(shape=["4"])),
        "a shape of 2^70": recorded(claim(shape=[1 << 70])),
        "a tensor that is not there": recorded(claim("other")),
        "parametrized, and it is plain": recorded(claim(state="parametrized")),
        "an escape sequence in a chain": recorded(claim(chain="\x1b[2Jskew")),
        "ill typed": recorded(claim(chain="cayley")),
    },
)
_file(
    "record",
    ".safetensors",
    {
        "64 MB of lists": lambda: recorded('{"schema":1,"version":"1","tensors":[' + "[]," * 15_000_000 + "[]]}"),
        "millions of entries": lambda: recorded(
            '{"schema":1,"version":"1","tensors":{' + ",".join(f'"{n}":{{}}' for n in range(2_000_000)) + "}}"
        ),
        "millions of other keys": lambda: recorded("{" + ",".join(f'"{n}":1' for n in range(3_000_000)) + "}"),
        "a text with lists for chains": lambda: recorded(
            '{"schema":1,"version":"1","tensors":{'
            + ",".join(f'"{n}":{{"chain":[{"[]," * 600}[]]}}' for n in range(20_000))
            + "}}"
        ),
        "half a million sound entries": lambda: recorded(
            json.dumps(claim())[:-2]
            + "".join(f', "{n}": {json.dumps(claim()["tensors"]["w"])}' for n in range(490_000))
            + "}}"
        ),
    },
    heavy=True,
)
_file(
    "record",
    ".safetensors",
    {
        "sound": recorded(claim()),
        "someone else's key": recorded("null").replace(b'"paramcli":"null"', b'"other123":"null"'),
    },
    tensors="w",
)

# --- indexes and folders -------------------------------------------------------------------------


def _folder(
    case: str,
    index: str | bytes | None,
    shards: dict[str, bytes] | None = None,
    more: Callable[[Path], None] | None = None,
    tensors: str | None = None,
    heavy: bool = False,
) -> None:
    def make(folder: Path) -> Path:
        model = folder / "model"
        model.mkdir()
        for shard, content in ({"a.safetensors": safetensors(W, DATA)} if shards is None else shards).items():
            (model / shard).write_bytes(content)
        if index is not None:
            made = index() if callable(index) else index
            (model / "model.safetensors.index.json").write_bytes(
                made if isinstance(made, bytes) else made.encode("utf-8", "surrogatepass")
            )
        if more:
            more(model)
        return model

    CASES.append(Case("index", case, make, None if tensors is None else frozenset(tensors.split()), heavy))


def mapped(shard: object = "a.safetensors", tensor_name: str = "w", **more: object) -> str:
    return json.dumps({"weight_map": {tensor_name: shard}, **more})


def elsewhere(model: Path) -> None:
    (model.parent / "secret.safetensors").write_bytes(safetensors(W, DATA))


for shard in (
    "../secret.safetensors",
    "x/../../secret.safetensors",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\0b",
    "..\\secret.safetensors",
    "n" * 300,
):
    _folder(f"a shard called {shard[:30]!r}", mapped(shard), more=elsewhere)
for case, index in {
    "an empty index": "",
    "a list": "[]",
    "no map": "{}",
    "an empty map": '{"weight_map":{}}',
    "a map of numbers": mapped(1),
    "a map of lists": mapped(["a.safetensors"]),
    "a map that is a list": '{"weight_map":[]}',
    "a tensor twice": '{"weight_map":{"w":"a.safetensors","w":"a.safetensors"}}',
    "the map twice": '{"weight_map":{"w":"a.safetensors"},"weight_map":{"w":"a.safetensors"}}',
    "a missing shard": mapped("b.safetensors"),
    "a tensor that is not there": json.dumps({"weight_map": {"w": "a.safetensors", "x": "a.safetensors"}}),
    "another name": mapped(tensor_name="x"),
    "latin-1": b'{"weight_map":{"w\xe9":"a.safetensors"}}',
    "a surrogate": '{"weight_map":{"\\ud800":"a.safetensors"}}',
    "nested 100,000 deep": '{"a":' * 100_000,
    "a large number": '{"weight_map":{"w":"a.safetensors"},"metadata":{"total_size":' + "9" * 5000 + "}}",
    "NaN as the map": '{"weight_map":NaN}',
}.items():
    _folder(case, index)
_folder(
    "a tensor in two shards",
    json.dumps({"weight_map": {"w": "a.safetensors"}}),
    {"a.safetensors": safetensors(W, DATA), "b.safetensors": safetensors(W, DATA)},
    tensors="w",
)
_folder(
    "swapped shards",
    json.dumps({"weight_map": {"w": "b.safetensors", "v": "a.safetensors"}}),
    {"a.safetensors": safetensors(W, DATA), "b.safetensors": safetensors("{" + entry("v") + "}", DATA)},
)
_folder(
    "one name in both shards",
    json.dumps({"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}),
    {"a.safetensors": safetensors(W, DATA), "b.safetensors": safetensors("{" + entry("w") + "}", DATA)},
)
_folder("a broken shard", mapped(), {"a.safetensors": safetensors(W, DATA[:-1])})
_folder("a shard that is an LFS pointer", mapped(), {"a.safetensors": b"version https://git-lfs.github.com/spec/v1\n"})
_folder("a shard that is a FIFO", mapped(), {}, lambda model: os.mkfifo(model / "a.safetensors"))
_folder("a shard that is a folder", mapped(), {}, lambda model: (model / "a.safetensors").mkdir())
_folder("a shard that loops", mapped(), {}, lambda model: (model / "a.safetensors").symlink_to("a.safetensors"))
_folder("a shard that is a device", mapped(), {}, lambda model: (model / "a.safetensors").symlink_to("/dev/zero"))
_folder(
    "an index that is a FIFO", None, None, lambda model: os.mkfifo(model / "model.safetensors.index.json"), tensors="w"
)
_folder(
    "an index that is a device",
    None,
    {},
    lambda model: (model / "model.safetensors.index.json").symlink_to("/dev/zero"),
)
_folder("two indexes", mapped(), None, lambda model: (model / "other.safetensors.index.json").write_text(mapped()))
_folder("an empty folder", None, {})
_folder("a DCP folder", None, {".metadata": b"x", "__0_0.distcp": b"x"})
_folder("a wrong total", mapped(metadata={"total_size": 1}), tensors="w")
_folder("other tools' keys", mapped(metadata={"x": [1, {"y": None}]}, also=3.5), tensors="w")
SHARD = safetensors(W, DATA)
_folder("a shard alone", None, {"m-00001-of-00002.safetensors": SHARD})
_folder("a shard of 99,999,999", None, {"m-00000001-of-99999999.safetensors": SHARD})
TWO = {f"m-000{n}-of-0002.safetensors": SHARD for n in (1, 2)}
_folder("a shard the index leaves out", mapped("m-0001-of-0002.safetensors"), TWO)
_folder("one name in both shards of a set", None, TWO)
_folder("a set of one", None, {"m-00001-of-00001.safetensors": SHARD}, tensors="w")
_folder(
    "a set that counts from 0",
    None,
    {"m-0000-of-0002.safetensors": SHARD, "m-0001-of-0002.safetensors": safetensors("{" + entry("v") + "}", DATA)},
    tensors="w v",
)
_folder(
    "lists of lists in other keys",
    lambda: '{"weight_map":{"w":"a.safetensors"},' + ",".join(f'"{n}":[{"[]," * 21_000}[]]' for n in range(200)) + "}",
    heavy=True,
)
_folder(
    "millions of other keys",
    lambda: '{"weight_map":{"w":"a.safetensors"},"metadata":{' + ",".join(f'"{n}":1' for n in range(3_000_000)) + "}}",
    heavy=True,
)

# --- what is no regular file, or no checkpoint ---------------------------------------------------


def _place(case: str, make: Callable[[Path], Path]) -> None:
    CASES.append(Case("path", case, make))


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "made.pt")
    return folder / "made.pt"


def loop(folder: Path) -> Path:
    (folder / "made.pt").symlink_to("made.pt")
    return folder / "made.pt"


def link_to(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "made.safetensors").symlink_to(target)
        return folder / "made.safetensors"

    return make


_place("a FIFO", fifo)
_place("a loop of links", loop)
_place("a link to a FIFO", lambda folder: (fifo(folder), link_to("made.pt")(folder))[1])
_place("a link to /dev/zero", link_to("/dev/zero"))
_place("a link to /dev/null", link_to("/dev/null"))
_place("a dangling link", link_to("nowhere"))
_place("a name of 300 characters", lambda folder: folder / ("n" * 300))
_place("a name with a line break", lambda folder: folder / "a\nerror: forged\x1b[31m.pt")
_place("a file as a folder", lambda folder: folder / "x.pt" / "y.pt")
_file(
    "path",
    ".safetensors",
    {
        "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "a web page": b"<!DOCTYPE html><html>" + b" " * 100,
        "JSON": b'{"a": 1, "b": 2, "c": 3}',
        "plain text": b"hello, this is a text and no checkpoint",
        "GGUF": b"GGUF\3\0\0\0" + bytes(64),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(64),
        "numpy": b"\x93NUMPY\x01\0v\0{'descr'",
        "gzip": b"\x1f\x8b\x08" + bytes(64),
        "ONNX": b"\x08\x07\x12\x07pytorch" + bytes(64),
        "zeros": bytes(4096),
        "random": bytes((n * 131 + 7) % 256 for n in range(4096)),
    },
)


def really_saved(**options) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0)}, buffer, **options)
    return buffer.getvalue()


_file("zip", ".pt", {"torch's own": lambda: really_saved()}, tensors="w")
_file("legacy", ".pt", {"torch's own": lambda: really_saved(_use_new_zipfile_serialization=False)}, tensors="w")
KINDS = sorted({case.kind for case in CASES})
