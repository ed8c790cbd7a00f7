"""An adapter that is on a weight already is told, and merged as it was asked for."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

TWICE = "the same change is put twice on 8 tensors"
BEFORE = "had lora:rank=3:alpha=7 merged before, by the record"


@pytest.fixture
def merge(fixtures, paramcli, tmp_path):
    """(base, adapters, command) -> what is said; the result is out.safetensors."""

    def call(base, *adapters, command="merge", strength=None, more=()):
        given = [word for adapter in adapters for word in ("--adapter", adapter)]
        given += [] if strength is None else ["--strength", strength]
        return paramcli(command, base, *given, *more, "-o", tmp_path / "out.safetensors", "-f").err

    return call


def test_one_adapter_given_twice(fixtures, merge, tmp_path):
    """By its tensors, whatever its folder is called, and whatever the strengths; the sum is what was asked for."""
    base, lora = fixtures / "adapters" / "llama.safetensors", fixtures / "adapters" / "lora"
    copy = shutil.copytree(lora, tmp_path / "copy")
    assert TWICE in merge(base, lora, copy)
    name = "model.layers.0.self_attn.q_proj.weight"
    start, double = load_file(base)[name], load_file(tmp_path / "out.safetensors")[name]
    assert TWICE in merge(base, lora, copy, strength=0.5)
    assert "put twice" not in merge(base, lora)
    torch.testing.assert_close(double - start, 2 * (load_file(tmp_path / "out.safetensors")[name] - start))
    # One number of one tensor makes it another adapter there.
    tensors = load_file(copy / "adapter_model.safetensors")
    tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"][0, 0] += 1
    save_file(tensors, copy / "adapter_model.safetensors")
    assert "put twice on 7 tensors" in merge(base, lora, copy)
    assert "put twice" not in merge(base, lora, fixtures / "adapters" / "rslora")


def test_one_adapter_added_to_what_has_it(fixtures, merge, tmp_path):
    """Of a file with the adapter's own tensors in it that is certain too."""
    base, lora = fixtures / "adapters" / "llama.safetensors", fixtures / "adapters" / "lora"
    both = tmp_path / "both.safetensors"
    assert "put twice" not in merge(base, lora, command="add")
    (tmp_path / "out.safetensors").rename(both)
    for command in ("add", "merge"):
        assert TWICE in merge(both, lora, command=command)
    assert "put twice" not in merge(both, fixtures / "adapters" / "rslora")


def test_one_adapter_merged_onto_a_merge(fixtures, merge, tmp_path):
    """Of a merged file its record knows the chains alone, so it is asked; without the record nothing tells."""
    base, lora = fixtures / "adapters" / "llama.safetensors", fixtures / "adapters" / "lora"
    once = tmp_path / "once.safetensors"
    merge(base, lora)
    (tmp_path / "out.safetensors").rename(once)
    assert f"8 tensors {BEFORE}" in merge(once, lora)
    assert f"8 tensors {BEFORE}" in merge(once, lora, more=("--dry-run",))
    assert "by the record" not in merge(once, lora, strength=0.5)
    assert "by the record" not in merge(once, lora, more=("--ignore-record",))
    # What replaces a tensor is the same twice.
    saved = fixtures / "adapters" / "trainable_tokens"
    merge(base, saved)
    (tmp_path / "out.safetensors").rename(once)
    assert "by the record" not in merge(once, saved)
