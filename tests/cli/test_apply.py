"""apply: a recipe does what the single commands do, in one pass, and is checked as a whole."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from paramcli.recipe import locate

from ..pace import calls


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe and give its path."""

    def write(text, name="r.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


ADD_BOTH = """
[[edit]]
command = "add"
tensor = ["fc.weight"]
chain = "symmetric"

[[edit]]
command = "add"
tensor = "conv.weight"
chain = "weight_norm:dim=0"
"""


def test_a_recipe_writes_the_bytes_of_its_commands_one_after_another(fc_checkpoint, tmp_path, recipe, paramcli):
    """Two edits of two tensors, an assignment and an appended link: one pass equals four files in a row."""
    path = recipe(
        ADD_BOTH
        + """
[[edit]]
command = "assign"
tensor = "fc.weight"
with = "orthogonal"
seed = 5

[[edit]]
command = "add"
tensor = "fc.weight"
chain = "matrix_exp"
init = "raw"
"""
    )
    paramcli("apply", path, fc_checkpoint, "-o", tmp_path / "apply.safetensors")
    one, two, three, four = (tmp_path / f"{n}.safetensors" for n in "1234")
    paramcli("add", fc_checkpoint, "-t", "fc.weight", "--chain", "symmetric", "-o", one)
    paramcli("add", one, "-t", "conv.weight", "--chain", "weight_norm:dim=0", "-o", two)
    paramcli("assign", two, "-t", "fc.weight", "--with", "orthogonal", "--seed", 5, "-o", three)
    paramcli("add", three, "-t", "fc.weight", "--chain", "matrix_exp", "--init", "raw", "-o", four)
    assert (tmp_path / "apply.safetensors").read_bytes() == four.read_bytes()


def test_moved_is_the_whole_way(fc_checkpoint, tmp_path, recipe, paramcli):
    """Where two edits meet one tensor, `moved` is from the file's weight to the last one's value."""
    path = recipe(ADD_BOTH + '[[edit]]\ncommand = "assign"\ntensor = "fc.weight"\nwith = "eye"\n')
    report = paramcli("apply", path, fc_checkpoint, "--json").json
    W = torch.load(fc_checkpoint, weights_only=True)["fc.weight"].double()
    wanted = ((torch.eye(16, dtype=torch.float64) - W).norm() / W.norm()).item()
    tensors = {t["tensor"]: t for t in report["tensors"]}
    assert tensors["fc.weight"]["moved"] == pytest.approx(wanted, rel=1e-6)
    assert tensors["fc.weight"]["action"] == "register, assign" and report["untouched"] == 4


def test_renames_in_a_row_never_import_torch(tmp_path, fixtures, recipe, shell, paramcli):
    """migrate to new and back to old in one recipe copies every byte to where it was."""
    path = recipe('[[edit]]\ncommand = "migrate"\nto = "new"\n[[edit]]\ncommand = "migrate"\nto = "old"\n')
    paramcli("convert", fixtures / "old_norms.pt", "-o", tmp_path / "a.safetensors", "-q")
    code = "import sys; sys.modules['torch'] = None; from paramcli.cli.app import run; sys.exit(run(sys.argv[1:]))"
    import subprocess

    subprocess.run(
        [sys.executable, "-c", code, "apply", path, tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors"],
        check=True,
    )
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "-t", "fc.weight", "--chain", "skew,cayley", "--compute-dtype", "float64"),
        ("add", "-t", "fc.weight", "--chain", "prune_random:amount=0.5", "--seed", "7"),
        ("add", "-t", "*.weight", "--chain", "weight_norm", "--max-change", "0.5"),
        ("assign", "-t", "out.weight", "--with", "xavier_uniform", "--seed", "3"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_json_of_a_command_is_its_recipe(arguments, fc_checkpoint, tmp_path, recipe, paramcli):
    """--json, saved and applied, writes the same bytes; so does the recipe that a dry run of that prints."""
    command, *options = arguments
    said = paramcli(command, fc_checkpoint, *options, "--json", "-o", tmp_path / "1.safetensors")
    path = recipe(said.out, "did.json")
    paramcli("apply", path, fc_checkpoint, "-o", tmp_path / "2.safetensors")
    plan = paramcli("apply", path, fc_checkpoint, "-n")
    paramcli("apply", recipe(plan.out), fc_checkpoint, "-o", tmp_path / "3.safetensors")
    first = (tmp_path / "1.safetensors").read_bytes()
    assert (tmp_path / "2.safetensors").read_bytes() == first == (tmp_path / "3.safetensors").read_bytes()


def test_remove_and_migrate_are_replayed_too(fixtures, tmp_path, recipe, paramcli):
    """bake = false, to = "new": flags and choices come back as they were given."""
    said = paramcli("migrate", fixtures / "old_norms.pt", "--to", "new", "-n", "--json").json
    assert said["edit"] == [{"command": "migrate", "to": "new"}]
    paramcli(
        "add",
        fixtures / "silero_vad_16k.safetensors",
        "-t",
        "conv1.weight",
        "--chain",
        "mask",
        "-o",
        tmp_path / "m.safetensors",
    )
    said = paramcli("remove", tmp_path / "m.safetensors", "--no-bake", "-n", "--json")
    assert said.json["edit"] == [{"command": "remove", "bake": False}]
    paramcli("apply", recipe(said.out, "r.json"), tmp_path / "m.safetensors", "-o", tmp_path / "o.safetensors")
    assert "conv1.weight" in load_file(tmp_path / "o.safetensors")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            '[[edit]]\ncommand = "add"\ntensor = [\n "a",\n]\nveiw = "flatten"\nchain = "skew"\n',
            "line 6: add has no option 'veiw'",
            "view",
        ),
        ('[[edit]]\ncommand = "ad"\n', "line 2: no editing command 'ad'", "add"),
        ('\n[[edit]]\ncomand = "add"\n', "line 3: the edit has no command", "comand"),
        ('[[edit]]\ncommand = "add"\ntensor = "a"\nchain = "skw"\n', "line 4: no parametrization named 'skw'", "skew"),
        (
            '[[edit]]\ncommand = "add"\ntensor = "a"\nchain = "skew"\ninit = "projct"\n',
            "line 5: --init projct",
            "project",
        ),
        (
            '[[edit]]\ncommand = "add"\ntensor = "a"\nchain = "skew"\nseed = "1"\n',
            "line 5: seed must be a whole number",
            None,
        ),
        (
            '[[edit]]\ncommand = "add"\ntensor = "a"\nchain = "skew"\nmax-change = -1\n',
            "line 5: --max-change -1: must be at least 0",
            None,
        ),
        ('[[edit]]\ncommand = "add"\ntensor = [3]\nchain = "skew"\n', "line 3: tensor must be a list of texts", None),
        ('[[edit]]\ncommand = "assign"\ntensor = "a"\n', "line 1: assign needs one of --from", "orthogonal"),
        ("[edit]\ncommand = 1\n", "holds no list of edits", "[[edit]]"),
        ("seed = 3\n", "line 1: a recipe is a list", "[[edit]]"),
        ("[[edit]]\na = \n", "line 2, column 5", None),
        ("verify = true\n", "line 1: a recipe is a list", "apply RECIPE CKPT --verify"),
        ('[[edit]]\ncommand = "add"\ncheck = true\n', "line 3: add has no option 'check'", "apply RECIPE CKPT --check"),
        ('[[edit]]\ncommand = "add"\ntensor = "nope"\nchain = "skew"\n', "line 1: no tensor named 'nope'", None),
        ('[[edit]]\ncommand = "add"\ntensor = "out.weight"\nchain = "skew"\n', "line 1: skew", "square"),
        (
            '[[edit]]\ncommand = "assign"\ntensor = "fc.bias"\nwith = "xavier_normal"\n',
            "line 1: xavier_normal does not fit",
            None,
        ),
    ],
)
def test_mistakes_are_told_with_their_line_before_anything_is_read(
    text, message, hint, fc_checkpoint, tmp_path, recipe, paramcli, monkeypatch
):
    """Options, names, shapes: the whole recipe is checked on headers alone."""
    from paramcli.checkpoint.source import Source

    monkeypatch.setattr(Source, "read", lambda *_: pytest.fail("a tensor was read"))
    result = paramcli("apply", recipe(text), fc_checkpoint, code=None)
    assert result.code in (2, 3) and message in result.err
    assert hint is None or hint in result.err
    assert {p.name for p in tmp_path.iterdir()} == {"ckpt.pt", "r.toml"}


def test_all_mistakes_come_together(fc_checkpoint, recipe, paramcli):
    """Two bad edits are two lines in one message, also as JSON."""
    text = '[[edit]]\ncommand = "add"\ntensor = "a"\n[[edit]]\ncommand = "migrate"\nto = "newer"\n'
    result = paramcli("apply", recipe(text), fc_checkpoint, "--json", code=2)
    assert "line 1: add needs --chain" in result.err and "line 6: --to newer" in result.err
    assert json.loads(result.out)["error"]["code"] == "usage"


def test_lines_are_found_whatever_the_layout():
    """Comments, arrays and texts over several lines, keys that look like others, quoted keys, CRLF."""
    text = (
        '# first\n\n[[edit]] # here\n"command" = """\n[[edit]]\nchain = 3\n"""\r\n'
        'tensor = [ # a\n  "]",\n]\n\n[[ edit ]]\nview = 1\n'
    )
    assert locate(text) == {(0, None): 3, (0, "command"): 4, (0, "tensor"): 8, (1, None): 12, (1, "view"): 13}


def test_a_long_list_is_found_in_one_pass():
    """A dry run prints a line for each tensor: 20,000 are found in some calls for each line."""
    names = "".join(f'  "layers.{i}.weight",  # 4x4 float32 -> ["it", "..."]\n' for i in range(20_000))
    text = f'[[edit]]\ncommand = "add"\ntensor = [\n{names}]\nchain = "positive"\n' * 2
    assert calls(lambda: locate(text)) < 50 * text.count("\n")
    assert locate(text)[1, "chain"] == 2 * 20_005


def test_a_json_recipe_names_the_edit(fc_checkpoint, recipe, paramcli):
    """JSON has no line of its own for a key, so its edits are counted."""
    result = paramcli(
        "apply",
        recipe('{"edit": [{"command": "add", "tensor": ["fc.weight"], "chain": "skew", "x": 1}]}', "a.json"),
        fc_checkpoint,
        code=2,
    )
    assert "a.json edit 1: add has no option 'x'" in result.err


def test_an_edit_computes_in_the_dtype_it_names(fc_checkpoint, tmp_path, recipe, paramcli):
    """compute-dtype of a recipe is --compute-dtype of the command, and float64 is not what float32 gives."""
    paramcli("add", fc_checkpoint, "-t", "fc.weight", "--chain", "skew,matrix_exp", "-o", tmp_path / "p.safetensors")
    paramcli("remove", tmp_path / "p.safetensors", "-o", tmp_path / "same.safetensors")
    paramcli("remove", tmp_path / "p.safetensors", "--compute-dtype", "float64", "-o", tmp_path / "wide.safetensors")
    paramcli(
        "apply",
        recipe('[[edit]]\ncommand = "remove"\ncompute-dtype = "float64"\n'),
        tmp_path / "p.safetensors",
        "-o",
        tmp_path / "r.safetensors",
    )
    same, wide, applied = ((tmp_path / f"{n}.safetensors").read_bytes() for n in ("same", "wide", "r"))
    assert applied == wide != same


PATHS = {
    "adapter": 'command = "merge"\nadapter = ["{}"]',
    "from": 'command = "assign"\ntensor = ["fc.weight"]\nfrom = "{}:fc.weight"',
    "mask": 'command = "add"\ntensor = ["fc.weight"]\nchain = "mask"\nmask = "{}"',
}


@pytest.mark.parametrize("option", PATHS)
def test_paths_start_where_apply_runs(option, fc_checkpoint, tmp_path, paramcli, monkeypatch):
    """As on a command line, whatever option has them; what lies beside the recipe under that name is told."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "other.pt").write_bytes(fc_checkpoint.read_bytes())
    (folder / "r.toml").write_text("[[edit]]\n" + PATHS[option].format("other.pt"))
    monkeypatch.chdir(tmp_path)
    said = paramcli("apply", "elsewhere/r.toml", fc_checkpoint, "-o", "x.pt", code=3).err
    assert "r.toml line 1: no such file: other.pt" in said
    assert "beside the recipe it is elsewhere/other.pt: a recipe's paths start where apply runs" in said
    (folder / "other.pt").rename("other.pt")
    # Now it is read, and is no adapter, or of no use here: another fact about that very file.
    assert "no such file" not in paramcli("apply", "elsewhere/r.toml", fc_checkpoint, "-o", "x.pt", code=None).err
