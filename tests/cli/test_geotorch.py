"""geotorch as the oracle: its trained checkpoints are baked, and files made here load into its modules."""

import geotorch
import pytest
import torch
from geotorch import constraints
from safetensors.torch import load_file
from torch.nn.utils import parametrize

from paramcli.registry import PARAMETRIZATIONS


def almost_orthogonal(module: torch.nn.Module, name: str, **arguments) -> None:
    """geotorch.almost_orthogonal, whose own sample of a wide matrix comes out tall and does not fit."""
    start = geotorch.Stiefel(getattr(module, name).shape).sample()
    setattr(module, name, torch.nn.Parameter(start))
    manifold = geotorch.AlmostOrthogonal(start.shape, **{"lam": 0.1, **arguments})
    parametrize.register_parametrization(module, name, manifold, unsafe=True)


def own_identities(whole: torch.nn.Module) -> None:
    """geotorch's alpha_stable keeps one identity expanded over a batch, which torch cannot load into: give
    it its own.
    """
    for module in whole.modules():
        if isinstance(module, geotorch.Hurwitz):
            module.In = module.In.clone()


SQUARE = {"square": (6, 6), "batch": (3, 4, 4)}
ANY = {**SQUARE, "tall": (8, 5), "wide": (5, 8), "conv": (4, 2, 3, 5)}
# chain as typed, function of geotorch with its arguments, the shapes it takes
CASES = {
    "geotorch.symmetric": (geotorch.symmetric, {}, SQUARE),
    "geotorch.symmetric:lower=false": (geotorch.symmetric, {"lower": False}, SQUARE),
    "geotorch.skew": (geotorch.skew, {}, SQUARE),
    "geotorch.skew:lower=false": (geotorch.skew, {"lower": False}, SQUARE),
    "geotorch.sphere": (geotorch.sphere, {}, {**ANY, "vector": (7,)}),
    "geotorch.sphere:radius=2.5:embedded=true": (
        geotorch.sphere,
        {"radius": 2.5, "embedded": True},
        {**ANY, "vector": (7,)},
    ),
    "geotorch.orthogonal": (geotorch.orthogonal, {}, ANY),
    "geotorch.orthogonal:triv=cayley": (geotorch.orthogonal, {"triv": "cayley"}, ANY),
    "geotorch.grassmannian": (geotorch.grassmannian, {}, ANY),
    "geotorch.almost_orthogonal": (almost_orthogonal, {}, ANY),
    "geotorch.almost_orthogonal:lam=0.4:f=tanh": (almost_orthogonal, {"lam": 0.4, "f": "tanh"}, ANY),
    "geotorch.almost_orthogonal:lam=0.4:f=scaled_sigmoid:triv=cayley": (
        almost_orthogonal,
        {"lam": 0.4, "f": "scaled_sigmoid", "triv": "cayley"},
        ANY,
    ),
    "geotorch.low_rank:rank=2": (geotorch.low_rank, {"rank": 2}, ANY),
    "geotorch.low_rank:rank=2:triv=cayley": (geotorch.low_rank, {"rank": 2, "triv": "cayley"}, ANY),
    "geotorch.fixed_rank:rank=2": (geotorch.fixed_rank, {"rank": 2}, ANY),
    "geotorch.invertible": (geotorch.invertible, {}, SQUARE),
    "geotorch.sln": (geotorch.sln, {}, SQUARE),
    "geotorch.positive_definite": (geotorch.positive_definite, {}, SQUARE),
    "geotorch.positive_semidefinite": (geotorch.positive_semidefinite, {}, SQUARE),
    "geotorch.positive_semidefinite_low_rank:rank=2": (geotorch.positive_semidefinite_low_rank, {"rank": 2}, SQUARE),
    "geotorch.positive_semidefinite_fixed_rank:rank=2": (
        geotorch.positive_semidefinite_fixed_rank,
        {"rank": 2},
        SQUARE,
    ),
    "geotorch.alpha_stable": (geotorch.alpha_stable, {}, SQUARE),
    "geotorch.alpha_stable:alpha=0.25": (geotorch.alpha_stable, {"alpha": 0.25}, SQUARE),
}


def model(register, arguments: dict, shapes: dict) -> torch.nn.Module:
    """A module of modules with one weight of each shape, constrained by geotorch."""
    whole = torch.nn.Module()
    for name, shape in shapes.items():
        part = torch.nn.Module()
        part.weight = torch.nn.Parameter(torch.randn(shape))
        register(part, "weight", **arguments)
        whole.add_module(name, part)
    return whole


def weights(whole: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": part.weight.detach() for name, part in whole.named_children()}


def train(whole: torch.nn.Module, steps: int = 5) -> None:
    """A few steps towards a random target move every original."""
    targets = {name: torch.randn_like(W) for name, W in weights(whole).items()}
    optimizer = torch.optim.Adam(whole.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        sum(
            (part.weight - targets[f"{name}.weight"]).square().sum() for name, part in whole.named_children()
        ).backward()
        optimizer.step()


@pytest.mark.parametrize("chain", CASES)
def test_a_trained_geotorch_checkpoint_bakes_to_its_own_weights(chain, tmp_path, paramcli):
    """After five training steps `remove --bake --chain geotorch.NAME` gives geotorch's weights to 1e-6, and they
    verify.
    """
    torch.manual_seed(0)
    whole = model(*CASES[chain])
    start = weights(whole)
    train(whole)
    torch.save(whole.state_dict(), tmp_path / "g.pt")
    paramcli("remove", tmp_path / "g.pt", "--bake", "--chain", chain, "-t", "*.weight")
    baked = load_file(tmp_path / "g.baked.safetensors")
    assert set(baked) == set(start)
    for name, wanted in weights(whole).items():
        scale = wanted.double().norm()
        assert (baked[name].double() - wanted.double()).norm() <= 1e-6 * scale, name
        if "grassmannian" not in chain or wanted.size(-1) != wanted.size(-2):
            assert (start[name] - wanted).norm() > 1e-3 * scale, name
    assert len(paramcli("verify", tmp_path / "g.baked.safetensors", "--json").json["tensors"]) == len(start)


@pytest.mark.parametrize("chain", CASES)
def test_a_file_made_here_loads_into_geotorch(chain, tmp_path, paramcli):
    """`add` writes what geotorch's module loads with strict=True, and it computes the weight that paramcli bakes."""
    torch.manual_seed(1)
    register, arguments, shapes = CASES[chain]
    whole = model(register, arguments, shapes)
    # Weights that lie in the set, so that sets without a nearest point are met too; and not the module's own.
    torch.save({name: W.clone() for name, W in weights(model(register, arguments, shapes)).items()}, tmp_path / "w.pt")
    report = paramcli("add", tmp_path / "w.pt", "-t", "*.weight", "--chain", chain, "--json").json
    if "symmetric" not in chain:
        assert all(tensor["moved"] < 3e-6 for tensor in report["tensors"])
    made = load_file(tmp_path / "w.parametrized.safetensors")
    own_identities(whole)
    whole.load_state_dict(made, strict=True)
    paramcli("verify", tmp_path / "w.parametrized.safetensors")
    paramcli("remove", tmp_path / "w.parametrized.safetensors", "-o", tmp_path / "b.safetensors")
    baked = load_file(tmp_path / "b.safetensors")
    for name, wanted in weights(whole).items():
        assert (baked[name].double() - wanted.double()).norm() <= 1e-6 * wanted.double().norm(), name


def test_every_geotorch_constraint_is_met():
    """Each function that geotorch offers as a constraint has its entry here, and each entry its case."""
    offered = {
        name
        for name, f in vars(constraints).items()
        if getattr(f, "__module__", "") == constraints.__name__ and not name.startswith("_")
    }
    named = {name.removeprefix("geotorch.") for name in PARAMETRIZATIONS if name.startswith("geotorch.")}
    assert named == offered == {chain.partition(":")[0].removeprefix("geotorch.") for chain in CASES}
