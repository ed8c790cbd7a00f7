"""Facts about single constraints that the laws do not cover."""

import pytest
import torch

from paramcli.fitting import measure
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
        U, _, Vh = torch.linalg.svd(X)
        D = torch.eye(5, dtype=torch.float64)
        D[-1, -1] = torch.sign(torch.linalg.det(U @ Vh))
        torch.testing.assert_close(make("special_orthogonal").project(X), U @ D @ Vh, rtol=1e-12, atol=1e-12)


def test_a_single_wrong_row_of_a_large_matrix_is_seen():
    """One row of a 512 x 512 rotation times 1.05 fails in bfloat16, where the mean error would hide it."""
    Q = rotation(512, 0)
    assert measure.check("orthogonal", Q.bfloat16()).ok
    Q[100] *= 1.05
    assert not measure.check("orthogonal", Q.bfloat16()).ok


def computed_by_torch(n: int, dtype: torch.dtype, scale: float) -> dict[str, torch.Tensor]:
    """Orthogonal matrices as torch's own functions compute them in this dtype, from random originals of a 1-norm."""
    X = torch.randn(n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).triu(1)
    A = (X - X.T) * (scale / (X - X.T).abs().sum(0).max())
    A, I = A.to(dtype), torch.eye(n, dtype=dtype)
    made = {
        "cayley": torch.linalg.solve(I - A, I + A),
        "matrix_exp": torch.matrix_exp(A),
        "qr": torch.linalg.qr(I + A).Q,
    }
    for name in ("matrix_exp", "cayley", "householder"):
        layer = torch.nn.Linear(n, n, dtype=dtype)
        layer.weight.data.copy_(A)
        made[f"orthogonal {name}"] = torch.nn.utils.parametrizations.orthogonal(
            layer, orthogonal_map=name
        ).weight.detach()
    return made


@pytest.mark.parametrize("n", [2, 3, 16, 100, pytest.param(1024, marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_what_torch_computes_is_accepted_and_near_misses_of_it_are_not(dtype, n):
    """In the dtype itself and rounded to half types; 0.049 and 0.57 are where torch's matrix_exp is least exact."""
    for scale in (1e-3, 0.049, 0.57, 3.0, 30.0):
        for name, Q in computed_by_torch(n, dtype, scale).items():
            for stored in (dtype, torch.float16, torch.bfloat16):
                W = Q.to(stored)
                found = measure.check("orthogonal", W)
                assert found.ok, (name, scale, stored, found)
                row = W.clone()
                row[n // 2] *= 1.05
                assert not any(measure.check("orthogonal", off).ok for off in (1.05 * W, 0 * W, row)), (
                    name,
                    scale,
                    stored,
                )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_few_entries_of_a_half_type_sum_to_what_rounding_explains(dtype):
    """Members that are rounded hold; entries three steps from one do not, though their length would allow it."""
    for n in (2, 3, 8, 40):
        for c in (0.0, 1.0, -3.0):
            X = torch.randn(6, n, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
            X = X - X.mean(1, keepdim=True) + c / n
            assert measure.check(f"sum_to:c={c}", X.to(dtype)).ok
    step = torch.finfo(dtype).eps / 2
    assert measure.check("sum_to:c=1.0", torch.full((1, 2), 0.5, dtype=dtype)).ok
    assert not measure.check("sum_to:c=1.0", torch.full((1, 2), 0.5 + 3 * step, dtype=dtype)).ok
