"""Quantized weights: what is baked is the product that torch computes by hand, in float32, rounded once."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.spelling.quantization_config import unquantized_config

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


def test_a_weight_out_of_its_codes_beside_its_scale_is_no_plain_weight(tmp_path, paramcli):
    """Codes that were cast to floats, -3 for -0.24, among others that were not, and where they are all that there is.
    Who knows that the weight is right takes the scale out.
    """
    W, scale = codes(8, 16), torch.tensor(0.125)
    whole = {"a.weight": W, "a.weight_scale": scale, "b.weight": W.bfloat16(), "b.weight_scale": scale.clone()}
    half = {key: tensor for key, tensor in whole.items() if key.startswith("b.")}
    for number, tensors in enumerate((whole, half)):
        place = tmp_path / str(number)
        place.mkdir()
        path = folder(place, tensors, quantization_config={"quant_method": "fp8"})
        before = sorted(p.name for p in place.rglob("*"))
        error = paramcli("remove", path, "-o", place / "out.safetensors", code=3).err
        assert "b.weight_scale is what a quantized weight is decoded with, and b.weight is in no codes" in error
        assert "--drop takes the scale out" in error and sorted(p.name for p in place.rglob("*")) == before
    dropped = tmp_path / "dropped.safetensors"
    paramcli("convert", tmp_path / "0" / "model", "--drop", "b.weight_scale", "-o", dropped)
    paramcli("remove", dropped, "-o", tmp_path / "baked.safetensors")
    baked = load_file(tmp_path / "baked.safetensors")
    assert torch.equal(baked["a.weight"], (W.float() * scale).to(baked["a.weight"].dtype))
    assert torch.equal(baked["b.weight"], W.bfloat16())


def test_codes_without_a_scale_are_refused_by_the_configuration_alone(tmp_path, paramcli):
    path = folder(tmp_path, {"l.weight": codes(8, 16)}, quantization_config={"quant_method": "fp8"})
    error = paramcli("remove", path, code=3).err
    assert "l.weight is in 8-bit floats and has no scale beside it" in error


@pytest.mark.parametrize("method", ["foobar", "FP8_NEW"])
def test_a_method_that_nobody_knows_is_asked_for(method, tmp_path, paramcli):
    """Its keys may mean anything; --chain says what they do."""
    W, scale = codes(8, 16), torch.tensor(0.125)
    path = folder(
        tmp_path,
        {"l.weight": W, "l.weight_scale": scale},
        dtype="float32",
        quantization_config={"quant_method": method},
    )
    error = paramcli("remove", path, code=3).err
    assert f"l.weight is by its configuration quantized by {method}, which nothing here knows" in error
    assert "--chain fp8_scaled:per=tensor" in error
    out = tmp_path / "out.safetensors"
    paramcli("remove", path, "--chain", "fp8_scaled:per=tensor", "-o", out)
    assert torch.equal(load_file(out)["l.weight"], W.float() * scale)


WRONG = {
    "blocks that do not fit": ({"l.weight_scale_inv": torch.rand(3, 3)}, "which blocks of 128x128 do not have"),
    "a NaN code": ({"l.weight": torch.tensor([[255] * 300] * 192, dtype=torch.uint8).view(E4M3)}, "NaN"),
    "a NaN scale": ({"l.weight_scale_inv": torch.full((2, 3), float("nan"))}, "NaN"),
    "another without a scale": ({"m.weight": codes(4, 4)}, "m.weight is in 8-bit floats and has no scale"),
    "experts without a scale": ({"e.w13": codes(2, 4, 4)}, "e.w13 is in 8-bit floats and has no scale"),
    "integers without a scale": (
        {"m.weight": torch.ones(4, 4, dtype=torch.int8)},
        "m.weight is in 8-bit integers and has no scale",
    ),
    "experts of integers": (
        {"e.down_proj": torch.ones(2, 4, 4, dtype=torch.int8)},
        "e.down_proj is in 8-bit integers and has no scale",
    ),
    "packed ones without a scale": (
        {"m.in_proj_weight": torch.ones(4, 4, dtype=torch.uint8)},
        "m.in_proj_weight is in 8-bit integers and has no scale",
    ),
}
# What is whole numbers, or 8-bit floats, and no weight: it stays as it is beside quantized ones.
PLAIN = {
    "attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8),
    "attn.mask": torch.ones(8, 8, dtype=torch.int8),
    "keep.weight": torch.ones(8, 8, dtype=torch.bool),
    "spiece_model": torch.ones(64, dtype=torch.uint8),
    "l.weight_mask": torch.ones(4, 4, dtype=torch.uint8),
    "position_ids": torch.arange(8).view(1, 8),
    "relative_position_index": torch.arange(64).view(8, 8),
    "norm.num_batches_tracked": torch.tensor(3),
    "hash.weight": torch.arange(8).view(2, 4),
    "classes.weight": torch.ones(8, dtype=torch.uint8),
    "n.bias": torch.ones(8).to(E4M3),
}


def test_whole_numbers_that_are_no_codes_stay(tmp_path, paramcli):
    """Positions, masks, counters, tokenizers, biases."""
    path, out = blocks(tmp_path, **PLAIN), tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    got = load_file(out)
    assert all(got[name].dtype == T.dtype and torch.equal(got[name].float(), T.float()) for name, T in PLAIN.items())


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


def blocks(tmp_path, dtype="bfloat16", **change):
    """A folder with one matrix in blocks of 128 x 128."""
    tensors = {"l.weight": codes(192, 300), "l.weight_scale_inv": torch.rand(2, 3) + 0.1, "n.weight": torch.ones(3)}
    config = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    return folder(tmp_path, {**tensors, **change}, dtype=dtype, quantization_config=config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_of_the_value_is_said(dtype, tmp_path, paramcli):
    """remove --dtype: the product rounded once to it; what is not decoded stays; codes alone are no weight."""
    path, out = blocks(tmp_path), tmp_path / "out.safetensors"
    tensors = load_file(path)
    want = of_blocks(tensors["l.weight"], tensors["l.weight_scale_inv"], 128, 128)
    paramcli("remove", path, "--dtype", dtype, "-o", out)
    got = load_file(out)
    assert torch.equal(got["l.weight"], want.to(getattr(torch, dtype))) and torch.equal(got["n.weight"], torch.ones(3))
    assert paramcli("diff", path, out).code == 0
    assert "they are no weight" in paramcli("remove", path, "--no-bake", code=3).err
    assert "computes none" in paramcli("remove", path, "--no-bake", "--dtype", dtype, code=2).err


def test_a_weight_norm_bakes_in_another_dtype(tmp_path, paramcli):
    """The same of any parametrization: rounded once, from double precision here."""
    g, v = torch.rand(4, 1), torch.randn(4, 6)
    save_file({"l.weight_g": g, "l.weight_v": v}, tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    paramcli("remove", tmp_path / "a.safetensors", "--dtype", "bfloat16", "--compute-dtype", "float64", "-o", out)
    want = g.double() * v.double() / v.double().norm(dim=1, keepdim=True)
    assert torch.equal(load_file(out)["l.weight"], want.bfloat16())


def test_the_configuration_follows(tmp_path, paramcli):
    """Shards, a weight and its scale in different ones: the result's config.json is of a plain model, and what else
    says quantized goes; with some weights still in codes it stays as it is.
    """
    tensors = {f"{name}.weight": codes(64, 64) for name in "ab"} | {
        f"{name}.weight_scale_inv": torch.rand(2, 2) for name in "ab"
    }
    place = tmp_path / "model"
    place.mkdir()
    home = {key: f"model-0000{1 + number % 3}-of-00003.safetensors" for number, key in enumerate(sorted(tensors))}
    for file in set(home.values()):
        save_file({key: T for key, T in tensors.items() if home[key] == file}, place / file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))
    config = {"torch_dtype": "bfloat16", "hidden_size": 64, "quantization_config": {"weight_block_size": [32, 32]}}
    (place / "config.json").write_text(json.dumps(config))
    (place / "hf_quant_config.json").write_text("{}")
    paramcli("remove", place, "--dtype", "float16", "-o", tmp_path / "out")
    out = tmp_path / "out"
    assert json.loads((out / "config.json").read_text()) == {"torch_dtype": "float16", "hidden_size": 64}
    assert not (out / "hf_quant_config.json").exists()
    got = {key: T for part in out.glob("*.safetensors") for key, T in load_file(part).items()}
    want = {
        f"{name}.weight": of_blocks(tensors[f"{name}.weight"], tensors[f"{name}.weight_scale_inv"], 32, 32).half()
        for name in "ab"
    }
    assert got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in want)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(want)
    paramcli("remove", place, "-t", "a.weight", "-o", tmp_path / "some")
    assert json.loads((tmp_path / "some" / "config.json").read_text()) == config


@pytest.mark.parametrize("name", ["model", "diffusion_pytorch_model"])
@pytest.mark.parametrize("how", [["--in-place"], ["-o", "out"], ["-o", "out/"]], ids=" ".join)
def test_the_configuration_follows_in_a_folder_of_one_file(how, name, tmp_path, monkeypatch, paramcli):
    """In place too: weights without codes are not described by a configuration that has them."""
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "model"
    place.mkdir()
    tensors = {"a.weight": codes(64, 64), "a.weight_scale_inv": torch.rand(2, 2)}
    save_file(tensors, place / f"{name}.safetensors", {"format": "pt"})
    config = {"torch_dtype": "bfloat16", "hidden_size": 64, "quantization_config": {"weight_block_size": [32, 32]}}
    (place / "config.json").write_text(json.dumps(config))
    (place / "tokenizer.json").write_text("{}")
    paramcli("convert", "model", "-o", "again", "--max-shard-size", "1KB")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config
    want = of_blocks(tensors["a.weight"], tensors["a.weight_scale_inv"], 32, 32).half()
    for given in ("model", "again") if how != ["--in-place"] else ("model",):
        paramcli("remove", given, "--dtype", "float16", "-f" if "-o" in how else "-q", *how)
        out = place if how == ["--in-place"] else tmp_path / "out"
        assert json.loads((out / "config.json").read_text()) == {"torch_dtype": "float16", "hidden_size": 64}
        assert (out / "tokenizer.json").read_text() == "{}"
        got = {key: T for part in out.glob("*.safetensors") for key, T in load_file(part).items()}
        assert got.keys() == {"a.weight"} and torch.equal(got["a.weight"], want)
        if given == "model":
            assert [path.name for path in out.glob("*.safetensors")] == [f"{name}.safetensors"]
    paramcli("inspect", out)
    assert not list(tmp_path.rglob(".*"))


def test_verify_finds_codes_and_scales_that_are_no_numbers(tmp_path, paramcli):
    """Exit 1 with how many; a sound file holds."""
    assert paramcli("verify", blocks(tmp_path)).code == 0
    for number, change in enumerate(
        (
            {"l.weight": torch.tensor([[127] + [1] * 299] * 192, dtype=torch.uint8).view(E4M3)},
            {"l.weight_scale_inv": torch.tensor([[1, 1, 1], [1, float("inf"), 1]])},
        )
    ):
        (tmp_path / str(number)).mkdir()
        said = paramcli("verify", blocks(tmp_path / str(number), **change), "--json", code=1).json
        [check] = [check for check in said["tensors"][0]["checks"] if check["constraint"] == "decodable"]
        assert check["residual"] == (192 if number == 0 else 1)


def test_a_round_trip_gives_the_codes_back(tmp_path, paramcli):
    """Of every code of 8-bit floats; of a file that was baked in bfloat16 too, until one code or one scale changes."""
    every = torch.arange(256, dtype=torch.uint8)
    every = every[(every & 0x7F) != 0x7F].view(E4M3).repeat(192 * 300 // 254 + 1)[: 192 * 300].reshape(192, 300)
    path, out = blocks(tmp_path, **{"l.weight": every}), tmp_path / "out.safetensors"
    assert paramcli("verify", path, "--round-trip").code == 0
    paramcli("remove", path, "-o", out)
    assert paramcli("verify", out, "--base", path, "--round-trip").code == 0
    tensors = load_file(path)
    bits = tensors["l.weight"].view(torch.uint8).clone()
    bits[5, 7] ^= 1
    for number, change in enumerate(
        (
            {"l.weight": bits.view(E4M3)},
            {"l.weight_scale_inv": tensors["l.weight_scale_inv"] * torch.tensor([1, 1, 2.0])},
        )
    ):
        (tmp_path / str(number)).mkdir()
        other = blocks(tmp_path / str(number), **{**tensors, **change})
        said = paramcli("verify", out, "--base", other, "--round-trip", "--json", code=1).json
        [check] = [check for check in said["tensors"][0]["checks"] if check["constraint"] == "round_trip"]
        assert 0 < check["residual"] <= 0.5
    plain = tmp_path / "plain.safetensors"
    save_file({"n.weight": torch.ones(3)}, plain)
    assert "stores no weight in codes" in paramcli("verify", plain, "--round-trip", code=3).err
    assert "not there" in paramcli("verify", plain, "--base", path, "--round-trip", code=3).err
    paramcli("verify", path, "--round-trip", "--constraint", "orthogonal", code=2)


def test_an_adapter_is_merged_onto_what_the_codes_stand_for(tmp_path, paramcli):
    """One bake of both: what merging onto the decoded file gives, but rounded once."""
    path, out = blocks(tmp_path), tmp_path / "out.safetensors"
    tensors = load_file(path)
    A, B = torch.randn(3, 300), torch.randn(192, 3)
    (tmp_path / "lora").mkdir()
    names = ("base_model.model.l.lora_A.weight", "base_model.model.l.lora_B.weight")
    save_file(dict(zip(names, (A, B), strict=True)), tmp_path / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    paramcli("merge", path, "--adapter", tmp_path / "lora", "--dtype", "float32", "-o", out)
    want = (
        of_blocks(tensors["l.weight"], tensors["l.weight_scale_inv"], 128, 128).double() + 2 * B.double() @ A.double()
    )
    torch.testing.assert_close(load_file(out)["l.weight"].double(), want, rtol=1e-5, atol=1e-5)
    whole = tmp_path / "whole.safetensors"
    paramcli("merge", path, "--adapter", tmp_path / "lora", "-o", whole)
    assert torch.equal(load_file(whole)["l.weight"], load_file(out)["l.weight"].bfloat16())
    for merged in (out, whole):
        assert paramcli("verify", merged, "--base", path, "--adapter", tmp_path / "lora").code == 0
    paramcli("merge", path, "--adapter", tmp_path / "lora", "--strength", 0.5, "-o", tmp_path / "half.safetensors")
    half = ("verify", tmp_path / "half.safetensors", "--base", path, "--adapter", tmp_path / "lora")
    assert "at 0.5 times its strength" in paramcli(*half, code=1).out


def test_a_merge_onto_codes_leaves_none(tmp_path, paramcli):
    """Weights that the adapter does not change are decoded too, and the configuration is a plain model's; an adapter of
    plain weights leaves a quantized model quantized.
    """
    place = tmp_path / "model"
    place.mkdir()
    tensors = {"a.weight": codes(64, 64), "b.weight": codes(64, 64), "c.weight": torch.randn(64, 64)}
    tensors |= {f"{name}.weight_scale_inv": torch.rand(2, 2) for name in "ab"}
    home = {key: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(sorted(tensors))}
    for file in set(home.values()):
        save_file({key: T for key, T in tensors.items() if home[key] == file}, place / file)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": home}))
    config = {"dtype": "bfloat16", "quantization_config": {"weight_block_size": [32, 32]}}
    (place / "config.json").write_text(json.dumps(config))
    for name in "ac":
        (tmp_path / name).mkdir()
        factors = {"lora_A": torch.randn(2, 64), "lora_B": torch.randn(64, 2)}
        save_file(
            {f"base_model.model.{name}.{part}.weight": T for part, T in factors.items()},
            tmp_path / name / "adapter_model.safetensors",
        )
        (tmp_path / name / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
        paramcli("merge", place, "--adapter", tmp_path / name, "-o", tmp_path / f"out_{name}")
        done = {k: t for part in (tmp_path / f"out_{name}").glob("*.safetensors") for k, t in load_file(part).items()}
        described = json.loads((tmp_path / f"out_{name}" / "config.json").read_text())
        if name == "c":
            assert described == config and torch.equal(
                done["a.weight"].view(torch.uint8), tensors["a.weight"].view(torch.uint8)
            )
            continue
        want = of_blocks(tensors["b.weight"], tensors["b.weight_scale_inv"], 32, 32).bfloat16()
        assert (
            described == {"dtype": "bfloat16"}
            and torch.equal(done["b.weight"], want)
            and set(done) == {f"{one}.weight" for one in "abc"}
        )
        proof = paramcli("verify", tmp_path / "out_a", "--base", place, "--adapter", tmp_path / name)
        assert proof.code == 0


def test_no_chain_is_put_on_codes_and_no_decoder_on_weights(tmp_path, paramcli):
    """Both are told before anything is written."""
    path = blocks(tmp_path)
    assert "stores codes" in paramcli("add", path, "-t", "l.weight", "--chain", "skew", code=3).err
    assert "put on no weight" in paramcli("add", path, "-t", "n.weight", "--chain", "fp8_scaled", code=2).err


def test_an_older_name_of_the_configuration_is_read(tmp_path, paramcli):
    """`compression_config`, as compressed-tensors wrote in 2024; it goes with the codes, too."""
    tensors = {"l.weight": codes(192, 300), "l.weight_scale": torch.rand(12, 3) + 0.1}
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "16x128"}
    said = {"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Linear"], "weights": weights}}}
    path, out = folder(tmp_path, tensors, compression_config=said), tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    assert torch.equal(load_file(out)["l.weight"], of_blocks(tensors["l.weight"], tensors["l.weight_scale"], 16, 128))
    plain = unquantized_config(path.parent, "float32")
    assert json.loads(plain) == {"model_type": "tiny", "torch_dtype": "float32"}


def test_questions_of_codes_name_the_command_that_bakes(tmp_path, paramcli):
    """inspect, discover, and convert, which leaves them; where nothing scales them there is nothing to bake."""
    path = blocks(tmp_path)
    bake = f"paramcli remove {path}"
    assert f"next: {bake}\n" in paramcli("inspect", path).out
    found = paramcli("discover", path)
    assert f"looked at is what the codes of l.weight stand for; {bake} bakes it" in found.err
    told = paramcli("convert", path, "--dtype", "float16", "-o", tmp_path / "c.safetensors").err
    assert f"a cast decodes nothing: {bake} --dtype float16 bakes what they stand for" in told
    lone = tmp_path / "lone.safetensors"
    save_file({"l.weight": codes(4, 4), "n.weight": torch.ones(3)}, lone)
    assert "remove" not in paramcli("inspect", lone).out
    assert "not looked at: l.weight: it is in codes (float8_e4m3fn)" in paramcli("discover", lone).err
    assert "remove" not in paramcli("convert", lone, "--dtype", "float16", "-o", tmp_path / "d.safetensors").err


def test_what_was_baked_is_in_codes_no_more(tmp_path, paramcli):
    """The record's chain of a baked weight is a decoder's, and the weight is plain."""
    path, out = blocks(tmp_path), tmp_path / "out.safetensors"
    assert "; 1 in codes: fp8_block\n" in paramcli("inspect", path).out
    paramcli("remove", path, "-o", out)
    said = paramcli("inspect", out).out
    assert "baked" in said and not any(word in said for word in ("parametrized", "in codes", "next:"))
    assert "codes" not in paramcli("discover", out).err
    assert "codes" not in paramcli("convert", out, "--dtype", "float16", "-o", tmp_path / "c.safetensors").err


# Shapes of codes and scales -> the block that is tried.
TRIED = {
    "as most": ((256, 300), (2, 3), "rows=128:columns=128"),
    "one scale": ((64, 32), (1, 1), "rows=128:columns=128"),
    "smaller": ((128, 64), (8, 4), "rows=16:columns=16"),
    "ragged": ((100, 60), (7, 4), "rows=16:columns=16"),
    "uneven": ((64, 64), (4, 2), "rows=16:columns=32"),
    "groups": ((8, 256), (8, 2), "rows=1:columns=128"),
    "of no power of two": ((72, 72), (4, 4), "rows=18:columns=18"),
    "one of no power of two": ((72, 64), (4, 4), "rows=18:columns=16"),
    "experts": ((3, 64, 64), (3, 4, 4), "rows=16:columns=16"),
    "of no block": ((10, 10), (7, 5), None),
    "of other experts": ((3, 64, 64), (2, 4, 4), None),
}


@pytest.mark.parametrize("label", TRIED)
def test_a_block_that_is_tried_fits_the_shapes(label, tmp_path, paramcli):
    """And what is typed as the hint says is taken; the tensor counts as one in codes before that, too."""
    shape, scales, block = TRIED[label]
    path = folder(tmp_path, {"l.weight": codes(*shape), "l.weight_scale_inv": torch.rand(scales) + 0.1})
    assert "; 1 in codes: fp8_block\n" in paramcli("inspect", path).out
    said = paramcli("remove", path, "-o", tmp_path / "out.safetensors", code=3).err
    if block is None:
        assert "--chain" not in said and "the file is incomplete" in said
        return
    assert f"try: --chain fp8_block:{block}, if that is its block\n" in said
    paramcli("remove", path, "--chain", f"fp8_block:{block}", "-o", tmp_path / "out.safetensors")


def test_exponents_that_every_row_has_are_tried_by_groups_of_32(tmp_path, paramcli):
    exponents = torch.full((8, 2), 127, dtype=torch.uint8)
    path = folder(tmp_path, {"l.weight": codes(8, 64), "l.weight_scale_inv": exponents})
    assert "fp8_block:rows=1:columns=32, if" in paramcli("remove", path, code=3).err
