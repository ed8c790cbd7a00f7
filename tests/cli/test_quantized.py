"""Quantized weights: what is baked is the product that torch computes by hand, in float32, rounded once."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def folder(tmp_path, tensors, **config):
    """A model's folder with a configuration."""
    place = tmp_path / "model"
    place.mkdir()
    save_file(tensors, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps({"model_type": "tiny", **config}))
    return place / "model.safetensors"


def codes(*shape, dtype=E4M3):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) * 100).to(dtype)


def of_blocks(W, scale, rows, columns):
    """Block by block, as a loop has it."""
    made = torch.empty(W.shape)
    for i in range(scale.shape[-2]):
        for j in range(scale.shape[-1]):
            place = (..., slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            made[place] = W[place].float() * scale[..., i, j, None, None].float()
    return made


# label -> (codes, scale's name, scale, configuration, what is wanted)
FP8 = {
    "blocks, ragged": (codes(192, 300), "weight_scale_inv", torch.rand(2, 3), {"weight_block_size": [128, 128]}, None),
    "blocks, uneven": (codes(40, 24), "weight_scale_inv", torch.rand(3, 3), {"weight_block_size": [16, 8]}, (16, 8)),
    "blocks of bfloat16 scales": (
        codes(64, 64),
        "weight_scale_inv",
        torch.rand(2, 2).bfloat16(),
        {"weight_block_size": [32, 32]},
        (32, 32),
    ),
    "exponents": (
        codes(64, 64),
        "weight_scale_inv",
        torch.tensor([[120, 127], [0, 130]], dtype=torch.uint8).view(torch.float8_e8m0fnu),
        {"weight_block_size": [32, 32], "scale_fmt": "ue8m0"},
        (32, 32),
    ),
    "experts": (codes(3, 40, 24), "weight_scale_inv", torch.rand(3, 3, 3), {"weight_block_size": [16, 8]}, (16, 8)),
    "e5m2": (codes(8, 6, dtype=E5M2), "weight_scale", torch.tensor(0.5), {}, "scaled"),
    "one of a tensor": (codes(8, 6), "weight_scale", torch.tensor([0.3]), {}, "scaled"),
    "one of an output": (codes(8, 6), "weight_scale", torch.rand(8, 1), {}, "scaled"),
    "ComfyUI's": (codes(8, 6), "scale_weight", torch.tensor(0.3), {}, "scaled"),
}


@pytest.mark.parametrize("label", FP8)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fp8_bakes_to_the_product(label, dtype, tmp_path, paramcli):
    """To the bit in float32, and that rounded once; what lies beside it goes, everything else stays."""
    W, name, scale, config, block = FP8[label]
    want = W.float() * scale.float() if block == "scaled" else of_blocks(W, scale, *(block or (128, 128)))
    rest = {"router.bias": torch.randn(4), "norm.weight": torch.ones(3).half()}
    tensors = {"l.weight": W, f"l.{name}": scale, "l.input_scale": torch.tensor(2.0), **rest}
    path = folder(tmp_path, tensors, dtype=dtype, quantization_config={"quant_method": "fp8", **config})
    out = tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    got = load_file(out)
    assert got.keys() == {"l.weight", *rest} and all(torch.equal(got[key], T) for key, T in rest.items())
    assert torch.equal(got["l.weight"], want.to(getattr(torch, dtype)))
    assert "fp8" in paramcli("inspect", path, "--flat").out


def test_a_block_that_nothing_tells_is_asked_for(tmp_path, paramcli):
    """Without a configuration the size is no guess from the shapes; --chain says it."""
    W, scale = codes(192, 300), torch.rand(2, 3)
    path = folder(tmp_path, {"l.weight": W, "l.weight_scale_inv": scale})
    error = paramcli("remove", path, code=3).err
    assert "of how large blocks" in error and "--chain fp8_block:rows=128:columns=128" in error
    out = tmp_path / "out.safetensors"
    paramcli("remove", path, "--chain", "fp8_block:rows=128:columns=100", "-o", out)
    assert torch.equal(load_file(out)["l.weight"], of_blocks(W, scale, 128, 100))


WRONG = {
    "blocks that do not fit": ({"l.weight_scale_inv": torch.rand(3, 3)}, "which blocks of 128x128 do not have"),
    "a NaN code": ({"l.weight": torch.tensor([[255] * 300] * 192, dtype=torch.uint8).view(E4M3)}, "NaN"),
    "a NaN scale": ({"l.weight_scale_inv": torch.full((2, 3), float("nan"))}, "NaN"),
    "another without a scale": ({"m.weight": codes(4, 4)}, "m.weight is in 8-bit floats and has no scale"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_weight_is_refused(wrong, tmp_path, paramcli):
    """One line, nothing written."""
    change, said = WRONG[wrong]
    tensors = {"l.weight": codes(192, 300), "l.weight_scale_inv": torch.rand(2, 3), **change}
    path = folder(tmp_path, tensors, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    out = tmp_path / "out.safetensors"
    assert said in paramcli("remove", path, "-o", out, code=3).err and not out.exists()


def test_experts_have_no_weight_in_their_names(tmp_path, paramcli):
    """A parameter of all experts, its scales under its own name and an ending."""
    W, scale = codes(3, 40, 24), torch.rand(3, 3, 3)
    tensors = {"e.down_proj": W, "e.down_proj_scale_inv": scale, "e.down_proj_activation_scale": torch.ones(3)}
    path = folder(tmp_path, tensors, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 8]})
    out = tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    got = load_file(out)
    assert got.keys() == {"e.down_proj"} and torch.equal(got["e.down_proj"], of_blocks(W, scale, 16, 8))


def test_large_blocks_go_by_rows(tmp_path, paramcli):
    """A matrix of 12 MB of float32 in blocks of rows that its blocks of scales share."""
    W, scale = codes(1700, 2000), torch.rand(17, 16)
    path = folder(
        tmp_path,
        {"l.weight": W, "l.weight_scale_inv": scale},
        quantization_config={"quant_method": "fp8", "weight_block_size": [100, 128]},
    )
    out = tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    assert torch.equal(load_file(out)["l.weight"], of_blocks(W, scale, 100, 128))
