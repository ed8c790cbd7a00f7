"""Positive, interval and increasing entries, probabilities: torch, closed forms and independent algorithms
as oracles.
"""

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.errors import UsageError
from paramcli.fitting import measure
from paramcli.fitting.claims import claim_check
from paramcli.fitting.fit import fit
from paramcli.fitting.torch_module import bare, register
from paramcli.maths.elementwise import inverse_softplus, pool_adjacent_violators
from paramcli.maths.stochastic import nearest_doubly_stochastic
from paramcli.registry import constraint as make
from paramcli.view import IDENTITY


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_inverse_softplus_over_many_magnitudes():
    """From 1e-300 to 1e300, where exp(y) - 1 would underflow or overflow."""
    y = torch.logspace(-300, 300, 601, dtype=torch.float64)
    torch.testing.assert_close(torch.nn.functional.softplus(inverse_softplus(y), threshold=50), y, rtol=1e-11, atol=0)


@pytest.mark.parametrize(
    "chain", ["positive", "positive:f=exp", "positive:f=square", "interval", "increasing", "simplex", "ball"]
)
def test_a_live_registration_on_any_weight_is_finite(chain):
    """Outside the set a live module starts from a member near by, not from NaN."""
    W = register(bare(2 * randn(4, 4).float()), "weight", parse_chain(chain)).weight.detach()
    assert bool(torch.isfinite(W).all())
    assert claim_check(parse_chain(chain), IDENTITY, W, {}).ok


def test_positive_entries_are_kept_and_the_others_just_lifted():
    """Only entries that are not positive move, to a thousandth of the largest."""
    W = randn(5, 5)
    fitted = fit(W, parse_chain("positive"), IDENTITY)
    torch.testing.assert_close(fitted.value, torch.where(W > 0, W, 1e-3 * W.abs().max()))


def test_zeros_that_a_narrow_dtype_makes_are_found():
    """softplus(-20) = 2e-9 is positive in float32 and zero in float16."""
    W = torch.nn.functional.softplus(torch.tensor([[1.0, -20.0]]))
    assert measure.check("positive", W).ok
    check = measure.check("positive", W.half())
    assert not check.ok and "1 of 2 entries" in check.detail


def test_an_interval_needs_two_ends():
    """a must be below b, on the command line and in a record."""
    with pytest.raises(UsageError, match="a < b"):
        make("interval:a=1:b=1")


def isotonic(x):
    """The minimax formula: max over starts up to i of the min over ends from i of the averages between."""
    n = len(x)
    return [max(min(sum(x[j : k + 1]) / (k + 1 - j) for k in range(i, n)) for j in range(i + 1)) for i in range(n)]


def test_pooling_adjacent_violators_by_the_minimax_formula():
    """1, 3, 2, 4 pools the middle; random sequences agree with the formula."""
    assert pool_adjacent_violators([1.0, 3.0, 2.0, 4.0]) == [1.0, 2.5, 2.5, 4.0]
    for seed in range(20):
        x = randn(12, seed=seed).tolist()
        torch.testing.assert_close(torch.tensor(pool_adjacent_violators(x)), torch.tensor(isotonic(x)))


def test_increasing_projection_is_the_pooled_one_with_small_steps():
    """Within its margin of the nearest non-decreasing vector; vectors that increase already are not touched."""
    W = randn(6, 10)
    W[0] = W[0].sort().values
    P = make("increasing").project(W)
    assert torch.equal(P[0], W[0])
    nearest = torch.tensor([isotonic(row) for row in W.tolist()], dtype=torch.float64)
    assert (P - nearest).abs().max() <= 1e-3 * (W.amax(-1) - W.amin(-1)).max()


def test_projection_onto_the_simplex():
    """(0.5, 1) loses 0.25 each; (3, 0) goes to the corner; along columns as along rows."""
    W = torch.tensor([[0.5, 1.0], [3.0, 0.0]], dtype=torch.float64)
    wanted = torch.tensor([[0.25, 0.75], [1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(make("simplex").project(W), wanted)
    torch.testing.assert_close(make("simplex:dim=0").project(W.T), wanted.T)


def test_stochastic_is_the_simplex_by_rows_and_columns():
    """A transition matrix with zeros holds; its transpose only by columns."""
    P = torch.tensor([[1.0, 0.0], [0.3, 0.7]])
    assert measure.check("stochastic", P).ok and measure.check("simplex", P).ok
    assert not measure.check("stochastic", P.T).ok and measure.check("stochastic:dim=-2", P.T).ok


@pytest.mark.parametrize("seed", range(6))
def test_nearest_doubly_stochastic_of_two_by_two(seed):
    """Members are [[p, 1 - p], [1 - p, p]], so the nearest has p = (a + d - b - c + 2) / 4, cut to [0, 1]."""
    X = 2 * randn(2, 2, seed=seed)
    (a, b), (c, d) = X.tolist()
    p = min(max((a + d - b - c + 2) / 4, 0.0), 1.0)
    torch.testing.assert_close(
        nearest_doubly_stochastic(X), torch.tensor([[p, 1 - p], [1 - p, p]], dtype=torch.float64)
    )


@pytest.mark.parametrize("n", [3, 8, 20])
def test_nearest_doubly_stochastic_agrees_with_dykstra(n):
    """Dykstra's alternating projections, slow and independent, reach the same matrix."""
    X = randn(n, n, seed=n)
    Y, correction = X.clone(), torch.zeros_like(X)
    for _ in range(20000):
        rows = Y - (Y.sum(1, keepdim=True) - 1) / n
        A = rows - (rows.sum(0, keepdim=True) - 1) / n
        Y = (A + correction).clamp(min=0)
        correction = A + correction - Y
    torch.testing.assert_close(nearest_doubly_stochastic(X), Y, rtol=1e-6, atol=1e-6)


def test_large_and_lopsided_matrices_converge():
    """A permutation times 50, a rank-one matrix, large negative entries, heavy tails: sums come out to rounding of the
    largest entry.
    """
    n = 60
    for X in (
        randn(n, n),
        50 * torch.eye(n, dtype=torch.float64).flip(0),
        randn(n, 1) @ randn(1, n),
        -1e3 * randn(n, n).abs(),
        randn(n, n) ** 5,
    ):
        residual = make("doubly_stochastic").residual(nearest_doubly_stochastic(X)).item()
        assert residual <= n * torch.finfo(torch.float64).eps * (1 + X.abs().max().item())


@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("kind", ["a permutation and dust", "rows of far apart sizes", "many ties", "small", "large"])
def test_sums_come_out_to_rounding_however_hard_the_matrix(n, kind):
    """Where entries have to vanish scaling never ends, and the dual is flat. No permutation is on the far side of X -
    P.
    """
    from itertools import permutations

    for seed in range(40):
        X = randn(n, n, seed=seed)
        X = {
            "a permutation and dust": torch.eye(n, dtype=X.dtype).roll(seed, 0) + 1e-9 * X,
            "rows of far apart sizes": X * torch.logspace(-4, 4, n, dtype=X.dtype),
            "many ties": torch.round(2 * X) / 2,
            "small": 1e-3 * X,
            "large": 100 * X,
        }[kind]
        P = nearest_doubly_stochastic(X)
        assert make("doubly_stochastic").residual(P).item() <= 1e-15 * n
        vertices = [torch.eye(n, dtype=X.dtype)[list(order)] for order in permutations(range(n))]
        assert max((((X - P) * (Q - P)).sum() / (1 + X.abs().max())).item() for Q in vertices) <= 1e-9


@pytest.mark.parametrize("size", [1 / 16, 1.0, 1e3, 1e6])
def test_no_doubly_stochastic_matrix_is_nearer_than_the_nearest(size):
    """<X - P, Q - P> <= 0 for permutations Q, of 200 rows and entries of any size."""
    n = 200
    X = size * randn(n, n)
    P = nearest_doubly_stochastic(X)
    assert make("doubly_stochastic").residual(P).item() <= 1e-15 * n
    for seed in range(20):
        Q = torch.eye(n, dtype=X.dtype)[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
        assert ((X - P) * (Q - P)).sum() <= 1e-9 * n * X.abs().max()


def test_sinkhorn_is_the_division_by_sums():
    """In logarithms as without."""
    X = randn(4, 4)
    M = X.exp()
    for _ in range(50):
        M = M / M.sum(1, keepdim=True)
        M = M / M.sum(0, keepdim=True)
    torch.testing.assert_close(register_on(X, "doubly_stochastic").weight.detach(), M)


def register_on(X, chain):
    """A module whose original is X itself."""
    host = register(bare(torch.eye(len(X), dtype=X.dtype)), "weight", parse_chain(chain))
    host.load_state_dict({"parametrizations.weight.original": X})
    return host


def test_a_sinkhorn_with_too_few_iterations_is_told():
    """One iteration leaves row sums that verify reports."""
    W = register_on(5 * randn(4, 4), "doubly_stochastic:iterations=1").weight.detach()
    check = measure.check("doubly_stochastic", W)
    assert not check.ok and "row sums off" in check.detail


def test_identity_renames_and_nothing_else():
    """The original is the weight, bit for bit."""
    W = randn(3, 3).float()
    fitted = fit(W, parse_chain("identity"), IDENTITY)
    assert (
        list(fitted.state) == ["original"] and torch.equal(fitted.state["original"], W) and torch.equal(fitted.value, W)
    )
