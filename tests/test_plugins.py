"""Plug-ins: an installed package and a file the user names add entries; a checkpoint can cause no import."""

import json
import re
import runpy
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from paramcli import plugin, registry

FOLDER = Path(__file__).parent / "plugin"
PLUGIN, DALE = FOLDER / "halfnorm.py", FOLDER / "dale.py"
HERE = {"PYTHONPATH": str(FOLDER.parent.parent)}


@pytest.fixture
def installed(tmp_path) -> dict[str, str]:
    """An environment in which the plug-in is an installed package with an entry point."""
    site = tmp_path / "site"
    info = site / "halfnorm-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(PLUGIN, site / "halfnorm.py")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halfnorm\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[paramcli.parametrizations]\nhalfnorm = halfnorm\n")
    root = Path(__file__).resolve().parent.parent
    return {"PYTHONPATH": f"{site}:{root}"}


def test_an_installed_plugin_is_listed_and_works(installed, shell, tmp_path):
    """Its entry appears in registry with its origin, and in add, verify and remove."""
    torch.save({"w": torch.tensor([[0.3, 0.9], [-1.2, 2.0]])}, tmp_path / "c.pt")
    assert "to_halves" in shell("registry", **installed).out
    assert "plug-in halfnorm" in shell("registry", "to_halves", **installed).out
    shell("add", "c.pt", "-t", "w", "--chain", "to_halves", **installed)
    assert "halves" in shell("verify", "c.parametrized.safetensors", **installed).out
    shell("remove", "c.parametrized.safetensors", **installed)
    assert shell("verify", "c.baked.safetensors", **installed).out.count("holds") == 1
    wanted = torch.tensor([[0.5, 1.0], [-1.0, 2.0]])
    assert torch.equal(load_file(tmp_path / "c.baked.safetensors")["w"], wanted)


def test_a_file_named_on_the_command_line_works(paramcli, shell, tmp_path):
    """--plugin FILE.py, before the command or after it, adds the file's entries."""
    torch.save({"w": torch.tensor([0.3, 0.9])}, tmp_path / "c.pt")
    edit = ("add", "c.pt", "-t", "w", "--chain", "to_halves", "-f")
    for line in (["--plugin", PLUGIN, *edit], [*edit, "--plugin", PLUGIN]):
        assert "to_halves" in shell(*line).out
    for wrong in ("none.py", "none.py:X", f"{PLUGIN}:nothing", "os"):
        for line in (["--plugin", wrong, "registry"], ["registry", f"--plugin={wrong}"]):
            assert paramcli(*line, code=2).err.startswith(f"error: --plugin {wrong}")


def test_a_record_with_an_unknown_entry_imports_nothing(installed, shell, tmp_path):
    """Without the plug-in its record is a clear error; a module named like the entry beside the file stays unread."""
    record = {
        "schema": 1,
        "version": "0.1.0",
        "tensors": {"w": {"state": "baked", "chain": "evil", "view": None, "constraint": None}},
    }
    save_file({"w": torch.zeros(2)}, tmp_path / "c.safetensors", {"paramcli": json.dumps(record), "format": "pt"})
    (tmp_path / "evil.py").write_text("open('canary', 'w')")
    got = shell("verify", "c.safetensors", code=3)
    assert "no parametrization named 'evil'" in got.err and "--ignore-record" in got.err
    assert not (tmp_path / "canary").exists()


def test_a_plugin_beside_the_checkpoint_is_not_loaded(shell, tmp_path):
    """A package laid into the working folder is not on the import path, entry point or not."""
    info = tmp_path / "trap-1.0.dist-info"
    info.mkdir()
    (tmp_path / "trap.py").write_text("open('canary', 'w')")
    (tmp_path / "typer.py").write_text("open('canary', 'w')")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trap\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[paramcli.parametrizations]\ntrap = trap\n")
    torch.save({"w": torch.eye(2)}, tmp_path / "c.pt")
    shell("inspect", "c.pt", PYTHONPATH=str(Path(__file__).resolve().parent.parent))
    assert not (tmp_path / "canary").exists()


def test_a_broken_plugin_is_left_out_with_a_warning(installed, shell, tmp_path):
    """A plug-in that raises is named on stderr and everything else works."""
    (tmp_path / "site" / "halfnorm.py").write_text("raise RuntimeError('broken\\x1b[31m')")
    got = shell("registry", **installed)
    assert "plug-in halfnorm" in got.err and "\x1b" not in got.err and "skew" in got.out


def test_what_a_plugin_s_own_code_raises_is_said_of_its_file(shell, tmp_path):
    """It is no bug of paramcli's, and nothing is written."""
    head, _, rest = PLUGIN.read_text().partition("    def map(self, X: Tensor) -> Tensor:\n")
    assert rest
    (tmp_path / "broken.py").write_text(
        f"{head}    def map(self, X: Tensor) -> Tensor:\n        raise ValueError('inner')\n{rest}"
    )
    save_file({"w": torch.tensor([0.3, 0.9])}, tmp_path / "w.safetensors")
    line = ("--plugin", "broken.py", "add", "w.safetensors", "-t", "w", "--chain", "to_halves", "-o", "o.safetensors")
    assert "broken.py: its own code raised ValueError: inner" in shell(*line, code=2, **HERE).err
    assert not (tmp_path / "o.safetensors").exists()


def test_names_that_are_taken_are_refused(tmp_path, paramcli):
    """A plug-in cannot stand in for a built-in entry."""
    (tmp_path / "p.py").write_text(
        PLUGIN.read_text().replace('"to_halves"', '"skew"').replace('"halves"', '"other_halves"')
    )
    assert "skew is taken" in paramcli("--plugin", tmp_path / "p.py", "registry", code=2).err


def fits(W: torch.Tensor, sign: torch.Tensor) -> bool:
    return bool((W * sign >= 0).all())


@pytest.mark.parametrize(
    ("hint", "dtype"), [("right", torch.float32), ("wrong", torch.bfloat16), ("raises", torch.float32)]
)
def test_a_plugin_has_arguments_and_stored_tensors(hint, dtype, shell, tmp_path):
    """Its argument is in the chain and the record, its buffer in the file; every command reads both back.

    What it says of its storage by shape alone is a hint: the result is the same where that is wrong.
    """
    body = DALE.read_text()
    if hint != "right":
        said = 'return {"original": (None, shape)}' if hint == "wrong" else "raise ValueError"
        body = body.replace("    units = list(shape)", f"    {said}\n    units = list(shape)")
    (tmp_path / "dale.py").write_text(body)
    torch.manual_seed(0)
    W = torch.randn(6, 4).to(dtype)
    torch.save({"w": W, "b": torch.zeros(3)}, tmp_path / "c.pt")

    def run(*arguments: str, code: int = 0):
        return shell("--plugin", "dale.py", *arguments, code=code, **HERE)

    run("add", "c.pt", "-t", "w", "--chain", "dale:dim=-2", "-o", "p.safetensors")
    state = load_file(tmp_path / "p.safetensors")
    sign = state["parametrizations.w.0.sign"]
    assert torch.equal(state["parametrizations.w.original"], W) and sign.shape == (6, 1) and sign.dtype == dtype
    assert set(sign.flatten().tolist()) == {1, -1}
    with safe_open(tmp_path / "p.safetensors", "pt") as file:
        recorded = json.loads(file.metadata()["paramcli"])["tensors"]["w"]
    assert recorded["chain"] == "dale:dim=-2" and recorded["constraint"] == "one_sign:dim=-2"

    assert run("verify", "p.safetensors").out.count("holds") == 2
    run("remove", "p.safetensors", "--no-bake", "-o", "before.safetensors")
    assert torch.equal(load_file(tmp_path / "before.safetensors")["w"], W)
    run("remove", "p.safetensors", "--bake", "-o", "baked.safetensors")
    baked = load_file(tmp_path / "baked.safetensors")["w"]
    assert torch.equal(baked, torch.where(W * sign > 0, W, 0)) and baked.dtype == dtype
    assert "one_sign:dim=-2" in run("verify", "baked.safetensors").out
    assert "one_sign:dim=-2" in run("discover", "baked.safetensors").out

    # The signs stay those of the file, whatever is assigned.
    run("assign", "p.safetensors", "-t", "w", "--with", "normal", "-o", "a.safetensors")
    assigned = load_file(tmp_path / "a.safetensors")
    assert torch.equal(assigned["parametrizations.w.0.sign"], sign)
    assert not fits(assigned["parametrizations.w.original"], sign)
    run("remove", "a.safetensors", "--bake", "-o", "ab.safetensors")
    assert fits(load_file(tmp_path / "ab.safetensors")["w"], sign)
    assert "FAILS" in run("verify", "c.pt", "-t", "w", "--constraint", "one_sign:dim=-2", code=1).out


def test_a_plugin_s_arguments_are_typed_and_on_its_card(shell, tmp_path):
    """A value out of range, of another type or unknown is a mistake on the command line; cards say what is taken."""
    torch.save({"w": torch.eye(3)}, tmp_path / "c.pt")
    for item, told in (
        ("dale:dim=0", "from -2 to -1"),
        ("dale:dim=x", "whole number"),
        ("dale:n=1", "no argument 'n'"),
    ):
        assert told in shell("--plugin", DALE, "add", "c.pt", "-t", "w", "--chain", item, code=2, **HERE).err
    card = " ".join(shell("--plugin", DALE, "registry", "dale", **HERE).out.split())
    assert ":dim= int; the dimension that counts the units" in card and "default -1" in card
    assert "signs: share of the weights" in card and "plug-in dale.py" in card
    assert "measured of dale" in " ".join(shell("--plugin", DALE, "registry", "signs", **HERE).out.split())
    wrong = DALE.read_text().replace('"dim", "int"', '"dim", "integer"')
    (tmp_path / "wrong.py").write_text(wrong)
    told = shell("--plugin", "wrong.py", "registry", code=2, **HERE).err
    assert "has a type 'integer'" in told


def test_the_set_of_a_plugin_is_held_to_its_near_misses():
    """What a plug-in's set and map promise is what the laws hold the built-in ones to."""
    family = runpy.run_path(str(DALE))
    for dim in (-1, -2):
        one_sign, seed = family["OneSign"](dim), torch.Generator().manual_seed(0)
        for shape in ((5, 4), (3, 4, 4)):
            member = one_sign.sample(torch.Size(shape), seed)
            assert bool((one_sign.residual(member) == 0).all())
            assert all(bool((one_sign.residual(miss) > 0).all()) for miss in one_sign.near_misses(member).values())
            outside = torch.randn(shape, generator=seed, dtype=torch.float64)
            dale = family["Dale"].make(outside, dim=dim)
            assert bool((one_sign.residual(dale.map(outside)) == 0).all())
            assert torch.equal(dale.map(outside), one_sign.project(outside))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('image_of("one_sign", "dim")', '"two_signs"', "no constraint named two_signs"),
        ("target=OneSign,", 'target=OneSign, within=("nowhere",),', "no constraint named nowhere"),
        ("target=OneSign,", 'target=OneSign, implies=("nowhere",),', "no constraint named nowhere"),
        ("target=OneSign,", 'target=OneSign, closure="nowhere",', "no constraint named nowhere"),
        ("target=OneSign,", 'target=OneSign, keeper="nobody",', "no parametrization named nobody"),
        ('name="signs"', 'name="mask"', "the name mask is taken"),
        ("MEASURES = (SIGNS,)", "MEASURES = (SIGNS, SIGNS)", "the name signs is taken"),
        ("MEASURES = (SIGNS,)", 'MEASURES = ("signs",)', "is no MeasureEntry"),
        ('name="dale",\n        family=', '"dale",\n        family=', "positional argument"),
    ],
)
def test_a_family_that_is_wrong_adds_nothing(old, new, told, tmp_path, paramcli):
    """Each mistake is told, and the tables are what they were."""
    tables = [dict(table) for table in (registry.PARAMETRIZATIONS, registry.CONSTRAINTS, registry.MEASURES)]
    body = DALE.read_text()
    assert body.count(old) == 1
    (tmp_path / "p.py").write_text(body.replace(old, new))
    assert told in paramcli("--plugin", tmp_path / "p.py", "registry", code=2).err
    assert tables == [registry.PARAMETRIZATIONS, registry.CONSTRAINTS, registry.MEASURES]


def test_the_door_is_all_that_a_plugin_needs():
    """`paramcli.plugin` has what it lists, a line on each name, and the plug-ins here and in the guide use no other."""
    for name in plugin.__all__:
        assert hasattr(plugin, name) and re.search(rf"\b{name}\b", plugin.__doc__), name
    guide = (FOLDER.parent.parent / "docs" / "plug-ins.md").read_text()
    for text in (*(path.read_text() for path in FOLDER.glob("*.py")), guide):
        assert set(re.findall(r"^from (paramcli[\w.]*) import", text, re.M)) == {"paramcli.plugin"}


@pytest.mark.parametrize("path", [PLUGIN, DALE], ids=lambda path: path.name)
def test_the_guide_shows_the_plugins_that_are_tested(path):
    """Each file stands in the guide as it is here."""
    guide = (FOLDER.parent.parent / "docs" / "plug-ins.md").read_text()
    assert f"<!-- file: {path.name} -->\n```python\n{path.read_text()}```\n" in guide
