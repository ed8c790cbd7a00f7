"""-o x.pt: what shared memory still does, and everything that is no weight comes along."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import importlib
import json
import pathlib
import platform

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

torch.manual_seed(0)
W, G, V = torch.randn(4, 4), torch.rand(4, 1) + 0.5, torch.randn(4, 4)


def load(path):
    return torch.load(path, weights_only=True)


def one(state: dict, *names: str) -> bool:
    """Do these names lie in the same memory?"""
    return len({(state[name].data_ptr(), state[name].stride()) for name in names}) == 1


TIED_EDITS = {
    "convert": ["convert"],
    "cast": ["convert", "--dtype", "float16"],
    "strip": ["convert", "--strip-prefix", "m"],
    "add": ["add", "-t", "m.*.weight", "--chain", "symmetric"],
    "add to one": ["add", "-t", "m.a.weight", "--chain", "orthogonal", "--tied", "together"],
    "random mask": ["add", "-t", "m.a.weight", "--chain", "prune_random:amount=0.5", "--tied", "together"],
    "assign": ["assign", "-t", "m.b.weight", "--with", "orthogonal", "--tied", "together"],
}


@pytest.mark.parametrize("edit", TIED_EDITS)
def test_ties_of_plain_tensors_survive(edit, tmp_path, paramcli):
    """Two names of one tensor are one tensor in the result, under whatever names the edit gives them."""
    torch.save({"m.a.weight": W, "m.b.weight": W, "m.c": V}, tmp_path / "t.pt")
    command, *rest = TIED_EDITS[edit]
    paramcli(command, tmp_path / "t.pt", *rest, "-o", tmp_path / "o.pt")
    state = load(tmp_path / "o.pt")
    for name in state:
        if "a." in name:
            assert one(state, name, name.replace("a.", "b."))
    assert len(state) > 2 and not any(
        one(state, "m.c" if "m.c" in state else "c", name) for name in state if "a." in name
    )


@pytest.mark.parametrize(
    "command", [["remove"], ["migrate", "--to", "new"], ["remove", "-t", "a.weight", "--tied", "together"]]
)
def test_ties_of_parametrized_tensors_survive(command, tmp_path, paramcli):
    """A weight norm under two names is baked or renamed once; one that shares only v with it is a tensor of its own."""
    other = {"c.weight_g": 2 * G, "c.weight_v": V} if "-t" not in command else {}
    torch.save({"a.weight_g": G, "a.weight_v": V, "b.weight_g": G, "b.weight_v": V, **other}, tmp_path / "t.pt")
    paramcli(command[0], tmp_path / "t.pt", *command[1:], "-o", tmp_path / "o.pt")
    state = load(tmp_path / "o.pt")
    for name in [name for name in state if name.startswith("a.")]:
        assert one(state, name, f"b{name[1:]}")
    if other and command[0] == "remove":
        assert not one(state, "a.weight", "c.weight") and torch.equal(
            state["c.weight"], torch._weight_norm(V, 2 * G, 0)
        )


def test_separate_means_separate(tmp_path, paramcli):
    """--tied separate writes one tensor for each name."""
    torch.save({"a.weight": W, "b.weight": W}, tmp_path / "t.pt")
    paramcli("add", tmp_path / "t.pt", "-t", "*", "--chain", "symmetric", "--tied", "separate", "-o", tmp_path / "o.pt")
    state = load(tmp_path / "o.pt")
    assert not one(state, *state) and torch.equal(*state.values())


@pytest.mark.parametrize("how", [["--bake"], ["--no-bake"]])
def test_a_plain_tensor_tied_to_a_stored_one_is_not_removed_along(how, tmp_path, paramcli):
    """It has nothing to bake, and stays where --tied separate says so."""
    W = torch.arange(1.0, 7.0).reshape(2, 3)
    keys = ("a.weight_g", "a.weight_v") if how == ["--bake"] else ("a.weight_mask", "a.weight_orig")
    torch.save({keys[0]: torch.ones(2, 1) if "_g" in keys[0] else W, keys[1]: W, "b.weight": W}, tmp_path / "t.pt")
    out = tmp_path / "o.safetensors"
    said = paramcli("remove", tmp_path / "t.pt", *how, "--tied", "together", "-o", out, code=3).err
    assert "b.weight is a plain tensor" in said and "--tied separate" in said and not out.exists()
    paramcli("remove", tmp_path / "t.pt", *how, "--tied", "separate", "-o", out)
    assert torch.equal(load_file(out)["b.weight"], W)


def test_tied_tensors_never_take_two_values(tmp_path, paramcli):
    """--from a file whose two tensors differ cannot be assigned to one tensor."""
    torch.save({"a.weight": W, "b.weight": W}, tmp_path / "t.pt")
    torch.save({"a.weight": V, "b.weight": -V}, tmp_path / "v.pt")
    assign = ("assign", tmp_path / "t.pt", "-t", "*", "--from", tmp_path / "v.pt", "-o", tmp_path / "o.pt")
    assert "--tied separate" in paramcli(*assign, code=3).err and not (tmp_path / "o.pt").exists()
    paramcli(*assign, "--tied", "separate")


def test_packed_views_stay_packed_through_a_migration(tmp_path, paramcli):
    """Kernels that are views of one storage are still that when only names change."""
    flat = torch.randn(40)
    views = {"r.weight_hh_l0_g": flat[:8].view(8, 1), "r.weight_hh_l0_v": flat[8:].view(8, 4)}
    torch.save(views, tmp_path / "p.pt")
    paramcli("migrate", tmp_path / "p.pt", "--to", "new", "-o", tmp_path / "o.pt")
    state = load(tmp_path / "o.pt")
    assert {t.untyped_storage().nbytes() for t in state.values()} == {160} and len(
        {t.untyped_storage().data_ptr() for t in state.values()}
    ) == 1
    assert all(torch.equal(a, b) for a, b in zip(state.values(), views.values(), strict=True))


def test_ties_of_torch_shards_survive_a_merge(tmp_path, paramcli):
    """Sharded .bin to one .pt: names of one tensor stay one, and what a shard holds beside its tensors is named."""
    folder = tmp_path / "model"
    folder.mkdir()
    shards = {
        "pytorch_model-00001-of-00002.bin": {"a.weight": W, "b.weight": W, "step": 3},
        "pytorch_model-00002-of-00002.bin": {"c.weight": V},
    }
    for shard, state in shards.items():
        torch.save(state, folder / shard)
    places = {name: shard for shard, state in shards.items() for name in state if name != "step"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    result = paramcli("convert", folder, "-o", tmp_path / "o.pt")
    state = load(tmp_path / "o.pt")
    assert set(state) == set(places) and one(state, "a.weight", "b.weight") and "step" in result.err


def test_a_copy_outside_the_state_dict_shares_its_memory(tmp_path, paramcli):
    """An EMA entry that is the model's own tensor is not stored twice."""
    torch.save({"model": {"w.weight": torch.randn(200, 200)}, "epoch": 1}, tmp_path / "a.pt")
    training = load(tmp_path / "a.pt")
    training["ema"] = dict(training["model"])
    torch.save(training, tmp_path / "b.pt")
    paramcli("convert", tmp_path / "b.pt", "--root", "model", "-o", tmp_path / "o.pt")
    back = load(tmp_path / "o.pt")
    assert back["ema"]["w.weight"].data_ptr() == back["model"]["w.weight"].data_ptr()
    assert (tmp_path / "o.pt").stat().st_size < 1.1 * (tmp_path / "a.pt").stat().st_size


def test_a_pickled_module_becomes_its_state_dict(tmp_path, paramcli):
    """Its code cannot be carried, which stderr says; the wrapper around it can."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.append(model[0])
    torch.save({"net": model, "epoch": 7}, tmp_path / "m.pt")
    result = paramcli("convert", tmp_path / "m.pt", "-o", tmp_path / "o.pt", "--json")
    back = load(tmp_path / "o.pt")
    assert (
        back["epoch"] == 7
        and list(back["net"]) == list(model.state_dict())
        and one(back["net"], "0.weight", "2.weight")
    )
    model.load_state_dict(back["net"], strict=True)
    assert "torch.nn.modules.container.Sequential" in result.json["dropped"][0] and "not carried over" in result.err


@pytest.mark.filterwarnings("ignore")
def test_odd_neighbours_of_the_weights_come_along(tmp_path, paramcli):
    """Quantized, sparse, complex128, fp8 and bare-storage entries beside the state dict are written again
    as they were.
    """
    extra = {
        "quantized": torch.quantize_per_tensor(V, 0.1, 2, torch.qint8),
        "sparse": V.relu().to_sparse(),
        "complex": torch.randn(3, dtype=torch.complex128),
        "half complex": torch.ones(3, dtype=torch.complex32),
        "bits": torch.arange(3, dtype=torch.uint8).view(torch.bits8),
        "conjugate": torch.randn(2, 3, dtype=torch.complex64).conj(),
        "negative": torch.randn(4, dtype=torch.complex64).conj().imag,
        "f8": V.to(torch.float8_e4m3fn),
        "f4": torch.arange(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
        "bytes": torch.arange(5, dtype=torch.uint8).untyped_storage(),
    }
    torch.save({"model": {"w.weight": W}, "extra": extra}, tmp_path / "a.pt")
    paramcli(
        "add", tmp_path / "a.pt", "--root", "model", "-t", "w.weight", "--chain", "symmetric", "-o", tmp_path / "o.pt"
    )
    back = load(tmp_path / "o.pt")["extra"]
    assert (
        torch.equal(back["quantized"].int_repr(), extra["quantized"].int_repr())
        and back["quantized"].q_zero_point() == 2
    )
    assert torch.equal(back["sparse"].to_dense(), V.relu()) and torch.equal(back["complex"], extra["complex"])
    assert back["half complex"].dtype == torch.complex32 and back["bits"].dtype == torch.bits8
    assert back["half complex"].untyped_storage().tolist() == extra["half complex"].untyped_storage().tolist()
    assert back["bits"].untyped_storage().tolist() == [0, 1, 2]
    for view in ("conjugate", "negative"):
        assert torch.equal(back[view], extra[view]) and back[view].is_conj() == extra[view].is_conj()
    assert back["f8"].dtype == torch.float8_e4m3fn and torch.equal(
        back["f8"].view(torch.uint8), extra["f8"].view(torch.uint8)
    )
    assert torch.equal(back["f4"].view(torch.uint8), torch.arange(8, dtype=torch.uint8))
    assert back["bytes"].tolist() == [0, 1, 2, 3, 4]


def test_4_bit_floats_go_to_safetensors_and_back(tmp_path, paramcli):
    """Packed pairs pass through both containers, and beside an edit, byte for byte."""
    packed = torch.arange(16, dtype=torch.uint8).view(2, 8).view(torch.float4_e2m1fn_x2)
    torch.save({"q.weight": packed, "w.weight": W}, tmp_path / "a.pt")
    paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / "b.safetensors")
    paramcli("add", tmp_path / "b.safetensors", "-t", "w.weight", "--chain", "symmetric", "-o", tmp_path / "c.pt")
    got = load(tmp_path / "c.pt")["q.weight"]
    assert (
        got.dtype == packed.dtype
        and got.shape == packed.shape
        and torch.equal(got.view(torch.uint8), packed.view(torch.uint8))
    )
    assert (
        "q.weight is F4"
        in paramcli("add", tmp_path / "b.safetensors", "-t", "q.weight", "--chain", "weight_norm", code=3).err
    )


class Called:
    """Pickled, it is a call of what it is given."""

    def __init__(self, module: str, function: str, *arguments):
        self.made = getattr(importlib.import_module(module), function), arguments

    def __reduce__(self):
        return self.made


HARMLESS_TO_READ = [
    ("uuid", "_get_command_stdout"),
    ("platform", "popen" if hasattr(platform, "popen") else "uname"),
    ("zipfile", "ZipFile"),
    ("logging", "FileHandler"),
    ("torch.serialization", "load"),
    ("tempfile", "mkstemp"),
    ("numpy", "savetxt"),
]
# Where it lies -> (what is left out, what stays in its place).
PLACES = {
    "an entry": (lambda made: {"a": 1, "z": made}, "rest.z", {"a": 1}),
    "in a list": (lambda made: {"a": [1, {"b": 2}], "z": [0, [made]]}, "rest.z", {"a": [1, {"b": 2}]}),
    "deep in a list": (lambda made: {"z": [0, {"b": made, "c": 1}]}, "rest.z.b", {"z": [0, {"c": 1}]}),
    "in a tuple": (lambda made: {"z": (made, 1), "a": 2}, "rest.z", {"a": 2}),
    "in a set's place": (lambda made: {"z": Called("builtins", "set", [made]), "a": 2}, "rest.z", {"a": 2}),
    "twice": (lambda made: {"y": made, "z": [made]}, "rest.y, rest.z", {}),
    "in an object": (
        lambda made: argparse.Namespace(lr=1, log=made),
        "rest.log",
        argparse.Namespace(lr=1),
    ),
    "as a key": (lambda made: {(made, 1): 2, "a": 1}, "rest.tuple", {"a": 1}),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_call_that_is_not_torch_s_own_is_left_out_and_named(place, tmp_path, paramcli):
    """The smallest entry of a dict that holds it is missing, and all else is as it was; a dry run says the same."""
    make, left, stays = PLACES[place]
    call = Called("uuid", "_get_command_stdout", "touch", "PWNED")
    torch.save({"model": {"w.weight": W}, "rest": make(call), "epoch": 3}, tmp_path / "a.pt")
    for extra in (["-n"], []):
        assert (
            f"not carried over: {left}\n" in paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / "o.pt", *extra).err
        )
    assert b"_get_command_stdout" not in (tmp_path / "o.pt").read_bytes()
    back = torch.load(tmp_path / "o.pt", weights_only=False)
    assert back["rest"] == stays and back["epoch"] == 3 and torch.equal(back["model"]["w.weight"], W)


@pytest.mark.parametrize("module, function", HARMLESS_TO_READ)
def test_no_call_of_a_library_passes(module, function, tmp_path, paramcli):
    """Whatever it is of, and in the state dict too."""
    torch.save({"w.weight": W, "z": Called(module, function, "touch")}, tmp_path / "a.pt")
    paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / "o.pt")
    assert function.encode() not in (tmp_path / "o.pt").read_bytes() and list(load(tmp_path / "o.pt")) == ["w.weight"]


def test_what_calls_leave_out_leaves_no_bytes(tmp_path, paramcli):
    """A tensor that only a left-out entry holds is not written either."""
    torch.save({"model": {"w.weight": W}, "z": Called("zipfile", "ZipFile", torch.rand(5000))}, tmp_path / "a.pt")
    paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / "o.pt")
    assert (tmp_path / "o.pt").stat().st_size < 5000


def test_values_of_python_and_numpy_come_along(tmp_path, paramcli):
    """What is made by a call, and is a value: arrays, generators' states, dates, paths, fractions."""
    values = {
        "array": numpy.arange(6.0).reshape(2, 3),
        "number": numpy.float32(0.5),
        "random": numpy.random.RandomState(3).get_state(),
        "when": datetime.datetime(2024, 1, 2, 3, 4, 5),
        "where": pathlib.PurePosixPath("/a/b"),
        "exact": [fractions.Fraction(2, 3), decimal.Decimal("1.5")],
        "kinds": {"set": {1, 2}, "deque": collections.deque([1]), "default": collections.defaultdict(list, a=[1])},
        "device": torch.device("cuda:1"),
        "dtype": torch.bfloat16,
        "attributes": argparse.Namespace(lr=0.1, betas=(0.9, 0.99)),
    }
    torch.save({"model": {"w.weight": W}, "values": values}, tmp_path / "a.pt")
    assert "not carried" not in paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / "o.pt").err
    back = torch.load(tmp_path / "o.pt", weights_only=False)["values"]
    assert numpy.array_equal(back.pop("array"), values.pop("array"))
    assert str(back.pop("random")) == str(values.pop("random")) and back == values


def test_a_list_that_cannot_be_written_is_refused(tmp_path, paramcli):
    """Where no dict is above the call there is no entry to leave out."""
    torch.save([{"w.weight": W}, Called("zipfile", "ZipFile", "x")], tmp_path / "a.pt")
    said = paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / "o.pt", code=3).err
    assert "zipfile.ZipFile" in said and "-o FILE.safetensors" in said and not (tmp_path / "o.pt").exists()
    paramcli("convert", tmp_path / "a.pt", "-o", tmp_path / "o.safetensors")


PAIR = {"c.weight_g": G, "c.weight_v": V}
BAKED = torch._weight_norm(V, G, 0)


class Trainer:
    """An object that holds a model, and other things."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


# label: (what torch.save gets, --root, where the baked weight is in the result, what of it stays as it was)
ROOTS = {
    "a list": ([{"model": PAIR}, {"model": {"w.weight": W}}, 3], "0.model", (0, "model"), lambda back: back[2] == 3),
    "a tuple": ((1, PAIR), "1", (1,), lambda back: back[0] == 1 and isinstance(back, tuple)),
    "whole numbers": ({0: PAIR, 1: {"w.weight": W}}, "0", (0,), lambda back: list(back) == [0, 1]),
    "an object": (
        {"trainer": Trainer(model=PAIR, lr=0.1), "ema": {"w.weight": W}},
        "trainer.model",
        ("trainer", "model"),
        lambda back: back["trainer"]["lr"] == 0.1,
    ),
    "nested dicts": (
        {"model": {"enc": {"a": PAIR, "kept": 1}, "dec": [{"w.weight": W}, "text"]}, "epoch": 3},
        "model",
        ("model", "enc", "a"),
        lambda back: back["model"]["enc"]["kept"] == 1 and torch.equal(back["model"]["dec"][0]["w.weight"], W),
    ),
}


@pytest.mark.parametrize("where", ROOTS)
def test_what_is_edited_stays_where_it_was(where, tmp_path, paramcli):
    """In lists, tuples, under numbers, in nested dicts that are read as one; what was an object is a dict."""
    saved, root, place, stays = ROOTS[where]
    torch.save(saved, tmp_path / "a.pt")
    paramcli("remove", tmp_path / "a.pt", "--root", root, "--check", "-o", tmp_path / "o.pt")
    back = torch.load(tmp_path / "o.pt", weights_only=True)
    assert stays(back)
    for step in place:
        back = back[step]
    assert list(back) == ["c.weight"] and torch.equal(back["c.weight"], BAKED)
    equal = paramcli("diff", tmp_path / "a.pt", tmp_path / "o.pt", "--root", root).err
    assert "equal: " in equal


def test_the_code_of_an_object_on_the_way_is_named(tmp_path, paramcli):
    """It becomes a dict of its attributes, and stderr says which class is gone."""
    torch.save({"trainer": Trainer(model=PAIR)}, tmp_path / "a.pt")
    said = paramcli("remove", tmp_path / "a.pt", "--root", "trainer.model", "-o", tmp_path / "o.pt").err
    assert f"not carried over: the pickled {__name__}.Trainer" in said


def test_names_that_leave_a_nested_dict_go_to_the_top_of_it(tmp_path, paramcli):
    """Stripped of the dict's own name a tensor cannot stay in it; it is read back under the new name."""
    torch.save({"model": {"net": {"enc": {"w.weight": W}, "dec": {"v.weight": V}}}, "epoch": 1}, tmp_path / "a.pt")
    paramcli(
        "convert",
        tmp_path / "a.pt",
        "--root",
        "model",
        "--strip-prefix",
        "net.enc",
        "--check",
        "-o",
        tmp_path / "o.pt",
    )
    back = load(tmp_path / "o.pt")
    assert torch.equal(back["model"]["w.weight"], W) and torch.equal(back["model"]["net"]["dec"]["v.weight"], V)
    said = paramcli("inspect", tmp_path / "o.pt", "--root", "model.*", "--json").json
    assert {tensor["tensor"] for tensor in said["tensors"]} == {"w.weight", "net.dec.v.weight"}


# label: (what holds {"w.weight": W}, {"v.weight": V} and an epoch, what it is called, the place of the first dict)
ABOVE = {
    "a list": (lambda a, b: [a, b, {"epoch": 7}], "list of 3", "0"),
    "a tuple": (lambda a, b: ({"net": a}, b, 7), "tuple of 3", "0.net"),
    "an object": (lambda a, b: argparse.Namespace(g=a, d=b, epoch=7), "argparse.Namespace", "g"),
}


@pytest.mark.parametrize("edit", ["rename", "add-prefix"])
@pytest.mark.parametrize("above", ABOVE)
def test_names_that_leave_a_joined_dict_have_no_place_where_there_is_no_dict_above(above, edit, tmp_path, paramcli):
    """Above the dicts is a list or an object: refused with the way out, and what lies beside them is never lost."""
    make, kind, place = ABOVE[above]
    torch.save({"all": make({"w.weight": W}, {"v.weight": V})}, tmp_path / "a.pt")
    line = {"rename": ["--rename", f"{place}=gen"], "add-prefix": ["--add-prefix", "m"]}[edit]
    convert = ("convert", tmp_path / "a.pt", "--root", "all.*", *line, "-o")
    said = paramcli(*convert, tmp_path / "o.pt", code=3).err
    assert "w.weight has no place in a torch file" in said
    assert f"it was in all.{place}, and what is above that is no dict ({kind})" in said
    assert "-o FILE.safetensors" in said and not (tmp_path / "o.pt").exists()
    paramcli(*convert, tmp_path / "o.safetensors")


def test_names_that_leave_a_joined_dict_keep_what_is_in_the_dict_above(tmp_path, paramcli):
    """An epoch, an optimizer, a list beside the dicts; entries that the new names would replace are refused."""
    optimizer = {"state": {0: {"exp_avg": V}}, "param_groups": [{"params": [0]}]}
    saved = {"g": {"w.weight": W, "note": "x"}, "d": {"v.weight": V}, "opt": optimizer, "epoch": 7, "taken.weight": 1}
    torch.save(saved, tmp_path / "a.pt")
    convert = ("convert", tmp_path / "a.pt", "--root", "*", "-o", tmp_path / "o.pt")
    paramcli(*convert, "--rename", "g.w=gen.w", "--check")
    back = load(tmp_path / "o.pt")
    assert torch.equal(back.pop("gen.w.weight"), W) and torch.equal(back["d"].pop("v.weight"), V)
    assert torch.equal(back["opt"]["state"][0].pop("exp_avg"), V)
    expected = {"opt": {"state": {0: {}}, "param_groups": [{"params": [0]}]}, "epoch": 7, "taken.weight": 1}
    assert back == {"g": {"note": "x"}, "d": {}, **expected}
    assert "taken.weight would take the place" in paramcli(*convert, "-f", "--rename", "g.w=taken", code=3).err


def test_a_name_that_something_else_has_is_refused(tmp_path, paramcli):
    """A tensor that would take the place of a setting in the state dict: which, and nothing is lost."""
    torch.save({"m.config": W, "config": {"x": 1}, "m.w": V}, tmp_path / "a.pt")
    convert = ("convert", tmp_path / "a.pt", "--strip-prefix", "m", "-o")
    assert "config would take the place" in paramcli(*convert, tmp_path / "o.pt", code=3).err
    paramcli(*convert, tmp_path / "o.safetensors")


@pytest.mark.filterwarnings("ignore")
def test_a_nested_dcp_folder_becomes_a_plain_state_dict(tmp_path, paramcli):
    """It has no pickle to keep; the result is read back at its top."""
    import torch.distributed.checkpoint as checkpoint

    checkpoint.save({"model": {"w.weight": W}, "epoch": 1}, checkpoint_id=tmp_path / "m", no_dist=True)
    paramcli("convert", tmp_path / "m", "--check", "-o", tmp_path / "o.pt")
    assert torch.equal(load(tmp_path / "o.pt")["w.weight"], W)


def test_an_adapter_s_strided_factor_is_written_row_by_row(tmp_path, paramcli):
    """A kernel in channels_last, which the attached factor is in another shape: torch reads it back."""
    torch.manual_seed(0)
    A, B, W = torch.randn(2, 4, 3, 3), torch.randn(8, 2, 1, 1), torch.randn(8, 4, 3, 3)
    folder = tmp_path / "adapter"
    folder.mkdir()
    torch.save({"conv.weight": W}, tmp_path / "base.pt")
    before = "base_model.model.conv.lora_"
    weights = {f"{before}A.weight": A.to(memory_format=torch.channels_last), f"{before}B.weight": B}
    torch.save(weights, folder / "adapter_model.bin")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["conv"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    paramcli("add", tmp_path / "base.pt", "--adapter", folder, "-o", tmp_path / "x.pt")
    made = torch.load(tmp_path / "x.pt", weights_only=True)
    assert any(torch.equal(T.reshape(-1), A.reshape(-1)) for T in made.values())
    line = ["remove", tmp_path / "x.pt", "--chain", "lora:rank=2:alpha=2", "-o", tmp_path / "b.safetensors"]
    paramcli(*line)
    merged = W + (B.flatten(1) @ A.flatten(1)).reshape(W.shape)
    torch.testing.assert_close(load_file(tmp_path / "b.safetensors")["conv.weight"], merged)
