"""PEFT's other methods: what contradicts itself is refused, large tensors go in blocks, strengths are of sums."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.fitting import blocks as rows

from .merging import merged


def changed(folder, target, change=lambda tensors: tensors, **config):
    """A copy of an adapter with other tensors, or another configuration."""
    shutil.copytree(folder, target)
    path = target / "adapter_model.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in change(load_file(path)).items()}, path)
    values = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**values, **config}))
    return target


def without(part):
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if part not in key}


def reshaped(part, shape):
    return lambda tensors: {key: torch.ones(shape) if part in key else tensor for key, tensor in tensors.items()}


WRONG = {
    "LoRA's tensors under another type": ("lora", None, {"peft_type": "IA3"}, "is a tensor of LORA or ADALORA"),
    "IA3's tensors under another type": ("ia3", None, {"peft_type": "OFT"}, "is a tensor of IA3"),
    "a type that is not read": ("ia3", None, {"peft_type": "FROD"}, "its peft_type is FROD, which is not read"),
    "a type that depends on the input": ("ia3", None, {"peft_type": "XLORA"}, "XLORA, whose change depends"),
    "outputs that the configuration calls inputs": (
        "ia3",
        None,
        {"feedforward_modules": ["q_proj", "k_proj", "down_proj"]},
        "says it is of inputs",
    ),
    "factors of another layer": ("ia3", reshaped("k_proj", (9, 1)), {}, "9x1"),
    "factors that are a matrix": ("ia3", reshaped("k_proj", (4, 4)), {}, "4x4"),
    "modules that are no list": ("ia3", None, {"feedforward_modules": [1]}, "no list of names"),
    "modules of a pattern that looks ahead": ("ia3", None, {"feedforward_modules": "(?=q)"}, "does not match"),
    "LoHa of another rank": ("loha", None, {"r": 4}, "is 4 here, and 3 in the weights"),
    "half of LoHa": ("loha", without("hada_w2_b"), {}, "has no hada_w2_b"),
    "LoHa of another width": ("loha", reshaped("q_proj.hada_w1_b", (2, 9)), {}, "hada_w1_b is 2x9"),
    "LoHa with an alpha that is none": ("loha", None, {"alpha": "7"}, "alpha"),
    "LoKr of another rank": ("lokr", None, {"r": 2}, "is 2 here, and 1 in the weights"),
    "LoKr without a rank": ("lokr_whole", None, {"r": 0}, "r is 0, and a rank is 1 or more"),
    "LoKr that does not divide": ("lokr_whole", reshaped("l.lokr_w1", (5, 2)), {}, "is 6x8 in the base"),
    "A of VeRA alone": ("vera", without("vera_B"), {}, "projection vera_B that all modules share is missing"),
    "half of VeRA": ("vera", without("vera_lambda_b"), {}, "has no vera_lambda_b"),
    "VeRA of another rank": ("vera", None, {"r": 4}, "is 4 here, and 3 in the weights"),
    "A too short for VeRA": ("vera", lambda t: {**t, "base_model.vera_A": t["base_model.vera_A"][:, :17]}, {}, "3x17"),
    "VeRA not saved": ("vera_unsaved", None, {}, "save_projection is false"),
    "VeRA said to be saved": ("vera_unsaved", None, {"save_projection": True}, "vera_A that all modules share"),
    "AdaLoRA of another rank": ("adalora", None, {"rank_pattern": None}, "is 4 here, and 3 in the weights"),
    "AdaLoRA's patterns are no object": ("adalora", None, {"rank_pattern": [1]}, "no object of names"),
    "AdaLoRA without E": ("adalora", without("lora_E"), {}, "has no lora_E"),
    "AdaLoRA with another E": ("adalora", reshaped("lora_E", (2, 1)), {}, "and E of 2x1"),
    "OFT of another size": ("oft", None, {"oft_block_size": 8}, "are 8 wide here, and 4 in the weights"),
    "OFT of another number": ("oft_exact", None, {"r": 2}, "wide here, and"),
    "OFT shared, of several blocks": ("oft", None, {"block_share": True}, "one rotation is of all blocks"),
    "OFT not shared, of one block": ("oft_shared", None, {"block_share": False}, "rotations of 4 inputs are 1x6"),
    "OFT of no triangle": ("oft", reshaped("q_proj", (4, 7)), {}, "above the diagonal of a square matrix"),
    "OFT by neither way": ("oft", None, {"use_cayley_neumann": "yes"}, "neither true nor false"),
    "OFT by half a term": ("oft", None, {"num_cayley_neumann_terms": 2.5}, "no whole number"),
    "OFT by a billion terms": ("oft", None, {"num_cayley_neumann_terms": 10**9}, "terms=1000000000"),
    "OFT bounded by nothing": ("oft_bounded", None, {"eps": 0}, "its eps is not above 0"),
    "OFT of an older PEFT": (
        "oft",
        lambda t: {key.replace("oft_R.weight", "oft_r"): tensor for key, tensor in t.items()},
        {},
        "as PEFT before 0.16 has it",
    ),
    "BOFT of another size": ("boft", None, {"boft_block_size": 2}, "are 2 wide here, and 4 in the weights"),
    "BOFT of other factors": (
        "boft_butterfly",
        None,
        {"boft_n_butterfly_factor": 2},
        "factor of the configuration is 2",
    ),
    "BOFT without lengths": ("boft", without("boft_s"), {}, "has no boft_s"),
    "BOFT of no squares": ("boft", reshaped("boft_R", (1, 4, 4, 3)), {}, "(factors, blocks, size, size)"),
    "rows without numbers": ("token_rows", None, {"trainable_token_indices": None}, "no indices of tokens"),
    "rows of fewer numbers": ("token_rows", None, {"trainable_token_indices": [1]}, "indices are of 1 row"),
    "rows beyond the last": ("token_rows", None, {"trainable_token_indices": [1, 2, 24]}, "up to number 24"),
    "one row twice": ("token_rows", None, {"trainable_token_indices": [1, 2, 2]}, "no distinct whole numbers"),
    "a row before the first": ("token_rows", None, {"trainable_token_indices": [1, 2, -1]}, "no distinct whole"),
    "rows that are words": ("trainable_tokens", None, {"token_indices": ["a", "b", "c"]}, "no distinct whole"),
    "rows of other layers": ("token_rows_named", None, {"trainable_token_indices": {"tokens": [3, 1]}}, "no indices"),
    "frequencies that are drawn": ("ia3", None, {"peft_type": "FOURIERFT"}, "drawn anew from a seed"),
    "DeLoRA of another rank": ("delora", None, {"rank_pattern": {}}, "is 3 here, and 2 in the weights"),
    "DeLoRA without its lengths": ("delora", without("delora_w_norm"), {}, "has no delora_w_norm"),
    "DeLoRA with other lengths": ("delora", reshaped("delora_w_norm", (9,)), {}, "lengths of 9"),
    "GraLoRA of another rank": ("gralora", None, {"r": 8}, "is 8 here, and 4 in the weights"),
    "GraLoRA of other blocks": ("gralora", None, {"gralora_k": 4}, "gralora_k of the configuration is 4"),
    "GraLoRA without what is hybrid": ("gralora", None, {"hybrid_r": 3}, "hybrid_r of the configuration is 3"),
    "GraLoRA with what is hybrid": ("gralora_hybrid", None, {"hybrid_r": 0}, "hybrid_r of the configuration is 0"),
    "GraLoRA hybrid of another rank": ("gralora_hybrid", None, {"hybrid_r": 2}, "hybrid_r of the configuration is 2"),
    "C3A of another weight": ("c3a", reshaped("c3a_kernel", (3, 4, 4)), {}, "own tensors are 3x4x4"),
    "C3A that is a matrix": ("c3a", reshaped("c3a_kernel", (4, 4)), {}, "blocks of inputs, size) is wanted"),
    "HiRA of another rank": ("hira", None, {"r": 4}, "is 4 here, and 3 in the weights"),
    "half of HiRA": ("hira", without("hira_B"), {}, "has no hira_B"),
    "VB-LoRA of chosen logits": ("vblora_top", None, {}, "save_only_topk_weights is set"),
    "VB-LoRA without vectors": ("vblora", without("vector_bank"), {}, "vectors that all modules share are missing"),
    "VB-LoRA of more than all": ("vblora", None, {"topk": 6}, "top=6 is more than vectors=5"),
    "SHiRA's places elsewhere": (
        "shira",
        lambda t: {key: tensor + 20 if "indices" in key else tensor for key, tensor in t.items()},
        {},
        "those of another weight",
    ),
    "SHiRA's places that are no numbers": (
        "shira",
        lambda t: {key: tensor.float() if "indices" in key else tensor for key, tensor in t.items()},
        {},
        "is float32, and a change is numbers of int32",
    ),
    "SHiRA's places of other entries": ("shira", reshaped("shira_weight", (5,)), {}, "and the entries are 5"),
    "MiSS of another rank": ("miss", None, {"r": 4}, "and r of the configuration is 4"),
    "MiSS of another kind": ("miss", None, {"init_weights": "bat"}, "its init_weights bat"),
    "MiSS of no kind": ("miss", None, {"init_weights": "new"}, "its init_weights new"),
    "HRA of another rank": ("hra", None, {"r": 4}, "is 4 here, and 3 in the weights"),
    "HRA of other inputs": ("hra", reshaped("hra_u", (9, 3)), {}, "mirrors are 9x3"),
    "RoAd of another variant": ("road", None, {"variant": "road_2"}, "angles are"),
    "RoAd of no variant": ("road", None, {"variant": "road_3"}, "none of road_1"),
    "BEFT of another bias": ("beft", reshaped("beft_bias", (1, 9)), {}, "change of it is 1x9"),
    "a method that PEFT cannot merge": ("ia3", None, {"peft_type": "LILY"}, "LILY, whose change depends on the input"),
    "RoAd of odd groups": ("road", None, {"group_size": 3}, "group=3 is odd"),
    "a start that is not known": (
        "lora",
        None,
        {"init_lora_weights": "new"},
        "not known whether that changed the base",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_contradicts_itself_is_refused(wrong, adapters, tmp_path, paramcli):
    """A configuration of other tensors, tensors of another shape: one line, exit 3, nothing written."""
    name, change, config, said = WRONG[wrong]
    folder = changed(adapters / name, tmp_path / "wrong", change or (lambda tensors: tensors), **config)
    base, _ = merged(adapters / name)
    error = paramcli("merge", base, "--adapter", folder, "-o", tmp_path / "out.safetensors", code=3).err
    assert said in error and error.startswith("error: ") and not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", ["eva", "gaussian", "orthogonal", "mica", True, False])
def test_a_start_that_leaves_the_base_as_it_is_merges(name, adapters, tmp_path, paramcli):
    """What an adapter began from does not matter where the base did not change."""
    folder = changed(adapters / "lora", tmp_path / "other", init_lora_weights=name)
    base, want = merged(adapters / "lora")
    paramcli("merge", base, "--adapter", folder, "-o", tmp_path / "out.safetensors")
    got = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(got[key], tensor) for key, tensor in want.items())


@pytest.mark.parametrize(
    "name",
    [
        "adalora",
        "c3a",
        "delora",
        "gralora",
        "hira",
        "loha",
        "lokr_whole",
        "miss",
        "miss_bat",
        "shira",
        "vblora",
        "vera",
    ],
)
def test_a_strength_is_of_the_change(name, adapters, tmp_path, paramcli):
    """Half of what is added."""
    base, want = merged(adapters / name)
    out, before = tmp_path / "out.safetensors", load_file(base)
    paramcli("merge", base, "--adapter", adapters / name, "--strength", 0.5, "-o", out)
    for key, tensor in load_file(out).items():
        wanted = (before[key].double() + want.get(key, before[key]).double()) / 2
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)


def test_what_turns_scales_or_replaces_a_weight_has_no_half(adapters, tmp_path, paramcli):
    """Its change is no sum that could be added in part."""
    base, _ = merged(adapters / "ia3")
    for other in ("ia3", "oft", "boft", "hra", "road", "ln_tuning", "trainable_tokens"):
        refused = paramcli("merge", base, "-a", adapters / other, "--strength", 0.5, "-o", tmp_path / "x", code=3)
        assert "merged as it is" in refused.err and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "name",
    [
        "adalora",
        "boft",
        "boft_butterfly",
        "hira",
        "hra",
        "ia3",
        "loha",
        "oft",
        "oft_exact",
        "token_rows",
        "trainable_tokens",
        "vera",
    ],
)
def test_large_tensors_go_in_blocks(name, adapters, tmp_path, paramcli, monkeypatch):
    """Of a few rows each, and every bit is as of the whole; from an added file too."""
    base, _ = merged(adapters / name)
    whole, parts, added, baked = (tmp_path / f"{name}.safetensors" for name in ("whole", "parts", "added", "baked"))
    paramcli("merge", base, "--adapter", adapters / name, "-o", whole)
    paramcli("add", base, "--adapter", adapters / name, "-o", added)
    taken = []
    real = rows.Batch.read
    monkeypatch.setattr(rows.Batch, "read", lambda self, block: taken.append(block) or real(self, block))
    monkeypatch.setattr(rows, "LARGE", 1)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 256)
    paramcli("merge", base, "--adapter", adapters / name, "-o", parts)
    assert any(block is not None for block in taken)
    paramcli("remove", added, "-o", baked)
    assert whole.read_bytes() == parts.read_bytes()
    one, other = load_file(whole), load_file(baked)
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_flag_that_the_base_contradicts_is_not_trusted(adapters, tmp_path, paramcli):
    """A square Conv1D alone, whose flag a linear layer has overwritten: the biases of others tell how they are stored.

    (PEFT saves the flag of the last module that it wrapped.)
    """
    base, want = merged(adapters / "conv1d_square")
    only = {"change": lambda tensors: {key: tensor for key, tensor in tensors.items() if ".attn.c_proj." in key}}
    right = changed(adapters / "conv1d_square", tmp_path / "right", **only)
    wrong = changed(adapters / "conv1d_square", tmp_path / "wrong", **only, fan_in_fan_out=False)
    out, [name] = tmp_path / "out.safetensors", [name for name in want if "attn.c_proj" in name]
    error = paramcli("merge", base, "--adapter", wrong, "-o", out, code=3).err
    assert "fan_in_fan_out is wrong for" in error and "nothing tells" in error
    paramcli("merge", base, "--adapter", right, "-o", out)
    assert torch.equal(load_file(out)[name], want[name])
    straight = {key: tensor for key, tensor in load_file(base).items() if "bias" not in key}
    linear = {"a.weight": torch.ones(4, 6), "a.bias": torch.ones(4), **straight}
    save_file(linear, tmp_path / "linear.safetensors")
    error = paramcli("merge", tmp_path / "linear.safetensors", "-a", right, "-o", out, "-f", code=3).err
    assert "fan_in_fan_out is wrong for a.weight" in error


def test_a_flag_of_a_layer_without_a_bias_is_not_trusted(tmp_path, paramcli):
    """Every Conv1D has one; PEFT takes the flag back for a linear layer. Said to be false it merges as that."""
    folder, base, out = tmp_path / "mine", tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    folder.mkdir()
    W, A, B = torch.randn(8, 8), torch.randn(2, 8), torch.randn(8, 2)
    save_file({"a.weight": W}, base)
    key = "base_model.model.a.lora_"
    save_file({f"{key}A.weight": A, f"{key}B.weight": B}, folder / "adapter_model.safetensors")
    for flag, code in (("no", 3), (True, 3), (False, 0)):
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "fan_in_fan_out": flag}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        said = paramcli("merge", base, "--adapter", folder, "-o", out, code=code).err
        assert ("square and has no bias" in said) == (flag is True)
        assert ("neither true nor false" in said) == (flag == "no")
    torch.testing.assert_close(load_file(out)["a.weight"], W + B @ A)


def test_fused_experts_have_two_factors_alone(adapters, tmp_path, paramcli):
    """A magnitude beside them is no part of the change, and would be lost."""
    base, _ = merged(adapters / "experts")

    def with_magnitude(tensors):
        key = next(key for key in tensors if ".experts." in key and "lora_A" in key)
        return {**tensors, key.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(4)}

    folder = changed(adapters / "experts", tmp_path / "more", with_magnitude)
    error = paramcli("merge", base, "--adapter", folder, "-o", tmp_path / "out.safetensors", code=3).err
    assert "lora_magnitude_vector is 4, and a parameter that is changed by name has lora_A and lora_B alone" in error


LAID = {
    "A by columns": lambda key, T: T.t().contiguous().t() if "lora_A" in key else T,
    "B by columns": lambda key, T: T.t().contiguous().t() if "lora_B" in key else T,
    "parts of wider ones": lambda key, T: torch.cat([T, T], 1)[:, : T.shape[1]],
    "B in double precision": lambda key, T: T.double() if "lora_B" in key else T,
}


@pytest.mark.parametrize("how", LAID)
def test_experts_are_read_as_they_lie(how, adapters, tmp_path, paramcli):
    """A torch file keeps tensors by columns, or in larger ones: each expert's part is found in them, fused or apart."""
    base, _ = merged(adapters / "experts")
    apart, laid = tmp_path / "apart.safetensors", tmp_path / "laid"
    shutil.copytree(adapters / "experts", laid)
    tensors = load_file(laid / "adapter_model.safetensors")
    (laid / "adapter_model.safetensors").unlink()
    torch.save({key: LAID[how](key, T) for key, T in tensors.items()}, laid / "adapter_model.bin")
    save_file(dict(_experts_apart(load_file(base))), apart)
    for number, path in enumerate((base, apart)):
        want, got, added, baked = (tmp_path / f"{number}{n}.safetensors" for n in ("want", "got", "added", "baked"))
        paramcli("merge", path, "--adapter", adapters / "experts", "-o", want)
        paramcli("merge", path, "--adapter", laid, "-o", got)
        paramcli("add", path, "--adapter", laid, "-o", added)
        paramcli("remove", added, "-o", baked)
        for other in (got, baked):
            one = load_file(other)
            assert all(torch.equal(one[key], tensor) for key, tensor in load_file(want).items())


def _experts_apart(tensors):
    for name, tensor in tensors.items():
        where, _, leaf = name.rpartition(".")
        parts = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else (leaf,)
        for expert, W in enumerate(tensor if ".experts." in name else ()):
            for part, own in zip(parts, W.chunk(len(parts)), strict=True):
                yield f"{where}.{expert}.{part}.weight", own.clone()
        if ".experts." not in name:
            yield name, tensor
