"""The commands with --device: the CPU's numbers, the same bytes each time, and files of any device."""

import html
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import paramcli as api
from paramcli.fitting import measure
from paramcli.maths.numbers import eps

from ..maths.members import rotation
from . import DEVICE, NEEDS_GPU

pytestmark = NEEDS_GPU
NAMES = ["cuda", "cuda:0", "auto"]
# What is put on which tensors, of every dtype and way of computing: alone, in stacks, by rows.
EDITS = [
    ("fc.weight", "skew,cayley", []),
    ("gc.weight", "orthogonal", []),
    ("layers.*.weight", "skew,matrix_exp", []),
    ("half.weight", "symmetric", []),
    ("conv.weight", "weight_norm", []),
    ("double.weight", "weight_norm:dim=1", []),
    ("wide.weight", "unit_norm", []),
    ("rnn.weight", "polar", ["--view", "blocks=4"]),
    ("sn.weight", "spectral_norm", []),
    ("pruned.weight", "prune_l1:amount=0.5", []),
]


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """plain.safetensors in the working folder."""
    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    shapes = {
        "fc": ((48, 48), torch.float32),
        "gc": ((40, 24), torch.float64),
        "half": ((32, 32), torch.bfloat16),
        "conv": ((16, 8, 3, 3), torch.float16),
        "double": ((20, 30), torch.float64),
        "wide": ((4096, 4096), torch.float32),
        "rnn": ((64, 16), torch.float32),
        "sn": ((24, 40), torch.float32),
        "pruned": ((64, 64), torch.float32),
        **{f"layers.{n}": ((16, 16), torch.float32) for n in range(12)},
    }
    save_file(
        {f"{name}.weight": torch.randn(shape, generator=g).to(dtype) for name, (shape, dtype) in shapes.items()},
        "plain.safetensors",
    )
    return tmp_path


def put_on(paramcli, device: str, out: str) -> str:
    """All edits, one after another; the name of the last file."""
    ckpt = "plain.safetensors"
    for number, (pattern, chain, more) in enumerate(EDITS):
        made = f"{out}-{number}.safetensors"
        paramcli("add", ckpt, "-t", pattern, "--chain", chain, *more, "--device", device, "-o", made, "-q")
        ckpt = made
    return ckpt


def same_weights(one: str, two: str) -> None:
    """Both files have one weight under each name, to 4 n eps for matrices of n = 64: what the CPU and the device add up
    in their own order.
    """
    a, b = load_file(one), load_file(two)
    assert a.keys() == b.keys()
    for name, W in a.items():
        assert W.dtype == b[name].dtype and measure.moved(W, b[name]) <= 256 * eps(W.dtype), name


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@pytest.mark.parametrize("device", NAMES)
def test_what_is_put_on_holds_and_bakes_to_the_cpus_weights(device, plain, paramcli):
    """add, verify and remove: made there it holds here and there, and the bakes of one file on both are
    equal weights.
    """
    made = put_on(paramcli, device, "made")
    for where, baked in ((device, "there.safetensors"), ("cpu", "here.safetensors")):
        paramcli("verify", made, "--device", where)
        paramcli("remove", made, "--bake", "--device", where, "-o", baked)
    same_weights("there.safetensors", "here.safetensors")
    paramcli("verify", "there.safetensors", "--device", device)


def test_the_same_command_gives_the_same_bytes(plain, paramcli):
    """add, assign and bake twice; "cuda" is "cuda:0" where one process works."""
    made = [put_on(paramcli, device, name) for device, name in (("cuda", "one"), ("cuda:0", "two"))]
    assert content(made[0]) == content(made[1])
    for number in range(2):
        paramcli(
            "assign",
            made[0],
            "-t",
            "fc.weight",
            "--with",
            "orthogonal",
            "--device",
            DEVICE,
            "-o",
            f"assigned{number}.safetensors",
        )
        paramcli("remove", made[0], "--bake", "--device", DEVICE, "-o", f"baked{number}.safetensors")
    assert content("assigned0.safetensors") == content("assigned1.safetensors") and content(
        "baked0.safetensors"
    ) == content("baked1.safetensors")
    paramcli("verify", "assigned0.safetensors", "--device", DEVICE)


def test_an_assigned_value_is_the_cpus(plain, paramcli):
    """A tensor of another file, through the chain's right inverse."""
    paramcli("add", "plain.safetensors", "-t", "fc.weight", "--chain", "skew,cayley", "-o", "made.safetensors")
    save_file({"fc.weight": rotation(48, 1).float().contiguous()}, "wanted.safetensors")
    for where, out in ((DEVICE, "there.safetensors"), ("cpu", "here.safetensors")):
        paramcli(
            "assign",
            "made.safetensors",
            "-t",
            "fc.weight",
            "--from",
            "wanted.safetensors",
            "--device",
            where,
            "-o",
            out,
        )
        paramcli("remove", out, "--bake", "-o", f"baked.{out}")
    same_weights("baked.there.safetensors", "baked.here.safetensors")


@pytest.mark.parametrize("device", NAMES)
def test_discover_finds_what_it_finds_on_the_cpu(device, plain, paramcli):
    """Each tensor has the same sets, held and nearly held."""
    save_file(
        {"r": rotation(24, 0).float().contiguous(), "s": torch.eye(16).half(), "z": torch.zeros(8, 8)}, "s.safetensors"
    )
    told = [
        paramcli("discover", "s.safetensors", "--device", where, "--json").json["tensors"] for where in (device, "cpu")
    ]
    names = [
        [(t["tensor"], [c["constraint"] for c in t["holds"]], [c["constraint"] for c in t["nearly"]]) for t in tensors]
        for tensors in told
    ]
    assert names[0] == names[1] and len(names[0]) == 3


@pytest.mark.parametrize("device", NAMES)
def test_spectra_are_the_cpus(device, plain, paramcli):
    """Singular values to their digits, and eigenvalues whatever their order."""
    told = [
        paramcli(
            "spectrum",
            "plain.safetensors",
            "-t",
            "fc.weight",
            "-t",
            "conv.weight",
            "--view",
            "flatten",
            "--device",
            d,
            "--json",
        ).json
        for d in (device, "cpu")
    ]
    for there, here in zip(*(document["tensors"] for document in told), strict=True):
        for a, b in zip(there["matrices"], here["matrices"], strict=True):
            np.testing.assert_allclose(
                a["singular_values"], b["singular_values"], rtol=1e-10, atol=1e-12 * b["sigma_max"]
            )
            if b["eigenvalues"]:
                sums = [np.array([complex(*z) for z in m["eigenvalues"]]) for m in (a, b)]
                for power in (1, 2, 3):  # the traces of the powers need no order
                    np.testing.assert_allclose(
                        (sums[0] ** power).sum(), (sums[1] ** power).sum(), atol=1e-9 * b["spectral_radius"] ** power
                    )


def test_an_extracted_adapter_is_the_cpus(plain, paramcli):
    """By a decomposition and by a sketch: the same change, as near; and the same bytes each time."""
    g, before = torch.Generator().manual_seed(1), load_file("plain.safetensors")
    names = [name for name, W in before.items() if W.dtype in (torch.float32, torch.float64) and W.numel() > 900]
    after = dict(before)
    for name in names:
        out, rest = before[name].flatten(1).shape
        D = torch.randn(out, 3, generator=g) @ torch.randn(3, rest, generator=g)
        after[name] = before[name] + D.to(before[name].dtype)
    save_file(after, "tuned.safetensors")
    found = {}
    for place, device in (("cpu", "cpu"), ("gpu", DEVICE), ("again", DEVICE)):
        arguments = ("--base", "plain.safetensors", "--rank", 3, "--device", device, "-o", place, "--json")
        said = paramcli("extract", "tuned.safetensors", *arguments).json["tensors"]
        assert [one["rank"] for one in said] == [3] * len(names) and all(one["lost"] < 1e-5 for one in said)
        found[place] = load_file(f"{place}/adapter_model.safetensors")
    for name in names:
        A, B = (f"base_model.model.{name.replace('weight', f'lora_{x}.weight')}" for x in "AB")
        here, there = (found[place][B].double() @ found[place][A].double() for place in ("cpu", "gpu"))
        assert (here - there).norm() <= 1e-5 * here.norm()
    assert all(torch.equal(T, found["again"][key]) for key, T in found["gpu"].items())


def test_a_report_names_the_device(plain, paramcli):
    """The card's own name, in the page and in the document."""
    paramcli(
        "add",
        "plain.safetensors",
        "-t",
        "fc.weight",
        "--chain",
        "skew,cayley",
        "--device",
        DEVICE,
        "-o",
        "made.safetensors",
    )
    told = paramcli("verify", "made.safetensors", "--device", DEVICE, "--report", "r.html", "--json", "--sha256").json[
        "evidence"
    ]
    assert told["device"] == f"{DEVICE} ({torch.cuda.get_device_name(0)})"
    assert told["device"] in html.unescape(Path("r.html").read_text())


def test_a_device_that_is_not_there_is_a_mistake_of_the_command_line(plain, paramcli):
    """Exit 2 with the numbers there are."""
    count = torch.cuda.device_count()
    assert (
        f"there are {count}"
        in paramcli(
            "verify", "plain.safetensors", "-t", "*", "--constraint", "any", "--device", f"cuda:{count}", code=2
        ).err
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("device", ["cpu", DEVICE])
def test_a_checkpoint_saved_on_the_gpu_is_read_anywhere(zipped, device, tmp_path, paramcli, monkeypatch):
    """Its tensors carry the device's tag; the bytes are the same, and commands put them where they are told to."""
    monkeypatch.chdir(tmp_path)
    model = nn.utils.parametrizations.weight_norm(nn.Linear(12, 8)).to(DEVICE)
    torch.save({"model": model.state_dict(), "epoch": 3}, "saved.pt", _use_new_zipfile_serialization=zipped)
    assert b"cuda:0" in content("saved.pt")
    assert {t["dtype"] for t in paramcli("inspect", "saved.pt", "--json").json["tensors"]} == {"float32"}
    paramcli("convert", "saved.pt", "-o", "all.safetensors")
    assert all(
        torch.equal(tensor, model.state_dict()[name].cpu()) for name, tensor in load_file("all.safetensors").items()
    )
    paramcli("remove", "saved.pt", "--bake", "--device", device, "-o", "baked.safetensors")
    torch.testing.assert_close(load_file("baked.safetensors")["weight"], model.weight.detach().cpu())
    if device == DEVICE:  # there it is torch's own kernel
        assert torch.equal(load_file("baked.safetensors")["weight"], model.weight.detach().cpu())


def test_a_live_model_on_the_gpu_is_parametrized_trained_saved_and_loaded(tmp_path):
    """register, save, load and verify on a module whose parameters lie there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).to(DEVICE)
    api.register(model[0], "weight", "skew,cayley")
    api.register(model[2], "weight", "weight_norm")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 16, device=DEVICE)).square().mean().backward()
        optimizer.step()
    assert all(verdict.ok for verdict in api.verify(model))
    api.save(model, tmp_path / "trained.safetensors")
    assert all(verdict.ok for verdict in api.verify(tmp_path / "trained.safetensors"))
    fresh = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).to(DEVICE)
    api.load(fresh, tmp_path / "trained.safetensors")
    assert (
        fresh[0].weight.device.type == DEVICE
        and torch.equal(fresh[0].weight, model[0].weight)
        and torch.equal(fresh[2].weight, model[2].weight)
    )


def test_the_plan_is_the_same_whatever_the_device(plain, paramcli):
    """--dry-run computes nothing, and its document names the same keys."""
    line = [
        "add",
        "plain.safetensors",
        "-t",
        "fc.weight",
        "--chain",
        "orthogonal",
        "-n",
        "--json",
        "-o",
        "x.safetensors",
    ]
    told = [json.dumps(paramcli(*line, "--device", where).json["tensors"]) for where in (DEVICE, "cpu")]
    assert told[0] == told[1] and sorted(os.listdir(plain)) == ["plain.safetensors"]
