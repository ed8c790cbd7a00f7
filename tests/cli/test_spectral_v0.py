"""The oldest spectral norm, torch 0.4's: original, u, and the value in place of a v."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize


def saved(path, shape, dtype=torch.float32, steps=50, W=None):
    """A file of it after so many training steps; gives (original, value, the v of the last step)."""
    torch.manual_seed(1)
    W = (torch.randn(shape) if W is None else W).to(dtype).float()
    M, u = W.flatten(1), normalize(torch.randn(shape[0]), dim=0)
    for _ in range(steps):
        v = normalize(M.T @ u, dim=0)
        u = normalize(M @ v, dim=0)
    value = (W / (u @ M @ v)).to(dtype)
    save_file({"c.weight_orig": W.to(dtype), "c.weight": value, "c.weight_u": u.to(dtype)}, path)
    return W, value, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (8, 4, 3, 3)])
@pytest.mark.parametrize("steps", [1, 50])
def test_the_bake_is_the_value_that_is_stored(shape, dtype, steps, tmp_path, paramcli):
    """Up to the rounding of a quotient: sigma is found from all entries together, in double precision."""
    path, out = tmp_path / "v0.safetensors", tmp_path / "out.safetensors"
    _, value, _ = saved(path, shape, dtype, steps)
    paramcli("remove", path, "-o", out)
    got = load_file(out)["c.weight"]
    # In float32 the quotient's own sum is in float32.
    torch.testing.assert_close(
        got, value, rtol=(8 if dtype == torch.float32 else 1.01) * torch.finfo(dtype).eps, atol=0
    )
    assert dtype == torch.float32 or (got != value).double().mean() < 0.1


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (8, 4, 3, 3)])
@pytest.mark.parametrize("steps", [1, 50])
def test_the_v_of_the_last_step_is_found(shape, steps, tmp_path, paramcli):
    """Of wide matrices too; and once the power method has converged, verify of the new spelling holds."""
    path, out = tmp_path / "v0.safetensors", tmp_path / "new.safetensors"
    _, _, v = saved(path, shape, steps=steps)
    paramcli("migrate", path, "--to", "new", "-o", out)
    got = load_file(out)["c.parametrizations.weight.0._v"]
    torch.testing.assert_close(got, v, rtol=0, atol=2e-3)
    assert abs(got.norm() - 1) < 1e-6
    paramcli("verify", out, code=0 if steps == 50 else 1)


def test_a_zero_in_the_weight_is_no_matter(tmp_path, paramcli):
    """What is 0 / 0 there says nothing of sigma."""
    path, out = tmp_path / "v0.safetensors", tmp_path / "out.safetensors"
    torch.manual_seed(0)
    W = torch.randn(16, 144)
    W[3, 5] = 0
    _, value, _ = saved(path, (16, 144), W=W)
    paramcli("remove", path, "-o", out)
    torch.testing.assert_close(load_file(out)["c.weight"], value, rtol=2e-7, atol=0)
    paramcli("migrate", path, "--to", "new", "-o", out, "-f")
    assert all(T.isfinite().all() for T in load_file(out).values())


@pytest.mark.parametrize("what", ["all zero", "another value"])
def test_a_value_of_another_weight_is_refused(what, tmp_path, paramcli):
    """There is no sigma that it was divided by; nothing is written."""
    path, out = tmp_path / "v0.safetensors", tmp_path / "out.safetensors"
    saved(path, (16, 144))
    tensors = load_file(path)
    if what == "all zero":
        tensors = {key: T * (key == "c.weight_u") for key, T in tensors.items()}
    else:
        tensors["c.weight"] = torch.randn(16, 144)
    save_file(tensors, path)
    for command in (["remove"], ["migrate", "--to", "new"]):
        assert "is no multiple of c.weight_orig" in paramcli(command[0], path, *command[1:], "-o", out, code=3).err
    assert not out.exists()
