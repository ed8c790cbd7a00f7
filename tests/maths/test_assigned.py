"""What a live module's parametrization makes of a value that is assigned to it."""

import pytest
import torch
from torch import nn

import paramcli
from paramcli.chain import parse_chain
from paramcli.fitting.fit import fit
from paramcli.view import parse_view


def layer(n, chain, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    made = nn.Linear(n, n, bias=False).to(dtype)
    paramcli.register(made, "weight", chain)
    return made


@pytest.mark.parametrize("chain", ["so", "stiefel", "grassmannian", "sphere_exp:radius=2.5", "sln"])
def test_a_base_is_a_point_of_its_set(chain):
    """A value outside of it goes to the nearest point, as with torch's `orthogonal`: what is claimed holds."""
    made = layer(4, chain)
    value = torch.randn(4, 4)
    mirrored = torch.cat([-value[:1], value[1:]])  # the other sign of the determinant
    for outside in (value, mirrored):
        made.weight = outside
        assert paramcli.verify(made).ok


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_half_type_s_own_value_can_be_assigned(n):
    """A rotation that was rounded to bfloat16 is one still."""
    for seed in range(20):
        made = layer(n, "skew,matrix_exp", torch.bfloat16, seed)
        before = made.weight.detach().clone()
        made.weight = before
        torch.testing.assert_close(made.weight.detach(), before, rtol=0, atol=0.02)


def test_rows_that_are_saved_are_assigned_in_their_dtype():
    """In half types too."""
    made = layer(4, "saved_rows:count=1", torch.bfloat16)
    value = torch.randn(4, 4).bfloat16()
    made.weight = value
    assert torch.equal(made.weight.detach(), value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_soft_spectral_norm_s_own_value_can_be_assigned(dtype):
    """With u and v, which say how far the map shrinks it."""
    made = layer(6, "soft_spectral_norm:coeff=60:eps=1e-5", dtype)
    value = torch.randn(6, 6).to(dtype)
    made.weight = value
    torch.testing.assert_close(made.weight.detach(), value, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_singular_vectors_are_found_in_double_precision():
    """Live and raw: the frames hold to their own tolerance."""
    made = layer(64, "svd_vals")
    made.weight = torch.randn(64, 64)
    assert paramcli.verify(made).ok


def test_a_module_without_an_original_of_its_shape_is_saved(tmp_path):
    """Its view is of the weight, not of what stands for it."""
    made = nn.Module()
    made.weight = nn.Parameter(torch.randn(4, 3, 2, 2))
    paramcli.register(made, "weight", "svd_vals", "flatten")
    paramcli.save(made, tmp_path / "m.safetensors")
    assert paramcli.verify(made).ok and paramcli.verify(tmp_path / "m.safetensors").ok


@pytest.mark.parametrize("chain", ["prune_random:amount=3", "skew,matrix_exp"])
def test_a_module_is_made_within_a_default_device(chain):
    """What is drawn is drawn on the CPU, whatever new tensors are on."""
    made = nn.Module()
    made.weight = nn.Parameter(torch.randn(300, 300))
    with torch.device("meta"):
        paramcli.register(made, "weight", chain)
    assert made.weight.device.type == "cpu"


def test_a_slice_is_judged_by_its_own_size():
    """A matrix of a batch, and a row, far smaller than the others: what alone is taken is taken beside them."""
    A, W = torch.randn(4, 4, dtype=torch.float64), torch.randn(3, 8)
    W[1] *= 1e-13
    for chain, value in (("lu", torch.stack([A, A * 1e14])), ("weight_std", W)):
        torch.testing.assert_close(fit(value, parse_chain(chain), parse_view(None)).value, expected(chain, value))


def expected(chain, value):
    if chain == "lu":
        return value
    centred = value - value.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt()


@pytest.mark.parametrize("chain", ["skew,matrix_exp", "symmetric,matrix_exp"])
def test_heads_of_three_dimensions_have_exponentials(chain, tmp_path):
    """torch's own kernel takes no strides but those of matrices in a row."""
    W = torch.randn(3, 4, 8)
    fitted = fit(W, parse_chain(chain), parse_view("heads=2"))
    assert fitted.value.shape == W.shape and fitted.value.isfinite().all()
