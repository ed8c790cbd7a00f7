"""verify BAKED --base QUANT --round-trip: is every tensor of BAKED what QUANT stands for, and nothing else in it?"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import paramcli
from paramcli import round_trip
from paramcli.show.tables import verify_table
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


# What became of codes without a scale -> (the tensors in their place, exit code, what is said)
ALONE = {
    "left as they are": (lambda X, s: {"pos": X, "pos_scale_inv": s}, 0, "4 others are the base's"),
    "decoded by something": (lambda X, s: {"pos": (X.float() * s).bfloat16()}, 3, "1 not verified: pos; 2 others are"),
    "changed": (lambda X, s: {"pos": changed(X), "pos_scale_inv": s}, 1, "1 not the base's: pos"),
    "with another scale": (lambda X, s: {"pos": X, "pos_scale_inv": s * 2}, 1, "1 not the base's: pos_scale_inv"),
    "without a scale": (lambda X, s: {"pos": X}, 1, "1 missing: pos_scale_inv"),
    "left out": (lambda X, s: {}, 1, "2 missing: pos, pos_scale_inv"),
}


@pytest.mark.parametrize("what", ALONE)
def test_codes_that_are_not_read_are_compared_as_stored_or_named(what, tmp_path, paramcli):
    """The others are verified; what something decoded, by nothing that the file says, is not."""
    made, code, said = ALONE[what]
    codes, scale = torch.ones(4, 8).to(E4M3), torch.tensor(2.0)
    path, out, _ = quantized(tmp_path, pos=codes, pos_scale_inv=scale)
    paramcli("remove", path, "-t", "*.weight", "-o", out)
    rest = {key: T for key, T in load_file(out).items() if not key.startswith("pos")}
    save_file({**rest, **made(codes, scale)}, out)
    told = paramcli("verify", out, "--base", path, "--round-trip", code=code)
    assert told.out.count("holds") == 3 and said in told.err
    found = paramcli("verify", out, "--base", path, "--round-trip", "--json", code=code).json
    assert found["ok"] is (code == 0) and [tensor["tensor"] for tensor in found["tensors"]] == ["l.weight"]
    assert [tensor["tensor"] for tensor in found.get("unverified", [])] == (["pos"] if code == 3 else [])


def test_a_file_by_itself_names_the_codes_that_are_not_read(tmp_path, paramcli):
    """The others come back, and the answer is none; alone, or asked for by name, they are refused."""
    path, _, tensors = quantized(tmp_path, pos=torch.ones(4, 8).to(E4M3))
    told = paramcli("verify", path, "--round-trip", code=3)
    assert told.out.count("holds") == 2 and "1 not verified: pos; 2 without codes not looked at" in told.err
    paramcli("verify", path, "--round-trip", "-t", "l.weight")
    assert "pos is in 8-bit floats" in paramcli("verify", path, "--round-trip", "-t", "pos", code=3).err
    del tensors["pos"]
    save_file({**tensors, "l.weight_scale": torch.ones(3)}, path)
    assert "may be read several ways" in paramcli("verify", path, "--round-trip", code=3).err


def test_a_marker_that_went_with_the_codes_is_not_missing(tmp_path, paramcli):
    codes = {"a.weight": torch.ones(4, 4).to(E4M3), "a.scale_weight": torch.tensor(0.3)}
    save_file({**codes, "scaled_fp8": torch.empty(0, dtype=E4M3)}, tmp_path / "q.safetensors")
    paramcli("remove", tmp_path / "q.safetensors", "-o", tmp_path / "out.safetensors")
    paramcli("verify", tmp_path / "out.safetensors", "--base", tmp_path / "q.safetensors", "--round-trip")


# label -> (what a library gives of codes and a scale, what is said of it)
LIBRARIES = {
    "rounded twice": (lambda C, s: (C * s).half().bfloat16(), "rounded first to float16"),
    "a half, stored wider": (lambda C, s: (C * s).half().float(), "rounded first to float16"),
    "a bfloat16, stored wider": (lambda C, s: (C * s).bfloat16().float(), "rounded first to bfloat16"),
    "multiplied in bfloat16": (
        lambda C, s: C.bfloat16() * s.bfloat16(),
        "multiplied, its scales rounded first, in bfloat16",
    ),
    "multiplied in float16": (lambda C, s: C.half() * s.half(), "multiplied, its scales rounded first, in float16"),
    "multiplied in a half, stored wider": (
        lambda C, s: (C.half() * s.half()).float(),
        "multiplied, its scales rounded first, in float16",
    ),
    "in double precision": (lambda C, s: (C.double() * s.double()).bfloat16(), None),
    "as paramcli": (lambda C, s: C * s, None),
    "as paramcli in a half": (lambda C, s: (C * s).half(), None),
}


def of_round_trip(call, out, path, code=0):
    """The checks of l.weight, by name."""
    said = json.loads(call("verify", out, "--base", path, "--round-trip", "--json", code=code).out)
    return {check["constraint"]: check for check in said["tensors"][0]["checks"]}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_bake_of_another_library_holds(library, tmp_path, paramcli):
    """Which rounds to a half first, multiplies in one, or stores one in float32: the bits of that, and no others."""
    path, out, tensors = quantized(tmp_path)
    bake, how = LIBRARIES[library]
    C, s = tensors["l.weight"].float(), tensors["l.weight_scale"]
    W = bake(C, s)
    rest = {"n.weight": tensors["n.weight"], "ids": tensors["ids"]}
    save_file({**rest, "l.weight": W}, out)
    check = of_round_trip(paramcli, out, path)["product"]
    assert (check["residual"], check["tolerance"], check["detail"]) == (0, 0, how)
    other, infinite = s.clone(), W.clone()
    other[7] *= 1.01
    infinite[3, 4] = float("inf")
    # The next number of the dtype that the library computed in.
    named = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get((how or "").rpartition(" ")[2], W.dtype)
    half = W.dtype if W.dtype == torch.bfloat16 else named
    beside = W.to(half)
    beside[3, 4] = torch.nextafter(beside[3, 4], torch.tensor(float("inf"), dtype=half))
    for wrong in (bake(C, other), bake(C, s * float("nan")), infinite, beside.to(W.dtype)):
        save_file({**rest, "l.weight": wrong}, out)
        check = of_round_trip(paramcli, out, path, code=1)["product"]
        assert not check["ok"] and "not code times scale" in check["detail"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_weight_is_the_product_rounded_once(dtype, tmp_path, paramcli):
    """A scale that is 0.3 % another is found, and any weight that is the next number."""
    path, out, tensors = quantized(tmp_path)
    paramcli("remove", path, "--dtype", str(dtype).removeprefix("torch."), "-o", out)
    baked, scale = load_file(out), tensors["l.weight_scale"].clone()
    W = baked["l.weight"]
    for place in ((0, 0), (39, 23)):
        moved = W.clone()
        moved[place] = torch.nextafter(moved[place], torch.tensor(float("inf"), dtype=dtype))
        save_file({**baked, "l.weight": moved}, out)
        check = of_round_trip(paramcli, out, path, code=1)["product"]
        assert check["residual"] == 1 / W.numel() and check["detail"].startswith(f"1 weight of {W.numel()} is not")
    save_file(baked, out)
    scale[3] *= 1.003
    save_file({**tensors, "l.weight_scale": scale}, path)
    assert not of_round_trip(paramcli, out, path, code=1)["product"]["ok"]


def test_of_two_numbers_that_are_as_near_either_is_the_product_rounded(tmp_path, paramcli):
    """1 + 2^-8 lies between 1 and 1 + 2^-7 of bfloat16; no other number will do, nor the two where it lies nearer."""
    path, out = tmp_path / "q.safetensors", tmp_path / "out.safetensors"
    below, above = torch.tensor([1, 1 + 2**-7]).bfloat16()
    weights = torch.stack((below, above)).repeat(2, 2)
    for scale, W, code in (
        (1 + 2**-8, weights, 0),
        (1 + 2**-8, weights + 2**-7, 1),
        (1 + 2**-8 + 2**-23, weights, 1),
        (1 + 2**-8 + 2**-23, torch.full((2, 4), above, dtype=torch.bfloat16), 0),
    ):
        save_file({"l.weight": torch.ones(2, 4).to(E4M3), "l.weight_scale": torch.tensor(scale)}, path)
        save_file({"l.weight": W}, out)
        assert of_round_trip(paramcli, out, path, code)["product"]["ok"] is (code == 0)


@pytest.mark.parametrize("what", ["code", "scale"])
@pytest.mark.parametrize("rows", [40, 3000])
def test_what_is_no_number_does_not_come_back(what, rows, tmp_path, paramcli):
    """NaN is the code of NaN: that it comes back says nothing. A scale of the whole is counted once."""
    codes = torch.ones(rows, 1000).to(E4M3)
    if what == "code":
        codes.view(torch.uint8)[[0, -1], 3] = 0x7F
    scale = torch.tensor(float("nan") if what == "scale" else 0.5)
    path, out = tmp_path / "q.safetensors", tmp_path / "out.safetensors"
    save_file({"l.weight": codes, "l.weight_scale": scale}, path)
    save_file({"l.weight": codes.bfloat16() * scale.bfloat16()}, out)
    said = paramcli("verify", path, "--round-trip", code=1).err
    assert "1 of 1 tensor in" in said and "not every code is a number and comes back" in said
    for asked in ([path], [out, "--base", path]):
        said = json.loads(paramcli("verify", *asked, "--round-trip", "--json", code=1).out)
        check = said["tensors"][0]["checks"][0]
        number = 2 if what == "code" else 1
        assert check["constraint"] == "decodable" and check["residual"] == number and not check["ok"]


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


def test_rows_that_are_folded_are_of_one_way_to_the_weight(tmp_path):
    """Of eight layers, which are shown as one, those that were multiplied in a half are a row of their own."""
    path, out = tmp_path / "q.safetensors", tmp_path / "out.safetensors"
    codes, scale = (torch.arange(1, 17).reshape(4, 4) * 3.0).to(E4M3), torch.tensor(0.3)
    tensors, baked = {}, {}
    for i in range(8):
        tensors |= {f"layers.{i}.weight": codes.clone(), f"layers.{i}.weight_scale": scale.clone()}
        half, C = i % 2, codes.float()
        baked[f"layers.{i}.weight"] = (C.bfloat16() * scale.bfloat16()) if half else (C * scale).bfloat16()
    save_file(tensors, path)
    save_file(baked, out)
    verdicts = paramcli.round_trip(out, base=path)
    cells = [str(cell) for cell in verify_table(verdicts, fold=True).columns[4].cells]
    said = [cell for cell in cells if cell != "holds"]
    assert len(cells) == 6 and len(said) == 1 and "in bfloat16" in said[0]


def of_scale_0(codes):
    """For every way to store codes that can have a scale 0: its tensors, the second row (or block) of scale 0 and the
    codes of that as given; and how many of its codes are stored for a weight.
    """
    rows, ones = torch.ones(4, 32), torch.tensor([1.0, 0, 1, 1])
    filled = rows.clone()
    filled[1] = codes
    signed = filled.to(torch.int8)
    # 2 is code 4 of E2M1, two of them in a byte.
    nibbles = torch.full((4, 16), 0x44, dtype=torch.uint8)
    nibbles[1] = 0x44 if codes == 1 else 0x88 if str(codes) == "-0.0" else 0
    return {
        "fp8_scaled": {"l.weight": filled.to(E4M3), "l.weight_scale": ones[:, None]},
        "fp8_block": {"l.weight": filled.to(E4M3), "l.weight_scale": ones[:, None].expand(4, 2).contiguous()},
        "int_scaled": {"l.weight": signed, "l.weight_scale": ones[:, None]},
        "bnb_int8": {"l.weight": signed, "l.SCB": ones},
        "nvfp4": {
            "l.weight_packed": nibbles,
            "l.weight_scale": ones[:, None].expand(4, 2).to(E4M3).contiguous(),
            "l.weight_global_scale": torch.tensor([1.0]),
        },
    }


FORMS = list(of_scale_0(0.0))


def by_itself_and_of_its_bake(form, codes, tmp_path, paramcli, code):
    """(what --round-trip says of the file, what it says of what is baked from it)"""
    place, out = tmp_path / "q", tmp_path / "out.safetensors"
    place.mkdir()
    path = place / "model.safetensors"
    save_file(of_scale_0(codes)[form], path)
    config = {"quant_method": "fp8", "weight_block_size": [1, 16]} if form == "fp8_block" else None
    (place / "config.json").write_text(json.dumps({"quantization_config": config} if config else {}))
    paramcli("remove", path, "-o", out)
    assert not load_file(out)["l.weight"][1].any() and load_file(out)["l.weight"][[0, 2, 3]].all()
    asked = [path], [out, "--base", path]
    return [paramcli("verify", *one, "--round-trip", code=code) for one in asked]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_codes_of_a_scale_0_come_back_where_they_are_0(form, zero, tmp_path, paramcli):
    """0 times 0 is 0, and of that, with its sign, the code is 0."""
    for told in by_itself_and_of_its_bake(form, zero, tmp_path, paramcli, 0):
        assert "every code comes back" in told.err


@pytest.mark.parametrize("form", FORMS)
def test_other_codes_of_a_scale_0_are_said_to_be_of_no_weight(form, tmp_path, paramcli):
    """They do not come back, and a product that holds says that nothing is wrong with the weights."""
    by_itself, baked = by_itself_and_of_its_bake(form, 1, tmp_path, paramcli, 1)
    off = "16 codes of 64" if form == "nvfp4" else "32 codes of 128"
    for told in (by_itself, baked):
        assert f"{off} differ, and no weight with them: a scale is 0 there, or too small" in " ".join(told.out.split())
    assert "1 of 1 tensor" in baked.err and "comes back, but the weights are their products" in baked.err


def test_a_changed_code_beside_those_of_a_scale_0_is_told_apart(tmp_path, paramcli):
    tensors, path, out = of_scale_0(1)["fp8_scaled"], tmp_path / "q.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, path)
    paramcli("remove", path, "-o", out)
    codes = tensors["l.weight"].clone()
    codes[0, 0] = 2
    save_file({**tensors, "l.weight": codes}, path)
    told = paramcli("verify", out, "--base", path, "--round-trip", code=1)
    assert "33 codes of 128 differ, and 1 weight with them" in told.out and "not what the codes stand for" in told.err


SCRIPT = """
import sys
import paramcli

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

paramcli.round_trip(sys.argv[1])  # what it takes to have begun
before = peak()
assert paramcli.round_trip(sys.argv[2], base=sys.argv[3]).ok
print(peak() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc says what a process had at most")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_follows_the_block(dtype, tmp_path):
    """A weight of 64 MB in float32 and another tensor of 96 MB, which stays or is cast, take some blocks."""
    random = torch.Generator().manual_seed(0)
    codes, scale = (torch.randn(4096, 4096, generator=random) * 50).to(E4M3), torch.tensor(0.3)
    other = torch.randn(6144, 4096, generator=random)
    small, path, out = (tmp_path / f"{name}.safetensors" for name in ("small", "q", "out"))
    save_file({"l.weight": codes[:8].clone(), "l.weight_scale": scale}, small)
    save_file({"l.weight": codes, "l.weight_scale": scale, "n.weight": other}, path)
    save_file({"l.weight": (codes.float() * scale).to(dtype), "n.weight": other.to(dtype)}, out)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, (small, out, path))], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 64 << 10


BLOCKS = "fp8_block:rows=4:columns=24"


@pytest.fixture
def untold(tmp_path):
    """untold.safetensors: blocks that no configuration tells of."""
    W = torch.randn(8, 48, generator=torch.Generator().manual_seed(0)).reshape(2, 4, 2, 24)
    scale = W.abs().amax((1, 3)) / 448
    codes = (W / scale[:, None, :, None]).reshape(8, 48).to(E4M3)
    save_file(
        {"l.weight": codes, "l.weight_scale_inv": scale, "o.weight": torch.ones(3)}, tmp_path / "untold.safetensors"
    )
    return tmp_path / "untold.safetensors", (codes.float().reshape(2, 4, 2, 24) * scale[:, None, :, None]).reshape(
        8, 48
    )


@pytest.mark.parametrize("named", [[], ["-t", "l.*"]])
def test_a_bake_that_was_told_its_chain_is_proven_by_it(named, untold, tmp_path, paramcli):
    """As the last line of the bake says it; a weight that is another is found."""
    path, wanted = untold
    out, other = tmp_path / "out.safetensors", tmp_path / "other.safetensors"
    said = paramcli("remove", path, "--chain", BLOCKS, *named, "-o", out).err
    proof = shlex.split(said.partition("next: paramcli ")[2].splitlines()[0])
    assert proof == ["verify", str(out), "--base", str(path), "--round-trip", "--chain", BLOCKS, *named]
    assert torch.equal(load_file(out)["l.weight"], wanted)
    assert "every weight is what its codes stand for" in paramcli(*proof).err
    W = wanted.clone()
    W[7, 47] *= 1.1
    save_file({**load_file(out), "l.weight": W}, other)
    proof[1] = str(other)
    paramcli(*proof, code=1)
    # By itself, and in Python.
    paramcli("verify", path, "--round-trip", "--chain", BLOCKS)
    assert round_trip(out, base=path, chain=BLOCKS).ok
    assert not round_trip(other, base=path, chain=BLOCKS).ok


def test_a_chain_that_the_keys_have_no_room_for_is_refused(untold, tmp_path, paramcli):
    """Another block, no decoder, and a name that nothing has; each of it in a line."""
    path, _ = untold
    wrong = paramcli("verify", path, "--round-trip", "--chain", "fp8_block:rows=8:columns=24", code=3).err
    assert "does not fit the keys of l.weight: l.weight (8x48 float8_e4m3fn), l.weight_scale_inv (2x2 float32)" in wrong
    assert "--view needs --chain" in paramcli("verify", path, "--round-trip", "--view", "transpose", code=2).err
    assert "skew decodes no codes" in paramcli("verify", path, "--round-trip", "--chain", "skew", code=2).err
    assert "no parametrization named" in paramcli("verify", path, "--round-trip", "--chain", "fp9_block", code=2).err
    assert "no configuration says of how large blocks" in paramcli("verify", path, "--round-trip", code=3).err


def test_what_was_baked_from_codes_is_proven_by_its_base(tmp_path, paramcli):
    """Where nothing else is claimed of it, the hint is the proof, with the place for what it was baked from."""
    place = tmp_path / "q"
    shutil.copytree(FIXTURES / "compressed" / "integers", place, ignore=shutil.ignore_patterns("answers*"))
    paramcli("remove", place, "-o", tmp_path / "plain")
    for more in ([], ["--round-trip"]):
        said = paramcli("verify", tmp_path / "plain", *more, code=3).err
        assert f"paramcli verify {tmp_path / 'plain'} --base QUANTIZED --round-trip" in said
    paramcli("verify", tmp_path / "plain", "--base", place, "--round-trip")


def test_codes_of_another_kind_are_refused_by_bake_and_proof(tmp_path, paramcli):
    """Whole numbers are no 8-bit floats, nor are words of several codes numbers; whatever a decoder stumbles over."""
    W = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    of_numbers, of_words = tmp_path / "i8.safetensors", tmp_path / "packed.safetensors"
    save_file({"l.weight": (W * 30).round().to(torch.int8), "l.weight_scale": torch.ones(32, 1)}, of_numbers)
    packed = {
        "weight_packed": torch.arange(256, dtype=torch.int32).reshape(32, 8),
        "weight_shape": torch.tensor([32, 64]),
    }
    save_file(
        {**{f"l.{name}": T for name, T in packed.items()}, "l.weight_scale": torch.ones(32, 2).bfloat16()}, of_words
    )
    tried = [
        (of_numbers, ["--chain", "fp8_scaled:per=output"]),
        (of_numbers, ["--chain", "awq", "--view", "blocks=2"]),
        (of_words, ["--chain", "fp8_block:rows=1:columns=5"]),
    ]
    for path, chain in tried:
        for command in (["verify", path, "--round-trip"], ["verify", path], ["remove", path, "-o", tmp_path / "o"]):
            said = paramcli(*command, *chain, "-t", "l.weight", code=3).err
            assert "does not fit" in said or "awq is of matrices with" in said
        assert not (tmp_path / "o").exists()
    paramcli("remove", of_numbers, "--chain", "int_scaled:per=output", "-o", tmp_path / "ok.safetensors")
