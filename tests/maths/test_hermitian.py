"""Complex matrices: logarithms and Cayley preimages of unitary ones, agreement with torch's orthogonal, refusals."""

import math

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused, UsageError
from paramcli.fitting import measure
from paramcli.fitting.fit import fit
from paramcli.fitting.torch_module import require_fit
from paramcli.maths.exponential import MatrixExp, symmetric_log
from paramcli.maths.orthogonal import Cayley
from paramcli.maths.rotation import cayley_inverse, unitary_log
from paramcli.view import IDENTITY


def unitary(angles: list[float], seed: int = 0) -> torch.Tensor:
    """A unitary matrix with these eigenvalue angles, by a random basis."""
    n = len(angles)
    X = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.complex128)
    V = torch.linalg.qr(X).Q
    values = torch.polar(torch.ones(n, dtype=torch.float64), torch.tensor(angles, dtype=torch.float64))
    return (V * values) @ V.mH


def random_angles(n: int, seed: int) -> list[float]:
    return (
        (torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1) * math.pi
    ).tolist()


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33, 64])
def test_the_logarithm_of_a_unitary_matrix_round_trips(n):
    """exp(log Q) = Q to 1e-12, log Q is exactly skew-Hermitian, and its eigenvalue angles are those Q was made of."""
    for seed in range(5):
        angles = random_angles(n, 10 * n + seed)
        L = unitary_log(Q := unitary(angles, seed))
        assert torch.equal(L, -L.mH)
        assert torch.linalg.vector_norm(torch.matrix_exp(L) - Q) < 1e-12 * n
        found = torch.linalg.eigvalsh(L / 1j)
        torch.testing.assert_close(found, torch.tensor(sorted(angles), dtype=torch.float64), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "angles",
    [
        [math.pi] * 4,
        [math.pi, math.pi, 0.3, -2.0],
        [math.pi - 1e-9, -math.pi + 1e-9, math.pi, 1.0],
        [0.0] * 5,
        [2.5] * 3 + [2.5 + 1e-12, 2.5 - 1e-8],
        [1.0, -1.0, 1.0, -1.0],
        [2 * math.pi * k / 7 - math.pi for k in range(7)],
    ],
    ids=[
        "minus identity",
        "half turns",
        "both sides of a half turn",
        "identity",
        "clustered",
        "mirrored",
        "equally spaced",
    ],
)
def test_the_logarithm_has_no_bad_angles(angles):
    """Eigenvalue -1, coinciding, nearly coinciding and mirrored eigenvalues round-trip to 1e-13 like any other."""
    Q = unitary(angles)
    assert torch.linalg.vector_norm(torch.matrix_exp(unitary_log(Q)) - Q) < 1e-13


def test_a_batch_of_logarithms_is_taken_matrix_by_matrix():
    """Each matrix is turned by its own phase."""
    batch = torch.stack([unitary(random_angles(4, seed), seed) for seed in range(6)]).reshape(2, 3, 4, 4)
    L = unitary_log(batch)
    torch.testing.assert_close(L[1, 2], unitary_log(batch[1, 2]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.matrix_exp(L), batch, rtol=1e-12, atol=1e-12)


def test_complex_cayley_reaches_any_determinant_but_no_half_turn():
    """det -1 is reached in complex numbers; an eigenvalue -1 is refused with the number and the chain that can."""
    Q = unitary([math.pi / 2, math.pi / 2, 0.1, -0.1])
    assert abs(torch.linalg.det(Q) + 1) < 1e-12
    torch.testing.assert_close(Cayley().map(cayley_inverse(Q)), Q, rtol=1e-12, atol=1e-12)
    with pytest.raises(InputRefused, match=r"unitary matrix with eigenvalue -1 \(here .*e-") as caught:
        cayley_inverse(unitary([math.pi, 1.0, 2.0]))
    assert "skew_hermitian,matrix_exp" in caught.value.hint


def test_the_logarithm_of_a_hermitian_matrix():
    """log of V diag(e^x) V^H is V diag(x) V^H; the right inverse of matrix_exp takes it for positive definite input."""
    H = torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.complex128)
    H = (H + H.mH) / 2
    A = torch.matrix_exp(H)
    torch.testing.assert_close(symmetric_log(A), H, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(MatrixExp().inverse(A), H, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("map", ["matrix_exp", "cayley"])
def test_complex_orthogonal_is_torchs_own(map):
    """Registered by torch on a complex layer, the weight is the one that the fitted state gives in torch's module."""
    from torch.nn.utils.parametrizations import orthogonal

    layer = torch.nn.Linear(4, 6, bias=False, dtype=torch.complex64)
    W = fit(layer.weight.detach(), parse_chain(f"orthogonal:map={map}"), IDENTITY)
    live = orthogonal(layer, orthogonal_map=map)
    live.load_state_dict({f"parametrizations.weight.{role}": tensor for role, tensor in W.state.items()}, strict=True)
    assert torch.equal(live.weight.detach(), W.value) and measure.check("orthogonal", W.value).ok


def test_kinds_of_numbers_are_refused_with_what_works():
    """A set of real tensors refuses complex ones, and the other way round."""
    for chain, dtype, match in (
        ("hermitian", torch.float32, "hermitian is for complex tensors"),
        ("skew_hermitian,matrix_exp", torch.bfloat16, "skew_hermitian is for complex"),
        ("skew,cayley", torch.complex64, "cayley has no complex form after skew values"),
        ("symmetric,matrix_exp", torch.complex64, "matrix_exp has no complex form after symmetric values"),
        ("orthogonal:map=householder", torch.complex64, "orthogonal has no complex form"),
        ("weight_norm", torch.complex64, "weight_norm has no complex form"),
    ):
        with pytest.raises(InputRefused, match=match):
            require_fit(parse_chain(chain), IDENTITY, (4, 4), dtype)
    for spec, W in (("unitary", torch.eye(2)), ("special_orthogonal", torch.eye(2, dtype=torch.complex64))):
        with pytest.raises(InputRefused, match="is a set of"):
            measure.check(spec, W)
    with pytest.raises(UsageError, match="cayley wants"):
        parse_chain("hermitian,cayley")


def test_a_transposed_gate_is_not_hermitian():
    """diag(1, i) and the symmetric [[0, i], [i, 0]] are unitary and neither Hermitian nor skew-Hermitian by mistake."""
    gate = torch.tensor([[1, 0], [0, 1j]], dtype=torch.complex64)
    assert measure.check("unitary", gate).ok and not measure.check("hermitian", gate).ok
    swap = torch.tensor([[0, 1j], [1j, 0]], dtype=torch.complex64)
    assert (
        measure.check("skew_hermitian", swap).ok
        and measure.check("symmetric", swap).ok
        and not measure.check("hermitian", swap).ok
    )
