"""Torch files by hand against open_checkpoint: hostile ones end in InputRefused, quickly; odd but valid ones open.

Each file is opened in its own process with limited memory, so a crash or a hang is a failed test.
"""

from __future__ import annotations

import enum
import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.errors import InputRefused

from ..hostile.limits import MOST_STEPS
from ..pace import HANG_SECONDS

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.errors import ParamcliError
from tests.pace import steps
def read():
    global told
    try:
        source = open_checkpoint(sys.argv[1])
        told = f"opened {source.root} {len(source.tensors)}"
    except ParamcliError as error:
        told = f"refused {error.message}"
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
took = steps(read, float(sys.argv[2]))
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) >> 10
print(told)
print(took, grown)
"""


def outcome(path) -> tuple[str, float, float]:
    """(first line, steps of a plain loop, MiB grown) of opening the file in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(MOST_STEPS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-300:]}"
    first, last = done.stdout.splitlines()
    return first, *map(float, last.split())


def name(module: str, word: str) -> bytes:
    return f"c{module}\n{word}\n".encode()


def text(words: str) -> bytes:
    return b"X" + struct.pack("<I", len(words.encode())) + words.encode()


REDUCE = name("torch._utils", "_rebuild_tensor_v2")


def storage(device: str = "cpu", view: bytes = b"") -> bytes:
    return b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text(device) + b"K\x04" + view + b"tQ"


STORAGE = storage()


def tensor(
    offset: int = 0, shape: bytes = b"K\x04\x85", stride: bytes = b"K\x01\x85", storage: bytes = STORAGE
) -> bytes:
    return REDUCE + b"(" + storage + b"K" + bytes([offset]) + shape + stride + b"\x89NtR"


def state_dict(extra: bytes = b"") -> bytes:
    """{'w': tensor, 'x': <extra>}"""
    return b"\x80\x02}(" + text("w") + tensor() + (text("x") + extra if extra else b"") + b"u."


def module(parameters: bytes = b"}", modules: bytes = b"}") -> bytes:
    tables = text("_parameters") + parameters + text("_buffers") + b"}" + text("_modules") + modules
    return name("m", "Net") + b")\x81}(" + tables + b"ub"


def nested_modules(inner: bytes) -> bytes:
    for slot in range(10, 41):
        put, get = b"q" + bytes([slot]), b"h" + bytes([slot])
        inner = module(modules=b"}(" + text("a") + inner + put + text("b") + get + b"u")
    return inner


@pytest.fixture
def checkpoint(tmp_path):
    def make(pickle: bytes):
        path = tmp_path / "made.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle)
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4))
        return path

    return make


SHARED = b"K\x01" + b"q\x01h\x01\x86" * 60
DEEP = b"K\x01" + b"\x85" * 200_000
BIG = b"}q\x05(" + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(8000)) + b"u0"
V3 = name("torch._utils", "_rebuild_tensor_v3") + b"(" + STORAGE + b"K\x00))\x89N"
FROM_TYPE = name("torch._tensor", "_rebuild_from_type_v2")
ORDERED, DEFAULT = name("collections", "OrderedDict"), name("collections", "defaultdict")
HOSTILE = {
    "a dict key of 200,000 nested tuples": state_dict(b"}" + DEEP + b"Ns"),
    "a dict key with 2^60 leaves": state_dict(b"}" + SHARED + b"Ns"),
    "a dtype with 2^60 leaves": state_dict(V3 + SHARED + b"tR"),
    "a dtype of 200,000 nested tuples": state_dict(V3 + DEEP + b"tR"),
    "a storage type with 2^60 leaves": state_dict(
        b"(" + text("storage") + SHARED + text("0") + text("cpu") + b"K\x04tQ"
    ),
    "OrderedDict(big) 8000 times": state_dict(b"(" + BIG + ORDERED + b"q\x060" + b"h\x06h\x05\x85R" * 8000 + b"l"),
    "defaultdict(None, big) 8000 times": state_dict(
        b"(" + BIG + DEFAULT + b"q\x060" + b"h\x06Nh\x05\x86R" * 8000 + b"l"
    ),
    "a rebuild inside a rebuild, 5000 deep": state_dict(
        FROM_TYPE + b"q\x070h\x07" + b"(h\x07h\x07" * 5000 + b")" + b"Nt" * 5000 + b"R"
    ),
    "modules shared 2^31 times": b"\x80\x02" + nested_modules(module(b"}" + text("w") + tensor() + b"s")) + b".",
    "empty modules shared 2^31 times": b"\x80\x02" + nested_modules(module()) + b".",
    "9.9 million empty dicts": b"\x80\x02(" + b"}" * 9_900_000 + b"l.",
    "a key set twice": b"\x80\x02}(" + text("w") + tensor() + text("w") + tensor() + b"u.",
    "an item for a set of no list": state_dict(name("builtins", "set") + b")\x85R(K\x01\x90"),
    "bytes after the pickle": state_dict() + b"more",
    "a tensor past its storage": b"\x80\x02}" + text("w") + tensor(stride=b"K\x02\x85") + b"s.",
    "a dict in itself": state_dict(b"}q\x01" + text("me") + b"h\x01s"),
    "lists 100,000 deep": state_dict(b"]" * 100_000 + b"a" * 99_999),
    "a dict with 2^130 leaves": state_dict(b"}" + (b"q\x020}(" + text("a") + b"h\x02" + text("b") + b"h\x02u") * 130),
    "190,000 calls with one tuple of a million": state_dict(
        b"(" + b"N" * 1_000_000 + b"tq\x070" + name("m", "C") + b"q\x080" + b"h\x08h\x07R0" * 190_000 + b"N"
    ),
    "40,000 makings with one tuple of 100,000": state_dict(
        b"(" + b"N" * 100_000 + b"tq\x070" + name("m", "C") + b"q\x080" + b"h\x08h\x07}\x920" * 40_000 + b"N"
    ),
    "60,000 calls of what getattr names, a long name": state_dict(
        name("builtins", "getattr")
        + b"q\x060"
        + name("m", "C")
        + text("a" * 900)
        + b"\x86q\x080"
        + b"h\x06h\x08R0" * 60_000
        + b"N"
    ),
    "2000 expanded tensors of 60 MB": b"\x80\x02}("
    + b"".join(
        text(f"w{n}") + tensor(shape=b"J" + struct.pack("<i", 15_000_000) + b"\x85", stride=b"K\x00\x85")
        for n in range(2000)
    )
    + b"u.",
}


STATES = {
    "the place of another tensor": b"(" + STORAGE + b"K\x02K\x02\x85K\x01\x85t",
    "a place in a list": b"](" + STORAGE + b"K\x02K\x02\x85K\x01\x85e",
    "a place without strides": STORAGE + b"K\x01K\x03\x85\x87",
    "keys that are a place": b"}(" + STORAGE + b"NK\x02Nu",
    "another tensor": b"(" + tensor(1, b"K\x03\x85") + b"\x89N\x88\x89t",
    "nothing": b")",
}


@pytest.mark.parametrize("what", STATES)
def test_a_tensor_made_twice_is_refused(checkpoint, what):
    """torch would put other values in its place, or none."""
    with pytest.raises(InputRefused, match="other values after it was made"):
        open_checkpoint(checkpoint(b"\x80\x02}" + text("w") + tensor() + STATES[what] + b"bs."))


def test_the_place_that_torch_gives_a_tensor_is_another(checkpoint):
    """What such a state means: the values would not be those that the tensor was made of."""
    path = checkpoint(b"\x80\x02}" + text("w") + tensor() + STATES["the place of another tensor"] + b"bs.")
    assert torch.load(path, weights_only=True)["w"].tolist() == [3, 4]


def test_flags_of_a_parameter_of_early_torch_are_no_values(checkpoint):
    """(requires_grad, volatile, hooks), as torch before 0.4 wrote each."""
    made = name("torch.nn.parameter", "Parameter") + tensor() + b"\x85R\x88\x89" + ORDERED + b")R\x87b"
    path = checkpoint(b"\x80\x02}" + text("w") + made + b"s.")
    with open_checkpoint(path) as source:
        assert source.read("w").equal(torch.load(path, weights_only=False)["w"].detach())


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_pickles_are_refused_in_time(checkpoint, what):
    """A hostile pickle is refused in the time of a loop over the longest pickle there may be, and a
    constant of memory.
    """
    first, took, grown = outcome(checkpoint(HOSTILE[what]))
    assert first.startswith("refused"), first
    assert took < MOST_STEPS and grown < 1000


NONES = b"}q\x05(" + b"".join(b"M" + struct.pack("<H", n) + b"N" for n in range(8000)) + b"u0"
WITH_STATE = name("torch._utils", "_rebuild_parameter_with_state")
SHARING = {
    "a million storages of one identity": b"(" + STORAGE[:-1] + b"q\x010" + b"h\x01Q" * 990_000 + b"l",
    "30,000 parameters that share 8000 attributes": b"("
    + NONES[:-1]
    + b"\x85q\x060"
    + WITH_STATE
    + b"q\x070"
    + tensor()
    + b"q\x080"
    + b"h\x07(h\x08\x88Nh\x06tR0" * 30_000
    + b"l",
    "30,000 objects that share 8000 attributes": b"("
    + NONES
    + name("m", "C")
    + b"q\x060"
    + b"h\x06)\x81h\x05b" * 30_000
    + b"l",
    "30,000 keys of one dict of 8000": b"("
    + NONES
    + b"}("
    + b"".join(b"M" + struct.pack("<H", n) + b"h\x05" for n in range(30_000))
    + b"ul",
}


MANY_KEYS = b"".join(text(f"{n:05d}") + b"h\x05" for n in range(30_000))
SHARING_BESIDE = {
    "beside the weights": b"\x80\x02}(" + text("w") + tensor() + text("x") + NONES[:-1] + MANY_KEYS + b"u.",
    "beside the dict of weights": b"\x80\x02}("
    + text("model")
    + b"}"
    + text("w.w")
    + tensor()
    + b"s"
    + text("x")
    + NONES[:-1]
    + MANY_KEYS
    + b"u.",
}


@pytest.mark.parametrize("what", SHARING_BESIDE)
def test_a_shared_dict_is_described_once(checkpoint, what):
    """A dict of thousands under thousands of keys is looked at once, wherever it is listed."""
    first, took, grown = outcome(checkpoint(SHARING_BESIDE[what]))
    assert first.startswith("opened"), first
    assert took < MOST_STEPS / 5 and grown < 300


@pytest.mark.parametrize("what", SHARING)
def test_what_is_shared_costs_what_it_is(checkpoint, what):
    """Values that a small pickle mentions over and over cost the time of one mention each, and are read."""
    first, took, grown = outcome(checkpoint(state_dict(SHARING[what])))
    assert first == "opened  1", first
    assert took < MOST_STEPS / 5 and grown < 300


def test_a_view_that_begins_nowhere_is_no_torch_output(checkpoint, tmp_path, paramcli):
    """What is no number as a view's begin is refused, also of a tensor without data that is only carried over."""
    broken = tensor(storage=storage("meta", b"(" + text("0") + text("begin") + b"K\x04t"))
    optimizer = b"}(" + text("state") + broken + text("param_groups") + b"]u"
    path = checkpoint(state_dict()[:-2] + text("optimizer") + optimizer + b"u.")
    said = paramcli("convert", path, "-o", tmp_path / "out.pt", code=3).err
    assert "a tensor outside the state dict whose storage the file does not have" in said


@pytest.mark.parametrize(
    "module_, word",
    [
        ("io", "open"),
        ("_io", "FileIO"),
        ("codecs", "open"),
        ("torch.storage", "_load_from_bytes"),
        ("torch.ops", "load_library"),
        ("types", "CodeType"),
        ("pydoc", "pipepager"),
        ("imp", "load_source"),
        ("functools", "reduce"),
        ("os", "system"),
    ],
)
def test_dangerous_names_are_refused(checkpoint, tmp_path, module_, word):
    """A name that reaches the system, code or files refuses the file, and nothing runs."""
    canary = tmp_path / "canary"
    with pytest.raises(InputRefused, match=word):
        open_checkpoint(checkpoint(state_dict(name(module_, word) + text(f"touch {canary}") + b"\x85R")))
    assert not canary.exists()


def call(module_: str, word: str, *arguments: bytes) -> bytes:
    return name(module_, word) + b"(" + b"".join(arguments) + b"tR"


CLASS, SYSTEM = name("m", "Buffer"), name("os", "system")
HARMLESS = {
    "bytes in memory": call("_io", "BytesIO", call("_codecs", "encode", text("x"), text("latin1"))),
    "the type of None": call("__builtin__", "type", b"N"),
    "a method": call("__builtin__", "getattr", CLASS, text("min")),
    "a member of an enum, called": call("builtins", "getattr", CLASS, text("of")) + text("x") + b"\x85R",
    "a type by its name": call("dill._dill", "_load_type", text("CodeType")),
    "a class of torch.compile, called": call("torch._dynamo.eval_frame", "OptimizeContext", b"N"),
    "a class of torch.compile, made": name("torch._dynamo.hooks", "Hooks") + b")\x81",
    "an address": name("urllib.parse", "ParseResult") + b"(" + text("https") + b"N" * 5 + b"t\x81",
    "os.system, never called": SYSTEM,
    "os.system in a list": b"]" + SYSTEM + b"a",
    "eval as a dict's value": b"}" + text("f") + name("builtins", "eval") + b"s",
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_does_nothing_is_no_alarm(checkpoint, what):
    """A name that is not called, and a call that only names a class, a method or bytes, is inert."""
    with open_checkpoint(checkpoint(state_dict(HARMLESS[what]))) as source:
        assert list(source.tensors) == ["w"] and [extra.name for extra in source.extras] == ["x"]


MODULE = call("builtins", "getattr", name("torch", "serialization"), text("os"))
HARMFUL = {
    "given to partial": (call("functools", "partial", SYSTEM, text("x")), "gives os.system to functools.partial"),
    "given to a dict as its factory": (call("collections", "defaultdict", SYSTEM), "gives os.system"),
    "given to another call of getattr": (
        call("functools", "partial", call("builtins", "getattr", MODULE, text("system"))),
        "gives torch.serialization.os.system",
    ),
    "reached by getattr": (
        call("builtins", "getattr", MODULE, text("system")) + text("x") + b"\x85R",
        "calls torch.serialization.os.system",
    ),
    "getattr of what is hidden": (call("builtins", "getattr", CLASS, text("__globals__")), "calls builtins.getattr"),
    "a class with a body": (call("builtins", "type", text("A"), b")", b"}"), "calls builtins.type"),
    "a function of torch.compile": (
        call("torch._dynamo.utils", "import_submodule", b"N"),
        "calls torch._dynamo.utils.import_submodule",
    ),
    "code of dill": (call("dill._dill", "_create_function", b"N"), "calls dill._dill._create_function"),
    "a request": (call("urllib.request", "urlopen", text("x")), "calls urllib.request.urlopen"),
    "a module of a module of texts": (
        call("urllib.parse", "re", text("x"))[:-2].replace(b"\nre\n", b"\nre.os.system\n") + b"tR",
        "calls urllib.parse.re.os.system",
    ),
    "a file": (call("_io", "FileIO", text("/etc/passwd")), "calls _io.FileIO"),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_what_would_run_code_is_called_by_its_name(checkpoint, what):
    """The message says what the pickle does with which name."""
    pickle, said = HARMFUL[what]
    with pytest.raises(InputRefused, match=said):
        open_checkpoint(checkpoint(state_dict(pickle)))


def test_dotted_names_reach_no_further(checkpoint):
    """Protocol 4 walks attributes, so torch + 'os.system' is os.system."""
    pickle = b"\x80\x04}(" + text("w") + tensor() + text("x") + text("torch") + text("os.system") + b"\x93)Ru."
    with pytest.raises(InputRefused, match=r"os\.system"):
        open_checkpoint(checkpoint(pickle))


@pytest.mark.parametrize("package", ["code.model", "trace.net", "test.utils", "site.models"])
def test_author_packages_named_like_library_modules_are_inert(checkpoint, package):
    """`code.model.Net` is an author's class: the standard library's `code` has no submodules."""
    open_checkpoint(checkpoint(state_dict(name(package, "Net") + b")\x81}b"))).close()


class Color(enum.Enum):
    RED = 1


W = torch.arange(6.0).reshape(2, 3)
UNREADABLE = {
    "sparse": lambda: W.to_sparse(),
    "meta": lambda: torch.empty(3, device="meta"),
    "uninitialized": lambda: torch.nn.UninitializedParameter(),
    "bits8": lambda: torch.zeros(3, dtype=torch.uint8).view(torch.bits8),
    "conjugated": lambda: W.to(torch.complex64).conj(),
    "complex128": lambda: W.to(torch.complex128),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_tensors_without_a_safetensors_form_are_refused_by_name(tmp_path, paramcli, kind):
    """A tensor that cannot be carried is listed, and refused where a result would have it; it is never left out in
    silence.
    """
    torch.save({"w": W, "odd_one": UNREADABLE[kind]()}, tmp_path / "odd.pt")
    with open_checkpoint(tmp_path / "odd.pt") as source:
        assert list(source.tensors) == ["w", "odd_one"]
        with pytest.raises(InputRefused, match="odd_one"):
            source.read("odd_one")
    for out in ("o.safetensors", "o.pt", "o.dcp"):
        assert "odd_one" in paramcli("convert", tmp_path / "odd.pt", "-o", tmp_path / out, code=3).err
        assert not (tmp_path / out).exists()


@pytest.mark.parametrize(
    "saved, root",
    [
        ({"sd": {"w": W}, "x": bytearray(b"abc")}, "sd"),
        ({"sd": {"w": W}, "x": Color.RED, "y": 1j, "z": {1, 2}}, "sd"),
        ({"model": {"w": W}, "best": {"acc": torch.tensor(0.9)}}, "model"),
        ({"amp_net": {"w": W}, "epoch": 3}, "amp_net"),
        ({"w": W, "m._extra_state": {"x": torch.ones(3)}}, ""),
        ({"model": {"w": W}, "step": torch.tensor(5)}, "model"),
    ],
)
def test_the_state_dict_is_found(tmp_path, saved, root):
    """The weights are the root, whatever small tensors lie beside them."""
    torch.save(saved, tmp_path / "nested.pt")
    with open_checkpoint(tmp_path / "nested.pt") as source:
        assert source.root == root
        assert torch.equal(source.read("w"), W)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_opens(tmp_path, legacy, protocol):
    """torch.save takes pickle_protocol 2 to 5, in both containers."""
    torch.save({"w": W}, tmp_path / "p.pt", _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    with open_checkpoint(tmp_path / "p.pt") as source:
        assert torch.equal(source.read("w"), W)


@pytest.mark.parametrize("legacy", [False, True])
def test_strided_bytes_are_the_tensor(tmp_path, legacy):
    """read_bytes of a non-contiguous tensor gives its row-major values, not what lies in memory."""
    values = {"t": W.t(), "c": torch.randn(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)}
    torch.save(values, tmp_path / "s.pt", _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(tmp_path / "s.pt") as source:
        for key, value in values.items():
            assert bytes(source.read_bytes(key)) == value.contiguous().numpy().tobytes()


def test_a_flipped_bit_in_a_weight_is_noticed(tmp_path):
    """The zip's checksum is compared before a tensor is handed out."""
    buffer = io.BytesIO()
    torch.save({"w": W}, buffer)
    data = bytearray(buffer.getvalue())
    data[data.find(W.numpy().tobytes())] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    with open_checkpoint(tmp_path / "flipped.pt") as source, pytest.raises(InputRefused, match="checksum"):
        source.read("w")


def test_packed_4_bit_floats_count_values_as_the_format_does(tmp_path):
    """torch counts pairs, safetensors values: the same shape and bytes as the library's own writer gives."""
    from safetensors.torch import save

    packed = torch.arange(8, dtype=torch.uint8).reshape(2, 4).view(torch.float4_e2m1fn_x2)
    torch.save({"w.w": packed}, tmp_path / "f4.pt")
    reference = save({"w.w": packed})
    with open_checkpoint(tmp_path / "f4.pt") as source:
        info = source.tensors["w.w"]
        assert f'"dtype":"{info.dtype}","shape":[{info.shape[0]},{info.shape[1]}]'.encode() in reference
        assert source.read_bytes("w.w") == reference[-8:]
