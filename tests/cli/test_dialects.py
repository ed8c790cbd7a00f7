"""Dialects: what torch's code from before parametrize writes is read, what only looks like it is left, by torch's own
arithmetic.
"""

import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

V = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(1))
G = torch.rand(6, generator=torch.Generator().manual_seed(2)) + 0.5


def triple(W):
    """W with its singular vectors and value, as spectral norms store them."""
    U, S, Vh = torch.linalg.svd(W.flatten(1))
    return {"_orig": W, "_u": U[:, 0].contiguous(), "_v": Vh[0].contiguous()}, S[0]


@pytest.fixture
def saved(tmp_path):
    def save(tensors, name="in.safetensors"):
        save_file({key: tensor.detach().clone() for key, tensor in tensors.items()}, tmp_path / name)
        return tmp_path / name

    return save


def baked(paramcli, path, *more, code=0):
    out = path.with_name("out.safetensors")
    said = paramcli("remove", path, *more, "-o", out, "-f", code=code)
    assert out.exists() == (code == 0)
    return said.err if code else load_file(out)


@pytest.mark.parametrize("new", [False, True], ids=["weight_v", "original1"])
@pytest.mark.parametrize("name", ["g", "v"])
def test_a_pruned_part_of_a_weight_norm_bakes_from_the_inside_out(paramcli, saved, new, name):
    """torch's prune on what torch's weight norm stores: the weight is what that module computes with."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = (parametrizations.weight_norm if new else nn.utils.weight_norm)(nn.Conv1d(4, 6, 3))
    holder = layer.parametrizations.weight if new else layer
    prune.random_unstructured(holder, f"original{'gv'.index(name)}" if new else f"weight_{name}", 0.4)
    with torch.no_grad():
        layer(torch.zeros(1, 4, 9))
        want = layer.weight.clone()
    path = saved(layer.state_dict())
    got = baked(paramcli, path)
    assert torch.equal(got["weight"], want) and set(got) == {"weight", "bias"}
    assert paramcli("diff", path, path.with_name("out.safetensors")).code == 0 and paramcli("verify", path).code == 0
    shown = next(t for t in paramcli("inspect", path, "--json").json["tensors"] if t["tensor"] == "weight")
    assert list(shown["nested"].values()) == ["mask"] and len(shown["keys"]) == 3
    for edit in (["migrate", "--to", "old" if new else "new"], ["add", "-t", "weight", "--chain", "weight_std"]):
        assert "spelt by" in paramcli(edit[0], path, *edit[1:], code=3).err


@pytest.mark.parametrize(
    ("g", "dim"), [(G, 0), (G[:, None], 0), (G[None, :, None], 0), (G[:1], "none"), (G[:4], 1), (G[:4, None], 1)]
)
def test_norms_of_another_shape_fold_where_the_chain_is_said(paramcli, saved, g, dim):
    """[C] and [C, 1] are the norms that torch has as C x 1 x 1; unasked nothing is guessed."""
    path = saved({"c.weight_g": g, "c.weight_v": V})
    assert f"weight_norm:dim={dim} fits" in baked(paramcli, path, code=3)
    got = baked(paramcli, path, "--chain", f"weight_norm:dim={dim}")["c.weight"]
    axes = [axis for axis in range(3) if axis != dim]
    shape = [1 if axis in axes else V.shape[axis] for axis in range(3)]
    want = g.double().reshape(shape) * V.double() / V.double().pow(2).sum(axes, keepdim=True).sqrt()
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "chain", ["spectral_norm", "soft_spectral_norm:coeff=0.5", "soft_spectral_norm:coeff=100:eps=1e-5"]
)
@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 1, 1)])
def test_a_sigma_beside_u_and_v_is_no_spectral_norm_of_torch(paramcli, saved, chain, shape):
    """W / (max(1, sigma / coeff) + eps) by hand; torch's law is refused, and so is a guess."""
    W = V[:, :, 0].reshape(shape)
    keys, sigma = triple(W)
    path = saved({**{f"fc.weight{suffix}": tensor for suffix, tensor in keys.items()}, "fc.weight_sigma": sigma[None]})
    assert "soft_spectral_norm:coeff=X fits" in baked(paramcli, path, code=3)
    assert "sigma" in paramcli("migrate", path, "--to", "new", code=3).err
    if chain == "spectral_norm":
        assert "fc.weight_sigma besides" in baked(paramcli, path, "--chain", chain, code=3)
        return
    divisor = sigma / 0.5 if "0.5" in chain else 1 + 1e-5
    torch.testing.assert_close(baked(paramcli, path, "--chain", chain)["fc.weight"], W / divisor, rtol=2e-6, atol=0)


@pytest.mark.parametrize("factor", [1.0, 1.01, float("nan")])
def test_a_value_kept_beside_u_and_v_is_theirs_or_refused(paramcli, saved, factor):
    """Where weight is W / (u^T W v) it is taken for that; else nothing says which of the two is meant."""
    keys, sigma = triple(V[:, :, 0])
    value = V[:, :, 0] / sigma
    path = saved({**{f"l.weight{suffix}": tensor for suffix, tensor in keys.items()}, "l.weight": factor * value})
    if factor == 1:
        got = baked(paramcli, path)
        assert set(got) == {"l.weight"}
        torch.testing.assert_close(got["l.weight"], value, rtol=1e-6, atol=1e-7)
        paramcli("migrate", path, "--to", "new", "-o", path.with_name("m.safetensors"))
        assert {key.rpartition(".")[2] for key in load_file(path.with_name("m.safetensors"))} == {
            "original",
            "_u",
            "_v",
        }
    else:
        said = "l.weight has 24 NaN" if factor != factor else "which of the two is the weight"
        assert said in baked(paramcli, path, code=3)


@pytest.mark.parametrize("word", ["scale", "mask", "step"])
def test_a_key_that_no_spelling_explains_makes_a_group_ask(paramcli, saved, word):
    """Baked where --chain says what it is, and the other key stays."""
    path = saved({"c.weight_g": G.view(6, 1, 1), "c.weight_v": V, f"c.weight_{word}": torch.ones(2)})
    assert f"c.weight_{word}, which is no part of one" in baked(paramcli, path, code=3)
    got = baked(paramcli, path, "--chain", "weight_norm:dim=0", "-t", "c.weight")
    assert set(got) == {"c.weight", f"c.weight_{word}"}
    assert torch.equal(got["c.weight"], torch._weight_norm(V, G.view(6, 1, 1), 0))


@pytest.mark.parametrize("base", ["blocks.0.att.x", "time_maa", "kernel"])
def test_parameters_that_only_end_alike_stay_two(paramcli, saved, base):
    """RWKV's g and v, and a layer of one's own; their exact name with --chain reads them all the same."""
    tensors = {f"{base}_g": G.view(6, 1, 1), f"{base}_v": V, "o.weight_g": G[:, None], "o.weight_v": V[:, :, 0]}
    path = saved(tensors)
    got = baked(paramcli, path)
    assert got.keys() == {f"{base}_g", f"{base}_v", "o.weight"} and torch.equal(got[f"{base}_v"], V)
    other = saved({**tensors, f"{base}_v": 3 * V}, "other.safetensors")
    assert paramcli("diff", path, other, code=1).code == 1
    got = baked(paramcli, path, "-t", base, "--chain", "weight_norm:dim=0")
    assert torch.equal(got[base], torch._weight_norm(V, G.view(6, 1, 1), 0)) and "o.weight_g" in got
    assert paramcli("verify", path, "-t", base, "--chain", "weight_norm:dim=0").code == 0


def test_half_of_what_two_spellings_have_names_both(paramcli, saved):
    """A weight_orig alone is half a pruned tensor or half a spectral norm."""
    said = baked(paramcli, saved({"c.weight_orig": V}), code=3)
    assert "without c.weight_mask it is no pruning" in said
    assert "without c.weight_u, c.weight_v it is no spectral norm" in said


def test_a_weight_beside_its_g_and_v_is_there_twice(paramcli, saved):
    """Nothing is skipped in silence: edits refuse it, convert carries all three, diff calls no such files equal."""
    tensors = {"c.weight": V, "c.weight_g": G.view(6, 1, 1), "c.weight_v": V}
    path = saved(tensors)
    assert "c.weight is in the file twice" in baked(paramcli, path, code=3)
    paramcli("convert", path, "-o", path.with_name("copy.safetensors"), "--check")
    assert load_file(path.with_name("copy.safetensors")).keys() == tensors.keys()
    other = saved({**tensors, "c.weight_g": 2 * G.view(6, 1, 1)}, "other.safetensors")
    assert paramcli("diff", path, other, code=None).code in (1, 3)


def test_new_names_that_no_longer_spell_a_tensor_are_refused(paramcli, saved):
    """Two plain tensors would be read where there was a weight norm; other names are given."""
    new = {"m.parametrizations.weight.original0": G[:, None], "m.parametrizations.weight.original1": V[:, :, 0]}
    path = saved({**new, "c.weight_g": G.view(6, 1, 1), "c.weight_v": V})
    out = path.with_name("out.safetensors")
    said = paramcli("convert", path, "--strip-prefix", "m.parametrizations", "-o", out, code=2).err
    assert "m.weight" in said and not out.exists()
    paramcli("convert", path, "--rename", "c=d", "--rename", "m=n", "-o", out)
    assert load_file(out).keys() == {key.replace("m.", "n.", 1) for key in new} | {"d.weight_g", "d.weight_v"}


def test_spellings_inside_each_other_end_somewhere(paramcli, saved):
    """A name of four hundred suffixes is no tensor of a tensor of a tensor: it costs a few passes, and reads."""
    keys = {f"a.weight{'_orig' * depth}_mask": torch.ones(2) for depth in range(400)}
    path = saved({**keys, f"a.weight{'_orig' * 400}": torch.ones(2)})
    shown = paramcli("inspect", path, "--json").json["tensors"]
    assert sorted(key for tensor in shown for key in tensor["keys"]) == sorted(load_file(path))
    assert paramcli("remove", path, "-o", path.with_name("out.safetensors"), code=None).code in (0, 3)
