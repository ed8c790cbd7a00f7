"""Families of files that stock torch writes: each converts to what torch itself reads, or is refused by name."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import pathlib

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

torch.manual_seed(0)
LINEAR = nn.Linear(4, 4)
STATE = {name: tensor.detach() for name, tensor in LINEAR.state_dict().items()}


def hook(*arguments):
    pass


class Net(nn.Module):
    """Containers, hooks, a buffer that is not saved, a parameter that is None."""

    def __init__(self):
        super().__init__()
        self.stack = nn.Sequential(nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.ModuleList([nn.Linear(2, 2, bias=False)]))
        self.several = nn.ParameterList([torch.ones(2, 2), torch.zeros(3)])
        self.named = nn.ParameterDict({"k": torch.ones(1, 2)})
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.register_buffer("kept", torch.arange(3))
        self.register_parameter("absent", None)
        self.register_forward_hook(hook)
        self.stack[0].register_forward_pre_hook(hook)


def with_hook() -> torch.Tensor:
    tensor = torch.randn(3, 3, requires_grad=True)
    tensor.register_hook(hook)
    return tensor


def with_state() -> nn.Parameter:
    parameter = nn.Parameter(torch.randn(2, 2))
    parameter.tag = "decay"
    return parameter


NET = Net()
OLD_NORM = nn.Sequential(nn.Linear(3, 3))
SIDE = {
    "args": argparse.Namespace(lr=1),
    "scalar": numpy.float64(0.5),
    "array": numpy.arange(4),
    "rng": numpy.random.RandomState(0).get_state(),
    "path": pathlib.PurePosixPath("/x"),
    "when": datetime.datetime(2024, 1, 1),
    "amount": decimal.Decimal("1.5"),
    "set": {1, 2},
    "frozen": frozenset([1]),
    "complex": 1 + 2j,
    "slice": slice(1, 2),
    "device": torch.device("cpu"),
    "dtype": torch.float16,
    "size": torch.Size([1]),
    "layout": torch.strided,
    "lists": collections.defaultdict(list, a=[1]),
    "counts": collections.Counter("aab"),
    "queue": collections.deque([1]),
    "big": 2**200,
    "negative": -(2**40),
    "function": hook,
    "range": range(3),
    "bytes": b"\xff\0",
    "bytearray": bytearray(b"ab"),
    "generator": torch.Generator().get_state(),
    "ellipsis": ...,
}
# label -> (what torch.save gets, how, the state dict in it)
READ = {
    "DataParallel": ({f"module.{k}": t for k, t in STATE.items()}, {}, None),
    "compiled": ({f"_orig_mod.{k}": t for k, t in STATE.items()}, {}, None),
    "flat parameters": ({"_fsdp_wrapped_module._flat_param": torch.randn(20)}, {}, None),
    "OrderedDict": (collections.OrderedDict(STATE), {}, None),
    **{f"protocol {p}": (STATE, {"pickle_protocol": p}, None) for p in (2, 3, 4, 5)},
    **{
        f"legacy, protocol {p}": (STATE, {"pickle_protocol": p, "_use_new_zipfile_serialization": False}, None)
        for p in (2, 4, 5)
    },
    "bfloat16": ({"w": torch.randn(3, 3).bfloat16()}, {}, None),
    "bfloat16, legacy": ({"w": torch.randn(3, 3).bfloat16()}, {"_use_new_zipfile_serialization": False}, None),
    "expanded": ({"w": torch.randn(1, 3).expand(4, 3)}, {}, None),
    "slices": (
        {"a": torch.randn(10, 4)[2:5], "b": torch.randn(6)[::2], "c": torch.randn(2, 3, 4).permute(2, 0, 1)},
        {},
        None,
    ),
    "slices, legacy": (
        {"a": torch.randn(10, 4)[2:5], "b": torch.randn(6)[1:][::2]},
        {"_use_new_zipfile_serialization": False},
        None,
    ),
    "0-d and empty": (
        {"s": torch.tensor(3.0), "e": torch.empty(0, 3), "f": torch.empty(3, 0), "i": torch.tensor(7)},
        {},
        None,
    ),
    "unsigned": (
        {
            "a": torch.ones(2, dtype=torch.uint16),
            "b": torch.ones(2, dtype=torch.uint32),
            "c": torch.ones(2, dtype=torch.uint64),
        },
        {},
        None,
    ),
    "parameters": (dict(LINEAR.named_parameters()), {}, None),
    "buffer": ({"w": nn.Buffer(torch.ones(2, 2))}, {}, None),
    "tensor with a hook": ({"w": with_hook()}, {}, None),
    "parameter with attributes": ({"w": with_state()}, {}, None),
    "odd names": ({"a b/c:d*[0]": torch.ones(2), "ü☃": torch.ones(1), "x" * 3000: torch.ones(1)}, {}, None),
    "module": (NET, {}, NET.state_dict()),
    "module in a dict": ({"model": NET, "epoch": 1}, {}, NET.state_dict()),
    "module, legacy": (NET, {"_use_new_zipfile_serialization": False}, NET.state_dict()),
    "DataParallel module": (nn.DataParallel(nn.Linear(2, 2)), {}, "own"),
    "LSTM module": (nn.LSTM(3, 3), {}, "own"),
    "everything beside": ({"state_dict": STATE, **SIDE}, {}, STATE),
    "everything beside, legacy": ({"state_dict": STATE, **SIDE}, {"_use_new_zipfile_serialization": False}, STATE),
}


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", READ)
def test_what_torch_reads_is_what_comes_out(family, tmp_path, paramcli):
    """To safetensors and to a torch file, tensor by tensor; what lies beside unpickles to equal values."""
    value, how, wanted = READ[family]
    wanted = value.state_dict() if wanted == "own" else value if wanted is None else wanted
    torch.save(value, tmp_path / "in.pt", **how)
    paramcli("inspect", tmp_path / "in.pt")
    result = paramcli("convert", tmp_path / "in.pt", "-o", tmp_path / "o.safetensors")
    got = load_file(tmp_path / "o.safetensors")
    assert set(got) == set(wanted) and all(same(got[name], tensor) for name, tensor in wanted.items())
    paramcli("convert", tmp_path / "in.pt", "-o", tmp_path / "o.pt")
    back = torch.load(tmp_path / "o.pt", weights_only=False)
    state = next((back[key] for key in ("state_dict", "model") if key in back), back)
    assert list(state) == list(wanted) and all(same(state[name], tensor) for name, tensor in wanted.items())
    if "state_dict" in back:
        for key, item in SIDE.items():
            assert key in result.err
            equal = (
                numpy.array_equal
                if key == "array"
                else torch.equal
                if key == "generator"
                else lambda a, b: str(a) == str(b)
            )
            assert equal(back[key], item) and type(back[key]) is type(item), key


def test_a_file_without_checksums_says_so(tmp_path, paramcli):
    """set_crc32_options(False): read, with a word that damage could not be noticed."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "in.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert "no checksums" in paramcli("convert", tmp_path / "in.pt", "-o", tmp_path / "o.safetensors").err
    assert all(same(load_file(tmp_path / "o.safetensors")[name], tensor) for name, tensor in STATE.items())


@pytest.mark.filterwarnings("ignore")
def test_a_pickled_module_with_old_norms_bakes(tmp_path, paramcli):
    """weight_g and weight_v are its parameters, the hook's own copy of the weight is none of its state."""
    layer = nn.utils.weight_norm(nn.Linear(3, 3))
    torch.save(nn.Sequential(layer), tmp_path / "m.pt")
    paramcli("remove", tmp_path / "m.pt", "-o", tmp_path / "b.safetensors")
    nn.utils.remove_weight_norm(layer)
    got = load_file(tmp_path / "b.safetensors")
    assert set(got) == {"0.weight", "0.bias"} and torch.equal(got["0.weight"], layer.weight)


class Wrapped(torch.Tensor):
    """A tensor subclass that only its author's code can read."""


NAMED = {
    "conjugate view": (torch.randn(3, dtype=torch.complex64).conj(), "resolve_conj"),
    "negative view": (torch.randn(3, dtype=torch.complex64).conj().imag, "resolve_neg"),
    "subclass": (torch.randn(3, 3).as_subclass(Wrapped), "plain dense tensor"),
    "complex128": (torch.randn(3, dtype=torch.complex128), "convert it"),
    "sparse": (torch.eye(3).to_sparse(), "plain dense tensor"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NAMED)
def test_tensors_that_cannot_be_carried_are_named(kind, tmp_path, paramcli):
    """Beside good ones and alone: the name, what it is, and what to do where it was made."""
    tensor, step = NAMED[kind]
    for state in ({**STATE, "odd.one": tensor}, {"odd.one": tensor}):
        torch.save(state, tmp_path / "in.pt")
        message = paramcli("convert", tmp_path / "in.pt", "-o", tmp_path / "o.safetensors", code=3).err
        assert "odd.one" in message and step in message


def test_a_prefix_comes_off_for_another_model(tmp_path, paramcli):
    """DataParallel around a compiled module: both prefixes go, in the order given, and the plain model
    loads strictly.
    """
    torch.save({f"module._orig_mod.{k}": t for k, t in STATE.items()}, tmp_path / "in.pt")
    paramcli(
        "convert",
        tmp_path / "in.pt",
        "--strip-prefix",
        "module.",
        "--strip-prefix",
        "_orig_mod",
        "-o",
        tmp_path / "o.pt",
    )
    nn.Linear(4, 4).load_state_dict(torch.load(tmp_path / "o.pt", weights_only=True), strict=True)
