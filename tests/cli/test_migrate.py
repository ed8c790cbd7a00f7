"""Dialects of weight norm, spectral norm and pruning, written by stock torch: migrate both ways, bake as torch does."""

import os
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

warnings.filterwarnings("ignore", category=FutureWarning)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def real_weights(fixtures) -> dict[str, torch.Tensor]:
    """Trained kernels of two shapes: a convolution (not square when flattened) and an LSTM's square recurrent block."""
    pnet = torch.load(fixtures / "facenet_pnet.pt", weights_only=True)
    lstm = torch.load(fixtures / "beatnet_model_1_weights.pt", weights_only=True)
    return {"conv": pnet["conv3.weight"].contiguous(), "fc": lstm["lstm.weight_hh_l0"][:150].clone()}


def layers(fixtures) -> nn.ModuleDict:
    weights = real_weights(fixtures)
    model = nn.ModuleDict(
        {"conv": nn.Conv2d(16, 32, 3), "fc": nn.Linear(150, 150), "up": nn.ConvTranspose2d(32, 16, 3)}
    )
    torch.manual_seed(0)
    for name, weight in weights.items():
        model[name].weight.data.copy_(weight)
    model["up"].weight.data.copy_(weights["conv"])
    return model


def trained(model: nn.ModuleDict) -> nn.ModuleDict:
    """A few forward passes in training mode, so that u and v are what the power method made them."""
    model.train()
    for _ in range(3):
        model["conv"](torch.ones(1, 16, 3, 3)), model["fc"](torch.ones(1, 150)), model["up"](torch.ones(1, 32, 2, 2))
    return model.eval()


def old_spectral(fixtures) -> nn.ModuleDict:
    model = layers(fixtures)
    for layer in model.values():
        nn.utils.spectral_norm(layer)
    return trained(model)


def removed(model: nn.ModuleDict, how) -> dict[str, torch.Tensor]:
    """torch's own bake in eval mode."""
    model.eval()
    for layer in model.values():
        how(layer)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def dialect(name: str, fixtures):
    """(state dict as the dialect spells it, state dict after torch's own removal)."""
    model = old_spectral(fixtures)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    if name == "v0":
        # What torch 0.4 saved: the value under `weight`, orig and u, and no v.
        for layer in model:
            state[f"{layer}.weight"] = model[layer].weight.detach().clone()
            del state[f"{layer}.weight_v"]
    elif name == "bar":
        state = {k.replace("weight_orig", "weight_bar"): v for k, v in state.items()}
    elif name == "new":
        live = layers(fixtures)
        for key in live:
            parametrizations.spectral_norm(live[key])
        live = trained(live)
        return dict(live.state_dict()), removed(live, lambda m: parametrize.remove_parametrizations(m, "weight"))
    return state, removed(model, nn.utils.remove_spectral_norm)


@pytest.mark.parametrize("name", ["v1", "v0", "bar", "new"])
def test_spectral_norm_bakes_as_torch_removes(name, fixtures, tmp_path, paramcli):
    """In four dialects the bake is torch's own removal in eval mode."""
    state, wanted = dialect(name, fixtures)
    torch.save(state, tmp_path / "s.pt")
    paramcli("remove", tmp_path / "s.pt", "-o", tmp_path / "b.safetensors")
    got = load_file(tmp_path / "b.safetensors")
    assert set(got) == set(wanted)
    for key in wanted:
        if name == "v0":
            # v is solved for, so the last bits differ.
            torch.testing.assert_close(got[key], wanted[key], rtol=2e-5, atol=1e-6)
        else:
            assert torch.equal(got[key], wanted[key]), key


@pytest.mark.parametrize("name", ["v1", "v0", "bar"])
def test_spectral_norm_migrates_to_the_new_spelling(name, fixtures, tmp_path, paramcli):
    """The migrated file loads strictly into a model of the new API, and that computes what the old one did."""
    state, wanted = dialect(name, fixtures)
    torch.save(state, tmp_path / "s.pt")
    paramcli("migrate", tmp_path / "s.pt", "--to", "new", "-o", tmp_path / "n.safetensors")
    live = layers(fixtures)
    for layer in live.values():
        parametrizations.spectral_norm(layer)
    live.load_state_dict(load_file(tmp_path / "n.safetensors"), strict=True)
    live.eval()
    for key in live:
        torch.testing.assert_close(live[key].weight, wanted[f"{key}.weight"], rtol=2e-5, atol=1e-6)


def test_spectral_norm_goes_old_new_old_byte_for_byte(fixtures, tmp_path, paramcli):
    """v1 to new and back is the same state dict."""
    state, _ = dialect("v1", fixtures)
    torch.save(state, tmp_path / "s.pt")
    paramcli("migrate", tmp_path / "s.pt", "--to", "new", "-o", tmp_path / "n.safetensors")
    paramcli("migrate", tmp_path / "n.safetensors", "--to", "old", "-o", tmp_path / "o.safetensors")
    got = load_file(tmp_path / "o.safetensors")
    assert set(got) == set(state) and all(torch.equal(got[k], state[k]) for k in state)
    old = layers(fixtures)
    for layer in old.values():
        nn.utils.spectral_norm(layer)
    old.load_state_dict(got, strict=True)


@pytest.mark.parametrize("name", ["v1", "v0", "bar", "new"])
def test_every_dialect_reaches_old_code(name, fixtures, tmp_path, paramcli):
    """By way of the new spelling each becomes what torch's spectral_norm hook loads strictly, its stored data byte for
    byte.
    """
    state, wanted = dialect(name, fixtures)
    torch.save(state, tmp_path / "s.pt")
    source = tmp_path / "s.pt"
    if name != "new":
        paramcli("migrate", source, "--to", "new", "-o", tmp_path / "n.safetensors")
        source = tmp_path / "n.safetensors"
    paramcli("migrate", source, "--to", "old", "-o", tmp_path / "o.safetensors")
    got = load_file(tmp_path / "o.safetensors")
    old = layers(fixtures)
    for layer in old.values():
        nn.utils.spectral_norm(layer)
    old.load_state_dict(got, strict=True)
    old.eval()
    for key in old:
        nn.utils.remove_spectral_norm(old[key])
        torch.testing.assert_close(old[key].weight, wanted[f"{key}.weight"], rtol=2e-5, atol=1e-6)
        for suffix, theirs in (("_orig", {"bar": "_bar"}.get(name, "_orig")), ("_u", "_u"), ("_v", "_v")):
            stored = (
                f"{key}.weight{theirs}"
                if name != "new"
                else f"{key}.parametrizations.weight.{ {'_orig': 'original', '_u': '0._u', '_v': '0._v'}[suffix] }"
            )
            if stored in state:
                assert torch.equal(got[f"{key}.weight{suffix}"], state[stored]), stored


def pruned(fixtures) -> nn.ModuleDict:
    model = layers(fixtures)
    prune.l1_unstructured(model["conv"], "weight", amount=0.4)
    prune.random_structured(model["fc"], "weight", amount=0.3, dim=0)
    prune.random_unstructured(model["fc"], "bias", amount=10)
    return model


def test_pruning_bakes_and_migrates(fixtures, tmp_path, paramcli):
    """Both spellings bake to torch's prune.remove, weights and biases; old -> new -> old keeps every byte."""
    model = pruned(fixtures)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "p.pt")
    for layer, tensor in (("conv", "weight"), ("fc", "weight"), ("fc", "bias")):
        prune.remove(model[layer], tensor)
    wanted = model.state_dict()
    paramcli("migrate", tmp_path / "p.pt", "--to", "new", "-o", tmp_path / "n.safetensors")
    assert "fc.parametrizations.bias.0.mask" in load_file(tmp_path / "n.safetensors")
    for source in ("p.pt", "n.safetensors"):
        paramcli("verify", tmp_path / source)
        paramcli("remove", tmp_path / source, "-f", "-o", tmp_path / "b.safetensors")
        got = load_file(tmp_path / "b.safetensors")
        assert set(got) == set(wanted) and all(torch.equal(got[k], wanted[k]) for k in wanted)
    paramcli("migrate", tmp_path / "n.safetensors", "--to", "old", "-o", tmp_path / "o.safetensors")
    back = load_file(tmp_path / "o.safetensors")
    assert set(back) == set(state) and all(torch.equal(back[k], state[k]) for k in state)


@pytest.mark.parametrize("dim", [0, 1, 2, 3, None])
def test_weight_norm_of_every_dim(dim, fixtures, tmp_path, paramcli):
    """Old and new spellings, negative g included, bake bit for bit as torch removes; the keys alone decide the dim."""
    model = nn.Sequential(nn.Conv2d(16, 32, 3))
    model[0].weight.data.copy_(real_weights(fixtures)["conv"])
    nn.utils.weight_norm(model[0], dim=dim)
    model[0].weight_g.data.mul_(-1)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    nn.utils.remove_weight_norm(model[0])
    paramcli("migrate", tmp_path / "w.pt", "--to", "new", "-o", tmp_path / "n.safetensors")
    for source in ("w.pt", "n.safetensors"):
        paramcli("remove", tmp_path / source, "-f", "-o", tmp_path / "b.safetensors")
        assert torch.equal(load_file(tmp_path / "b.safetensors")["0.weight"], model[0].weight)


def test_add_writes_the_old_spelling_on_request(fc_checkpoint, tmp_path, paramcli):
    """--spelling old gives weight_g and weight_v, which old code loads strictly."""
    paramcli(
        "add",
        fc_checkpoint,
        "-t",
        "conv.weight",
        "--chain",
        "weight_norm",
        "--spelling",
        "old",
        "-o",
        tmp_path / "o.safetensors",
    )
    conv = nn.ModuleDict({"fc": nn.Linear(16, 16), "out": nn.Linear(16, 4), "conv": nn.Conv2d(3, 8, 3)})
    nn.utils.weight_norm(conv["conv"])
    conv.load_state_dict(load_file(tmp_path / "o.safetensors"), strict=True)
    conv["conv"](torch.ones(1, 3, 3, 3))  # the old hook computes the weight when it runs
    torch.testing.assert_close(conv["conv"].weight, torch.load(fc_checkpoint, weights_only=True)["conv.weight"])
    paramcli("verify", tmp_path / "o.safetensors")


@pytest.mark.parametrize("chain", ["skew", "kronecker:p=2:q=2", "rank_one", "toeplitz_compact", "sigma_reparam"])
def test_only_what_was_before_parametrize_has_an_old_spelling(chain, fc_checkpoint, paramcli):
    """Two originals of another parametrization are no weight_g and weight_v, which old code would read as a norm."""
    told = paramcli("add", fc_checkpoint, "-t", "fc.weight", "--chain", chain, "--spelling", "old", code=2).err
    assert f"{chain} has no old spelling" in told


def test_zero_matches_is_an_error(fc_checkpoint, paramcli):
    """A plain file has nothing to migrate."""
    assert "nothing to migrate" in paramcli("migrate", fc_checkpoint, "--to", "new", code=3).err


def test_migrating_safetensors_never_imports_torch(fixtures, tmp_path):
    """Header rewrite and byte copies only."""
    import subprocess
    import sys

    from .test_startup import WITHOUT_TORCH

    command = [
        sys.executable,
        "-c",
        WITHOUT_TORCH,
        "migrate",
        str(fixtures / "sharded"),
        "--to",
        "old",
        "-o",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    back = [sys.executable, "-c", WITHOUT_TORCH, "convert", str(tmp_path / "o"), "-o", str(tmp_path / "m.safetensors")]
    assert subprocess.run(back, capture_output=True).returncode == 0
    assert "fc.weight_g" in load_file(tmp_path / "m.safetensors")


def test_zero_rows_are_named(tmp_path, paramcli):
    """A stored direction of length zero has no weight: which tensor, and which slice."""
    torch.save(
        {"c.weight_g": torch.ones(3, 1), "c.weight_v": torch.tensor([[1.0, 2], [0, 0], [3, 4]])}, tmp_path / "z.pt"
    )
    message = paramcli("remove", tmp_path / "z.pt", code=3).err
    assert "c.weight" in message and "slice 1" in message


def test_zero_rows_of_a_plain_weight_are_named(tmp_path, paramcli):
    """add refuses what has no direction; raw writes what torch writes and says what its value is."""
    torch.save({"c.weight": torch.tensor([[1.0, 2], [0, 0], [3, 4]])}, tmp_path / "z.pt")
    add = ("add", tmp_path / "z.pt", "-t", "c.weight", "--chain", "weight_norm")
    for spelling in ("new", "old"):
        message = paramcli(*add, "--spelling", spelling, code=3).err
        assert "c.weight" in message and "slice 1 of dimension 0 is zero" in message
    assert "c.weight: its value is NaN" in paramcli(*add, "--init", "raw").err


@pytest.mark.parametrize(
    "chain",
    [
        "weight_norm",
        "weight_norm:dim=1",
        "weight_norm:dim=none",
        "spectral_norm",
        "spectral_norm:dim=1",
        "prune_l1:amount=0.3",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_add_spells_the_old_way_old_code_loads(chain, dtype, tmp_path, paramcli):
    """torch's hooks load it strictly and compute the weight that the bake of the same file gives."""
    torch.manual_seed(0)
    conv = nn.Conv1d(4, 6, 3, bias=False, dtype=dtype)
    torch.save(conv.state_dict(), tmp_path / "c.pt")
    paramcli(
        "add",
        tmp_path / "c.pt",
        "-t",
        "weight",
        "--chain",
        chain,
        "--spelling",
        "old",
        "-o",
        tmp_path / "o.safetensors",
    )
    paramcli("verify", tmp_path / "o.safetensors")
    paramcli("remove", tmp_path / "o.safetensors", "-o", tmp_path / "b.safetensors")
    name, _, dim = chain.partition(":dim=")
    if name == "weight_norm":
        nn.utils.weight_norm(conv, dim={"": 0, "none": None}.get(dim, 1))
    elif name == "spectral_norm":
        nn.utils.spectral_norm(conv, dim=int(dim or 0))
    else:
        prune.identity(conv, "weight")
    conv.load_state_dict(load_file(tmp_path / "o.safetensors"), strict=True)
    conv.eval()
    if name == "weight_norm":
        nn.utils.remove_weight_norm(conv)
    elif name == "spectral_norm":
        nn.utils.remove_spectral_norm(conv)
    else:
        prune.remove(conv, "weight")
    baked = load_file(tmp_path / "b.safetensors")["weight"]
    # Half types are computed wider and rounded once; torch computes in them.
    tolerance = dict(rtol=0, atol=0) if dtype != torch.bfloat16 else dict(rtol=2e-2, atol=1e-3)
    torch.testing.assert_close(baked, conv.weight.detach(), **tolerance)


@pytest.mark.parametrize("shards", [False, True])
def test_untouched_bytes_keep_their_place_in_a_page(shards, tmp_path, paramcli, monkeypatch):
    """Whole pages are asked for page by page, which file systems that share blocks need; and back is the
    file it was.
    """
    from paramcli.checkpoint.read.open import open_checkpoint

    state = {
        f"l{n}.weight_{part}": torch.rand((400, 1) if part == "g" else (400, 900)) for n in range(2) for part in "gv"
    }
    save_file(state, tmp_path / "a.safetensors", {"format": "pt"})
    before, new, back = tmp_path / "a.safetensors", tmp_path / "new.safetensors", tmp_path / "back.safetensors"
    if shards:
        before, new, back = tmp_path / "a", tmp_path / "new", tmp_path / "back"
        paramcli("convert", tmp_path / "a.safetensors", "-o", before, "--max-shard-size", "1442KB")
    calls, real = [], os.copy_file_range
    monkeypatch.setattr(os, "copy_file_range", lambda *call: calls.append(call[2:]) or real(*call))
    paramcli("migrate", before, "--to", "new", "-o", new)
    assert sum(size for size, *_ in calls) == sum(t.nbytes for t in state.values())
    whole = [(source, target) for size, source, target in calls if size >= 4096]
    assert len(whole) >= 1 + shards and all(source % 4096 == target % 4096 == 0 for source, target in whole)
    with open_checkpoint(new) as got:
        for name, value in state.items():
            key = name.replace("weight_g", "parametrizations.weight.original0").replace(
                "weight_v", "parametrizations.weight.original1"
            )
            assert torch.equal(got.read(key), value)
    paramcli("migrate", new, "--to", "old", "-o", back)
    for path in [before, *before.rglob("*.safetensors")] if shards else [before]:
        if path.is_file():
            assert (back / path.name if shards else back).read_bytes() == path.read_bytes()
