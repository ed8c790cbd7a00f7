"""The polar factor by products, against torch's SVD."""

import pytest
import torch

from paramcli.errors import InputRefused
from paramcli.maths import nearest_orthogonal
from paramcli.maths.halley import polar_by_products
from paramcli.maths.smallest import smallest

from .members import rotation


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def factor(W):
    U, _, Vh = torch.linalg.svd(W, full_matrices=False)
    return U @ Vh


@pytest.fixture
def by_products(monkeypatch):
    """As on a GPU, for matrices of any size."""
    monkeypatch.setattr(nearest_orthogonal, "_by_products", lambda W: True)
    return monkeypatch


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(60, 60), (200, 200), (90, 40), (3, 30, 20), (5, 5), (1, 1), (2, 1)])
@pytest.mark.parametrize("size", [1e-8, 1.0, 1e12])
def test_it_is_the_factor_of_the_svd(shape, dtype, size):
    """Real and complex, square and tall, of entries of any size."""
    W = size * randn(*shape, dtype=dtype)
    Q, H, sure = polar_by_products(W)
    assert sure.all()
    torch.testing.assert_close(Q, factor(W), rtol=0, atol=1e-10)
    torch.testing.assert_close(Q @ H, W, rtol=0, atol=1e-12 * size * shape[-2])
    error = Q.mH @ Q - torch.eye(shape[-1], dtype=dtype)
    assert torch.linalg.matrix_norm(error).max() <= 4e-15 * shape[-1] ** 0.5 * 8


def test_nothing_is_claimed_of_what_has_nearly_no_rank():
    """Singular values down to 1e-4 are enough; a zero one, one of 1e-7, NaN, and the zero matrix are not."""
    n = 40
    U, V, S = rotation(n, 0), rotation(n, 1), torch.ones(n, dtype=torch.float64)
    small = torch.stack([U * torch.cat([S[1:], least * S[:1]]) @ V for least in (1e-4, 1e-7, 1e-9, 0.0)])
    both = torch.cat([small, 0 * small[:1], small[:1] + float("nan")])
    assert polar_by_products(both)[2].tolist() == [True, False, False, False, False, False]


@pytest.mark.parametrize("shape", [(30, 30), (40, 20), (20, 40), (4, 24, 24)])
@pytest.mark.parametrize("rotation", [False, True])
def test_the_nearest_orthogonal_matrix_is_the_same_by_either_way(shape, rotation, by_products):
    """Wide ones too; and a nearest rotation whose determinant has to be turned is the SVD's."""
    if rotation and shape[-1] != shape[-2]:
        return
    W = randn(*shape)
    got = nearest_orthogonal.polar(W, rotation)[0]
    by_products.undo()
    torch.testing.assert_close(got, nearest_orthogonal.polar(W, rotation)[0], rtol=0, atol=1e-11)


def test_rank_deficient_matrices_are_refused_by_either_way(by_products):
    """And with the same words."""
    W = randn(30, 5) @ randn(5, 30, seed=1)
    with pytest.raises(InputRefused, match="rank-deficient") as by_this:
        nearest_orthogonal.polar(W)
    by_products.undo()
    with pytest.raises(InputRefused) as by_that:
        nearest_orthogonal.polar(W)
    assert str(by_this.value) == str(by_that.value)


def planted(n, values, seed=0):
    """A random matrix whose smallest singular values are these."""
    U, S, Vh = torch.linalg.svd(randn(n, n, seed=seed))
    S[-len(values) :] = torch.tensor(sorted(values, reverse=True), dtype=torch.float64) * S[0]
    return (U * S) @ Vh


N = 160
SMALLEST = {
    "random": lambda seed: randn(N, N, seed=seed),
    "tall": lambda seed: randn(N + 30, N, seed=seed),
    "one small": lambda seed: planted(N, [1e-5], seed),
    "two that are equal": lambda seed: planted(N, [2e-5, 2e-5], seed),
    "five small": lambda seed: planted(N, [1e-5, 1e-5, 3e-5, 1e-4, 1e-4], seed),
    "rank 40, rounded": lambda seed: randn(N, 40, seed=seed) @ randn(40, N, seed=seed + 9),
    "rank N - 1, rounded": lambda seed: randn(N, N - 1, seed=seed) @ randn(N - 1, N, seed=seed + 9),
    "rank N - 3, rounded": lambda seed: randn(N, N - 3, seed=seed) @ randn(N - 3, N, seed=seed + 9),
    "tall, rank N - 2, rounded": lambda seed: randn(3 * N, N - 2, seed=seed) @ randn(N - 2, N, seed=seed + 9),
    "nearly orthogonal": lambda seed: torch.linalg.qr(randn(N, N, seed=seed)).Q + 0.02 * randn(N, N, seed=seed + 1),
}


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rotation", [False, True])
@pytest.mark.parametrize("kind", SMALLEST)
def test_it_says_what_the_svd_says(kind, rotation, stored, by_products):
    """The same point of every stored dtype and either determinant, the same refusals, the same assumptions."""

    def told(W):
        try:
            return nearest_orthogonal.polar(W, rotation, stored)
        except InputRefused as error:
            return None, str(error)

    for seed in range(6):
        W = SMALLEST[kind](seed).to(stored).double()
        if rotation and W.size(0) != W.size(1):
            continue
        by_products.setattr(nearest_orthogonal, "_by_products", lambda W: True)
        point, said = told(W)
        by_products.setattr(nearest_orthogonal, "_by_products", lambda W: False)
        wanted, meant = told(W)
        assert said == meant
        if wanted is not None:
            least = torch.linalg.svdvals(W)[-2:].sum().item() / torch.linalg.matrix_norm(W, 2).item()
            torch.testing.assert_close(point, wanted, rtol=0, atol=1e-13 / least + 1e-12)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_random_matrix_needs_no_svd(stored, by_products):
    """Of either determinant, and of a half type where not two of its directions may be lost."""
    by_products.setattr(torch.linalg, "svd", None)
    for seed in range(8):
        Q, _ = nearest_orthogonal.polar(randn(N, N, seed=seed).to(stored).double(), rotation=True, stored=stored)
        assert torch.linalg.slogdet(Q).sign > 0
        assert torch.linalg.matrix_norm(Q.T @ Q - torch.eye(N, dtype=torch.float64)) < 1e-12


def test_all_singular_values_below_a_number_are_found_or_none():
    """And their vectors to rounding; more of them than columns are not looked for."""
    for values, below in (([1e-5, 1e-5, 1e-4], 1e-3), ([1e-5] * 3, 1e-4), ([], 1e-9), ([1e-3] * 70, 1e-2)):
        W = planted(N, values) if values else randn(N, N)
        Q, H, _ = polar_by_products(W[None])
        size = torch.linalg.matrix_norm(W, 2).item()
        found = smallest(Q[0], H[0], below * size, least=1)
        S = torch.linalg.svdvals(W).flip(0)
        count = max(int((below * size > S).sum()), 1)
        if count >= 64:
            assert found is None
            continue
        assert found is not None and len(found.S) == count
        torch.testing.assert_close(found.S, S[:count], rtol=0, atol=1e-12 * size)
        torch.testing.assert_close(W @ found.V, found.U * found.S, rtol=0, atol=1e-12 * size)
        torch.testing.assert_close(W.T @ found.U, found.V * found.S, rtol=0, atol=1e-12 * size)
