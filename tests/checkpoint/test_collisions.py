"""Two sets of keys that spell one tensor: nothing is taken for it, nothing is lost, and a pattern stays the user's."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.spec import select

COLLISIONS = [
    ["a.weight", "a.parametrizations.weight.original"],
    ["a.parametrizations.weight.original0", "a.parametrizations.weight.original1", "a.weight"],
    ["a.weight_orig", "a.weight_mask", "a.parametrizations.weight.original"],
    ["a.weight_g", "a.weight_v", "a.parametrizations.weight.original0", "a.parametrizations.weight.original1"],
]
EDITS = [("add", "--chain", "symmetric"), ("assign", "--with", "eye"), ("remove", "--bake"), ("remove", "--no-bake")]


@pytest.fixture(params=COLLISIONS, ids=", ".join)
def collided(request, tmp_path):
    path = tmp_path / "in.safetensors"
    tensors = {name: torch.full((2, 2), number + 1.0) for number, name in enumerate(request.param)}
    save_file({**tensors, "other.weight": torch.eye(2)}, path)
    return path


def test_convert_carries_every_key(collided, paramcli, tmp_path):
    """What comes out are the keys and bytes that went in."""
    out = tmp_path / "out.safetensors"
    paramcli("convert", collided, "-o", out, "--check")
    before, after = load_file(collided), load_file(out)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("command", EDITS, ids=" ".join)
def test_edits_refuse_it_by_name(collided, paramcli, command):
    """Neither is edited as if the other were not there, and nothing is written."""
    there = sorted(collided.parent.iterdir())
    said = paramcli(command[0], collided, "-t", "a.*", *command[1:], code=3)
    assert "a.weight is in the file twice" in said.err and sorted(collided.parent.iterdir()) == there


def test_verify_does_not_pass_it(collided, paramcli):
    """A tensor that is there twice proves nothing, whichever of its names is asked for."""
    for pattern in ("a.weight", "a.*", "*"):
        said = paramcli("verify", collided, "-t", pattern, "--constraint", "toeplitz", code=3)
        assert "a.weight is in the file twice" in said.err


def test_an_empty_module_name_is_a_name(paramcli, tmp_path):
    """.parametrizations.w and parametrizations.w are two tensors."""
    keys = {"parametrizations.w.original": torch.zeros(2), ".parametrizations.w.original": torch.ones(2)}
    save_file(keys, tmp_path / "in.safetensors")
    paramcli("convert", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors")
    assert load_file(tmp_path / "out.safetensors").keys() == keys.keys()


def test_a_tensors_name_does_not_change_a_pattern():
    """A tensor called * is one of those that * means; a name with brackets still names its tensor."""
    names = ["fc.weight", "*", "re:.*", "re:(", "a[0].w"]
    assert select(names, ["*"], "f") == names and select(names, ["re:.*"], "f") == names
    assert select(names, ["a[0].w"], "f") == ["a[0].w"] and select(names, ["re:("], "f") == ["re:("]
