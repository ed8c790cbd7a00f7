"""Numbers of another kind than a tensor holds: refused, or kept whole, and never cut."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

W = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
OTHERS = {
    "complex": W + 1j * W.T,
    "integers": torch.arange(16).reshape(4, 4),
    "bool": W > 0,
    "packed": torch.zeros(4, 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
}


def files(tmp_path, paramcli):
    save_file({"w": W}, tmp_path / "w.safetensors")
    paramcli("add", tmp_path / "w.safetensors", "-t", "w", "--chain", "symmetric", "-o", tmp_path / "p.safetensors")
    save_file({name: T.clone() for name, T in OTHERS.items()}, tmp_path / "others.safetensors")
    return tmp_path / "w.safetensors", tmp_path / "p.safetensors", tmp_path / "others.safetensors"


@pytest.mark.parametrize("what", OTHERS)
def test_a_real_weight_is_assigned_real_numbers(what, tmp_path, paramcli):
    """Plain or parametrized: the imaginary parts of others are not dropped."""
    plain, parametrized, others = files(tmp_path, paramcli)
    for source in (plain, parametrized):
        told = paramcli(
            "assign", source, "-t", "w", "--from", f"{others}:{what}", "-o", tmp_path / "o.safetensors", code=3
        )
        assert "which no tensor of float32 holds" in told.err and not (tmp_path / "o.safetensors").exists()


def test_a_complex_weight_is_assigned_real_numbers(tmp_path, paramcli):
    """They are complex ones without imaginary parts."""
    plain, _, others = files(tmp_path, paramcli)
    out = tmp_path / "o.safetensors"
    paramcli("assign", others, "-t", "complex", "--from", f"{plain}:w", "-o", out)
    assert torch.equal(load_file(out)["complex"], W.to(torch.complex64))


def test_a_value_beyond_a_dtype_is_not_assigned(tmp_path, paramcli):
    """Infinities are no weights."""
    save_file({"w": W.half()}, tmp_path / "h.safetensors")
    save_file({"w": 1e30 * W}, tmp_path / "f.safetensors")
    told = paramcli("assign", tmp_path / "h.safetensors", "-t", "w", "--from", tmp_path / "f.safetensors", code=3).err
    assert "the value to assign, in float16, has 16 infinite of 16 entries" in told


@pytest.mark.parametrize("value", [0.5, 2.0, float("nan"), 1j])
def test_a_mask_keeps_or_drops(value, tmp_path, paramcli):
    """A soft one is no mask: it is refused, not made one."""
    plain, _, _ = files(tmp_path, paramcli)
    mask = torch.ones(4, 4, dtype=torch.complex64 if isinstance(value, complex) else torch.float32)
    mask[1, 2] = value
    save_file({"w_mask": mask}, tmp_path / "mask.safetensors")
    told = paramcli("add", plain, "-t", "w", "--chain", "mask", "--mask", tmp_path / "mask.safetensors", code=3).err
    assert "has 1 of 16 entries that are neither 0 nor 1" in told


def test_pruning_over_all_names_what_it_cannot_prune(tmp_path, paramcli):
    """A bool tensor among them has no magnitudes."""
    files(tmp_path, paramcli)
    save_file({"w": W, "on": W > 0}, tmp_path / "b.safetensors")
    line = ["add", tmp_path / "b.safetensors", "-t", "*", "--chain", "prune_l1:amount=0.5:scope=global"]
    assert paramcli(*line, code=3).err.startswith("error: on is bool; parametrizations need floating-point")


def test_what_torch_has_no_numbers_of_is_named(tmp_path, paramcli):
    """Packed six-bit numbers of a header: nothing reads them as a tensor."""
    head = json.dumps({"T": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    path = tmp_path / "six.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + bytes(3))
    told = paramcli("verify", path, "-t", "T", "--constraint", "symmetric", code=3).err
    assert "T is " in told and "has no such numbers" in told


def test_an_adapter_with_infinities_is_not_extracted(tmp_path, paramcli):
    """A change that the dtype has no room for."""
    save_file({"l.weight": W}, tmp_path / "base.safetensors")
    save_file({"l.weight": W + 1e12 * torch.outer(W[0], W[1])}, tmp_path / "tuned.safetensors")
    line = ["extract", tmp_path / "tuned.safetensors", "--base", tmp_path / "base.safetensors", "--rank", "1"]
    told = paramcli(*line, "--dtype", "float16", "-o", tmp_path / "a", code=3).err
    assert "l.weight" in told and "too large for float16" in told and not (tmp_path / "a").exists()
    paramcli(*line, "--dtype", "bfloat16", "-o", tmp_path / "a")


def test_complex_numbers_with_one_nan_are_compared_in_both_parts(tmp_path, paramcli):
    """nan + 1i is not nan + 2i."""
    for name, part in (("a", 1.0), ("b", 2.0)):
        save_file({"c": torch.tensor([complex(float("nan"), part), 1 + 1j])}, tmp_path / f"{name}.safetensors")
    paramcli("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", code=1)
    paramcli("diff", tmp_path / "a.safetensors", tmp_path / "a.safetensors")


def test_the_same_bytes_of_another_dtype_are_no_duplicate(tmp_path, paramcli):
    """They are other numbers."""
    T = torch.randn(8, 6).bfloat16()
    save_file({"a": T, "b": T.view(torch.float16).clone(), "c": T.clone()}, tmp_path / "t.safetensors")
    told = paramcli("discover", tmp_path / "t.safetensors").out.splitlines()
    assert [line.split()[0] for line in told if "duplicate of a" in line] == ["c"]


@pytest.mark.parametrize("command", [["verify"], ["remove", "-o", "o.safetensors"]])
@pytest.mark.parametrize("shape", [((0, 1), (0, 3)), ((4, 1), (4, 0))])
def test_a_weight_without_entries_is_refused(command, shape, tmp_path, paramcli, monkeypatch):
    """torch's own kernels divide by their number, and the process is gone."""
    monkeypatch.chdir(tmp_path)
    save_file({"c.weight_g": torch.rand(shape[0]), "c.weight_v": torch.randn(shape[1])}, "w.safetensors")
    assert "c.weight has no entries" in paramcli(command[0], "w.safetensors", *command[1:], code=3).err
