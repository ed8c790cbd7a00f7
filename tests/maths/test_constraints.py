"""Laws that every constraint of the table keeps."""

import pytest
import torch

from paramcli import measure
from paramcli.registry import CONSTRAINTS, within
from paramcli.registry import constraint as make

from .members import SPECS, members, near_misses

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
NAMES = sorted(CONSTRAINTS)


def spec(name: str) -> str:
    return SPECS.get(name, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_members_rounded_to_storage_are_accepted(name, dtype):
    """A member computed in float64 and rounded once to its storage dtype is within the tolerance."""
    for seed in range(5):
        check = measure.check(spec(name), members(name, seed).to(dtype))
        assert check.ok, check


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_near_misses_are_rejected(name, dtype):
    """What is close to the set and not in it is rejected in every dtype, bfloat16 included."""
    for label, tensor in near_misses(name).items():
        assert not measure.check(spec(name), tensor.to(dtype)).ok, label


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("any", "positive_determinant")])
def test_projection_lands_in_the_set_and_is_idempotent(name):
    """project(X) lies in the set, and projecting again changes nothing."""
    for seed in range(5):
        X = torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        P = make(spec(name)).project(X)
        assert measure.check(spec(name), P).ok
        assert measure.moved(make(spec(name)).project(P), P) < 1e-12


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("any", "positive_determinant", "positive_definite")])
def test_no_random_member_is_nearer_than_the_projection(name):
    """The projection is the nearest point: no member found at random, or near it, is closer."""
    X = torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    P = make(spec(name)).project(X)
    best = torch.linalg.vector_norm(P - X)
    for seed in range(200):
        assert torch.linalg.vector_norm(members(name, seed) - X) >= best - 1e-12
        nudge = 1e-2 * torch.randn(6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        other = make(spec(name)).project(P + nudge)
        assert torch.linalg.vector_norm(other - X) >= best - 1e-12


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


@pytest.mark.parametrize("name", NAMES)
def test_inclusions_of_the_table_are_true(name):
    """A member of a set is a member of every set the table says contains it."""
    for other in CONSTRAINTS:
        if within(name, other):
            assert measure.check(spec(other), members(name)).ok or other == "any"


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("sparse", "any", "unit_spectral_norm")])
def test_a_batch_measures_as_its_matrices(name):
    """The residual of a batch is the residual of each of its matrices."""
    batch = torch.stack([members(name, 0), members(name, 1) * 1.3])
    wanted = torch.stack([make(name).residual(W) for W in batch])
    torch.testing.assert_close(make(name).residual(batch), wanted, rtol=1e-9, atol=1e-14)


def test_a_single_wrong_row_of_a_large_matrix_is_seen():
    """One row of a 512 x 512 rotation times 1.05 fails in bfloat16, where the mean error would hide it."""
    from .members import rotation

    Q = rotation(512, 0)
    assert measure.check("orthogonal", Q.bfloat16()).ok
    Q[100] *= 1.05
    assert not measure.check("orthogonal", Q.bfloat16()).ok
