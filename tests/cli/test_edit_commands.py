"""add, assign, remove and verify as a user types them."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def test_the_three_commands_that_everything_hangs_on(fc_checkpoint, tmp_path, paramcli):
    """add, remove --bake and verify without -o write the default names; a row scaled by 1.01 then fails."""
    before = sha(fc_checkpoint)
    paramcli("add", fc_checkpoint, "--tensor", "fc.weight", "--chain", "skew,cayley")
    paramcli("remove", tmp_path / "ckpt.parametrized.safetensors", "--bake")
    proof = paramcli("verify", tmp_path / "ckpt.baked.safetensors", "--json").json
    assert proof["ok"] and proof["tensors"][0]["checks"][0]["constraint"] == "special_orthogonal"
    baked = state(tmp_path / "ckpt.baked.safetensors")
    Q = baked["fc.weight"].double()
    torch.testing.assert_close(Q @ Q.T, torch.eye(16, dtype=torch.float64), atol=1e-5, rtol=0)
    for name, tensor in state(fc_checkpoint).items():
        if name != "fc.weight":
            assert torch.equal(baked[name], tensor)
    with safe_open(tmp_path / "ckpt.baked.safetensors", "pt") as file:
        metadata = file.metadata()
    baked["fc.weight"][3] *= 1.01
    save_file(baked, tmp_path / "off.safetensors", metadata)
    result = paramcli("verify", tmp_path / "off.safetensors", code=1)
    assert "FAILS" in result.out
    assert sha(fc_checkpoint) == before


def test_lstm_gates_by_blocks(fixtures, tmp_path, paramcli):
    """Each gate of a real LSTM's recurrent kernel becomes a rotation; every other tensor keeps its bits."""
    source = fixtures / "silero_vad_16k.safetensors"
    out, baked = tmp_path / "p.safetensors", tmp_path / "b.safetensors"
    report = paramcli(
        "add", source, "-t", "lstm_cell.weight_hh", "--view", "blocks=4", "--chain", "skew,cayley", "-o", out, "--json"
    ).json
    before, after = load_file(source), load_file(out)
    moved = report["tensors"][0]["moved"]
    paramcli("verify", out)
    paramcli("remove", out, "--bake", "-o", baked)
    paramcli("verify", baked)
    W = load_file(baked)["lstm_cell.weight_hh"].double()
    for gate in W.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(128, dtype=torch.float64), atol=2e-5, rtol=0)
        assert torch.linalg.det(gate) > 0
    V = before["lstm_cell.weight_hh"].double()
    assert moved == pytest.approx(((W - V).norm() / V.norm()).item(), rel=1e-6)
    for name, tensor in before.items():
        if name != "lstm_cell.weight_hh":
            assert torch.equal(after[name], tensor) and torch.equal(load_file(baked)[name], tensor)


def test_project_gives_the_nearest_rotation(tmp_path, paramcli):
    """The value is U diag(1, ..., det) V^T of an SVD."""
    torch.manual_seed(1)
    W = torch.randn(12, 12)
    torch.save({"w": W}, tmp_path / "a.pt")
    paramcli("add", tmp_path / "a.pt", "-t", "w", "--chain", "skew,matrix_exp")
    paramcli("remove", tmp_path / "a.parametrized.safetensors")
    U, _, Vh = torch.linalg.svd(W.double())
    D = torch.ones(12, dtype=torch.float64)
    D[-1] = torch.linalg.det(U @ Vh).sign()
    torch.testing.assert_close(
        load_file(tmp_path / "a.baked.safetensors")["w"].double(), (U * D) @ Vh, atol=1e-5, rtol=0
    )


def test_strict_refuses_and_writes_nothing(fc_checkpoint, tmp_path, paramcli):
    """A weight off the constraint: exit 1, and the folder is as it was."""
    files = sorted(tmp_path.iterdir())
    result = paramcli("add", fc_checkpoint, "-t", "fc.weight", "--chain", "skew,cayley", "--init", "strict", code=1)
    assert "fc.weight" in result.err and "project" in result.err
    paramcli("add", fc_checkpoint, "-t", "fc.weight", "--chain", "skew,cayley", "--max-change", "0.01", code=1)
    assert sorted(tmp_path.iterdir()) == files


def test_strict_accepts_what_holds(tmp_path, paramcli):
    """A float32 rotation is on the constraint, and kept to rounding."""
    Q = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(2)))[0]
    Q[0] *= torch.linalg.det(Q).sign()
    torch.save({"q": Q}, tmp_path / "a.pt")
    report = paramcli(
        "add", tmp_path / "a.pt", "-t", "q", "--chain", "skew,matrix_exp", "--init", "strict", "--json"
    ).json
    assert report["tensors"][0]["moved"] < 2e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_dtype_adds_verifies_and_bakes(dtype, tmp_path, paramcli):
    """Output dtype is input dtype, and the constraint holds after rounding once."""
    torch.manual_seed(0)
    torch.save({"a": torch.randn(10, 10).to(dtype), "b": torch.randn(7, 5).to(dtype)}, tmp_path / "x.pt")
    paramcli("add", tmp_path / "x.pt", "-t", "a", "--chain", "skew,matrix_exp", "-o", tmp_path / "1.safetensors")
    paramcli("add", tmp_path / "1.safetensors", "-t", "b", "--chain", "orthogonal", "-o", tmp_path / "2.safetensors")
    paramcli("verify", tmp_path / "2.safetensors")
    paramcli("remove", tmp_path / "2.safetensors", "-o", tmp_path / "3.safetensors")
    assert len(paramcli("verify", tmp_path / "3.safetensors", "--json").json["tensors"]) == 2
    assert {t.dtype for t in load_file(tmp_path / "3.safetensors").values()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_verify_orthogonal_accepts_members_and_rejects_near_misses(dtype, tmp_path, paramcli):
    """A rounded orthogonal matrix passes; 1.05 times it and the zero matrix fail, in each dtype."""
    Q = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64))[0].contiguous()
    for name, W, code in (("good", Q, 0), ("scaled", 1.05 * Q, 1), ("zero", 0 * Q, 1)):
        save_file({"w": W.to(dtype)}, tmp_path / f"{name}.safetensors")
        paramcli("verify", tmp_path / f"{name}.safetensors", "-t", "w", "--constraint", "orthogonal", code=code)


def test_same_command_same_bytes(fc_checkpoint, tmp_path, paramcli):
    """Random parts come from the seed, so two runs are byte-identical; another seed is not."""
    for out, seed in (("1", 0), ("2", 0), ("3", 1)):
        paramcli(
            "add",
            fc_checkpoint,
            "-t",
            "fc.weight",
            "--chain",
            "prune_random:amount=0.5",
            "--seed",
            seed,
            "-o",
            tmp_path / f"{out}.safetensors",
        )
    one, two, three = ((tmp_path / f"{n}.safetensors").read_bytes() for n in "123")
    assert one == two != three


def test_no_bake_gives_back_the_original(fc_checkpoint, tmp_path, paramcli):
    """raw add of skew,cayley and remove --no-bake is the file's own weight, bit for bit."""
    paramcli("add", fc_checkpoint, "-t", "fc.weight", "--chain", "skew,cayley", "--init", "raw")
    paramcli("remove", tmp_path / "ckpt.parametrized.safetensors", "--no-bake")
    after = load_file(tmp_path / "ckpt.unparametrized.safetensors")
    assert all(torch.equal(after[name], tensor) for name, tensor in state(fc_checkpoint).items())


def test_no_bake_of_several_originals_is_refused(fc_checkpoint, tmp_path, paramcli):
    """Weight norm has g and v; neither is the weight, as torch's ValueError says."""
    paramcli("add", fc_checkpoint, "-t", "conv.weight", "--chain", "weight_norm")
    result = paramcli("remove", tmp_path / "ckpt.parametrized.safetensors", "--no-bake", code=3)
    assert "conv.weight has several originals" in result.err


def test_adding_to_a_parametrized_tensor_appends(fc_checkpoint, tmp_path, paramcli):
    """As on a live module: the originals stay, the chain grows, and the view is the first one's."""
    paramcli(
        "add", fc_checkpoint, "-t", "fc.weight", "--chain", "skew", "--init", "raw", "-o", tmp_path / "1.safetensors"
    )
    paramcli(
        "add", tmp_path / "1.safetensors", "-t", "fc.weight", "--chain", "cayley", "-o", tmp_path / "2.safetensors"
    )
    one, two = load_file(tmp_path / "1.safetensors"), load_file(tmp_path / "2.safetensors")
    key = "fc.parametrizations.weight.original"
    assert torch.equal(one[key], two[key])
    proof = paramcli("verify", tmp_path / "2.safetensors", "--json").json["tensors"][0]
    assert proof["chain"] == "skew,cayley" and proof["ok"]


def test_assign_goes_through_the_right_inverse(fc_checkpoint, tmp_path, paramcli):
    """layer.weight = nn.init.orthogonal_(...): the value read back is the one assigned."""
    paramcli("add", fc_checkpoint, "-t", "fc.weight", "--chain", "skew,matrix_exp", "-o", tmp_path / "p.safetensors")
    torch.manual_seed(5)
    Q = nn.init.orthogonal_(torch.empty(16, 16))
    Q[0] *= torch.linalg.det(Q).sign()
    save_file({"other.name": Q}, tmp_path / "q.safetensors")
    paramcli(
        "assign",
        tmp_path / "p.safetensors",
        "-t",
        "fc.weight",
        "--from",
        f"{tmp_path / 'q.safetensors'}:other.name",
        "-o",
        tmp_path / "a.safetensors",
    )
    paramcli("remove", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "b.safetensors")["fc.weight"], Q, atol=2e-6, rtol=0)
    paramcli("verify", tmp_path / "b.safetensors")


@pytest.mark.parametrize("init", ["xavier_uniform", "orthogonal", "zeros"])
def test_assign_of_an_initialiser_to_a_plain_tensor(init, fc_checkpoint, tmp_path, paramcli):
    """A plain tensor is replaced; the seed and the tensor's name decide the numbers."""
    for out in "12":
        paramcli("assign", fc_checkpoint, "-t", "out.weight", "--with", init, "-o", tmp_path / f"{out}.safetensors")
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    W = load_file(tmp_path / "1.safetensors")["out.weight"]
    if init == "orthogonal":
        torch.testing.assert_close(W @ W.T, torch.eye(4), atol=1e-5, rtol=0)


def test_assign_keeps_a_mask(fc_checkpoint, tmp_path, paramcli):
    """Assigning to a pruned tensor keeps its mask: what it drops stays zero."""
    paramcli(
        "add", fc_checkpoint, "-t", "fc.weight", "--chain", "prune_l1:amount=100", "-o", tmp_path / "p.safetensors"
    )
    paramcli(
        "assign", tmp_path / "p.safetensors", "-t", "fc.weight", "--with", "ones", "-o", tmp_path / "a.safetensors"
    )
    mask = load_file(tmp_path / "p.safetensors")["fc.parametrizations.weight.0.mask"]
    paramcli("remove", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors")
    assert torch.equal(load_file(tmp_path / "b.safetensors")["fc.weight"], mask.float())


@pytest.mark.parametrize("command", [["add", "-t", "fc.weight", "--chain", "symmetric"], ["convert"]])
def test_dry_run_says_that_the_output_exists(command, fc_checkpoint, tmp_path, paramcli):
    """What the real run would refuse is told by the dry one too, unless --force is given."""
    (tmp_path / "o.safetensors").write_bytes(b"mine")
    line = [command[0], fc_checkpoint, *command[1:], "-o", tmp_path / "o.safetensors", "-n"]
    assert "o.safetensors exists already, and only --force replaces it" in paramcli(*line).err
    assert "exists already" not in paramcli(*line, "--force").err
    assert (tmp_path / "o.safetensors").read_bytes() == b"mine"


def test_dry_run_writes_nothing_and_says_what_it_would(fc_checkpoint, tmp_path, paramcli):
    """-n prints the plan: keys read and written, and no numbers that need data."""
    files = sorted(tmp_path.iterdir())
    report = paramcli("add", fc_checkpoint, "-t", "*.weight", "--chain", "weight_norm", "-n", "--json").json
    assert report["dry_run"] and len(report["tensors"]) == 3
    assert report["tensors"][0]["reads"] == ["fc.weight"]
    assert report["tensors"][0]["writes"] == [
        "fc.parametrizations.weight.original0",
        "fc.parametrizations.weight.original1",
    ]
    assert sorted(tmp_path.iterdir()) == files


def test_in_place_replaces_a_safetensors_file(fixtures, tmp_path, paramcli):
    """--in-place keeps the name and the mode; the torch container is refused."""
    copy = tmp_path / "vad.safetensors"
    copy.write_bytes((fixtures / "silero_vad_16k.safetensors").read_bytes())
    copy.chmod(0o640)
    paramcli("add", copy, "-t", "conv1.weight", "--chain", "weight_norm", "--in-place")
    assert copy.stat().st_mode & 0o777 == 0o640 and [p.name for p in tmp_path.iterdir()] == ["vad.safetensors"]
    assert "conv1.parametrizations.weight.original0" in load_file(copy)


@pytest.mark.parametrize("name", ["weights.tar", "weights", "weights.safetensors", "weights.pt"])
def test_in_place_keeps_the_container_whatever_the_name(name, tmp_path, paramcli):
    """A torch file stays one, with its wrapper; a safetensors file under a torch name stays safetensors."""
    W = torch.randn(4, 4)
    torch.save({"model": {"w.weight": W}, "epoch": 5}, tmp_path / name)
    result = paramcli("add", tmp_path / name, "-t", "w.weight", "--chain", "symmetric", "--in-place")
    assert (
        torch.load(tmp_path / name, weights_only=True, mmap=False)["epoch"] == 5
        if "safetensors" not in name
        else "epoch" not in result.err
    )
    assert paramcli("inspect", tmp_path / name, "--json").json["container"] == "torch zip"
    save_file({"w.weight": W}, tmp_path / name)
    paramcli("add", tmp_path / name, "-t", "w.weight", "--chain", "symmetric", "--in-place")
    assert paramcli("inspect", tmp_path / name, "--json").json["container"] == "safetensors"
    paramcli("verify", tmp_path / name)


def test_the_record_and_other_metadata_are_carried(tmp_path, paramcli):
    """Other people's metadata survive character for character beside the record."""
    save_file(
        {"w": torch.randn(4, 4), "v": torch.randn(3)},
        tmp_path / "a.safetensors",
        {"author": 'née ☃ "x"', "format": "pt"},
    )
    paramcli("add", tmp_path / "a.safetensors", "-t", "w", "--chain", "symmetric")
    with safe_open(tmp_path / "a.parametrized.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["author"] == 'née ☃ "x"' and metadata["format"] == "pt"
    record = json.loads(metadata["paramcli"])
    assert record["tensors"] == {
        "w": {"chain": "symmetric", "constraint": "symmetric", "state": "parametrized", "view": None}
    }


def test_verify_reports_what_is_not_claimed(fc_checkpoint, tmp_path, paramcli):
    """Nothing to verify is an error, never a pass."""
    assert "nothing to verify" in paramcli("verify", fc_checkpoint, code=3).err
    paramcli("verify", fc_checkpoint, "-t", "fc.weight", "--constraint", "orthogonal", code=1)
    paramcli("verify", fc_checkpoint, "-t", "fc.weight", "--constraint", "orthogonal", "--tol", "1000")


def test_spectral_norm_is_verified_by_its_true_norm(tmp_path, paramcli):
    """u and v that are not unit vectors are found, as is a value whose norm is not 1."""
    torch.manual_seed(0)
    torch.save(nn.Linear(9, 6).state_dict(), tmp_path / "a.pt")
    paramcli("add", tmp_path / "a.pt", "-t", "weight", "--chain", "spectral_norm", "-o", tmp_path / "s.safetensors")
    checks = paramcli("verify", tmp_path / "s.safetensors", "--json").json["tensors"][0]["checks"]
    assert [c["constraint"] for c in checks] == ["unit_spectral_norm:dim=0", "unit_u_v"] and checks[0][
        "residual"
    ] < 1e-6
    tensors = load_file(tmp_path / "s.safetensors")
    with safe_open(tmp_path / "s.safetensors", "pt") as file:
        metadata = file.metadata()
    tensors["parametrizations.weight.0._u"] *= 1.1
    save_file(tensors, tmp_path / "bad.safetensors", metadata)
    checks = paramcli("verify", tmp_path / "bad.safetensors", "--json", code=1).json["tensors"][0]["checks"]
    assert not checks[0]["ok"] and not checks[1]["ok"]


@pytest.mark.parametrize("chain", ["weight_norm", "spectral_norm", "orthogonal"])
def test_a_result_off_its_constraint_is_warned_of(chain, tmp_path, paramcli):
    """raw does what torch does with a zero tensor, whatever comes out: stderr and the table say that it
    does not hold.
    """
    save_file({"w": torch.zeros(4, 4)}, tmp_path / "z.safetensors")
    result = paramcli("add", tmp_path / "z.safetensors", "-t", "w", "--chain", chain, "--init", "raw")
    assert "warning: w is off its constraint" in result.err and "FAILS" in result.out
    paramcli("verify", tmp_path / "z.parametrized.safetensors", code=1)


def test_an_orthogonal_draw_for_a_batch_is_one_for_each_matrix(tmp_path, paramcli):
    """A batch under a chain onto rotations gets rotations, and different ones."""
    save_file({"w": torch.randn(4, 2, 8, 8)}, tmp_path / "w.safetensors")
    paramcli(
        "add", tmp_path / "w.safetensors", "-t", "w", "--chain", "skew,matrix_exp", "-o", tmp_path / "p.safetensors"
    )
    for seed in range(4):
        paramcli(
            "assign",
            tmp_path / "p.safetensors",
            "-t",
            "w",
            "--with",
            "orthogonal",
            "--seed",
            seed,
            "-f",
            "-o",
            tmp_path / "a.safetensors",
        )
        paramcli("remove", tmp_path / "a.safetensors", "-f", "-o", tmp_path / "b.safetensors")
        Q = load_file(tmp_path / "b.safetensors")["w"].double().reshape(8, 8, 8)
        assert (Q.mT @ Q - torch.eye(8)).abs().max() < 1e-5 and (torch.linalg.det(Q) - 1).abs().max() < 1e-5
        assert min((Q[i] - Q[j]).abs().max() for i in range(8) for j in range(i)) > 0.1


def test_assigning_an_orthogonal_draw_works_for_every_seed(fc_checkpoint, tmp_path, paramcli):
    """Chains onto rotations get a draw with determinant +1, whatever the seed; other chains get torch's own draw."""
    made = tmp_path / "ckpt.parametrized.safetensors"
    paramcli("add", fc_checkpoint, "-t", "fc.weight", "--chain", "skew,cayley")
    for seed in range(4):
        paramcli(
            "assign",
            made,
            "-t",
            "fc.weight",
            "--with",
            "orthogonal",
            "--seed",
            seed,
            "-f",
            "-o",
            tmp_path / "o.safetensors",
        )
        assert "holds" in paramcli("verify", tmp_path / "o.safetensors").out


@pytest.mark.parametrize("options", [[], ["--in-place"]])
def test_verify_writes_nothing_that_is_off(options, tmp_path, paramcli):
    """--verify is the gate: exit 1, the tensor and its numbers named, and no output where a constraint does
    not hold.
    """
    save_file({"m.w": torch.zeros(4, 4), "m.b": torch.ones(3)}, tmp_path / "in.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    command = [
        "add",
        tmp_path / "in.safetensors",
        "-t",
        "m.w",
        "--chain",
        "orthogonal",
        "--init",
        "raw",
        "--verify",
        *options,
    ]
    result = paramcli(*command, code=1)
    assert "error: m.w: the constraint does not hold (residual " in result.err and not result.out
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_verify_lets_pass_what_holds(tmp_path, paramcli):
    """With --verify the bytes are those of a run without it, and the baked result verifies too."""
    save_file({"m.w": torch.randn(6, 6), "m.b": torch.ones(3)}, tmp_path / "in.safetensors")
    for name, more in (("a", []), ("b", ["--verify"])):
        paramcli(
            "add",
            tmp_path / "in.safetensors",
            "-t",
            "m.w",
            "--chain",
            "skew,cayley",
            "-o",
            tmp_path / f"{name}.safetensors",
            *more,
        )
        paramcli("remove", tmp_path / f"{name}.safetensors", "-o", tmp_path / f"{name}.baked.safetensors", *more)
    for kind in ("", ".baked"):
        assert (tmp_path / f"a{kind}.safetensors").read_bytes() == (tmp_path / f"b{kind}.safetensors").read_bytes()


def test_what_is_appended_to_a_weight_that_is_on_the_set_already_says_so(tmp_path, paramcli):
    """torch asks no right inverse of what is appended: a kept promise that would break is refused by strict, and told
    by project.
    """
    save_file({"m.w": torch.randn(6, 6)}, tmp_path / "in.safetensors")
    paramcli(
        "add", tmp_path / "in.safetensors", "-t", "m.w", "--chain", "orthogonal", "-o", tmp_path / "one.safetensors"
    )
    again = [
        "add",
        tmp_path / "one.safetensors",
        "-t",
        "m.w",
        "--chain",
        "orthogonal",
        "-o",
        tmp_path / "two.safetensors",
    ]
    assert (
        "orthogonal already" in paramcli(*again, "--init", "strict", code=1).err
        and not (tmp_path / "two.safetensors").exists()
    )
    told = paramcli(*again)
    assert (
        "m.w: it is orthogonal already, and orthogonal after orthogonal moves it by" in told.err
        and "--bake first" in told.err
    )
    told = paramcli(
        "add",
        tmp_path / "one.safetensors",
        "-t",
        "m.w",
        "--chain",
        "prune_l1:amount=0.5",
        "-o",
        tmp_path / "three.safetensors",
    )
    assert "orthogonal is no longer promised, nor verified" in told.err
    paramcli("add", tmp_path / "in.safetensors", "-t", "m.w", "--chain", "skew", "-o", tmp_path / "skew.safetensors")
    told = paramcli(
        "add", tmp_path / "skew.safetensors", "-t", "m.w", "--chain", "cayley", "-o", tmp_path / "rotation.safetensors"
    )
    assert "promised" not in told.err  # cayley is made for what skew gives


def test_what_verify_cannot_read_is_no_pass(tmp_path, paramcli):
    """Beside tensors that hold, one whose keys do not tell its chain: exit 3, named on stderr and in the document."""
    save_file({"m.w": torch.randn(6, 6), "n.w": torch.randn(6, 6)}, tmp_path / "in.safetensors")
    paramcli("add", tmp_path / "in.safetensors", "-t", "m.w", "--chain", "mask", "-o", tmp_path / "a.safetensors")
    paramcli("add", tmp_path / "a.safetensors", "-t", "n.w", "--chain", "orthogonal", "-o", tmp_path / "b.safetensors")
    assert paramcli("verify", tmp_path / "b.safetensors", "--json").json["ok"]
    save_file(load_file(tmp_path / "b.safetensors"), tmp_path / "bare.safetensors")
    said = paramcli("verify", tmp_path / "bare.safetensors", code=3)
    assert "n.w is not verified" in said.err and "1 not verified: n.w" in said.err and "m.w" in said.out
    document = paramcli("verify", tmp_path / "bare.safetensors", "--json", code=3).json
    assert not document["ok"] and [entry["tensor"] for entry in document["unverified"]] == ["n.w"]
    paramcli("verify", tmp_path / "bare.safetensors", "-t", "m.w")


def test_an_output_is_a_file(tmp_path, paramcli):
    """-o - would be a file of that name, which nobody means."""
    save_file({"w": torch.randn(6, 6)}, tmp_path / "in.safetensors")
    assert (
        "never to a pipe"
        in paramcli("add", tmp_path / "in.safetensors", "-t", "w", "--chain", "symmetric", "-o", "-", code=2).err
    )


def test_a_wrong_name_is_said_before_an_output_that_exists(tmp_path, paramcli):
    """Of two mistakes the one that --force would not mend comes first."""
    save_file({"w": torch.randn(6, 6)}, tmp_path / "in.safetensors")
    (tmp_path / "o.safetensors").write_bytes(b"")
    assert (
        "no tensor named"
        in paramcli(
            "add",
            tmp_path / "in.safetensors",
            "-t",
            "x",
            "--chain",
            "symmetric",
            "-o",
            tmp_path / "o.safetensors",
            code=2,
        ).err
    )


def test_a_tie_that_an_edit_parts_is_not_called_one(tmp_path, paramcli):
    """With --tied separate two names hold two tensors: the note on ties is of those that stay equal."""
    W = torch.randn(6, 6)
    torch.save({"a": W, "b": W, "c": W}, tmp_path / "t.pt")
    said = paramcli(
        "add",
        tmp_path / "t.pt",
        "-t",
        "c",
        "--chain",
        "symmetric",
        "--tied",
        "separate",
        "-o",
        tmp_path / "o.safetensors",
    ).err
    assert "a = b" in said and "b = c" not in said


def test_a_level_that_is_left_behind_is_told(tmp_path, paramcli):
    """A nested state dict becomes one level in safetensors; a script that indexes the level would not find it."""
    torch.save({"generator": {"w": torch.randn(6, 6)}}, tmp_path / "t.pt")
    assert "names begin below generator" in paramcli("convert", tmp_path / "t.pt", "-o", tmp_path / "o.safetensors").err
    assert "names begin" not in paramcli("convert", tmp_path / "t.pt", "-o", tmp_path / "o.pt").err


def test_a_shard_larger_than_asked_is_told(tmp_path, paramcli):
    """A tensor is never cut, so its shard can pass --max-shard-size: that is said, with its name."""
    save_file({"w": torch.randn(60, 60), "b": torch.ones(3)}, tmp_path / "in.safetensors")
    assert (
        "each in a file of its own: w"
        in paramcli("convert", tmp_path / "in.safetensors", "-o", tmp_path / "f", "--max-shard-size", "1KB").err
    )
