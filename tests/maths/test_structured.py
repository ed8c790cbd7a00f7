"""Structured matrices: agreement with torch's own functions, exact places, shared diagonals, factors and what they
cannot reach.
"""

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.fitting import measure
from paramcli.fitting.fit import fit
from paramcli.fitting.originals import evaluate
from paramcli.fitting.torch_module import require_fit
from paramcli.maths.factors import kronecker_product, nearest_kronecker
from paramcli.maths.structured import BandedMatrices, BlockDiagonalMatrices, DiagonalMatrices, LowerTriangularMatrices
from paramcli.maths.toeplitz import CirculantMatrices, ToeplitzMatrices
from paramcli.registry import constraint
from paramcli.view import IDENTITY, parse_view

SHAPES = [(4, 4), (3, 5), (5, 3), (1, 6), (2, 4, 3)]


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triangles_are_torchs(shape):
    """lower_triangular is torch.tril and upper_triangular torch.triu, bit for bit, and the weight stays underneath."""
    X = random(*shape)
    for chain, function in (("lower_triangular", torch.tril), ("upper_triangular", torch.triu)):
        fitted = fit(X, parse_chain(chain), IDENTITY)
        assert torch.equal(fitted.value, function(X)) and torch.equal(fitted.state["original"], X)


def test_a_unit_diagonal_is_exactly_one_and_softplus_keeps_tiny_numbers():
    """Ones are exact whatever was there; a positive diagonal from 1e-30 to 1e6 comes back to rounding."""
    assert torch.equal(
        fit(random(5, 5) * 1e20, parse_chain("lower_triangular:diag=unit"), IDENTITY).value.diagonal(),
        torch.ones(5, dtype=torch.float64),
    )
    D = torch.tensor([1e-30, 1e-9, 0.3, 25.0, 1e6], dtype=torch.float64)
    W = random(5, 5).tril(-1) + torch.diag(D)
    value = fit(W, parse_chain("lower_triangular:diag=softplus"), IDENTITY).value
    torch.testing.assert_close(value.diagonal(), D, rtol=1e-12, atol=0)
    assert torch.equal(value.tril(-1), W.tril(-1))


def test_a_diagonal_that_is_not_positive_is_raised_and_the_rest_kept():
    """Only entries at or below zero move, to 0.001 of the largest entry; a zero matrix has no scale and is refused."""
    W = torch.tensor([[1e-7, 0.0], [4.0, -2.0]], dtype=torch.float64)
    P = constraint("lower_triangular:diag=positive").project(W)
    assert torch.equal(P, torch.tensor([[1e-7, 0.0], [4.0, 0.004]], dtype=torch.float64))
    with pytest.raises(InputRefused, match="zero matrix"):
        constraint("lower_triangular:diag=positive").project(torch.zeros(2, 2))


def test_block_diagonal_is_a_grouped_convolution():
    """W x equals torch's convolution of kernel size 1 in g groups with the blocks as its weights."""
    W = fit(random(6, 4), parse_chain("block_diagonal:g=2"), IDENTITY).value
    blocks = torch.cat([W[:3, :2], W[3:, 2:]]).unsqueeze(-1)
    x = random(1, 4, 1, seed=1)
    torch.testing.assert_close(torch.nn.functional.conv1d(x, blocks, groups=2).flatten(), W @ x.flatten())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_toeplitz_is_the_mean_of_each_diagonal(shape):
    """Entry (i, j) is the mean of torch.diagonal at offset j - i."""
    X = random(*shape)
    T = ToeplitzMatrices().project(X)
    for i in range(shape[-2]):
        for j in range(shape[-1]):
            torch.testing.assert_close(T[..., i, j], X.diagonal(j - i, -2, -1).mean(-1))


def test_a_circulant_matrix_is_diagonal_in_the_fourier_basis():
    """F C F^-1 is diagonal for the unitary Fourier matrix F, and the nearest circulant keeps the diagonal
    of F X F^-1.
    """
    X = random(6, 6).to(torch.complex128)
    F = torch.fft.fft(torch.eye(6, dtype=torch.complex128), norm="ortho")
    C = CirculantMatrices().project(X)
    spectrum = F @ C @ F.mH
    assert torch.linalg.vector_norm(spectrum - torch.diag(spectrum.diagonal())) < 1e-12
    torch.testing.assert_close(spectrum.diagonal(), (F @ X @ F.mH).diagonal(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_kronecker_products_are_torchs(dtype):
    """A kron B is torch.kron, batched; its nearest Kronecker product is itself, with factors of equal norm."""
    A, B = random(2, 3, dtype=dtype), random(4, 2, dtype=dtype, seed=1)
    W = kronecker_product(A, B)
    torch.testing.assert_close(W, torch.kron(A, B))
    A2, B2 = nearest_kronecker(W, 2, 3)
    torch.testing.assert_close(kronecker_product(A2, B2), W, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.linalg.vector_norm(A2), torch.linalg.vector_norm(B2))
    largest = A2.flatten()[A2.abs().argmax()]
    torch.testing.assert_close(largest, largest.abs().to(dtype), rtol=1e-12, atol=1e-12)


def test_the_zero_matrix_is_a_product_of_zeros():
    """Zero is a Kronecker product and of low rank; no NaN comes from its empty directions."""
    for chain in ("kronecker:p=2:q=2", "factored:rank=2", "rank_one", "svd_vals"):
        fitted = fit(torch.zeros(4, 4), parse_chain(chain), IDENTITY)
        assert torch.equal(fitted.value, torch.zeros(4, 4)), chain


def test_rank_one_has_the_tensors_of_torchs_documentation():
    """The RankOne class of torch's documentation loads the fitted originals and gives the same weight."""

    class RankOne(torch.nn.Module):
        def forward(self, x, y):
            return x.unsqueeze(-1) @ y.unsqueeze(-2)

        def right_inverse(self, Z):
            U, S, Vh = torch.linalg.svd(Z, full_matrices=False)
            s0_sqrt = S[0].sqrt().unsqueeze(-1)
            return U[..., :, 0] * s0_sqrt, Vh[..., 0, :] * s0_sqrt

    layer = torch.nn.Linear(5, 3, bias=False)
    fitted = fit(layer.weight.detach().clone(), parse_chain("rank_one"), IDENTITY)
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", RankOne())
    torch.testing.assert_close(layer.weight.detach(), fitted.value)
    layer.load_state_dict({f"parametrizations.weight.{role}": t for role, t in fitted.state.items()}, strict=True)
    assert torch.equal(layer.weight.detach(), fitted.value)


def test_factors_make_a_smaller_file_under_a_view():
    """A convolution seen flat becomes two matrices; the value has the stored shape and the truncated SVD's rank."""
    W = random(8, 4, 3, 3)
    fitted = fit(W, parse_chain("factored:rank=2"), parse_view("flatten"))
    assert {role: tuple(t.shape) for role, t in fitted.state.items()} == {"original0": (8, 2), "original1": (2, 36)}
    U, S, Vh = torch.linalg.svd(W.flatten(1), full_matrices=False)
    torch.testing.assert_close(fitted.value, ((U[:, :2] * S[:2]) @ Vh[:2]).reshape(W.shape), rtol=1e-12, atol=1e-12)


def test_frozen_directions_stay_and_singular_values_scale():
    """Doubling s doubles the weight; in bfloat16 U and V are stored in bfloat16 and checked to be orthonormal."""
    W = random(4, 6, dtype=torch.float32)
    chain = parse_chain("svd_vals")
    state = dict(fit(W, chain, IDENTITY).state)
    torch.testing.assert_close(state["original"], torch.linalg.svdvals(W))
    state["original"] = 2 * state["original"]
    torch.testing.assert_close(evaluate(chain, IDENTITY, (4, 6), state, torch.float32), 2 * W)
    assert {t.dtype for t in fit(W.bfloat16(), chain, IDENTITY).state.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("chain", "shape", "match"),
    [
        ("block_diagonal:g=3", (6, 4), "divide by 3"),
        ("kronecker:p=2:q=3", (4, 4), "columns that divide by 3"),
        ("factored:rank=5", (4, 8), "no restriction"),
        ("circulant", (4, 8), "square"),
        ("diagonal", (4,), "needs a matrix"),
        ("toeplitz", (4,), "needs a matrix"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_from_the_header(chain, shape, match):
    """The message names the number that does not fit."""
    with pytest.raises(InputRefused, match=match):
        require_fit(parse_chain(chain), IDENTITY, shape, torch.float32)


def test_a_look_at_a_tensor_suggests_its_structure():
    """candidates names the band, the blocks and the diagonal that hold every entry, and they hold."""
    W = random(8, 8)
    for made, wanted in (
        (W.tril().triu(-2), [BandedMatrices(2), LowerTriangularMatrices()]),
        (torch.block_diag(W[:2, :2], W[:2, 2:4], W[:2, 4:6], W[:2, 6:]), [BlockDiagonalMatrices(4), BandedMatrices(1)]),
        (torch.diag(W[0]), [DiagonalMatrices()]),
        (W.tril(-1) + torch.eye(8), [LowerTriangularMatrices("unit")]),
    ):
        for one in wanted:
            assert any(vars(c) == vars(one) for c in type(one).candidates(made, made.dtype)), one.name
            assert one.residual(made) == 0
    assert not BandedMatrices.candidates(W, W.dtype) and not BlockDiagonalMatrices.candidates(W, W.dtype)


def test_zero_is_the_tolerance_of_zeros():
    """One tiny entry off the pattern is found, in bfloat16 too, and counted."""
    W = random(6, 6).tril().bfloat16()
    assert measure.check("lower_triangular", W).ok
    W[0, 5] = 1e-6
    check = measure.check("lower_triangular", W)
    assert not check.ok and "1 entries outside" in check.detail
