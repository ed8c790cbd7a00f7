"""The nearest factors, against torch's SVD and Eckart and Young's theorem."""

import math

import pytest
import torch

from paramcli.maths import nearest as N
from paramcli.maths.nearest import Wanted, most, nearest


def matrix(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def least_lost(D, rank):
    S = torch.linalg.svdvals(D.double())
    return (torch.linalg.vector_norm(S[rank:]) / torch.linalg.vector_norm(S)).item()


@pytest.mark.parametrize("shape", [(24, 24), (40, 9), (9, 40), (1, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_factors_of_a_rank_are_nearer(shape, dtype):
    """What is lost is what Eckart and Young say is the least, and is that of the factors as they are stored."""
    D = matrix(*shape, dtype=dtype)
    for rank in range(1, most(*shape) + 1):
        found = nearest(D, Wanted(rank=rank), dtype)
        assert found.A.shape == (rank, shape[1]) and found.B.shape == (shape[0], rank)
        assert found.A.dtype == found.B.dtype == dtype
        assert found.lost == pytest.approx(least_lost(D, rank), rel=1e-6)
        error = (D.double() - found.B.double() @ found.A.double()).norm() / D.double().norm()
        assert found.lost == pytest.approx(error.item(), rel=1e-6)
    assert nearest(D, Wanted(rank=most(*shape) + 1), dtype) is None


@pytest.mark.parametrize("exact", [True, False])
def test_the_least_rank_that_will_do_is_found(exact, monkeypatch):
    """By the decomposition and by a sketch that grows: one rank less would lose too much."""
    monkeypatch.setattr(N, "FIRST", 2)
    if not exact:
        monkeypatch.setattr(N, "EXACT", 0)
    U, _ = torch.linalg.qr(matrix(90, 30, dtype=torch.float64))
    V, _ = torch.linalg.qr(matrix(80, 30, seed=1, dtype=torch.float64))
    D = ((U * 0.7 ** torch.arange(30)) @ V.T).float()
    for lost in (0.5, 0.1, 0.01, 1e-3):
        found = nearest(D, Wanted(lost=lost), torch.float32)
        assert found.lost <= lost < least_lost(D, found.rank - 1)


@pytest.mark.parametrize("exact", [True, False])
def test_a_change_of_rank_4_is_of_rank_4(exact, monkeypatch):
    """Planted in noise of rounding: rank 4, and nothing lost but that."""
    if not exact:
        monkeypatch.setattr(N, "EXACT", 0)
    W = 0.02 * matrix(200, 150)
    D = W + 1e-3 * matrix(200, 4, seed=1) @ matrix(4, 150, seed=2) - W
    for wanted in (Wanted(rank=4), Wanted(lost=1e-4), Wanted(lost=0.01)):
        found = nearest(D, wanted, torch.float32)
        assert found.rank == 4 and found.lost < 1e-5


def test_a_sketch_is_nearly_as_near(monkeypatch):
    """Of a matrix without structure, the worst there is: within two per cent; and the same twice."""
    D = matrix(300, 200)
    best = nearest(D, Wanted(rank=16), torch.float32)
    monkeypatch.setattr(N, "EXACT", 0)
    one, two = (nearest(D, Wanted(rank=16), torch.float32) for _ in range(2))
    assert best.lost <= one.lost < 1.02 * best.lost
    assert torch.equal(one.A, two.A) and torch.equal(one.B, two.B)


@pytest.mark.parametrize("size", [1e-37, 1e-20, 1, 1e18, 1e37])
def test_size_does_not_matter(size):
    """Squares would leave float32's range."""
    D = (matrix(20, 3) @ matrix(3, 30, seed=1)) / 100 * size
    found = nearest(D, Wanted(rank=3), torch.float32)
    assert found.lost < 1e-5
    error = (D.double() - found.B.double() @ found.A.double()).norm() / D.double().norm()
    assert error.item() == pytest.approx(found.lost, rel=1e-6)


def test_what_the_factors_dtype_costs_is_lost():
    """In bfloat16 two factors are off by about its eps, and no rank helps."""
    D = matrix(64, 2) @ matrix(2, 48, seed=1)
    found = nearest(D, Wanted(rank=2), torch.bfloat16)
    assert 1e-4 < found.lost < 2**-7
    assert nearest(D, Wanted(lost=1e-6), torch.bfloat16) is None


def test_factors_that_save_nothing_are_none():
    """Of a vector, and where they would have as many numbers as the matrix."""
    assert most(1, 50) == 0 and most(16, 16) == 7 and most(0, 5) == 0
    for rows, columns in ((16, 16), (3, 100), (7, 8)):
        limit = most(rows, columns)
        assert limit * (rows + columns) < rows * columns <= (limit + 1) * (rows + columns)
    assert nearest(matrix(16, 16), Wanted(lost=1e-3), torch.float32) is None
    assert math.isclose(
        nearest(matrix(16, 16), Wanted(rank=7), torch.float32).lost, least_lost(matrix(16, 16), 7), rel_tol=1e-6
    )
