"""Facts about single constraints that the laws do not cover."""

import torch

from paramcli import measure
from paramcli.registry import constraint as make

from .members import rotation


def test_positive_definite_projection_is_nearest_with_its_floor():
    """Against the closed set it projects to: eigenvalues of the symmetric part clipped at 1e-6 of the largest."""
    X = torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    P = make("positive_definite").project(X)
    values, V = torch.linalg.eigh((X + X.T) / 2)
    expected = V @ torch.diag(values.clamp(min=1e-6 * values.max().item())) @ V.T
    torch.testing.assert_close(P, expected, rtol=1e-12, atol=1e-12)


def test_nearest_rotation_flips_the_smallest_singular_direction():
    """For det < 0 the nearest rotation is U diag(1, ..., 1, -1) V^T, with an SVD of torch as the oracle."""
    for seed in range(20):
        X = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        U, S, Vh = torch.linalg.svd(X)
        D = torch.eye(5, dtype=torch.float64)
        D[-1, -1] = torch.sign(torch.linalg.det(U @ Vh))
        torch.testing.assert_close(make("special_orthogonal").project(X), U @ D @ Vh, rtol=1e-12, atol=1e-12)


def test_a_single_wrong_row_of_a_large_matrix_is_seen():
    """One row of a 512 x 512 rotation times 1.05 fails in bfloat16, where the mean error would hide it."""
    Q = rotation(512, 0)
    assert measure.check("orthogonal", Q.bfloat16()).ok
    Q[100] *= 1.05
    assert not measure.check("orthogonal", Q.bfloat16()).ok

