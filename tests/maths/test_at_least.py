"""Cheap bounds of residuals, and cheap looks at a part, never say more than the residual itself."""

from __future__ import annotations

import pytest
import torch

from paramcli.errors import InputRefused
from paramcli.maths.base import first_of_batch
from paramcli.maths.surely import evenly_spread
from paramcli.registry import CONSTRAINTS, constraint

SHAPES = [(9,), (12, 12), (40, 30), (130, 200), (200, 130), (6, 40, 30)]


def tensors(made, shape):
    """A member, some around it, and random ones, very small and very large ones too."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    yield from (noise, noise * 1e-160, noise * 1e160, noise.round(), noise.tril() if len(shape) > 1 else noise.abs())
    try:
        W = made.sample(torch.Size(shape), generator)
    except (InputRefused, NotImplementedError):
        return
    if W.is_floating_point():
        size = torch.linalg.vector_norm(W)
        yield from (W.double() + share * size * noise / torch.linalg.vector_norm(noise) for share in (0, 0.01, 0.1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [name for name, entry in CONSTRAINTS.items() if entry.real])
def test_a_bound_is_no_larger_than_the_residual(name, shape):
    """`at_least(W)` is at most the residual of W's worst matrix, for every set of the table."""
    try:
        made = constraint(name)
        made.check_shape(torch.Size(shape))
    except Exception:  # it has arguments without defaults, or is no set of such tensors
        pytest.skip("no set of this shape")
    for W in tensors(made, shape):
        # Beyond the range of squares a residual may be NaN, which is near nothing.
        assert not made.at_least(W) > made.residual(W).max().item() * (1 + 1e-6) + 1e-12


MIRRORED = {"symmetric", "skew", "hermitian", "skew_hermitian", "positive_definite", "hermitian_positive_definite"}


@pytest.mark.parametrize("shape", [(12, 12), (300, 300), (6, 40, 40)])
@pytest.mark.parametrize("name", [name for name, entry in CONSTRAINTS.items() if entry.complex])
def test_a_bound_of_a_complex_tensor_is_no_larger_than_the_residual(name, shape):
    """The same of complex matrices, mirrored ones with and without conjugation; and the first rows of a random one tell
    it from those.
    """
    try:
        made = constraint(name)
    except Exception:  # it has arguments without defaults
        pytest.skip("no set without arguments")
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    mirrored = (noise + noise.mT, noise - noise.mT, noise + noise.mH, noise - noise.mH, noise @ noise.mH)
    for W in (noise, *mirrored, *(W + 0.01 * noise for W in mirrored)):
        assert not made.at_least(W) > made.residual(W).max().item() * (1 + 1e-6) + 1e-12
    assert name not in MIRRORED or made.at_least(noise) > 0.05


@pytest.mark.parametrize("shape", [(8, 8), (40, 30), (30, 200), (3, 50, 7)])
def test_singular_values_that_are_evenly_spread_are_so(shape):
    """Where it says so the smallest is more than the share of the largest, and it says so of a wide Gaussian."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(shape, generator=generator, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    for last in (0.5, 0.2, 0.07, 0.051, 0.0499, 0.01, 0.0):
        made = (U * torch.linspace(1, last, S.size(-1), dtype=torch.float64)) @ Vh
        assert last > 0.05 or not evenly_spread(made, 0.05)
    if max(shape[-2:]) > 5 * min(shape[-2:]):  # Marchenko and Pastur: s_n / s_1 is above 0.38
        assert evenly_spread(W, 0.05)


def test_the_first_of_a_batch_is_a_batch():
    """Of any number of dimensions the first matrix, of two or fewer all."""
    for shape, first in (((5,), (5,)), ((4, 5), (4, 5)), ((3, 4, 5), (1, 4, 5)), ((2, 3, 4, 5), (1, 1, 4, 5))):
        assert first_of_batch(torch.zeros(shape)).shape == first
