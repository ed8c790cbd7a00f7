"""Manifolds: what starts from a random weight, what cannot be reached, and the mathematics behind the residuals."""

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.fitting import measure
from paramcli.fitting.fit import fit
from paramcli.fitting.torch_module import bare, register
from paramcli.maths.stability import AlphaStable, abscissa, lyapunov
from paramcli.registry import constraint as make
from paramcli.view import IDENTITY

from .members import rotation, spd

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "chain",
    ["fixed_rank:rank=3", "invertible", "sln", "spd", "psd_fixed_rank:rank=3", "alpha_stable", "alpha_stable:alpha=2"],
)
def test_sets_without_a_nearest_point_take_any_weight(chain, dtype):
    """A random weight of a usual layer's size goes to a point of the set that stays there when it is stored."""
    for seed in range(3):
        W = (randn(24, 24, seed=seed) / 24**0.5).to(dtype)
        fitted = fit(W, parse_chain(chain), IDENTITY)
        assert fitted.check.ok and fitted.moved < (3 if "alpha_stable:" in chain else 1.5), fitted


@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_every_size_of_weight_is_kept(scale):
    """An invertible weight of any size, and one of determinant 1 of any condition number, is kept to rounding."""
    W = scale * rotation(6, 0) @ torch.diag(torch.logspace(0, 1, 6, dtype=torch.float64))
    assert fit(W, parse_chain("invertible"), IDENTITY).moved < 1e-9
    far = torch.logspace(-4, 4, 9, dtype=torch.float64)
    W = rotation(9, 1) @ torch.diag(far) @ rotation(9, 2).T
    assert fit(W, parse_chain("sln"), IDENTITY).moved < 1e-9


def test_the_sign_of_the_determinant_stays():
    """invertible keeps a negative determinant; sln mirrors the smallest direction."""
    W = rotation(5, 3, sign=-1) @ spd(5, 0)
    kept = fit(W, parse_chain("invertible"), IDENTITY)
    assert kept.moved < 1e-9 and torch.linalg.det(kept.value) < 0
    assert torch.linalg.det(fit(W, parse_chain("sln"), IDENTITY).value) == pytest.approx(1)


@pytest.mark.parametrize(
    ("chain", "W", "why"),
    [
        ("sphere_exp", torch.zeros(3, 4), "slice 0 of 3 is zero"),
        ("sln", torch.diag(torch.tensor([1.0, 0.0])), "no multiple"),
        ("almost_orthogonal", torch.diag(torch.tensor([1.0, 0.0])), "rank-deficient"),
        ("spd", -torch.eye(2), "largest eigenvalue is -1"),
        ("psd_fixed_rank:rank=1", -torch.eye(2), "largest eigenvalue is -1"),
        ("invertible", torch.zeros(2, 2), "zero matrix"),
    ],
)
def test_a_weight_near_no_point_is_refused(chain, W, why):
    """Where no point of the set is near, the refusal says which number is in the way, and what to do."""
    with pytest.raises(InputRefused, match=why) as caught:
        fit(W, parse_chain(chain), IDENTITY)
    assert caught.value.hint


@pytest.mark.parametrize("chain", ["invertible", "spd", "fixed_rank:rank=2", "psd_fixed_rank:rank=2"])
def test_values_below_the_floor_are_raised_to_twice_the_floor(chain):
    """softplus + 1e-6 gives nothing below 1e-6: 1e-7 lies outside of the chain's own set, and moves by 1.9e-6."""
    fitted = fit(torch.diag(torch.tensor([1.0, 1e-7], dtype=torch.float64)), parse_chain(chain), IDENTITY)
    assert fitted.check.ok and fitted.moved == pytest.approx(1.9e-6, rel=1e-3)


def test_an_edge_that_no_lyapunov_function_sees_is_refused():
    """A rotation's generator has its eigenvalues on the axis: in the closed set, not among the map's values."""
    W = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    with pytest.raises(InputRefused, match="on that line"):
        fit(W, parse_chain("alpha_stable:alpha=0"), IDENTITY, init="strict")
    assert 0 < fit(W, parse_chain("alpha_stable:alpha=0"), IDENTITY).moved < 1e-3


@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_the_lyapunov_equation_is_solved(n):
    """Against the Kronecker form (I x A^T + A^T x I) vec P = -vec Q, solved by LU."""
    A = randn(n, n, seed=n)
    A = A - (abscissa(A) + 0.1) * torch.eye(n, dtype=torch.float64)
    Q, I = spd(n, n), torch.eye(n, dtype=torch.float64)
    wanted = torch.linalg.solve(
        torch.kron(I, A.T.contiguous()) + torch.kron(A.T.contiguous(), I), -Q.reshape(-1)
    ).reshape(n, n)
    torch.testing.assert_close(lyapunov(A, Q), wanted, rtol=1e-9, atol=1e-9)


def test_stable_systems_far_from_normal_keep_their_weight():
    """A chain of integrators with a little damping: no eigenvector basis, and still an exact start."""
    A = torch.diag(torch.ones(3, dtype=torch.float64), 1) - 0.5 * torch.eye(4, dtype=torch.float64)
    part = AlphaStable.make(A, 0.1)
    torch.testing.assert_close(part.map(*part.inverse(A)), A, rtol=1e-9, atol=1e-9)


def test_special_linear_measures_the_determinant_by_what_relative_errors_make_of_it():
    """log det (1 + e) I = 4 e, where errors of size 1 in the 4 entries make 2 of it; diag(k, 1/k) likewise,
    whatever k.
    """
    e, I = 1e-4, torch.eye(4, dtype=torch.float64)
    assert make("special_linear").residual((1 + e) * I).item() == pytest.approx(4 * e / 2, rel=1e-3)
    for k in (1.0, 10.0, 1e4):
        D = torch.diag(torch.tensor([k, 1 / k], dtype=torch.float64))
        assert make("special_linear").residual((1 + e) * D).item() == pytest.approx(2 * e / 2**0.5, rel=1e-3)


def test_hurwitz_measures_the_distance_for_normal_matrices():
    """For a normal matrix the eigenvalue has condition 1, and the residual is its real part over the norm."""
    Q = rotation(4, 0)
    A = Q @ torch.diag(torch.tensor([-2.0, -1.0, -1.0, 0.5], dtype=torch.float64)) @ Q.T
    assert make("hurwitz").residual(A).item() == pytest.approx(0.25)
    assert make("hurwitz:alpha=0.5").residual(A).item() == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_stored_is_stable_or_is_not(dtype):
    """Rounding moves eigenvalues of a matrix far from normal over the edge: what is stored is then unstable, and told
    so.
    """
    for seed in range(20):
        # Eigenvectors 1, 1/2, ... that crowd together: an eigenvalue moves several times as far as the matrix.
        V = torch.eye(6, dtype=torch.float64) + 0.4 * randn(6, 6, seed=seed)
        V[:, 0] = V[:, 1:].sum(-1) + 0.1 * V[:, 0]
        A = (
            V
            @ torch.diag(torch.tensor([-0.1, -3.0, -3.5, -4.0, -4.5, -5.0], dtype=torch.float64))
            @ torch.linalg.inv(V)
        )
        edge = torch.linalg.eigvals(A.to(dtype).double()).real.max().item() + 0.1
        explained = 0.55 * torch.finfo(dtype).eps * torch.linalg.matrix_norm(A, 2).item()
        check = measure.check("hurwitz:alpha=0.1", A.to(dtype))
        if dtype == torch.float64 or edge < 0.9 * explained:
            assert check.ok, check
        if edge > 2 * explained and dtype != torch.float64:
            assert not check.ok, check


@pytest.mark.parametrize("chain", ["stiefel", "low_rank:rank=2", "spd", "sphere_exp"])
def test_a_live_module_takes_an_assignment(chain):
    """`module.weight = W` on a registered module gives W back, though its base was another's."""
    image = parse_chain(chain).constraint
    shape = torch.Size((5, 5))
    first, second = (make(image).sample(shape, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    module = register(bare(first), "weight", parse_chain(chain))
    module.weight = second
    torch.testing.assert_close(module.weight.detach(), second, rtol=1e-9, atol=1e-9)


def test_cayley_and_expm_start_alike_and_part_later():
    """At X = 0 both give the base; away from it they differ from the third order on."""
    W = rotation(4, 5)
    states = {triv: dict(fit(W, parse_chain(f"so:triv={triv}"), IDENTITY).state) for triv in ("expm", "cayley")}
    assert all(torch.equal(state["0.base"], states["expm"]["0.base"]) for state in states.values())
    step = 1e-2 * randn(4, 4)
    values = []
    for triv in states:
        host = register(bare(W.clone()), "weight", parse_chain(f"so:triv={triv}"))
        host.parametrizations.weight.original.data.copy_(step)
        values.append(host.weight.detach())
    assert 0 < torch.linalg.vector_norm(values[0] - values[1]) < 1e-5
