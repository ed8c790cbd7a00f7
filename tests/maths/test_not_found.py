"""Iterative projections refuse what they did not find, however large the entries."""

import pytest
import torch

from paramcli.maths.base import Singular
from paramcli.maths.nearest_correlation import nearest_correlation
from paramcli.maths.stochastic import nearest_doubly_stochastic


def symmetric(n, size):
    A = torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    return (A + A.mT) * size / 2


def is_nearest(G, X):
    """X is nearest if and only if G - X + diag(y) is negative semidefinite and orthogonal to X for some y: with X of
    diagonal 1, y is what makes the rows of (G - X + diag(y)) X vanish on the diagonal.
    """
    D = G - X
    y = -(D @ X).diagonal()
    left = D + y.diag()
    size = torch.linalg.matrix_norm(G, 2)
    return torch.linalg.eigvalsh(left).max() <= 1e-6 * size and (left @ X).abs().max() <= 1e-6 * size


@pytest.mark.parametrize("n", [8, 32])
@pytest.mark.parametrize("size", [1e0, 1e2, 1e4, 1e6, 1e9, 1e11, 1e13, 1e15])
def test_a_correlation_matrix_is_the_nearest_or_none(n, size):
    G = symmetric(n, size)
    try:
        X = nearest_correlation(G)
    except Singular:
        assert size > 1e3
        return
    assert is_nearest(G.fill_diagonal_(1), X)


def test_the_diagonal_plays_no_part():
    G = symmetric(32, 1)
    wanted = nearest_correlation(G)
    G[5, 5] = 1e8
    assert torch.equal(nearest_correlation(G), wanted)


@pytest.mark.parametrize("size", [1e0, 1e4, 1e8, 1e10, 1e12, 1e15, 1e100])
def test_a_doubly_stochastic_matrix_is_one_or_none(size):
    for seed in range(3):
        X = torch.randn(16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size
        try:
            P = nearest_doubly_stochastic(X)
        except Singular:
            assert size > 1e4
            continue
        assert bool((P >= 0).all())
        for sums in (P.sum(0), P.sum(1)):
            assert (sums - 1).abs().max() <= 1e-9
