"""Spellings as commands meet them: look-alikes left alone, unknown ones asked about, nothing guessed."""

from __future__ import annotations

import shlex

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations

torch.manual_seed(0)
G, V = torch.rand(4, 1) + 0.5, torch.randn(4, 4)
PAIR = {"w.weight_g": G, "w.weight_v": V}
LOOK_ALIKES = {
    "q.parametrizations.weight.original0": torch.ones(4, 4, dtype=torch.int8),
    "q.parametrizations.weight.original1": torch.ones(4, 1),
    "m.gaussian_blurred_cent_mask": torch.ones(4),
    "a.weight_gate": torch.ones(4, 1),
    "a.query_v": torch.randn(4, 4),
    "a.w_g": torch.randn(4, 4),
    "a.w_v": torch.randn(4, 4),
    "b.weight": torch.randn(4, 4),
    "b.weight_mask": torch.ones(4, 4),
    "ids_orig": torch.arange(4),
    "ids_mask": torch.ones(4),
}


@pytest.mark.parametrize("command", [["remove"], ["migrate", "--to", "new"], ["convert"]])
def test_look_alikes_are_left_alone(command, tmp_path, paramcli):
    """Beside a real weight norm every name that only looks like one comes out as it was."""
    save_file({**LOOK_ALIKES, **PAIR}, tmp_path / "l.safetensors")
    paramcli(command[0], tmp_path / "l.safetensors", *command[1:], "-o", tmp_path / "o.safetensors")
    got = load_file(tmp_path / "o.safetensors")
    assert all(
        torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype for name, tensor in LOOK_ALIKES.items()
    )
    assert ("w.weight_g" in got) == (command == ["convert"])
    paramcli("diff", tmp_path / "l.safetensors", tmp_path / "o.safetensors")


def test_names_of_look_alikes_can_be_given(tmp_path, paramcli):
    """They are tensors by their own names."""
    save_file(LOOK_ALIKES, tmp_path / "l.safetensors")
    paramcli("add", tmp_path / "l.safetensors", "-t", "a.w_v", "--chain", "symmetric", "-o", tmp_path / "o.safetensors")
    assert (
        "ids_orig is int64"
        in paramcli("add", tmp_path / "l.safetensors", "-t", "ids_orig", "--chain", "mask", code=3).err
    )


@pytest.fixture
def unknown(tmp_path):
    """An orthogonal layer, whose keys do not tell its map, beside a weight norm; and the orthogonal weight."""
    layer = parametrizations.orthogonal(nn.Linear(4, 4, bias=False), orthogonal_map="cayley")
    torch.save({**{f"o.{key}": tensor for key, tensor in layer.state_dict().items()}, **PAIR}, tmp_path / "u.pt")
    return tmp_path / "u.pt", layer.weight.detach()


def test_an_unknown_chain_is_asked_for_and_taken(unknown, tmp_path, paramcli):
    """The error lists what fits; --chain then answers for the tensor that asks and for no other."""
    path, weight = unknown
    message = paramcli("remove", path, "-o", tmp_path / "o.safetensors", code=3).err
    assert (
        all(f"orthogonal:map={name}" in message for name in ("matrix_exp", "cayley", "householder"))
        and "--chain" in message
    )
    paramcli("remove", path, "--chain", "orthogonal:map=cayley", "-o", tmp_path / "o.safetensors")
    got = load_file(tmp_path / "o.safetensors")
    assert torch.equal(got["o.weight"], weight) and torch.equal(got["w.weight"], torch._weight_norm(V, G, 0))
    verified = paramcli("verify", path, "--chain", "orthogonal:map=cayley", "--json").json["tensors"]
    assert {t["tensor"]: t["chain"] for t in verified} == {
        "o.weight": "orthogonal:map=cayley",
        "w.weight": "weight_norm:dim=0",
    }
    paramcli("remove", path, "-t", "w.weight", "-o", tmp_path / "w.safetensors")
    assert "o.parametrizations.weight.0.base" in load_file(tmp_path / "w.safetensors")


def test_diff_of_what_is_not_known_compares_what_is_stored(unknown, tmp_path, paramcli):
    """Equal originals are equal weights under any chain; other originals are a question, not an answer."""
    path, _ = unknown
    document = paramcli("diff", path, path, "--json").json
    assert (
        document["equal"]
        and {t["tensor"]: t["detail"] for t in document["tensors"]}["o.weight"] == "compared as stored"
    )
    state = torch.load(path, weights_only=True)
    state["o.parametrizations.weight.original"] = -state["o.parametrizations.weight.original"]
    torch.save(state, tmp_path / "v.pt")
    assert "o.weight" in paramcli("diff", path, tmp_path / "v.pt", code=3).err
    paramcli("diff", path, tmp_path / "v.pt", "-t", "w.weight")


HALVES = {
    "w.weight_g": ({"w.weight_g": G}, "w.weight_v"),
    "w.weight_v": ({"w.weight_v": V}, "w.weight_g"),
    "orig": ({"w.weight_orig": V}, "w.weight_mask"),
    "mask": ({"w.weight_mask": V}, "w.weight_orig"),
    "orig and u": ({"w.weight_orig": V, "w.weight_u": V[0].clone()}, "w.weight_v"),
    "bar": ({"w.weight_bar": V}, "w.weight_u"),
    "original0": ({"w.parametrizations.weight.original0": G}, "w.parametrizations.weight.original1"),
    "original1": ({"w.parametrizations.weight.original1": V}, "w.parametrizations.weight.original0"),
    "0.mask": ({"w.parametrizations.weight.0.mask": V}, "w.parametrizations.weight.original"),
    "0._u": (
        {"w.parametrizations.weight.original": V, "w.parametrizations.weight.0._u": V[0].clone()},
        "w.parametrizations.weight.0._v",
    ),
}


@pytest.mark.parametrize("half", HALVES)
def test_half_pairs_name_the_missing_key(half, tmp_path, paramcli):
    """In every command that would need the other half; commands that do not touch it go on."""
    state, missing = HALVES[half]
    save_file(
        {**state, "b.weight": V.clone(), "p.weight_g": G.clone(), "p.weight_v": V.clone()}, tmp_path / "h.safetensors"
    )
    path, out = tmp_path / "h.safetensors", tmp_path / "o.safetensors"
    assert missing in paramcli("remove", path, "-o", out, code=3).err
    assert missing in paramcli("verify", path, "-t", "w.weight", code=3).err
    assert missing in paramcli("inspect", path).out and missing in paramcli("discover", path).err
    assert not out.exists()
    paramcli("remove", path, "-t", "p.weight", "-o", out)
    paramcli("add", path, "-t", "b.weight", "--chain", "symmetric", "-f", "-o", out)
    paramcli("convert", path, "-f", "-o", out)
    assert set(state) <= set(load_file(out))
    paramcli("diff", path, out)


def test_stripping_a_prefix_never_makes_another_reading(tmp_path, paramcli):
    """Two keys that would meet are an error, and so are two tensors whose keys would be read together."""
    for other in (
        {"w.weight": V.clone()},
        {"w.weight_g": G.clone()},
        {"w.parametrizations.weight.original": V.clone()},
    ):
        save_file({"m.w.weight_g": G.clone(), "m.w.weight_v": V.clone(), **other}, tmp_path / "s.safetensors")
        message = paramcli(
            "convert", tmp_path / "s.safetensors", "--strip-prefix", "m", "-o", tmp_path / "o.safetensors", code=3
        ).err
        assert "w.weight" in message and "--drop" in message and not (tmp_path / "o.safetensors").exists()
    paramcli(
        "convert",
        tmp_path / "s.safetensors",
        "--strip-prefix",
        "m",
        "--drop",
        "w.weight",
        "-o",
        tmp_path / "o.safetensors",
    )
    assert set(load_file(tmp_path / "o.safetensors")) == {"w.weight_g", "w.weight_v"}


def test_every_dialect_of_one_weight_is_equal(tmp_path, paramcli):
    """diff reads all spellings as the one weight they give, and says which file to migrate."""
    layer = nn.utils.spectral_norm(nn.Linear(6, 4, bias=False))
    for _ in range(3):
        layer(torch.ones(1, 6))
    layer.eval()(torch.ones(1, 6))
    W, u, v, value = layer.weight_orig.detach(), layer.weight_u, layer.weight_v, layer.weight.detach().clone()
    files = {
        "plain": {"weight": value},
        "v1": {"weight_orig": W, "weight_u": u, "weight_v": v},
        "v0": {"weight_orig": W, "weight": value, "weight_u": u},
        "bar": {"weight_bar": W, "weight_u": u, "weight_v": v},
        "new": {
            "parametrizations.weight.original": W,
            "parametrizations.weight.0._u": u,
            "parametrizations.weight.0._v": v,
        },
    }
    for name, state in files.items():
        torch.save(state, tmp_path / f"{name}.pt")
    for a in files:
        for b in files:
            message = paramcli("diff", tmp_path / f"{a}.pt", tmp_path / f"{b}.pt", "--tol", "1e-5").err
            forms = [{"new": "parametrized"}.get(name, f"spectral_norm_{name}") for name in (a, b)]
            said = "same tensors, other spelling: {} in A; {} in B".format(*forms)
            assert (said in message) == (a != b and "plain" not in (a, b)), (a, b)
            assert "paramcli" not in message  # they are the same weights: nothing is left to do


@pytest.mark.parametrize("name", ["x.h5", "x.onnx", "x.GGUF", "x.npz", "x.pkl"])
def test_no_file_gets_the_name_of_another_format(name, tmp_path, paramcli):
    """An output that asks for a format paramcli does not write is refused, not filled with safetensors."""
    save_file(PAIR, tmp_path / "p.safetensors")
    for command in (["convert"], ["remove"], ["migrate", "--to", "new"]):
        message = paramcli(command[0], tmp_path / "p.safetensors", *command[1:], "-o", tmp_path / name, code=2).err
        assert "writes safetensors and torch checkpoints" in message and not (tmp_path / name).exists()


class Skew(nn.Module):
    def forward(self, X):
        return X.triu(1) - X.triu(1).mT


class TutorialCayley(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("Id", torch.eye(n))

    def forward(self, X):
        return torch.linalg.solve(self.Id - X, self.Id + X)


def tutorial_layer() -> nn.Linear:
    """As PyTorch's tutorial has it: the identity matrix is a buffer, and so a tensor of the file."""
    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", Skew())
    return nn.utils.parametrize.register_parametrization(layer, "weight", TutorialCayley(4))


def test_a_file_of_the_tutorials_code_is_read_edited_and_loaded_back(tmp_path, paramcli):
    """--chain skew,cayley bakes it bit for bit; verify, assign and load work, and assign keeps the key its module
    wants.
    """
    layer = tutorial_layer()
    torch.save(layer.state_dict(), tmp_path / "t.pt")
    chain = ["--chain", "skew,cayley"]
    paramcli("remove", tmp_path / "t.pt", *chain)
    assert torch.equal(load_file(tmp_path / "t.baked.safetensors")["weight"], layer.weight)
    assert "holds" in paramcli("verify", tmp_path / "t.pt", *chain).out
    paramcli("assign", tmp_path / "t.pt", "-t", "weight", "--with", "orthogonal", *chain)
    state = load_file(tmp_path / "t.parametrized.safetensors")
    layer.load_state_dict(state, strict=True)
    torch.testing.assert_close(layer.weight.T @ layer.weight, torch.eye(4))


def test_an_identity_matrix_that_is_none_is_another_map(tmp_path, paramcli):
    """The key is the tutorial's, the matrix is not: refused."""
    state = tutorial_layer().state_dict()
    state["parametrizations.weight.1.Id"] *= 2
    torch.save(state, tmp_path / "t.pt")
    assert "no identity matrix" in paramcli("remove", tmp_path / "t.pt", "--chain", "skew,cayley", code=3).err


@pytest.mark.parametrize("command", [["remove"], ["migrate", "--to", "new"]], ids=lambda c: c[0])
@pytest.mark.parametrize("roots", [["state_dict"], ["ema", "state_dict"]], ids=len)
def test_the_next_step_after_the_same_weights_is_a_diff(command, roots, tmp_path, paramcli):
    """What makes no claim for verify names the command that proves the result, and that command runs as it is shown."""
    torch.manual_seed(0)
    state = {"l.weight_v": torch.randn(3, 4), "l.weight_g": torch.rand(3, 1)}
    torch.save({name: dict(state) for name in roots}, tmp_path / "some model.pt")
    err = paramcli(*command, tmp_path / "some model.pt", "--root", "state_dict").err
    line = err.strip().splitlines()[-1].removeprefix("next: ")
    assert ("--root" in line) == (len(roots) > 1)
    assert "equal: 1 equal" in paramcli(*shlex.split(line)[1:]).err


def test_root_of_a_is_not_asked_of_b_where_b_has_none(tmp_path, paramcli):
    """A file made from one root compares with it; a wrong --root is refused on either side, and --root-b is taken at
    its word.
    """
    torch.save({"ema": {"w": torch.ones(2)}, "model": {"w": torch.zeros(2)}}, tmp_path / "two.pt")
    paramcli("convert", tmp_path / "two.pt", "--root", "ema", "-o", tmp_path / "one.safetensors")
    assert "equal: 1 equal" in paramcli("diff", tmp_path / "two.pt", tmp_path / "one.safetensors", "--root", "ema").err
    assert (
        "known: ema" in paramcli("diff", tmp_path / "two.pt", tmp_path / "one.safetensors", "--root", "em", code=2).err
    )
    assert (
        "one level"
        in paramcli(
            "diff", tmp_path / "two.pt", tmp_path / "one.safetensors", "--root", "ema", "--root-b", "ema", code=2
        ).err
    )
