"""Cholesky, correlation matrices and LU: published examples and torch as oracles."""

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.fitting import measure
from paramcli.fitting.fit import fit
from paramcli.fitting.originals import evaluate
from paramcli.registry import constraint as make
from paramcli.view import IDENTITY

from .members import spd


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_nearest_correlation_of_highams_paper():
    """The 3 x 3 example of Higham 2002: 1, 1, 0 / 1, 1, 1 / 0, 1, 1 gives 0.7607 and 0.1573."""
    A = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]], dtype=torch.float64)
    wanted = torch.tensor([[1, 0.7607, 0.1573], [0.7607, 1, 0.7607], [0.1573, 0.7607, 1]], dtype=torch.float64)
    torch.testing.assert_close(make("correlation").project(A), wanted, rtol=0, atol=5e-5)


@pytest.mark.parametrize(("n", "size"), [(3, 1.0), (60, 0.1), (60, 1.0), (60, 1e3), (8, 1e6)])
def test_no_correlation_matrix_is_nearer_than_the_nearest(n, size):
    """<G - C, X - C> <= 0 of the nearest point C to G and every correlation matrix X, for entries of any size
    (alternating projections stopped 6 % away where they are 1000).
    """
    G = size * randn(n, n)
    G = (G + G.T) / 2
    C = make("correlation").project(G)
    assert measure.check("correlation", C).ok
    others = [torch.nn.functional.normalize(randn(n, k, seed=k), dim=-1) for k in (1, 2, n)]
    for X in [torch.eye(n, dtype=torch.float64), *(A @ A.T for A in others)]:
        assert ((G - C) * (X - C)).sum() <= 1e-10 * size * n**2


def test_singular_correlations_are_kept():
    """All ones (rank 1), the nearest points themselves, and perfect anticorrelation: to 1e-9 in float64, and to
    rounding in bfloat16.
    """
    ones = torch.ones(4, 4, dtype=torch.float64)
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    for C in (ones, opposite, make("correlation").project(randn(6, 6))):
        assert fit(C, parse_chain("correlation"), IDENTITY).moved <= 1e-9
        fitted = fit(C.bfloat16(), parse_chain("correlation"), IDENTITY)
        assert fitted.check.ok and fitted.moved < 0.02


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_singular_correlation_once_fitted_stays(rank):
    """Rounding lets some singular matrices have a Cholesky factor and others not; a fitted one is kept either way."""
    for seed in range(30):
        A = torch.nn.functional.normalize(randn(5, rank, seed=seed), dim=-1)
        first = fit(A @ A.mT, parse_chain("correlation"), IDENTITY)
        assert first.moved <= 1e-9 and fit(first.value, parse_chain("correlation"), IDENTITY).moved <= 1e-13


def test_covariances_give_their_correlations_diagonal():
    """A positive definite matrix with diagonal 1 is a member, and its scaled form is not."""
    A = spd(5, 0)
    scale = A.diagonal().rsqrt()
    assert measure.check("correlation", A * scale * scale[:, None]).ok
    assert not measure.check("correlation", A).ok


def test_spd_cholesky_has_a_floor():
    """Eigenvalues of eps or less are refused with the number."""
    with pytest.raises(InputRefused, match=r"above 0\.5, and this tensor has 0\.1"):
        fit(torch.diag(torch.tensor([1.0, 0.1])), parse_chain("spd_cholesky:eps=0.5"), IDENTITY)


@pytest.mark.parametrize("seed", range(5))
def test_lu_reads_its_determinant_off_the_original(seed):
    """log |det W| is the trace of the original, whatever training does to it, and the sign stays."""
    W = randn(2, 5, 5, seed=seed)
    state = dict(fit(W, parse_chain("lu"), IDENTITY).state)
    torch.testing.assert_close(state["original"].diagonal(dim1=-2, dim2=-1).sum(-1), torch.linalg.slogdet(W).logabsdet)
    state["original"] = state["original"] + randn(2, 5, 5, seed=seed + 10)
    after = torch.linalg.slogdet(evaluate(parse_chain("lu"), IDENTITY, W.shape, state, W.dtype))
    torch.testing.assert_close(after.logabsdet, state["original"].diagonal(dim1=-2, dim2=-1).sum(-1))
    assert torch.equal(after.sign, torch.linalg.slogdet(W).sign)


def test_lu_holds_no_singular_matrix():
    """With its smallest pivot where it is not to be moved, and where there is no direction to move it in."""
    with pytest.raises(InputRefused, match="smallest pivot is 0"):
        fit(torch.ones(3, 3), parse_chain("lu"), IDENTITY, init="strict")
    with pytest.raises(InputRefused, match="smallest pivot is 0"):
        fit(torch.zeros(3, 3), parse_chain("lu"), IDENTITY)
    assert 0 < fit(torch.ones(3, 3), parse_chain("lu"), IDENTITY).moved < 1e-6
