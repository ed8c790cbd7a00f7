"""Near-misses at every size and in every dtype: what a mean over a matrix would hide, and what one bit tells."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from paramcli.fitting import measure

from .members import centered, correlation, flat, members, normal, rotation, rows_of, specs, symmetric

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SIZES = [8, 64, pytest.param(512, marks=pytest.mark.slow), pytest.param(1024, marks=pytest.mark.slow)]


def largest_at(W: Tensor) -> tuple[int, int]:
    """Row and column of the largest entry off the diagonal."""
    off = W.abs().clone().fill_diagonal_(0) if W.size(0) == W.size(1) else W.abs()
    return divmod(int(off.argmax()), W.size(1))


def row(W: Tensor) -> Tensor:
    off = W.clone()
    off[-1] *= 1.05
    return off


def entry(W: Tensor) -> Tensor:
    off = W.clone()
    off[0, -1] += 0.5 * W.abs().max()
    return off


def sign(W: Tensor) -> Tensor:
    off = W.clone()
    off[divmod(int(W.abs().argmax()), W.size(1))] *= -1
    return off


def sign_off_diagonal(W: Tensor) -> Tensor:
    off = W.clone()
    off[largest_at(W)] *= -1
    return off


LABELS = {
    "times 1.05": lambda W: 1.05 * W,
    "zero": lambda W: 0 * W,
    "a row times 1.05": row,
    "an entry": entry,
    "a sign": sign,
    "a sign off the diagonal": sign_off_diagonal,
    "flat": lambda W: W - W.mean(-1, keepdim=True),  # W (I - J / n), singular
    "negative": lambda W: -W,
    "shifted": lambda W: W + (0.6 + 0.1 * torch.linalg.matrix_norm(W, 2)) * torch.eye(*W.shape, dtype=W.dtype),
    "plus identity": lambda W: W + 0.3 * torch.linalg.matrix_norm(W, 2) * torch.eye(*W.shape, dtype=W.dtype),
}
FRAME = {"times 1.05", "zero", "a row times 1.05", "an entry", "a sign", "flat"}
ASYMMETRIC = {"a row times 1.05", "an entry", "a sign off the diagonal"}
# What is outside of each set of `members`. Not named: what is inside too, or what rounding to bfloat16 could have made.
MISSES = {
    "orthogonal": FRAME,
    "special_orthogonal": FRAME,
    "almost_orthogonal": {"zero", "flat", "a sign"},
    "positive_definite": ASYMMETRIC | {"zero", "negative"},
    "unit_spectral_norm": {"times 1.05", "zero"},
    "low_rank:rank={r}": {"an entry", "a sign", "plus identity"},
    "low_rank:rank=1": {"plus identity"},
    "fixed_rank:rank={r}": {"an entry", "a sign", "plus identity", "zero"},
    "fixed_rank:rank=1": {"plus identity", "zero"},
    "invertible": {"zero", "flat"},
    "special_linear": {"times 1.05", "zero", "a row times 1.05", "flat"},
    "psd": ASYMMETRIC | {"negative"},
    "psd_low_rank:rank={r}": ASYMMETRIC | {"negative", "plus identity"},
    "psd_fixed_rank:rank={r}": ASYMMETRIC | {"negative", "plus identity", "zero"},
    "hurwitz:alpha=0.5": {"negative", "zero", "shifted"},
    "schur_stable:gamma=0.9": {"times 1.05", "plus identity"},
    "unit_norm": {"times 1.05", "zero", "a row times 1.05"},
    "unit_rms": {"times 1.05", "zero", "a row times 1.05"},
    "max_norm": {"times 1.05", "a row times 1.05"},
    "ball": {"times 1.05", "a row times 1.05"},
    "sum_to": {"shifted"},
    "sum_to:c=3.0": {"zero", "negative"},
    "standardized": {"times 1.05", "zero", "a row times 1.05"},
    "spectral_cap": {"times 1.05", "a row times 1.05", "an entry"},
    "aol": {"times 1.05", "zero"},
    "simplex": {"times 1.05", "zero", "a row times 1.05", "negative"},
    "stochastic": {"times 1.05", "zero", "a row times 1.05", "negative"},
    "doubly_stochastic": {"times 1.05", "zero", "a row times 1.05", "negative"},
    "correlation": ASYMMETRIC | {"times 1.05", "zero", "negative"},
    "kronecker:p=2:q=2": {"an entry", "a row times 1.05", "a sign"},
}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("key", MISSES)
def test_members_hold_and_near_misses_do_not(key, n):
    """In every dtype: members made by others hold, errors that line up included; off by 5 %, an entry, a sign or flat
    they do not.
    """
    spec = specs(n)[key]
    for W in members(key, n, 1 if n > 64 else 3):
        for dtype in DTYPES:
            check = measure.check(spec, W.to(dtype))
            assert check.ok, (dtype, check)
            for label in MISSES[key]:
                off = measure.check(spec, LABELS[label](W).to(dtype))
                assert not off.ok, (dtype, label, off)


def test_every_set_has_its_members():
    """Each set whose law rounding does not keep exactly has members here, and near-misses."""
    from paramcli.registry import CONSTRAINTS, constraint

    exact = set()
    for name, entry in CONSTRAINTS.items():
        if not entry.real:
            continue  # complex ones have the laws of their real relatives
        made = constraint(next(iter(entry.examples), name))
        if made.tolerance(torch.Size((8, 8)), torch.float32, torch.float32) == 0:
            exact.add(name)
    assert {key.partition(":")[0] for key in MISSES} == {
        name for name, entry in CONSTRAINTS.items() if entry.real
    } - exact
    assert specs(8).keys() == MISSES.keys()


# --- sets that rounding keeps exactly ---------------------------------------------------------------------------------


def toeplitz(n: int) -> Tensor:
    i = torch.arange(n)
    return normal(1, 2 * n - 1, 0)[0][i[:, None] - i + n - 1]


def circulant(n: int) -> Tensor:
    i = torch.arange(n)
    return normal(1, n, 0)[0][(i[:, None] - i) % n]


def banded(n: int) -> Tensor:
    i = torch.arange(n)
    return normal(n, n, 0) * ((i[:, None] - i).abs() <= 1)


def ternary(n: int) -> Tensor:
    return 0.37 * normal(n, n, 0).mul(2).round().clamp(-1, 1)


EXACT = {
    "symmetric": lambda n: symmetric(normal(n, n, 0)),
    "skew": lambda n: (normal(n, n, 0) - normal(n, n, 0).T) / 2,
    "toeplitz": toeplitz,
    "circulant": circulant,
    "lower_triangular": lambda n: normal(n, n, 0).tril(),
    "lower_triangular:diag=unit": lambda n: normal(n, n, 0).tril(-1) + torch.eye(n, dtype=torch.float64),
    "upper_triangular": lambda n: normal(n, n, 0).triu(),
    "banded:b=1": banded,
    "diagonal": lambda n: normal(1, n, 0)[0].diag(),
    "block_diagonal:g=2": lambda n: torch.block_diag(normal(n // 2, n // 2, 0), normal(n // 2, n // 2, 1)),
    "ternary": ternary,
    "binary": lambda n: 0.37 * normal(n, n, 0).sign(),
}


def one_ulp(W: Tensor, at: tuple[int, int]) -> Tensor:
    """W with one entry the next number of its dtype (of a zero: the smallest)."""
    off = W.clone()
    bits = off.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[W.element_size()])
    bits[at] += 1
    return off


@pytest.mark.parametrize("n", [8, 64, 1024])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", EXACT)
def test_one_bit_is_told_where_rounding_keeps_the_law(spec, dtype, n):
    """The residual of a rounded member is exactly 0, and the next number in one place is off, as is a sign, whatever
    the size.
    """
    W = EXACT[spec](n).to(dtype)
    check = measure.check(spec, W)
    assert check.residual == 0 == check.tolerance, check
    place = next((1, j) for j in range(n - 1, 1, -1) if spec != "ternary" or W[1, j] != 0)
    if spec.startswith("upper"):
        place = place[::-1]
    off = measure.check(spec, one_ulp(W, place))
    assert not off.ok and off.residual > 0, off
    if spec in ("symmetric", "skew", "toeplitz", "circulant"):
        assert not measure.check(spec, row(W)).ok and not measure.check(spec, sign_off_diagonal(W)).ok


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_order_and_bounds_are_kept_by_rounding(dtype):
    """Sorted numbers stay sorted and bounded ones bounded, equal neighbours and rounded ends included; one step beyond
    is told.
    """
    rising = torch.rand(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort().values
    assert measure.check("increasing", rising.to(dtype)).residual == 0
    W = rising.to(dtype)
    steps = (W.diff() > 0).nonzero().flatten()
    at = int(steps[len(steps) // 2])
    W[at], W[at + 1] = W[at + 1].item(), W[at].item()
    assert not measure.check("increasing", W).ok
    for a, b in ((0.0, 1.0), (100.0, 101.0), (-0.3, 0.7)):
        spec = f"interval:a={a}:b={b}"
        inside = (a + (b - a) * rising).clamp(a + 1e-12, b - 1e-12).to(dtype)
        assert measure.check(spec, inside).residual == 0
        end = torch.tensor([b], dtype=torch.float64).to(dtype)
        beyond = torch.nextafter(end, torch.full_like(end, math.inf))
        assert measure.check(spec, end).ok and not measure.check(spec, torch.cat([inside, beyond])).ok
    assert measure.check("positive:floor=0.3", (0.3 + 1e-9 + rising).to(dtype)).ok
    assert not measure.check("positive", torch.cat([rising + 0.1, torch.zeros(1, dtype=torch.float64)]).to(dtype)).ok


# --- laws of one dimension, in tensors that are long in another -------------------------------------------------------

TALL = {
    "unit_norm": lambda n, k: normal(n, k, 0) / rows_of(normal(n, k, 0)),
    "max_norm": lambda n, k: normal(n, k, 0) / rows_of(normal(n, k, 0)),
    "simplex": lambda n, k: normal(n, k, 0).softmax(-1),
    "orthogonal": lambda n, k: torch.linalg.qr(normal(n, k, 0)).Q,
    "sum_to:c=2.0": lambda n, k: centered(flat(1, k, 1.0)[:1].expand(n, k) + 0.1 * normal(n, k, 0), 2.0),
    "spectral_cap": lambda n, k: torch.linalg.qr(normal(n, k, 0)).Q,
    "almost_orthogonal:lam=0.0": lambda n, k: torch.linalg.qr(normal(n, k, 0)).Q,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("spec", TALL)
def test_a_vocabulary_loosens_nothing(spec, dtype):
    """50257 rows of 8: members hold, and 1.05 of them, one row (or a column of the frame) of 1.05 do not; the same
    wide.
    """
    W = TALL[spec](50257, 8)
    frame = not spec.startswith(("unit_norm", "max_norm", "simplex", "sum_to"))
    for seen in (W, W.T.contiguous()) if frame else (W,):
        assert measure.check(spec, seen.to(dtype)).ok
        one = seen.clone()
        (one.T if frame and seen is W else one)[-1] *= 1.05
        for off in (1.05 * seen, one):
            check = measure.check(spec, off.to(dtype))
            assert not check.ok, check


@pytest.mark.parametrize("size", [1e-170, 1e-30, 1e30, 1e170])
def test_structure_does_not_depend_on_size(size):
    """Squares that vanish or overflow hide nothing: tensors of any size are symmetric, low in rank, centered, or are
    not.
    """
    X = normal(8, 8, 0) * size
    for spec in (
        "symmetric",
        "skew",
        "toeplitz",
        "circulant",
        "diagonal",
        "sum_to",
        "low_rank:rank=2",
        "kronecker:p=2:q=2",
        "psd",
        "unit_norm",
    ):
        assert not measure.check(spec, X).ok, spec
    low = rotation(8, 0)[:, :2] @ rotation(8, 1)[:2] * size
    for spec, W in (
        ("symmetric", X + X.T),
        ("skew", X - X.T),
        ("sum_to", X - X.mean(-1, keepdim=True)),
        ("low_rank:rank=2", low),
        ("psd", correlation(8, 0) * size),
    ):
        assert measure.check(spec, W).ok, spec
    assert measure.moved(2 * X, X) == pytest.approx(1.0)


def test_a_residual_below_zero_or_nan_never_holds():
    """Neither a sign nor a NaN passes for small."""
    from paramcli.maths.base import Check
    from paramcli.maths.numbers import ratio

    assert (
        not Check("any", -math.inf, 1.0).ok and not Check("any", -1e-9, 1.0).ok and not Check("any", math.nan, 1.0).ok
    )
    assert Check("any", -0.0, 0.0).ok
    made = ratio(torch.tensor([1.0, -1.0, 0.0, -0.0, 2.0]), torch.tensor([-0.0, 0.0, -0.0, 0.0, -4.0]))
    assert made.tolist() == [math.inf, math.inf, 0.0, 0.0, 0.5]
    zero = torch.full((8, 8), -0.0, dtype=torch.float64)
    assert not measure.check("hurwitz:alpha=0.5", zero).ok


# --- what a second reading found --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize(
    "spec",
    ["orthogonal", "almost_orthogonal", "unit_spectral_norm", "unit_norm", "positive_definite", "special_linear"],
)
def test_nothing_is_computed_in_eight_bits(spec, dtype):
    """Maps compute in float32 or wider, so a zero matrix in float8 is no more a member than in any other dtype."""
    for n in (8, 64):
        assert not measure.check(spec, torch.zeros(n, n).to(dtype)).ok


TRIANGULAR = {
    "two": torch.tensor([[0.5, 1000.0], [0.0, -1.0]], dtype=torch.float64),
    "jordan": 0.3 * torch.eye(8, dtype=torch.float64)
    + 100 * torch.eye(8, dtype=torch.float64).diag_embed().sum(0).roll(1, 1).triu(1),
    "random": (2 * normal(64, 64, 0).triu(1) - torch.eye(64, dtype=torch.float64)).diagonal_scatter(
        torch.full((64,), -1.0, dtype=torch.float64).index_fill(0, torch.tensor([63]), 0.1)
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TRIANGULAR)
def test_rounding_excuses_no_eigenvalue_of_a_triangular_matrix(name, dtype):
    """Its eigenvalues are its diagonal, which rounding changes by a share of itself, however large the rest is."""
    A = TRIANGULAR[name].to(dtype)
    assert A.diagonal().max() > 0 and not measure.check("hurwitz", A).ok
    assert not measure.check("schur_stable:gamma=0.25", A).ok
    assert measure.check("hurwitz", A - 2 * torch.eye(len(A), dtype=dtype)).ok


def test_zeros_round_to_nothing():
    """Entries that are exactly 0 lose nothing below the smallest number: a sum of 1.2 is not 1, however many zeros
    there are.
    """
    W = torch.zeros(2048, 2048, dtype=torch.float16)
    W[0, 0] = 1.2
    assert not measure.check("sum_to:dim=none:c=1", W).ok
    uniform = torch.full((4, 50257), 1 / 50257, dtype=torch.float64).half()
    assert measure.check("simplex", uniform).ok and abs(uniform.double().sum(1) - 1).max() > 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_matrices_of_two_numbers_are_members_still(dtype):
    """The errors of a I + b J line up, to twice those of one number: projections and reflections hold at every size."""
    for n in range(3, 130):
        I = torch.eye(n, dtype=torch.float64)
        reflection, projection = (I - 2 / n).to(dtype), (I - 1 / n).to(dtype)
        for spec, W in (
            ("spectral_cap", reflection),
            ("unit_spectral_norm", reflection),
            ("orthogonal", reflection),
            ("psd", projection),
            (f"low_rank:rank={n - 1}", projection),
        ):
            check = measure.check(spec, W)
            assert check.ok, (n, check)


@pytest.mark.parametrize("size", [1e-170, 1e170])
def test_products_and_bounds_of_any_size(size):
    """A Kronecker product stays one, and what is far beyond a bound is off and not an error of linear algebra."""
    K = torch.kron(normal(2, 2, 0), normal(4, 4, 1))
    assert measure.check("kronecker:p=2:q=2", size * K).ok
    for spec in ("unit_spectral_norm", "spectral_cap", "aol", "orthogonal"):
        assert measure.check(spec, size * K).ok == (spec == "spectral_cap" and size < 1), spec
    short = torch.full((4, 1024), 1e-4 / 32, dtype=torch.float64).half()
    assert measure.check("unit_norm:r=0.0001", short).ok and not measure.check("unit_norm:r=0.0001", 1.2 * short).ok
