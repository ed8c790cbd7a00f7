"""Points at the edge of an open image: what originals rounded to their storage can hold of them, and what is told."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

from paramcli.chain import parse_chain
from paramcli.errors import CheckFailed, InputRefused
from paramcli.fitting.fit import fit
from paramcli.fitting.margins import _Margins
from paramcli.view import IDENTITY, parse_view
from paramcli.wording import in_shell

CAYLEY = parse_chain("skew,cayley")
# Distances from a half turn that no dtype can hold a Cayley original of.
GAPS = [0.0, 1e-9, 1e-8, 1e-7, 1e-9, 0.0, 1e-8, 1e-7]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


class Skew(nn.Module):
    def forward(self, X):
        A = X.triu(1)
        return A - A.transpose(-1, -2)


class CayleyMap(nn.Module):
    """As PyTorch's Parametrizations Tutorial has it."""

    def __init__(self, n, dtype):
        super().__init__()
        self.Id = torch.eye(n, dtype=dtype)

    def forward(self, X):
        return torch.linalg.solve(self.Id - X, self.Id + X)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest_rotation(W):
    U, _, Vh = torch.linalg.svd(W.double())
    U[:, -1] *= torch.linalg.det(U @ Vh).sign()
    return U @ Vh


def half_turns(n, planes, seed=0, gap=0.0):
    """A rotation by pi - gap in some planes, to rounding of float64."""
    Q, angle = torch.linalg.qr(randn(n, n, seed=seed)).Q, torch.tensor(math.pi - gap, dtype=torch.float64)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).reshape(2, 2)
    return Q @ torch.block_diag(*[turn] * planes, torch.eye(n - 2 * planes, dtype=torch.float64)) @ Q.T


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_square_weight_takes_skew_cayley(dtype, tmp_path, paramcli):
    """Weights of either determinant and rotations by pi: added, verified, moved to the nearest rotation, baked to
    torch's value.
    """
    sizes = [n for n, count in ((16, 20), (64, 12), (128, 3)) for _ in range(count)]
    weights = {f"{n}.{i}": (randn(n, n, seed=i) * (1, 0.02)[i % 2]).to(dtype) for i, n in enumerate(sizes)}
    for name, W in list(weights.items()):
        weights[f"{name}.mirrored"] = torch.cat([-W[:1], W[1:]])
    turned = {f"pi.{n}.{planes}": half_turns(n, planes).to(dtype) for n in (2, 9, 32) for planes in (1, n // 2)}
    turned |= {"exact": -torch.eye(6, dtype=dtype)}
    save_file({f"{name}.weight": W.contiguous() for name, W in (weights | turned).items()}, tmp_path / "a.safetensors")
    told = paramcli(
        "add",
        tmp_path / "a.safetensors",
        "-t",
        "*",
        "--chain",
        "skew,cayley",
        "-o",
        tmp_path / "b.safetensors",
        "--json",
    ).json
    paramcli("verify", tmp_path / "b.safetensors")
    moved = {t["tensor"].removesuffix(".weight"): t for t in told["tensors"]}
    for name, W in weights.items():
        wanted = (
            torch.linalg.vector_norm(nearest_rotation(W) - W.double()) / torch.linalg.vector_norm(W.double())
        ).item()
        assert moved[name]["moved"] < 1.01 * wanted
    for name in turned:
        assert moved[name]["note"] and 0 < moved[name]["moved"] < (0.0075 if dtype.itemsize > 2 else 0.05)
    if dtype.itemsize < 4:
        return
    paramcli("remove", tmp_path / "b.safetensors", "-o", tmp_path / "c.safetensors")
    stored, baked = load_file(tmp_path / "b.safetensors"), load_file(tmp_path / "c.safetensors")
    for name, W in (weights | turned).items():
        live = nn.Linear(len(W), len(W), bias=False, dtype=dtype)
        parametrize.register_parametrization(live, "weight", Skew())
        parametrize.register_parametrization(live, "weight", CayleyMap(len(W), dtype))
        live.load_state_dict({"parametrizations.weight.original": stored[f"{name}.parametrizations.weight.original"]})
        parametrize.remove_parametrizations(live, "weight")
        assert torch.equal(live.weight, baked[f"{name}.weight"]), name


@pytest.mark.parametrize(("n", "planes"), [(2, 1), (3, 1), (8, 1), (8, 2), (8, 4)])
@pytest.mark.parametrize("chain", ["skew,cayley", "skew_hermitian,cayley", "orthogonal:map=cayley:triv=false"])
def test_only_the_angles_near_a_half_turn_are_cut(chain, n, planes):
    """Cut to one angle below pi; the others stay: by the eigenvalues of the value, from LAPACK's general solver."""
    dtype = torch.complex64 if "hermitian" in chain else torch.float32
    W = half_turns(n, planes, seed=n)
    fitted = fit(W.to(dtype), parse_chain(chain), IDENTITY)
    angles = torch.linalg.eigvals(fitted.value.to(torch.complex128)).angle().abs().sort().values
    kept, cut = angles[: n - 2 * planes], math.pi - angles[n - 2 * planes :]
    assert fitted.check.ok and bool((kept < 1e-3).all())
    if n == 2 * planes:  # nothing lies beside them that their rounding could move
        assert cut.max() < 5e-7
    else:
        assert cut.min() > 1e-5 and cut.max() < 1e-2 and cut.max() < 1.5 * cut.min()
    # The distance of a rotation by 2 planes angles of pi - m from that by pi is 2 sin(m / 2) for each.
    wanted = (2 * (cut / 2).sin()).square().sum().sqrt().item() / n**0.5
    assert fitted.moved == pytest.approx(wanted, rel=0.2, abs=1e-7 if n == 2 * planes else 0)


def test_both_distances_are_told(tmp_path, paramcli):
    """How far the nearest rotation is, how far the value is from that, and from the weight; --max-change counts the
    whole way.
    """
    W = 1.5 * half_turns(8, 1)
    save_file({"w": W.float()}, tmp_path / "a.safetensors")
    command = ("add", tmp_path / "a.safetensors", "-t", "w", "--chain", "skew,cayley", "--json")
    found = paramcli(*command).json["tensors"][0]
    assert "cannot hold the nearest point, 0.33 from the weight (its eigenvalue nearest to -1 is" in found["note"]
    assert "0.33 from the weight" in found["note"].rpartition(":")[2] and found["moved"] == pytest.approx(
        1 / 3, rel=1e-3
    )
    exact = tmp_path / "exact.safetensors"
    save_file({"w": torch.diag(torch.tensor([-1.0, -1.0, 1.0]))}, exact)
    assert (
        "more than --max-change 1e-08"
        in paramcli("add", exact, "-t", "w", "--chain", "skew,cayley", "--max-change", "1e-8", code=1).err
    )
    assert (
        "cannot hold the weight itself"
        in paramcli("add", exact, "-t", "w", "--chain", "skew,cayley", "--max-change", "1e-3").err
    )


@pytest.mark.parametrize("view", [None, "blocks=3"])
def test_only_the_matrices_that_need_it_get_a_margin(view):
    """In a batch, and under a view, the others keep the bits that they have beside a matrix that needs none."""
    good, bad = (
        [torch.matrix_exp((A - A.T) / 4).float() for A in (randn(6, 6, seed=s) for s in (1, 2, 3))],
        half_turns(6, 1).float(),
    )
    stack = (lambda *matrices: torch.cat(matrices)) if view else (lambda *matrices: torch.stack(matrices))
    fitted, plain = (fit(stack(good[0], W, good[2]), CAYLEY, parse_view(view)) for W in (bad, good[1]))
    first, second, third = fitted.state["original"].reshape(3, 6, 6)
    assert torch.equal(first, plain.state["original"].reshape(3, 6, 6)[0]) and torch.equal(
        third, plain.state["original"].reshape(3, 6, 6)[2]
    )
    assert "1 of 3 matrices" in fitted.note and plain.note is None and second.abs().max() > 50


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "chain",
    ["symmetric,matrix_exp", "spd", "spd_cholesky", "invertible", "psd_fixed_rank:rank=3", "fixed_rank:rank=3", "lu"],
)
@pytest.mark.parametrize("diagonal", [(1.0, 0.5, 0.0), (1e4, 1.0, 1e-8), (1e-3, 1e-4, 0.0)], ids=str)
def test_singular_matrices_get_a_point_inside(chain, diagonal, dtype):
    """A zero or tiny eigenvalue is raised, by no more than its dtype asks for; the rest of the matrix stays."""
    W = torch.diag(torch.tensor(diagonal, dtype=torch.float64)).to(dtype)
    fitted = fit(W, parse_chain(chain), IDENTITY)
    assert fitted.check is None or fitted.check.ok
    least = torch.linalg.svdvals(fitted.value.double())[-1].item()
    assert (
        0.999 * W[2, 2].item() <= least <= max(8 * torch.finfo(dtype).eps * diagonal[0], 1.1e-6 * diagonal[0], 2.1e-6)
    )
    assert (
        torch.linalg.vector_norm(fitted.value[:2, :2].double() - W[:2, :2].double())
        <= torch.finfo(dtype).eps * 8 * diagonal[0] + 2.1e-6
    )


def test_a_hermitian_matrix_too():
    """Complex ones go the same way."""
    v = torch.randn(4, 2, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    fitted = fit(v @ v.mH, parse_chain("hermitian,matrix_exp"), IDENTITY)
    assert fitted.check.ok and fitted.moved < 1e-5


def test_a_stable_system_on_the_edge_is_shifted():
    """Every eigenvalue to the left of -alpha afterwards, and told."""
    fitted = fit(torch.tensor([[-0.5, 1.0], [-1.0, -0.5]]), parse_chain("alpha_stable:alpha=0.5"), IDENTITY)
    assert (
        torch.linalg.eigvals(fitted.value.double()).real.max() < -0.5
        and fitted.moved < 1e-3
        and "largest real part is -0.5" in fitted.note
    )


def test_a_margin_beyond_a_tenth_is_refused():
    """What a floor moves that far is another weight: the map's own reason is given."""
    with pytest.raises(InputRefused, match=r"above 0\.5, and this tensor has 0\.1"):
        fit(torch.diag(torch.tensor([1.0, 0.1])), parse_chain("spd_cholesky:eps=0.5"), IDENTITY)


def test_assigned_values_go_the_same_way(tmp_path, paramcli):
    """`assign` of a rotation by pi stores the nearest that it can, and says so."""
    save_file({"q": -torch.eye(4), "w": torch.eye(4)}, tmp_path / "a.safetensors")
    paramcli("add", tmp_path / "a.safetensors", "-t", "w", "--chain", "skew,cayley", "-o", tmp_path / "b.safetensors")
    command = ("assign", tmp_path / "b.safetensors", "-t", "w", "--from", f"{tmp_path / 'a.safetensors'}:q")
    told = paramcli(*command, "-o", tmp_path / "c.safetensors", "--json").json
    assert "cannot hold the assigned value itself" in told["tensors"][0]["note"]
    paramcli("remove", tmp_path / "c.safetensors", "-o", tmp_path / "d.safetensors")
    assert 0 < (load_file(tmp_path / "d.safetensors")["w"] + torch.eye(4)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("chain", "W", "why", "hint"),
    [
        (
            "skew,cayley",
            torch.diag(torch.tensor([-1.0, 1.0, 1.0])),
            "not special_orthogonal: determinant -1",
            "--chain orthogonal keeps it as it is",
        ),
        (
            "skew,cayley",
            torch.diag(torch.tensor([2.0, 1.0, 1.0])),
            "not special_orthogonal: column 0 has length 2",
            "--init project",
        ),
        (
            "orthogonal",
            torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 0.0]]),
            "not orthogonal: columns 0 and 1 have the product 0.48",
            "--init project",
        ),
        (
            "so",
            torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, -1.0]))]),
            "determinant -1 in matrix 1 of 2",
            "--chain orthogonal",
        ),
        (
            "symmetric,matrix_exp",
            torch.diag(torch.tensor([1.0, -0.25])),
            "smallest eigenvalue of its symmetric part is -0.25",
            "--init project",
        ),
        (
            "fixed_rank:rank=2",
            torch.diag(torch.tensor([1.0, 0.0, 0.0])),
            "number 2 is 0",
            "--chain low_rank:rank=2 keeps it",
        ),
    ],
)
def test_strict_says_why(chain, W, why, hint):
    """The determinant, the eigenvalue or the singular value with its number, and the chain that can."""
    with pytest.raises(CheckFailed) as caught:
        fit(W, parse_chain(chain), IDENTITY, init="strict")
    assert why in caught.value.message and hint in caught.value.advised(in_shell)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strict_refuses_a_half_turn_with_its_eigenvalue(dtype):
    """At the edge, and so near it that rounding the originals gives another value."""
    with pytest.raises(InputRefused, match="eigenvalue -1") as caught:
        fit(-torch.eye(4, dtype=dtype), CAYLEY, IDENTITY, init="strict")
    assert "skew,matrix_exp" in caught.value.hint
    with pytest.raises(InputRefused, match=r"its eigenvalue nearest to -1 is 0\.0") as caught:
        fit(half_turns(8, 1, gap=5e-4 if dtype == torch.float32 else 0.01).to(dtype), CAYLEY, IDENTITY, init="strict")
    assert "skew,matrix_exp" in caught.value.hint


def test_what_the_chain_named_in_the_hint_keeps_is_kept():
    """The orthogonal matrix of the first case above, strictly."""
    assert (
        fit(torch.diag(torch.tensor([-1.0, 1.0, 1.0])), parse_chain("orthogonal"), IDENTITY, init="strict").moved == 0
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("chain", ["skew,cayley", "orthogonal", "polar", "qr", "almost_orthogonal"])
@pytest.mark.parametrize("rank", [1, 32, 60])
def test_rank_lost_in_a_half_type_is_refused(chain, rank, dtype):
    """Rounding fills the other directions with noise: a point made of it would be arbitrary."""
    W = randn(64, rank, seed=1) @ randn(rank, 64, seed=2)
    assert torch.linalg.svdvals(W.to(dtype).double())[-1] > 0
    with pytest.raises(InputRefused, match=r"rank-deficient.*of 64 below what rounding leaves of zero"):
        fit(W.to(dtype), parse_chain(chain), IDENTITY)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("shape", "count"), [((16, 16), 200), ((64, 64), 40), ((256, 256), 3), ((48, 16), 50), ((16, 48), 50)], ids=str
)
def test_a_random_weight_is_never_taken_for_rank_deficient(shape, count, dtype):
    """One singular value below the rounding is common in bfloat16; it is told where its direction is free."""
    for seed in range(count):
        fitted = fit(randn(*shape, seed=seed).to(dtype), parse_chain("orthogonal"), IDENTITY)
        assert fitted.note is None or fitted.note.startswith(
            f"1 of its {min(shape)} singular values may be rounding of zero"
        )


def test_a_direction_that_may_be_noise_is_told():
    """Of rank 63 of 64 the last direction is taken as it is, and said; a rotation's is determined by the others."""
    W = (randn(64, 63, seed=1) @ randn(63, 64, seed=2)).half()
    assert fit(W, parse_chain("orthogonal"), IDENTITY).note.startswith("1 of its 64 singular values")
    assert fit(W, parse_chain("so"), IDENTITY).note is None


def test_rows_of_very_different_size_are_no_lost_rank():
    """The noise in a direction is that of the entries it is made of, not of the largest."""
    W = randn(64, 64, seed=3)
    W[:8] *= 1e-2
    assert fit(W.bfloat16(), parse_chain("orthogonal"), IDENTITY).note is None


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("n", [8, 64])
def test_a_margin_is_found_in_few_tries(dtype, n, monkeypatch):
    """The edge tells where it begins, and what a value lacks how much farther to go: of 24 levels (54 in double
    precision) four are tried, where halving takes six, and the value moves no farther than with halving.
    """
    tries = []
    judge = _Margins.judge
    monkeypatch.setattr(_Margins, "judge", lambda self, *given: tries.append(self) or judge(self, *given))

    def fitted():
        tries.clear()
        found = [fit(half_turns(n, 1, seed, gap).to(dtype), CAYLEY, IDENTITY) for seed, gap in enumerate(GAPS)]
        return [one.moved for one in found], len(tries) / len(GAPS)

    told, few = fitted()
    monkeypatch.setattr(_Margins, "GUESSES", 0)
    by_halves, many = fitted()
    assert few <= 4 < many
    assert sum(told) <= 1.25 * sum(by_halves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("turned", [2, 5, 8])
def test_half_turns_of_axes_are_held_to_the_least_angle(dtype, turned):
    """Where nothing lies beside an original, its rounding moves nothing: 2 / X is the angle that is left, of the
    largest X that the dtype has, or that double precision inverts. By the distance in closed form.
    """
    W = torch.diag(torch.cat([-torch.ones(turned - turned % 2), torch.ones(9 - turned)]).to(torch.float64))
    fitted = fit(W.to(dtype), CAYLEY, IDENTITY)
    assert fitted.check.ok and 0 < fitted.moved < (5e-5 if dtype == torch.float16 else 1e-7)
    X = fitted.state["original"].double().abs().max().item()
    sine = 2 / X
    assert fitted.moved == pytest.approx(sine * ((turned - turned % 2) / len(W)) ** 0.5, rel=0.02)


def test_a_margin_finer_than_rounding_is_taken_only_where_that_spoils_nothing():
    """Computed in double precision every value is a member, however large the originals; what their rounding to
    float32 moves beside a half turn is then all that asks for a margin, of m = sqrt(0.4 eps / 4) = 1e-4.
    """
    for seed in range(6):
        fitted = fit(half_turns(16, 1, seed, gap=1e-7).float(), CAYLEY, IDENTITY, compute="float64")
        assert fitted.check.ok and 2e-5 < fitted.moved < 5e-4
