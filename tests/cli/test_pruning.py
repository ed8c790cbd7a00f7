"""Pruning from the command line: one threshold over many tensors, masks from files, parity with torch's prune."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import prune


def model(dtype=torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Linear(30, 20), "b": nn.Conv1d(8, 16, 3), "c": nn.Linear(5, 7)}).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("amount", [0.3, 100, 0.0, 1.0])
def test_global_pruning_agrees_with_torch(amount, dtype, tmp_path, paramcli):
    """scope=global drops the entries that torch's global_unstructured drops, and each record names its own count."""
    m = model(dtype)
    torch.save(m.state_dict(), tmp_path / "m.pt")
    paramcli("add", tmp_path / "m.pt", "-t", "*.weight", "--chain", f"prune_l1:amount={amount}:scope=global")
    paramcli("remove", tmp_path / "m.parametrized.safetensors", "-o", tmp_path / "p.safetensors")
    prune.global_unstructured([(m[k], "weight") for k in "abc"], prune.L1Unstructured, amount=amount)
    pruned = load_file(tmp_path / "p.safetensors")
    dropped = round(amount * 1019) if isinstance(amount, float) else amount
    assert sum(int((pruned[f"{k}.weight"] == 0).sum()) for k in "abc") == dropped
    for k in "abc":
        # Equal magnitudes at the threshold may fall either way, and bfloat16 has many.
        same = (pruned[f"{k}.weight"] == m[k].weight).float().mean()
        assert same == 1 if dtype != torch.bfloat16 else same > 0.98
    assert paramcli("verify", tmp_path / "p.safetensors").out.count("sparse:amount=") == 3


def test_ties_at_the_global_threshold_are_shared_exactly(tmp_path, paramcli):
    """Among equal magnitudes the first tensors lose theirs first, and the total is exact."""
    torch.save({"a": torch.ones(10), "b": -torch.ones(10), "c": torch.full((4,), 0.5)}, tmp_path / "m.pt")
    paramcli(
        "add",
        tmp_path / "m.pt",
        "-t",
        "*",
        "--chain",
        "prune_l1:amount=7:scope=global",
        "-o",
        tmp_path / "o.safetensors",
    )
    made = load_file(tmp_path / "o.safetensors")
    assert [int((~made[f"parametrizations.{k}.0.mask"]).sum()) for k in "abc"] == [3, 0, 4]


@pytest.mark.parametrize(("n", "dim"), [(1, 0), (2, 1)])
def test_structured_pruning_agrees_with_torch(n, dim, tmp_path, paramcli):
    """prune_structured gives the mask of torch's ln_structured."""
    m = model()
    torch.save(m.state_dict(), tmp_path / "m.pt")
    paramcli(
        "add",
        tmp_path / "m.pt",
        "-t",
        "b.weight",
        "--chain",
        f"prune_structured:amount=0.4:n={n}:dim={dim}",
        "--spelling",
        "old",
    )
    prune.ln_structured(m["b"], "weight", amount=0.4, n=n, dim=dim)
    made = load_file(tmp_path / "m.parametrized.safetensors")
    assert torch.equal(made["b.weight_mask"].float(), m["b"].weight_mask)
    assert torch.equal(made["b.weight_orig"], m["b"].weight_orig)


def test_a_mask_comes_from_a_file(tmp_path, paramcli):
    """--mask FILE takes the tensor's name, torch's pruning mask, or FILE:NAME; what is not 0 stays."""
    m = model()
    torch.save(m.state_dict(), tmp_path / "m.pt")
    mask = torch.rand(20, 30) < 0.5
    torch.save({"a.weight_mask": mask.float(), "other": mask}, tmp_path / "masks.pt")
    for spec in (tmp_path / "masks.pt", f"{tmp_path}/masks.pt:other"):
        paramcli(
            "add",
            tmp_path / "m.pt",
            "-t",
            "a.weight",
            "--chain",
            "mask",
            "--mask",
            spec,
            "-o",
            tmp_path / "o.safetensors",
            "-f",
        )
        made = load_file(tmp_path / "o.safetensors")
        assert (
            torch.equal(made["a.parametrizations.weight.0.mask"], mask)
            and made["a.parametrizations.weight.0.mask"].dtype == torch.bool
        )
        assert torch.equal(made["a.parametrizations.weight.original"], m["a"].weight)
    assert (
        "20x30, not 16x8x3"
        in paramcli(
            "add",
            tmp_path / "m.pt",
            "-t",
            "b.weight",
            "--chain",
            "mask",
            "--mask",
            f"{tmp_path}/masks.pt:other",
            code=3,
        ).err
    )
    assert (
        "no mask for c.weight"
        in paramcli(
            "add", tmp_path / "m.pt", "-t", "c.weight", "--chain", "mask", "--mask", tmp_path / "masks.pt", code=3
        ).err
    )
    assert (
        "no mask that could take it"
        in paramcli(
            "add",
            tmp_path / "m.pt",
            "-t",
            "a.weight",
            "--chain",
            "weight_norm",
            "--mask",
            tmp_path / "masks.pt",
            code=2,
        ).err
    )


def test_two_of_four(tmp_path, paramcli):
    """nm keeps the two largest of every four of a row, proved by verify and seen by torch's own 2:4 check."""
    m = model()
    torch.save({"w": m["b"].weight.detach().flatten(1)}, tmp_path / "m.pt")
    paramcli("add", tmp_path / "m.pt", "-t", "w", "--chain", "nm")
    paramcli("remove", tmp_path / "m.parametrized.safetensors")
    assert "nm:n=2:m=4:dim=-1" in paramcli("verify", tmp_path / "m.baked.safetensors").out
    W, P = m["b"].weight.detach().flatten(1), load_file(tmp_path / "m.baked.safetensors")["w"]
    kept = W.reshape(-1, 4).abs().topk(2, dim=1).indices
    wanted = torch.zeros_like(W.reshape(-1, 4)).scatter(1, kept, W.reshape(-1, 4).gather(1, kept)).reshape(W.shape)
    assert torch.equal(P, wanted)


def test_a_mask_that_masks_nothing_says_so(tmp_path, paramcli):
    """`mask` without --mask on a tensor without zeros is most often a forgotten option; with zeros it is silent."""
    torch.save({"dense": torch.ones(3, 4), "sparse": torch.eye(4)}, tmp_path / "m.pt")
    err = paramcli("add", tmp_path / "m.pt", "-t", "*", "--chain", "mask").err
    assert "dense: nothing is masked: without --mask FILE" in err and "sparse:" not in err
