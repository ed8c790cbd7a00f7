"""What is said of quantized checkpoints: of the files beside them, and what to type next."""

import json
import shlex
import shutil

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.registry import target_class
from tests.conftest import FIXTURES


@pytest.mark.parametrize("beside", ["config.json", "hf_quant_config.json"])
def test_a_configuration_that_stays_beside_its_file_is_told(beside, tmp_path, paramcli):
    """Of a file that was given by its own name nothing beside it is touched; of its folder all follows."""
    for name in ("file", "folder"):
        (tmp_path / name).mkdir()
        shutil.copy(FIXTURES / "compressed" / "integers" / "model.safetensors", tmp_path / name)
        said = json.loads((FIXTURES / "compressed" / "integers" / "config.json").read_text())
        (tmp_path / name / beside).write_text(json.dumps(said))
    before = (tmp_path / "file" / beside).read_bytes()
    told = paramcli("remove", tmp_path / "file" / "model.safetensors", "--in-place").err
    assert f"{tmp_path / 'file' / beside} still says that its weights are quantized" in told
    assert (tmp_path / "file" / beside).read_bytes() == before
    told = paramcli("remove", tmp_path / "folder", "--in-place").err
    assert "still says" not in told
    # Under another name no loader reads it by that configuration.
    path = FIXTURES / "compressed" / "integers" / "model.safetensors"
    assert "still says" not in paramcli("remove", path, "-o", tmp_path / "file" / "other.safetensors").err


def test_a_configuration_that_is_no_json_is_told(tmp_path, paramcli):
    """It goes along as it is; what it says of codes nobody knows."""
    shutil.copy(FIXTURES / "compressed" / "integers" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"quantization_config": ')
    said = paramcli("remove", tmp_path, "-o", tmp_path / "out").err
    assert f"{tmp_path / 'config.json'} is no JSON object" in said
    assert (tmp_path / "out" / "config.json").read_text() == '{"quantization_config": '
    assert "no JSON" not in paramcli("remove", tmp_path, "-o", tmp_path / "out.safetensors").err


def test_hints_name_the_folder_that_was_given_and_only_what_can_be_baked(tmp_path, paramcli):
    """Pasted, each does what it says."""
    place = tmp_path / "q"
    shutil.copytree(FIXTURES / "compressed" / "packed", place, ignore=shutil.ignore_patterns("answers*"))
    said = paramcli("inspect", place).out
    assert said.splitlines()[-1] == f"next: paramcli remove {place}"
    # 12 of 11 x 96, whatever words they are packed into.
    assert "12 tensors, 12,672 values" in said
    comfy = FIXTURES / "quantized" / "comfyui" / "model.safetensors"
    said = paramcli("inspect", comfy).out
    typed = shlex.split(said.partition("next: paramcli ")[2].splitlines()[0])
    assert typed[:2] == ["remove", str(comfy)] and "turned.weight" not in typed and typed.count("-t") == 6
    paramcli(*typed, "-o", tmp_path / "out.safetensors")


def test_of_several_files_the_one_that_loaders_look_for_is_named(tmp_path, paramcli):
    said = paramcli("inspect", FIXTURES / "compressed" / "integers", code=3).err
    assert said.rstrip().endswith("integers/model.safetensors") and "answers.safetensors, model.safetensors" in said


@pytest.mark.parametrize("said", ["{}", '{"quantization_config": null}', '{"text_config": {"quantization_config": 3}}'])
def test_a_configuration_that_says_nothing_of_codes_is_not_told(said, tmp_path, paramcli):
    shutil.copy(FIXTURES / "compressed" / "integers" / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text(said)
    for command in (["-o", tmp_path / "out"], ["-o", tmp_path / "out.safetensors"]):
        told = paramcli("remove", tmp_path, *command).err
        assert "no JSON" not in told and "still says" not in told
    assert "still says" not in paramcli("remove", tmp_path / "model.safetensors", "--in-place").err


def test_the_proof_of_some_tensors_names_them(tmp_path, paramcli):
    """Of a file that is partly decoded: without the names the others would be asked for."""
    comfy, out = FIXTURES / "quantized" / "comfyui" / "model.safetensors", tmp_path / "out.safetensors"
    said = paramcli("remove", comfy, "-t", "fp8.weight", "-t", "int8.weight", "-o", out).err
    assert "turned.weight stays in int8, as before: nothing says what decodes it" in said
    paramcli(*shlex.split(said.partition("next: paramcli ")[2].splitlines()[0]))


def test_no_live_model_has_codes(tmp_path, paramcli):
    """What `snippet` would print is no model that can be loaded."""
    said = paramcli("snippet", FIXTURES / "quantized" / "experts" / "model.safetensors", code=3).err
    assert "stores codes" in said and "paramcli remove" in said


def test_codes_are_assigned_nothing_and_decoded_by_columns_that_fit(tmp_path, paramcli):
    """In the words of `add`; and a chain that has no room for a shape says which it has."""
    experts = FIXTURES / "quantized" / "experts" / "model.safetensors"
    out = ["-o", tmp_path / "out.safetensors"]
    said = paramcli("assign", experts, "-t", "e.down_proj", "--with", "orthogonal", *out, code=3).err
    assert "e.down_proj stores codes" in said and "paramcli remove" in said
    with pytest.raises(InputRefused, match="a multiple of 32 of them, and the tensor is 8x20"):
        target_class(parse_chain("mxfp4").links[0].entry).check_shape(torch.Size((8, 20)))
    assert not (tmp_path / "out.safetensors").exists()
