"""Bad input: one clear line, the right exit code, nothing written."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def refused(paramcli, tmp_path):
    """Run a command that must fail: its message is one line and a hint, and the folder is as before."""

    def call(code, *arguments):
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        result = paramcli(*arguments, code=code)
        assert result.out == ""
        lines = result.err.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert len(errors) == 1 and lines.index(errors[0]) >= len(lines) - 2
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
        return errors[0] + "\n" + (lines[-1] if lines[-1] != errors[0] else "")

    return call


CHAIN = ["--chain", "skew,cayley"]


def test_unknown_tensor(fc_checkpoint, refused):
    """The closest name is shown."""
    message = refused(2, "add", fc_checkpoint, "-t", "fc.wieght", *CHAIN)
    assert "no tensor named 'fc.wieght' in" in message and "closest: fc.weight" in message


@pytest.mark.parametrize("name", ["w", "a", "inf", "weight", "norm", "square", "block.0.weight", "tensor"])
def test_every_refusal_names_its_tensor_and_file(name, tmp_path, refused):
    """Also a tensor whose name is a word of the message or a part of one."""
    save_file({name: torch.full((4, 3), torch.inf)}, tmp_path / "some.safetensors")
    for arguments in (["weight_norm"], CHAIN[1:]):
        message = refused(3, "add", tmp_path / "some.safetensors", "-t", name, "--chain", *arguments)
        assert message.startswith(f"error: {name}: ") and "some.safetensors" in message


def test_unknown_parametrization(fc_checkpoint, refused):
    """The closest entry is shown."""
    assert "closest: cayley" in refused(2, "add", fc_checkpoint, "-t", "fc.weight", "--chain", "skew,caley")


def test_non_square(fc_checkpoint, refused):
    """The tensor, its shape, and who needs a square one."""
    message = refused(3, "add", fc_checkpoint, "-t", "out.weight", *CHAIN)
    assert "out.weight" in message and "4x16" in message and "square" in message


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (0, 0), (2, 0, 0)], ids=str)
@pytest.mark.parametrize(
    "chain",
    [
        "skew,cayley",
        "symmetric,matrix_exp",
        "orthogonal",
        "weight_norm",
        "spectral_norm",
        "mask",
        "prune_l1:amount=0.5",
    ],
)
def test_tensors_without_entries(chain, shape, tmp_path, refused):
    """There is nothing to parametrize or to measure in them, and no library error to relay."""
    save_file({"e": torch.zeros(shape)}, tmp_path / "e.safetensors")
    for init in ("project", "strict", "raw"):
        assert "e has no entries" in refused(
            3, "add", tmp_path / "e.safetensors", "-t", "e", "--chain", chain, "--init", init
        )
    assert "no entries" in refused(3, "verify", tmp_path / "e.safetensors", "-t", "e", "--constraint", "orthogonal")


@pytest.mark.parametrize(
    ("tensor", "seen"), [(torch.ones(6), "a vector of 6"), (torch.tensor(2.0), "a scalar")], ids=["1-d", "0-d"]
)
@pytest.mark.parametrize("chain", ["skew,cayley", "matrix_exp", "orthogonal"])
def test_vectors_and_scalars_are_no_matrices(chain, tensor, seen, tmp_path, refused):
    """The message says what the tensor is, and proposes no view, which it cannot have."""
    save_file({"bias": tensor}, tmp_path / "b.safetensors")
    message = refused(3, "add", tmp_path / "b.safetensors", "-t", "bias", "--chain", chain)
    assert seen in message and "--view" not in message


@pytest.mark.parametrize("chain", ["weight_norm", "weight_norm:dim=none", "spectral_norm", "mask"])
def test_scalars_have_no_dimension_to_norm(chain, tmp_path, refused):
    """torch's own errors about dimension ranges do not reach the user."""
    save_file({"s": torch.tensor(2.0)}, tmp_path / "s.safetensors")
    assert "scalar" in refused(3, "add", tmp_path / "s.safetensors", "-t", "s", "--chain", chain)


def test_all_refusals_of_a_plan_are_told_together(fc_checkpoint, refused):
    """Two tensors that do not fit: the first in full, the other by name."""
    message = refused(3, "add", fc_checkpoint, "-t", "out.weight", "-t", "conv.bias", *CHAIN)
    assert "out.weight" in message and "conv.bias" in message


def test_chain_that_does_not_type_check(fc_checkpoint, refused):
    """Both sides are named, with a chain that works."""
    message = refused(2, "add", fc_checkpoint, "-t", "fc.weight", "--chain", "symmetric,cayley")
    assert "cayley wants skew" in message and "skew,cayley" in message


@pytest.mark.parametrize("chain", ["skew,cayley", "skew,matrix_exp"])
def test_determinant_minus_one(chain, tmp_path, refused):
    """An orthogonal weight that the chain cannot reach: which, and the chain that can."""
    Q = torch.linalg.qr(torch.randn(6, 6))[0].contiguous()
    Q[0] *= -torch.linalg.det(Q).sign()
    save_file({"q": Q}, tmp_path / "q.safetensors")
    message = refused(3, "add", tmp_path / "q.safetensors", "-t", "q", "--chain", chain)
    assert "q" in message and "determinant -1" in message and "--chain orthogonal" in message


def test_eigenvalue_minus_one(tmp_path, refused):
    """A half turn that is not to be moved: cayley says how near the eigenvalue is, and that matrix_exp reaches it."""
    save_file({"q": torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))}, tmp_path / "q.safetensors")
    message = refused(3, "add", tmp_path / "q.safetensors", "-t", "q", *CHAIN, "--init", "strict")
    assert "eigenvalue -1" in message and "skew,matrix_exp" in message


def turned(*angles):
    """A rotation by these angles in planes at random."""
    planes = [
        torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]]) for a in torch.tensor(angles, dtype=torch.float64)
    ]
    n = 2 * len(angles)
    P = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    return P @ torch.block_diag(*planes) @ P.T


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_half_turn_that_half_precision_hides(dtype, tmp_path, refused, paramcli):
    """Rounded to half precision the eigenvalue is near -1, not at it: cayley gives a rotation some way off, exp keeps
    this one.
    """
    Q = turned(torch.pi, 1.0, 0.3, 2.0).to(dtype)
    save_file({"q": Q, "w": torch.eye(8, dtype=dtype)}, tmp_path / "q.safetensors")
    message = refused(3, "add", tmp_path / "q.safetensors", "-t", "q", *CHAIN, "--init", "strict")
    assert "q: skew,cayley stored in" in message and "skew,matrix_exp" in message
    moved = paramcli("add", tmp_path / "q.safetensors", "-t", "q", *CHAIN, "-f", "--json").json["tensors"][0]
    assert moved["note"].startswith("skew,cayley stored in") and 1e-3 < moved["moved"] < torch.finfo(dtype).eps ** 0.5
    paramcli("add", tmp_path / "q.safetensors", "-t", "w", *CHAIN, "-f", "-o", tmp_path / "p.safetensors")
    told = paramcli(
        "assign", tmp_path / "p.safetensors", "-t", "w", "--from", f"{tmp_path / 'q.safetensors'}:q", "--in-place"
    )
    assert "from the assigned value" in told.err
    kept = paramcli(
        "add", tmp_path / "q.safetensors", "-t", "q", "--chain", "skew,matrix_exp", "--init", "strict", "-f", "--json"
    ).json
    assert kept["tensors"][0]["moved"] < torch.finfo(dtype).eps


def test_a_visible_rounding_is_told(tmp_path, paramcli):
    """A tenth of a radian from a half turn, bfloat16 keeps a rotation to a percent or two only: the result says so."""
    Q = turned(torch.pi - 0.1, 1.0, 0.3, 2.0, 1.5, 0.7)
    save_file({"q": Q.bfloat16()}, tmp_path / "q.safetensors")
    result = paramcli("add", tmp_path / "q.safetensors", "-t", "q", *CHAIN, "--json")
    assert 0.01 < result.json["tensors"][0]["moved"] < 0.1 and "from that point" in result.json["tensors"][0]["note"]
    assert "q: skew,cayley stored in bfloat16" in result.err


def test_the_chain_named_in_the_hint_works(tmp_path, paramcli):
    """What the two messages above advise does what they say."""
    save_file(
        {"q": torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0])), "r": torch.diag(torch.tensor([-1.0, 1.0, 1.0]))},
        tmp_path / "q.safetensors",
    )
    for name, chain in (("q", "skew,matrix_exp"), ("r", "orthogonal")):
        report = paramcli("add", tmp_path / "q.safetensors", "-t", name, "--chain", chain, "-f", "--json").json
        assert report["tensors"][0]["moved"] < 1e-6


# What is typed -> what is said to do, and what then runs, both for a matrix of 64 x 64.
WAYS_OUT = {
    "weight_norm:dim=9": ("from dim=0 to dim=1", "weight_norm:dim=1"),
    "weight_norm:dim=-3": ("from dim=0 to dim=1", "weight_norm:dim=0"),
    "low_rank:rank=99": ("rank=64 or less", "low_rank:rank=64"),
    "psd_low_rank:rank=99": ("rank=64 or less", "psd_low_rank:rank=64"),
    "block_diagonal:blocks=7": ("arguments: g", "block_diagonal:g=8"),
    "block_diagonal:g=7": ("block_diagonal:g=8", "block_diagonal:g=8"),
    "nm:n=5:m=4": ("nm:n=2:m=4 keeps 2 of each 4", "nm:n=2:m=4"),
    "prune_l1:amount=9999": ("amount=0.5 prunes half of them", "prune_l1:amount=0.5"),
}


@pytest.mark.parametrize("chain", WAYS_OUT)
def test_an_argument_that_does_not_fit_has_a_way_out(chain, tmp_path, refused, paramcli):
    """The hint has a number that fits, and with it the chain is put on."""
    said, fits = WAYS_OUT[chain]
    save_file({"w": torch.randn(64, 64)}, tmp_path / "x.safetensors")
    line = ["add", tmp_path / "x.safetensors", "-t", "w", "-o", tmp_path / "out.safetensors"]
    code = 2 if "blocks" in chain else 3
    assert said in refused(code, *line, "--chain", chain)
    paramcli(*line, "--chain", fits)


def test_a_word_that_is_none_of_a_few_has_them_to_paste(fc_checkpoint, refused):
    """Of near ones the nearest, else each."""
    line = ["add", fc_checkpoint, "-t", "fc.weight", "--chain", "skew"]
    assert "try: --init project or --init strict or --init raw" in refused(2, *line, "--init", "foo")
    assert refused(2, *line, "--init", "stict").endswith("try: --init strict")
    assert "try: --to new or --to old" in refused(2, "migrate", fc_checkpoint, "--to", "foo")


def test_a_regular_expression_that_is_none_says_what_is_typed_instead(fc_checkpoint, refused):
    message = refused(2, "add", fc_checkpoint, "-t", "re:(fc", *CHAIN)
    assert "bad regular expression '(fc': missing )" in message
    assert "try: without re: it is a name, or a glob as in -t '*.weight'" in message


def test_nan_in_a_tensor_to_edit(tmp_path, refused):
    """The tensor and how many entries."""
    W = torch.randn(4, 4)
    W[1, 2] = float("nan")
    save_file({"w": W}, tmp_path / "n.safetensors")
    message = refused(3, "add", tmp_path / "n.safetensors", "-t", "w", *CHAIN)
    assert "w: the tensor has 1 NaN of 16 entries" in message


def test_nan_elsewhere_passes_through(tmp_path, paramcli):
    """NaN payloads in tensors that are not edited keep their bits."""
    odd = torch.tensor([0x7FC00123, -0x400000], dtype=torch.int32).view(torch.float32)
    save_file({"w": torch.randn(4, 4), "odd": odd}, tmp_path / "n.safetensors")
    paramcli("add", tmp_path / "n.safetensors", "-t", "w", "--chain", "symmetric", "-o", tmp_path / "o.safetensors")
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "o.safetensors")["odd"].view(torch.int32), odd.view(torch.int32))


def test_existing_output(fc_checkpoint, tmp_path, refused, paramcli):
    """--force is needed, and works."""
    (tmp_path / "ckpt.parametrized.safetensors").write_text("precious")
    message = refused(4, "add", fc_checkpoint, "-t", "fc.weight", *CHAIN)
    assert "exists already" in message and "--force" in message
    paramcli("add", fc_checkpoint, "-t", "fc.weight", *CHAIN, "--force")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal is for machines without CUDA")
def test_cuda_without_cuda(fc_checkpoint, refused):
    """A clear refusal, and --device auto goes on."""
    assert "--device cuda" in refused(2, "add", fc_checkpoint, "-t", "fc.weight", *CHAIN, "--device", "cuda")
    assert "no device named 'gpu'" in refused(2, "add", fc_checkpoint, "-t", "fc.weight", *CHAIN, "--device", "gpu")


def test_device_auto_works_everywhere(fc_checkpoint, paramcli):
    """auto takes what there is."""
    paramcli("add", fc_checkpoint, "-t", "fc.weight", *CHAIN, "--device", "auto")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello world, this is no checkpoint",
        b"<!DOCTYPE html><html>",
        b"version https://git-lfs.github.com/spec/v1\n",
    ],
)
def test_not_a_checkpoint(content, tmp_path, refused):
    """Each kind of wrong file is named."""
    (tmp_path / "x.pt").write_bytes(content)
    message = refused(3, "inspect", tmp_path / "x.pt")
    assert {b"": "empty", b"h": "not a checkpoint", b"<": "web page", b"v": "Git LFS pointer"}[content[:1]] in message


def test_a_directory_and_a_missing_file(tmp_path, refused):
    """A folder without a checkpoint, and no file at all."""
    (tmp_path / "empty").mkdir()
    assert "folder without a checkpoint" in refused(3, "inspect", tmp_path / "empty")
    assert "no such file" in refused(3, "inspect", tmp_path / "nothing.pt")
    (tmp_path / "generator.pth").write_bytes(b"")
    assert refused(3, "inspect", tmp_path / "genrator.pt").endswith(f"closest: {tmp_path / 'generator.pth'}")
    assert "closest" not in refused(3, "inspect", tmp_path / "else.pth")


def test_integer_tensors_are_refused_by_name(tmp_path, refused):
    """Nothing is defined on integers."""
    save_file({"ids": torch.arange(9).reshape(3, 3)}, tmp_path / "i.safetensors")
    assert "ids is int64" in refused(3, "add", tmp_path / "i.safetensors", "-t", "ids", "--chain", "symmetric")


def test_tied_tensors_are_not_untied(tmp_path, refused):
    """Touching one name of a shared tensor names the group."""
    W = torch.randn(4, 4)
    torch.save({"a": W, "b": W}, tmp_path / "t.pt")
    assert "a and b are one tensor" in refused(3, "add", tmp_path / "t.pt", "-t", "a", "--chain", "symmetric")


def test_output_over_the_input(fc_checkpoint, tmp_path, refused):
    """The input under another name is recognised, even with --force."""
    save_file({"w": torch.randn(4, 4)}, tmp_path / "a.safetensors")
    os.link(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    message = refused(
        2, "add", tmp_path / "a.safetensors", "-t", "w", "--chain", "symmetric", "-f", "-o", tmp_path / "b.safetensors"
    )
    assert "the input itself" in message and "--in-place" in message


def test_missing_options_say_which(fc_checkpoint, refused):
    """add without -t or --chain."""
    assert "--chain" in refused(2, "add", fc_checkpoint, "-t", "fc.weight")
    assert "add needs -t: which tensors" in refused(2, "add", fc_checkpoint, *CHAIN)
    assert "no command 'ad'" in refused(2, "ad")


def test_errors_are_json_too(fc_checkpoint, paramcli):
    """With --json, stdout holds one document with the code, the message and the tensor."""
    error = paramcli("add", fc_checkpoint, "-t", "fc.wieght", *CHAIN, "--json", code=2).json["error"]
    assert error["code"] == "usage" and error["tensor"] == "fc.wieght" and "closest" in error["hint"]
    error = paramcli("add", fc_checkpoint, "--nope", "--json", code=2).json["error"]
    assert error["code"] == "usage" and "--nope" in error["message"]


def test_names_from_files_are_escaped(tmp_path, paramcli):
    """Control characters and markup of a file's names never reach the terminal as such."""
    evil = "a\x1b[31mred\x07[bold]b\u202e.weight"
    save_file({evil: torch.randn(3, 3)}, tmp_path / "e.safetensors")
    result = paramcli("inspect", tmp_path / "e.safetensors")
    assert (
        "\x1b" not in result.out
        and "\u202e" not in result.out
        and "a\\x1b[31mred\\x07[bold]b\\u202e.weight" in result.out
    )
    assert paramcli("inspect", tmp_path / "e.safetensors", "--json").json["tensors"][0]["tensor"] == evil
    assert "\x1b" not in paramcli("add", tmp_path / "e.safetensors", "-t", "*", *CHAIN, "--init", "strict", code=1).err


def test_a_malformed_record_and_the_way_past_it(tmp_path, refused, paramcli):
    """A broken record is refused; --ignore-record reads the file without it."""
    save_file({"w": torch.randn(3, 3)}, tmp_path / "r.safetensors", {"paramcli": json.dumps({"schema": 9})})
    assert "--ignore-record" in refused(3, "inspect", tmp_path / "r.safetensors")
    paramcli("inspect", tmp_path / "r.safetensors", "--ignore-record")


def test_a_record_for_tensors_that_are_not_there(tmp_path, refused):
    """The record contradicts the tensors: which, and how to go on."""
    record = {
        "schema": 1,
        "version": "0.1.0",
        "tensors": {"gone": {"state": "baked", "chain": "skew", "view": None, "constraint": "skew"}},
    }
    save_file({"w": torch.randn(3, 3)}, tmp_path / "r.safetensors", {"paramcli": json.dumps(record)})
    assert "gone" in refused(3, "verify", tmp_path / "r.safetensors")


def test_debug_shows_the_traceback(fc_checkpoint, capfd):
    """--debug prints the traceback before the line of every other run, and the exit code is the same."""
    from paramcli.cli.app import run

    assert run(["--debug", "add", str(fc_checkpoint), "-t", "nope", *CHAIN]) == 2
    shown = capfd.readouterr().err
    assert shown.startswith("Traceback") and "UsageError" in shown and "error: no tensor named 'nope'" in shown


def test_a_path_that_leads_nowhere_has_a_next_step(tmp_path, paramcli):
    """The closest name, and where there is none what may be given."""
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "closest: " in paramcli("inspect", tmp_path / "modl.safetensors", code=3).err
    assert "try: check the path" in paramcli("inspect", tmp_path / "qqqq.pt", code=3).err
