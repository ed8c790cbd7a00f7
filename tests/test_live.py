"""Live models: registering, saving, loading and verifying what the command line does to files."""

import copy
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import paramcli
from paramcli.errors import CheckFailed, InputRefused, UsageError


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"fc": nn.Linear(8, 8), "out": nn.Linear(8, 3), "conv": nn.Conv1d(4, 6, 3), "rnn": nn.LSTMCell(4, 8)}
    )


def spectral_distance(W: torch.Tensor) -> float:
    return (W @ W.mT - torch.eye(W.size(-1))).abs().max().item()


def test_register_moves_to_the_nearest_point_and_keeps_a_member():
    """The value is the nearest rotation by an SVD of torch; a second module at that value is not moved."""
    m = model()
    U, _, Vh = torch.linalg.svd(m["fc"].weight.detach().double())
    D = torch.diag(torch.tensor([1.0] * 7 + [torch.linalg.det(U @ Vh).item()], dtype=torch.float64))
    paramcli.register(m["fc"], "weight", "skew,cayley")
    torch.testing.assert_close(m["fc"].weight.detach().double(), U @ D @ Vh, rtol=0, atol=3e-6)
    again = model()["fc"]
    again.weight.data = m["fc"].weight.detach().clone()
    paramcli.register(again, "weight", "skew,cayley", init="strict")
    torch.testing.assert_close(again.weight, m["fc"].weight, rtol=0, atol=3e-6)


def test_register_keeps_the_parameter_object():
    """An optimizer made before registration still holds the single original, as with torch's own registration."""
    m = model()
    weight, bias = m["fc"].weight, m["fc"].bias
    paramcli.register(m["fc"], "weight", "skew,matrix_exp")
    assert m["fc"].parametrizations.weight.original is weight and m["fc"].bias is bias and weight.requires_grad


def test_register_raw_is_torchs_own_registration():
    """init='raw' gives bit for bit what torch's weight_norm and orthogonal give."""
    for chain, stock in (
        ("weight_norm:dim=0", parametrizations.weight_norm),
        ("orthogonal:map=cayley", lambda x: parametrizations.orthogonal(x, orthogonal_map="cayley")),
    ):
        one, two = model(), model()
        paramcli.register(one["fc"], "weight", chain, init="raw")
        stock(two["fc"])
        a, b = one["fc"].state_dict(), two["fc"].state_dict()
        assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("init", ["project", "raw"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "chain",
    [
        f"orthogonal:map={name}{triv}"
        for name in ("matrix_exp", "cayley", "householder")
        for triv in ("", ":triv=false")
    ],
)
def test_a_half_precision_model_has_the_value_that_its_file_bakes_to(chain, dtype, init, tmp_path, paramcli_run):
    """torch has no such maps in half precision on the CPU: they are computed in float32 and rounded once,
    as in a bake.
    """
    m = model()["fc"].to(dtype)
    with torch.no_grad():
        m.weight[0] *= torch.linalg.det(m.weight.float()).sign().to(dtype)
    paramcli.register(m, "weight", chain, init=init)
    paramcli.save(m, tmp_path / "m.safetensors")
    assert paramcli.verify(m)[0].ok
    paramcli_run("remove", tmp_path / "m.safetensors", "-o", tmp_path / "b.safetensors")
    assert torch.equal(load_file(tmp_path / "b.safetensors")["weight"], m.weight)


def test_register_refuses_with_the_fact():
    """Unknown names, ill-typed chains, shapes and strict members are refused by type, and the module stays
    as it was.
    """
    m = model()
    for error, arguments in (
        (UsageError, ("weihgt", "skew")),
        (UsageError, ("weight", "cayley")),
        (InputRefused, ("bias", "skew")),
    ):
        with pytest.raises(error):
            paramcli.register(m["fc"], *arguments)
    with pytest.raises(CheckFailed):
        paramcli.register(m["fc"], "weight", "orthogonal", init="strict")
    with pytest.raises(CheckFailed):
        paramcli.register(m["fc"], "weight", "orthogonal", max_change=0.1)
    assert not parametrize.is_parametrized(m["fc"]) and list(m["fc"].state_dict()) == ["weight", "bias"]


def test_appending_type_checks_against_the_chain_there():
    """A second registration appends to the chain, and an ill-typed one is refused."""
    m = model()
    paramcli.register(m["fc"], "weight", "symmetric")
    with pytest.raises(UsageError, match="skew"):
        paramcli.register(m["fc"], "weight", "cayley")
    paramcli.register(m["fc"], "weight", "matrix_exp")
    assert torch.linalg.eigvalsh(m["fc"].weight.detach()).min() > 0
    assert paramcli.verify(m)[0].chain == "symmetric,matrix_exp"


def test_cached_deepcopy_and_compile_work_as_with_torchs_own():
    """parametrize.cached() evaluates once, a deep copy is independent and keeps its chain, torch.compile agrees."""
    m = model()["fc"]
    paramcli.register(m, "weight", "skew,cayley")
    calls = []
    m.parametrizations.weight[1].register_forward_hook(lambda *_: calls.append(1))
    with parametrize.cached():
        assert m.weight is m.weight
    assert len(calls) == 1
    twin = copy.deepcopy(m)
    with torch.no_grad():
        twin.parametrizations.weight.original.mul_(2)
    assert not torch.equal(twin.weight, m.weight) and paramcli.verify(twin)[0].chain == "skew,cayley"
    x = torch.randn(5, 8)
    torch.testing.assert_close(torch.compile(m, backend="eager")(x), m(x))


CHAINS = [
    ("fc.weight", "skew,cayley", None, "fc.weight"),
    ("rnn.weight_hh", "skew,matrix_exp", "blocks=4", "rnn.weight_hh"),
    ("conv.weight", "weight_norm:dim=0", None, None),
    ("out.weight", "orthogonal", None, "out.weight"),
    ("fc.weight", "prune_l1:amount=0.5", None, "fc.weight"),
]


@pytest.mark.parametrize(("tensor", "chain", "view", "claim"), CHAINS, ids=[f"{c[0]} {c[1]}" for c in CHAINS])
def test_round_trip_from_disk_through_training_to_plain_weights(tensor, chain, view, claim, tmp_path, paramcli_run):
    """Disk -> load -> 50 optimizer steps -> save -> verify -> bake: the plain model gives the same outputs."""
    torch.save(model().state_dict(), tmp_path / "start.pt")
    view_arguments = ["--view", view] if view else []
    paramcli_run("add", tmp_path / "start.pt", "-t", tensor, "--chain", chain, *view_arguments)
    m = paramcli.load(model(), tmp_path / "start.parametrized.safetensors")
    assert [v.chain for v in paramcli.verify(m)] == [chain if "orthogonal" not in chain else "orthogonal"]
    x, h, signal = torch.randn(16, 4), torch.randn(16, 8), torch.randn(16, 4, 9)

    def outputs(net):
        hidden, _ = net["rnn"](x, (h, h))
        return net["out"](net["fc"](hidden)), net["conv"](signal)

    optimizer = torch.optim.Adam(m.parameters(), lr=1e-2)
    before = [o.detach().clone() for o in outputs(m)]
    for _ in range(50):
        optimizer.zero_grad()
        sum((o - 1).square().mean() for o in outputs(m)).backward()
        optimizer.step()
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(before, outputs(m), strict=True))
    paramcli.save(m, tmp_path / "trained.safetensors")
    if claim:
        assert claim in paramcli_run("verify", tmp_path / "trained.safetensors").out
    paramcli_run("remove", tmp_path / "trained.safetensors", "--bake", "-o", tmp_path / "plain.safetensors")
    plain = model()
    plain.load_state_dict(load_file(tmp_path / "plain.safetensors"), strict=True)
    for a, b in zip(outputs(plain), outputs(m), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.fixture
def paramcli_run(request):
    return request.getfixturevalue("paramcli")


def test_load_speaks_every_spelling(tmp_path):
    """Old weight norm and spectral norm load into a plain model as parametrizations, into an old-style model as they
    are.
    """
    old = model()
    nn.utils.weight_norm(old["conv"], dim=1)
    nn.utils.spectral_norm(old["fc"])
    old["fc"](torch.randn(2, 8))
    old.eval()
    torch.save({"state_dict": old.state_dict(), "epoch": 3}, tmp_path / "old.ckpt")
    new = paramcli.load(model(), tmp_path / "old.ckpt").eval()
    signal, x = torch.randn(2, 4, 9), torch.randn(2, 8)
    assert torch.equal(new["conv"](signal), old["conv"](signal))
    torch.testing.assert_close(new["fc"](x), old["fc"](x), rtol=1e-6, atol=1e-6)
    assert {v.tensor: v.chain for v in paramcli.verify(new)} == {
        "conv.weight": "weight_norm:dim=1",
        "fc.weight": "spectral_norm:dim=0",
    }
    same = model()
    nn.utils.weight_norm(same["conv"], dim=1)
    nn.utils.spectral_norm(same["fc"])
    paramcli.load(same, tmp_path / "old.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(same.state_dict().values(), old.state_dict().values(), strict=True))


def test_load_names_what_does_not_fit(tmp_path):
    """Missing, unexpected and misshapen tensors are named; strict=False loads the rest."""
    torch.save({**model().state_dict(), "extra": torch.zeros(2)}, tmp_path / "more.pt")
    with pytest.raises(InputRefused, match="the model lacks extra"):
        paramcli.load(model(), tmp_path / "more.pt")
    paramcli.load(model(), tmp_path / "more.pt", strict=False)
    state = model().state_dict()
    state["fc.weight"] = torch.zeros(8, 9)
    torch.save(state, tmp_path / "shape.pt")
    with pytest.raises(InputRefused, match="8x9 in the file and 8x8"):
        paramcli.load(model(), tmp_path / "shape.pt", strict=False)


@pytest.mark.parametrize("already", [False, True])
def test_a_refused_load_leaves_the_model_as_it_was(already, tmp_path):
    """Nothing stays registered by a load that is refused, every parameter is the same object, and no number changed."""
    other = model()
    paramcli.register(other["fc"], "weight", "weight_norm")
    paramcli.register(other["out"], "weight", "fixed_rank:rank=2")
    path = paramcli.save(nn.ModuleDict({"fc": other["fc"], "out": other["out"]}), tmp_path / "part.safetensors")
    m = model()
    if already:
        parametrizations.spectral_norm(m["fc"], "bias")
    before, copies = list(m.named_parameters()), [p.detach().clone() for p in m.parameters()]
    kinds = [type(part) for part in m.modules()]
    with pytest.raises(InputRefused, match="lacks"):
        paramcli.load(m, path)
    after = list(m.named_parameters())
    assert [name for name, _ in after] == [name for name, _ in before] and all(
        a is b for (_, a), (_, b) in zip(after, before, strict=True)
    )
    assert (
        all(torch.equal(p, copy) for p, copy in zip(m.parameters(), copies, strict=True))
        and [type(part) for part in m.modules()] == kinds
    )
    assert m["fc"](torch.ones(1, 8)).isfinite().all()
    paramcli.load(m, path, strict=False)
    assert torch.equal(m["fc"].weight, other["fc"].weight)


@pytest.mark.parametrize(
    "chain", ["skew,cayley", "prune_random:amount=0.5", "lora:rank=2", "spectral_norm", "orthogonal"]
)
def test_a_user_s_random_numbers_are_left_alone(chain, tmp_path, monkeypatch):
    """register, append, save, verify and load change no generator, of the CPU or of another device."""
    monkeypatch.setattr(
        torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the generators of all devices were seeded")
    )
    layers = [nn.Linear(8, 8) for _ in range(4)]
    torch.default_generator.manual_seed(3)
    state = torch.get_rng_state()
    for layer, init in zip(layers[:2], ("project", "raw"), strict=True):
        paramcli.register(layer, "weight", chain, init=init)
    paramcli.register(layers[2], "weight", "symmetric")
    paramcli.register(layers[2], "weight", "prune_random:amount=0.5")
    assert paramcli.verify(layers[0])
    paramcli.load(layers[3], paramcli.save(layers[0], tmp_path / "m.safetensors"))
    assert torch.equal(torch.get_rng_state(), state)


def test_save_records_torchs_own_parametrizations(tmp_path):
    """A model parametrized with stock torch is saved with a record that verify and remove act on."""
    m = model()
    parametrizations.orthogonal(m["fc"], orthogonal_map="matrix_exp")
    parametrizations.weight_norm(m["conv"], dim=None)
    parametrizations.spectral_norm(m["out"])
    path = paramcli.save(m, tmp_path / "stock.safetensors", metadata={"made": "here"})
    assert {v.tensor: (v.chain, v.ok) for v in paramcli.verify(path)} == {
        "fc.weight": ("orthogonal:map=matrix_exp:triv=true", True),
        "conv.weight": ("weight_norm:dim=none", True),
        "out.weight": ("spectral_norm:dim=0:n_power_iterations=1", True),
    }
    assert all(torch.equal(t, m.state_dict()[k]) for k, t in load_file(path).items())
    with pytest.raises(Exception, match="exists"):
        paramcli.save(m, path)


def test_classes_that_are_not_ours_are_saved_without_a_claim(tmp_path):
    """A user's own parametrization is written as it is, and the record says nothing of it."""

    class Doubled(nn.Module):
        def forward(self, X):
            return 2 * X

    m = model()
    parametrize.register_parametrization(m["fc"], "weight", Doubled())
    path = paramcli.save(m, tmp_path / "own.safetensors")
    with pytest.raises(InputRefused, match="the keys alone do not tell"):
        paramcli.verify(path)


def test_verify_does_not_touch_the_model():
    """Measuring spectral norm in training mode takes no power step and leaves the mode."""
    m = model()
    paramcli.register(m["out"], "weight", "spectral_norm")
    m.train()
    before = {k: t.clone() for k, t in m.state_dict().items()}
    assert paramcli.verify(m)[0].ok and m["out"].parametrizations.weight.training
    assert all(torch.equal(t, before[k]) for k, t in m.state_dict().items())


def test_verify_keeps_each_part_in_its_own_mode():
    """A parametrization that the user froze in eval mode stays so in a model that trains."""
    m = parametrizations.spectral_norm(nn.Linear(8, 3))
    m.parametrizations.weight[0].eval()
    paramcli.verify(m)
    assert m.training and m.parametrizations.weight.training and not m.parametrizations.weight[0].training


def test_importing_the_package_is_cheap():
    """`import paramcli` loads no torch; the public functions do when they are first used."""
    code = (
        "import paramcli, sys; assert 'torch' not in sys.modules; paramcli.register; assert 'torch' in sys.modules; "
        "import paramcli.cli.verify; assert callable(paramcli.verify)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_what_does_not_fit_at_all_is_not_loaded_in_silence(tmp_path):
    """strict=False loads what fits; where nothing does, that is said, and the model is as it was."""
    torch.save({"other.weight": torch.zeros(3, 3)}, tmp_path / "o.pt")
    m = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 3)})
    before = m["fc"].weight.clone()
    with pytest.raises(paramcli.InputRefused, match="nothing in the checkpoint fits"):
        paramcli.load(m, tmp_path / "o.pt", strict=False)
    assert torch.equal(m["fc"].weight, before)


def test_results_are_true_where_they_hold(tmp_path):
    """`assert paramcli.verify(...)` and `assert paramcli.diff(...)` cannot pass what is off."""
    torch.save({"w": torch.eye(3), "v": torch.ones(3, 3)}, tmp_path / "o.pt")
    torch.save({"w": torch.eye(3), "v": torch.zeros(3, 3)}, tmp_path / "p.pt")
    assert paramcli.verify(tmp_path / "o.pt", "w", constraint="orthogonal")
    assert not paramcli.verify(tmp_path / "o.pt", "v", constraint="orthogonal")
    assert paramcli.diff(tmp_path / "o.pt", tmp_path / "o.pt") and not paramcli.diff(
        tmp_path / "o.pt", tmp_path / "p.pt"
    )
