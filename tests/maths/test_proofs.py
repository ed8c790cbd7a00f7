"""What tells, at less than its value, that a right inverse came back: never of one that did not."""

import math

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.fitting import originals
from paramcli.fitting.fit import fit
from paramcli.maths.nearest_orthogonal import polar, require_unique_polar
from paramcli.maths.orthogonal import Orthogonal, cayley_proves
from paramcli.maths.rotation import PROVEN, cayley_inverse, exponential_proves
from paramcli.view import IDENTITY

from .members import rotation

# What is asked for, a bound on ||map(X) - Q|| / ||Q||.
WITHIN = 1e-6


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def skew(*shape, seed=0, dtype=torch.float64):
    X = randn(*shape, seed=seed, dtype=dtype)
    return X - X.mH


def cayley(X):
    I = torch.eye(X.size(-1), dtype=X.dtype)
    return torch.linalg.solve(I - X, I + X)


def of_angles(L, most=math.pi):
    """Scaled to that largest angle."""
    return most * L / torch.linalg.matrix_norm(L, 2)[..., None, None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3, 1e6])
def test_a_cayley_original_is_proven_by_one_product(dtype, size):
    """By the solution of the linear system itself; of another point, or of no skew-symmetric X, nothing is proven."""
    X = size * skew(3, 12, 12, dtype=dtype)
    Q = cayley(X)
    assert cayley_proves(Q, X, WITHIN)
    # The nearest to (I + X)(I - X)^{-1} that is off by as much as is asked, in one of three matrices.
    E = randn(12, 12, seed=1, dtype=dtype)
    off = Q.clone()
    off[1] += 1.01 * WITHIN * 12**0.5 * E / torch.linalg.matrix_norm(E)
    assert not cayley_proves(off, X, WITHIN)
    assert not cayley_proves(-Q, X, WITHIN)
    assert not cayley_proves(Q, X + 1e-9, WITHIN)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_an_exponential_is_proven_by_some_of_its_columns(dtype, batch):
    """Angles of up to half a turn; errors of any rank are seen, also those of one direction."""
    n = PROVEN
    L = of_angles(skew(*batch, n, n, dtype=dtype))
    Q = torch.matrix_exp(L)
    assert exponential_proves(Q, L, WITHIN)
    one = torch.zeros(n, n, dtype=dtype)
    one[3, 5] = 1.0
    for E in (one, torch.eye(n, dtype=dtype), randn(n, n, seed=1, dtype=dtype)):
        off = Q.clone()
        off[..., :, :] += 3 * WITHIN * n**0.5 * E / torch.linalg.matrix_norm(E)
        assert not exponential_proves(off, L, WITHIN)
    assert not exponential_proves(Q, 1.00001 * L, WITHIN)
    assert not exponential_proves(Q, L + torch.eye(n, dtype=dtype) * 1e-9, WITHIN)
    # Another logarithm, with angles of many turns, may be one; its series does not end soon.
    assert not exponential_proves(Q, 40 * L, WITHIN)


def test_small_exponentials_are_evaluated():
    L = of_angles(skew(8, 8))
    assert not exponential_proves(torch.matrix_exp(L), L, WITHIN)


@pytest.mark.parametrize("map", ["cayley", "matrix_exp"])
def test_torchs_own_map_without_a_base_is_proven_as_its_rotation(map):
    """X is a lower triangle there, and cayley's is scaled by 2."""
    n = PROVEN
    A = of_angles(skew(n, n), 2.0)
    part = Orthogonal.make(A, map=map, triv=False)
    Q = part.map(A.tril(-1))
    assert part.proves(Q, WITHIN, A.tril(-1))
    assert not part.proves(Q.mT, WITHIN, A.tril(-1))
    based = Orthogonal.make(Q, map=map, triv=True)
    assert not based.proves(Q, WITHIN, based.inverse(Q))


@pytest.mark.parametrize("chain", ["skew,cayley", "skew,matrix_exp", "orthogonal:map=matrix_exp:triv=false"])
def test_what_is_proven_is_not_evaluated(chain, monkeypatch):
    """In double precision; and what is not proven is."""
    seen = []
    judge = originals.require_preimage
    monkeypatch.setattr(originals, "require_preimage", lambda *given: seen.append(given) or judge(*given))
    monkeypatch.setattr("paramcli.fitting.fit.require_preimage", originals.require_preimage)
    W = rotation(PROVEN, 3)
    last = len(parse_chain(chain)) - 1
    # A half type's rounding leaves the value too far away to tell.
    fit(W.half().float() + 1e-3, parse_chain(chain), IDENTITY)
    assert [link for link, _ in seen if link == parse_chain(chain).links[last]] == []
    monkeypatch.setattr("paramcli.maths.orthogonal.cayley_proves", lambda *_: False)
    monkeypatch.setattr("paramcli.maths.orthogonal.exponential_proves", lambda *_: False)
    monkeypatch.setattr("paramcli.maths.exponential.exponential_proves", lambda *_: False)
    fit(W.half().float() + 1e-3, parse_chain(chain), IDENTITY)
    assert [link for link, _ in seen if link == parse_chain(chain).links[last]] != []


@pytest.mark.parametrize("n", [2, 3, 8, 64])
@pytest.mark.parametrize("noise", [0.0, 1e-7, 4e-3])
def test_a_determinant_of_minus_one_is_seen_by_the_symmetric_part(n, noise):
    """However far from orthogonal rounding has put it, up to that of bfloat16."""
    W = rotation(n, 5, sign=-1) * (1 + noise * randn(n, n, seed=2).clamp(-1, 1))
    with pytest.raises(InputRefused, match="determinant -1"):
        cayley_inverse(W)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 5, 6, 9])
def test_what_has_no_polar_factor_is_known_by_its_singular_values(dtype, rank):
    """`require_unique_polar` refuses what `polar` does, and nothing else."""
    W = (randn(9, rank) @ randn(rank, 9, seed=1)).to(dtype).double()

    def refused(ask):
        try:
            ask(W, stored=dtype)
        except InputRefused as error:
            return str(error)
        return None

    assert refused(require_unique_polar) == refused(polar)
    assert (refused(polar) is None) == (rank == 9)
