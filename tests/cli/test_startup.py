"""Start-up, streams and exit codes of the real process."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from paramcli.cli.usage import COMMANDS
from paramcli.registry import DECODERS

from ..pace import HANG_SECONDS

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


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["registry"],
        ["registry", "cayley"],
        ["registry", "--json"],
        ["inspect", "CKPT"],
        ["inspect", "CKPT", "--json"],
        ["remove", "CKPT", "--no-bake", "-n"],
        ["add", "--help"],
    ],
)
def test_these_commands_never_import_torch(arguments, tmp_path):
    """With torch and numpy made unimportable they still work."""
    key = "fc.parametrizations.weight.original"
    save_file({key: torch.randn(3, 3)}, tmp_path / "a.safetensors")
    arguments = [str(tmp_path / "a.safetensors") if a == "CKPT" else a for a in arguments]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "CKPT", "-t", "*", "--chain", "symmetric,cayley"],
        ["add", "CKPT", "-t", "v", "--chain", "cayley"],
        ["add", "CKPT", "-t", "w", "--chain", "matrix_exp,skew,cayley,cayley"],
        ["assign", "CKPT", "-t", "w", "--with", "eye", "--chain", "symmetric,cayley"],
        ["remove", "CKPT", "--chain", "symmetric,cayley"],
        ["verify", "CKPT", "--chain", "symmetric,cayley"],
        ["spectrum", "CKPT", "--chain", "symmetric,cayley"],
    ],
)
def test_an_ill_typed_chain_is_told_before_torch_is_imported(arguments, tmp_path):
    """On plain tensors, and where it is appended to a chain that the keys tell."""
    pair = {"v_g": torch.ones(3, 1), "v_v": torch.randn(3, 3)}
    weights = {f"fc.weight{name[1:]}": tensor for name, tensor in pair.items()}
    save_file({"w": torch.randn(3, 3), **weights}, tmp_path / "a.safetensors")
    words = {"CKPT": str(tmp_path / "a.safetensors"), "v": "fc.weight"}
    line = [words.get(word, word) for word in arguments]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *line], capture_output=True, text=True)
    assert done.returncode == 2 and "cayley wants skew" in done.stderr, done.stderr


def test_no_shape_costs_torchs_compiler():
    """What a chain stores is found on the meta device of every entry without torch._dynamo, half a second."""
    code = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name == "torch._dynamo":
            raise AssertionError(f"{name} was imported for {spec}")
sys.meta_path.insert(0, Block())
import torch
from paramcli.chain import parse_chain
from paramcli.errors import InputRefused, UsageError
from paramcli.fitting.skeleton import outline
from paramcli.fitting.torch_module import require_fit
from paramcli.registry import PARAMETRIZATIONS
from paramcli.view import IDENTITY
for entry in PARAMETRIZATIONS.values():
    for spec in entry.examples or (entry.name,):
        for shape in ((4, 4), (6, 4), (2, 4, 4), (4,)):
            try:
                chain = parse_chain(spec)
                require_fit(chain, IDENTITY, shape, torch.float32)
            except (InputRefused, UsageError):  # an entry that needs arguments has examples
                continue
            outline(chain, shape, torch.float32)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


MODULES = """
import sys
from paramcli.cli.app import run
code = run(sys.argv[1:])
print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
# What typer's own help and its reading of values import, and what only a chain or a table in a terminal needs.
HEAVY = {
    "typer.rich_utils",
    "rich.markdown",
    "rich.syntax",
    "rich.traceback",
    "markdown_it",
    "pygments",
    "pydantic",
    "torch",
    "numpy",
    "asyncio",
    "importlib.metadata",
}
CHAINS = {"paramcli.chain", "paramcli.registry", "paramcli.catalogue", "paramcli.surgery", "paramcli.maths"}


def imported(*arguments: object) -> set[str]:
    """The modules, and the packages they are in, that a command has imported when it is done."""
    done = subprocess.run([sys.executable, "-c", MODULES, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr
    names = done.stderr.splitlines()[-1].split()
    return {".".join(name.split(".")[: n + 1]) for name in names for n in range(name.count(".") + 1)}


def test_the_list_of_commands_imports_none_of_them():
    """--help is there at once: no rich, no catalogue, no file format, and no command's module."""
    modules = imported("--help")
    assert not modules & (
        HEAVY | CHAINS | {"rich", "paramcli.show.console", "paramcli.show.tables", "paramcli.show.document"}
    )
    assert {name for name in modules if name.startswith("paramcli.cli.")} <= {
        f"paramcli.cli.{name}" for name in ("app", "group", "help", "outlet", "usage", "values")
    }
    assert {name for name in modules if name.startswith("paramcli.checkpoint.")} == {
        "paramcli.checkpoint.disk",
        "paramcli.checkpoint.disk.interrupts",
        "paramcli.checkpoint.disk.last_resort",
    }


def test_the_help_of_a_command_imports_that_command_alone():
    """Its options are known without the catalogue, and drawn without rich's Markdown."""
    modules = imported("add", "--help")
    assert not modules & (HEAVY | CHAINS)
    assert not modules & {f"paramcli.cli.{name}" for name in COMMANDS if name != "add"}


def test_inspect_of_plain_tensors_needs_no_catalogue(tmp_path):
    """A header without a record says all there is to show; a pipe needs no rich; what writes and reads
    pickles waits.
    """
    save_file({f"layers.{n}.weight": torch.zeros(2) for n in range(10)}, tmp_path / "a.safetensors")
    for way in ((), ("--json",)):
        modules = imported("inspect", tmp_path / "a.safetensors", *way)
        assert not modules & (
            HEAVY
            | CHAINS
            | {"rich", "paramcli.checkpoint.disk.atomic", "paramcli.checkpoint.pickle.pickle_data", "hashlib", "ctypes"}
        )


def test_renames_and_safetensors_layouts_never_import_torch(tmp_path):
    """migrate, and convert to one file, to shards and back, only move bytes."""
    one, two, shards = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "shards"
    save_file({"fc.weight_g": torch.ones(3, 1), "fc.weight_v": torch.randn(3, 3), "fc.bias": torch.ones(3)}, one)
    for arguments in (
        ["migrate", one, "--to", "new", "-o", two],
        ["convert", two, "-o", shards, "--max-shard-size", "1KB"],
        ["convert", shards, "-o", tmp_path / "c.safetensors"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "c.safetensors").read_bytes() == two.read_bytes()


def test_planning_without_data_loads_no_symbolic_algebra(tmp_path):
    """The shapes a chain stores are told without sympy, which torch loads for some operations on tensors
    without data.
    """
    chains = (
        "skew,cayley",
        "symmetric,matrix_exp",
        "weight_norm",
        "weight_norm:dim=none",
        "orthogonal",
        "mask",
        "prune_l1:amount=0.5",
    )
    code = (
        "import sys, torch; from paramcli.fitting.skeleton import outline; from paramcli.chain import parse_chain\n"
        f"[outline(parse_chain(text), (6, 6), torch.float32) for text in {chains!r}]\n"
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_module_of_a_decoder_is_made_without_symbolic_algebra():
    """It costs 60 MB there too, beside blocks of 4 MB."""
    chains = (
        "fp8_block:rows=32:columns=32",
        "fp8_block:rows=1:columns=32:scales=tiles",
        "fp8_scaled:per=output",
        "bnb_4bit:table=nf4:block=64:nested=256",
        "bnb_int8",
        "gptq:bits=3:zeros=v1:group=32",
        "awq:group=32",
        "int_scaled:per=group:size=32:zero_point=true:g_idx=true",
        "int_packed:bits=3:columns=64:per=group:size=32:zero_point=true:g_idx=true",
        "mxfp4:transposed=true",
        "mxfp6",
        "nvfp4:global_scale=multiplies:first=high:scales=tiles",
    )
    assert {chain.partition(":")[0] for chain in chains} == set(DECODERS)
    code = (
        "import sys, torch; from paramcli.chain import parse_chain; from paramcli.registry import target_class\n"
        f"for (link,) in [parse_chain(text).links for text in {chains!r}]:\n"
        "    target_class(link.entry).make(torch.empty(64, 64, device='meta'), **link.arguments)\n"
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_inspect_of_torch_files_needs_no_torch_either(fixtures):
    """The torch container is described from its pickle."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "inspect", str(fixtures / "facenet_pnet.pt")],
        capture_output=True,
        text=True,
    )
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
    command = (
        f"{sys.executable} -m paramcli add {fc_checkpoint} -t fc.weight --chain skew,cayley -o "
        f"{tmp_path}/o.safetensors >&- 2>&-"
    )
    subprocess.run(["sh", "-c", command], check=False)
    from safetensors.torch import load_file

    assert "fc.parametrizations.weight.original" in load_file(tmp_path / "o.safetensors")


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_do_not_change_the_exit_code(streams, fc_checkpoint, tmp_path):
    """What cannot be said is no failure of the work, and no success of what failed."""
    line = f"{sys.executable} -m paramcli convert {{}} -o {tmp_path}/o.safetensors {streams}"
    done = [
        subprocess.run(["sh", "-c", line.format(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for path in (fc_checkpoint, "nosuch.pt")
    ]
    assert [d.returncode for d in done] == [0, 3]


def test_a_ctrl_c_is_told(fc_checkpoint, paramcli, monkeypatch):
    """Exit 130 with one line that says how things stand, also where the parser's library has caught the interrupt."""
    from paramcli.spelling import opened

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(opened, "open_checkpoint", interrupted)
    said = paramcli("inspect", fc_checkpoint, code=130)
    assert said.out == "" and said.err == "error: interrupted; nothing was left half written\n"


def test_a_reader_that_leaves_early_is_no_error(fixtures):
    """paramcli inspect | head -1 ends quietly."""
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m paramcli inspect {fixtures}/silero_vad_16k.safetensors --json | head -c 10"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_machine_without_numpy_sees_no_warning(fc_checkpoint, tmp_path):
    """torch warns at import where numpy is missing; stderr holds paramcli's own messages only."""
    code = "import sys; sys.modules['numpy'] = None; from paramcli.cli.app import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "add", str(fc_checkpoint), "-t", "fc.weight", "--chain", "skew,cayley"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and [line.split()[0] for line in done.stderr.splitlines()] == ["wrote", "next:"]


@pytest.mark.parametrize(
    ("given", "seen"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_threads_of_linear_algebra_sleep_soon_unless_the_user_says_otherwise(given, seen):
    """Set before torch is imported, which is when it is read; what the environment says holds."""
    code = (
        "import atexit, os\natexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT')))\n"
        "from paramcli.cli.app import main\nmain(['registry', 'skew'])"
    )
    environment = {
        name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment | given, timeout=HANG_SECONDS
    )
    assert done.stdout.splitlines()[-1] == str(seen)
