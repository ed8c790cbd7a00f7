"""Files against live torch modules: strict loading, and values bit for bit where torch's kernels compute them."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from paramcli.fitting.torch_module import tensor_seed


class Symmetric(nn.Module):
    """As in PyTorch's Parametrizations Tutorial."""

    def forward(self, X):
        return X.triu() + X.triu(1).transpose(-1, -2)


class Skew(nn.Module):
    def forward(self, X):
        A = X.triu(1)
        return A - A.transpose(-1, -2)


class CayleyMap(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.register_buffer("Id", torch.eye(n), persistent=False)

    def forward(self, X):
        return torch.linalg.solve(self.Id - X, self.Id + X)


class MatrixExponential(nn.Module):
    def forward(self, X):
        return torch.matrix_exp(X)


def by_registering(*parts):
    def apply(layer):
        for part in parts:
            parametrize.register_parametrization(layer, "weight", part())
        return layer

    return apply


square, tall, wide = (lambda: nn.Linear(16, 16)), (lambda: nn.Linear(6, 20)), (lambda: nn.Linear(20, 6))
single, vector = (lambda: nn.Linear(1, 1)), (lambda: nn.LayerNorm(6))
conv, transposed = (lambda: nn.Conv2d(3, 8, 5)), (lambda: nn.ConvTranspose1d(6, 4, 3))
# chain: (layer, how a user of torch parametrizes it, bit for bit?)
CASES = {
    "skew": (square, by_registering(Skew), True),
    "symmetric": (square, by_registering(Symmetric), True),
    "skew,cayley": (square, by_registering(Skew, lambda: CayleyMap(16)), False),
    "skew,matrix_exp": (square, by_registering(Skew, MatrixExponential), False),
    "symmetric,matrix_exp": (square, by_registering(Symmetric, MatrixExponential), False),
    "skew on a conv kernel": (conv, by_registering(Skew), True),
    "weight_norm": (conv, parametrizations.weight_norm, True),
    "weight_norm:dim=1": (transposed, lambda m: parametrizations.weight_norm(m, dim=1), True),
    "weight_norm:dim=none": (square, lambda m: parametrizations.weight_norm(m, dim=None), True),
    "weight_norm:dim=none, of one entry": (single, lambda m: parametrizations.weight_norm(m, dim=None), True),
    "weight_norm, of a vector": (vector, parametrizations.weight_norm, True),
    "spectral_norm, of a vector": (vector, lambda m: parametrizations.spectral_norm(m).eval(), True),
    "spectral_norm": (conv, lambda m: parametrizations.spectral_norm(m).eval(), True),
    "spectral_norm:dim=1": (transposed, lambda m: parametrizations.spectral_norm(m).eval(), True),
    "orthogonal": (square, parametrizations.orthogonal, True),
    "orthogonal, tall": (tall, parametrizations.orthogonal, True),
    "orthogonal, wide": (wide, parametrizations.orthogonal, True),
    **{
        f"orthogonal:map={m}:triv={str(t).lower()}": (
            square,
            lambda layer, m=m, t=t: parametrizations.orthogonal(layer, orthogonal_map=m, use_trivialization=t),
            True,
        )
        for m in ("matrix_exp", "cayley", "householder")
        for t in (True, False)
    },
}


@pytest.fixture(params=[("project", c) for c in CASES] + [("raw", c) for c in CASES], ids=lambda p: f"{p[0]}-{p[1]}")
def case(request, tmp_path):
    init, name = request.param
    make, parametrized, exact = CASES[name]
    torch.manual_seed(3)
    layer = make()
    torch.save(nn.ModuleDict({"layer": layer}).state_dict(), tmp_path / "plain.pt")
    chain = name.partition(" ")[0].rstrip(",")
    return init, chain, make, parametrized, exact, tmp_path, layer.weight.detach().clone()


def test_the_file_loads_strictly_and_the_bake_is_the_modules_value(case, paramcli):
    """A live module parametrized the same way loads the file with strict=True, and computes what paramcli bakes."""
    init, chain, make, parametrized, exact, folder, _ = case
    paramcli("add", folder / "plain.pt", "-t", "layer.weight", "--chain", chain, "--init", init)
    live = nn.ModuleDict({"layer": parametrized(make())})
    live.load_state_dict(load_file(folder / "plain.parametrized.safetensors"), strict=True)
    paramcli("remove", folder / "plain.parametrized.safetensors", "--bake")
    baked = load_file(folder / "plain.baked.safetensors")["layer.weight"]
    value = live.eval()["layer"].weight.detach()
    if exact:
        assert torch.equal(baked, value)
    else:
        assert torch.linalg.vector_norm(baked - value) <= 2e-6 * torch.linalg.vector_norm(value)
    parametrize.remove_parametrizations(live["layer"], "weight", leave_parametrized=True)
    assert set(load_file(folder / "plain.baked.safetensors")) == set(live.state_dict())


def test_raw_is_what_registering_on_a_live_module_gives(case, paramcli):
    """--init raw stores, key by key and bit by bit, what torch's registration stores."""
    _, chain, make, parametrized, _, folder, weight = case
    paramcli("add", folder / "plain.pt", "-t", "layer.weight", "--chain", chain, "--init", "raw")
    layer = make()
    layer.weight.data.copy_(weight)
    # torch's spectral norm draws when it is made, orthogonal when it is registered: both after this seed.
    torch.manual_seed(tensor_seed(0, "layer.weight"))
    live = nn.ModuleDict({"layer": parametrized(layer)}).state_dict()
    file = load_file(folder / "plain.parametrized.safetensors")
    for name in file:
        if name != "layer.bias":
            assert torch.equal(file[name], live[name]), name


def test_conv_kernels_flatten_on_request(tmp_path, paramcli):
    """--view flatten makes a conv kernel one (out, in*kh*kw) matrix with orthonormal rows."""
    torch.save(nn.Conv2d(3, 8, 3).state_dict(), tmp_path / "c.pt")
    paramcli("add", tmp_path / "c.pt", "-t", "weight", "--chain", "orthogonal", "--view", "flatten")
    paramcli("remove", tmp_path / "c.parametrized.safetensors")
    W = load_file(tmp_path / "c.baked.safetensors")["weight"].double()
    assert W.shape == (8, 3, 3, 3)
    torch.testing.assert_close(W.flatten(1) @ W.flatten(1).T, torch.eye(8, dtype=torch.float64), atol=1e-6, rtol=0)
    assert paramcli("verify", tmp_path / "c.baked.safetensors", "--json").json["tensors"][0]["view"] == "flatten"


def test_raw_registers_what_a_map_cannot_reach(tmp_path, paramcli):
    """The tutorial's MatrixExponential has no right inverse: registered first, it takes the weight itself as its
    original.
    """
    live = nn.Linear(5, 5)
    torch.save(live.state_dict(), tmp_path / "a.pt")
    paramcli("add", tmp_path / "a.pt", "-t", "weight", "--chain", "matrix_exp", code=3)
    paramcli("add", tmp_path / "a.pt", "-t", "weight", "--chain", "matrix_exp", "--init", "raw")
    parametrize.register_parametrization(live, "weight", MatrixExponential())
    file = load_file(tmp_path / "a.parametrized.safetensors")
    assert all(torch.equal(file[name], tensor) for name, tensor in live.state_dict().items())
    paramcli("remove", tmp_path / "a.parametrized.safetensors")
    assert torch.equal(load_file(tmp_path / "a.baked.safetensors")["weight"], live.weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_bake_is_computed_as_the_dtype_asks(name, dtype, tmp_path, paramcli):
    """float64 and float32 in their own dtype, as remove_parametrizations; half types in float32, rounded once."""
    make, parametrized, exact = CASES[name]
    torch.manual_seed(4)
    torch.save(make().to(dtype).state_dict(), tmp_path / "a.pt")
    paramcli("add", tmp_path / "a.pt", "-t", "weight", "--chain", name.partition(" ")[0].rstrip(","))
    paramcli("remove", tmp_path / "a.parametrized.safetensors")
    wide = torch.promote_types(dtype, torch.float32)
    stored = {
        key: tensor.to(wide) if tensor.is_floating_point() else tensor
        for key, tensor in load_file(tmp_path / "a.parametrized.safetensors").items()
    }
    live = parametrized(make()).to(wide).eval()
    live.load_state_dict(stored, strict=True)
    parametrize.remove_parametrizations(live, "weight", leave_parametrized=True)
    baked, value = load_file(tmp_path / "a.baked.safetensors")["weight"], live.weight.detach().to(dtype)
    if exact:
        assert baked.dtype == dtype and torch.equal(baked, value)
    else:
        limit = 2e-6 if dtype == torch.float32 else torch.finfo(dtype).eps * (100 if dtype == torch.float64 else 0.1)
        assert torch.linalg.vector_norm((baked - value).double()) <= limit * torch.linalg.vector_norm(value.double())
