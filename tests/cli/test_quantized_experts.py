"""Experts in MXFP4 and FP8 as gpt-oss, DeepSeek V4 and others store them bake to what transformers makes of them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.fitting.blocks import bake_ranges
from paramcli.maths.minifloats import MxFp4
from paramcli.spelling.opened import open_groups
from tests.conftest import FIXTURES

HERE = FIXTURES / "quantized"
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]


def write(tmp_path, tensors, config, shards=1):
    """A folder with the tensors dealt out to so many files, so that codes and scales lie apart."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, place / "model.safetensors")
        return place / "model.safetensors"
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    places = {key: names[i % shards] for i, key in enumerate(sorted(tensors))}
    for name in names:
        save_file({key: T for key, T in tensors.items() if places[key] == name}, place / name)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return place


@pytest.mark.parametrize("model", ["gpt_oss", "deepseek_v4", "experts"])
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_bakes_to_what_transformers_makes(model, shards, dtype, tmp_path, paramcli):
    stored, answers = load_file(HERE / model / "model.safetensors"), load_file(HERE / model / "answers.safetensors")
    said = json.loads((HERE / model / "config.json").read_text())
    path = write(tmp_path, stored, {**said, "torch_dtype": dtype}, shards)
    out = tmp_path / ("out" if shards > 1 else "out.safetensors")
    paramcli("remove", path, "-o", out)
    got = {k: T for file in (out.glob("*.safetensors") if shards > 1 else [out]) for k, T in load_file(file).items()}
    kept = {key for key in stored if key.startswith("q_norm") or key.endswith("_bias")}
    assert got.keys() == answers.keys() | kept and all(torch.equal(got[key], stored[key]) for key in kept)
    for name, answer in answers.items():
        assert torch.equal(got[name], answer.to(getattr(torch, dtype)))


def blocks(**changes):
    """One expert, one output: codes 0 to 15 twice, the lower half of a byte first; scale 2^2."""
    low = torch.tensor([i | (i + 1) << 4 for i in range(0, 16, 2)] * 2, dtype=torch.uint8)
    tensors = {"e_blocks": low.view(1, 1, 1, 16), "e_scales": torch.full((1, 1, 1), 129, dtype=torch.uint8), **changes}
    return {key: T for key, T in tensors.items() if T is not None}


def test_by_hand(tmp_path, paramcli):
    """The lower half of a byte is the even input; the outputs are the last dimension."""
    path, out = write(tmp_path, blocks(), {}), tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    assert torch.equal(load_file(out)["e"], 4 * torch.tensor(E2M1 * 2).view(1, 32, 1))


I8, E8M0 = torch.int8, torch.float8_e8m0fnu


def packed(scale, out=2, inputs=32):
    return {"w.weight": torch.zeros(out, inputs // 2, dtype=I8), "w.scale": scale.view(E8M0)}


ONES = torch.full((2, 1), 127, dtype=torch.uint8)
WRONG = {
    "no scales": (blocks(e_scales=None), {}, "no e_scales"),
    "no blocks": ({**blocks(e_blocks=None), **packed(ONES)}, {}, "what it belongs to is not there"),
    "other scales": (blocks(e_scales=torch.ones(1, 1, 2, dtype=torch.uint8)), {}, "every block has one"),
    "scales of floats": (blocks(e_scales=torch.ones(1, 1, 1)), {}, "every block has one"),
    "an exponent of 255": (blocks(e_scales=torch.full((1, 1, 1), 255, dtype=torch.uint8)), {}, "exponents of 255"),
    "both spellings": (blocks(e=torch.ones(1, 32, 1)), {}, "the file has that too"),
    "V4, a scale for 16": (packed(torch.full((2, 2), 127, dtype=torch.uint8)), {}, "do not have"),
    "V4, one of 255": (packed(torch.full((2, 1), 255, dtype=torch.uint8)), {}, "NaN"),
    "V4, said to be FP8": (packed(ONES), {"expert_dtype": "fp8"}, "by its configuration of fp8"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_weight_is_refused(wrong, tmp_path, paramcli):
    tensors, said, told = WRONG[wrong]
    config = {"quantization_config": {"quant_method": "fp8"}, **said}
    path, out = write(tmp_path, tensors, config), tmp_path / "out.safetensors"
    assert told in paramcli("remove", path, "-o", out, code=3).err and not out.exists()


@pytest.mark.parametrize("said", [{}, {"expert_dtype": "fp4"}])
def test_what_experts_are_may_be_said_or_not(said, tmp_path, paramcli):
    path, out = (
        write(tmp_path, packed(ONES), {"quantization_config": {"quant_method": "fp8"}, **said}),
        tmp_path / "o.safetensors",
    )
    paramcli("remove", path, "-o", out)
    assert load_file(out)["w.weight"].shape == (2, 32)


def test_a_block_of_v4_that_nothing_tells_is_asked_for(tmp_path, paramcli):
    """And the chain that is printed runs."""
    codes = (torch.randn(130, 8) * 50).to(torch.float8_e4m3fn)
    scale = torch.tensor([[127], [129]], dtype=torch.uint8).view(E8M0)
    path, out = write(tmp_path, {"w.weight": codes, "w.scale": scale}, {}), tmp_path / "out.safetensors"
    error = paramcli("remove", path, code=3).err
    chain = error.partition("--chain ")[2].split()[0].strip(",")
    paramcli("remove", path, "--chain", chain, "-o", out)
    want = codes.float() * torch.tensor([1.0] * 128 + [4.0] * 2)[:, None]
    assert torch.equal(load_file(out)["w.weight"], want)


def test_large_ones_go_expert_by_expert(tmp_path, paramcli):
    """3 experts of 4 MB of float32 each."""
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(256, (3, 1000, 33, 16), generator=random, dtype=torch.uint8)
    scales = torch.randint(100, 150, (3, 1000, 33), generator=random, dtype=torch.uint8)
    path, out = write(tmp_path, {"e_blocks": codes, "e_scales": scales}, {}), tmp_path / "out.safetensors"
    with open_groups(path) as opened:
        group = opened.groups["e"]
        assert len(bake_ranges(group, group.chain, group.view)) == 3
    paramcli("remove", path, "-o", out)
    values = torch.tensor(E2M1)[torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()]
    want = torch.ldexp(values, scales[..., None].int() - 127).flatten(-2).mT
    assert torch.equal(load_file(out)["e"], want)


@pytest.mark.parametrize("transposed", [False, True])
def test_the_codes_of_a_value_are_the_codes_it_came_of(transposed):
    """All pairs of codes; a zero keeps its sign."""
    codes = torch.arange(256, dtype=torch.uint8).reshape(1, 4, 64)
    part = MxFp4.make(torch.empty((1, 128, 4) if transposed else (1, 4, 128)), transposed)
    part.scale.data = torch.arange(16, dtype=torch.uint8).reshape(1, 4, 4) * 15 + 1
    assert torch.equal(part.inverse(part.map(codes)), codes)
