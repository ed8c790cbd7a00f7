"""What an edit prints as holds is in the record of what it wrote, and verify finds it there again, by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from paramcli.chain import parse_chain
from paramcli.errors import InputRefused
from paramcli.fitting.skeleton import outline
from paramcli.fitting.torch_module import require_fit
from paramcli.maths.numbers import wide
from paramcli.registry import CONSTRAINTS, PARAMETRIZATIONS, constraint
from paramcli.view import IDENTITY

CHAINS = [
    chain
    for entry in PARAMETRIZATIONS.values()
    for chain in entry.examples
    or (entry.name + "".join(f":{argument.name}=2" for argument in entry.arguments if argument.required),)
]
SHAPES = [(8, 8), (12, 8), (8, 12), (8, 4, 3, 3), (8,)]
DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def shape_of(chain: str) -> tuple[int, ...]:
    """The first shape that the chain takes."""
    for shape in SHAPES:
        try:
            require_fit(parse_chain(chain), IDENTITY, shape, dtypes_of(chain)[0])
            outline(parse_chain(chain), shape, dtypes_of(chain)[0])
            return shape
        except (InputRefused, ValueError, IndexError, RuntimeError):
            continue
    raise AssertionError(f"no shape for {chain}")


def dtypes_of(chain: str) -> tuple[torch.dtype, ...]:
    return DTYPES if all(link.real for link in parse_chain(chain).links) else (torch.complex64,)


def told(result, path, paramcli) -> dict[str, bool]:
    """Tensor -> did the edit print that it holds? And verify of its output says the same, by name."""
    said = {
        t["tensor"]: t["residual"] <= t["tolerance"] for t in result.json["tensors"] if isinstance(t["residual"], float)
    }
    said |= {t["tensor"]: False for t in result.json["tensors"] if isinstance(t["residual"], str)}  # NaN
    if not said:
        return said
    found = paramcli("verify", path, "--json", code=None)
    assert found.code == (0 if all(said.values()) else 1), found.err
    measured = {t["tensor"]: t for t in found.json["tensors"]}
    for tensor, holds in said.items():
        first = measured[tensor]["checks"][0]
        assert (first["ok"], measured[tensor]["ok"]) == (holds, holds), (tensor, measured[tensor])
        assert first["constraint"].partition(":")[0] in (*CONSTRAINTS, "norm"), first
    return said


def claims(path) -> dict[str, str | None]:
    """Tensor -> the constraint that the record of a file names."""
    with safe_open(path, "pt") as file:
        record = (file.metadata() or {}).get("paramcli")
    return (
        {} if record is None else {name: entry["constraint"] for name, entry in json.loads(record)["tensors"].items()}
    )


@pytest.mark.parametrize("chain", CHAINS)
def test_what_an_edit_prints_as_holds_is_verified_again(chain, tmp_path, paramcli):
    """Added to members, baked, assigned, appended to, registered raw, spelt the old way, migrated, and in a recipe."""
    parsed = parse_chain(chain)
    plain, added, baked, old, new, out = (
        tmp_path / f"{name}.safetensors" for name in ("plain", "added", "baked", "old", "new", "out")
    )
    member = constraint(parsed.constraint or "any").sample(
        torch.Size(shape_of(chain)), torch.Generator().manual_seed(1), wide(dtypes_of(chain)[0])
    )
    save_file({f"w{i}": member.to(dtype) for i, dtype in enumerate(dtypes_of(chain))}, plain)
    on = ("-t", "w*", "--chain", chain)

    def edit(command, source, *arguments, to=out):
        """{} too where the edit is refused: what it did not do it did not print."""
        result = paramcli(command, source, *arguments, "-o", to, "-f", "--json", code=None)
        assert result.code in (0, 3), result.err
        return told(result, to, paramcli) if result.code == 0 else {}

    first = (
        edit("add", plain, *on, to=added)
        if not parsed.uninvertible()
        else edit("add", plain, *on, "--init", "raw", to=added)
    )
    assert added.exists(), "no edit of this chain is tried"
    whole = edit("remove", added, to=baked)
    assert whole == first and set(whole) == {name for name, spec in claims(baked).items() if spec is not None}
    edit("add", added, "-t", "w*", "--chain", "max_norm:c=0.5")
    edit("add", plain, *on, "--init", "raw", to=new)
    if new.exists():
        edit("remove", new)
    if not parsed.uninvertible():
        edit("assign", added, "-t", "w*", "--from", baked)
        recipe = tmp_path / "recipe.toml"
        recipe.write_text(
            f'[[edit]]\ncommand = "add"\ntensor = ["w*"]\nchain = "{chain}"\n\n[[edit]]\ncommand = "remove"\n'
        )
        assert edit("apply", recipe, plain) == whole
    if parsed.links[-1].entry.old_form and len(parsed) == 1:
        edit("add", plain, *on, "--spelling", "old", to=old)
        assert edit("remove", old) == whole
        paramcli("migrate", old, "--to", "new", "-o", new, "-f")
        assert edit("remove", new) == whole


def spectral(spelling: str, side: int) -> dict[str, torch.Tensor]:
    """Weights under spectral norm, 16 x `side`, as torch and what came before it store them, with u a few steps from
    its end.
    """
    torch.manual_seed(side)
    W, u = torch.randn(16, side), torch.nn.functional.normalize(torch.randn(16), dim=0)
    for _ in range(30):
        v = torch.nn.functional.normalize(W.T @ u, dim=0)
        u = torch.nn.functional.normalize(W @ v, dim=0)
    if spelling == "new":
        return {
            "l.parametrizations.weight.original": W,
            "l.parametrizations.weight.0._u": u,
            "l.parametrizations.weight.0._v": v,
        }
    if spelling == "v0":
        return {"l.weight_orig": W, "l.weight": W / (u @ W @ v), "l.weight_u": u}
    return {"l.weight_orig": W, "l.weight_u": u, "l.weight_v": v}


@pytest.mark.parametrize("side", [16, 12])
@pytest.mark.parametrize("spelling", ["new", "old", "v0"])
def test_a_scaled_spectral_norm_is_found(spelling, side, tmp_path, paramcli):
    """Baked, and multiplied behind the record's back: verify names it, square or not, in every spelling."""
    source, baked, scaled = (tmp_path / f"{name}.safetensors" for name in ("source", "baked", "scaled"))
    save_file({**spectral(spelling, side), "other.weight": torch.eye(3)}, source)
    result = paramcli("remove", source, "-o", baked, "--json")
    assert told(result, baked, paramcli) == {"l.weight": True}
    with safe_open(baked, "pt") as file:
        metadata = file.metadata()
    value = load_file(baked)["l.weight"]
    for factor in (5, 1.05, 0.95):
        save_file({"l.weight": factor * value, "other.weight": torch.eye(3)}, scaled, metadata)
        failed = paramcli("verify", scaled, "--json", code=1).json["tensors"]
        assert [(t["tensor"], t["ok"]) for t in failed] == [("l.weight", False)]
        sigma = float(failed[0]["checks"][0]["detail"].removeprefix("sigma "))
        assert sigma == pytest.approx(torch.linalg.matrix_norm((factor * value).double(), 2).item(), rel=1e-7)


def test_what_u_and_v_had_left_is_what_a_bake_keeps(tmp_path, paramcli):
    """The record of a baked weight says how far from 1 its norm was, rounded up; a weight that was converged has no
    such word.
    """
    source, baked = tmp_path / "source.safetensors", tmp_path / "baked.safetensors"
    torch.manual_seed(0)
    W = torch.randn(64, 64)
    live = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(64, 64, bias=False))
    live.eval()
    raw = {f"raw.{key}": tensor.contiguous() for key, tensor in live.state_dict().items()}
    U, _, Vh = torch.linalg.svd(W.double())
    exact = {"original": W, "0._u": U[:, 0].float(), "0._v": Vh[0].float()}
    save_file({**raw, **{f"exact.parametrizations.weight.{role}": tensor for role, tensor in exact.items()}}, source)
    paramcli("remove", source, "-o", baked)
    left = torch.linalg.matrix_norm(load_file(baked)["raw.weight"].double(), 2).item() - 1
    kept = claims(baked)
    assert kept["exact.weight"] == "unit_spectral_norm:dim=0"
    within = float(kept["raw.weight"].removeprefix("unit_spectral_norm:dim=0:within="))
    assert 1e-3 < left <= within <= 1.01 * left


def test_unrelated_u_and_v_promise_nothing(tmp_path, paramcli):
    """u and v that belong to another weight, or to its second singular value, leave the norm above 1, and verify says
    so.
    """
    torch.manual_seed(0)
    W = torch.randn(20, 30)
    U, _, Vh = torch.linalg.svd(W.double())
    pairs = {
        "random": [torch.nn.functional.normalize(torch.randn(size), dim=0) for size in (20, 30)],
        "second": [U[:, 1].float().contiguous(), Vh[1].float().contiguous()],
        "short": [0.99 * U[:, 0].float(), Vh[0].float().contiguous()],
    }
    tensors = {}
    for name, (u, v) in pairs.items():
        parts = {"original": W.clone(), "0._u": u, "0._v": v}
        tensors |= {f"{name}.parametrizations.weight.{role}": tensor for role, tensor in parts.items()}
    save_file(tensors, tmp_path / "w.safetensors")
    found = paramcli("verify", tmp_path / "w.safetensors", "--json", code=1).json["tensors"]
    assert {t["tensor"]: [c["ok"] for c in t["checks"]] for t in found} == {
        "random.weight": [False, True],
        "second.weight": [False, True],
        "short.weight": [False, False],
    }


def test_a_tensor_without_a_claim_proves_nothing(tmp_path, paramcli):
    """It is shown and named as such and never counted; where there are only such, verify is exit 3."""
    path = tmp_path / "half.safetensors"
    save_file(
        {**spectral("new", 12), "a.bias": torch.randn(5), "b.steps": torch.tensor([3]), "c.flag": torch.tensor(True)},
        path,
    )
    shown = paramcli("verify", path, "-t", "*")
    assert [
        line.split()[-2:] for line in shown.out.splitlines() if line.split()[0] in ("a.bias", "b.steps", "c.flag")
    ] == [["no", "claim"]] * 3
    assert "1 tensor in" in shown.err and "every constraint holds; 3 without a claim: " in shown.err
    for name in ("a.bias", "b.steps", "c.flag"):
        assert name in shown.err
    listed = {
        t["tensor"]: (t["checks"], t["ok"]) for t in paramcli("verify", path, "-t", "*", "--json").json["tensors"]
    }
    assert listed["a.bias"] == ([], None) and listed["l.weight"][1] is True
    paramcli("verify", path, "-t", "*", "--report", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page.count("no claim") == 3 and "1 tensor: every constraint holds; 3 without a claim" in page
    for chosen in (["a.bias"], ["a.*", "b.*", "c.*"]):
        refused = paramcli("verify", path, *(word for name in chosen for word in ("-t", name)), code=3)
        assert "make" in refused.err and "no claim (in " in refused.err and "holds" not in refused.out + refused.err
    assert paramcli("verify", path, "-t", "a.bias", "--constraint", "any").err.count("every constraint holds") == 1


def test_a_baked_weight_norm_claims_nothing(tmp_path, paramcli):
    """Every tensor has lengths and directions, so nothing is left to prove of one that is baked."""
    path, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    save_file({"l.weight_g": torch.rand(4, 1) + 1, "l.weight_v": torch.randn(4, 6)}, path)
    assert paramcli("verify", path, "--json").json["tensors"][0]["checks"][0]["constraint"] == "norm"
    paramcli("remove", path, "-o", out)
    assert "no claim" in paramcli("verify", out, "-t", "l.weight", code=3).err
    paramcli("verify", out, code=3)


def test_infinity_is_a_finding_though_nothing_is_claimed(tmp_path, paramcli):
    """A tensor without a claim that has NaN in it fails by name."""
    save_file({**spectral("new", 12), "bad": torch.tensor([1.0, float("nan")])}, tmp_path / "w.safetensors")
    found = {
        t["tensor"]: t["ok"]
        for t in paramcli("verify", tmp_path / "w.safetensors", "-t", "*", "--json", code=1).json["tensors"]
    }
    assert found == {"l.weight": True, "bad": False}


def test_the_chain_that_assign_is_told_is_recorded(tmp_path, paramcli):
    """Keys that do not tell their chain do so after `assign --chain`: what it printed as holds is verified again."""
    path, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    torch.manual_seed(0)
    save_file({"l.parametrizations.weight.original": torch.randn(6, 6)}, path)
    Q = torch.linalg.matrix_exp((lambda X: X - X.T)(0.3 * torch.randn(6, 6)))
    save_file({"l.weight": Q}, tmp_path / "q.safetensors")
    paramcli("verify", path, code=3)
    result = paramcli(
        "assign",
        path,
        "-t",
        "l.weight",
        "--chain",
        "skew,cayley",
        "--from",
        tmp_path / "q.safetensors",
        "-o",
        out,
        "--json",
    )
    assert told(result, out, paramcli) == {"l.weight": True}


def test_the_edit_prints_what_the_record_says(tmp_path, paramcli):
    """Where a record holds a chain's value to another set than its own, a bake measures that set."""
    path, out = tmp_path / "w.safetensors", tmp_path / "out.safetensors"
    record = {
        "schema": 1,
        "version": "0.1.0",
        "tensors": {"w": {"chain": "skew", "constraint": "symmetric", "state": "parametrized", "view": None}},
    }
    torch.manual_seed(0)
    save_file(
        {"parametrizations.w.original": torch.randn(6, 6)}, path, {"format": "pt", "paramcli": json.dumps(record)}
    )
    result = paramcli("remove", path, "-o", out, "--json")
    assert told(result, out, paramcli) == {"w": False}
