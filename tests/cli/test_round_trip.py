"""verify BAKED --base QUANT --round-trip: is every tensor of BAKED what QUANT stands for, and nothing else in it?"""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import paramcli
from tests.conftest import FIXTURES

E4M3 = torch.float8_e4m3fn
MODELS = {
    str(place.relative_to(FIXTURES)): place
    for place in (
        *sorted((FIXTURES / "compressed").iterdir()),
        *sorted((FIXTURES / "quantized").iterdir()),
        FIXTURES / "awq",
    )
}
# What a weight is computed from: codes, scales and zero points. Not what says how it is stored.
MEANT = re.compile(
    r"(.*[._])?(weight|weight_packed|qweight|blocks|down_proj|absmax|SCB|qzeros|weight_zero_point|scales?|weight_scale_2"
    r"|weight_scale|scale_inv|nested_absmax|weight_global_scale)"
)


def stored(place):
    """Without the layer that is refused."""
    tensors = load_file(place / "model.safetensors")
    return {key: T for key, T in tensors.items() if not key.startswith("turned") and not key.endswith("input_scale")}


def changed(T):
    """The first entry another: of floats by a twelfth, of bytes and words by their lowest bit."""
    T = T.clone()
    if T.dtype in (torch.float32, torch.float16, torch.bfloat16):
        T.view(-1)[0] *= 13 / 12
    else:
        T.view(-1).view(torch.uint8)[0] ^= 1
    return T


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_code_and_any_scale_that_was_changed_since_is_found(model, dtype, tmp_path):
    """Also a scale whose change is less than half a step of the codes."""
    place, path, out = tmp_path / "q", tmp_path / "q" / "model.safetensors", tmp_path / "out.safetensors"
    shutil.copytree(MODELS[model], place)
    tensors = stored(place)
    save_file(tensors, path)
    paramcli.remove(path, dtype=dtype, output=out)
    assert paramcli.round_trip(out, base=path).ok
    tried = [key for key in tensors if MEANT.fullmatch(key)]
    assert len(tried) >= 2
    for key in tried:
        save_file({**tensors, key: changed(tensors[key])}, path)
        try:
            found = paramcli.round_trip(out, base=path)
        except paramcli.InputRefused:
            continue  # a code of NaN, where the decoder has one
        assert not found.ok, key


def quantized(tmp_path, **more):
    random = torch.Generator().manual_seed(0)
    tensors = {
        "l.weight": (torch.randn(40, 24, generator=random) * 50).to(E4M3),
        "l.weight_scale": torch.rand(40, 1, generator=random) + 0.1,
        "n.weight": torch.randn(24, generator=random),
        "ids": torch.arange(4),
        **more,
    }
    path, out = tmp_path / "q.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, path)
    return path, out, tensors


OTHERS = {
    "as it was": ({}, 0, "2 others are the base's"),
    "changed": ({"n.weight": torch.ones(24)}, 1, "1 not the base's: n.weight"),
    "of another shape": ({"n.weight": torch.ones(25)}, 1, "1 not the base's: n.weight"),
    "counted on": ({"ids": torch.arange(1, 5)}, 1, "1 not the base's: ids"),
    "missing": ({"n.weight": None}, 1, "1 missing: n.weight"),
    "added": ({"m.weight": torch.ones(2)}, 1, "1 not in the base: m.weight"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_decoded_is_the_base_s(what, tmp_path, paramcli):
    change, code, said = OTHERS[what]
    path, out, _ = quantized(tmp_path)
    paramcli("remove", path, "-o", out)
    save_file({k: T for k, T in {**load_file(out), **change}.items() if T is not None}, out)
    told = paramcli("verify", out, "--base", path, "--round-trip", code=code)
    assert said in told.err
    found = paramcli("verify", out, "--base", path, "--round-trip", "--json", code=code).json
    assert found["ok"] is (code == 0) and all(tensor["ok"] for tensor in found["tensors"])
    wrong = [other["tensor"] for other in found["different"]] + found["missing"] + found["extra"]
    assert wrong == [key for key in change if code] and found["untouched"] == (2 if not code else 1 + (what == "added"))


def test_others_in_the_dtype_of_the_whole_file_are_casts(tmp_path, paramcli):
    path, out, _ = quantized(tmp_path)
    paramcli("remove", path, "--dtype", "bfloat16", "-o", out)
    save_file({k: T.bfloat16() if T.is_floating_point() else T for k, T in load_file(out).items()}, out)
    assert "(1 cast to another dtype)" in paramcli("verify", out, "--base", path, "--round-trip").err
    other = load_file(path)["n.weight"].double()
    other[3] += 0.25
    save_file({**load_file(out), "n.weight": other}, out)
    [told] = paramcli("verify", out, "--base", path, "--round-trip", "--json", code=1).json["different"]
    assert told == {"tensor": "n.weight", "detail": "dtypes float32 / float64; it is off by 0.25"}


def test_only_the_tensors_that_are_named_are_compared(tmp_path, paramcli):
    path, out, _ = quantized(tmp_path)
    paramcli("remove", path, "-o", out)
    save_file({**load_file(out), "n.weight": torch.ones(24)}, out)
    paramcli("verify", out, "--base", path, "--round-trip", "-t", "l.weight")
    paramcli("verify", out, "--base", path, "--round-trip", "-t", "l.weight", "-t", "n.*", code=1)


def test_a_marker_that_went_with_the_codes_is_not_missing(tmp_path, paramcli):
    codes = {"a.weight": torch.ones(4, 4).to(E4M3), "a.scale_weight": torch.tensor(0.3)}
    save_file({**codes, "scaled_fp8": torch.empty(0, dtype=E4M3)}, tmp_path / "q.safetensors")
    paramcli("remove", tmp_path / "q.safetensors", "-o", tmp_path / "out.safetensors")
    paramcli("verify", tmp_path / "out.safetensors", "--base", tmp_path / "q.safetensors", "--round-trip")


LIBRARIES = {
    "rounded twice": lambda W: W.half().bfloat16(),
    "a half, stored wider": lambda W: W.half().float(),
    "a bfloat16, stored wider": lambda W: W.bfloat16().float(),
    "as paramcli": lambda W: W,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_bake_of_another_library_holds(library, tmp_path, paramcli):
    """Which rounds to a half first, or stores one in float32."""
    path, out, tensors = quantized(tmp_path)
    W = tensors["l.weight"].float() * tensors["l.weight_scale"]
    save_file({"l.weight": LIBRARIES[library](W), "n.weight": tensors["n.weight"], "ids": tensors["ids"]}, out)
    paramcli("verify", out, "--base", path, "--round-trip")
    for factor in (1.02, float("nan")):
        save_file({**load_file(out), "l.weight": LIBRARIES[library](W * factor)}, out)
        found = json.loads(paramcli("verify", out, "--base", path, "--round-trip", "--json", code=1).out)
        assert not {check["constraint"]: check["ok"] for check in found["tensors"][0]["checks"]}["product"]


def test_the_last_line_speaks_of_codes(tmp_path, paramcli):
    """A round trip is of codes: no word of constraints, which it does not ask for."""
    place, out, _ = quantized(tmp_path)
    paramcli("remove", place, "-o", out)
    told = paramcli("verify", place, "--round-trip")
    assert re.search(r"tensors? in .*: every code comes back", told.err)
    name = told.out.splitlines()[1].split()[0]
    told = paramcli("verify", out, "--base", place, "--round-trip").err
    assert "every code comes back, and every weight is what its codes stand for" in told and "constraint" not in told
    tensors = load_file(out)
    save_file({**tensors, name: changed(tensors[name])}, out)
    told = paramcli("verify", out, "--base", place, "--round-trip", code=1).err
    assert "not what the codes stand for" in told and "constraint" not in told


@pytest.mark.parametrize("value, code", [(float("nan"), 0), (70000.0, 1)])
def test_a_cast_keeps_what_is_no_number_and_loses_none(value, code, tmp_path, paramcli):
    """Where the base has NaN a cast has it too; what became infinite is no cast of it."""
    path, out, tensors = quantized(tmp_path)
    tensors["n.weight"][3] = value
    save_file(tensors, path)
    paramcli("remove", path, "-o", out)
    save_file({**load_file(out), "n.weight": tensors["n.weight"].half()}, out)
    paramcli("verify", out, "--base", path, "--round-trip", code=code)
