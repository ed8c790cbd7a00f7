"""Every set and map on CUDA against the CPU, over the examples of tests/maths/test_laws.py.

The two add the same numbers in another order. With sides of up to 8 that is some 8 roundings in each of a few steps, so
values agree to 64 eps of what they are computed or stored in; more is another value.
"""

import math

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.fitting import measure
from paramcli.fitting.fit import fit
from paramcli.fitting.originals import evaluate
from paramcli.maths.norm import WeightNorm
from paramcli.maths.numbers import eps
from paramcli.registry import constraint as make
from paramcli.view import IDENTITY

from ..maths.test_laws import (
    CHAINS,
    MAPS,
    SETS,
    SPECS,
    double,
    dtypes_of,
    dtypes_of_set,
    last_class,
    member,
    weight,
    weight_near,
)
from . import DEVICE, NEEDS_GPU

pytestmark = NEEDS_GPU
ROUNDINGS = 64
# The nearest point of some sets is made of eigenvectors or found by steps: gaps between eigenvalues, some hundredths
# for sides of up to 8, and the last step widen an error.
WIDENED = 64


def outcome(work, *arguments, **options) -> tuple[object, type | None]:
    """(what the work gives, None), or (None, the kind of error it is refused with)."""
    try:
        return work(*arguments, **options), None
    except InputRefused as error:
        return None, type(error)


def shapes_of(name: str, table: list) -> list[tuple[int, ...]]:
    return [shape for text, shape in table if text == name]


@pytest.mark.parametrize("spec", SPECS)
def test_a_tensor_measures_as_on_the_cpu(spec):
    """Members and near-misses, in every dtype: the verdict is the CPU's and so is the residual, which is never
    negative.
    """
    for shape in shapes_of(spec, SETS):
        for dtype in dtypes_of_set(spec):
            W = member(spec, shape, 0, double(dtype))
            for label, tensor in {"member": W, **make(spec).near_misses(W)}.items():
                here, there = measure.check(spec, tensor.to(dtype)), measure.check(spec, tensor.to(dtype).to(DEVICE))
                case = (shape, dtype, label, here, there)
                assert here.ok == there.ok and not there.residual < 0, case
                # Both are computed in double precision; near 0 the last digits are their own.
                slack = max(1e-13, here.tolerance / 100)
                assert (
                    math.isclose(here.residual, there.residual, rel_tol=1e-9, abs_tol=slack)
                    or here.residual != here.residual
                ), case


@pytest.mark.parametrize("spec", [spec for spec in SPECS if make(spec).projection != "none"])
def test_the_nearest_point_is_the_cpus(spec):
    """In double precision, for tensors in and off the set."""
    for shape in shapes_of(spec, SETS):
        for seed in range(2):
            X = weight_near(spec, shape, seed)
            (here, why), (there, why_there) = outcome(make(spec).project, X), outcome(make(spec).project, X.to(DEVICE))
            assert why == why_there, (shape, seed)
            if here is not None:
                assert there.device.type == DEVICE
                assert measure.moved(there.cpu(), here) <= ROUNDINGS * WIDENED * eps(here.dtype), (shape, seed)


@pytest.mark.parametrize("spec", SPECS)
def test_zeros_of_either_sign_are_never_better_than_a_member(spec):
    """The norm of negative zeros is -0.0 on CUDA, and what is divided by it must not become -inf."""
    for shape in shapes_of(spec, SETS):
        for dtype in dtypes_of_set(spec):
            for zero in (torch.zeros(shape, dtype=dtype), -torch.zeros(shape, dtype=dtype)):
                here, there = measure.check(spec, zero), measure.check(spec, zero.to(DEVICE))
                assert not there.residual < 0 and here.ok == there.ok, (shape, dtype, here, there)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_weight_is_fitted_and_baked_as_on_the_cpu(chain):
    """The value a weight is fitted to, and the value of what the CPU stored, agree with the CPU's; all that is stored
    lies on the device.
    """
    parsed = parse_chain(chain)
    for shape in shapes_of(chain, MAPS):
        for dtype in dtypes_of(chain):
            for seed in range(2):
                W, case = weight(chain, shape, seed, dtype), (shape, dtype, seed)
                (here, why), (there, why_there) = (
                    outcome(fit, W, parsed, IDENTITY),
                    outcome(fit, W.to(DEVICE), parsed, IDENTITY),
                )
                assert why == why_there, case
                if here is None:
                    continue
                assert {tensor.device.type for tensor in (there.value, *there.state.values())} == {DEVICE}, case
                assert there.check is None or (there.check.ok and there.check.residual >= 0), (case, there.check)
                if not last_class(chain).random:  # a device has random numbers of its own
                    assert measure.moved(there.value.cpu(), here.value) <= ROUNDINGS * eps(dtype), case
                baked = evaluate(
                    parsed, IDENTITY, shape, {role: tensor.to(DEVICE) for role, tensor in here.state.items()}, dtype
                )
                assert baked.device.type == DEVICE
                assert measure.moved(baked.cpu(), here.value) <= ROUNDINGS * eps(dtype), case


@pytest.mark.parametrize("chain", [chain for chain in CHAINS if last_class(chain).random])
def test_a_seed_gives_the_same_numbers_again(chain):
    """Random parts are a function of the seed on each device, and the caller's own random numbers go on undisturbed."""
    shape = shapes_of(chain, MAPS)[0]
    W = weight(chain, shape, 0, torch.float32).to(DEVICE)
    before = torch.cuda.get_rng_state()
    one, two, other = (fit(W, parse_chain(chain), IDENTITY, seed=seed).state for seed in (3, 3, 4))
    assert all(torch.equal(one[role], two[role]) for role in one)
    assert any(not torch.equal(one[role], other[role]) for role in one) or W.numel() < 8
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("dim", [0, 1, 2, None])
def test_weight_norm_is_right_in_double_precision(dim):
    """torch's kernel is off by 3e-8 there; in single precision the bits are torch's own."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(33, 20, 7, dtype=torch.float64, generator=generator)
    g = torch.randn(
        torch.norm_except_dim(v, 2, -1 if dim is None else dim).shape, dtype=torch.float64, generator=generator
    )
    others = None if dim is None else [d for d in range(3) if d != dim]
    exact = v * (g / torch.linalg.vector_norm(v, dim=others, keepdim=dim is not None))
    part = WeightNorm(dim)
    assert measure.moved(part.map(g.to(DEVICE), v.to(DEVICE)).cpu(), exact) <= 4 * eps(torch.float64)
    g, v = g.float().to(DEVICE), v.float().to(DEVICE)
    assert torch.equal(part.map(g, v), torch._weight_norm(v, g, part.dim))
