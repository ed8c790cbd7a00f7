"""diff --adapter: effective weights with adapters on either side; PEFT's own merges are the oracle."""

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import paramcli as library


def whole(folder, out):
    """(the base's file, all of what PEFT merges it to)"""
    with safe_open(folder / "merged.safetensors", "pt") as file:
        base = folder.parent / f"{file.metadata()['base']}.safetensors"
    save_file({**load_file(base), **load_file(folder / "merged.safetensors")}, out)
    return base, out


@pytest.mark.parametrize("name", ["lora", "dora_bf16", "conv_dora", "conv1d_square"])
def test_a_base_with_its_adapter_is_the_merge(name, adapters, tmp_path, paramcli):
    """On either side, to the rounding of the dtype; without it, or twice, it is not."""
    base, merge = whole(adapters / name, tmp_path / "merged.safetensors")
    said = paramcli("diff", base, merge, "--adapter", adapters / name).err
    assert "what adapters add on one side" in said
    paramcli("diff", merge, base, "--adapter-b", adapters / name)
    paramcli("diff", base, base, "--adapter", adapters / name, "--adapter-b", adapters / name)
    paramcli("diff", base, merge, code=1)
    paramcli("diff", merge, merge, "--adapter", adapters / name, code=1)
    assert library.diff(base, merge, adapter=adapters / name).equal


def test_each_side_has_its_strengths_and_the_prefix_is_for_both(adapters, tmp_path, paramcli):
    """Twice half an adapter is a whole one; a strength stands behind an adapter of its own side."""
    base, merge = whole(adapters / "lora", tmp_path / "merged.safetensors")
    one = "--adapter", adapters / "lora", "--strength", 0.5
    paramcli("diff", base, merge, *one, *one)
    paramcli("diff", merge, base, "--adapter-b", adapters / "lora", "--strength-b", 0.5, code=1)
    assert library.diff(merge, base, adapter_b=[adapters / "lora"] * 2, strength_b=[0.25, 0.75]).equal
    assert "--adapter-b" in paramcli("diff", base, merge, *one, "--strength-b", 1, code=2).err
    wrapped = tmp_path / "wrapped.safetensors"
    rename = {n: n.replace("model.layers", "model.language_model.layers") for n in load_file(merge)}
    save_file({rename[n]: T for n, T in load_file(merge).items()}, wrapped)
    other = tmp_path / "base.safetensors"
    save_file({rename[n]: T for n, T in load_file(base).items()}, other)
    prefix = "--adapter-prefix", "model.=model.language_model."
    paramcli("diff", other, wrapped, "--adapter", adapters / "lora", *prefix)
    assert "--adapter-prefix model." in paramcli("diff", other, wrapped, "--adapter", adapters / "lora", code=3).err
    paramcli("diff", other, wrapped, *prefix, code=2)


def test_what_is_no_adapter_of_it_is_refused(adapters, tmp_path, paramcli):
    """No folder, an adapter of another base, a checkpoint that is none: one line, exit 3."""
    base, merge = whole(adapters / "lora", tmp_path / "merged.safetensors")
    assert "error: " in paramcli("diff", base, merge, "--adapter", tmp_path / "none", code=3).err
    assert "are not in" in paramcli("diff", base, merge, "--adapter", adapters / "conv", code=3).err
    assert "is no adapter that is read" in paramcli("diff", base, merge, "--adapter-b", merge, code=3).err
