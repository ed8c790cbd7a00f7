"""convert: prefixes off, wrappers out, names given, a prefix put on; no tensor is lost, and no group is parted."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

torch.manual_seed(0)
W, V, G = torch.randn(3, 3), torch.randn(3, 3), torch.rand(3, 1) + 0.5
PLAIN = {"net.fc.weight": W, "net.fc.bias": torch.ones(3), "network.w": V}
OLD = {"net.l.weight_g": G, "net.l.weight_v": V}
NEW = {"net.l.parametrizations.weight.original0": G, "net.l.parametrizations.weight.original1": V}

# label: (what is in the file, options, the names that come out)
RENAMED = {
    "a tensor": (PLAIN, ["--rename", "net.fc.weight=out.w"], ["out.w", "net.fc.bias", "network.w"]),
    "a module": (PLAIN, ["--rename", "net=model"], ["model.fc.weight", "model.fc.bias", "network.w"]),
    "a module in it": (PLAIN, ["--rename", "net.fc=net.head"], ["net.head.weight", "net.head.bias", "network.w"]),
    "one after another": (PLAIN, ["--rename", "net=a", "--rename", "a.fc=b"], ["b.weight", "b.bias", "network.w"]),
    "two that change places": (
        {"a.w": W, "b.w": V},
        ["--rename", "a=x", "--rename", "b=a", "--rename", "x=b"],
        ["b.w", "a.w"],
    ),
    "an old spelling": (OLD, ["--rename", "net.l.weight=m.kernel"], ["m.kernel_g", "m.kernel_v"]),
    "a new spelling": (
        NEW,
        ["--rename", "net.l.weight=m.kernel"],
        ["m.parametrizations.kernel.original0", "m.parametrizations.kernel.original1"],
    ),
    "the module of a new spelling": (
        NEW,
        ["--rename", "net.l=m"],
        ["m.parametrizations.weight.original0", "m.parametrizations.weight.original1"],
    ),
    "a prefix put on": (PLAIN, ["--add-prefix", "model"], [f"model.{name}" for name in PLAIN]),
    "a prefix with its dot": (PLAIN, ["--add-prefix", "a.b."], [f"a.b.{name}" for name in PLAIN]),
    "a prefix on a new spelling": (NEW, ["--add-prefix", "m"], [f"m.{name}" for name in NEW]),
    "all in order": (
        PLAIN,
        ["--add-prefix", "m", "--rename", "fc=head", "--strip-prefix", "net"],
        ["m.head.weight", "m.head.bias", "m.network.w"],
    ),
    "a name with an equals sign": (PLAIN, ["--rename", "network.w=a=b"], ["net.fc.weight", "net.fc.bias", "a=b"]),
}


@pytest.mark.parametrize("out", ["o.safetensors", "o.pt"])
@pytest.mark.parametrize("what", RENAMED)
def test_names_are_what_was_asked_for(what, out, tmp_path, paramcli):
    """Each tensor's bytes under its new name, in the file's order, and nothing else."""
    state, options, names = RENAMED[what]
    torch.save(state, tmp_path / "a.pt")
    paramcli("convert", tmp_path / "a.pt", *options, "--check", "-o", tmp_path / out)
    got = load_file(tmp_path / out) if out.endswith("safetensors") else torch.load(tmp_path / out)
    assert {name: got[name].tolist() for name in got} == {
        name: tensor.tolist() for name, tensor in zip(names, state.values(), strict=True)
    }
    assert out.endswith("safetensors") or list(got) == names


# label: (names before, --strip-prefix, names after)
WRAPPED = {
    "compiled blocks": (
        ["m.0._orig_mod.w", "_orig_mod.m.w", "m._orig_mod.w2"],
        ["_orig_mod."],
        ["m.0.w", "m.w", "m.w2"],
    ),
    "FSDP": (["_fsdp_wrapped_module.a._fsdp_wrapped_module.w", "b.w"], ["_fsdp_wrapped_module"], ["a.w", "b.w"]),
    "checkpointed": (["a._checkpoint_wrapped_module.w"], ["_checkpoint_wrapped_module."], ["a.w"]),
    "one in the other": (
        ["a._fsdp_wrapped_module._checkpoint_wrapped_module.w"],
        ["_fsdp_wrapped_module._checkpoint_wrapped_module."],
        ["a.w"],
    ),
    "one after the other": (["_orig_mod.a._fsdp_wrapped_module.w"], ["_orig_mod.", "_fsdp_wrapped_module."], ["a.w"]),
    "no wrapper's name": (["module.a.module.w"], ["module."], ["a.module.w"]),
    "a leaf of that name": (["a._orig_mod", "_orig_mod.b"], ["_orig_mod."], ["a._orig_mod", "b"]),
}


@pytest.mark.parametrize("what", WRAPPED)
def test_wrappers_come_out_wherever_they_stand(what, tmp_path, paramcli):
    """torch's wrappers at any depth; every other prefix at the front alone."""
    before, prefixes, after = WRAPPED[what]
    state = {name: torch.full((2,), float(number)) for number, name in enumerate(before)}
    save_file(state, tmp_path / "a.safetensors")
    options = [word for prefix in prefixes for word in ("--strip-prefix", prefix)]
    paramcli("convert", tmp_path / "a.safetensors", *options, "-o", tmp_path / "o.safetensors")
    got = load_file(tmp_path / "o.safetensors")
    assert {name: tensor[0].item() for name, tensor in got.items()} == {name: float(n) for n, name in enumerate(after)}


def test_a_compiled_model_loads_strictly(tmp_path, paramcli):
    """torch's own names of a model whose blocks are compiled, back in the model that is not."""
    plain, compiled = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    for number, block in enumerate(compiled):
        compiled[number] = torch.compile(block)
    torch.save(compiled.state_dict(), tmp_path / "a.pt")
    paramcli("convert", tmp_path / "a.pt", "--strip-prefix", "_orig_mod.", "-o", tmp_path / "o.safetensors")
    plain.load_state_dict(load_file(tmp_path / "o.safetensors"), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), compiled.parameters(), strict=True))


REFUSED = {
    "no such name": (["--rename", "net.fc.wieght=x"], 2, "closest: net.fc.weight"),
    "half a segment": (["--rename", "ne=x"], 2, "no tensor and no module"),
    "no equals sign": (["--rename", "net"], 2, "not OLD=NEW"),
    "nothing in its place": (["--rename", "net="], 2, "not OLD=NEW"),
    "two names for one": (["--rename", "net=a", "--rename", "net=b"], 2, "two names"),
    "a name that is another's": (["--rename", "network.w=net.fc.weight"], 3, "both be named net.fc.weight"),
    "a name that no file can have": (["--rename", "network.w=__metadata__"], 2, "no name for a tensor"),
    "a prefix of nothing": (["--add-prefix", "."], 2, "no name for a tensor"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_mistakes_are_told_and_nothing_is_written(what, tmp_path, paramcli):
    """What is wrong, and with which name."""
    options, code, said = REFUSED[what]
    save_file(PLAIN, tmp_path / "a.safetensors")
    assert (
        said
        in paramcli("convert", tmp_path / "a.safetensors", *options, "-o", tmp_path / "o.safetensors", code=code).err
    )
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("spelling", [OLD, NEW], ids=["old", "new"])
def test_a_part_of_a_tensor_is_not_renamed_alone(spelling, tmp_path, paramcli):
    """g without its v would be half a weight norm."""
    save_file(spelling, tmp_path / "a.safetensors")
    key = next(iter(spelling))
    said = paramcli(
        "convert", tmp_path / "a.safetensors", "--rename", f"{key}=x", "-o", tmp_path / "o.safetensors", code=2
    ).err
    assert f"--rename {key}: it is a part of net.l.weight" in said


def test_the_record_follows_the_name(tmp_path, paramcli):
    """A renamed parametrization is still known to be one, and verifies."""
    save_file({"net.w": torch.randn(4, 4), "b": W}, tmp_path / "a.safetensors")
    paramcli(
        "add", tmp_path / "a.safetensors", "-t", "net.w", "--chain", "skew,cayley", "-o", tmp_path / "p.safetensors"
    )
    options = ["--rename", "net.w=head.kernel", "--add-prefix", "m"]
    paramcli("convert", tmp_path / "p.safetensors", *options, "-o", tmp_path / "o.safetensors")
    verified = paramcli("verify", tmp_path / "o.safetensors", "--json").json["tensors"]
    assert [(tensor["tensor"], tensor["chain"]) for tensor in verified] == [("m.head.kernel", "skew,cayley")]


def test_a_key_that_is_no_name_is_given_one(tmp_path, paramcli):
    """What is listed under a word may be carried under a name; a prefix alone gives it none."""
    torch.save({"w": W, 7: V, "__metadata__": G}, tmp_path / "a.pt")
    rename = ["--rename", "int_7=seven", "--rename", "__metadata__=meta"]
    paramcli("convert", tmp_path / "a.pt", *rename, "-o", tmp_path / "o.safetensors")
    got = load_file(tmp_path / "o.safetensors")
    assert torch.equal(got["seven"], V) and torch.equal(got["meta"], G) and torch.equal(got["w"], W)
    said = paramcli("convert", tmp_path / "a.pt", "--add-prefix", "m", "-o", tmp_path / "x.safetensors", code=3).err
    assert "int_7" in said and "--rename" in said


@pytest.mark.parametrize("container", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("names", [["_flat_param"], ["_fsdp_wrapped_module._flat_param", "l.0.flat_param_1"]])
def test_flattened_parameters_are_named(names, container, tmp_path, paramcli):
    """One rank's share of FSDP's flat parameter is no weight of the model, in any container; other names are not it."""
    state = {**{name: torch.ones(10) for name in names}, "not_flat_params": W}
    (torch.save if container == "a.pt" else save_file)(state, tmp_path / container)
    said = paramcli("convert", tmp_path / container, "-o", tmp_path / "o.safetensors").err
    assert f"{names[0]}" in said and "FSDP's flattened parameters" in said and ("1 more" in said) == (len(names) > 1)
    save_file({"not_flat_params": W}, tmp_path / "b.safetensors")
    assert "FSDP" not in paramcli("inspect", tmp_path / "b.safetensors").err


def test_the_library_renames_too(tmp_path):
    """rename= and add_prefix=, as --rename and --add-prefix."""
    import paramcli

    save_file(PLAIN, tmp_path / "a.safetensors")
    paramcli.convert(tmp_path / "a.safetensors", tmp_path / "o.safetensors", rename={"net.fc": "head"}, add_prefix="m")
    assert set(load_file(tmp_path / "o.safetensors")) == {"m.head.weight", "m.head.bias", "m.network.w"}
    with pytest.raises(paramcli.UsageError):
        paramcli.convert(tmp_path / "a.safetensors", tmp_path / "x.safetensors", rename={"nothing": "x"})
