"""Complex checkpoints end to end: added, verified, baked, discovered, and refused where the maths is real."""

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def complex_checkpoint(tmp_path):
    g = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(*shape, generator=g, dtype=torch.complex64)
        for name, shape in {"q": (6, 6), "h": (2, 4, 4), "r": (4, 3)}.items()
    }
    # Positive definite already: the nearest to a random matrix would have eigenvalues next to zero, and low rank
    # besides.
    tensors["h"] = tensors["h"] @ tensors["h"].mH + torch.eye(4)
    save_file({**tensors, "bias": torch.randn(6, generator=g)}, tmp_path / "c.safetensors", metadata={"format": "pt"})
    return tmp_path / "c.safetensors"


def test_complex_tensors_go_the_whole_way(complex_checkpoint, paramcli):
    """add, verify, remove --bake, verify and discover hold the set that each chain promises, in complex64."""
    path = complex_checkpoint
    chains = {
        "q": ("skew_hermitian,cayley", "unitary"),
        "h": ("hermitian,matrix_exp", "hermitian_positive_definite"),
        "r": ("orthogonal", "orthogonal"),
    }
    for name, (chain, _) in chains.items():
        paramcli("add", path, "-t", name, "--chain", chain, "-o", path.with_name(f"{name}.safetensors"))
        path = path.with_name(f"{name}.safetensors")
    baked = path.with_name("baked.safetensors")
    paramcli("remove", path, "--bake", "-o", baked)
    for file in (path, baked):
        checks = {t["tensor"]: t["checks"][0] for t in paramcli("verify", file, "--json").json["tensors"]}
        assert {name: (check["constraint"], check["ok"]) for name, check in checks.items()} == {
            n: (c, True) for n, (_, c) in chains.items()
        }
        found = {
            t["tensor"]: [c["constraint"] for c in t["holds"]]
            for t in paramcli("discover", file, "--json").json["tensors"]
        }
        assert all(found[name] == [constraint] for name, (_, constraint) in chains.items())
    weights = load_file(baked)
    assert all(weights[name].dtype == torch.complex64 for name in chains)
    gram = weights["q"].to(torch.complex128)
    assert torch.linalg.vector_norm(gram.mH @ gram - torch.eye(6)) < 1e-5
    assert bool((torch.linalg.eigvalsh(weights["h"]) > 0).all())
    paramcli("diff", path, baked)


@pytest.mark.parametrize(
    ("tensor", "chain", "message"),
    [
        ("q", "skew,cayley", "cayley has no complex form after skew values"),
        ("q", "weight_norm", "weight_norm has no complex form"),
        ("bias", "hermitian", "hermitian is for complex tensors, and this one is float32"),
    ],
)
def test_numbers_of_the_wrong_kind_are_refused_before_anything_is_read(
    complex_checkpoint, paramcli, tensor, chain, message
):
    """The refusal names what has the form that is wanted, and nothing is written."""
    got = paramcli("add", complex_checkpoint, "-t", tensor, "--chain", chain, code=3)
    assert message in got.err and "try:" in got.err
    assert list(complex_checkpoint.parent.iterdir()) == [complex_checkpoint]


def test_a_real_set_is_not_verified_on_a_complex_tensor(complex_checkpoint, paramcli):
    """special_orthogonal is a set of real matrices: refused, not crashed and not passed."""
    got = paramcli("verify", complex_checkpoint, "-t", "q", "--constraint", "special_orthogonal", code=3)
    assert "is a set of real tensors" in got.err
