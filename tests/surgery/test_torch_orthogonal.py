"""torch's own `orthogonal`, trained and saved: every map, with and without base, square, tall, wide and in batches."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

import paramcli as library

SHAPES = [(64, 64), (8, 4), (4, 8), (100, 30), (30, 100), (3, 16, 16), (2, 8, 4), (2, 4, 8), (1, 8), (8, 1)]
MAPS = ["matrix_exp", "cayley", "householder"]


def registered(shape, dtype, map, triv, seed, start=torch.randn):
    host = nn.Module()
    torch.manual_seed(seed)
    host.weight = nn.Parameter(start(shape, dtype=dtype))
    return orthogonal(host, "weight", orthogonal_map=map, use_trivialization=triv)


def trained(*arguments, **start):
    """A module whose original has moved off the start."""
    host = registered(*arguments, seed=0, **start)
    with torch.no_grad():
        original = host.parametrizations.weight.original
        original.add_(0.3 * torch.randn_like(original).tril(-1))
    return host


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("map", MAPS)
@pytest.mark.parametrize("triv", [True, False])
def test_bake_is_torchs_live_value_to_the_bit(dtype, map, triv, tmp_path, paramcli):
    """From a torch file the value of the module that was saved, from safetensors that of a fresh one that loads it."""
    hosts = {f"l{i}": trained(shape, dtype, map, triv) for i, shape in enumerate(SHAPES)}
    state = {f"{name}.{key}": tensor for name, host in hosts.items() for key, tensor in host.state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "a.safetensors")
    for source in ("a.pt", "a.safetensors"):
        chain = f"orthogonal:map={map}:triv={str(triv).lower()}"
        paramcli("remove", tmp_path / source, "--chain", chain, "-o", tmp_path / "b.safetensors", "-f")
        proof = paramcli("verify", tmp_path / "b.safetensors", "--json").json["tensors"]
        baked = load_file(tmp_path / "b.safetensors")
        for (name, host), shape in zip(hosts.items(), SHAPES, strict=True):
            live = host
            if source == "a.safetensors":
                live = registered(shape, dtype, map, triv, seed=1)
                live.load_state_dict(host.state_dict())
            assert torch.equal(baked[f"{name}.weight"], live.weight), (source, shape)
        square = [n == k and not triv and map != "householder" for *_, n, k in SHAPES]
        assert [t["checks"][0]["constraint"] for t in proof] == [
            "special_orthogonal" if s else "orthogonal" for s in square
        ]


@pytest.mark.parametrize("map", MAPS)
def test_a_base_that_was_saved_row_by_row_is_used_so(map, tmp_path, paramcli):
    """torch copies a square weight that is orthogonal to begin with, and a torch file tells that its base
    is row-major.
    """
    host = trained(
        (64, 64),
        torch.float64,
        map,
        True,
        start=lambda shape, dtype: nn.init.orthogonal_(torch.empty(shape, dtype=dtype)),
    )
    assert host.parametrizations.weight[0].base.is_contiguous()
    torch.save(host.state_dict(), tmp_path / "a.pt")
    paramcli("remove", tmp_path / "a.pt", "--chain", f"orthogonal:map={map}", "-o", tmp_path / "b.safetensors")
    assert torch.equal(load_file(tmp_path / "b.safetensors")["weight"], host.weight)


@pytest.mark.parametrize("map", MAPS)
def test_a_model_that_paramcli_registers_computes_the_same(map, tmp_path, paramcli):
    """Its base too lies column by column, so that the weight of a model that loads the file is the baked one."""
    host = trained((64, 64), torch.float64, map, True)
    save_file({key: tensor.contiguous() for key, tensor in host.state_dict().items()}, tmp_path / "a.safetensors")
    paramcli("remove", tmp_path / "a.safetensors", "--chain", f"orthogonal:map={map}", "-o", tmp_path / "b.safetensors")
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(64, 64, dtype=torch.float64))
    library.register(model, "weight", f"orthogonal:map={map}")
    model.load_state_dict(load_file(tmp_path / "a.safetensors"))
    assert torch.equal(model.weight, load_file(tmp_path / "b.safetensors")["weight"])


@pytest.mark.parametrize("shape", [(8, 4), (4, 8), (2, 8, 4)], ids=str)
def test_a_rectangle_has_no_right_inverse_without_base(shape, tmp_path, paramcli):
    """Registered raw as torch does, it is orthogonal; a value of one's own needs a base, and the refusal says so."""
    save_file({"w": torch.randn(shape)}, tmp_path / "a.safetensors")
    command = ("add", tmp_path / "a.safetensors", "-t", "w", "--chain", "orthogonal:map=cayley:triv=false")
    assert "--chain orthogonal stores a base" in paramcli(*command, code=3).err
    paramcli(*command, "--init", "raw", "-o", tmp_path / "b.safetensors")
    assert [
        t["checks"][0]["constraint"] for t in paramcli("verify", tmp_path / "b.safetensors", "--json").json["tensors"]
    ] == ["orthogonal"]
