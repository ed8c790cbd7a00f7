"""A merge of each kind of PEFT's adapters is what PEFT itself merges (fixtures/make_adapters.py)."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from .merging import REFUSED, how, merged, names, require_merged, sharded, spoilt

NAMES = [
    "adalora",
    "adalora_conv",
    "adalora_conv1d",
    "beft",
    "boft",
    "boft_butterfly",
    "boft_kernels",
    "c3a",
    "conv",
    "conv1d",
    "conv1d_bias",
    "conv1d_dora",
    "conv1d_square",
    "conv_dora",
    "delora",
    "dora",
    "dora_bf16",
    "embedding",
    "experts",
    "experts_across",
    "gralora",
    "gralora_hybrid",
    "high_rank",
    "hira",
    "hira_conv1d",
    "hira_kernels",
    "hra",
    "hra_kernels",
    "ia3",
    "ia3_bf16",
    "ia3_conv1d",
    "ia3_inputs",
    "ia3_outputs",
    "ln_tuning",
    "loha",
    "loha_bf16",
    "loha_kernels",
    "loha_tucker",
    "lokr",
    "lokr_bf16",
    "lokr_kernels",
    "lokr_tucker",
    "lokr_whole",
    "lora",
    "lora_bf16",
    "lora_bias",
    "lora_half",
    "miss",
    "miss_bat",
    "miss_mini",
    "oft",
    "oft_bf16",
    "oft_bounded",
    "oft_exact",
    "oft_kernels",
    "oft_shared",
    "patterns",
    "road",
    "road_2",
    "road_4",
    "rslora",
    "saved",
    "shira",
    "token_rows",
    "token_rows_named",
    "token_rows_tied",
    "trainable_tokens",
    "vblora",
    "vblora_conv1d",
    "vera",
    "vera_conv1d",
]


def test_every_fixture_is_tried(adapters):
    """What is made for the tests is in one of the two lists."""
    assert names(adapters) == sorted([*NAMES, *REFUSED])


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_is_what_peft_merges(name, adapters, tmp_path, paramcli):
    """One file and three shards, whose config and index come along."""
    base, want = merged(adapters / name)
    out = tmp_path / "out.safetensors"
    said = paramcli("merge", base, "--adapter", adapters / name, *how(name), "-o", out, "--json").json
    require_merged(load_file(out), load_file(base), want)
    told = {tensor["tensor"] for tensor in said["tensors"]}
    # A bias of zeros stays one, whatever it is multiplied by.
    assert told >= set(want) and not any(load_file(base)[name].any() for name in told - set(want))
    for tensor in said["tensors"]:
        if tensor["tensor"] not in want:
            continue
        before, after = (T[tensor["tensor"]].double() for T in (load_file(base), load_file(out)))
        assert float(tensor["moved"]) == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-6)
    folder = sharded(load_file(base), tmp_path / "model")
    paramcli("merge", folder, "--adapter", adapters / name, *how(name))
    parts = sorted((tmp_path / "model.merged").glob("*.safetensors"))
    assert len(parts) == 3 and (tmp_path / "model.merged" / "config.json").exists()
    require_merged({k: t for part in parts for k, t in load_file(part).items()}, load_file(base), want)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_attached_comes_off_and_bakes(name, adapters, tmp_path, paramcli):
    """add --adapter writes one file; its originals are the base, byte for byte, and its bake is the merge."""
    base, _ = merged(adapters / name)
    added, plain, baked, direct = (tmp_path / f"{n}.safetensors" for n in ("added", "plain", "baked", "direct"))
    paramcli("add", base, "--adapter", adapters / name, *how(name), "-o", added)
    paramcli("remove", added, "--no-bake", "-o", plain)
    before, after = load_file(base), load_file(plain)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    paramcli("remove", added, "-o", baked)
    paramcli("merge", base, "--adapter", adapters / name, *how(name), "-o", direct)
    once, twice = load_file(baked), load_file(direct)
    assert once.keys() == twice.keys() and all(torch.equal(once[key], twice[key]) for key in once)
    assert paramcli("verify", added, code=None).code in (0, 3)


def test_half_precision_rounds_twice(adapters, tmp_path, paramcli):
    """One rounding of the sum gives other weights than PEFT with an adapter in bfloat16; and DoRA adds nothing."""
    base, want = merged(adapters / "lora_half")
    out = tmp_path / "out.safetensors"
    paramcli("merge", base, "--adapter", adapters / "lora_half", "-o", out)
    got = load_file(out)
    assert not any(torch.equal(got[name], tensor) for name, tensor in want.items())
    refused = ("merge", base, "--adapter", adapters / "dora_bf16", "--like", "peft-bf16")
    assert "changed by dora" in paramcli(*refused, "-o", out, "-f", code=3).err
    assert paramcli("merge", base, "--adapter", adapters / "lora_half", "--like", "peft", code=2).code == 2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["lora", "lora_bf16", "dora"])
def test_a_merge_in_another_dtype_is_rounded_once(dtype, name, adapters, tmp_path, paramcli):
    """Every floating tensor comes in it: changed ones from the sum, others from the base, integers as they are."""
    base, _ = merged(adapters / name)
    tensors = {**load_file(base), "steps": torch.tensor(3)}
    path, wide, out = (tmp_path / f"{n}.safetensors" for n in ("base", "wide", "out"))
    save_file(tensors, path)
    save_file({key: T.double() if T.is_floating_point() else T for key, T in tensors.items()}, wide)
    paramcli("merge", wide, "--adapter", adapters / name, "-o", tmp_path / "exact.safetensors")
    exact = load_file(tmp_path / "exact.safetensors")
    paramcli("merge", path, "--adapter", adapters / name, "--dtype", dtype, "--compute-dtype", "float64", "-o", out)
    got, target = load_file(out), getattr(torch, dtype)
    assert got["steps"].dtype == torch.int64 and got.keys() == tensors.keys()
    for key, tensor in exact.items():
        if key == "steps":
            continue
        assert got[key].dtype == target
        assert torch.equal(got[key], tensor.to(target)), key


@pytest.mark.parametrize("label", ["two alphas", "one alpha twice", "two ranks"])
def test_of_two_patterns_the_first_counts(label, adapters, tmp_path, paramcli):
    """As in PEFT 0.21, whose get_pattern_key goes by the file's order: told where another alpha would be possible."""
    base, _ = merged(adapters / "lora")
    config = {
        "two alphas": {"alpha_pattern": {".*q_proj": 14, "layers.0.*": 14, "q_proj": 28}},
        "one alpha twice": {"alpha_pattern": {".*q_proj": 14, "q_proj": 14}},
        "two ranks": {"alpha_pattern": {".*q_proj": 14}, "rank_pattern": {".*q_proj": 3, "q_proj": 4}},
    }[label]
    out = tmp_path / "out.safetensors"
    told = paramcli("merge", base, "--adapter", spoilt(adapters, tmp_path, **config), "-o", out)
    name = "model.layers.0.self_attn.q_proj"
    A, B = (
        load_file(adapters / "lora" / "adapter_model.safetensors")[f"base_model.model.{name}.lora_{x}.weight"]
        for x in "AB"
    )
    torch.testing.assert_close(load_file(out)[f"{name}.weight"], load_file(base)[f"{name}.weight"] + 14 / 3 * B @ A)
    unsure = f"alpha_pattern gives {name} 14 (.*q_proj) and 28 (q_proj), and so 1 more module: the first counts"
    assert (unsure in told.err) == ("the first counts" in told.err) == (label == "two alphas")


@pytest.mark.parametrize("kind", ["safetensors", "pt", "shards"])
def test_a_whole_model_is_merged_by_its_configurations(kind, adapters, tmp_path, paramcli):
    """Base and adapters in one state dict: the configurations tell the scales, the result has the base's own names."""
    folder = adapters.parent / "peft_model"
    tensors, want = load_file(folder / "model.safetensors"), load_file(folder / "merged.safetensors")
    base, out = folder / "model.safetensors", tmp_path / "out.safetensors"
    if kind == "pt":
        base = tmp_path / "model.pt"
        torch.save({"step": 3, "state_dict": tensors}, base)
    elif kind == "shards":
        base, out = sharded(tensors, tmp_path / "model"), tmp_path / "out"
    both = ("--adapter", folder / "adapter_config.json", "--adapter", folder / "other" / "adapter_config.json")
    paramcli("merge", base, *both, "-o", out)
    got = {k: t for part in ([out] if out.is_file() else out.glob("*.safetensors")) for k, t in load_file(part).items()}
    require_merged(got, load_file(adapters / "llama.safetensors"), want)
    error = paramcli("merge", base, *both[:2], "-o", out, "-f", code=3).err
    assert "is of the adapter other" in error
    assert "--adapter adapter_config.json" in paramcli("remove", base, code=3).err
    strengths = ("--adapter", folder, "--strength", 0, "--adapter", folder / "other", "--strength", 1)
    paramcli("merge", base, *strengths, "-o", tmp_path / "none.safetensors" if kind != "shards" else tmp_path / "none")
