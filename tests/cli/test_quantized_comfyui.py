"""Layers of ComfyUI's files bake to what its kernels make of them, or are refused by what the file says of them."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from paramcli.fitting.blocks import bake_ranges
from paramcli.spelling.opened import open_groups
from tests.conftest import FIXTURES

HERE = FIXTURES / "quantized" / "comfyui"
READ = ("fp8", "int8", "whole", "nvfp4", "tiles4", "tiles8")
E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def layers(names, said="own"):
    """Those layers of the fixture; what is said of them as tensors of their own, or as metadata, without a prefix."""
    tensors = {key: T for key, T in load_file(HERE / "model.safetensors").items() if key.split(".")[0] in names}
    if said == "own":
        return tensors, {}
    confs = {key.split(".")[0]: json.loads(bytes(T.tolist())) for key, T in tensors.items() if "comfy_quant" in key}
    place = "model.diffusion_model."
    tensors = {place + key: T for key, T in tensors.items() if "comfy_quant" not in key}
    return tensors, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": confs}), "by": "me"}


@pytest.mark.parametrize("said", ["own", "metadata"])
def test_what_its_kernels_multiply_is_baked(said, tmp_path, paramcli):
    """FP8, integers with one scale and with one for each output, and floats of 4 and 8 bits with scales in tiles; what
    is said of them goes with their codes.
    """
    tensors, metadata = layers(READ, said)
    save_file(tensors, tmp_path / "m.safetensors", metadata)
    paramcli("remove", tmp_path / "m.safetensors", "-o", tmp_path / "out.safetensors")
    got, answers = load_file(tmp_path / "out.safetensors"), load_file(HERE / "answers.safetensors")
    assert {key.removeprefix("model.diffusion_model.") for key in got} == {f"{name}.weight" for name in READ}
    for key, T in got.items():
        assert torch.equal(T, answers[key.removeprefix("model.diffusion_model.")])
    kept = metadata_of(tmp_path / "out.safetensors")
    assert "_quantization_metadata" not in kept and kept.get("by") == metadata.get("by")


def test_of_layers_that_stay_the_metadata_say_what_they_said(tmp_path, paramcli):
    tensors, metadata = layers(READ, "metadata")
    save_file(tensors, tmp_path / "m.safetensors", metadata)
    paramcli("remove", tmp_path / "m.safetensors", "-t", "*fp8*", "-o", tmp_path / "out.safetensors")
    said = json.loads(metadata_of(tmp_path / "out.safetensors")["_quantization_metadata"])
    assert said["layers"].keys() == set(READ) - {"fp8"} and said["format_version"] == "1.0"


@pytest.mark.parametrize("said", ["own", "metadata"])
def test_what_keys_alone_would_misread_is_refused(said, tmp_path, paramcli):
    """Rotated integers have the keys of others."""
    tensors, metadata = layers([*READ, "turned"], said)
    save_file(tensors, tmp_path / "m.safetensors", metadata)
    told = paramcli("remove", tmp_path / "m.safetensors", "-o", tmp_path / "out.safetensors", code=3).err
    assert "int8_tensorwise with convrot" in told
    assert not (tmp_path / "out.safetensors").exists()


def conf(name):
    return torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)


def in_tiles(scale):
    """As NVIDIA's documentation of cuBLAS places a scale: tile by tile of 128 x 4, row by row of tiles, and in it at
    (row % 32) 16 + (row // 32) 4 + column.
    """
    rows, columns = scale.shape
    across = -(-columns // 4)
    shape = (-(-rows // 128) * 128, across * 4)
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    tile, inner = row // 128 * across + column // 4, row % 128
    flat = torch.zeros(shape[0] * shape[1], dtype=torch.uint8)
    flat[tile * 512 + inner % 32 * 16 + inner // 32 * 4 + column % 4] = scale.view(torch.uint8)
    return flat.view(scale.dtype).view(shape)


def nvfp4(rows, columns, seed=0):
    """(a layer's tensors, its weight): random codes; of a pair the even column is the upper half of a byte."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(16, (rows, columns), generator=random)
    scale = (torch.rand(rows, columns // 16, generator=random) + 0.1).to(E4M3)
    every = torch.tensor(0.37)
    tensors = {
        "a.weight": (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8),
        "a.weight_scale": in_tiles(scale),
        "a.weight_scale_2": every,
        "a.comfy_quant": conf("nvfp4"),
    }
    return tensors, E2M1[codes] * (scale.float() * every).repeat_interleave(16, 1)


def mxfp8(rows, columns, seed=0):
    random = torch.Generator().manual_seed(seed)
    codes = (torch.randn(rows, columns, generator=random) * 50).to(E4M3)
    scale = torch.randint(100, 150, (rows, columns // 32), generator=random, dtype=torch.uint8)
    tensors = {"a.weight": codes, "a.weight_scale": in_tiles(scale).view(E8M0), "a.comfy_quant": conf("mxfp8")}
    return tensors, codes.float() * torch.ldexp(torch.ones(scale.shape), scale.int() - 127).repeat_interleave(32, 1)


@pytest.mark.parametrize("layer", [nvfp4, mxfp8])
# One tile that is full, so that rows and tiles have one shape; several that are not; a weight that goes by rows.
@pytest.mark.parametrize("shape", [(128, 128), (144, 160), (2200, 1056)])
@pytest.mark.parametrize("stored", ["as it is", "bytes", "flat"])
def test_scales_in_tiles_by_hand(layer, shape, stored, tmp_path, paramcli):
    tensors, want = layer(*shape)
    scale = tensors["a.weight_scale"]
    tensors["a.weight_scale"] = {"as it is": scale, "bytes": scale.view(torch.uint8), "flat": scale.flatten()}[stored]
    path, out = tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, path)
    paramcli("remove", path, "-o", out)
    got = load_file(out)
    assert got.keys() == {"a.weight"} and torch.equal(got["a.weight"], want)
    paramcli("verify", path, "--round-trip")
    paramcli("verify", out, "--base", path, "--round-trip")


@pytest.mark.parametrize("layer", [nvfp4, mxfp8])
def test_one_changed_code_is_found_by_what_was_baked(layer, tmp_path, paramcli):
    path, out = tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    tensors, _ = layer(144, 160)
    save_file(tensors, path)
    paramcli("remove", path, "-o", out)
    tensors["a.weight"].view(torch.uint8)[0, 0] ^= 1
    save_file(tensors, path)
    paramcli("verify", out, "--base", path, "--round-trip", code=1)


def without(key):
    return lambda tensors: tensors.pop(key)


def with_(**values):
    return lambda tensors: tensors.update({f"a.{key}": T for key, T in values.items()})


def scale_of(byte):
    """The first scale another byte."""
    return lambda tensors: tensors["a.weight_scale"].view(torch.uint8)[0, 0].fill_(byte)


WRONG = {
    "no scale": (nvfp4, without("a.weight_scale"), "ComfyUI's nvfp4"),
    "no scale for all": (nvfp4, without("a.weight_scale_2"), "ComfyUI's nvfp4"),
    "two for all": (nvfp4, with_(weight_scale_2=torch.ones(2)), "ComfyUI's nvfp4"),
    "scales in rows": (nvfp4, with_(weight_scale=torch.ones(144, 10).to(E4M3)), "ComfyUI's nvfp4"),
    "scales of floats": (mxfp8, with_(weight_scale=torch.ones(256, 8)), "ComfyUI's mxfp8"),
    "other codes": (mxfp8, with_(weight=torch.ones(144, 160).to(torch.float8_e5m2)), "ComfyUI's mxfp8"),
    "a scale of NaN": (nvfp4, scale_of(0x7F), "NaN"),
    "an exponent of 255": (mxfp8, scale_of(0xFF), "NaN"),
    "filled up": (nvfp4, with_(bias=torch.ones(140)), "filled up"),
    "turned inputs": (nvfp4, with_(pre_quant_scale=torch.ones(160)), "pre_quant_scale"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_tiles_that_are_no_weight_are_refused(wrong, tmp_path, paramcli):
    layer, change, told = WRONG[wrong]
    tensors, _ = layer(144, 160)
    change(tensors)
    save_file(tensors, tmp_path / "m.safetensors")
    assert told in paramcli("remove", tmp_path / "m.safetensors", "-o", tmp_path / "out.safetensors", code=3).err
    assert not (tmp_path / "out.safetensors").exists()


def test_large_ones_go_by_rows_of_tiles(tmp_path):
    """Of a multiple of 128 rows each."""
    for layer in (nvfp4, mxfp8):
        save_file(layer(2200, 1056)[0], tmp_path / "m.safetensors")
        with open_groups(tmp_path / "m.safetensors") as opened:
            group = opened.groups["a.weight"]
            ranges = bake_ranges(group, group.chain, group.view)
        assert len(ranges) > 1 and all(begin % 128 == 0 for begin, _ in ranges)


CONFS = {
    "another dtype": b'{"format": "float8_e5m2"}',
    "another kind": b'{"format": "int8_tensorwise"}',
    "unknown": b'{"format": "q\x1b[31m"}',
    "no format": b"{}",
    "a list": b"[1]",
    "no JSON": b"\xff",
    "deep": b"[" * 4000,
    "large": b" " * 5000,
    "a format of a list": b'{"format": [1]}',
}


@pytest.mark.parametrize("conf", CONFS)
def test_what_is_said_and_is_not_so_is_refused(conf, tmp_path, paramcli):
    tensors, _ = layers(["fp8"])
    tensors["fp8.comfy_quant"] = torch.tensor(list(CONFS[conf]), dtype=torch.uint8)
    save_file(tensors, tmp_path / "m.safetensors")
    told = paramcli("remove", tmp_path / "m.safetensors", "-o", tmp_path / "out.safetensors", code=3).err
    assert "fp8.weight is by its file of ComfyUI's" in told and "\x1b" not in told


@pytest.mark.parametrize("text", ["no JSON", "[]", '{"layers": [1]}', "[" * 5000])
def test_metadata_that_say_nothing_are_kept(text, tmp_path, paramcli):
    tensors, _ = layers(["fp8"])
    save_file(tensors, tmp_path / "m.safetensors", {"_quantization_metadata": text})
    paramcli("remove", tmp_path / "m.safetensors", "-o", tmp_path / "out.safetensors")
    assert metadata_of(tmp_path / "out.safetensors")["_quantization_metadata"] == text


def test_the_marker_goes_with_the_last_of_the_scaled_weights(tmp_path, paramcli):
    """As older files have it; `scale_input` belongs to its weight."""
    codes = (torch.randn(6, 4) * 100).to(E4M3)
    tensors = {"scaled_fp8": torch.empty(0, dtype=E4M3), "n.weight": torch.ones(4).half()}
    for name, scale in (("a", 0.3), ("b", 0.7)):
        own = {"weight": codes, "scale_weight": torch.tensor(scale), "scale_input": torch.tensor(1.0)}
        tensors.update({f"{name}.{key}": T.clone() for key, T in own.items()})
    save_file(tensors, tmp_path / "m.safetensors")
    paramcli("remove", tmp_path / "m.safetensors", "-t", "a.weight", "-o", tmp_path / "half.safetensors")
    half = load_file(tmp_path / "half.safetensors")
    assert half.keys() == tensors.keys() - {"a.scale_weight", "a.scale_input"}
    paramcli("remove", tmp_path / "half.safetensors", "-o", tmp_path / "out.safetensors")
    got = load_file(tmp_path / "out.safetensors")
    assert got.keys() == {"a.weight", "b.weight", "n.weight"}
    assert torch.equal(got["b.weight"], codes.float() * torch.tensor(0.7))
    paramcli("remove", tmp_path / "m.safetensors", "-o", tmp_path / "once.safetensors")
    assert load_file(tmp_path / "once.safetensors").keys() == got.keys()
