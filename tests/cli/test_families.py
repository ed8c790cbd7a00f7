"""Entries with buffers and parameters of their own, from the command line: what a file needs to carry them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

P = "fc.parametrizations.weight."


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("chain", ["lu", "spectral_reparam", "sigma_reparam"])
def test_integer_buffers_and_parameters_of_a_map_round_trip(paramcli, tmp_path, chain, dtype):
    """A row order and a version number are integers, and come first in a safetensors file; the weight comes back."""
    W = torch.randn(6, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"fc.weight": W, "fc.bias": torch.zeros(6)}, tmp_path / "a.safetensors")
    paramcli("add", tmp_path / "a.safetensors", "-t", "fc.weight", "--chain", chain, "-o", tmp_path / "p.safetensors")
    paramcli(
        "verify", tmp_path / "p.safetensors", code=3 if chain == "lu" else 0
    )  # any matrix has an LU form: no claim
    paramcli("remove", tmp_path / "p.safetensors", "-o", tmp_path / "b.safetensors")
    back = load_file(tmp_path / "b.safetensors")["fc.weight"]
    assert back.dtype == dtype and torch.linalg.vector_norm((back - W).double()) <= 2 * torch.finfo(
        dtype
    ).eps * torch.linalg.vector_norm(W.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_radio_files_are_recognised_and_baked(paramcli, tmp_path, dtype):
    """Without a record, from the keys that RADIO's code writes; its scale is float32 whatever the weight is."""
    W = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    U, _, Vh = torch.linalg.svd(W.float())
    state = {
        "original": W,
        "0._u": U[:, 0].to(dtype),
        "0._v": Vh[0].to(dtype),
        "0.scale": torch.tensor([[0.3]]),
        "0._sn_version": torch.tensor(2),
    }
    save_file({P + role: tensor.contiguous() for role, tensor in state.items()}, tmp_path / "radio.safetensors")
    assert (
        paramcli("inspect", tmp_path / "radio.safetensors", "--json").json["tensors"][0]["chain"] == "spectral_reparam"
    )
    paramcli("remove", tmp_path / "radio.safetensors", "-o", tmp_path / "b.safetensors")
    u, v = state["0._u"].float(), state["0._v"].float()
    wanted = W.float() * (torch.nn.functional.softplus(torch.tensor(0.3)) + 0.05) / (u @ W.float() @ v + 1e-6)
    got = load_file(tmp_path / "b.safetensors")["fc.weight"]
    torch.testing.assert_close(got, wanted.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_sets_are_verified_alone(paramcli, tmp_path):
    """--constraint takes any set of the table on a plain file; a failure says by what."""
    save_file(
        {"rows": torch.tensor([[0.25, 0.75], [1.0, 0.0]]), "free": torch.tensor([[0.5, 0.7], [-0.1, 1.0]])},
        tmp_path / "a.safetensors",
    )
    paramcli("verify", tmp_path / "a.safetensors", "-t", "rows", "--constraint", "stochastic")
    failed = paramcli("verify", tmp_path / "a.safetensors", "-t", "free", "--constraint", "stochastic", code=1)
    assert "least entry -0.1" in failed.out
