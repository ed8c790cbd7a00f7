"""merge of an adapter onto weights in codes: dequantize, then merge, in one pass and rounded once.

The weights are the answers of the packages that quantized them, stored beside each fixture (of GPTQ its fields one by
one), and the change is PEFT's formula, computed here: W + lora_alpha / r B A.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import FIXTURES

from .test_quantized_gptq import folder, gptq, said

RANK, ALPHA = 3, 6
# A layer that is refused, and one of whose answer only some rows are stored.
LEFT_OUT = ("turned", "nested")
FIXED = {
    str(place.relative_to(FIXTURES)): place
    for place in (
        *sorted((FIXTURES / "compressed").iterdir()),
        *(FIXTURES / "quantized" / name for name in ("bitsandbytes", "comfyui", "deepseek_v4")),
        FIXTURES / "awq",
    )
}
GPTQS = {
    f"gptq {bits} {zeros} {order}": (bits, zeros, order)
    for bits in (2, 3, 4, 8)
    for zeros, order in (("v1", "in order"), ("v2", "by activation"))
}


def quantized(name, tmp_path):
    """(the model's file, its weights by name, its other tensors)"""
    if name in GPTQS:
        bits, zeros, order = GPTQS[name]
        tensors, W = gptq(bits, zeros, order=order)
        config = said(bits, checkpoint_format="gptq" if zeros == "v1" else "gptq_v2")
        rest = {"norm.weight": torch.ones(5)}
        return folder(tmp_path, {**tensors, **rest}, config), {"l.weight": W}, rest
    place = tmp_path / "model"
    shutil.copytree(FIXED[name], place)
    keep = {key: T for key, T in load_file(place / "model.safetensors").items() if not key.startswith(LEFT_OUT)}
    save_file(keep, place / "model.safetensors")
    answers = {k: T for k, T in load_file(FIXED[name] / "answers.safetensors").items() if not k.startswith(LEFT_OUT)}
    rest = {key: T for key, T in keep.items() if key.startswith(("norm", "q_norm", "router"))}
    return place / "model.safetensors", answers, rest


def adapter(tmp_path, weights):
    """(a LoRA on every matrix, what it adds to each)"""
    random = torch.Generator().manual_seed(1)
    tensors, change = {}, {}
    for name, W in weights.items():
        if W.ndim == 2:
            A, B = (torch.randn(*shape, generator=random) for shape in ((RANK, W.size(1)), (W.size(0), RANK)))
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
            change[name] = ALPHA / RANK * (B.double() @ A.double())
    place = tmp_path / "lora"
    place.mkdir()
    save_file(tensors, place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}))
    return place, change


@pytest.mark.parametrize("name", [*FIXED, *GPTQS])
def test_it_is_dequantize_then_merge(name, tmp_path, paramcli):
    path, weights, rest = quantized(name, tmp_path)
    lora, change = adapter(tmp_path, weights)
    assert change
    once, half = tmp_path / "results" / "once.safetensors", tmp_path / "results" / "half.safetensors"
    once.parent.mkdir()
    paramcli("merge", path, "--adapter", lora, "--dtype", "float32", "-o", once)
    paramcli("merge", path, "--adapter", lora, "--dtype", "bfloat16", "-o", half)
    assert {file.name for file in once.parent.iterdir() if file.suffix != ".json"} == {once.name, half.name}
    got, rounded = load_file(once), load_file(half)
    assert got.keys() == rounded.keys() == weights.keys() | rest.keys()
    for key, W in weights.items():
        want = W.double() + change.get(key, 0)
        # One sum of RANK products and one more, each rounded to float32.
        size = want.abs().max() + W.abs().max() + (change[key].abs().max() if key in change else 0)
        torch.testing.assert_close(
            got[key].double(), want, rtol=0, atol=float(8 * torch.finfo(torch.float32).eps * size)
        )
        assert torch.equal(rounded[key], got[key].bfloat16())
    assert all(torch.equal(got[key], T) for key, T in rest.items())
    paramcli("remove", path, "--dtype", "float32", "-o", tmp_path / "plain.safetensors")
    paramcli("merge", tmp_path / "plain.safetensors", "--adapter", lora, "-o", tmp_path / "twice.safetensors")
    twice = load_file(tmp_path / "twice.safetensors")
    assert all(torch.equal(twice[key], got[key]) for key in weights)
    for merged in (once, half):
        paramcli("verify", merged, "--base", path, "--adapter", lora)
