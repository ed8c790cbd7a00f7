"""Start-up, streams and exit codes of the real process."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" or name.startswith(("torch.", "numpy", "safetensors.torch")):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Block())
from paramcli.cli.app import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["registry"], ["registry", "cayley"], ["registry", "--json"], ["inspect", "CKPT"], ["inspect", "CKPT", "--json"], ["remove", "CKPT", "--no-bake", "-n"], ["add", "--help"]])
def test_these_commands_never_import_torch(arguments, tmp_path):
    """With torch and numpy made unimportable they still work."""
    key = "fc.parametrizations.weight.original"
    save_file({key: torch.randn(3, 3)}, tmp_path / "a.safetensors")
    arguments = [str(tmp_path / "a.safetensors") if a == "CKPT" else a for a in arguments]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_inspect_of_torch_files_needs_no_torch_either(fixtures):
    """The torch container is described from its pickle."""
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "inspect", str(fixtures / "facenet_pnet.pt")], capture_output=True, text=True)
    assert done.returncode == 0 and "conv1.weight" in done.stdout


def test_stdout_is_the_answer_only(fc_checkpoint, shell):
    """Messages go to stderr; -q silences them; the table is the same."""
    loud = shell("add", fc_checkpoint, "-t", "fc.weight", "--chain", "skew,cayley")
    quiet = shell("add", fc_checkpoint, "-t", "fc.weight", "--chain", "skew,cayley", "-q", "-f")
    assert loud.out == quiet.out and "fc.weight" in loud.out
    assert "wrote" in loud.err and quiet.err == ""


def test_version_and_module(shell):
    """python -m paramcli --version prints the version of the package."""
    import paramcli

    assert shell("--version").out == f"paramcli {paramcli.__version__}\n"


def test_nothing_but_a_closed_stdout_is_lost(fc_checkpoint, tmp_path):
    """With stdout and stderr closed the output file is whole, and no stream becomes part of it."""
    command = f"{sys.executable} -m paramcli add {fc_checkpoint} -t fc.weight --chain skew,cayley -o {tmp_path}/o.safetensors >&- 2>&-"
    subprocess.run(["sh", "-c", command], check=False)
    from safetensors.torch import load_file

    assert "fc.parametrizations.weight.original" in load_file(tmp_path / "o.safetensors")


def test_a_reader_that_leaves_early_is_no_error(fixtures):
    """paramcli inspect | head -1 ends quietly."""
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m paramcli inspect {fixtures}/silero_vad_16k.safetensors --json | head -c 10"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_machine_without_numpy_sees_no_warning(fc_checkpoint, tmp_path):
    """torch warns at import where numpy is missing; stderr holds paramcli's own messages only."""
    code = "import sys; sys.modules['numpy'] = None; from paramcli.cli.app import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "add", str(fc_checkpoint), "-t", "fc.weight", "--chain", "skew,cayley"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and [line.split()[0] for line in done.stderr.splitlines()] == ["wrote", "next:"]
