"""Plug-ins: an installed package and a file the user names add entries; a checkpoint can cause no import."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

PLUGIN = Path(__file__).parent / "plugin" / "halfnorm.py"


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


def test_names_that_are_taken_are_refused(tmp_path, paramcli):
    """A plug-in cannot stand in for a built-in entry."""
    (tmp_path / "p.py").write_text(
        PLUGIN.read_text().replace('"to_halves"', '"skew"').replace('"halves"', '"other_halves"')
    )
    assert "skew is taken" in paramcli("--plugin", tmp_path / "p.py", "registry", code=2).err
