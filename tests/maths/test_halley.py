"""The polar factor by products, against torch's SVD."""

import pytest
import torch

from paramcli.errors import InputRefused
from paramcli.maths import nearest_orthogonal
from paramcli.maths.halley import polar_by_products

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
    Q, sure = polar_by_products(W)
    assert sure.all()
    torch.testing.assert_close(Q, factor(W), rtol=0, atol=1e-10)
    error = Q.mH @ Q - torch.eye(shape[-1], dtype=dtype)
    assert torch.linalg.matrix_norm(error).max() <= 4e-15 * shape[-1] ** 0.5 * 8


def test_nothing_is_claimed_of_what_has_nearly_no_rank():
    """Singular values down to 1e-4 are enough; a zero one, one of 1e-7, NaN, and the zero matrix are not."""
    n = 40
    U, V, S = rotation(n, 0), rotation(n, 1), torch.ones(n, dtype=torch.float64)
    small = torch.stack([U * torch.cat([S[1:], least * S[:1]]) @ V for least in (1e-4, 1e-7, 1e-9, 0.0)])
    both = torch.cat([small, 0 * small[:1], small[:1] + float("nan")])
    assert polar_by_products(both)[1].tolist() == [True, False, False, False, False, False]


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
