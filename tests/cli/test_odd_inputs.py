"""Inputs off the common path: each has its own number, or its own refusal, and never another's."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

torch.manual_seed(0)
W = torch.randn(4, 4)


@pytest.fixture
def file(tmp_path):
    def write(**tensors):
        save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, tmp_path / "in.safetensors")
        return tmp_path / "in.safetensors"

    return write


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
def test_an_infinity_in_both_files_hides_no_difference(dtype, tmp_path, paramcli):
    """[inf, 1] and [inf, 2] differ by a relative 1; [inf, 1] equals itself."""
    for name, value in (("a", 1.0), ("b", 2.0), ("c", 1.0)):
        save_file({"w": torch.tensor([float("inf"), value]).to(dtype)}, tmp_path / f"{name}.safetensors")
    found = paramcli("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--json", code=1).json
    assert found["tensors"][0]["relative"] == 1
    paramcli("diff", tmp_path / "a.safetensors", tmp_path / "c.safetensors")


def test_exact_means_every_bit(tmp_path, paramcli):
    """0 and -0 are the same number, and differ under --exact, also where one file holds them parametrized."""
    save_file({"w": torch.zeros(2, 2)}, tmp_path / "a.safetensors")
    save_file({"w": -torch.zeros(2, 2)}, tmp_path / "b.safetensors")
    paramcli("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (
        "other bits" in paramcli("diff", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--exact", code=1).out
    )
    for name in "ab":
        paramcli(
            "add",
            tmp_path / f"{name}.safetensors",
            "-t",
            "w",
            "--chain",
            "identity",
            "-o",
            tmp_path / f"{name}2.safetensors",
        )
    paramcli("diff", tmp_path / "a.safetensors", tmp_path / "a2.safetensors", "--exact")
    paramcli("diff", tmp_path / "a.safetensors", tmp_path / "b2.safetensors", "--exact", code=1)


@pytest.mark.parametrize("view", [[], ["--view", "flatten"]])
def test_a_mask_from_a_file_is_the_one_that_is_appended(view, file, tmp_path, paramcli):
    """add --mask on a parametrized tensor stores that mask; a chain without one is refused as on a plain tensor."""
    kernel = torch.randn(4, 2, 2)
    mask = (torch.arange(16).reshape(kernel.shape) % 3 > 0).float()
    save_file({"w": mask}, tmp_path / "mask.safetensors")
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    paramcli("add", file(w=kernel), "-t", "w", "--chain", "max_norm:c=1", *view, "-o", one)
    paramcli("add", one, "-t", "w", "--chain", "mask", "--mask", tmp_path / "mask.safetensors", "-o", two)
    assert torch.equal(load_file(two)["parametrizations.w.1.mask"].reshape(mask.shape), mask.bool())
    paramcli("add", one, "-t", "w", "--chain", "identity", "--mask", tmp_path / "mask.safetensors", code=2)


def test_what_has_no_old_spelling_is_refused(file, tmp_path, paramcli):
    """Two items, and masks or norms seen through a view, mean nothing to code from before parametrize."""
    made = tmp_path / "made.safetensors"
    paramcli("add", file(w=W), "-t", "w", "--chain", "symmetric", "-o", made)
    paramcli("add", made, "-t", "w", "--chain", "prune_l1:amount=0.5", "--spelling", "old", code=2)
    for chain in ("prune_l1:amount=0.5", "weight_norm"):
        add = ("add", file(w=W), "-t", "w", "--chain", chain, "--view", "transpose", "-f", "-o", made)
        assert "no views" in paramcli(*add, "--spelling", "old", code=2).err
        paramcli(*add)
        assert "no views" in paramcli("migrate", made, "--to", "old", code=3).err


def test_the_oldest_spectral_norm_is_migrated_before_it_is_assigned_to(file, tmp_path, paramcli):
    """Its file holds the value beside the original: the message says what to run first, and that works."""
    layer = nn.utils.spectral_norm(nn.Linear(6, 4, bias=False))
    layer(torch.randn(2, 6))
    path = file(weight_orig=layer.weight_orig.detach(), weight=layer.weight.detach(), weight_u=layer.weight_u)
    assert (
        f"try: paramcli migrate {path} --to new first"
        in paramcli("assign", path, "-t", "weight", "--with", "orthogonal", code=3).err
    )
    paramcli("migrate", path, "--to", "new", "-o", tmp_path / "new.safetensors")
    paramcli(
        "assign", tmp_path / "new.safetensors", "-t", "weight", "--with", "orthogonal", "-o", tmp_path / "o.safetensors"
    )


def test_originals_that_a_registration_cannot_make_are_refused(file, paramcli):
    """torch takes the tensor itself where there is no inverse; three originals it cannot be."""
    assert (
        "alpha_stable reaches only"
        in paramcli("add", file(w=torch.eye(4)), "-t", "w", "--chain", "alpha_stable", "--init", "raw", code=3).err
    )


def test_orthogonal_can_be_appended(file, tmp_path, paramcli):
    """Appended to another chain its base is the identity: the value is torch's map of the value before."""
    one, two, three = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "three"))
    paramcli("add", file(w=W), "-t", "w", "--chain", "symmetric", "-o", one)
    paramcli("add", one, "-t", "w", "--chain", "orthogonal:map=cayley", "-o", two)
    paramcli("verify", two)
    paramcli("remove", two, "-o", three)
    A = (W + W.T) / 2
    A = A.tril() - A.tril().T
    torch.testing.assert_close(load_file(three)["w"], torch.linalg.solve(torch.eye(4) - A / 2, torch.eye(4) + A / 2))


def test_initialisers_reach_every_view_and_say_where_they_have_no_values(file, tmp_path, paramcli):
    """Each head of a projection becomes orthogonal; complex orthogonal draws torch does not have."""
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    paramcli("add", file(w=torch.randn(4, 8)), "-t", "w", "--chain", "orthogonal", "--view", "heads=2", "-o", one)
    paramcli("assign", one, "-t", "w", "--with", "orthogonal", "-o", two)
    paramcli("verify", two)
    paramcli("remove", two, "-f", "-o", one)
    for block in load_file(one)["w"].split(4, dim=1):
        torch.testing.assert_close(block @ block.T, torch.eye(4), rtol=0, atol=1e-5)
    assert (
        "complex"
        in paramcli(
            "assign", file(w=torch.randn(4, 4, dtype=torch.complex64)), "-t", "w", "--with", "orthogonal", code=3
        ).err
    )


@pytest.mark.parametrize("chain", ["lora:rank=2", "minlora:rank=2"])
def test_an_adapter_on_a_zero_weight_verifies(chain, file, tmp_path, paramcli):
    """Also once B is trained: the change is then all there is."""
    made = tmp_path / "made.safetensors"
    paramcli("add", file(w=torch.zeros(6, 6)), "-t", "w", "--chain", chain, "-o", made)
    paramcli("verify", made)
    host = nn.Module()
    host.w = nn.Parameter(torch.zeros(6, 6))
    import paramcli as live

    live.load(host, made)
    host.parametrizations.w[0].lora_B.data.normal_()
    assert live.verify(host)[0].ok


def test_an_overflow_is_not_called_a_zero_norm(file, paramcli):
    """exp(30) is no float16: the message names the dtype; a NaN in a complex original is told as such."""
    path = file(parametrizations__w__original=torch.full((4, 4), 30.0, dtype=torch.float16))
    assert "beyond the range of float16" in paramcli("remove", path, "--chain", "positive:f=exp", code=3).err
    path = file(parametrizations__w__original=torch.full((2, 2), float("nan"), dtype=torch.complex64))
    assert "original has 4 NaN" in paramcli("remove", path, "--chain", "hermitian", code=3).err


def test_a_tensor_beyond_squares_is_measured(file, paramcli):
    """Squares of 1e200 are infinite: what is that far off is off, with its number, and discover looks at it as at the
    next.
    """
    path = file(w=1e200 * torch.randn(4, 4, dtype=torch.float64), x=torch.eye(3))
    assert "e+200" in paramcli("verify", path, "-t", "w", "--constraint", "spectral_cap:c=1", code=1).out
    assert [t["tensor"] for t in paramcli("discover", path, "--json").json["tensors"]] == ["w", "x"]


def test_linear_algebra_that_fails_is_the_tensor_s_fault(file, paramcli, monkeypatch):
    """A decomposition that does not converge: one line and exit 3, and discover goes on to the next tensor."""

    def failing(real):
        def fails(A, **how):
            if A.size(-1) == 4:
                raise torch.linalg.LinAlgError("it did not converge")
            return real(A, **how)

        return fails

    for name in ("svdvals", "eigvalsh", "cholesky_ex"):
        monkeypatch.setattr(torch.linalg, name, failing(getattr(torch.linalg, name)))
    path = file(w=torch.randn(4, 4), x=torch.eye(3))
    assert "w: " in paramcli("verify", path, "-t", "w", "--constraint", "low_rank:rank=2", code=3).err
    assert [t["tensor"] for t in paramcli("discover", path, "--json").json["tensors"]] == ["x"]


def test_discover_shows_names_escaped(file, paramcli):
    """A name with an escape sequence reaches no terminal as it is, where the tensor is skipped too."""
    path = file(**{"\x1b[31mred.parametrizations.weight.original": W})
    assert "\x1b" not in paramcli("discover", path).err


def test_a_number_too_long_for_python_is_no_bug(fc_checkpoint, tmp_path, paramcli):
    """A recipe with an integer of 5,000 digits is refused as text that is no recipe."""
    (tmp_path / "r.toml").write_text('[[edit]]\ncommand = "add"\ntensor = "w"\nchain = "skew"\nseed = ' + "1" * 5000)
    paramcli("apply", tmp_path / "r.toml", fc_checkpoint, code=2)


def test_a_zero_in_a_direction_of_one_dimension_is_named(tmp_path, paramcli):
    """Weight norm on a vector divides by each entry: the one that is zero is said."""
    save_file({"m.weight_g": torch.ones(3), "m.weight_v": torch.tensor([1.0, 0.0, 2.0])}, tmp_path / "z.safetensors")
    said = paramcli("remove", tmp_path / "z.safetensors", code=3).err
    assert "m.weight: its direction v is zero (slice 1 of dimension 0 has no length to divide by)" in said
