"""Large tensors by blocks of rows: the same bytes, numbers and words as whole, in the memory of a block."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.chain import parse_chain
from paramcli.fitting import blocks as rows

# Two odd widths, so that blocks begin where a vector unit's turn does and nowhere else; a kernel; a vector.
SHAPES = [(301, 77), (260, 24), (150, 6, 3, 3), (4097,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]


@pytest.fixture
def both_ways(monkeypatch, paramcli, tmp_path):
    """Run a command whole and by rows of a few kilobytes: (its answer, its words, every output file) of each are
    compared.
    """
    counted = []
    real = rows.Batch.read

    def read(self, block):
        if block is not None:
            counted.append(block)
        return real(self, block)

    monkeypatch.setattr(rows.Batch, "read", read)

    def outcome(*arguments, output, code):
        target = tmp_path / output
        done = paramcli(*arguments, "-o", target, "--json", code=code)
        files = sorted(target.rglob("*")) if target.is_dir() else [target] if target.exists() else []
        found = {str(file.relative_to(tmp_path)): file.read_bytes() for file in files}
        for file in sorted(files, reverse=True):
            file.unlink()
        if target.is_dir():
            target.rmdir()
        return (done.json if not code else None), done.err, found

    def run(*arguments, output="out.safetensors", code=0, blocks=2):
        monkeypatch.setattr(rows, "LARGE", 1 << 62)
        whole = outcome(*arguments, output=output, code=code)
        assert not counted
        monkeypatch.setattr(rows, "LARGE", 1)
        monkeypatch.setattr(rows, "BLOCK_BYTES", 4096)
        by_rows = outcome(*arguments, output=output, code=code)
        assert len(counted) >= blocks and bool(counted) == bool(blocks)
        counted.clear()
        assert by_rows[0] == whole[0]
        assert by_rows[1] == whole[1]
        assert by_rows[2] == whole[2]
        assert code or whole[2]
        return whole

    return run


def weight(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def masked(shape, dtype, seed=0):
    W = weight(shape, dtype, seed)
    return torch.where(weight(shape, torch.float64, seed + 1) > 0, W, torch.zeros_like(W))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spelling", ["old", "new"])
def test_weight_norm_is_put_on_and_baked(tmp_path, both_ways, shape, dtype, spelling):
    """Both spellings, every dtype, some lengths negative: equal files, equal reports."""
    save_file({"l.weight": weight(shape, dtype), "b": torch.ones(3)}, tmp_path / "a.safetensors")
    made = both_ways(
        "add", tmp_path / "a.safetensors", "-t", "l.weight", "--chain", "weight_norm:dim=0", "--spelling", spelling
    )
    (tmp_path / "n.safetensors").write_bytes(made[2]["out.safetensors"])
    tensors = load_file(tmp_path / "n.safetensors")
    g = next(key for key in tensors if key.endswith(("_g", "original0")))
    tensors[g] = tensors[g] * torch.where(torch.arange(shape[0]) % 3 == 0, -1, 1).reshape(
        -1, *[1] * (len(shape) - 1)
    ).to(dtype)
    save_file(tensors, tmp_path / "n.safetensors")
    baked = both_ways("remove", tmp_path / "n.safetensors")
    (tmp_path / "out.safetensors").write_bytes(baked[2]["out.safetensors"])
    assert torch.equal(
        load_file(tmp_path / "out.safetensors")["l.weight"],
        torch._weight_norm(tensors[g[:-1] + ("v" if g.endswith("g") else "1")], tensors[g], 0),
    )


# Each family that acts by rows, and chains of two; those that --init project puts on by rows are also put on so.
BAKED = [
    "mask",
    "prune_l1:amount=0.4",
    "prune_l1:amount=9000",
    "prune_random:amount=0.3",
    "nm",
    "positive",
    "positive:f=exp:floor=0.5",
    "interval:a=-2.0:b=0.5",
    "identity",
    "fake_quant:dim=0",
    "fp8",
    "unit_norm",
    "mp_norm",
    "max_norm",
    "weight_norm,mask",
    "weight_norm,unit_norm",
    "weight_norm,interval",
    "identity,positive",
]
ADDED = {
    "mask",
    "nm",
    "interval:a=-2.0:b=0.5",
    "identity",
    "fake_quant:dim=0",
    "fp8",
    "max_norm",
    "weight_norm,mask",
    "weight_norm,interval",
}


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("chain", BAKED)
def test_every_family_gives_the_same_file_by_rows(tmp_path, both_ways, paramcli, chain, dtype):
    """Masks, element-wise maps, norms within rows, and chains of them: bytes, numbers and notes."""
    a, n = tmp_path / "a.safetensors", tmp_path / "n.safetensors"
    save_file({"l.weight": masked((301, 76), dtype), "b": torch.ones(3)}, a)
    arguments = ("add", a, "-t", "l.weight", "--chain", chain)
    if chain in ADDED:
        n.write_bytes(both_ways(*arguments)[2]["out.safetensors"])
    else:
        paramcli(*arguments, "-o", n)
    told = both_ways("remove", n)[0]["tensors"][0]
    assert told["chain"].startswith(chain.split(",")[0].split(":")[0])
    paramcli("verify", tmp_path / "n.safetensors", code=0 if parse_chain(chain).claims else 3)


@pytest.mark.parametrize("chain", sorted(ADDED | {"weight_norm"}))
@pytest.mark.parametrize(
    "options",
    [("--init", "strict"), ("--init", "raw"), ("--max-change", "0.1"), ("--compute-dtype", "float64")],
    ids=" ".join,
)
def test_every_way_to_start_says_the_same_by_rows(tmp_path, both_ways, paramcli, chain, options):
    """strict, raw, a limit on the change and wider arithmetic: equal files where it works, equal words where it is
    refused.
    """
    a = tmp_path / "a.safetensors"
    save_file({"l.weight": masked((301, 76), torch.float32)}, a)
    arguments = ("add", a, "-t", "l.weight", "--chain", chain, *options)
    code = paramcli(*arguments, "-o", tmp_path / "first", code=None).code
    both_ways(*arguments, code=code)


def test_a_flat_view_of_kernels_is_taken_by_rows_and_others_are_not(tmp_path, both_ways):
    """--view flatten keeps rows, and transpose those above its matrices; blocks do not, nor one matrix transposed."""
    a = tmp_path / "a.safetensors"
    save_file({"l.weight": weight((128, 8, 3, 3), torch.float32)}, a)
    made = both_ways("add", a, "-t", "l.weight", "--chain", "weight_norm", "--view", "flatten")
    (tmp_path / "n.safetensors").write_bytes(made[2]["out.safetensors"])
    both_ways("remove", tmp_path / "n.safetensors")
    both_ways("add", a, "-t", "l.weight", "--chain", "identity", "--view", "transpose")
    both_ways("add", a, "-t", "l.weight", "--chain", "identity", "--view", "blocks=4", blocks=0)
    save_file({"l.weight": weight((128, 72), torch.float32)}, a)
    both_ways("add", a, "-t", "l.weight", "--chain", "identity", "--view", "transpose", blocks=0)


@pytest.mark.parametrize(
    "kind, output",
    [
        ("safetensors", "out.safetensors"),
        ("safetensors", "out.pt"),
        ("torch", "out.safetensors"),
        ("torch", "out.pt"),
        ("shards", "out"),
        ("torch shards", "out"),
        ("torch", "out.dcp"),
        ("shards", "out.dcp"),
    ],
)
@pytest.mark.parametrize("check", [False, True])
def test_every_container_takes_parts(tmp_path, both_ways, kind, output, check):
    """From a file, a torch zip and shards, to each of them, with --check and without."""
    g, v, W, mask = (
        weight((301, 1), torch.float32),
        weight((301, 77), torch.float32, 1),
        weight((120, 65), torch.bfloat16),
        weight((120, 65), torch.float32) > 0,
    )
    tensors = {
        "c.weight_g": g,
        "c.weight_v": v,
        "b": torch.ones(5),
        "l.weight_orig": W,
        "l.weight_mask": mask.to(W.dtype),
        "t": torch.arange(9),
    }
    source = tmp_path / "in"
    if kind == "safetensors":
        save_file(tensors, source)
    elif kind == "torch":
        torch.save({"epoch": 3, "state_dict": tensors}, source)
    else:
        source.mkdir()
        names = list(tensors)
        extension = "safetensors" if kind == "shards" else "bin"
        parts = {f"model-0000{n + 1}-of-00002.{extension}": names[3 * n : 3 * n + 3] for n in range(2)}
        for file, part in parts.items():
            held = {name: tensors[name] for name in part}
            (save_file if kind == "shards" else torch.save)(held, source / file)
        index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
        (source / ("model.safetensors.index.json" if kind == "shards" else "pytorch_model.bin.index.json")).write_text(
            json.dumps(index)
        )
    said, _, files = both_ways("remove", source, *(["--check"] if check else []), output=output, blocks=4)
    assert {t["tensor"] for t in said["tensors"]} == {"c.weight", "l.weight"}
    if output == "out.pt":
        (tmp_path / "back.pt").write_bytes(files["out.pt"])
        state = torch.load(tmp_path / "back.pt", weights_only=True)
        state = state.get("state_dict", state)
        assert torch.equal(state["c.weight"], torch._weight_norm(v, g, 0)) and torch.equal(state["l.weight"], W * mask)


def test_two_names_of_one_tensor_stay_one(tmp_path, both_ways):
    """Edited together they are one tensor in a torch result, whose second copy of the parts is only compared."""
    W = weight((301, 77), torch.float32)
    torch.save({"a.weight": W, "b.weight": W, "c": torch.ones(2)}, tmp_path / "a.pt")
    _, _, files = both_ways(
        "add", tmp_path / "a.pt", "-t", "*.weight", "--chain", "identity", "--tied", "together", output="o.pt"
    )
    (tmp_path / "o.pt").write_bytes(files["o.pt"])
    state = torch.load(tmp_path / "o.pt", weights_only=True)
    one, two = (state[f"{name}.parametrizations.weight.original"] for name in "ab")
    assert one.data_ptr() == two.data_ptr() and torch.equal(one, W)


def test_what_no_row_alone_decides_is_computed_whole(tmp_path, both_ways):
    """Norms across rows, sets that count over the tensor, and several edits of one tensor make no blocks."""
    a = tmp_path / "a.safetensors"
    save_file({"l.weight": weight((301, 76), torch.float32).abs()}, a)
    for chain in (
        "weight_norm:dim=1",
        "weight_norm:dim=none",
        "prune_l1:amount=0.4",
        "unit_norm:dim=0",
        "positive",
        "spectral_norm",
        "fake_quant",
    ):
        both_ways("add", a, "-t", "l.weight", "--chain", chain, blocks=0)


# --- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil, said",
    [
        ({"v": [(200, float("nan")), (30, float("nan"))]}, "its l.weight_v has 2 NaN of 23177 entries"),
        ({"g": [(300, float("inf"))], "v": [(200, float("nan"))]}, "its l.weight_g has 1 infinite of 301 entries"),
        ({"g": [(7, 3e38)], "v": [(290, float("inf"))]}, "its l.weight_v has 1 infinite of 23177 entries"),
        ({"v": [(250, 0.0)]}, "its direction v is zero (slice 250 of dimension 0 has no length to divide by)"),
        ({"g": [(9, 3e38)], "v": [(299, 0.0), (288, 0.0)]}, "its direction v is zero (slice 288 of dimension 0"),
    ],
)
def test_a_bake_that_is_refused_says_of_the_whole_what_is_wrong(tmp_path, both_ways, spoil, said):
    """Counts are over the tensor, rows are its own, and what comes first in the whole comes first."""
    g, v = weight((301, 1), torch.float32).abs() + 1, weight((301, 77), torch.float32)
    for row, value in spoil.get("g", []):
        g[row] = value
    for row, value in spoil.get("v", []):
        if value == 0:
            v[row] = 0
        else:
            v[row, 5] = value
        if g[row] == float("inf"):
            g[row] = 1
    save_file({"l.weight_g": g, "l.weight_v": v}, tmp_path / "a.safetensors")
    assert said in both_ways("remove", tmp_path / "a.safetensors", code=3, blocks=1)[1]
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors"]


@pytest.mark.parametrize(
    "chain, spoil, options, code, said",
    [
        ("weight_norm", {200: float("nan"), 100: 0.0}, (), 3, "1 NaN of 23177"),
        ("weight_norm", {200: 0.0, 210: 0.0}, (), 3, "slice 200 of dimension 0 is zero"),
        ("weight_norm,mask", {200: 0.0, 210: float("inf")}, ("--init", "strict"), 3, "1 infinite"),
        ("interval", {250: 2.0}, ("--init", "strict"), 1, "the tensor is not interval"),
        ("interval", {250: 2.0}, ("--max-change", "1e-9"), 1, "--max-change"),
        ("unit_norm", {}, ("--init", "strict"), 1, "the tensor is not unit_norm"),
        ("max_norm", {}, ("--init", "strict"), 1, "the tensor is not max_norm"),
        ("fake_quant:dim=0", {}, ("--init", "strict"), 1, "would move the tensor"),
        ("weight_norm", {200: 0.0}, ("--init", "raw"), 0, "NaN"),
    ],
)
def test_an_add_that_is_refused_says_of_the_whole_what_is_wrong(tmp_path, both_ways, chain, spoil, options, code, said):
    """Also where a block before the faulty one had something of less weight to say."""
    W = weight((301, 77), torch.float32)
    W = W.sigmoid() if chain == "interval" else W
    for row, value in spoil.items():
        if value == 0:
            W[row] = 0
        else:
            W[row, 5] = value
    save_file({"l.weight": W}, tmp_path / "a.safetensors")
    blocks = 0 if chain == "unit_norm" else 2
    got, words, _ = both_ways(
        "add", tmp_path / "a.safetensors", "-t", "l.weight", "--chain", chain, *options, code=code, blocks=blocks
    )
    assert said in words + json.dumps(got)
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors"]


def test_a_weight_that_its_originals_cannot_keep_is_refused_as_the_whole_is(tmp_path, both_ways):
    """--init strict: rounding x to bfloat16 moves 1e6 / (1 + exp(-x)) by two percent; the number is the whole's."""
    W = weight((301, 77), torch.float32).sigmoid().to(torch.bfloat16)
    save_file({"l.weight": W}, tmp_path / "a.safetensors")
    arguments = ("add", tmp_path / "a.safetensors", "-t", "l.weight", "--chain", "interval:a=0.0:b=1000000.0")
    assert "cannot keep the tensor as it is" in both_ways(*arguments, "--init", "strict", code=1)[1]
    assert "from the nearest point" in both_ways(*arguments)[0]["tensors"][0]["note"]


def test_damaged_bytes_of_a_torch_file_are_refused_as_damage(tmp_path, both_ways):
    """A flipped bit that makes a NaN, or none, is told by the checksum, and nothing is written."""
    v = weight((301, 77), torch.float32)
    torch.save({"l.weight_g": weight((301, 1), torch.float32), "l.weight_v": v}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    at = whole.index(v.numpy().tobytes()) + 4 * 77 * 290
    for bit, byte in ((3, 0x7F), (0, whole[at] ^ 1)):
        (tmp_path / "a.pt").write_bytes(whole[: at + bit] + bytes([byte]) + whole[at + bit + 1 :])
        assert "damaged: the checksum of" in both_ways("remove", tmp_path / "a.pt", code=3)[1]
        assert os.listdir(tmp_path) == ["a.pt"]


def test_values_that_a_dtype_has_no_room_for_are_counted_in_all_blocks(tmp_path, both_ways):
    """remove --dtype: two of the first rows and one of the last, of the whole tensor."""
    W = weight((301, 76), torch.float32)
    W[0, 0] = W[1, 2] = 1e6
    W[300, 5] = -1e6
    save_file({"l.weight_orig": W, "l.weight_mask": torch.ones_like(W)}, tmp_path / "a.safetensors")
    [tensor] = both_ways("remove", tmp_path / "a.safetensors", "--dtype", "float16")[0]["tensors"]
    assert tensor["note"] == f"3 values of {301 * 76} too large for float16: infinite now"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_on_wide_rows_are_those_of_the_whole(tmp_path, both_ways, dtype):
    """Where a block has room for two rows of 512 it has eight: a product of fewer is another kernel's."""
    base, lora = tmp_path / "m.safetensors", tmp_path / "lora"
    lora.mkdir()
    save_file({"l.weight": weight((70, 512), dtype), "b": torch.ones(3)}, base)
    factors = {"lora_A": weight((3, 512), dtype, 1), "lora_B": weight((70, 3), dtype, 2)}
    save_file({f"base_model.model.l.{x}.weight": T for x, T in factors.items()}, lora / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 7, "target_modules": ["l"]}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    both_ways("merge", base, "--adapter", lora)
