"""Single maps: round trips of right inverses, conventions, what they cannot reach."""

import mpmath  # torch brings it
import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.fitting.fit import fit
from paramcli.fitting.torch_module import bare, register, require_fit
from paramcli.maths.exponential import MatrixExp
from paramcli.maths.orthogonal import Cayley
from paramcli.maths.rotation import cayley_inverse, rotation_log
from paramcli.registry import PARAMETRIZATIONS
from paramcli.view import parse_view

from .members import rotation, spd

PLAIN = parse_view(None)


@pytest.mark.parametrize("n", [2, 3, 4, 7, 16, 33, 64])
def test_right_inverses_round_trip_on_random_members(n):
    """f(r(Q)) = Q to 1e-9 in float64, for 200 random members over all n: rotations and SPD matrices."""
    for seed in range(29):
        Q, A = rotation(n, 100 * n + seed), spd(n, 100 * n + seed)
        for f, member in ((Cayley(), Q), (MatrixExp(), Q), (MatrixExp(), A)):
            assert torch.linalg.vector_norm(f.map(f.inverse(member)) - member) / torch.linalg.vector_norm(member) < 1e-9


@pytest.mark.parametrize("n", [2, 5, 16, 64])
def test_the_tutorials_transposing_cayley_inverse_is_wrong(n):
    """The tutorial's right inverse of Cayley gives the transposed rotation: the round trip above would catch it."""
    Q, I = rotation(n, n), torch.eye(n, dtype=torch.float64)
    transposing = torch.linalg.solve(Q + I, I - Q)
    back = Cayley().map(transposing)
    assert torch.linalg.vector_norm(back - Q) / torch.linalg.vector_norm(Q) > 1e-2
    torch.testing.assert_close(back, Q.T, rtol=1e-8, atol=1e-8)


def test_cayley_convention_is_the_tutorials():
    """X = [[0, 1], [-1, 0]] maps to (I + X)(I - X)^{-1} = [[0, 1], [-1, 0]], a quarter turn; half-scaled would not."""
    X = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(Cayley().map(X), torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    assert torch.equal(
        parse_and_evaluate("skew", torch.tensor([[9.0, 2.0], [5.0, 7.0]])), torch.tensor([[0.0, 2.0], [-2.0, 0.0]])
    )
    assert torch.equal(
        parse_and_evaluate("symmetric", torch.tensor([[9.0, 2.0], [5.0, 7.0]])), torch.tensor([[9.0, 2.0], [2.0, 7.0]])
    )


def parse_and_evaluate(chain: str, X: torch.Tensor) -> torch.Tensor:
    return register(bare(X), "weight", parse_chain(chain)).weight.detach()


@pytest.mark.parametrize("n", [2, 4, 6, 9])
def test_logarithm_of_half_turns(n):
    """Rotations by exactly half a turn, any number of planes at once, have a real logarithm."""
    for planes in range(1, n // 2 + 1):
        P = rotation(n, 10 * n + planes)
        D = torch.ones(n, dtype=torch.float64)
        D[: 2 * planes] = -1
        Q = (P * D) @ P.T
        L = rotation_log(Q)
        assert torch.equal(L, -L.T)
        assert torch.linalg.vector_norm(torch.matrix_exp(L) - Q) < 1e-12


@pytest.mark.parametrize("gap", [1e-15, 1e-13, 1e-11, 1e-9, 1e-7, 1e-5, 1e-3])
def test_logarithm_near_half_turns(gap):
    """Angles that miss half a turn by anything from rounding up round-trip to 1e-11."""
    n = 8
    angles = torch.tensor([torch.pi - gap, torch.pi - 3 * gap, 1.0, torch.pi], dtype=torch.float64)
    blocks = torch.block_diag(
        *[torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]], dtype=torch.float64) for a in angles]
    )
    P = rotation(n, 7)
    Q = P @ blocks @ P.T
    assert torch.linalg.vector_norm(torch.matrix_exp(rotation_log(Q)) - Q) < 1e-11


def test_cayley_refuses_what_it_cannot_reach():
    """det -1 and eigenvalue -1 are refused with the number and the chain that can."""
    with pytest.raises(InputRefused, match="determinant -1") as caught:
        cayley_inverse(rotation(4, 0, sign=-1))
    assert "orthogonal" in caught.value.hint
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0], dtype=torch.float64))
    with pytest.raises(InputRefused, match="eigenvalue -1") as caught:
        cayley_inverse(half)
    assert "matrix_exp" in caught.value.hint


@pytest.mark.parametrize("chain", ["skew,cayley", "skew,matrix_exp", "orthogonal:map=cayley:triv=false"])
def test_an_orthogonal_weight_with_determinant_minus_one_is_refused(chain):
    """A good weight is not replaced by another one behind the user's back."""
    with pytest.raises(InputRefused, match="determinant -1"):
        fit(rotation(6, 1, sign=-1).float(), parse_chain(chain), PLAIN)


def test_zero_rows_have_no_direction():
    """Weight norm of a zero row names the row."""
    W = torch.randn(4, 3)
    W[2] = 0
    with pytest.raises(InputRefused, match="slice 2"):
        fit(W, parse_chain("weight_norm"), PLAIN)


def test_rank_deficient_weights_have_no_unique_nearest_rotation():
    """The zero matrix and a rank-deficient one are refused, not sent to an arbitrary member."""
    for W in (torch.zeros(4, 4), torch.randn(4, 1) @ torch.randn(1, 4)):
        with pytest.raises(InputRefused, match="rank-deficient"):
            fit(W, parse_chain("skew,cayley"), PLAIN)


def test_prune_keeps_what_lies_under_the_mask():
    """The original under a mask is the weight as it was; the count of zeros is exact."""
    W = torch.randn(10, 10)
    for chain, zeros in (("prune_random:amount=0.3", 30), ("prune_l1:amount=17", 17)):
        fitted = fit(W, parse_chain(chain), PLAIN)
        assert torch.equal(fitted.state["original"], W)
        assert fitted.state["0.mask"].dtype == torch.bool
        assert int((fitted.value == 0).sum()) == zeros
        assert torch.equal(fitted.value, W * fitted.state["0.mask"])


def test_prune_l1_agrees_with_torch():
    """The mask is that of torch.nn.utils.prune.l1_unstructured."""
    from torch.nn.utils import prune

    layer = torch.nn.Linear(9, 7)
    W = layer.weight.detach().clone()
    prune.l1_unstructured(layer, "weight", amount=0.4)
    assert torch.equal(fit(W, parse_chain("prune_l1:amount=0.4"), PLAIN).value, layer.weight)


EXAMPLES = [
    text
    for entry in PARAMETRIZATIONS.values()
    if not entry.decodes
    for text in entry.examples or [":".join([entry.name, *(f"{a.name}=2" for a in entry.arguments if a.required)])]
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_module_is_made_of_no_memory_that_is_unset(text):
    """A link after another is registered without an inverse: what it stores is what it was made with. torch fills
    tensors that nobody fills with NaN, where it is asked to be deterministic.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        made = []
        for shape in ((8, 8), (12, 8), (8, 12), (8, 4, 3, 3), (8,)):
            try:
                chain = parse_chain(text)
                require_fit(chain, PLAIN, shape, torch.float32)
                made.append(chain.links[-1].make(torch.eye(*shape) if len(shape) == 2 else torch.ones(shape)))
            except InputRefused:
                continue
    finally:
        torch.use_deterministic_algorithms(before)
    for module in made:
        for name, tensor in module.state_dict().items():
            assert not tensor.is_floating_point() or torch.isfinite(tensor).all(), name
    assert made or not parse_chain(text).links[-1].real, "no shape that it takes"


@pytest.mark.parametrize("last", [1e-7, 1e-9])
def test_the_small_singular_values_of_doubles_are_no_rounding(last):
    """Of float64 weights, unless float32 has all their numbers: the nearest is the exact one, by forty digits."""
    n = 8
    with mpmath.workdps(40):
        U, _, Vh = mpmath.svd_r(mpmath.matrix(torch.randn(n, n, dtype=torch.float64).tolist()))
        made = U * mpmath.diag([2.0, *[1.0] * (n - 3), 2 * last, last]) * Vh
        W = torch.tensor([[float(x) for x in row] for row in made.tolist()], dtype=torch.float64)
        U, _, Vh = mpmath.svd_r(mpmath.matrix(W.tolist()))
        exact = torch.tensor([[float(x) for x in row] for row in (U * Vh).tolist()], dtype=torch.float64)
    fitted = fit(W, parse_chain("orthogonal"), PLAIN)
    torch.testing.assert_close(fitted.value, exact, rtol=0, atol=1e-15 / last)
    A, B = torch.randn(n, 3), torch.randn(3, n)
    for low, share in (((A @ B).double(), "1e-06"), (A.double() @ B.double(), "1e-10")):
        with pytest.raises(InputRefused, match=f"rank-deficient.*5 of 8 below {share} of the first"):
            fit(low, parse_chain("orthogonal"), PLAIN)
