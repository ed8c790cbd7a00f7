"""Dtypes: conversions of our own give torch's bits."""

import pytest
import torch

from paramcli.maths.numbers import from_float8, norm, spectral_norm, times_adjoint
from paramcli.maths.packed import packed_octets

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("codes", FLOAT8)
def test_every_float_of_8_bits_is_what_torch_makes_of_it(codes, dtype):
    every = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(codes)
    for shown in (every, every.reshape(16, 16).T, every[::3], every[:0], every[56]):
        got, wanted = from_float8(shown, dtype), shown.to(dtype)
        assert got.dtype == dtype and got.shape == wanted.shape
        assert torch.equal(got.isnan(), wanted.isnan())
        number = ~wanted.isnan()
        assert torch.equal(got[number], wanted[number])
        assert torch.equal(torch.signbit(got[number]), torch.signbit(wanted[number]))


@pytest.mark.parametrize("size", [30.0, 1e-3])
def test_a_norm_of_halves_has_room(size):
    """1,024 entries of 30 are 960 long, and their squares sum to more than a half can be."""
    with torch.no_grad():
        assert norm(torch.full((1024,), size).half(), (0,)).item() == pytest.approx(32 * size, rel=2e-3)


def test_packing_leaves_its_codes_alone():
    codes = torch.arange(8, dtype=torch.int64)
    packed_octets(codes, 3)
    assert torch.equal(codes, torch.arange(8))


def test_rows_of_zeros_and_of_any_size_have_their_lengths():
    """Beside each other: a row whose squares leave the range of numbers takes the others' room from none."""
    rows = torch.tensor([[0, 0], [3, 4], [3e-200, 4e-200], [3e200, 4e200]], dtype=torch.float64)
    for chosen in ([0], [0, 1], [0, 1, 2], [0, 1, 2, 3]):
        wanted = torch.tensor([0, 5, 5e-200, 5e200], dtype=torch.float64)[chosen]
        with torch.no_grad():
            torch.testing.assert_close(norm(rows[chosen], (1,)), wanted, rtol=1e-15, atol=0)
            torch.testing.assert_close(norm(rows[chosen].T, (0,), keepdim=True), wanted[None], rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(383, 50), (384, 50), (500, 400), (3, 400, 5)])
def test_a_product_with_its_own_adjoint_is_made_by_halves(shape, dtype):
    """As torch's whole product."""
    M = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    with torch.no_grad():
        G = times_adjoint(M)
        torch.testing.assert_close(G, M @ M.mH, rtol=0, atol=1e-12 * shape[-1])


@pytest.mark.parametrize("shape", [(4, 5), (4, 8), (8, 4), (5, 4), (3, 6), (8, 8), (32, 48), (128, 128)])
def test_a_product_of_a_batch_has_the_bits_that_it_has_alone(shape):
    """With the adjoint as a view torch's kernels round those of 4 rows otherwise."""
    W = torch.randn(50, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        for tensors in (W, W.mH):
            together = times_adjoint(tensors)
            assert all(torch.equal(times_adjoint(one), together[index]) for index, one in enumerate(tensors))
        G = times_adjoint(W)
        assert all(spectral_norm(one).item() == spectral_norm(G)[index].item() for index, one in enumerate(G))
