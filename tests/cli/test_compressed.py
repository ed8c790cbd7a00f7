"""Weights that compressed-tensors and ModelOpt quantized: the oracle is what these packages make of them again, in
float32 (fixtures/make_compressed.py), and the layouts by hand.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.chain import parse_chain

FOLDERS = ("integers", "packed", "older", "floats", "modelopt")


def copied(fixtures, name, tmp_path, dtype="float32"):
    """A fixture's folder, its model said to be of this dtype, and its answers."""
    place = tmp_path / name
    shutil.copytree(fixtures / "compressed" / name, place)
    answers = load_file(place / "answers.safetensors")
    (place / "answers.safetensors").unlink()
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps({**config, "dtype": dtype}))
    return place, answers


def changed(place, change, config=None):
    """The model's tensors with these in place of theirs; None takes one out."""
    tensors = {**load_file(place / "model.safetensors"), **change}
    save_file({key: T for key, T in tensors.items() if T is not None}, place / "model.safetensors")
    if config is not None:
        said = json.loads((place / "config.json").read_text())
        said["quantization_config"] = config(said["quantization_config"])
        (place / "config.json").write_text(json.dumps(said))
    return place / "model.safetensors"


def in_shards(place):
    """The model's tensors dealt out to three files, so that a weight's scale is in another than its codes."""
    tensors = load_file(place / "model.safetensors")
    (place / "model.safetensors").unlink()
    names = {key: f"model-{at % 3 + 1:05}-of-00003.safetensors" for at, key in enumerate(sorted(tensors))}
    for file in set(names.values()):
        save_file({key: T for key, T in tensors.items() if names[key] == file}, place / file)
    index = {"metadata": {"total_size": sum(T.nbytes for T in tensors.values())}, "weight_map": names}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_compressed_tensors_stored_bakes_to_its_own_answer(name, dtype, fixtures, tmp_path, paramcli):
    """To the bit in float32, and that rounded once; of the originals nothing is left."""
    place, answers = copied(fixtures, name, tmp_path, dtype)
    out = tmp_path / "out.safetensors"
    paramcli("remove", place / "model.safetensors", "-o", out)
    got = load_file(out)
    assert got.keys() == answers.keys()
    for key, answer in answers.items():
        assert torch.equal(got[key], answer.to(getattr(torch, dtype))), key


@pytest.mark.parametrize("name", FOLDERS)
def test_a_weight_and_its_scale_in_different_shards_are_one(name, fixtures, tmp_path, paramcli):
    """As of one file."""
    place, answers = copied(fixtures, name, tmp_path)
    in_shards(place)
    out = tmp_path / "out.safetensors"
    paramcli("remove", place, "-o", out)
    got = load_file(out)
    assert got.keys() == answers.keys() and all(torch.equal(got[key], answers[key]) for key in answers)


def test_a_stream_of_bits_by_hand(tmp_path, paramcli):
    """Three bits a code, the first lowest, one of them in two words; zero points likewise, down the outputs."""
    codes = [[(3 * i + j) % 8 for j in range(24)] for i in range(12)]
    zeros = [[5 * i % 8] for i in range(12)]

    def stream(values):
        bits = sum(value << 3 * at for at, value in enumerate(values))
        return [int.from_bytes((bits >> 32 * k & 0xFFFFFFFF).to_bytes(4, "little"), "little", signed=False)
                for k in range(-(-3 * len(values) // 32))]  # fmt: skip

    def words(rows):
        return torch.tensor(rows, dtype=torch.int64).to(torch.int32)

    scale = torch.rand(12, 1) + 0.5
    save_file(
        {
            "l.weight_packed": words([stream(row) for row in codes]),
            "l.weight_zero_point": words([[word] for word in stream([zero for [zero] in zeros])]),
            "l.weight_scale": scale,
            "l.weight_shape": torch.tensor([12, 24]),
        },
        tmp_path / "m.safetensors",
    )
    out = tmp_path / "out.safetensors"
    chain = "int_packed:bits=3:columns=24:zero_point=true"
    paramcli("remove", tmp_path / "m.safetensors", "--chain", chain, "-o", out)
    assert torch.equal(load_file(out)["l.weight"], (torch.tensor(codes) - torch.tensor(zeros)) * scale)


# Chains and the numbers of their codes; every code of the grid is there.
GRIDS = {
    "int_scaled": 256,
    "int_scaled:per=tensor": 256,
    "int_scaled:per=group:size=32": 256,
    **{f"int_packed:bits={bits}:columns=256:per=group:size=32:zero_point=true": 1 << bits for bits in range(1, 8)},
    **{f"int_packed:bits={bits}:columns=256:layout=words": 1 << bits for bits in (3, 5, 6, 7)},
}


@pytest.mark.parametrize("chain", GRIDS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_codes_of_a_value_are_the_codes_that_it_came_of(chain, stored):
    """Each code of the grid, whatever the value was rounded to. (Not of 8 bits with a zero point: a bfloat16 does not
    tell 254 steps from 255.)
    """
    part = parse_chain(chain).links[0].make(torch.empty(40, 256))
    part.scale.data = torch.rand(part.scale.shape, generator=torch.Generator().manual_seed(0)) + 0.01
    codes = (torch.arange(40)[:, None] * 5 + torch.arange(256) * 3) % GRIDS[chain]
    codes = part.pack((codes + part.least).float())
    if part.zero_point is not None:
        zeros = torch.arange(part.zero_point.numel()).reshape(part.zero_point.shape) * 0x1F2E3D4C5B
        part.zero_point = zeros.to(part.zero_point.dtype)
    assert codes.shape == part.outline(torch.empty(40, 256, device="meta")).shape
    back = part.inverse(part.map(codes).to(stored).float())
    assert torch.equal(back, codes)
    assert not torch.equal(part.map(codes)[0], part.map(codes)[1])


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_bake_gives_the_codes_back_and_one_that_was_changed_does_not(name, dtype, fixtures, tmp_path, paramcli):
    """Of the file itself and of its bake in any dtype; of a code or a scale that changed since each weight is named."""
    place, _ = copied(fixtures, name, tmp_path, dtype)
    path, out = place / "model.safetensors", tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    paramcli("verify", path, "--round-trip")
    paramcli("verify", out, "--base", path, "--round-trip")
    for ending, by in (("weight_packed", 5), ("weight", 5), ("weight_scale", None)):
        was = load_file(path)
        keys = [key for key in was if key.rpartition(".")[2] == ending]
        # The first code of all to another, or every scale twice what it was.
        change = {}
        for key in keys:
            octets = was[key].clone().view(torch.uint8)
            octets.view(-1)[0] ^= by or 0
            twice = (was[key].float() * 2).to(was[key].dtype) if was[key].is_floating_point() else was[key] + 1
            change[key] = octets.view(was[key].dtype) if by else twice
        if keys:
            changed(place, change)
            tensors = paramcli("verify", out, "--base", path, "--round-trip", "--json", code=1).json["tensors"]
            modules = {key.rpartition(".")[0] for key in keys}
            assert {told["tensor"].rpartition(".")[0] for told in tensors if not told["ok"]} == modules
            changed(place, was)


def test_bits_that_nothing_tells_are_asked_for(fixtures, tmp_path, paramcli):
    """64 words for 256 columns are of 8 bits, or of 7 with none in two words: each chain that is printed runs."""
    codes = torch.randint(-(2**31), 2**31 - 1, (4, 64), generator=torch.Generator().manual_seed(0)).int()
    path, out = tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    stored = {"l.weight_packed": codes, "l.weight_scale": torch.ones(4, 1), "l.weight_shape": torch.tensor([4, 256])}
    save_file(stored, path)
    error = paramcli("remove", path, "-o", out, code=3).err
    hint = next(line for line in error.splitlines() if "--chain" in line)
    chains = [word for word in hint.split() if word.startswith("int_packed:")]
    assert len(chains) == 2
    octets = codes.view(torch.uint8).reshape(4, 256)
    sevens = torch.stack([codes >> 7 * k & 127 for k in range(4)], -1).reshape(4, 256)
    for chain, want in zip(chains, (sevens.float() - 64, octets.float() - 128), strict=True):
        paramcli("remove", path, "--chain", chain, "-o", out, "-f")
        assert torch.equal(load_file(out)["l.weight"], want)


L = "model.layers.4_zeros"
# label -> (what is changed, what is said)
WRONG = {
    "no scale": ({f"{L}.weight_scale": None}, "no scale beside them"),
    "no shape": ({f"{L}.weight_shape": None}, "no weight_shape beside their 11x12 words"),
    "no zero points": ({f"{L}.weight_zero_point": None}, "no zero points, which its configuration says it has"),
    "other rows": ({f"{L}.weight_shape": torch.tensor([12, 96])}, "a weight_shape of 12x96 for 11x12 words"),
    "other columns": (
        {f"{L}.weight_shape": torch.tensor([11, 120])},
        "scales of 11x3 for 11x120, which its configuration says",
    ),
    "a shape beyond all": ({f"{L}.weight_shape": torch.tensor([11, 2**62])}, "a weight_shape of 11x"),
    "a negative shape": ({f"{L}.weight_shape": torch.tensor([11, -96])}, "a weight_shape of 11x"),
    "odd packing": ({f"{L}.weight_packed": torch.zeros(11, 8, dtype=torch.int32)}, "11x8 words"),
    "other groups": ({f"{L}.weight_scale": torch.ones(11, 5)}, "scales of 11x5 for 11x96"),
    "groups otherwise": ({f"{L}.weight_scale": torch.ones(11, 6)}, "which its configuration says otherwise"),
    "zeros as bytes": ({f"{L}.weight_zero_point": torch.zeros(11, 3, dtype=torch.int8)}, "zero points of 11x3"),
    "a NaN": ({f"{L}.weight_scale": torch.full((11, 3), float("nan"))}, "NaN"),
    "a rotation": ({f"{L}.pre_quant_scale": torch.ones(96)}, "pre_quant_scale beside it"),
    "twice": ({f"{L}.weight": torch.ones(11, 96)}, "and the file has that too"),
    "an order of other groups": ({f"{L}.weight_g_idx": torch.arange(96).int()}, "groups that are not there"),
    "an order of other sizes": ({f"{L}.weight_g_idx": torch.zeros(96).int()}, "not as many columns each"),
    "an order of other columns": ({f"{L}.weight_g_idx": torch.zeros(71).int()}, "a weight_g_idx of 71 for 11x96"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_packed_weight_is_refused(wrong, fixtures, tmp_path, paramcli):
    """One line with the reason, nothing written."""
    change, said = WRONG[wrong]
    place, _ = copied(fixtures, "packed", tmp_path)
    out = tmp_path / "out.safetensors"
    error = paramcli("remove", changed(place, change), "-o", out, code=3).err
    assert said in error and not out.exists()


def test_what_scales_a_layers_inputs_and_outputs_goes_with_its_weight(fixtures, tmp_path, paramcli):
    """Beside any weight of codes; an attention's own (k_scale) is no part of one and stays."""
    place, answers = copied(fixtures, "integers", tmp_path)
    beside = {
        f"model.layers.output.{name}": torch.ones(1)
        for name in ("input_scale", "input_zero_point", "output_scale", "output_zero_point")
    }
    path = changed(place, {**beside, "model.layers.k_scale": torch.ones(1)})
    out = tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    assert load_file(out).keys() == {*answers, "model.layers.k_scale"}


@pytest.mark.parametrize("where, code", [("weight_input", 0), ("input", 3), ("k_cache", 3), (None, 3)])
def test_a_model_that_turns_its_activations_has_no_plain_weights(where, code, fixtures, tmp_path, paramcli):
    """A rotation of weights alone is in them; one that other code undoes would be missing."""

    def turned(config):
        scheme = {"type": "hadamard", "apply": [{"targets": ["Linear"], "location": where}]}
        return {**config, "transform_config": {"config_groups": {"R1": scheme}}}

    for name in ("packed", "floats"):
        place, _ = copied(fixtures, name, tmp_path)
        error = paramcli("remove", changed(place, {}, turned), "-o", tmp_path / f"{name}.o", code=code).err
        assert ("turn their inputs or outputs as well (transform_config)" in error) == bool(code)


def test_integers_that_the_configuration_calls_floats_are_refused(fixtures, tmp_path, paramcli):
    """Packed or not."""

    def floats(config):
        return {"config_groups": {"all": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "float"}}}}

    for name in ("packed", "integers"):
        place, _ = copied(fixtures, name, tmp_path)
        error = paramcli("remove", changed(place, {}, floats), "-o", tmp_path / "o", code=3).err
        assert "a configuration that says they are floats" in error


def test_an_order_may_be_of_any_integers(fixtures, tmp_path, paramcli):
    """A few groups fit a byte."""
    place, answers = copied(fixtures, "older", tmp_path)
    key, out = "model.layers.order.weight_g_idx", tmp_path / "out.safetensors"
    order = load_file(place / "model.safetensors")[key]
    paramcli("remove", changed(place, {key: order.to(torch.int8)}), "-o", out)
    assert torch.equal(load_file(out)["model.layers.order.weight"], answers["model.layers.order.weight"])


def test_a_configuration_of_other_bits_is_not_believed(fixtures, tmp_path, paramcli):
    """Neither it nor the tensors: one of the two is of another file."""

    def other(config):
        return {"config_groups": {"all": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}}}

    place, _ = copied(fixtures, "packed", tmp_path)
    error = paramcli("remove", changed(place, {}, other), "-o", tmp_path / "o", code=3).err
    assert "which no weight of 11x96 of 4 bits has" in error


def test_no_pattern_of_a_configuration_takes_long(fixtures, tmp_path, paramcli):
    """Python's own matching of these would not come back; a group whose pattern is not known may be meant of any."""

    def slow(config):
        groups = list(config["config_groups"].values())
        for group, text in zip(groups, ("re:(a*)*b", "re:(.*)*(.*)*(.*)*x", "re:(?!x).*"), strict=False):
            group["targets"] += [text]
        return {"config_groups": {str(i): group for i, group in enumerate(groups)}}

    place, answers = copied(fixtures, "packed", tmp_path)
    long = {f"{'a' * 2000}.{i}.weight_packed": torch.zeros(1, 1, dtype=torch.int32) for i in range(20)}
    path = changed(place, dict.fromkeys(long) | {}, slow)
    out = tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    got = load_file(out)
    assert all(torch.equal(got[key], answers[key]) for key in answers)
    paramcli("inspect", changed(place, long))


E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
E2M3 = [k / 8 for k in range(8)] + [(8 + k) / 8 * 2**e for e in range(3) for k in range(8)]


def exponents(*numbers):
    return torch.tensor([numbers], dtype=torch.uint8)


@pytest.mark.parametrize("scale", [exponents(0, 130), exponents(0, 130).view(torch.float8_e8m0fnu)])
def test_floats_of_four_and_six_bits_by_hand(scale, tmp_path, paramcli):
    """The lower half of a byte is the even column; four codes of six bits begin at the lowest bit of three bytes."""
    fours = [(7 * j + 3) % 16 for j in range(64)]
    sixes = [(5 * j + 1) % 64 for j in range(64)]
    stream = sum(code << 6 * j for j, code in enumerate(sixes)).to_bytes(48, "little")
    tensors = {
        "a.weight_packed": torch.tensor([[fours[j] | fours[j + 1] << 4 for j in range(0, 64, 2)]], dtype=torch.uint8),
        "a.weight_scale": scale,
        "b.weight_packed": torch.tensor([list(stream)], dtype=torch.uint8),
        "b.weight_scale": scale.clone(),
    }
    save_file(tensors, tmp_path / "m.safetensors")
    out = tmp_path / "out.safetensors"
    paramcli("remove", tmp_path / "m.safetensors", "-o", out)
    times = [2.0**-127] * 32 + [8.0] * 32
    for name, codes, values in (("a", fours, E2M1), ("b", sixes, E2M3)):
        both = [*values, *(-value for value in values)]
        want = torch.tensor([[both[code] * by for code, by in zip(codes, times, strict=True)]])
        assert torch.equal(load_file(out)[f"{name}.weight"], want)


def nvfp4(codes, scale, every):
    """Both scales first, as the two packages have them."""
    table = torch.tensor(E2M1 + [-value for value in E2M1])
    values = table[torch.stack((codes & 15, codes >> 4), -1).flatten(-2).long()]
    each = scale.float() * every["by"] if "by" in every else scale.float() / every["over"]
    return (values.unflatten(-1, (-1, 16)) * each[..., None]).flatten(-2)


@pytest.mark.parametrize("maker", ["over", "by"])
def test_the_one_scale_of_nvfp4_divides_or_multiplies_as_its_name_says(maker, tmp_path, paramcli):
    """compressed-tensors' divides, ModelOpt's multiplies, each before the codes; its dimension is free."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(256, (5, 24), generator=draw).byte()
    scale = (torch.rand(5, 3, generator=draw) * 400).to(torch.float8_e4m3fn)
    every = torch.tensor([0.3]) if maker == "over" else torch.tensor(0.3)
    names = ("weight_packed", "weight_global_scale") if maker == "over" else ("weight", "weight_scale_2")
    stored = {f"l.{names[0]}": codes, f"l.{names[1]}": every, "l.weight_scale": scale, "l.input_scale": torch.ones(())}
    save_file(stored, tmp_path / "m.safetensors")
    out = tmp_path / "out.safetensors"
    paramcli("remove", tmp_path / "m.safetensors", "-o", out)
    want = nvfp4(codes, scale, {maker: every})
    assert load_file(out).keys() == {"l.weight"} and torch.equal(load_file(out)["l.weight"], want)
    assert not torch.equal(want, nvfp4(codes, scale, {"by" if maker == "over" else "over": every}))
    paramcli("remove", tmp_path / "m.safetensors", "--chain", "nvfp4:global_scale=multiplies", "-o", out, "-f")
    assert torch.equal(load_file(out)["l.weight"], nvfp4(codes, scale, {"by": every}))


@pytest.mark.parametrize("chain", ["mxfp4", "mxfp6", "nvfp4:global_scale=divides", "nvfp4:global_scale=multiplies"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_every_float_comes_back_as_its_code(chain, stored):
    """Zeros too, each with its sign; -0 is no code of its own where it was rounded to."""
    part = parse_chain(chain).links[0].make(torch.empty(8, 64))
    draw = torch.Generator().manual_seed(0)
    part.scale.data = torch.rand(part.scale.shape, generator=draw) + 0.01
    if "mx" in chain:
        part.scale.data = torch.randint(1, 240, part.scale.shape, generator=draw).byte()
    else:
        part.global_scale.data = torch.tensor(0.7)
    codes = torch.arange(8 * 64 * part.bits // 8).reshape(8, -1).mul(0x9D).byte()
    assert codes.unique().numel() > 150
    assert torch.equal(part.inverse(part.map(codes).to(stored).float()), codes)


F = "model.layers."
INVALID = torch.full((6, 2), 255, dtype=torch.uint8)
WRONG_FLOATS = {
    "an exponent of 255": ({f"{F}mxfp4.weight_scale": INVALID}, "12 of its scales are exponents of 255"),
    "the same of fp8": ({f"{F}mxfp8.weight_scale": INVALID}, "12 of its scales are exponents of 255"),
    "the same as a float": ({f"{F}mxfp4.weight_scale": INVALID.view(torch.float8_e8m0fnu)}, "NaN"),
    "no scale": ({f"{F}mxfp4.weight_scale": None}, "no weight_scale beside"),
    "no global scale": ({f"{F}nvfp4.weight_global_scale": None}, "8-bit scales and no weight_global_scale"),
    "many global scales": ({f"{F}nvfp4.weight_global_scale": torch.ones(6)}, "one number in F32"),
    "a global scale of 0": ({f"{F}nvfp4.weight_global_scale": torch.zeros(1)}, "NaN or infinite"),
    "other widths": ({f"{F}mxfp6.weight_scale": torch.ones(6, 5).byte()}, "neither of 4 nor of 6 bits"),
    "odd packing": ({f"{F}nvfp4.weight_packed": torch.zeros(6, 31).byte()}, "6x31 bytes and scales of 6x4"),
    "bits otherwise": (
        {f"{F}mxfp6.weight_packed": torch.zeros(6, 32).byte()},
        "where its configuration says float of 6 bits in groups of 32",
    ),
    "ModelOpt's, rotated": (
        {f"{F}nvfp4.pre_quant_scale": torch.ones(64), f"{F}nvfp4.svdquant_lora_a": torch.ones(2, 64)},
        "svdquant_lora_a beside it, which nvfp4 has no use for",
    ),
    "both makers' scales": ({f"{F}nvfp4.weight_scale_2": torch.ones(())}, "weight_scale_2 beside it"),
    "blocks of other sizes": ({f"{F}block.weight_scale": torch.ones(3, 3)}, "which blocks of 4x24 do not have"),
    "zero points": ({f"{F}fp8_output.weight_zero_point": torch.zeros(6, 1)}, "weight_zero_point beside it"),
}


@pytest.mark.parametrize("wrong", WRONG_FLOATS)
def test_what_is_no_packed_float_is_refused(wrong, fixtures, tmp_path, paramcli):
    """One line with the reason, nothing written."""
    change, said = WRONG_FLOATS[wrong]
    place, _ = copied(fixtures, "floats", tmp_path)
    out = tmp_path / "out.safetensors"
    error = paramcli("remove", changed(place, change), "-o", out, code=3).err
    assert said in error and not out.exists()


def test_verify_finds_exponents_of_no_number(fixtures, tmp_path, paramcli):
    """As it finds NaN among codes and scales: of the tensors that have one."""
    place, _ = copied(fixtures, "floats", tmp_path)
    path = changed(place, {f"{F}mxfp4.weight_scale": INVALID, f"{F}mxfp8.weight_scale": INVALID.clone()})
    tensors = paramcli("verify", path, "--json", code=1).json["tensors"]
    assert {told["tensor"] for told in tensors if not told["ok"]} == {f"{F}mxfp4.weight", f"{F}mxfp8.weight"}


def test_half_a_modelopt_weight_is_refused(tmp_path, paramcli):
    """Bytes with 8-bit scales and no number for all."""
    stored = {"l.weight": torch.zeros(4, 16).byte(), "l.weight_scale": torch.ones(4, 2).to(torch.float8_e4m3fn)}
    save_file(stored, tmp_path / "m.safetensors")
    error = paramcli("remove", tmp_path / "m.safetensors", "-o", tmp_path / "o", code=3).err
    assert "8-bit scales and no weight_scale_2" in error


def test_a_scale_for_32_columns_that_nothing_tells_is_asked_for(tmp_path, paramcli):
    """MXFP8 without a configuration: the chain that is printed runs."""
    codes = torch.randn(4, 96, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    save_file({"l.weight": codes, "l.weight_scale": torch.full((4, 3), 126).byte()}, tmp_path / "m.safetensors")
    error = paramcli("remove", tmp_path / "m.safetensors", "-o", tmp_path / "o", code=3).err
    chain = error.partition("--chain ")[2].partition(",")[0]
    assert chain == "fp8_block:rows=1:columns=32"
    out = tmp_path / "out.safetensors"
    paramcli("remove", tmp_path / "m.safetensors", "--chain", chain, "-o", out)
    assert torch.equal(load_file(out)["l.weight"], codes.float() / 2)


def test_experts_in_one_tensor(tmp_path, paramcli):
    """Three dimensions: zero points lie along the outputs of each expert."""
    draw = torch.Generator().manual_seed(0)
    q, z = torch.randint(16, (3, 16, 64), generator=draw), torch.randint(16, (3, 16, 4), generator=draw)
    scale, by = torch.rand(3, 16, 4, generator=draw), torch.arange(0, 32, 4)
    codes = torch.randint(256, (3, 16, 32), generator=draw).byte()
    stored = {
        "a.weight_packed": (q.unflatten(-1, (8, 8)) << by).sum(-1).to(torch.int32),
        "a.weight_zero_point": (z.mT.unflatten(-1, (2, 8)) << by).sum(-1).to(torch.int32).mT.contiguous(),
        "a.weight_scale": scale,
        "a.weight_shape": torch.tensor([3, 16, 64]),
        "b.weight_packed": codes,
        "b.weight_scale": (scale * 100).to(torch.float8_e4m3fn),
        "b.weight_global_scale": torch.tensor(0.3),
    }
    save_file(stored, tmp_path / "m.safetensors")
    out = tmp_path / "out.safetensors"
    paramcli("remove", tmp_path / "m.safetensors", "-o", out)
    got = load_file(out)
    want = ((q.unflatten(-1, (4, 16)) - z.unsqueeze(-1)) * scale.unsqueeze(-1)).flatten(-2)
    assert torch.equal(got["a.weight"], want)
    assert torch.equal(got["b.weight"], nvfp4(codes, stored["b.weight_scale"], {"over": torch.tensor(0.3)}))


@pytest.mark.parametrize("name", ["packed", "floats"])
def test_an_adapter_is_merged_onto_what_the_codes_stand_for(name, fixtures, tmp_path, paramcli):
    """LoRA onto every module of a file that mixes formats: what merging onto its bake gives, rounded once."""
    place, answers = copied(fixtures, name, tmp_path)
    draw = torch.Generator().manual_seed(0)
    lora, want = {}, {}
    for key, W in answers.items():
        A, B = torch.randn(2, W.size(1), generator=draw), torch.randn(W.size(0), 2, generator=draw)
        module = f"base_model.model.{key.removesuffix('.weight')}"
        lora |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
        want[key] = W + 2 * (B @ A)
    (tmp_path / "lora").mkdir()
    save_file(lora, tmp_path / "lora" / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["x"], "bias": "none"}
    said["target_modules"] = sorted({key.split(".")[-2] for key in answers})
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(said))
    out = tmp_path / "out.safetensors"
    paramcli("merge", place / "model.safetensors", "--adapter", tmp_path / "lora", "-o", out)
    got = load_file(out)
    assert got.keys() == want.keys()
    for key, W in want.items():
        assert torch.allclose(got[key], W, rtol=1e-6, atol=1e-6 * W.abs().max().item()), key


@pytest.mark.parametrize("bits", [3, 4])
def test_large_packed_weights_go_by_rows(bits, tmp_path, paramcli, monkeypatch):
    """12 MB of float32 in blocks of rows: the zero points of 32 rows lie in so many words."""
    from paramcli.surgery.edits import remove_work

    blocks = []
    read = remove_work.BakeWork.read
    monkeypatch.setattr(remove_work.BakeWork, "read", lambda self, rows: blocks.append(rows) or read(self, rows))
    draw = torch.Generator().manual_seed(0)
    q = torch.randint(1 << bits, (1500, 2048), generator=draw)
    z = torch.randint(1 << bits, (1500, 8), generator=draw)
    scale = torch.rand(1500, 8, generator=draw)

    def stream(codes):
        codes = torch.nn.functional.pad(codes, (0, -codes.size(-1) % 32)).unflatten(-1, (-1, 32))
        bits_of = (codes[..., None] >> torch.arange(bits)) & 1
        words = bits_of.flatten(-2).unflatten(-1, (-1, 32)) << torch.arange(32)
        return words.sum(-1).flatten(-2).to(torch.int32)

    held = -(-1500 * bits // 32)
    stored = {
        "weight_packed": stream(q),
        "weight_zero_point": stream(z.T)[:, :held].T.contiguous(),
        "weight_scale": scale,
    }
    path, out = tmp_path / "m.safetensors", tmp_path / "out.safetensors"
    save_file({"weight_shape": torch.tensor([1500, 2048]), **stored}, path)
    paramcli("remove", path, "-o", out)
    want = ((q.reshape(1500, 8, 256) - z[..., None]) * scale[..., None]).reshape(1500, 2048)
    assert torch.equal(load_file(out)["weight"], want)
    assert len(blocks) > 2 and None not in blocks
