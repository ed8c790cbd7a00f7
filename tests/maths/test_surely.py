"""What is surely true of large spectra, against the spectra themselves: never more than is so, and enough to matter."""

import pytest
import torch

from paramcli.maths import low_rank, stability
from paramcli.maths.base import NEARLY
from paramcli.maths.facts import moments
from paramcli.maths.low_rank import LowRank
from paramcli.maths.stability import Hurwitz
from paramcli.maths.surely import surely_invertible, surely_many, surely_right_of

N = 200


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def of_values(S, seed=0):
    """A matrix with these singular values."""
    U, V = (torch.linalg.qr(randn(len(S), len(S), seed=seed + k)).Q for k in range(2))
    return (U * S) @ V.T


def jordan(n, value):
    """One eigenvalue, and one eigenvector."""
    return value * torch.eye(n, dtype=torch.float64) + torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)


def spectra():
    k = torch.arange(N, dtype=torch.float64)
    yield "random", randn(N, N)
    yield "of one sign", randn(N, N, seed=1).abs()
    yield "of another mean", randn(N, N, seed=2) + 0.5
    yield "orthogonal", torch.linalg.qr(randn(N, N)).Q
    yield "geometric", of_values(0.9**k)
    yield "slowly falling", of_values(1 / (1 + k))
    for share in (0.02, 0.3, 0.45, 0.49, 0.51, 0.6, 0.99):
        for size in (0.04, 0.06, 1e-4):
            yield f"a drop to {size} at {share}", of_values(torch.where(k < share * N, 1.0, size))
    yield "rank 10", randn(N, 10) @ randn(10, N, seed=1)
    yield "rank n - 1", randn(N, N - 1) @ randn(N - 1, N, seed=1)
    yield "one large value", randn(N, N) + 100 * torch.ones(N, N, dtype=torch.float64)
    yield "small", 1e-160 * randn(N, N)
    yield "large", 1e160 * randn(N, N)


@pytest.mark.parametrize(("name", "W"), [pytest.param(name, W, id=name) for name, W in spectra()])
def test_singular_values_are_no_fewer_and_no_smaller(name, W):
    S = torch.linalg.svdvals(W)
    for least in (0.3, NEARLY, 1e-2, 1e-4):
        assert surely_many(W, least) <= int((least * S[0] < S).sum())
        assert surely_many(W[:, : N // 2], least) <= int(
            ((T := torch.linalg.svdvals(W[:, : N // 2])) > least * T[0]).sum()
        )
    for least in (NEARLY, 1e-3, 1e-6):
        assert not surely_invertible(W, least) or S[-1] > least * S[0]
    assert S[0] <= moments(W)[-1] * (1 + 1e-12) <= 1.01 * N**0.125 * S[0]


def test_of_a_random_matrix_enough_is_known():
    """More than half of its singular values, all of them to be more than rounding, and an eigenvalue on the right."""
    found = 0
    for seed in range(20):
        W = randn(N, N, seed=seed)
        assert surely_many(W, NEARLY) > 0.55 * N and surely_invertible(W, 1e-6)
        found += surely_right_of(W) > 1.01 * NEARLY
    assert found >= 19


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shift", [-1.2, -1.0, -0.5, 0.0, 0.5])
def test_a_real_eigenvalue_is_where_it_is_said_to_be(shift, seed):
    """Random matrices shifted to the left, to and beyond where they are stable; and some that are far from normal."""
    unit = torch.eye(N, dtype=torch.float64)
    A = randn(N, N, seed=seed)
    A = A + shift * torch.linalg.eigvals(A).real.max() * unit
    triangular = randn(N, N, seed=seed).triu(1) + torch.diag(randn(N, seed=seed + 1) + 5 * shift)
    for B in (A, A @ torch.diag(10.0 ** randn(N, seed=seed)), triangular, jordan(N, shift), A - A.T):
        right = surely_right_of(B)
        assert right <= max(0.0, torch.linalg.eigvals(B).real.max().item() / torch.linalg.matrix_norm(B, 2).item())
        assert Hurwitz().at_least(B) <= Hurwitz().residual(B).item() * (1 + 1e-6)


@pytest.mark.parametrize(("name", "W"), [pytest.param(name, W, id=name) for name, W in spectra()])
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16])
def test_the_same_ranks_are_suggested_without_all_singular_values(name, W, stored, monkeypatch):
    if stored != torch.float64 and name in ("small", "large"):
        pytest.skip("no numbers of that dtype")
    W = W.to(stored).double()

    def suggested():
        return [one.rank for one in LowRank.candidates(W, stored)]

    quick = suggested()
    monkeypatch.setattr(low_rank, "_surely_full", lambda *_: False)
    monkeypatch.setattr(low_rank, "_values", lambda W, explained: torch.linalg.svdvals(W))
    assert quick == suggested()


def test_a_random_matrix_takes_no_decomposition(monkeypatch):
    """Neither singular values nor eigenvalues: what they cost of a large one is minutes."""
    for name in ("eig", "eigvals", "svd", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, None)
    monkeypatch.setattr(stability, "eig", None)
    W = randn(N, N, seed=3)
    assert LowRank.candidates(W, torch.float32) == []
    assert Hurwitz().at_least(W) > 1.01 * NEARLY
