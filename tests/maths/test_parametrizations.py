"""Laws that every parametrization of the table keeps, and the right inverses' round trips."""

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.host import bare, register, value
from paramcli.maths.exponential import MatrixExp
from paramcli.maths.orthogonal import Cayley
from paramcli.maths.rotation import cayley_inverse, rotation_log
from paramcli.measure import check
from paramcli.registry import PARAMETRIZATIONS
from paramcli.surgery.fit import evaluate, fit
from paramcli.view import parse_view

from .members import rotation, spd

# Every entry of the table in a chain of its own, with each of its modes.
CHAINS = {
    "symmetric": ["symmetric"],
    "skew": ["skew"],
    "cayley": ["skew,cayley"],
    "matrix_exp": ["skew,matrix_exp", "symmetric,matrix_exp"],
    "orthogonal": [
        *(f"orthogonal:map={m}" for m in ("matrix_exp", "cayley", "householder")),
        *(f"orthogonal:map={m}:triv=false" for m in ("matrix_exp", "cayley", "householder")),
        "orthogonal",
    ],
    "weight_norm": ["weight_norm", "weight_norm:dim=1", "weight_norm:dim=-1", "weight_norm:dim=none"],
    "spectral_norm": ["spectral_norm", "spectral_norm:dim=1"],
    "mask": ["mask"],
    "prune_random": ["prune_random:amount=0.3"],
    "prune_l1": ["prune_l1:amount=7"],
}
ALL = [chain for chains in CHAINS.values() for chain in chains]
SQUARE_ONLY = ("symmetric", "skew", "matrix_exp:triv=false", "cayley:triv=false")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
PLAIN = parse_view(None)


def shapes(chain: str) -> list[tuple[int, ...]]:
    square = [(6, 6), (3, 5, 5), *([(1, 1)] if "prune" not in chain else [])]
    return square if any(s in chain for s in SQUARE_ONLY) else [*square, (7, 3), (3, 7), (2, 7, 3), (4, 3, 3, 3)]


def weight(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    # The only 1 x 1 rotation is 1, and -1 is rightly refused.
    return W.abs() if shape == (1, 1) else W


CASES = [(chain, shape) for chain in ALL for shape in shapes(chain)]


def test_every_entry_is_covered():
    """A new entry without a chain here would escape the laws."""
    assert set(CHAINS) == set(PARAMETRIZATIONS)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("chain", "shape"), CASES)
def test_fit_lies_in_the_image_and_promises_hold(chain, shape, dtype):
    """The fitted value keeps shape and dtype, lies in the chain's image, and evaluates from what is stored."""
    W = weight(shape, dtype)
    fitted = fit(W, parse_chain(chain), PLAIN)
    assert fitted.value.dtype == dtype and fitted.value.shape == W.shape
    assert fitted.check is None or fitted.check.ok
    again = evaluate(parse_chain(chain), PLAIN, shape, fitted.state, dtype)
    assert torch.equal(again, fitted.value)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("chain", "shape"), [case for case in CASES if case[0] != "prune_random:amount=0.3"])
def test_fit_is_idempotent(chain, shape, dtype):
    """A weight that is a value of the chain is kept to rounding: f(r(f(r(W)))) = f(r(W)).

    All but prune_random, whose second draw drops other entries by definition.
    """
    first = fit(weight(shape, dtype), parse_chain(chain), PLAIN)
    second = fit(first.value, parse_chain(chain), PLAIN)
    assert second.moved <= 40 * torch.finfo(dtype).eps * (1 if dtype.itemsize == 2 else 25)


@pytest.mark.parametrize("chain", [c for c in ALL if "spectral" not in c and "prune" not in c and c != "mask" and "weight_norm" not in c])
def test_a_batch_is_fitted_as_its_matrices(chain):
    """Each matrix of a batch is mapped on its own."""
    if "orthogonal" in chain and "matrix_exp:triv" in chain:
        batch = rotation(5, 1, (3,))
    else:
        batch = weight((3, 5, 5), torch.float64)
    whole = fit(batch, parse_chain(chain), PLAIN).value
    for i in range(3):
        torch.testing.assert_close(whole[i], fit(batch[i].clone(), parse_chain(chain), PLAIN).value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("chain", [c for c in ALL if "orthogonal:" not in c and c != "orthogonal"])
def test_gradients_flow(chain):
    """gradcheck in float64 through the registered chain, with respect to its originals."""
    W = weight((4, 4), torch.float64, 5)
    host = register(bare(W), "weight", parse_chain(chain), seed=0)
    names = [n for n in ("original", "original0", "original1") if hasattr(host.parametrizations.weight, n)]
    originals = [getattr(host.parametrizations.weight, n).detach().clone().requires_grad_() for n in names]

    def run(*tensors):
        return torch.func.functional_call(host, {f"parametrizations.weight.{n}": t for n, t in zip(names, tensors)}, (), strict=False)

    host.forward = lambda: host.weight
    assert torch.autograd.gradcheck(run, originals)


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
    assert torch.equal(parse_and_evaluate("skew", torch.tensor([[9.0, 2.0], [5.0, 7.0]])), torch.tensor([[0.0, 2.0], [-2.0, 0.0]]))
    assert torch.equal(parse_and_evaluate("symmetric", torch.tensor([[9.0, 2.0], [5.0, 7.0]])), torch.tensor([[9.0, 2.0], [2.0, 7.0]]))


def parse_and_evaluate(chain: str, X: torch.Tensor) -> torch.Tensor:
    return value(register(bare(X), "weight", parse_chain(chain)))


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
    blocks = torch.block_diag(*[torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]], dtype=torch.float64) for a in angles])
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


@pytest.mark.parametrize("view", ["flatten", "blocks=4"])
@pytest.mark.parametrize("chain", ["orthogonal", "weight_norm", "spectral_norm", "prune_l1:amount=3"])
def test_views_keep_the_stored_shape(chain, view):
    """Under a view originals and value keep the stored shape, and the constraint holds for what the view shows."""
    W = weight((8, 2, 3), torch.float32)
    fitted = fit(W, parse_chain(chain), parse_view(view))
    stored = fitted.state.get("original", fitted.state.get("original1"))
    assert stored.shape == W.shape == fitted.value.shape
    if fitted.check:
        assert check(fitted.check.constraint, parse_view(view).into(fitted.value)).ok
