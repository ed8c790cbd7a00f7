"""Layers of ComfyUI's files bake to what its kernels make of them, or are refused by what the file says of them."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.conftest import FIXTURES

HERE = FIXTURES / "quantized" / "comfyui"
READ = ("fp8", "int8", "whole")
E4M3 = torch.float8_e4m3fn


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
    """FP8, and integers with one scale and with one for each output; what is said of them goes with their codes."""
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
    assert said["layers"].keys() == {"int8", "whole"} and said["format_version"] == "1.0"


@pytest.mark.parametrize("said", ["own", "metadata"])
@pytest.mark.parametrize(("name", "told"), [("turned", "int8_tensorwise with convrot"), ("nvfp4", "ComfyUI's nvfp4")])
def test_what_keys_alone_would_misread_is_refused(name, told, said, tmp_path, paramcli):
    """Rotated integers have the keys of others, and its FP4 those of ModelOpt's."""
    tensors, metadata = layers([*READ, name], said)
    save_file(tensors, tmp_path / "m.safetensors", metadata)
    assert told in paramcli("remove", tmp_path / "m.safetensors", "-o", tmp_path / "out.safetensors", code=3).err
    assert not (tmp_path / "out.safetensors").exists()


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
