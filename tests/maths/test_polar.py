"""The polar and the QR map: derivatives where an SVD has none, signs, refusals."""

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.fitting.fit import fit
from paramcli.maths.polar import QR, Polar
from paramcli.view import IDENTITY

from .members import rotation

SHAPES = [(4, 4), (5, 3), (3, 5), (2, 4, 2), (1, 1)]


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("f", [Polar(), QR()], ids=["polar", "qr"])
def test_the_derivative_is_right_on_general_matrices(f, shape, dtype):
    """gradcheck against finite differences, tall, wide and square, real and complex."""
    assert torch.autograd.gradcheck(f.map, random(*shape, dtype=dtype).requires_grad_())


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("k", [6, 4])
def test_the_polar_derivative_exists_where_singular_values_coincide(k, scale):
    """On a multiple of an orthogonal matrix, where a fit starts, U V^T has a derivative though the SVD has none."""
    X = (scale * rotation(6, 3)[:, :k]).clone().requires_grad_()
    assert torch.autograd.gradcheck(Polar().map, X)
    G = random(6, k)
    (by_polar,) = torch.autograd.grad(Polar().map(X), X, G)
    # d(X (X^T X)^{-1/2}) at X = s Q along D is (D - Q sym(Q^T D)) / s.
    Q = X.detach() / scale
    sym = (Q.T @ G + G.T @ Q) / 2
    torch.testing.assert_close(by_polar, (G - Q @ sym) / scale, rtol=1e-10, atol=1e-10)


def test_a_second_derivative_is_refused():
    """The polar factor's second derivative is not implemented, and says so rather than leaving a part out."""
    X = random(3, 3).requires_grad_()
    (g,) = torch.autograd.grad(Polar().map(X).pow(3).sum(), X, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_polar_keeps_the_weight_and_gives_its_nearest_orthogonal_matrix():
    """The original is the weight bit for bit; the value is X (X^T X)^{-1/2}, by an eigendecomposition."""
    W = random(7, 4)
    fitted = fit(W, parse_chain("polar"), IDENTITY)
    values, V = torch.linalg.eigh(W.T @ W)
    assert torch.equal(fitted.state["original"], W)
    torch.testing.assert_close(fitted.value, W @ (V * values.rsqrt()) @ V.T, rtol=1e-12, atol=1e-12)


def test_polar_refuses_a_rank_deficient_weight():
    """A zero column has no nearest direction; the hint's raw registration takes it."""
    W = random(4, 4)
    W[:, 1] = 0
    with pytest.raises(InputRefused, match="rank-deficient"):
        fit(W, parse_chain("polar"), IDENTITY)
    assert torch.equal(fit(W, parse_chain("polar"), IDENTITY, init="raw").state["original"], W)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_qr_has_a_positive_diagonal(shape):
    """Q^H X (X Q^H if wide) is triangular with a positive diagonal."""
    for dtype in (torch.float64, torch.complex128):
        X = random(*shape, dtype=dtype)
        Q = QR().map(X)
        R = Q.mH @ X if shape[-2] >= shape[-1] else (X @ Q.mH).mH
        assert torch.linalg.vector_norm(R.tril(-1)) < 1e-12
        diagonal = R.diagonal(dim1=-2, dim2=-1)
        assert bool((diagonal.real > 0).all()) and torch.linalg.vector_norm(diagonal - diagonal.real) < 1e-12


def test_qr_starts_from_the_nearest_orthogonal_matrix():
    """A fit moves the weight no farther than its polar factor, though the map itself would."""
    W = rotation(16, 0) + 0.01 * random(16, 16, seed=1)
    near, own = (
        fit(W, parse_chain("polar"), IDENTITY).moved,
        torch.linalg.vector_norm(QR().map(W) - W) / torch.linalg.vector_norm(W),
    )
    assert fit(W, parse_chain("qr"), IDENTITY).moved == pytest.approx(near, rel=1e-9)
    assert own > 1.2 * near
