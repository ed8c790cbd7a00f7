"""Norms, sums and standardized slices against torch's own functions."""

import pytest
import torch
from torch.nn import functional as F

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.fitting import measure
from paramcli.fitting.fit import fit
from paramcli.fitting.torch_module import bare, register
from paramcli.maths.moments import rounded_to_sum
from paramcli.registry import constraint as make
from paramcli.view import IDENTITY, parse_view


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_unit_norm_is_torchs_normalize():
    """Along any dimension, and over the whole tensor."""
    X = randn(4, 3, 5)
    for dim in (-1, 1, 0):
        torch.testing.assert_close(fit(X, parse_chain(f"unit_norm:dim={dim}"), IDENTITY).value, F.normalize(X, dim=dim))
    torch.testing.assert_close(fit(X, parse_chain("unit_norm:dim=none"), IDENTITY).value, X / X.norm())


def test_max_norm_is_torchs_renorm():
    """torch.renorm cuts the slices of a dimension; here the vectors along one."""
    X = randn(6, 4)
    torch.testing.assert_close(
        fit(X, parse_chain("max_norm:c=1.5"), IDENTITY).value, torch.renorm(X, 2, 0, 1.5), rtol=1e-6, atol=1e-6
    )


def test_weight_std_is_batch_norm_of_each_filter():
    """Implementations run batch norm over each output's entries."""
    X = randn(5, 3, 2, 2)
    wanted = F.batch_norm(X.reshape(1, 5, -1), None, None, training=True, eps=1e-30).reshape(X.shape)
    torch.testing.assert_close(fit(X, parse_chain("weight_std"), IDENTITY).value, wanted)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_a_large_mean_does_not_spoil_the_sum(offset):
    """In float32 the first mean of large entries is rounded to their size; the sum still comes out."""
    X = (randn(3, 1000) + offset).float()
    W = register(bare(X), "weight", parse_chain("centered")).weight.detach()
    assert measure.check("sum_to", W).ok


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("chain", "dim", "c"),
    [("centered", -1, 0), ("sum_to:c=2", -1, 2), ("sum_to:dim=0:c=-2", 0, -2), ("sum_to:dim=none:c=1", (0, 1), 1)],
)
def test_sums_of_half_types_come_out(dtype, chain, dim, c):
    """Numbers of few digits less their mean are all rounded one way: rows of 4096 are off by ten times eps. Entries are
    rounded to one of their two neighbours, so that the sum is off by a step of one of them at most, where it would be
    off by more than eps.
    """
    X = randn(96, 4096).to(dtype)
    fitted = fit(X, parse_chain(chain), IDENTITY)
    n, eps = X.numel() / X.double().sum(dim).numel(), torch.finfo(dtype).eps
    point = X.double() - X.double().mean(dim, keepdim=True) + c / n
    assert fitted.check.ok and measure.check(fitted.check.constraint, fitted.value).ok
    assert not torch.equal(fitted.state["original"], X) and "rounded the other way" in fitted.note
    value, one_step = fitted.value.double(), eps * point.abs().amax(dim, keepdim=True)
    # The map takes what is left of the sum from all entries alike, and small ones show it.
    assert ((value - point).abs() <= 1.01 * eps * point.abs() + one_step / n + 1e-6).all()
    assert ((value.sum(dim, keepdim=True) - c).abs() <= one_step + eps * point.norm(dim=dim, keepdim=True)).all()
    assert measure.moved(value, point) < eps / 2


def test_entries_are_rounded_the_other_way_where_it_costs_least():
    """By hand: steps of 1/128 above 1. Five entries are 0.3 of a step above their grid, and lose 1.5 steps together
    when rounded: one of them is rounded up, the one that was nearest to it.
    """
    step = 2.0**-7
    X = torch.tensor(
        [[1 + 0.3 * step, 1 + 0.3 * step, 1 + 0.4 * step, 1 + 0.3 * step, 1 + 0.2 * step]], dtype=torch.float64
    )
    assert rounded_to_sum(X, -1, X.sum().item(), torch.bfloat16).tolist() == [[1.0, 1.0, 1 + step, 1.0, 1.0]]


def test_projections_keep_the_weight_underneath():
    """--no-bake gives back what was there: the original is the weight itself."""
    X = randn(4, 6)
    for chain in ("unit_norm", "mp_norm", "max_norm", "centered", "weight_std", "schur_stable:gamma=0.5"):
        W = X[:, :4].contiguous() if "schur" in chain else X
        assert torch.equal(fit(W, parse_chain(chain), IDENTITY).state["original"], W)


@pytest.mark.parametrize(
    ("chain", "row", "message"),
    [
        ("unit_norm", [0.0, 0.0], "slice 1 of 3 is zero"),
        ("mp_norm", [0.0, 0.0], "slice 1 of 3 is zero"),
        ("weight_std", [0.1, 0.1], "slice 1 of 3 is constant"),
    ],
)
def test_what_has_no_direction_is_refused(chain, row, message):
    """A zero row (a constant one for weight_std) is named, not turned into NaN."""
    W = torch.randn(3, 2)
    W[1] = torch.tensor(row)
    with pytest.raises(InputRefused, match=message):
        fit(W, parse_chain(chain), IDENTITY)


def test_slices_of_single_entries_have_no_deviation():
    """A bias has nothing to standardize."""
    with pytest.raises(InputRefused, match="single ones"):
        make("standardized").check_shape(torch.Size((8,)))


def test_a_zero_vector_stays_in_the_ball_with_a_gradient():
    """tanh(x) / x is 1 at 0: the map there is the identity."""
    host = register(bare(torch.zeros(2, 3)), "weight", parse_chain("ball")).requires_grad_()
    host.weight.sum().backward()
    assert torch.equal(host.weight.detach(), torch.zeros(2, 3))
    assert torch.equal(host.parametrizations.weight.original.grad, torch.ones(2, 3))


def test_a_trained_ball_that_saturates_is_kept():
    """Norms that round to 1 in bfloat16 are members by rounding, and a second fit hardly moves them."""
    X = 20 * randn(4, 3)
    W = register(bare(X), "weight", parse_chain("ball")).weight.detach().bfloat16()
    assert measure.check("ball", W).ok
    again = fit(W, parse_chain("ball"), IDENTITY)
    assert again.check.ok and again.moved < 0.01


def test_failed_checks_say_which_slice():
    """The detail names the worst slice and its number."""
    W = torch.eye(4)
    W[2] *= 2
    assert "norm 2 in slice 2 of 4" in measure.check("unit_norm", W).detail
    assert "sum 2 in slice 2 of 4" in measure.check("sum_to:c=1", W).detail


def test_units_are_noticed():
    """Unit rows, unit columns, centered rows and standardized rows are suggested; a random matrix suggests nothing."""
    from paramcli.maths.bounded import UnitNorm, UnitRms
    from paramcli.maths.moments import Standardized, SumTo

    X = randn(20, 30)
    assert [c.dim for c in UnitNorm.candidates(F.normalize(X, dim=0), X.dtype)] == [-2]
    assert [c.dim for c in SumTo.candidates(X - X.mean(-1, keepdim=True), X.dtype)] == [-1]
    assert Standardized.candidates(make("standardized").project(X), X.dtype) and UnitRms.candidates(
        make("unit_rms").project(X), X.dtype
    )
    assert not any(kind.candidates(X, X.dtype) for kind in (UnitNorm, UnitRms, SumTo, Standardized))


def test_conv_filters_by_the_flattened_view():
    """unit_norm under --view flatten gives every filter of a convolution norm 1."""
    W = fit(randn(4, 3, 2, 2), parse_chain("unit_norm"), parse_view("flatten")).value
    torch.testing.assert_close(W.flatten(1).norm(dim=1), torch.ones(4, dtype=torch.float64))
