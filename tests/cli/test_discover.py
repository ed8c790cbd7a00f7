"""discover: what is found through a view, and what goes without saying there."""

import json

import pytest
import torch
from safetensors.torch import save_file

from paramcli.errors import InputRefused
from paramcli.registry import CONSTRAINTS, constraint, target_class


def rotation(n: int) -> torch.Tensor:
    """Of determinant 1."""
    Q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q
    Q[0] *= torch.linalg.det(Q).sign()
    return Q.float().contiguous()


@pytest.fixture
def path(tmp_path):
    gates = torch.cat([rotation(16) for _ in range(4)])
    tensors = {
        "gates": gates,
        "conv": rotation(16).reshape(16, 4, 4),
        "noise": torch.randn(12, 5),
        "bias": torch.randn(3),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def holds(paramcli, path, *options) -> dict[str, list[str]]:
    found = json.loads(paramcli("discover", path, "--json", "-q", *options).out)["tensors"]
    return {f["tensor"]: [check["constraint"] for check in f["holds"]] for f in found}


def test_gates_are_rotations_through_the_view_of_their_blocks(path, paramcli):
    """Each gate of an LSTM is one, and all four stacked are none."""
    assert holds(paramcli, path, "-t", "gates", "--view", "blocks=4") == {"gates": ["special_orthogonal (blocks=4)"]}
    assert holds(paramcli, path, "-t", "gates")["gates"] == ["unit_norm"]


def test_what_a_stronger_set_implies_is_left_out_in_its_own_view(path, paramcli):
    """A rotation is orthogonal and needs no line for that; what is seen of the tensor as it is stays."""
    found = holds(paramcli, path, "-t", "conv")["conv"]
    assert (
        "special_orthogonal (flatten)" in found
        and "orthogonal (flatten)" not in found
        and "unit_spectral_norm" in found
    )
    assert holds(paramcli, path, "-t", "conv", "--view", "flatten")["conv"] == ["special_orthogonal (flatten)"]


def test_a_view_that_does_not_fit_is_told(path, paramcli):
    """Of each such tensor; a view that there is not is a mistake."""
    said = paramcli("discover", path, "--view", "blocks=5")
    assert "not looked at: gates" in said.err and "not looked at: bias" in said.err
    assert "no view named 'rows'" in paramcli("discover", path, "--view", "rows", code=2).err


def test_a_report_draws_what_the_view_shows(path, paramcli, tmp_path):
    """The spectra of the four gates, each value 1."""
    paramcli("discover", path, "-t", "gates", "--view", "blocks=4", "--report", tmp_path / "r.html", "-q")
    assert "special_orthogonal (blocks=4)" in (tmp_path / "r.html").read_text()


SHAPES = ((16,), (12, 12), (12, 40), (4, 6, 6), (12, 4, 3))


def members() -> dict[str, torch.Tensor]:
    """A member of every set of real tensors in every shape it has, and one that is nearly one; some are alike."""
    generator, found = torch.Generator().manual_seed(0), {"ones": torch.ones(12), "ones too": torch.ones(12)}
    for entry in CONSTRAINTS.values():
        for spec in (entry.examples or (entry.name,)) if entry.real else ():
            for shape in SHAPES:
                try:
                    made = constraint(spec)
                    made.check_shape(torch.Size(shape))
                    W = made.sample(torch.Size(shape), generator).float()
                except (InputRefused, NotImplementedError):
                    continue
                found[f"{spec} {shape}"] = W
                found[f"{spec} {shape} nearly"] = W + 0.005 * W.square().mean().sqrt() * torch.randn(
                    shape, generator=generator
                )
    return {name: W.contiguous().clone() for name, W in found.items()}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    path = tmp_path_factory.mktemp("zoo") / "zoo.safetensors"
    save_file(members(), path)
    return path


def found(path, tensor=(), *, duplicates=False) -> dict[str, tuple]:
    import paramcli

    return {
        f.tensor: tuple(
            (c.constraint, c.residual, c.tolerance)
            for c in (*f.holds, *f.nearly)
            if duplicates or not c.constraint.startswith("duplicate")
        )
        for f in paramcli.discover(path, tensor).tensors
    }


def test_findings_do_not_depend_on_what_else_is_looked_at(zoo, tmp_path):
    """Of a member of every set: alone in a file it is told what it is told among all others, to the last bit."""
    together, tensors = found(zoo), members()
    assert len(together) == len(tensors) > 200
    for name, W in tensors.items():
        save_file({name: W}, tmp_path / "alone.safetensors")
        assert found(tmp_path / "alone.safetensors") == {name: together[name]}


def test_a_set_is_tried_or_said_not_to_be(zoo):
    """A look at some member suggests the set, or it is listed; but for the set of all tensors, and another name of
    `simplex`.
    """
    import paramcli

    suggested = {
        entry.name
        for entry in CONSTRAINTS.values()
        for name, W in members().items()
        if name.startswith((f"{entry.name} ", f"{entry.name}:"))
        and target_class(entry).candidates(W.double(), torch.float32)
    }
    real = {entry.name for entry in CONSTRAINTS.values() if entry.real}
    listed = set(paramcli.discover(zoo, "ones").not_tried)
    assert not listed & suggested and real - listed - suggested == {"any", "stochastic"}
    assert {"kronecker", "ball", "special_linear"} <= listed


def test_what_is_left_out_is_said_once(tmp_path, paramcli):
    """Integers are counted by dtype and named in the JSON; so are the sets that are not tried."""
    save_file(
        {"w": torch.randn(9, 5), "q": torch.ones(4, dtype=torch.int8), "steps": torch.tensor(3), "at": torch.tensor(4)},
        tmp_path / "a.safetensors",
    )
    said = paramcli("discover", tmp_path / "a.safetensors")
    [line] = [line for line in said.err.splitlines() if "not tried" in line]
    assert line.startswith("left out: 3 tensors (2 int64, 1 int8); not tried: 15 sets (almost_orthogonal, aol, ")
    shown = json.loads(paramcli("discover", tmp_path / "a.safetensors", "--json", "-q").out)
    assert {f["tensor"]: f["why"] for f in shown["left_out"]} == {
        "q": "it is int8",
        "steps": "it is int64",
        "at": "it is int64",
    }
    assert "kronecker" in shown["not_tried"] and [f["tensor"] for f in shown["tensors"]] == ["w"]


def test_ones_are_constant_and_no_grid(tmp_path, paramcli):
    """A grid of 8-bit floats says nothing of one number; of several it does."""
    grid = torch.arange(1.0, 17)
    save_file({"ones": torch.ones(64), "grid": grid[torch.randperm(16)]}, tmp_path / "a.safetensors")
    told = holds(paramcli, tmp_path / "a.safetensors")
    assert told["ones"] == ["constant:value=1"] and told["grid"] == ["fp8:format=e4m3"]


def test_a_duplicate_is_named_by_the_first(tmp_path):
    """Also one that begins as others do, and differs after that; of a tensor that differs nothing is said."""
    W = torch.randn(100, 100)
    other = W.clone()
    other[-1, -1] += 1
    tensors = {"a": W, "b": other, "c": W.clone(), "d": other.clone(), "e": torch.randn(100, 100)}
    save_file(tensors, tmp_path / "a.safetensors")
    told = {
        name: [check[0] for check in checks if "duplicate" in check[0]]
        for name, checks in found(tmp_path / "a.safetensors", duplicates=True).items()
    }
    assert told == {"a": [], "b": [], "c": ["duplicate of a"], "d": ["duplicate of b"], "e": []}
