"""What bitsandbytes quantized bakes to what bitsandbytes itself makes of it."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.fitting.blocks import bake_ranges
from paramcli.maths.bitsandbytes import FourBit, Int8
from paramcli.maths.four_bits import FP4, NF4
from paramcli.spelling.opened import open_groups
from tests.conftest import FIXTURES

HERE = FIXTURES / "quantized" / "bitsandbytes"
# The rows that are kept of the nested one.
ROWS = [*range(3), *range(61, 67)]


def model(tmp_path, tensors, shards=1, **config):
    """A folder with the tensors dealt out to so many files, so that codes and what belongs to them lie apart."""
    place = tmp_path / "model"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, place / "model.safetensors")
        return place / "model.safetensors"
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    places = {key: names[i % shards] for i, key in enumerate(tensors)}
    for name in names:
        save_file({key: T for key, T in tensors.items() if places[key] == name}, place / name)
    (place / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return place


def loaded(path):
    return {
        k: T for file in (path.glob("*.safetensors") if path.is_dir() else [path]) for k, T in load_file(file).items()
    }


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_bakes_to_what_the_package_makes(dtype, shards, tmp_path, paramcli):
    """Both tables, nested absmax, bytes stored as other dtypes, runs over rows and short ones, odd sizes, int8."""
    stored, answers = load_file(HERE / "model.safetensors"), load_file(HERE / "answers.safetensors")
    path = model(tmp_path, stored, shards, torch_dtype=dtype)
    out = tmp_path / ("out" if shards > 1 else "out.safetensors")
    paramcli("remove", path, "-o", out)
    got = loaded(out)
    assert got.keys() == {*answers, "norm.weight", "router.bias"}
    assert torch.equal(got["norm.weight"], stored["norm.weight"]) and got["router.bias"].dtype == torch.float32
    for name, answer in answers.items():
        made = got[name][ROWS] if name.startswith("nested") else got[name]
        assert torch.equal(made, answer.to(getattr(torch, dtype))), name


def test_without_a_configuration_a_weight_has_the_dtype_it_was_quantized_from(tmp_path, paramcli):
    out = tmp_path / "out.safetensors"
    paramcli("remove", HERE / "model.safetensors", "-o", out)
    got = load_file(out)
    assert got["nested.weight"].dtype == torch.bfloat16 and got["nf4.weight"].dtype == torch.float32


def state(**changes):
    said = {"quant_type": "nf4", "blocksize": 4, "dtype": "float32", "shape": [2, 4], **changes}
    return torch.tensor(list(json.dumps({k: v for k, v in said.items() if v is not ...}).encode()), dtype=torch.uint8)


def small(**changes):
    """Two rows of four codes, counting up, the upper half of a byte first; each row has its absmax."""
    tensors = {
        "l.weight": torch.tensor([[0x01], [0x23], [0xCD], [0xEF]], dtype=torch.uint8),
        "l.weight.absmax": torch.tensor([1.0, 0.5]),
        "l.weight.quant_map": torch.tensor(NF4),
        "l.weight.quant_state.bitsandbytes__nf4": state(),
        "m.weight": torch.tensor([[127, -127], [64, 1]], dtype=torch.int8),
        "m.SCB": torch.tensor([2.0, 0.5]),
        "m.weight_format": torch.tensor(0, dtype=torch.uint8),
        **changes,
    }
    return {key: T for key, T in tensors.items() if T is not None}


def test_by_hand(tmp_path, paramcli):
    """The upper half of a byte comes first; int8 is code times scale, times a constant that 1 / 127 rounds to."""
    path, out = model(tmp_path, small()), tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    got = load_file(out)
    rows = [[-1.0, -0.6961928, -0.52507305, -0.3949175], [0.44070983 / 2, 0.562617 / 2, 0.72295684 / 2, 0.5]]
    assert torch.equal(got["l.weight"], torch.tensor(rows))
    codes, scale = torch.tensor([[127.0, -127.0], [64.0, 1.0]]), torch.tensor([[2.0], [0.5]])
    assert torch.equal(got["m.weight"], codes * scale * 7.874015718698502e-3)


NESTED = {
    "l.weight.absmax": torch.tensor([0, 255], dtype=torch.uint8),
    "l.weight.nested_absmax": torch.tensor([1.0]),
    "l.weight.nested_quant_map": torch.linspace(0, 1, 256),
}
STATE = "l.weight.quant_state.bitsandbytes__nf4"
WRONG = {
    "no state": ({STATE: None}, "no quant_state"),
    "no absmax": ({"l.weight.absmax": None}, "no absmax"),
    "two states": ({STATE.replace("nf4", "fp4"): state(quant_type="fp4")}, "of nf4 and one of fp4"),
    "no codes": ({"l.weight": None}, "what it belongs to is not there"),
    "another type": ({STATE: state(quant_type="fp4")}, "by its JSON of fp4"),
    "no JSON": ({STATE: torch.tensor([123, 255], dtype=torch.uint8)}, "no JSON"),
    "a list": ({STATE: torch.tensor([91, 93], dtype=torch.uint8)}, "no JSON"),
    "deep JSON": ({STATE: torch.full((4000,), 91, dtype=torch.uint8)}, "no JSON"),
    "large JSON": ({STATE: torch.full((5000,), 32, dtype=torch.uint8)}, "no JSON"),
    "another shape": ({STATE: state(shape=[3, 4])}, "4 bytes of codes"),
    "an enormous shape": ({STATE: state(shape=[1 << 40, 1 << 40])}, "which is none"),
    "a shape of text": ({STATE: state(shape="2x4")}, "which is none"),
    "a shape below 0": ({STATE: state(shape=[-2, -4])}, "which is none"),
    "no shape": ({STATE: state(shape=...)}, "which is none"),
    "a block of none": ({STATE: state(blocksize=0)}, "blocksize 0"),
    "a block of true": ({STATE: state(blocksize=True)}, "blocksize True"),
    "another block": ({STATE: state(blocksize=8)}, "blocks of 8 have another number"),
    "another table": ({"l.weight.quant_map": torch.tensor(FP4)}, "not the table of nf4"),
    "a NaN absmax": ({"l.weight.absmax": torch.tensor([1.0, float("nan")])}, "NaN"),
    "codes for absmax": ({"l.weight.absmax": NESTED["l.weight.absmax"]}, "not complete"),
    "half nested": ({**NESTED, STATE: state(nested_blocksize=2), "l.weight.nested_quant_map": None}, "not complete"),
    "nested numbers": ({STATE: state(nested_blocksize=2)}, "nested"),
    "an offset of NaN": ({**NESTED, STATE: state(nested_blocksize=2, nested_offset=float("nan"))}, "nested_offset"),
    "no offset": ({**NESTED, STATE: state(nested_blocksize=2)}, "nested_offset"),
    "other nested blocks": ({**NESTED, STATE: state(nested_blocksize=1, nested_offset=0.5)}, "have 1 scales"),
    "columns of a GPU": ({"m.weight_format": torch.tensor(1, dtype=torch.uint8)}, "weight_format is not 0"),
    "no SCB": ({"m.SCB": None}, "no SCB"),
    "SCB of another size": ({"m.SCB": torch.ones(3)}, "every row has one"),
    "a NaN SCB": ({"m.SCB": torch.tensor([1.0, float("nan")])}, "NaN"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_contradicts_itself_is_refused(wrong, tmp_path, paramcli):
    """One line, nothing written; the JSON is believed where sizes say the same."""
    change, said = WRONG[wrong]
    path, out = model(tmp_path, small(**change)), tmp_path / "out.safetensors"
    assert said in paramcli("remove", path, "-o", out, code=3).err and not out.exists()


def test_nested_by_hand(tmp_path, paramcli):
    """absmax = table x scale + offset: 0 + 0.5 and 1 x 3 + 0.5."""
    change = {
        **NESTED,
        "l.weight.nested_absmax": torch.tensor([3.0]),
        STATE: state(nested_blocksize=2, nested_offset=0.5),
    }
    path, out = model(tmp_path, small(**change)), tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    want = torch.tensor([NF4[:4], NF4[12:]]) * torch.tensor([[0.5], [3.5]])
    assert torch.equal(load_file(out)["l.weight"], want)


def test_large_ones_go_by_rows(tmp_path, paramcli):
    """A matrix of 12 MB whose scales stand for part of a row, and nested ones for 64 rows."""
    rows, columns = 1024, 3104
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(256, (rows * columns // 2, 1), generator=random, dtype=torch.uint8)
    absmax = torch.randint(256, (rows * columns // 32,), generator=random, dtype=torch.uint8)
    scales = torch.rand(absmax.numel() // 256, generator=random)
    said = state(blocksize=32, shape=[rows, columns], nested_blocksize=256, nested_offset=0.25)
    table = torch.linspace(0, 1, 256)
    tensors = {
        "l.weight": codes.flatten().view(torch.bfloat16)[:, None],
        "l.weight.absmax": absmax,
        "l.weight.nested_absmax": scales,
        "l.weight.nested_quant_map": table,
        STATE: said,
    }
    path, out = model(tmp_path, tensors), tmp_path / "out.safetensors"
    with open_groups(path) as opened:
        group = opened.groups["l.weight"]
        assert len(bake_ranges(group, group.chain, group.view)) > 1
    paramcli("remove", path, "-o", out)
    halves = torch.stack((codes >> 4, codes & 15), 1).flatten().long()
    each = (table[absmax.long()] * scales.repeat_interleave(256) + 0.25).repeat_interleave(32)
    assert torch.equal(load_file(out)["l.weight"].flatten(), torch.tensor(NF4)[halves] * each)


@pytest.mark.parametrize("table", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_codes_of_a_value_are_the_codes_it_came_of(table, dtype):
    """All pairs of codes, on scales of any size; fp4 has two zeros, which have signs."""
    codes = torch.arange(256, dtype=torch.uint8).reshape(16, 16)
    part = FourBit.make(torch.empty(16, 32, dtype=dtype), table, 64)
    part.absmax.data = torch.logspace(-30, 30, 8).to(dtype).reshape(part.absmax.shape)
    assert torch.equal(part.inverse(part.map(codes)), codes)


def test_the_codes_that_the_package_makes_come_back(tmp_path, paramcli):
    """Of the file, and of what was baked of it; a byte that was changed since is told."""
    path, out = HERE / "model.safetensors", tmp_path / "out.safetensors"
    paramcli("verify", path, "--round-trip")
    paramcli("remove", path, "-o", out)
    paramcli("verify", out, "--base", path, "--round-trip")
    tensors = load_file(path)
    tensors["fp4.weight"][3] ^= 1
    save_file(tensors, tmp_path / "other.safetensors")
    assert "fp4.weight" in paramcli("verify", out, "--base", tmp_path / "other.safetensors", "--round-trip", code=1).out


def test_the_integers_of_a_value_are_those_it_came_of():
    codes = torch.arange(-128, 128).repeat(3, 1).to(torch.int8)
    part = Int8.make(torch.empty(3, 256))
    part.scale.data = torch.tensor([1e-20, 0.3, 1e20])
    assert torch.equal(part.inverse(part.map(codes)), codes)


def test_an_adapter_goes_onto_what_the_codes_stand_for(tmp_path, paramcli):
    """QLoRA's merge: in one pass what decoding first and merging then gives, for every layout of the codes."""
    stored = load_file(HERE / "model.safetensors")
    names = ("nf4", "as_bf16", "nested", "int8")
    shapes = {"nf4": (24, 40), "as_bf16": (16, 64), "nested": (68, 130), "int8": (12, 20)}
    base, adapter = tmp_path / "base.safetensors", tmp_path / "adapter"
    save_file({key: T for key, T in stored.items() if key.split(".")[0] in names}, base)
    factors = {}
    for name, (out, inputs) in shapes.items():
        factors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(2, inputs)
        factors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, 2)
    adapter.mkdir()
    save_file(factors, adapter / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": list(names)}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    paramcli("merge", base, "--adapter", adapter, "-o", tmp_path / "once.safetensors")
    paramcli("remove", base, "--dtype", "float32", "-o", tmp_path / "plain.safetensors")
    paramcli("merge", tmp_path / "plain.safetensors", "--adapter", adapter, "-o", tmp_path / "twice.safetensors")
    once, twice = load_file(tmp_path / "once.safetensors"), load_file(tmp_path / "twice.safetensors")
    assert once.keys() == twice.keys() == {f"{name}.weight" for name in names}
    for key, T in once.items():
        assert torch.equal(T, twice[key].to(T.dtype)), key
