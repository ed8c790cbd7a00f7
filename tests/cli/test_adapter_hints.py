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
