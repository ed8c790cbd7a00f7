"""GPTQ and AWQ: what is baked of files packed field by field here, and of AWQ what compressed-tensors makes."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.maths.gptq import AWQ, GPTQ

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


def words(fields, bits):
    """One stream of fields, the first in the lowest bits, in words of 32 bits."""
    stream = sum(int(field) << bits * i for i, field in enumerate(fields))
    found = [(stream >> 32 * i) & 0xFFFFFFFF for i in range(len(fields) * bits // 32)]
    return [word - (1 << 32) if word >> 31 else word for word in found]


def gptq(bits, zeros="v1", out=32, inputs=96, group=32, order="in order", seed=0):
    """(tensors, the weight): codes, zero points and scales at random, packed column by column and row by row."""
    random = torch.Generator().manual_seed(seed)
    count, groups = 1 << bits, -(-inputs // group)
    q = torch.randint(count, (inputs, out), generator=random)
    z = torch.randint(count, (groups, out), generator=random)
    s = (torch.rand(groups, out, generator=random) * 0.1).half()
    idx = [j // group for j in range(inputs)]
    if order == "by activation":
        idx = [idx[j] for j in torch.randperm(inputs, generator=random).tolist()]
    stored = (z - 1) % count if zeros == "v1" else z
    columns = [words(q[:, i].tolist(), bits) for i in range(out)]
    tensors = {
        "l.qweight": torch.tensor(columns, dtype=torch.int32).T.contiguous(),
        "l.qzeros": torch.tensor([words(row.tolist(), bits) for row in stored], dtype=torch.int32),
        "l.scales": s,
    }
    if order != "not said":
        tensors["l.g_idx"] = torch.tensor(idx, dtype=torch.int32)
    W = torch.empty(out, inputs)
    for j, g in enumerate(idx):
        W[:, j] = (q[j] - z[g]).float() * s[g].float()
    return tensors, W


def folder(tmp_path, tensors, quantization=None, shards=1, **config):
    place = tmp_path / "model"
    place.mkdir(exist_ok=True)
    if quantization is not None:
        config["quantization_config"] = quantization
    if config:
        (place / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, place / "model.safetensors")
        return place / "model.safetensors"
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    places = {key: names[i % shards] for i, key in enumerate(tensors)}
    for name in names:
        save_file({key: T for key, T in tensors.items() if places[key] == name}, place / name)
    index = {"metadata": {}, "weight_map": places}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


def said(bits=4, group=32, **more):
    return {"quant_method": "gptq", "bits": bits, "group_size": group, **more}


@pytest.mark.parametrize("order", ["in order", "by activation", "not said"])
@pytest.mark.parametrize("name", ["gptq", "gptq_v2", None])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_bakes_to_what_its_fields_say(bits, name, order, tmp_path, paramcli):
    """To the bit in float32, and that rounded once; everything else stays."""
    tensors, W = gptq(bits, "v2" if name == "gptq_v2" else "v1", order=order)
    rest = {"l.bias": torch.randn(32).half(), "router.bias": torch.randn(4), "ids": torch.arange(3)}
    format = {"checkpoint_format": name} if name else {}
    for dtype in ("float32", "bfloat16"):
        path = folder(tmp_path, {**tensors, **rest}, said(bits, **format), dtype=dtype)
        out = tmp_path / f"{dtype}.safetensors"
        paramcli("remove", path, "-o", out)
        got = load_file(out)
        assert got.keys() == {"l.weight", *rest} and all(torch.equal(got[key], T) for key, T in rest.items())
        assert torch.equal(got["l.weight"], W.to(getattr(torch, dtype)))
    assert f"gptq:bits={bits}" in paramcli("inspect", path, "--flat").out


def test_what_lies_where_in_a_word():
    """Digits of a literal are fields, the last the first: eight of 4 bits, and 32 of 3 bits in three words."""
    scale = torch.ones(1, 8)
    four = GPTQ(scale, torch.zeros(1, 1, dtype=torch.int32), None, None, 4, "v2")
    assert four.map(torch.tensor([[0x76543210]] * 1, dtype=torch.int32).expand(1, 8))[0].tolist() == [*range(8)]
    nibbles = AWQ(scale, torch.zeros(1, 1, dtype=torch.int32), None, None)
    assert nibbles.map(torch.tensor([[0x76543210]], dtype=torch.int32)).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    stream = 0o76543210765432107654321076543210
    three = GPTQ(torch.ones(1, 32), torch.zeros(1, 3, dtype=torch.int32), None, None, 3, "v2")
    stored = torch.tensor([[stream >> 32 * i & 0xFFFFFFFF] for i in range(3)]).to(torch.int32).expand(3, 32)
    assert three.map(stored).tolist() == [[*range(8)] * 4] * 32


def test_zero_points_of_v1_wrap_each_for_itself():
    """Stored 0xF0F0F0F0 is 1, 0, 1, 0, ... and no carry goes into a neighbour; in words it does; v2 is as stored."""
    stored, codes = torch.tensor([[0xF0F0F0F0 - (1 << 32)]], dtype=torch.int32), torch.zeros(1, 8, dtype=torch.int32)
    zeros = {v: -GPTQ(torch.ones(1, 8), stored, None, None, 4, v).map(codes)[:, 0] for v in ("v1", "v1_words", "v2")}
    assert zeros["v1"].tolist() == [1, 0] * 4 and zeros["v2"].tolist() == [0, 15] * 4
    assert zeros["v1_words"].tolist() == [1, 0, 2, 0, 2, 0, 2, 0]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_v1_that_gptqmodel_wrote_has_borrows(bits, tmp_path, paramcli):
    """It takes 0x11111111 off whole words (not of 3 bits), and says in `meta` that it wrote the file; without that
    every zero point is taken for itself.
    """
    tensors, W = gptq(bits, "v2", seed=1)
    if bits == 3:
        tensors, W = gptq(bits, "v1", seed=1)
    else:
        ones = sum(1 << shift for shift in range(0, 32, bits))
        less = [[(word - ones) % 2**32 for word in row] for row in tensors["l.qzeros"].tolist()]
        tensors["l.qzeros"] = torch.tensor(less).to(torch.int32)
    for writer in (["gptqmodel:7.7.0"], ["auto_gptq:0.7.1"]):
        out = tmp_path / f"{writer[0][:4]}.safetensors"
        config = said(bits, sym=False, checkpoint_format="gptq", meta={"quantizer": writer})
        paramcli("remove", folder(tmp_path, tensors, config), "-o", out)
        assert torch.equal(load_file(out)["l.weight"], W) == (bits == 3 or writer[0][0] == "g")


def test_awq_bakes_to_what_compressed_tensors_makes(tmp_path, paramcli):
    """Also where no configuration is: shapes and dtypes are nobody else's."""
    tensors, want = (load_file(FIXTURES / "awq" / f"{name}.safetensors") for name in ("model", "answers"))
    for config in ({"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}, None):
        out = tmp_path / f"{bool(config)}.safetensors"
        paramcli("remove", folder(tmp_path, tensors, config, dtype="float32"), "-o", out)
        got = load_file(out)
        assert got.keys() == want.keys() and all(torch.equal(got[key], W) for key, W in want.items())


def test_shards_and_the_file_of_an_older_tool(tmp_path, paramcli):
    """Codes, zero points and scales in three shards; only quantize_config.json says the format."""
    tensors, W = gptq(4, "v2")
    path = folder(tmp_path, tensors, shards=3, dtype="float16")
    (path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "format": "gptq_v2"}))
    out = tmp_path / "out"
    paramcli("remove", path, "-o", out)
    got = {key: T for file in out.glob("*.safetensors") for key, T in load_file(file).items()}
    assert got.keys() == {"l.weight"} and torch.equal(got["l.weight"], W.half())


# What leaves it open -> (configuration, another file's, what is said)
OPEN = {
    "no configuration": (None, None, "no configuration says in which checkpoint_format"),
    "one of something else": ({"quant_algo": "FP8"}, None, "no configuration says in which checkpoint_format"),
    "another method": (said() | {"quant_method": "auto-round"}, None, "the configuration is of auto-round"),
    "two that differ": (said(checkpoint_format="gptq"), said(format="gptq_v2"), "contradict each other: gptq, gptq_v2"),
}


@pytest.mark.parametrize("label", OPEN)
@pytest.mark.parametrize("order", ["by activation", "not said"])
def test_what_no_configuration_tells_is_asked_for(label, order, tmp_path, paramcli):
    """By chains of which each runs as it is printed, and gives what it says."""
    config, beside, what = OPEN[label]
    made = {v: gptq(3, v, order=order) for v in ("v1", "v2")}
    if config and "bits" in config:
        config, beside = {**config, "bits": 3}, beside and {**beside, "bits": 3}
    for index, (version, (tensors, W)) in enumerate(made.items()):
        path = folder(tmp_path, tensors, config)
        if beside:
            (path.parent / "quantize_config.json").write_text(json.dumps(beside))
        error = paramcli("remove", path, code=3).err
        assert what in " ".join(error.split())
        chains = re.findall(r"(--chain \S+) is for (gptq\w*)", " ".join(error.split()))
        assert [name for _, name in chains] == ["gptq", "gptq_v2"]
        out = tmp_path / f"{version}.safetensors"
        paramcli("remove", path, *shlex.split(chains[index][0]), "-o", out)
        assert torch.equal(load_file(out)["l.weight"], W)


def test_a_group_that_nothing_tells_is_asked_for(tmp_path, paramcli):
    """96 inputs in 5 groups are of 20 to 23; with the configuration, or a list of their groups, they are known."""
    for order in ("not said", "in order"):
        tensors, W = gptq(4, group=20, order=order)
        config = {"quant_method": "gptq", "bits": 4}
        error = paramcli("remove", folder(tmp_path, tensors, config), code=3 if order == "not said" else 0).err
        assert ("nothing says of how many inputs" in error) == (order == "not said")
        paramcli("remove", folder(tmp_path, tensors, said(group=20)), "-o", tmp_path / f"{order}.safetensors")
        assert torch.equal(load_file(tmp_path / f"{order}.safetensors")["l.weight"], W)


def test_shapes_are_of_modules_where_dynamic_says_that_they_differ(tmp_path, paramcli):
    """`dynamic` gives modules other bits and groups by patterns, which nothing needs to read."""
    tensors, W = gptq(8, group=16)
    out = tmp_path / "out.safetensors"
    dynamic = {"dynamic": {r"+:l": {"bits": 8, "group_size": 16}}}
    paramcli("remove", folder(tmp_path, tensors, said(4, 128, **dynamic)), "-o", out)
    assert torch.equal(load_file(out)["l.weight"], W)


TENSORS, _ = gptq(4)
AWQS = {
    f"l.{k.removeprefix('l.')}": T for k, T in load_file(FIXTURES / "awq" / "model.safetensors").items() if k[0] == "l"
}
AWQ_SAID = {"quant_method": "awq", "bits": 4, "group_size": 16}
HALF = TENSORS["l.scales"].clone()
HALF[1, 2] = float("nan")


def five():
    """5 bits: 32 outputs of 96 inputs."""
    return {
        **TENSORS,
        "l.qweight": torch.zeros(15, 32, dtype=torch.int32),
        "l.qzeros": torch.zeros(3, 5, dtype=torch.int32),
    }


# what is wrong -> (tensors, configuration, what is said)
WRONG = {
    "planes by name": (TENSORS, said(checkpoint_format="gptq_p"), "GPTQ's format 'gptq_p'"),
    "planes by bits": (five(), said(5), "is of 5 bits, which GPTQ packs in planes (gptq_p)"),
    "an embedding": (
        {k.replace("l.", "model.embed_tokens."): T for k, T in TENSORS.items()},
        said(),
        "is an embedding by its name, and how GPTQModel packs those, untransposed, is not read",
    ),
    "another format": (TENSORS, said(format="bitblas"), "GPTQ's format 'bitblas'"),
    "a format of a kernel": (
        TENSORS,
        said(checkpoint_format="marlin"),
        "quantized by Marlin, which nothing here decodes",
    ),
    "other bits": (TENSORS, said(8), "in 4 bits and 3 groups by its shapes, which the configuration contradicts"),
    "another group": (TENSORS, said(group=64), "which the configuration contradicts"),
    "one group": (TENSORS, said(group=-1), "which the configuration contradicts"),
    "no scales": ({k: T for k, T in TENSORS.items() if k != "l.scales"}, said(), "and no l.scales"),
    "no zero points": ({k: T for k, T in TENSORS.items() if k != "l.qzeros"}, said(), "and no l.qzeros"),
    "alone": ({"l.qweight": TENSORS["l.qweight"]}, said(), "and no l.scales, l.qzeros"),
    "scales of another size": (
        {**TENSORS, "l.scales": torch.ones(3, 31)},
        said(),
        "shapes and dtypes that neither has",
    ),
    "a group more": ({**TENSORS, "l.scales": torch.ones(4, 32)}, said(), "shapes and dtypes that neither has"),
    "too short a list": ({**TENSORS, "l.g_idx": TENSORS["l.g_idx"][:-1].clone()}, said(), "that neither has"),
    "a group that is not there": ({**TENSORS, "l.g_idx": TENSORS["l.g_idx"] + 1}, said(), "g_idx names groups that"),
    "a group before the first": ({**TENSORS, "l.g_idx": TENSORS["l.g_idx"] - 1}, said(), "g_idx names groups that"),
    "a scale that is NaN": ({**TENSORS, "l.scales": HALF}, said(), "NaN"),
    "the weight too": ({**TENSORS, "l.weight": torch.ones(32, 96)}, said(), "and the file has that too"),
    "words of 16 bits": (
        {**TENSORS, "l.qweight": TENSORS["l.qweight"].to(torch.int16)},
        said(),
        "shapes and dtypes that neither has",
    ),
    "AWQ by another name": (AWQS, {**AWQ_SAID, "version": "gemv"}, "AWQ's layout 'gemv'"),
    "AWQ with a list": ({**AWQS, "l.g_idx": torch.arange(32).int()}, AWQ_SAID, "shapes and dtypes that neither has"),
    "AWQ of 3 bits": (AWQS, {**AWQ_SAID, "bits": 3}, "which the configuration contradicts"),
    "AWQ of another group": (AWQS, {**AWQ_SAID, "group_size": 8}, "which the configuration contradicts"),
    "AWQ said to be GPTQ": (AWQS, said(group=16), "packed as AWQ packs, and the configuration is of gptq"),
    "GPTQ said to be AWQ": (TENSORS, {**said(), "quant_method": "awq"}, "and the configuration is of awq"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_weight_is_refused(wrong, tmp_path, paramcli):
    """One line, nothing written."""
    tensors, config, what = WRONG[wrong]
    path, out = folder(tmp_path, tensors, config), tmp_path / "out.safetensors"
    error = paramcli("remove", path, "-o", out, code=3).err
    assert what in " ".join(error.split()) and not out.exists()


def test_one_group_for_all_inputs(tmp_path, paramcli):
    """group_size -1."""
    tensors, W = gptq(4, group=96)
    out = tmp_path / "out.safetensors"
    paramcli("remove", folder(tmp_path, tensors, said(group=-1)), "-o", out)
    assert torch.equal(load_file(out)["l.weight"], W)


@pytest.mark.parametrize("held", [0, 1 << 30])
@pytest.mark.parametrize("bits", [3, 4])
def test_large_weights_go_by_rows(bits, held, tmp_path, paramcli, monkeypatch):
    """Blocks of rows, which are columns of what is stored, and words of zero points for many: as it is whole. What is
    not held is read by columns.
    """
    tensors, W = gptq(bits, out=160, inputs=96, order="by activation")
    path = folder(tmp_path, tensors, said(bits))
    from paramcli.fitting import blocks

    seen = []
    narrow = blocks.Batch._read_rows
    monkeypatch.setattr(blocks, "LARGE", 1)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * 96 * 32)
    monkeypatch.setattr(blocks, "HELD", held)
    monkeypatch.setattr(blocks.Batch, "_read_rows", lambda *given: seen.append(given[2:]) or narrow(*given))
    out = tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", out)
    assert torch.equal(load_file(out)["l.weight"], W) and len(set(seen)) > 1


def test_large_awq_goes_by_rows(tmp_path, paramcli, monkeypatch):
    from paramcli.fitting import blocks

    monkeypatch.setattr(blocks, "LARGE", 1)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 256)
    out = tmp_path / "out.safetensors"
    paramcli("remove", FIXTURES / "awq" / "model.safetensors", "-o", out)
    assert all(
        torch.equal(load_file(out)[k], W) for k, W in load_file(FIXTURES / "awq" / "answers.safetensors").items()
    )


@pytest.mark.parametrize("zeros", ["v1", "v2"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_of_the_values_are_the_codes(bits, zeros):
    """All words, any zero point; of 2, 3 and 4 bits also from values that were rounded to bfloat16."""
    tensors, W = gptq(bits, zeros, order="by activation")
    part = GPTQ(tensors["l.scales"].float(), tensors["l.qzeros"], tensors["l.g_idx"], 32, bits, zeros)
    assert torch.equal(part.map(tensors["l.qweight"]), W)
    assert torch.equal(part.inverse(W), tensors["l.qweight"])
    assert bits == 8 or torch.equal(part.inverse(W.bfloat16().float()), tensors["l.qweight"])


def test_codes_of_awqs_values_are_the_codes():
    tensors, want = (load_file(FIXTURES / "awq" / f"{name}.safetensors") for name in ("model", "answers"))
    part = AWQ(tensors["l.scales"].float(), tensors["l.qzeros"], None, 16)
    assert torch.equal(part.inverse(want["l.weight"]), tensors["l.qweight"])
    assert torch.equal(part.inverse(want["l.weight"].bfloat16().float()), tensors["l.qweight"])


@pytest.mark.parametrize("chain", ["gptq:bits=3:zeros=v1:group=32", "gptq:bits=8:zeros=v2:g_idx=false", "awq:group=32"])
def test_a_new_grid_stores_what_the_table_says(chain):
    """By shape, with data and without."""
    from paramcli.chain import parse_chain

    for device in ("cpu", "meta"):
        W = torch.zeros(64, 96, device=device)
        parsed = parse_chain(chain)
        part = parsed.links[0].make(W)
        made = {"original": part.right_inverse(W), **{f"0.{k}": T for k, T in part.state_dict().items()}}
        stored = parsed.stores((64, 96))
        assert {role: tuple(T.shape) for role, T in made.items()} == {
            role: shape for role, (_, shape) in stored.items()
        }
        assert device == "meta" or not part.map(made["original"]).any()
