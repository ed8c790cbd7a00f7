"""Where no tensor is parametrized, the error says what is there instead, and what to do next."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from paramcli.spelling.foreign import FOREIGN


def T(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(len(shape))
    return torch.randn(shape).to(dtype)


I32, I8, U8, F8 = torch.int32, torch.int8, torch.uint8, torch.float8_e4m3fn
LORA = "merge"
CODES = "the library that quantized it"
# label -> (tensors, what is said, what to do)
FILES = {
    "PEFT in a state dict": (
        {"q.base_layer.weight": T(6, 4), "q.lora_A.default.weight": T(2, 4), "q.lora_B.default.weight": T(6, 2)},
        "LoRA factors as PEFT names them (q.lora_A.default.weight, q.lora_B.default.weight)",
        LORA,
    ),
    "PEFT adapter": (
        {"base_model.model.q.lora_A.weight": T(2, 4), "base_model.model.q.lora_B.weight": T(6, 2)},
        "PEFT",
        "paramcli merge BASE --adapter",
    ),
    "PEFT embedding": ({"base_model.model.e.lora_embedding_A": T(2, 9), "q.weight": T(3, 3)}, "PEFT", LORA),
    "loralib": (
        {"fc.weight": T(6, 4), "fc.lora_A": T(2, 4), "fc.lora_B": T(6, 2)},
        "LoRA factors as loralib names them (fc.lora_A, fc.lora_B)",
        "model.eval()",
    ),
    "loralib convolution": ({"c.conv.weight": T(6, 4, 3), "c.lora_A": T(6, 12), "c.lora_B": T(18, 6)}, "loralib", LORA),
    "kohya": (
        {"lora_unet_a.lora_down.weight": T(2, 4), "lora_unet_a.lora_up.weight": T(6, 2), "lora_unet_a.alpha": T()},
        "a LoRA as kohya and LyCORIS name its factors",
        "paramcli merge BASE --adapter",
    ),
    "LyCORIS": ({"lycoris_a.hada_w1_a": T(6, 2), "lycoris_a.hada_w1_b": T(2, 4)}, "LyCORIS", LORA),
    "diffusers": (
        {"attn.to_q_lora.down.weight": T(2, 4), "attn.to_q_lora.up.weight": T(4, 2)},
        "older diffusers",
        LORA,
    ),
    "BigGAN": (
        {"l.weight": T(6, 4), "l.u0": T(1, 6), "l.sv0": T(1)},
        "BigGAN's own code (l.sv0)",
        "-t l.weight --chain spectral_norm --init raw",
    ),
    "a vector of spectral norm": ({"l.weight": T(6, 4), "l.weight_u": T(6)}, "spectral norms", "-t l.weight"),
    "a mask": (
        {"l.weight": T(6, 4), "l.weight_mask": (T(6, 4) > 0).float()},
        "masks beside weights, multiplied in the model's own code (l.weight_mask)",
        "-t l.weight --chain mask --mask",
    ),
    "qweight of floats": ({"l.qweight": T(8, 8)}, "GPTQ, AWQ or the like", CODES),
    "AQLM": (
        {"l.codes": T(8, 4, 1, dtype=I8), "l.codebooks": T(1, 16, 1, 8), "l.scales": T(8, 1, 1, 1)},
        "quantized by AQLM, which nothing here decodes (l.codes)",
        "load it with aqlm",
    ),
    "EXL2": (
        {"l.q_weight": T(4, 8, dtype=I32), "l.q_invperm": T(8, dtype=I32), "l.q_scale": T(1, 1, dtype=I32)},
        "quantized by EXL2",
        "load it with exllamav2",
    ),
    "EXL3": ({"l.trellis": T(1, 1, 64, dtype=I8), "l.suh": T(16), "l.svh": T(16)}, "by EXL3", "exllamav3"),
    "HQQ": ({"l.W_q": T(8, 4, dtype=U8), "l.scale": T(8, 1), "l.zero": T(8, 1)}, "quantized by HQQ", "hqq"),
    "VPTQ": ({"l.indices": T(1, 8, 4, dtype=I32), "l.centroids.weight": T(1, 16)}, "quantized by VPTQ", "vptq"),
    "HIGGS": ({"l.weight": T(4, 4, dtype=I32), "l.tables": T(4), "l.tables2": T(4, 4, 2)}, "by HIGGS", "flute"),
    "Quanto": ({"l.weight._data": T(8, 4, dtype=I8), "l.weight._scale": T(8, 1)}, "by Quanto", "optimum-quanto"),
    "torchao": ({"l._weight_qdata": T(8, 4, dtype=I8), "l._weight_scale": T(8, 1)}, "by torchao", "with torchao"),
    "Marlin": ({"l.B": T(1, 16, dtype=I32), "l.s": T(1, 8, dtype=torch.half)}, "quantized by Marlin", "its kernel"),
    "bitsandbytes without its codes": (
        {"l.weight.absmax": T(1), "l.weight.quant_map": T(16)},
        "bitsandbytes (l.weight.absmax)",
        CODES,
    ),
    "bitsandbytes, 8 bits, without them": ({"m.weight": T(8, 8), "l.SCB": T(8)}, "bitsandbytes (l.SCB)", CODES),
    "a plain model": ({"fc.bias": T(4), "fc.weight": T(4, 4)}, "all its 2 tensors are plain", "-t fc.weight --chain"),
    "one tensor": ({"w": T(4, 4)}, "its one tensor is plain", "discover"),
    "nothing": ({}, "it holds no tensor", "the file that the weights are in"),
}
# Names and shapes that look like those and are none.
PLAIN = {
    "a mask of another shape": {"l.weight": T(6, 4), "l.weight_mask": T(6)},
    "a buffer of its own": {"gaussian_blurred_cent_mask": T(36), "l.weight": T(3, 3)},
    "a norm's scale": {"q_norm.scale": T(4), "q_norm.weight": T(4)},
    "a learnt scale": {"l.weight": T(4, 4), "l.weight_scale": T(4)},
    "alpha alone": {"snake.alpha": T(4), "l.weight": T(4, 4)},
    "exploration": {"explora_Army.weight": T(4, 4)},
}


@pytest.mark.parametrize("label", FILES)
def test_what_is_there_instead_is_said(label, tmp_path, paramcli):
    """remove, verify and migrate name the keys, what they are, and the next step; exit 3."""
    tensors, what, then = FILES[label]
    save_file(tensors, tmp_path / "m.safetensors")
    for command in (["remove"], ["verify"], ["migrate", "--to", "new"]):
        told = paramcli(*command, tmp_path / "m.safetensors", code=3).err
        assert what in told.splitlines()[0]
        if label not in ("a plain model", "one tensor") or command != ["verify"]:
            assert then in told.splitlines()[1]


@pytest.mark.parametrize("label", PLAIN)
def test_what_only_looks_alike_is_plain(label, tmp_path, paramcli):
    """Names that are used for more than one thing need the shape or the dtype beside them."""
    save_file(PLAIN[label], tmp_path / "m.safetensors")
    assert "plain" in paramcli("remove", tmp_path / "m.safetensors", code=3).err.splitlines()[0]


WAYS = {"quant_method": list(FOREIGN), "checkpoint_format": ["marlin"], "is_marlin_format": [True]}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WAYS.items() for value in values])
def test_a_configuration_of_what_nothing_decodes_is_believed(key, value, tmp_path, paramcli):
    """Keys that a reader would take are not read as another format's: refused by name, nothing written."""
    way = FOREIGN[value if key == "quant_method" else "marlin"]
    save_file({"l.weight": T(8, 8, dtype=F8), "l.weight_scale": T(1), "n.weight": T(4)}, tmp_path / "m.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {key: value}}))
    told = paramcli("remove", tmp_path / "m.safetensors", "-o", tmp_path / "out.safetensors", code=3).err.splitlines()
    assert f"quantized by {way.name}, which nothing here decodes" in told[0] and way.library in told[1]
    assert not (tmp_path / "out.safetensors").exists()


def test_a_configuration_says_nothing_of_plain_weights(tmp_path, paramcli):
    """One that stayed behind when the weights were decoded."""
    save_file({"l.weight": T(8, 8), "l.position_ids": T(4, dtype=I32)}, tmp_path / "m.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "aqlm"}}))
    assert "plain" in paramcli("remove", tmp_path / "m.safetensors", code=3).err


def test_what_is_baked_already_is_said(tmp_path, paramcli):
    """A file that paramcli baked says so, and names the command that proves it."""
    save_file({"w": T(4, 4)}, tmp_path / "m.safetensors")
    paramcli("add", tmp_path / "m.safetensors", "-t", "w", "--chain", "symmetric", "-o", tmp_path / "p.safetensors")
    paramcli("remove", tmp_path / "p.safetensors", "-o", tmp_path / "b.safetensors")
    told = paramcli("remove", tmp_path / "b.safetensors", code=3).err
    assert "w is baked already" in told and f"try: paramcli verify {tmp_path / 'b.safetensors'}\n" in told


def test_the_commands_that_are_offered_do_what_they_say(tmp_path, paramcli):
    """BigGAN's weight divided by its largest singular value, and the weight times its mask: by pasting."""
    tensors = {"l.weight": T(6, 4), "l.u0": T(1, 6), "l.sv0": T(1), "m.weight": T(5, 3), "m.weight_mask": (T(5, 3) > 0)}
    wanted = {
        "l.weight": tensors["l.weight"] / torch.linalg.matrix_norm(tensors["l.weight"], 2),
        "m.weight": tensors["m.weight"] * tensors["m.weight_mask"],
    }
    for name, weight in wanted.items():
        folder = tmp_path / f"my {name}"
        folder.mkdir()
        save_file({key: T for key, T in tensors.items() if key[0] == name[0]}, folder / "a b.safetensors")
        told = paramcli("remove", folder / "a b.safetensors", code=3).err
        paramcli(*shlex.split(told.splitlines()[1].partition("try: ")[2])[1:])
        paramcli("remove", folder / "a b.parametrized.safetensors")
        torch.testing.assert_close(load_file(folder / "a b.baked.safetensors")[name], weight, rtol=1e-3, atol=1e-3)


def test_a_mask_beside_its_weight_is_the_mask(tmp_path, paramcli):
    """--mask FILE takes weight_mask of a file that has the weight too: the weight's non-zeros are no mask."""
    weight, mask = T(5, 3), T(5, 3) > 0
    save_file({"m.weight": weight, "m.weight_mask": mask.float()}, tmp_path / "m.safetensors")
    file = tmp_path / "m.safetensors"
    paramcli("add", file, "-t", "m.weight", "--chain", "mask", "--mask", file)
    paramcli("remove", tmp_path / "m.parametrized.safetensors")
    assert torch.equal(load_file(tmp_path / "m.baked.safetensors")["m.weight"], weight * mask)


def test_what_is_parametrized_beside_them_is_worked_on(tmp_path, paramcli):
    """One parametrized tensor is enough: a LoRA or a mask beside it stops nothing."""
    state = parametrizations.weight_norm(nn.Linear(4, 4)).state_dict()
    save_file({**state, "q.lora_A": T(2, 4), "q.weight": T(4, 4)}, tmp_path / "m.safetensors")
    paramcli("remove", tmp_path / "m.safetensors")
    pruned = nn.Linear(4, 4)
    prune.random_unstructured(pruned, "weight", 0.5)
    torch.save(pruned.state_dict(), tmp_path / "p.pt")
    paramcli("remove", tmp_path / "p.pt")
