"""Decompositions that are shared, and proofs that take the place of some."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from paramcli.chain import parse_chain
from paramcli.errors import CheckFailed
from paramcli.fitting import measure
from paramcli.fitting.fit import fit
from paramcli.maths import decompositions
from paramcli.maths.decompositions import SMALL, even_singular_values, shared, svd
from paramcli.maths.eigenvalues import surely_positive
from paramcli.maths.norm import UnitSpectralNorm
from paramcli.maths.spectral import perron, perron_vector
from paramcli.registry import constraint as make
from paramcli.view import IDENTITY

from .members import rotation, unit_determinant, with_values

N = SMALL + 8


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Calls(TorchDispatchMode):
    """Counts the decompositions of large matrices."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").removeprefix("_").removeprefix("linalg_").partition(".")[0]
        if name in ("svd", "eigh", "eig") and min(args[0].shape[-2:]) > SMALL:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("chain", "name", "most"),
    [
        ("low_rank:rank=2", "svd", 2),
        ("fixed_rank:rank=2", "svd", 2),
        ("almost_orthogonal", "svd", 2),
        ("invertible", "svd", 2),
        ("sln", "svd", 2),
        ("factored:rank=2", "svd", 2),
        ("rank_one", "svd", 2),
        ("spectral_norm", "eigh", 2),
        ("psd", "eigh", 2),
        ("spd", "eigh", 2),
        ("psd_fixed_rank:rank=2", "eigh", 2),
        ("alpha_stable", "eig", 1),
    ],
)
def test_a_fit_decomposes_the_weight_once_and_the_value_once(chain, name, most):
    """Measuring the weight, its nearest point and the right inverse there share one; what is stored is measured."""
    with Calls() as calls:
        fitted = fit(randn(N, N).float(), parse_chain(chain), IDENTITY)
    assert fitted.check is None or fitted.check.ok
    assert 0 < calls.counts[name] <= most, calls.counts


@pytest.mark.parametrize("chain", ["stiefel", "skew,cayley", "spectral_norm", "toeplitz"])
def test_a_weight_that_is_surely_off_is_not_measured(chain, monkeypatch):
    """A bound tells that it has to move; --init strict measures it all the same, and says how far it is off."""
    seen = []
    wanted = type(make(parse_chain(chain).constraint))
    real = wanted.parts
    monkeypatch.setattr(wanted, "parts", lambda self, W, *kinds: seen.append(W) or real(self, W, *kinds))
    fit(randn(12, 12), parse_chain(chain), IDENTITY)
    assert len(seen) == 1
    with pytest.raises(CheckFailed, match="residual"):
        fit(randn(12, 12), parse_chain(chain), IDENTITY, init="strict")
    assert len(seen) > 2


def test_nothing_is_kept_beyond_the_fit_nor_of_small_matrices():
    """Outside `shared` every call computes, and within it so does one for a matrix that may be stacked."""
    W, small = randn(N, N), randn(SMALL, SMALL)
    with Calls() as calls, shared():
        assert svd(W)[1] is svd(W)[1] and svd(W.view(N, N))[1] is svd(W)[1]
        assert svd(small)[1] is not svd(small)[1]
        assert svd(W.mT.contiguous())[1] is not svd(W)[1]
    assert calls.counts["svd"] == 2
    assert svd(W)[1] is not svd(W)[1]
    assert decompositions._SHARED.get() is None


@pytest.mark.parametrize("n", [3, 40, 200])
def test_what_is_surely_positive_is(n):
    """Eigenvalues above rounding are, and none where one is zero or below, or hidden by an error of that size."""
    up = torch.linspace(1, 2, n, dtype=torch.float64)
    assert surely_positive(with_values(n, up, 0))
    for least in (0.0, -1e-17, -1e-3):
        assert not surely_positive(with_values(n, torch.cat([torch.tensor([least]), up[1:]]), 1))
    assert not surely_positive(with_values(n, up, 0), 1.01)
    assert not surely_positive(torch.zeros(n, n, dtype=torch.float64))


@pytest.mark.parametrize("n", [20, 200])
def test_a_stable_matrix_is_told_from_one_that_is_not(n):
    """By its symmetric part where that is enough, and by its eigenvalues where it is not: near-misses too."""
    far = torch.triu(10 * randn(n, n), 1) - torch.eye(n, dtype=torch.float64)
    for A in (with_values(n, torch.linspace(-3, -1, n, dtype=torch.float64), 0), far):
        assert measure.check("hurwitz:alpha=0.5", A).residual == 0.0
    nearly = with_values(n, torch.linspace(-3, -0.499, n, dtype=torch.float64), 0)
    assert not measure.check("hurwitz:alpha=0.5", nearly).ok
    assert measure.check("hurwitz:alpha=0.499", nearly - 1e-12 * torch.eye(n)).ok
    turned = 0.9 * rotation(n, 0)
    assert measure.check("schur_stable:gamma=0.91", turned).residual == 0.0
    assert not measure.check("schur_stable:gamma=0.899", turned).ok


@pytest.mark.parametrize("k", [140, 300])
def test_the_largest_eigenvalue_of_a_positive_matrix_lies_between_two_bounds(k):
    """As torch's eigenvalues have it, with s the eigenvector; where powers do not tell, nothing is said."""
    A = (randn(400, k).mT @ randn(400, k)).abs()
    A = A + A.mT
    rho, s = perron(A)
    torch.testing.assert_close(rho, torch.linalg.eigvalsh(A)[-1], rtol=1e-13, atol=0)
    torch.testing.assert_close(A @ s, rho * s, rtol=1e-13, atol=0)
    Q = rotation(k, 0).float().double()
    assert perron((Q.mT @ Q).abs()) is None and perron(A[:8, :8]) is None
    pair = torch.stack([A, A + 1])
    both = perron(pair)
    for one, rho_, s_ in zip(pair, *both, strict=True):
        torch.testing.assert_close((rho_, s_), perron(one), rtol=1e-14, atol=0)
    zeros = torch.block_diag(A, torch.zeros(2, 2, dtype=A.dtype))
    assert perron(zeros) is None and perron_vector(zeros)[-1] == 0


@pytest.mark.parametrize("shape", [(N, N), (2 * N, N), (N, 2 * N)])
@pytest.mark.parametrize(
    "chain", ["low_rank:rank=3", "fixed_rank:rank=3", "almost_orthogonal:lam=0.3", "factored:rank=3"]
)
def test_the_value_of_a_large_fit_is_the_nearest_point(chain, shape):
    """Tall and wide: what is stored stands for the projection that torch's SVD gives."""
    W = randn(*shape)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    kept = S.clamp(0.7, 1.3) if "almost" in chain else torch.where(torch.arange(len(S)) < 3, S, 0)
    fitted = fit(W, parse_chain(chain), IDENTITY)
    assert (fitted.value - (U * kept) @ Vh).norm() <= 1e-11 * W.norm()
    assert make(fitted.check.constraint).residual(fitted.value) <= 1e-12


@pytest.mark.parametrize("spread", [1.05, 5.0, 50.0, 1e9])
def test_singular_values_by_the_gram_matrix_are_those_of_torch(spread):
    """Where all are of one size; of others they are torch's own."""
    for shape in ((N, N), (N + 40, N), (N, N + 40)):
        S = torch.linspace(spread, 1, N, dtype=torch.float64)
        W = 1e-9 * (rotation(shape[0], 0)[:, :N] * S) @ rotation(shape[1], 1)[:N]
        torch.testing.assert_close(even_singular_values(W), torch.linalg.svdvals(W), rtol=1e-13 * N, atol=0)


def test_a_determinant_is_told_by_the_inverse_as_by_singular_values():
    """Of large matrices: the residual, that of the wrong sign, and a rank that rounding hides."""
    W = unit_determinant(N, 0)
    larger = 1.001 * W
    U, S, Vh = torch.linalg.svd(larger)
    wanted = S.log().sum() / torch.linalg.matrix_norm(((U / S) @ Vh) * larger)
    found = measure.check("special_linear", larger)
    assert not found.ok and found.residual == pytest.approx(wanted.item(), rel=1e-9)
    assert measure.check("special_linear", W).ok and measure.check("special_linear", W.bfloat16()).ok
    mirrored = torch.cat([-W[:1], W[1:]])
    assert measure.check("special_linear", mirrored).residual == 1.0
    thin = torch.cat([torch.full((N - 1,), 1e-5 ** (-1 / (N - 1)), dtype=torch.float64), torch.tensor([1e-5]).double()])
    thin = (rotation(N, 0) * thin) @ rotation(N, 1)
    assert measure.check("special_linear", thin).ok and not measure.check("special_linear", thin.bfloat16()).ok


@pytest.mark.parametrize("dim", [0, 1])
def test_a_small_point_of_several_is_decomposed_once(dim, monkeypatch):
    """Made one by one from its own decomposition, it is found in its place in the stack, and as no other matrix' there:
    its transpose lies in the same memory.
    """
    calls = []
    real = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda *arguments, **named: calls.append(1) or real(*arguments, **named))
    weights = torch.randn(3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with decompositions.shared():
        points = decompositions.stacked([UnitSpectralNorm(dim).project(W) for W in weights])
        calls.clear()
        for point in points:
            U, S, Vh = decompositions.svd(point)
            assert torch.allclose(U * S @ Vh, point)
            U, S, Vh = decompositions.svd(point.mT)
            assert torch.allclose(U * S @ Vh, point.mT)
    assert len(calls) == (3 if dim == 0 else 6)
