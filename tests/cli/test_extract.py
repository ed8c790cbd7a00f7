"""extract: planted changes come back, what is lost is the least there can be, and `merge` gives the tuned model again.

`merge` is held to PEFT's own merges in test_merge_families.py, and PEFT itself loads what is written in
test_extract_live.py.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations

import paramcli as library


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def base_tensors():
    """Layers of which two have names that begin alike, an embedding, a norm, convolutions, biases."""
    sizes = {
        "embed_tokens.weight": (30, 16),
        "layers.1.up.weight": (24, 16),
        "layers.1.up.bias": (24,),
        "layers.11.up.weight": (24, 16),
        "layers.1.down.weight": (16, 24),
        "layers.1.norm.weight": (16,),
        "conv.weight": (12, 8, 3, 3),
        "conv1.weight": (8, 12, 5),
        "head.weight": (30, 16),
    }
    return {name: random(*shape, seed=i) for i, (name, shape) in enumerate(sizes.items())}


def low(T, rank, seed=0, size=0.1):
    """A change of this rank, whose singular values are alike."""
    flat = T.flatten(1)
    U, V = (torch.linalg.qr(random(n, rank, seed=seed + k))[0] for k, n in enumerate(flat.shape))
    return size * (U @ V.T).reshape(T.shape)


RANKS = {
    "layers.1.up.weight": 4,
    "layers.11.up.weight": 2,
    "layers.1.down.weight": 4,
    "conv.weight": 3,
    "conv1.weight": 2,
}


@pytest.fixture
def pair(tmp_path):
    """(tuned, base): changes of known ranks; the embedding, the norm and a bias change too."""
    before = base_tensors()
    after = {name: T + low(T, RANKS[name], seed=50) if name in RANKS else T.clone() for name, T in before.items()}
    for name in ("embed_tokens.weight", "layers.1.norm.weight", "layers.1.up.bias"):
        after[name] += 0.1 * random(*before[name].shape, seed=9)
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    return tmp_path / "tuned.safetensors", tmp_path / "base.safetensors"


def require_same(got, want, eps=2e-6):
    assert got.keys() == want.keys()
    for name, T in want.items():
        assert (got[name].double() - T.double()).norm() <= eps * T.double().norm(), name


@pytest.mark.parametrize("how", [("--max-error", 1e-4), ("--energy", 0.9999)])
def test_planted_changes_come_back(how, pair, tmp_path, paramcli):
    """Each with its own rank, found by either limit; `merge` gives the tuned model, and equal tensors are left out."""
    tuned, base = pair
    said = paramcli("extract", tuned, "--base", base, *how, "-o", tmp_path / "a", "--json").json
    assert {one["tensor"]: one["rank"] for one in said["tensors"] if one["rank"]} == RANKS
    assert said["unchanged"] == 1
    paramcli("merge", base, "--adapter", tmp_path / "a", "-o", tmp_path / "merged.safetensors")
    require_same(load_file(tmp_path / "merged.safetensors"), load_file(tuned))
    before, after = load_file(base), load_file(tuned)
    for one in said["tensors"]:
        D, W = after[one["tensor"]].double() - before[one["tensor"]].double(), before[one["tensor"]].double()
        assert one["moved"] == pytest.approx((D.norm() / W.norm()).item(), rel=1e-6)
        # The tuned tensor is rounded to float32, and so are the factors.
        assert one["lost"] <= 2**-24 * (W + D).norm() / D.norm() + 2e-7


def test_a_folder_of_peft(pair, tmp_path, paramcli):
    """Every key and every line of the configuration, written out."""
    tuned, base = pair
    paramcli("extract", tuned, "--base", base, "--max-error", 1e-4, "-o", tmp_path / "a")
    found, start = load_file(tmp_path / "a" / "adapter_model.safetensors"), "base_model.model."
    factors = {
        "layers.1.up": ((4, 16), (24, 4)),
        "layers.11.up": ((2, 16), (24, 2)),
        "layers.1.down": ((4, 24), (16, 4)),
        "conv": ((3, 8, 3, 3), (12, 3, 1, 1)),
        "conv1": ((2, 12, 5), (8, 2, 1)),
    }
    shapes = {f"{start}{m}.lora_{x}.weight": s for m, ab in factors.items() for x, s in zip("AB", ab, strict=True)}
    shapes[f"{start}embed_tokens.weight"] = (30, 16)
    shapes[f"{start}layers.1.norm.weight"] = (16,)
    shapes[f"{start}layers.1.up.base_layer.bias"] = (24,)
    assert {key: tuple(T.shape) for key, T in found.items()} == shapes
    assert {T.dtype for T in found.values()} == {torch.float32}
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    patterns = {"conv": 3, "layers\\.1\\.down": 4, "layers\\.1\\.up": 4}
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text()) == {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": 2,
        "lora_alpha": 2,
        "lora_dropout": 0.0,
        "rank_pattern": patterns,
        "alpha_pattern": patterns,
        "target_modules": ["conv", "conv1", "layers.1.down", "layers.1.up", "layers.11.up"],
        "modules_to_save": ["embed_tokens", "layers.1.norm"],
        "bias": "lora_only",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_path_that_is_the_end_of_another_means_itself(tmp_path, paramcli):
    """PEFT takes patterns for ends of paths: what is said of one layer is not said of another."""
    before = {name: random(24, 16, seed=i) for i, name in enumerate(("up.weight", "a.up.weight", "b.a.up.weight"))}
    changed = {"up.weight": 2, "a.up.weight": 3, "b.a.up.weight": 3}
    save_file(before, tmp_path / "base.safetensors")
    for number, names in enumerate((["up.weight"], list(changed), ["up.weight", "b.a.up.weight"])):
        after = {name: T + low(T, changed[name]) if name in names else T for name, T in before.items()}
        save_file(after, tmp_path / "tuned.safetensors")
        out, merged = tmp_path / f"{number}", tmp_path / f"{number}.safetensors"
        paths = tmp_path / "tuned.safetensors", "--base", tmp_path / "base.safetensors"
        paramcli("extract", *paths, "--max-error", 1e-4, "-o", out)
        paramcli("merge", paths[2], "--adapter", out, "-o", merged)
        require_same(load_file(merged), after)
        targets = json.loads((out / "adapter_config.json").read_text())["target_modules"]
        assert targets == ("up", ["a.up", "b.a.up", "up"], r"b\.a\.up|up")[number]


def test_the_factors_share_the_singular_values(pair, tmp_path, paramcli):
    """A = S^1/2 V^T, B = U S^1/2 of the change, by torch's own SVD."""
    tuned, base = pair
    save_file({"a.weight": random(24, 16)}, base)
    save_file({"a.weight": random(24, 16) + random(24, 16, seed=1)}, tuned)
    paramcli("extract", tuned, "--base", base, "--rank", 2, "-o", tmp_path / "a")
    found = load_file(tmp_path / "a" / "adapter_model.safetensors")
    A, B = (found[f"base_model.model.a.lora_{x}.weight"].double() for x in "AB")
    S = torch.linalg.svdvals(load_file(tuned)["a.weight"].double() - load_file(base)["a.weight"].double())[:2]
    torch.testing.assert_close(A @ A.T, torch.diag(S), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(B.T @ B, torch.diag(S), rtol=1e-5, atol=1e-6)


def test_what_is_lost_is_the_least(tmp_path, paramcli):
    """Of a change of full rank, by torch's SVD of it (Eckart and Young); an energy takes the least rank that has it."""
    before = {"a.weight": random(40, 32)}
    after = {"a.weight": before["a.weight"] + 0.1 * random(40, 32, seed=1)}
    tuned, base = tmp_path / "tuned.safetensors", tmp_path / "base.safetensors"
    save_file(before, base)
    save_file(after, tuned)
    S = torch.linalg.svdvals(after["a.weight"].double() - before["a.weight"].double())
    left = [(S[r:].square().sum() / S.square().sum()).item() for r in range(len(S))]
    for rank in (1, 5, 17):
        [one] = library.extract(tuned, base, rank=rank, output=tmp_path / f"r{rank}").tensors
        assert one.rank == rank and one.lost == pytest.approx(left[rank] ** 0.5, rel=1e-5)
    [one] = library.extract(tuned, base, energy=0.6, output=tmp_path / "e").tensors
    assert one.rank == next(r for r in range(len(S)) if left[r] <= 0.4) and one.lost**2 <= 0.4
    [one] = library.extract(tuned, base, max_error=0.01, output=tmp_path / "w").tensors
    assert (one.rank, one.lost, one.why) == (None, 0, "factors would be no smaller")


@pytest.mark.parametrize("form", ["shards", "torch", "parametrized"])
def test_either_side_may_be_of_any_form(form, pair, tmp_path, paramcli):
    """Effective weights are compared: shards, a torch file with more around it, weight norm inside."""
    tuned, base = pair
    want, other = load_file(tuned), tmp_path / "other.pt"
    if form == "shards":
        other = tmp_path / "other"
        library.convert(tuned, other, max_shard_size="3KB")
    elif form == "torch":
        torch.save({"epoch": 3, "state_dict": want}, other)
    else:
        layer = nn.Linear(16, 24)
        layer.weight.data, layer.bias.data = want["layers.1.up.weight"], want["layers.1.up.bias"]
        normed = parametrizations.weight_norm(layer).state_dict()
        rest = {name: T for name, T in want.items() if not name.startswith("layers.1.up")}
        torch.save({**rest, **{f"layers.1.up.{name}": T for name, T in normed.items()}}, other)
    for one, two in ((other, base), (base, other)):
        out = tmp_path / f"a{one == base}"
        said = paramcli("extract", one, "--base", two, "--max-error", 1e-4, "-o", out, "--json").json
        assert {tensor["tensor"]: tensor["rank"] for tensor in said["tensors"] if tensor["rank"]} == RANKS
    paramcli("merge", base, "--adapter", tmp_path / "aFalse", "-o", tmp_path / "merged.safetensors")
    require_same(load_file(tmp_path / "merged.safetensors"), want)


def test_half_precision_is_compared_in_float32(tmp_path, paramcli):
    """Rounding the tuned weight makes its change one of full rank: what a rank loses of it is told, and the merge is
    off by no more than that and its own rounding.
    """
    W = random(64, 48)
    before = {"a.weight": W.bfloat16()}
    after = {"a.weight": (before["a.weight"].float() + low(W, 4, size=4.0)).bfloat16()}
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    out, merged = tmp_path / "a", tmp_path / "m.safetensors"
    [one] = library.extract(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", rank=4, output=out).tensors
    D = after["a.weight"].double() - before["a.weight"].double()
    S = torch.linalg.svdvals(D)
    assert one.lost == pytest.approx((S[4:].norm() / S.norm()).item(), rel=1e-5) and one.lost > 1e-3
    library.merge(tmp_path / "base.safetensors", str(out), output=merged)
    got, want = load_file(merged)["a.weight"], after["a.weight"]
    error = (got.double() - want.double()).norm()
    assert error <= one.lost * D.norm() + torch.finfo(torch.bfloat16).eps / 2 * want.double().norm()
    assert (got == want).double().mean() > 0.8


def test_float64_stays_float64(tmp_path):
    """Factors of float64 checkpoints are float64, and lose nothing of a change of their rank."""
    before = {"a.weight": random(40, 32).double()}
    after = {"a.weight": before["a.weight"] + low(before["a.weight"], 3).double()}
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    paths = tmp_path / "tuned.safetensors", tmp_path / "base.safetensors"
    [one] = library.extract(*paths, max_error=1e-6, output=tmp_path / "a").tensors
    assert one.lost < 1e-6 and one.rank == 3
    found = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {T.dtype for T in found.values()} == {torch.float64}
    library.extract(*paths, rank=3, dtype="bfloat16", output=tmp_path / "b")
    assert {T.dtype for T in load_file(tmp_path / "b" / "adapter_model.safetensors").values()} == {torch.bfloat16}


def test_how_a_weight_is_stored_its_bias_or_the_model_tells(tmp_path, paramcli):
    """GPT-2's layers are (in, out): by the length of a bias, or by the configuration, which settles square ones too."""
    before = {
        "h.attn.c_attn.weight": random(16, 48),
        "h.attn.c_attn.bias": random(48),
        "h.attn.c_proj.weight": random(16, 16, seed=1),
        "h.attn.c_proj.bias": random(16),
    }
    after = {name: T + low(T, 2) if T.ndim == 2 else T for name, T in before.items()}
    base, tuned = tmp_path / "model", tmp_path / "tuned.safetensors"
    base.mkdir()
    save_file(before, base / "model.safetensors")
    save_file(after, tuned)
    say = lambda out: paramcli("extract", tuned, "--base", base, "--rank", 2, "-o", out, "--json").json["tensors"]  # noqa: E731
    assert [one["why"] for one in say(tmp_path / "a")] == [None, "(out, in) or (in, out): nothing tells"]
    found = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert found["base_model.model.h.attn.c_attn.lora_A.weight"].shape == (2, 16)
    (base / "config.json").write_text('{"model_type": "gpt2"}')
    assert [one["why"] for one in say(tmp_path / "b")] == [None, None]
    assert json.loads((tmp_path / "b" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    for out in "ab":
        paramcli("merge", base, "--adapter", tmp_path / out, "-o", tmp_path / f"{out}.safetensors")
        require_same(load_file(tmp_path / f"{out}.safetensors"), after)


def test_what_is_no_layer_by_name_or_shape_goes_whole(tmp_path, paramcli):
    """And its like, which is one, does not."""
    whole = {
        "mlp.gate.weight": ((4, 32), "a router"),
        "h.wte.weight": ((24, 32), "an embedding"),
        "tok_emb.weight": ((24, 32), "an embedding"),
        "relative_attention_bias.weight": ((24, 32), "an embedding"),
        "attn.out_proj.weight": ((24, 24), "in an attention that PEFT adapts as one"),
        "attn.in_proj_weight": ((72, 24), "no weight of a module"),
        "up.weight": ((24, 12, 5), "a transposed convolution"),
        "deep.weight": ((24, 1, 9), "a convolution of single channels"),
        "a b.weight": ((24, 32), "a name that PEFT takes for a pattern"),
    }
    layers = {"att.gate.weight": (24, 32), "mlp.gate_proj.weight": (24, 32), "down.weight": (24, 12, 5)}
    shapes = {**{name: shape for name, (shape, _) in whole.items()}, **layers, "up.bias": (12,), "down.bias": (24,)}
    before = {name: random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    after = {name: T + low(T, 1) if T.ndim > 1 else T for name, T in before.items()}
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    paths = tmp_path / "tuned.safetensors", "--base", tmp_path / "base.safetensors"
    said = paramcli("extract", *paths, "--rank", 1, "-o", tmp_path / "a", "--json").json
    want = {**{name: why for name, (_, why) in whole.items()}, **dict.fromkeys(layers)}
    assert {one["tensor"]: one["why"] for one in said["tensors"]} == want
    paramcli("merge", paths[2], "--adapter", tmp_path / "a", "-o", tmp_path / "merged.safetensors")
    require_same(load_file(tmp_path / "merged.safetensors"), after)


def test_more_rows_go_whole_and_are_told(tmp_path, paramcli):
    """Tokens that were added: the embedding as it is now, with what has to be done first."""
    before, after = base_tensors(), base_tensors()
    after["embed_tokens.weight"] = torch.cat([before["embed_tokens.weight"], random(2, 16)])
    after["layers.1.up.weight"] += low(before["layers.1.up.weight"], 2)
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    arguments = ("extract", tmp_path / "tuned.safetensors", "--base", tmp_path / "base.safetensors", "--rank", 2, "-o")
    said = paramcli(*arguments, tmp_path / "a", "--json")
    [one] = [one for one in said.json["tensors"] if one["rank"] is None]
    assert (one["tensor"], one["why"], one["moved"]) == ("embed_tokens.weight", "30x16 in the base", None)
    assert "has to be resized" in said.err and "next:" not in said.err
    found = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert torch.equal(found["base_model.model.embed_tokens.weight"], after["embed_tokens.weight"])
    error = paramcli(*arguments, tmp_path / "a.safetensors", "--spelling", "kohya", code=3).err
    assert "embed_tokens.weight is 32x16, in the base 30x16" in error


def test_so_many_paths_that_no_reader_takes_them_are_last_words(pair, tmp_path, paramcli, monkeypatch):
    """Where they name the same modules; else the adapter is refused, and nothing written."""
    from paramcli.spelling import written_peft

    monkeypatch.setattr(written_peft, "MAX_CONFIG", 480)
    before = {f"layers.{n}.up.weight": random(24, 16, seed=n) for n in range(12)}
    after = {name: T + low(T, 2) for name, T in before.items()}
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    paths = tmp_path / "tuned.safetensors", "--base", tmp_path / "base.safetensors", "--rank", 2, "-o"
    paramcli("extract", *paths, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"] == ["up"]
    save_file({**after, "layers.0.up.weight": before["layers.0.up.weight"]}, tmp_path / "tuned.safetensors")
    assert "is the limit of what can be read again" in paramcli("extract", *paths, tmp_path / "b", code=3).err
    assert not (tmp_path / "b").exists()


def test_what_peft_makes_of_experts_is_told(tmp_path, paramcli):
    """transformers 5 stacks experts that lie apart, which takes one rank, and renames Mixtral's router."""
    start = "layers.0.block_sparse_moe"
    before = {f"{start}.experts.{e}.w{k}.weight": random(24, 16, seed=k) for e in range(2) for k in (1, 2)}
    before[f"{start}.gate.weight"] = random(2, 16)
    for ranks, told in (((2, 2, 2, 2), False), ((2, 3, 2, 2), True), ((2, 0, 2, 2), True)):
        changes = zip(list(before)[:4], ranks, strict=True)
        after = {
            **before,
            **{name: before[name] + low(before[name], rank) if rank else before[name] for name, rank in changes},
        }
        after[f"{start}.gate.weight"] = before[f"{start}.gate.weight"] + 1
        save_file(before, tmp_path / "base.safetensors")
        save_file(after, tmp_path / "tuned.safetensors")
        paths = tmp_path / "tuned.safetensors", "--base", tmp_path / "base.safetensors"
        said = paramcli("extract", *paths, "--max-error", 1e-4, "-f", "-o", tmp_path / "a").err
        assert ("are stacked by PEFT under transformers 5" in said) == told
        assert f"PEFT leaves it out: {start}.gate.weight" in said


def test_a_kohya_file(pair, tmp_path, paramcli):
    """Every key, and W + up down, W + diff, by hand: the tuned model."""
    tuned, base = pair
    out = tmp_path / "a.safetensors"
    paramcli(
        "extract", tuned, "--base", base, "--max-error", 1e-4, "--spelling", "kohya", "--prefix", "lora_te_", "-o", out
    )
    found, before, want = load_file(out), load_file(base), load_file(tuned)
    keys = {
        f"lora_te_{m}.{x}"
        for m in ("layers_1_up", "layers_11_up", "layers_1_down", "conv", "conv1")
        for x in ("lora_up.weight", "lora_down.weight", "alpha")
    }
    assert found.keys() == {
        *keys,
        "lora_te_embed_tokens.diff",
        "lora_te_layers_1_norm.w_norm",
        "lora_te_layers_1_up.diff_b",
    }
    got = dict(before)
    for name, W in before.items():
        flat = "lora_te_" + name.rpartition(".")[0].replace(".", "_")
        if f"{flat}.alpha" in found and name.endswith("weight"):
            up, down = found[f"{flat}.lora_up.weight"], found[f"{flat}.lora_down.weight"]
            assert found[f"{flat}.alpha"].shape == () and found[f"{flat}.alpha"] == len(down) == RANKS[name]
            assert up.shape == (len(W), len(down), *[1] * (W.ndim - 2)) and down.shape[1:] == W.shape[1:]
            got[name] = W + (up.flatten(1) @ down.flatten(1)).reshape(W.shape)
    got["embed_tokens.weight"] = before["embed_tokens.weight"] + found["lora_te_embed_tokens.diff"]
    got["layers.1.norm.weight"] = before["layers.1.norm.weight"] + found["lora_te_layers_1_norm.w_norm"]
    got["layers.1.up.bias"] = before["layers.1.up.bias"] + found["lora_te_layers_1_up.diff_b"]
    require_same(got, want)
    paramcli("merge", base, "--adapter", out, "-o", tmp_path / "merged.safetensors")
    require_same(load_file(tmp_path / "merged.safetensors"), want)


def test_a_kohya_file_of_a_pipeline(tmp_path, paramcli):
    """Each name says of which model it is, and leaves out what the file has before it; `merge` finds them again."""
    names = {
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": "lora_unet_input_blocks_1_0_in_layers_2",
        "conditioner.embedders.0.transformer.text_model.fc1.weight": "lora_te1_text_model_fc1",
        "first_stage.fc.weight": "lora_te3_first_stage_fc",
    }
    before = {name: random(24, 16, seed=i) for i, name in enumerate(names)}
    after = {name: T + low(T, 2) for name, T in before.items()}
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    pair = tmp_path / "tuned.safetensors", "--base", tmp_path / "base.safetensors"
    out, merged = tmp_path / "a.safetensors", tmp_path / "m.safetensors"
    paramcli("extract", *pair, "--rank", 2, "--spelling", "kohya", "--prefix", "lora_te3_", "-o", out)
    ends = ("alpha", "lora_down.weight", "lora_up.weight")
    assert sorted(load_file(out)) == sorted(f"{name}.{end}" for name in names.values() for end in ends)
    paramcli("merge", pair[2], "--adapter", out, "-o", merged)
    require_same(load_file(merged), after)


def test_a_bias_alone_has_a_weight_that_does_not_change(tmp_path, paramcli):
    """LyCORIS knows a module by its weight's key; beside factors it leaves a bias out, and that is told."""
    before = {"a.weight": random(24, 16), "a.bias": random(24), "n.weight": random(9), "n.bias": random(9)}
    before |= {"b.weight": random(24, 16, seed=5), "b.bias": random(24, seed=5)}
    after = {name: T + 1 if name.endswith("bias") else T for name, T in before.items()}
    after["b.weight"] = before["b.weight"] + low(before["b.weight"], 2)
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    pair = tmp_path / "tuned.safetensors", "--base", tmp_path / "base.safetensors"
    out, merged = tmp_path / "a.safetensors", tmp_path / "m.safetensors"
    said = paramcli("extract", *pair, "--rank", 2, "--spelling", "kohya", "-o", out).err
    found = load_file(out)
    assert found.keys() == {
        *(f"lora_unet_a.{end}" for end in ("diff", "diff_b")),
        *(f"lora_unet_n.{end}" for end in ("w_norm", "b_norm")),
        *(f"lora_unet_b.{end}" for end in ("alpha", "lora_down.weight", "lora_up.weight", "diff_b")),
    }
    assert not found["lora_unet_a.diff"].any() and not found["lora_unet_n.w_norm"].any()
    assert "LyCORIS and sd-scripts leave out: b.bias" in said
    paramcli("merge", pair[2], "--adapter", out, "-o", merged)
    require_same(load_file(merged), after)


def test_what_is_asked_to_be_whole_is(pair, tmp_path, paramcli):
    """--whole, and -t for what is looked at."""
    tuned, base = pair
    arguments = ("extract", tuned, "--base", base, "--rank", 2, "-t", "layers.*", "--whole", "*.down.weight")
    said = paramcli(*arguments, "-o", tmp_path / "a", "--json").json
    assert {one["tensor"]: one["why"] for one in said["tensors"]} == {
        "layers.1.up.weight": None,
        "layers.1.up.bias": "no weight of a module",
        "layers.11.up.weight": None,
        "layers.1.down.weight": "asked for",
        "layers.1.norm.weight": "no matrix",
    }


def test_a_dry_run_reads_nothing(pair, tmp_path, paramcli):
    """What may change, and how it would be held; nothing is written."""
    tuned, base = pair
    there = sorted(tmp_path.iterdir())
    said = paramcli("extract", tuned, "--base", base, "--rank", 4, "-n")
    assert "dry run: would write" in said.err and sorted(tmp_path.iterdir()) == there
    rows = {line.split()[0]: line.split()[1] for line in said.out.splitlines()[1:]}
    assert rows["layers.1.up.weight"] == "4" and rows["embed_tokens.weight"] == "-" and len(rows) == len(base_tensors())
    assert " ? " in paramcli("extract", tuned, "--base", base, "--energy", 0.9, "-n").out


def test_the_same_bytes_each_time(pair, tmp_path, monkeypatch):
    """By a sketch too, which is drawn."""
    from paramcli.maths import nearest

    monkeypatch.setattr(nearest, "EXACT", 0)
    for spelling, name in (("peft", "a"), ("kohya", "k.safetensors")):
        outs = [tmp_path / f"{n}{name}" for n in range(2)]
        for out in outs:
            library.extract(*pair, rank=4, spelling=spelling, output=out)
        files = [sorted(out.iterdir()) if out.is_dir() else [out] for out in outs]
        assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


def test_large_tensors_are_compared_in_blocks(pair, tmp_path, monkeypatch):
    """With the same result; a value that is not finite, and damaged bytes, are found there too."""
    from paramcli.fitting import blocks, pairs

    tuned, base = pair
    whole = library.extract(tuned, base, rank=2, output=tmp_path / "whole")
    monkeypatch.setattr(pairs, "LARGE", 0)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 256)
    parts = library.extract(tuned, base, rank=2, output=tmp_path / "parts")
    assert [one.document() for one in parts.tensors] == [one.document() for one in whole.tensors]
    files = [sorted((tmp_path / name).iterdir()) for name in ("whole", "parts")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    tensors = load_file(tuned)
    tensors["embed_tokens.weight"][29, 15] = float("inf")
    save_file(tensors, tuned)
    with pytest.raises(library.InputRefused, match="the change has 1 infinite of 480"):
        library.extract(tuned, base, rank=2, output=tmp_path / "x")
    torch.save(load_file(base), tmp_path / "flipped.pt")
    data = bytearray((tmp_path / "flipped.pt").read_bytes())
    at = data.index(load_file(base)["embed_tokens.weight"].numpy().tobytes())
    data[at + 4 * 470] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    with pytest.raises(library.InputRefused) as error:
        library.extract(tmp_path / "flipped.pt", base, rank=2, output=tmp_path / "x")
    assert error.value.code == "damaged" and not (tmp_path / "x").exists()


MISTAKES = {
    "nothing asked": ((), 2, "extract needs one of"),
    "two limits": (("--rank", 4, "--energy", 0.5), 2, "not --rank and --energy"),
    "rank 0": (("--rank", 0), 2, "--rank 0: between 1 and"),
    "energy above 1": (("--energy", 1.5), 2, "a share between 0 and 1"),
    "an error of NaN": (("--max-error", "nan"), 2, "a share between 0 and 1"),
    "another spelling": (("--rank", 4, "--spelling", "civitai"), 2, "civitai"),
    "a file for peft": (("--rank", 4, "-o", "a.safetensors"), 2, "PEFT's adapters are a folder"),
    "a folder for kohya": (("--rank", 4, "-o", "a", "--spelling", "kohya"), 2, "one file of safetensors"),
    "no such tensor": (("--rank", 4, "-t", "layers.2.*"), 2, "no tensor matches"),
    "a prefix that nobody reads": (("--rank", 4, "--prefix", "my_"), 2, "my_"),
    "another dtype": (("--rank", 4, "--dtype", "float8"), 2, "float8"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, pair, tmp_path, paramcli, monkeypatch):
    """With its exit code, and nothing written."""
    monkeypatch.chdir(tmp_path)
    there = sorted(tmp_path.iterdir())
    options, code, said = MISTAKES[mistake]
    error = paramcli("extract", pair[0], "--base", pair[1], *options, code=code).err
    assert error.startswith("error: ") and said in error and sorted(tmp_path.iterdir()) == there


def refused(paramcli, tmp_path, before, after, *options):
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    there = sorted(tmp_path.iterdir())
    done = paramcli(
        "extract",
        tmp_path / "tuned.safetensors",
        "--base",
        tmp_path / "base.safetensors",
        "--rank",
        2,
        *options,
        code=3,
    )
    assert sorted(tmp_path.iterdir()) == there and done.err.startswith("error: ")
    return done.err


def test_no_change_is_no_adapter(tmp_path, paramcli):
    """Equal to the bit, and in numbers."""
    before = base_tensors()
    assert "no change to extract" in refused(paramcli, tmp_path, before, before)
    zero = {"a.weight": torch.zeros(8, 8)}
    assert "no change to extract" in refused(paramcli, tmp_path, zero, {"a.weight": -zero["a.weight"]})


def test_what_no_adapter_can_hold_is_refused_by_name(tmp_path, paramcli):
    """Other names, more tensors, NaN, bytes that are no numbers of floating point."""
    before = base_tensors()
    said = refused(paramcli, tmp_path, before, {f"module.{name}": T for name, T in before.items()})
    assert "no tensor in common" in said and "--strip-prefix module." in said
    said = refused(paramcli, tmp_path, before, {**before, "score.weight": random(2, 16)})
    assert "score.weight is not in" in said
    bad = {name: T.clone() for name, T in before.items()}
    bad["layers.1.up.weight"][3, 3] = float("nan")
    assert "the change has 1 NaN of 384 entries" in refused(paramcli, tmp_path, before, bad)
    fp8 = random(16, 16).to(torch.float8_e4m3fn)
    other = (fp8.float() * 2).to(torch.float8_e4m3fn)
    assert "dequantize" in refused(paramcli, tmp_path, {"a.weight": fp8}, {"a.weight": other})
    one = {"a.scale": torch.ones(3), "scale": torch.ones(3)}
    for name in one:
        said = refused(paramcli, tmp_path, one, {**one, name: torch.zeros(3)}, "--spelling", "kohya")
        assert "weights and biases of modules only" in said
    clash = {"a.b_c.weight": random(9, 9), "a_b.c.weight": random(9, 9)}
    said = refused(paramcli, tmp_path, clash, {name: T + 1 for name, T in clash.items()}, "--spelling", "kohya")
    assert "have one name in a kohya file" in said
    own = {"a.base_layer.weight": random(9, 9)}
    assert "a part of a PEFT model" in refused(paramcli, tmp_path, own, {"a.base_layer.weight": random(9, 9, seed=1)})


def test_tied_weights_are_held_once(tmp_path, paramcli):
    """An output layer that is the embedding: in a torch file one storage, in safetensors one more tensor, or none."""
    E, W = random(30, 16), random(24, 16)
    new, up = E + 1, W + low(W, 2)
    torch.save({"embed_tokens.weight": E, "lm_head.weight": E, "up.weight": W}, tmp_path / "tied.pt")
    torch.save({"embed_tokens.weight": new, "lm_head.weight": new, "up.weight": up}, tmp_path / "tuned.pt")
    save_file({"embed_tokens.weight": E, "up.weight": W}, tmp_path / "one.safetensors")
    twice = {"embed_tokens.weight": new, "lm_head.weight": new.clone(), "up.weight": up}
    save_file(twice, tmp_path / "twice.safetensors")
    for base in ("tied.pt", "one.safetensors"):
        for tuned in ("tuned.pt", "twice.safetensors"):
            out = tmp_path / f"{base}{tuned}a"
            said = paramcli("extract", tmp_path / tuned, "--base", tmp_path / base, "--rank", 2, "-o", out).err
            command = said.splitlines()[-1].removeprefix("next: paramcli ").split()
            assert ("--tied" in command) == (base == "tied.pt")
            merged = tmp_path / f"{base}{tuned}m.safetensors"
            paramcli(*command, "-o", merged)
            got = load_file(merged)
            require_same(got, {name: T for name, T in twice.items() if name in got})
            assert sorted(load_file(out / "adapter_model.safetensors")) == [
                "base_model.model.embed_tokens.weight",
                "base_model.model.up.lora_A.weight",
                "base_model.model.up.lora_B.weight",
            ]
            # PEFT puts it into the base's own tensor, which the output layer is too.
            assert json.loads((out / "adapter_config.json").read_text())["modules_to_save"] is None
    save_file({**twice, "lm_head.weight": new + 1}, tmp_path / "parted.safetensors")
    arguments = ("extract", tmp_path / "parted.safetensors", "--rank", 2, "-o", tmp_path / "x", "--base")
    assert (
        "is one tensor with embed_tokens.weight in the base" in paramcli(*arguments, tmp_path / "tied.pt", code=3).err
    )
    assert "lm_head.weight is not in" in paramcli(*arguments, tmp_path / "one.safetensors", code=3).err


@pytest.mark.parametrize("said", [b"\xff", b"[" * 100_000, b'{"model_type": ["gpt2"], "vocab_size": "30"}', b"3", b""])
def test_a_configuration_that_is_none_says_nothing(said, tmp_path, paramcli):
    """It is read as far as it can be, and never trusted further."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes(said)
    save_file({"a.weight": random(30, 16)}, model / "model.safetensors")
    save_file({"a.weight": random(30, 16) + low(random(30, 16), 2)}, tmp_path / "tuned.safetensors")
    found = paramcli("extract", tmp_path / "tuned.safetensors", "--base", model, "--rank", 2, "--json").json
    assert [one["why"] for one in found["tensors"]] == [None]
    (model / "config.json").write_text('{"vocab_size": 30}')
    found = paramcli("extract", tmp_path / "tuned.safetensors", "--base", model, "--rank", 2, "-f", "--json").json
    assert [one["why"] for one in found["tensors"]] == ["an embedding"]


def test_where_it_may_be_written(pair, tmp_path, paramcli, monkeypatch):
    """Beside the input by default; never over what is there unless asked, and never over something else."""
    tuned, base = pair
    extract = ("extract", tuned, "--base", base, "--rank")
    paramcli(*extract, 2)
    assert (tmp_path / "tuned.adapter" / "adapter_config.json").exists()
    paramcli(*extract, 2, "--spelling", "kohya")
    assert (tmp_path / "tuned.adapter.safetensors").exists()
    assert "exists already" in paramcli(*extract, 4, code=4).err
    note = tmp_path / "tuned.adapter" / "README.md"
    note.write_text("mine")
    paramcli(*extract, 4, "--force")
    assert json.loads((tmp_path / "tuned.adapter" / "adapter_config.json").read_text())["r"] == 4
    assert sorted(path.name for path in note.parent.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert "without adapter_config.json" in paramcli(*extract, 2, "-f", "-o", tmp_path / "other", code=4).err
    assert "is the input itself" in paramcli(*extract, 2, "-f", "-o", tmp_path, code=2).err
    assert "is the input itself" in paramcli(*extract, 2, "-f", "-o", base, "--spelling", "kohya", code=2).err


@pytest.mark.parametrize("fails", ["publish", "rename"])
def test_a_failure_leaves_the_old_adapter(fails, pair, tmp_path, paramcli, monkeypatch):
    """Or none at all: never one's tensors beside the other's configuration."""
    from paramcli.checkpoint.disk.atomic import AtomicFile
    from paramcli.checkpoint.write import described

    tuned, base = pair
    extract = ("extract", tuned, "--base", base, "-o", tmp_path / "a", "--rank")

    def broken(*arguments):
        raise OSError(5, "Input/output error")

    def files():
        return {path.name: path.read_bytes() for path in sorted((tmp_path / "a").iterdir())}

    if fails == "rename":
        monkeypatch.setattr(described, "rename_to_new", broken)
        paramcli(*extract, 2, code=4)
        assert not [path for path in tmp_path.iterdir() if path.suffix != ".safetensors"]
        return
    paramcli(*extract, 2)
    old = files()
    monkeypatch.setattr(AtomicFile, "publish", broken)
    paramcli(*extract, 4, "-f", code=4)
    assert files() == old


def test_the_result_in_python(pair, tmp_path):
    """Frozen, with what the table shows."""
    result = library.extract(*pair, "layers.*", rank=4, output=tmp_path / "a")
    assert isinstance(result, library.ExtractResult) and isinstance(result.tensors[0], library.Extracted)
    assert result.lost == max(one.lost for one in result.tensors) and result.unchanged == 0
    assert result.document()["tensors"][0]["writes"] == [
        "base_model.model.layers.1.down.lora_A.weight",
        "base_model.model.layers.1.down.lora_B.weight",
    ]
    with pytest.raises(library.UsageError) as error:
        library.extract(*pair, rank=4, energy=0.5)
    assert "not rank=... and energy=..." in str(error.value) and error.value.option == "energy"
