"""Modules of plug-ins that keep more than they store."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PLUGIN = Path(__file__).parent / "plugin" / "remembers.py"


def test_what_a_module_remembers_is_of_its_tensor_alone(shell, tmp_path):
    torch.manual_seed(0)
    weights = {name: torch.randn(4, 4) * size for name, size in (("a", 1), ("b", 100))}
    save_file(weights, tmp_path / "c.safetensors")
    shell("--plugin", PLUGIN, "add", "c.safetensors", "-t", "*", "--chain", "remembers", "-o", "p.safetensors")
    shell("--plugin", PLUGIN, "remove", "p.safetensors", "-o", "b.safetensors")
    for name, value in load_file(tmp_path / "b.safetensors").items():
        torch.testing.assert_close(value, weights[name], rtol=1e-6, atol=0)


def test_a_buffer_that_is_stored_nowhere_is_refused(shell, tmp_path):
    """Its values are not known without the weight, and nothing is made of them."""
    save_file({"a": torch.ones(4, 4)}, tmp_path / "c.safetensors")
    said = shell("--plugin", PLUGIN, "add", "c.safetensors", "-t", "a", "--chain", "unstored", code=3).err
    assert "Unstored makes its buffer scale of the weight, and stores it nowhere" in said
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
