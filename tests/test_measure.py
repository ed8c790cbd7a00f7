"""Measurements that every command shares."""

import itertools

import pytest
import torch

from paramcli.fitting import measure

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
)
BAD = (float("nan"), float("inf"), float("-inf"))


@pytest.mark.parametrize("dtype, bad, place", list(itertools.product(DTYPES, BAD, (0, 7, -1))))
def test_one_bad_entry_is_seen_wherever_it_is(dtype, bad, place):
    """NaN and both infinities, in every floating dtype, as torch.isfinite sees them; without it the tensor
    is finite.
    """
    W = torch.linspace(-1, 1, 40).to(dtype)
    assert measure.all_finite(W)
    W[place] = bad
    assert not measure.all_finite(W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_finite_entries_of_an_infinite_sum_are_finite(dtype):
    """Infinities of both signs are not, whose sum is NaN."""
    W = torch.full((40,), torch.finfo(dtype).max, dtype=dtype)
    assert measure.all_finite(W) and measure.all_finite(-W)
    W[3], W[7] = float("inf"), -float("inf")
    assert not measure.all_finite(W)


def test_an_imaginary_part_a_conjugate_and_no_entry_are_looked_at_too():
    """Complex tensors are finite where both parts are; an empty tensor and integers always."""
    W = torch.ones(3, 3, dtype=torch.complex64)
    assert measure.all_finite(W.mH)
    W[1, 2] = complex(0, float("nan"))
    assert not measure.all_finite(W) and not measure.all_finite(W.mH)
    assert measure.all_finite(torch.ones(0)) and measure.all_finite(torch.ones(3, dtype=torch.int64))


@pytest.mark.parametrize("size", [1, 1000, 3 * measure.BLOCK + 5])
def test_moved_is_the_relative_distance_whatever_the_size(size):
    """In blocks or at once: numpy's norms of the same values; equal is 0, and away from zero is infinitely far."""
    import numpy as np

    generator = torch.Generator().manual_seed(size)
    a, b = (torch.randn(size, generator=generator) for _ in range(2))
    x, y = a.double().numpy(), b.double().numpy()
    assert measure.moved(a, b) == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(y), rel=1e-12)
    assert measure.moved(a, a) == 0 and measure.moved(a, torch.zeros(size)) == float("inf")


def test_moved_of_several_is_that_of_each_alone():
    """One call for a stack, equal tensors and zeros among them; and one tensor in parts of any size, to the bit."""
    generator = torch.Generator().manual_seed(0)
    after, before = (torch.randn(4, 30, 20, generator=generator) for _ in range(2))
    after[1], before[2] = before[1], 0
    found = measure.moved_of_each(after, before)
    assert found == pytest.approx([measure.moved(a, b) for a, b in zip(after, before, strict=True)], rel=1e-14)
    assert found[1] == 0 and found[2] == float("inf")
    a, b = (torch.randn(2 * measure.BLOCK + 7, generator=generator) for _ in range(2))
    parted = measure.Moved()
    for first in range(0, len(a), 100_003):
        parted.add(a[first : first + 100_003], b[first : first + 100_003])
    assert parted.result() == [measure.moved(a, b)]


@pytest.mark.parametrize("spec", ["orthogonal", "spectral_cap"])
def test_several_are_measured_as_each_alone(spec):
    """Of a stack each tensor has its own check; a NaN in one of them, which LAPACK refuses, leaves the others' be."""
    shape, dtype = torch.Size((4, 3, 6, 6)), torch.float32
    W = torch.linalg.qr(torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q.to(dtype)
    W[1, 2] *= 1.5
    W[3, 0, 0, 0] = float("nan")
    measured = measure.Measured(spec, shape, dtype, dtype, count=4)
    measured.add(W)
    assert not measured.finite
    for check, one in zip(measured.result(), W, strict=True):
        alone = measure.check(spec, one)
        assert check.ok == alone.ok and check.tolerance == alone.tolerance
        assert check.residual == pytest.approx(alone.residual, rel=1e-6, abs=1e-12, nan_ok=True)
    assert [check.ok for check in measured.result()] == [True, False, True, False]
