"""Dtypes: conversions of our own give torch's bits."""

import pytest
import torch

from paramcli.maths.numbers import from_float8, norm
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
