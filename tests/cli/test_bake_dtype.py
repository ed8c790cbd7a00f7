"""`remove --dtype`: what is said is of the values as they are written."""

import pytest
import torch
from safetensors.torch import load_file, save_file


@pytest.fixture
def added(tmp_path, paramcli):
    """Puts a chain on a weight and gives the file."""

    def make(W, chain):
        save_file({"w": W}, tmp_path / "w.safetensors")
        paramcli("add", tmp_path / "w.safetensors", "-t", "w", "--chain", chain, "-f", "-o", tmp_path / "p.safetensors")
        return tmp_path / "p.safetensors"

    return make


def test_the_imaginary_parts_of_a_value_stay(added, tmp_path, paramcli):
    """No floating dtype has room for them: the value keeps its own, byte for byte, and that is said."""
    path = added(torch.randn(4, 4, dtype=torch.complex64), "skew_hermitian,matrix_exp")
    plain, out = tmp_path / "plain.safetensors", tmp_path / "out.safetensors"
    paramcli("remove", path, "-o", plain)
    told = paramcli("remove", path, "--dtype", "float32", "-o", out).err
    assert "w: complex64 as before: float32 has no imaginary parts" in told
    assert torch.equal(load_file(out)["w"], load_file(plain)["w"])
    paramcli("verify", out)


LEFT = {
    "positive: one goes to zero": (torch.tensor([[1e-22, 1.0], [2.0, 3.0]]), "positive", "float16"),
    "symmetric: all go to infinity": (1e6 * torch.eye(4), "symmetric", "float16"),
}


@pytest.mark.parametrize("what", LEFT)
def test_a_constraint_that_the_cast_leaves_fails(what, added, tmp_path, paramcli):
    """The bake says what verify says of what it wrote; `--verify` keeps it from being written."""
    W, chain, dtype = LEFT[what]
    line = ["remove", added(W, chain), "--dtype", dtype, "-o", tmp_path / "out.safetensors"]
    paramcli(*line, "--verify", code=1)
    assert not (tmp_path / "out.safetensors").exists()
    assert "FAILS" in paramcli(*line).out
    paramcli("verify", tmp_path / "out.safetensors", code=1)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_numbers_are_of_what_is_written(dtype, count, tmp_path, paramcli):
    """`moved` is how far the cast moved the value, as diff sees the two files; residual and tolerance are verify's."""
    save_file({f"w{n}": torch.randn(24, 24) for n in range(count)}, tmp_path / "w.safetensors")
    path, plain, out = (tmp_path / f"{name}.safetensors" for name in ("p", "plain", "out"))
    paramcli("add", tmp_path / "w.safetensors", "-t", "*", "--chain", "orthogonal", "-o", path)
    paramcli("remove", path, "-o", plain)
    told = paramcli("remove", path, "--dtype", dtype, "-o", out, "--json").json["tensors"]
    exact, cast = load_file(plain), load_file(out)
    seen = paramcli("verify", out, "--json").json["tensors"]
    for one, again in zip(told, seen, strict=True):
        W = exact[one["tensor"]].double()
        moved = ((cast[one["tensor"]].double() - W).norm() / W.norm()).item()
        assert one["moved"] == pytest.approx(moved, rel=1e-6) and moved > 0
        check = again["checks"][0]
        assert (one["residual"], one["tolerance"]) == (check["residual"], check["tolerance"])
