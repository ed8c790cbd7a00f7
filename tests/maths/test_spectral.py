"""Spectral bounds, AOL layers and learned spectral norms, with torch's SVD as the oracle."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.fitting import measure
from paramcli.fitting.fit import fit
from paramcli.fitting.originals import evaluate
from paramcli.fitting.torch_module import bare, load, register
from paramcli.maths import decompositions
from paramcli.maths.norm import SpectralNorm, UnitSpectralNorm, WeightNorm
from paramcli.maths.numbers import compute_dtype
from paramcli.maths.spectral import AlmostOrthogonal, CutSingularValues
from paramcli.view import IDENTITY

from .members import rotation


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (2, 3, 3)])
def test_cut_singular_values_has_its_derivative(shape):
    """gradcheck of U min(S, c) V^T for square, tall, wide and batched X, cut and kept values mixed."""
    X = randn(*shape).requires_grad_()
    c = torch.linalg.svdvals(X.detach()).mean().item()
    assert torch.autograd.gradcheck(lambda X: CutSingularValues.apply(X, c), X)


def test_cutting_equal_singular_values_has_a_derivative():
    """At an orthogonal matrix, where the derivative of an SVD is 0 / 0: gradcheck above and below the bound."""
    for scale in (2.0, 0.5):
        Q = (scale * rotation(4, 0)).requires_grad_()
        assert torch.autograd.gradcheck(lambda X: CutSingularValues.apply(X, 1.0), Q)


def test_spectral_cap_starts_from_the_nearest_point():
    """Singular values above c are cut, as torch's SVD says; training then scales the whole matrix."""
    X = randn(5, 4)
    U, S, Vh = torch.linalg.svd(X, full_matrices=False)
    fitted = fit(X, parse_chain("spectral_cap:c=1.5"), IDENTITY)
    torch.testing.assert_close(fitted.value, (U * S.clamp(max=1.5)) @ Vh)
    scaled = register(bare(X), "weight", parse_chain("spectral_cap:c=1.5")).weight.detach()
    torch.testing.assert_close(scaled, X * 1.5 / S[0])


def test_a_zero_matrix_is_within_every_cap_and_has_a_gradient():
    """The bound is no division by zero."""
    host = register(bare(torch.zeros(3, 3)), "weight", parse_chain("spectral_cap")).requires_grad_()
    host.weight.sum().backward()
    assert torch.equal(host.parametrizations.weight.original.grad, torch.ones(3, 3))


def test_schur_stability_is_about_eigenvalues():
    """A matrix of norm 2 and spectral radius 0.45 is stable; its singular values alone would not tell."""
    A = torch.tensor([[0.0, 2.0], [0.1, 0.0]])
    assert measure.check("schur_stable", A).ok and not measure.check("spectral_cap", A).ok
    assert not measure.check("schur_stable", torch.tensor([[0.0, 2.0], [0.6, 0.0]])).ok


def test_schur_stable_values_shrink_every_vector():
    """Powers of the value die out, though the weight's grow."""
    W = 2 * randn(6, 6)
    A = fit(W, parse_chain("schur_stable:gamma=0.9"), IDENTITY).value
    assert torch.linalg.matrix_norm(torch.linalg.matrix_power(A, 50), 2) <= 0.9**50 * 1.001
    assert measure.check("schur_stable:gamma=0.9", A).ok


@pytest.mark.parametrize("shape", [(8, 4), (5, 5), (4, 8), (1, 6)])
def test_aol_bounds_the_norm_and_a_fit_keeps_proportions(shape):
    """Any X gives sigma <= 1; a fit gives a multiple of the weight, where starting from X = W would not."""
    W = randn(*shape)
    for seed in range(5):
        assert torch.linalg.matrix_norm(AlmostOrthogonal().map(randn(*shape, seed=seed)), 2) <= 1 + 1e-12
    fitted = fit(W, parse_chain("aol"), IDENTITY)
    rho = torch.linalg.eigvalsh((W.mT @ W).abs())[-1]
    torch.testing.assert_close(fitted.value, W / rho.sqrt())
    plain = AlmostOrthogonal().map(W)
    assert torch.linalg.vector_norm(plain / W - (plain / W).mean()) > 1e-3


def test_aol_keeps_orthonormal_columns():
    """|Q^T Q| = I falls apart into single columns; each weighs the same."""
    Q = rotation(6, 0)[:, :4]
    assert fit(Q, parse_chain("aol"), IDENTITY).moved < 1e-12
    blocks = torch.block_diag(randn(4, 2), randn(3, 2))
    blocks = torch.cat([blocks[:, :2] / aol_norm(blocks[:, :2]), blocks[:, 2:] / aol_norm(blocks[:, 2:])], 1)
    assert fit(blocks, parse_chain("aol"), IDENTITY).moved < 1e-9


def aol_norm(W):
    return torch.linalg.eigvalsh((W.mT @ W).abs())[-1].sqrt()


@pytest.mark.parametrize("columns", [[1.0, 0.5], [1.0, 0.0]])
def test_aol_refuses_columns_it_cannot_weigh(columns):
    """A column orthogonal to the longer ones always comes out with length 1."""
    with pytest.raises(InputRefused, match="column 1"):
        fit(torch.diag(torch.tensor(columns)), parse_chain("aol"), IDENTITY)


def test_sigma_reparam_holds_the_norm_it_stores():
    """original0 is the exact spectral norm, and scaling it scales the weight."""
    W = randn(6, 4)
    state = dict(fit(W, parse_chain("sigma_reparam"), IDENTITY).state)
    torch.testing.assert_close(state["original0"], torch.linalg.svdvals(W)[0])
    state["original0"] = 2 * state["original0"]
    torch.testing.assert_close(evaluate(parse_chain("sigma_reparam"), IDENTITY, W.shape, state, W.dtype), 2 * W)


def test_a_live_sigma_reparam_starts_from_the_weight():
    """In training mode too, where u and v take a power step."""
    layer = nn.Linear(5, 7, bias=False)
    W = layer.weight.detach().clone()
    register(layer, "weight", parse_chain("sigma_reparam"), seed=0)
    assert measure.moved(layer.weight.detach(), W) < 0.01


def radio_state(W, scale, version):
    """The tensors that NVIDIA's RADIO code stores, with u and v the exact singular vectors."""
    U, _, Vh = torch.linalg.svd(W)
    return {
        "original": W,
        "0.scale": torch.full((1, 1), scale),
        "0._u": U[:, 0].contiguous(),
        "0._v": Vh[0].contiguous(),
        "0._sn_version": torch.tensor(version),
    }


@pytest.mark.parametrize("version", [1, 2])
def test_radio_checkpoints_evaluate_by_their_law(version):
    """W (softplus(scale) + 0.05) / (sigma + 1e-6), or W scale / (sigma + 1e-6) for version 1."""
    W = randn(4, 3).float()
    sigma = torch.linalg.svdvals(W)[0] + 1e-6
    top = torch.tensor(1.7) if version == 1 else F.softplus(torch.tensor(1.7)) + 0.05
    got = evaluate(parse_chain("spectral_reparam"), IDENTITY, W.shape, radio_state(W, 1.7, version), torch.float32)
    torch.testing.assert_close(got, W * top / sigma, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("version", [1, 2])
def test_a_live_radio_weight_can_be_assigned(version, dtype):
    """Its scale is set for the new value, by the law that is stored."""
    state = {
        role: T.to(dtype) if T.is_floating_point() else T for role, T in radio_state(randn(4, 3), 1.7, version).items()
    }
    host = load(parse_chain("spectral_reparam"), IDENTITY, (4, 3), state)
    Y = randn(4, 3, seed=5).to(dtype)
    with torch.no_grad():
        host.weight = Y
    assert host.parametrizations.weight[0]._sn_version == version and host.weight.dtype == dtype
    torch.testing.assert_close(host.weight, Y, rtol=8 * torch.finfo(dtype).eps, atol=0)
    if version == 2:
        with pytest.raises(InputRefused, match=r"spectral norms above 0\.05"), torch.no_grad():
            host.weight = 0.01 * Y


def test_spectral_reparam_has_a_least_norm():
    """softplus + alpha never goes below alpha."""
    with pytest.raises(InputRefused, match=r"spectral norms above 0\.05"):
        fit(0.01 * torch.eye(3), parse_chain("spectral_reparam"), IDENTITY)


def value_and_norm(X: torch.Tensor, u: torch.Tensor) -> tuple[SpectralNorm, torch.Tensor, float]:
    """The module with this u and the v of its next half step, the value in double precision, and its largest singular
    value.
    """
    part = SpectralNorm(X)
    part._u, part._v = u, torch.nn.functional.normalize(X.mT @ u, dim=0)
    value = part.eval().map(X).double()
    return part, value, torch.linalg.svdvals(value)[0].item()


@pytest.mark.parametrize("shape", [(8, 8), (40, 40), (64, 9), (9, 64)], ids=str)
def test_no_norm_lies_above_what_u_promises(shape):
    """Where u has a ninth of its square on the largest direction, or more, sigma_max - 1 is within the promise, if
    there is one.
    """
    promised = 0
    for seed in range(200):
        g = torch.Generator().manual_seed(seed)
        X = torch.randn(shape, generator=g, dtype=torch.float64)
        U, S, _ = torch.linalg.svd(X, full_matrices=False)
        rest = torch.nn.functional.normalize(
            U[:, 1:] @ (torch.randn(len(S) - 1, generator=g, dtype=torch.float64) * S[1:] ** (seed % 40)), dim=0
        )
        share = 1 / 9 + 8 / 9 * torch.rand((), generator=g, dtype=torch.float64)
        part, value, sigma = value_and_norm(X, share.sqrt() * U[:, 0] + (1 - share).sqrt() * rest)
        slack = part.slack(UnitSpectralNorm(), value)
        promised += slack > 0
        assert slack == 0 or -1e-12 <= sigma - 1 <= slack <= 0.25
    assert promised > 20


@pytest.mark.parametrize("n", [8, 64, 256])
def test_torchs_own_registration_is_promised(n):
    """15 steps from a random u leave more than rounding and mostly no more than they promise; other u and v promise
    nothing.
    """
    within = beyond = 0
    count = 200 if n < 256 else 20
    for seed in range(count):
        torch.manual_seed(seed)
        X = torch.randn(n, n)
        part = SpectralNorm(X)
        value = part.eval().map(X)
        part.stored_dtype, image, off = (
            torch.float32,
            UnitSpectralNorm(),
            torch.linalg.svdvals(value.double())[0].item() - 1,
        )
        rounding = image.tolerance(value.shape, torch.float32, torch.float32)
        beyond += off > rounding
        within += off <= rounding + part.slack(image, value.double())
        part._u = torch.nn.functional.normalize(torch.randn(n), dim=0)
        assert part.slack(image, value.double()) == 0
    assert within >= 0.9 * count and beyond > 0.3 * count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_own_tolerances_are_those_of_rounding(dtype):
    """Lengths of u and v and of weight norm's slices: a few times what rounding leaves, and a thousandth is off in
    float32.
    """
    torch.manual_seed(0)
    for n in (8, 64, 512):
        X = torch.randn(n, n, dtype=torch.float64)
        U, _, Vh = torch.linalg.svd(X)
        part = SpectralNorm(X)
        part.stored_dtype, part._u, part._v = dtype, U[:, 0].to(dtype), Vh[0].to(dtype)
        assert part.checks((X,), X)[0].ok
        part._u = (part._u.double() * (1 + max(1e-3, 4 * torch.finfo(dtype).eps))).to(torch.float64)
        assert not part.checks((X,), X)[0].ok
        wide = compute_dtype(dtype)
        norm, (g, v) = WeightNorm(), (X.norm(dim=1, keepdim=True).to(dtype), X.to(dtype))
        W = norm.map(g.to(wide), v.to(wide)).to(dtype).double()
        norm.stored_dtype = dtype
        assert norm.checks((g.double(), v.double()), W)[0].ok
        W[n // 2] *= 1 + max(1e-3, 4 * torch.finfo(dtype).eps)
        assert not norm.checks((g.double(), v.double()), W)[0].ok


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("within", [0.0, 0.03])
@pytest.mark.parametrize("size", [1e-30, 1e-4, 0.4, 1.01, 3.0, 60.0, 70.0, 1e5])
@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9), (1, 5), (5, 1), (4, 3, 3), (3,)])
def test_singular_values_are_cut_by_the_gram_matrix_as_by_torchs_svd(shape, size, within, dtype):
    """U min(S, 1 + within) V^H, the largest raised to 1; and u and v are its first singular vectors."""
    W = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    M = W.flatten(1) if W.ndim > 1 else W[:, None]
    W = size * W / torch.linalg.matrix_norm(M, 2)
    U, S, Vh = torch.linalg.svd(W.flatten(1) if W.ndim > 1 else W[:, None], full_matrices=False)
    S = S.clamp(max=1 + within)
    S[0] = S[0].clamp(min=1)
    wanted = ((U * S) @ Vh).reshape(W.shape)
    with decompositions.shared():
        found, assumed = UnitSpectralNorm(within=within).nearest(W, torch.float32)
        u, v = decompositions.first_pair(found.flatten(1) if W.ndim > 1 else found[:, None])
    assert assumed is None
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    P = found.flatten(1) if W.ndim > 1 else found[:, None]
    for vector, image in ((v, P @ v), (u, P.mH @ u)):
        assert abs(torch.linalg.vector_norm(vector).item() - 1) < 1e-14
        assert abs(torch.linalg.vector_norm(image).item() - S[0].item()) < 1e-12
    torch.testing.assert_close(torch.vdot(u, P @ v), S[0].to(dtype), rtol=0, atol=1e-12)


def test_a_weight_in_double_precision_is_cut_by_its_own_singular_vectors(monkeypatch):
    """To eps: of the Gram matrix they are known to eps sigma_max / sigma."""
    monkeypatch.setattr(torch.linalg, "eigh", None)
    UnitSpectralNorm().nearest(3 * randn(5, 5), torch.float64)
    with pytest.raises(TypeError):
        UnitSpectralNorm().nearest(3 * randn(5, 5), torch.float32)
