"""The printed Python runs, and what it loads is what the file holds."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import paramcli as api


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"fc": nn.Linear(8, 8), "out": nn.Linear(8, 3), "conv": nn.Conv1d(4, 6, 3), "rnn": nn.LSTMCell(4, 8)}
    )


EDITS = [
    ("fc.weight", "skew,cayley", None),
    ("out.weight", "orthogonal:map=cayley:triv=true", None),
    ("out.weight", "orthogonal:map=householder:triv=false", None),
    ("conv.weight", "weight_norm:dim=none", None),
    ("conv.weight", "spectral_norm:dim=1", None),
    ("rnn.weight_hh", "skew,matrix_exp", "blocks=4"),
    ("conv.weight", "prune_l1:amount=0.5", None),
]


@pytest.mark.parametrize(("tensor", "chain", "view"), EDITS, ids=[e[1] for e in EDITS])
def test_the_code_runs_and_loads_the_file(tensor, chain, view, tmp_path, paramcli):
    """Executed on a plain model, the snippet gives the values that a bake of the file gives."""
    torch.save(model().state_dict(), tmp_path / "c.pt")
    paramcli("add", tmp_path / "c.pt", "-t", tensor, "--chain", chain, *(["--view", view] if view else []))
    made = tmp_path / "c.parametrized.safetensors"
    code = paramcli("snippet", made).out
    names = {"model": model().eval()}
    exec(compile(code, "snippet", "exec"), names)
    module, _, leaf = tensor.rpartition(".")
    baked = api.load(model().eval(), made)
    assert torch.equal(getattr(names["model"].get_submodule(module), leaf), getattr(baked.get_submodule(module), leaf))


@pytest.mark.parametrize("name", ["c.bin", "c", "c.pt"])
@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_what_loads_a_file_goes_by_what_is_in_it(kind, name, tmp_path, paramcli):
    """A name says nothing, here as everywhere: safetensors called c.pt, and a torch file called c.safetensors."""
    made = model()
    nn.utils.parametrizations.weight_norm(made["conv"])
    path = tmp_path / (name if kind == "safetensors" else name.replace(".pt", ".safetensors"))
    save_file(made.state_dict(), path) if kind == "safetensors" else torch.save(made.state_dict(), path)
    names = {"model": model()}
    exec(compile(paramcli("snippet", path).out, "snippet", "exec"), names)
    assert torch.equal(names["model"]["conv"].weight, made["conv"].weight)


def test_shards_are_loaded_by_paramcli(tmp_path, paramcli):
    """Of the index, too: it is a file, and holds no tensor."""
    made = model()
    nn.utils.parametrizations.weight_norm(made["conv"])
    torch.save(made.state_dict(), tmp_path / "t.pt")
    paramcli("convert", tmp_path / "t.pt", "-o", tmp_path / "shards", "--max-shard-size", "1KB")
    names = {"model": model()}
    [index] = (tmp_path / "shards").glob("*.index.json")
    exec(compile(paramcli("snippet", index).out, "snippet", "exec"), names)
    assert torch.equal(names["model"]["conv"].weight, made["conv"].weight)


def test_torchs_own_functions_need_no_paramcli(tmp_path, paramcli):
    """For weight norm alone the code imports torch and safetensors only."""
    torch.save(model().state_dict(), tmp_path / "c.pt")
    paramcli("add", tmp_path / "c.pt", "-t", "conv.weight", "--chain", "weight_norm")
    assert "paramcli" not in paramcli("snippet", tmp_path / "c.parametrized.safetensors").out.replace(str(tmp_path), "")


def test_older_spellings_are_loaded_by_paramcli(tmp_path, paramcli):
    """A file that spells weight norm the old way gives code that runs too."""
    old = model()
    nn.utils.weight_norm(old["conv"])
    torch.save(old.state_dict(), tmp_path / "old.pt")
    names = {"model": model()}
    exec(compile(paramcli("snippet", tmp_path / "old.pt").out, "snippet", "exec"), names)
    x = torch.randn(2, 4, 9)
    assert torch.equal(names["model"]["conv"](x), old["conv"](x))


def test_a_nested_state_dict_is_loaded_from_its_level(tmp_path, paramcli):
    """Of a training checkpoint the code loads the state dict that was meant, by the keys that lead to it."""
    made = model()
    nn.utils.parametrizations.weight_norm(made["conv"])
    torch.save({"epoch": 3, "net's": {"state": made.state_dict()}}, tmp_path / "t.pt")
    names = {"model": model()}
    exec(compile(paramcli("snippet", tmp_path / "t.pt").out, "snippet", "exec"), names)
    assert torch.equal(names["model"]["conv"].weight, made["conv"].weight)


def test_names_from_a_file_cannot_become_code(tmp_path, paramcli):
    """A quote, a newline and an escape sequence in a tensor's name stay inside an ASCII literal."""
    from torch.nn.utils.parametrizations import weight_norm

    evil = nn.Module()
    evil.add_module("a'];import os;os#\n\x1b[31m", weight_norm(nn.Linear(3, 3)))
    torch.save(evil.state_dict(), tmp_path / "e.pt")
    out = paramcli("snippet", tmp_path / "e.pt").out
    assert out.isascii() and "\x1b" not in out
    compile(out, "snippet", "exec")
    assert not any(line.startswith("import os") for line in out.splitlines())
