"""What is said of an adapter that does not fit leads to one that does, and never to another layer."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import paramcli as library


def saved(folder, tensors, rank=2):
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": ["q"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def lora(*modules):
    torch.manual_seed(0)
    factors = {"lora_A": (2, 8), "lora_B": (8, 2)}
    return {f"base_model.model.{m}.{role}.weight": torch.randn(size) for m in modules for role, size in factors.items()}


@pytest.fixture
def base(tmp_path):
    torch.manual_seed(1)
    weights = {f"model.layers.{number}.q.weight": torch.randn(8, 8).bfloat16() for number in range(2)}
    save_file(weights, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def test_no_prefix_is_offered_that_names_another_layer(base, tmp_path, paramcli):
    adapter = saved(tmp_path / "a", lora("model.layers.9.q"))
    said = paramcli("merge", base, "--adapter", adapter, code=3).err
    assert "--adapter-prefix" not in said and "model.layers.1.q.weight" in said
    renamed = saved(tmp_path / "b", lora("lm.layers.1.q"))
    assert "--adapter-prefix lm.=model." in paramcli("merge", base, "--adapter", renamed, code=3).err
    with pytest.raises(library.InputRefused) as refused:
        library.merge(base, adapter=renamed)
    assert 'adapter_prefix={"lm.": "model."}' in str(refused.value.hint)
    library.merge(base, adapter=renamed, adapter_prefix={"lm.": "model."})


def test_no_prefix_is_offered_that_makes_two_changes_one(base, tmp_path, paramcli):
    adapter = saved(tmp_path / "a", lora("x.layers.1.q", "y.layers.1.q"))
    assert "--adapter-prefix" not in paramcli("merge", base, "--adapter", adapter, code=3).err


def test_a_prefix_that_is_not_needed_is_said_to_be_none(base, tmp_path, paramcli):
    adapter = saved(tmp_path / "a", lora("model.layers.1.q"))
    said = paramcli("merge", base, "--adapter", adapter, "--adapter-prefix", "model.=foo.", code=3).err
    assert "without --adapter-prefix its names are the base's, as model.layers.1.q.weight is" in said
    paramcli("merge", base, "--adapter", adapter)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_told_of_the_file_that_it_is_in(value, base, tmp_path, paramcli):
    """Of an adapter that is its own file, of the base the base's: by merge, and by who proves it."""
    good, merged = saved(tmp_path / "good", lora("model.layers.1.q")), tmp_path / "merged.safetensors"
    paramcli("merge", base, "--adapter", good, "-o", merged)
    factors = lora("model.layers.1.q")
    name = next(iter(factors))
    factors[name][1, 2] = value
    bad = saved(tmp_path / "bad", factors)
    what = f"model.layers.1.q.weight: its {name} has 1 {'NaN' if value != value else 'infinite'} of 16 entries"
    out = tmp_path / "out.safetensors"
    for line in (["merge", base, "--adapter", bad, "-o", out], ["verify", merged, "--base", base, "--adapter", bad]):
        assert f"{what} (in {bad / 'adapter_model.safetensors'})" in paramcli(*line, code=3).err
    weights = load_file(base)
    weights["model.layers.1.q.weight"][0, 0] = value
    save_file(weights, base)
    said = paramcli("merge", base, "--adapter", good, "-o", out, code=3).err
    assert "its model.layers.1.q.weight has 1" in said and f"(in {base})" in said and not out.exists()


OF_ADAPTERS = ["adapters/ia3", "adapters/oft", "adapters/conv1d_bias", "adapters/lora", "adapters/vera"]
OF_ADAPTERS += ["adapters/ia3/adapter_model.safetensors", "kohya/lora.safetensors", "kohya/full.safetensors"]


@pytest.mark.parametrize("place", OF_ADAPTERS)
def test_an_adapter_alone_is_told_to_be_one(place, fixtures, paramcli):
    """Nothing of it can be verified, baked or migrated without its base; that it was merged can be proved."""
    adapter = fixtures / place
    merge = f"try: paramcli merge BASE --adapter {adapter} bakes it onto its base"
    proof = f"{merge}, and paramcli verify MERGED --base BASE --adapter {adapter} proves that"
    assert proof in paramcli("verify", adapter, code=3).err
    assert merge in paramcli("remove", adapter, code=3).err
    assert merge in paramcli("migrate", adapter, "--to", "new", code=3).err


def test_of_a_square_weight_a_flag_that_is_wrong_elsewhere_can_be_set(tmp_path, paramcli):
    """fan_in_fan_out is one for all layers: of a square one the others tell that it is wrong, and what it should be."""
    torch.manual_seed(0)
    save_file({"q.weight": torch.randn(8, 8), "up.weight": torch.randn(16, 8)}, tmp_path / "base.safetensors")
    factors = {"q.lora_A": (2, 8), "q.lora_B": (8, 2), "up.lora_A": (2, 8), "up.lora_B": (16, 2)}
    tensors = {f"base_model.model.{name}.weight": torch.randn(size) for name, size in factors.items()}
    adapter = saved(tmp_path / "a", tensors)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": True}))
    merge = ["merge", tmp_path / "base.safetensors", "--adapter", adapter]
    said = paramcli(*merge, code=3).err
    assert "fan_in_fan_out is wrong for up.weight" in said and "try: set it to false if it is stored as that is" in said
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": False}))
    paramcli(*merge)


def test_a_chain_for_a_plain_tensor_is_a_mistake_of_spectrum_too(base, paramcli):
    said = paramcli("spectrum", base, "-t", "model.layers.1.q.weight", "--chain", "orthogonal", code=2).err
    assert "is a plain tensor: no chain is left in it" in said and "without --chain" in said
    paramcli("spectrum", base, "-t", "model.layers.1.q.weight")


def test_like_peft_rounds_the_factors_too(base, tmp_path):
    """PEFT holds a float32 adapter in the base's half precision, then its change, then the sum."""
    tensors = lora("model.layers.0.q", "model.layers.1.q")
    adapter, out = saved(tmp_path / "a", tensors), tmp_path / "o.safetensors"
    library.merge(base, adapter=adapter, like="peft-bf16", output=out)
    got = load_file(out)
    for name, W in load_file(base).items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        A, B = (tensors[f"{module}.{role}.weight"].bfloat16().float() for role in ("lora_A", "lora_B"))
        assert torch.equal(got[name], W + (B @ A * 2).bfloat16())
