"""Codes and what they are decoded with: told by names and dtypes, and never cast apart."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.checkpoint.source import Storage, TensorInfo
from paramcli.dtypes import code_of
from paramcli.spelling.companions import companions

F8, I8, U8, I32 = torch.float8_e4m3fn, torch.int8, torch.uint8, torch.int32
# Format: (keys that belong together with their dtypes, keys beside them that are tensors of their own); None: float32.
FORMATS = {
    "FP8 per tensor": ({"l.weight": F8, "l.weight_scale": None, "l.input_scale": None}, ["l.bias", "norm.weight"]),
    "FP8 blocks": ({"l.weight": F8, "l.weight_scale_inv": None}, ["l.bias", "gate.e_score_correction_bias"]),
    "FP8 experts": ({"e.gate_up_proj": F8, "e.gate_up_proj_scale_inv": None}, ["e.gate_up_proj_bias"]),
    "a parameter": ({"b.modulation": F8, "b.modulation.scale_weight": None}, ["b.norm.scale_weight"]),
    "DeepSeek V4": ({"l.weight": F8, "l.scale": None}, ["q_norm.scale", "hc_attn_scale"]),
    "Mistral": ({"l.weight": F8, "l.qscale_weight": None, "l.qscale_act": None}, ["norm.weight"]),
    "ComfyUI": ({"l.weight": F8, "l.scale_weight": None, "l.scale_input": None, "scaled_fp8": F8}, ["l.bias"]),
    "int8": ({"l.weight": I8, "l.weight_scale": None, "l.weight_zero_point": I8}, ["l.bias"]),
    "bitsandbytes int8": ({"l.weight": I8, "l.SCB": None}, ["l.bias"]),
    "bitsandbytes 4-bit": ({"l.weight": U8, "l.weight.absmax": None, "l.weight.quant_map": None}, ["l.bias"]),
    "bitsandbytes 4-bit in float32": (
        {"l.weight": None, "l.weight.absmax": U8, "l.weight.nested_absmax": None, "l.weight.quant_map": None},
        ["l.bias", "m.weight"],
    ),
    "NVFP4": ({"l.weight_packed": U8, "l.weight_scale": F8, "l.weight_global_scale": None}, ["l.bias"]),
    "ModelOpt": ({"l.weight": U8, "l.weight_scale": F8, "l.weight_scale_2": None, "l.input_scale": None}, ["l.bias"]),
    "GPTQ": ({"l.qweight": I32, "l.qzeros": I32, "l.scales": None}, ["l.bias"]),
    "HQQ": ({"l.W_q": U8, "l.scale": None, "l.zero": None}, ["l.bias"]),
    "AQLM": ({"l.codes": torch.int16, "l.codebooks": None, "l.scales": None}, ["l.bias"]),
    "EXL3": ({"l.trellis": torch.int16, "l.suh": None, "l.svh": None}, ["l.bias"]),
    "quanto": ({"l.weight._data": I8, "l.weight._scale": None}, ["l.bias"]),
    "torchao": ({"l.parametrizations.weight.original0": I8, "l.parametrizations.weight.original1": None}, ["l.bias"]),
    "a cache": ({"l.k_proj.weight": F8, "l.k_proj.weight_scale": None, "l.k_scale": None}, ["l.k_norm.weight"]),
    "none": (
        {},
        [
            "attn.logit_scale",
            "fc.weight",
            "layer_scale.gamma",
            "l.scale",
            "k_scale",
            "fc.parametrizations.weight.original",
        ],
    ),
}
FORMATS["none, with whole numbers"] = ({}, [*FORMATS["none"][1]])


@pytest.mark.parametrize("name", FORMATS)
def test_what_belongs_together_is_told_from_what_stands_beside_it(name):
    """Each format's codes, scales and tables, and none of the tensors that are their own."""
    together, alone = FORMATS[name]
    dtypes = {**together, **dict.fromkeys(alone)}
    if name == "none, with whole numbers":
        dtypes |= {"attn.relative_position_index": torch.int64, "bn.num_batches_tracked": torch.int64, "ids": I32}
    infos = {
        key: TensorInfo(key, code_of(dtype or torch.float32), (4, 4), Storage(0, 0, 0, key))
        for key, dtype in dtypes.items()
    }
    found = companions(infos)
    assert found == set(together)


@pytest.mark.parametrize("scale", ["weight_scale", "weight_scale_inv", "scale_weight", "scale"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_cast_leaves_them_alone_and_says_so(scale, dtype, tmp_path, paramcli):
    """A scale under FP8 codes stays float32 to the bit, the bias is cast, and stderr names what stays; -n too."""
    torch.manual_seed(0)
    path, out = tmp_path / "m.safetensors", tmp_path / "o.safetensors"
    state = {"l.weight": torch.randn(8, 4).to(F8), f"l.{scale}": torch.rand(1), "l.bias": torch.randn(8)}
    save_file(state, path)
    for more in (["-n"], []):
        told = paramcli("convert", path, "--dtype", dtype, "-o", out, *more).err
        assert "the file is quantized (float32, float8_e4m3fn): 2 tensors" in told
        assert f"l.{scale}" in told and "l.weight" in told
    made = load_file(out)
    assert torch.equal(made[f"l.{scale}"], state[f"l.{scale}"]) and made[f"l.{scale}"].dtype == torch.float32
    assert torch.equal(made["l.weight"].view(U8), state["l.weight"].view(U8))
    assert made["l.bias"].dtype == getattr(torch, dtype)
    assert "quantized" not in paramcli("convert", path, "-f", "-o", out).err
