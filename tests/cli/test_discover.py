"""discover: what is found through a view, and what goes without saying there."""

import json

import pytest
import torch
from safetensors.torch import save_file


def rotation(n: int) -> torch.Tensor:
    """Of determinant 1."""
    Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    Q[0] *= torch.linalg.det(Q).sign()
    return Q.float().contiguous()


@pytest.fixture
def path(tmp_path):
    gates = torch.cat([rotation(16) for _ in range(4)])
    tensors = {
        "gates": gates,
        "conv": rotation(16).reshape(16, 4, 4),
        "noise": torch.randn(12, 5),
        "bias": torch.randn(3),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def holds(paramcli, path, *options) -> dict[str, list[str]]:
    found = json.loads(paramcli("discover", path, "--json", "-q", *options).out)["tensors"]
    return {f["tensor"]: [check["constraint"] for check in f["holds"]] for f in found}


def test_gates_are_rotations_through_the_view_of_their_blocks(path, paramcli):
    """Each gate of an LSTM is one, and all four stacked are none."""
    assert holds(paramcli, path, "-t", "gates", "--view", "blocks=4") == {"gates": ["special_orthogonal (blocks=4)"]}
    assert holds(paramcli, path, "-t", "gates")["gates"] == ["unit_norm"]


def test_what_a_stronger_set_implies_is_left_out_in_its_own_view(path, paramcli):
    """A rotation is orthogonal and needs no line for that; what is seen of the tensor as it is stays."""
    found = holds(paramcli, path, "-t", "conv")["conv"]
    assert (
        "special_orthogonal (flatten)" in found
        and "orthogonal (flatten)" not in found
        and "unit_spectral_norm" in found
    )
    assert holds(paramcli, path, "-t", "conv", "--view", "flatten")["conv"] == ["special_orthogonal (flatten)"]


def test_a_view_that_does_not_fit_is_told(path, paramcli):
    """Of each such tensor; a view that there is not is a mistake."""
    said = paramcli("discover", path, "--view", "blocks=5")
    assert "not looked at: gates" in said.err and "not looked at: bias" in said.err
    assert "no view named 'rows'" in paramcli("discover", path, "--view", "rows", code=2).err


def test_a_report_draws_what_the_view_shows(path, paramcli, tmp_path):
    """The spectra of the four gates, each value 1."""
    paramcli("discover", path, "-t", "gates", "--view", "blocks=4", "--report", tmp_path / "r.html", "-q")
    assert "special_orthogonal (blocks=4)" in (tmp_path / "r.html").read_text()
