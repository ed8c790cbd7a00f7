"""A record whose chain, view or constraint is absurd is refused by the tensor's name: never a bug, never the user's."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from paramcli.chain import parse_chain
from paramcli.errors import UsageError
from paramcli.registry import CONSTRAINTS, PARAMETRIZATIONS
from paramcli.spec import value_text

NUMBERS = ["999999999999999999", "-999999999999999999", "65537", "-1", "7", "1e308"]
ONE = {"parametrizations.w.original": torch.rand(4, 4)}
TWO = {"parametrizations.w.original0": torch.rand(4, 2), "parametrizations.w.original1": torch.rand(2, 4)}


def record(tensors, path, chain, view=None, constraint=None, shape=None):
    entry = {"state": "baked" if "w" in tensors else "parametrized", "chain": chain, "view": view}
    entry |= {"constraint": constraint, **({"shape": shape} if shape else {})}
    save_file(tensors, path, {"paramcli": json.dumps({"schema": 1, "version": "1", "tensors": {"w": entry}})})


def specs(table):
    """An entry's spec for each argument and number, its other required arguments given."""
    for entry in table.values():
        for argument in (a for a in entry.arguments if a.type not in ("choice", "text")):
            others = [a for a in entry.arguments if a.required and a is not argument]
            rest = "".join(f":{a.name}={2 if a.type in ('int', 'dim') else 0.5}" for a in others)
            for number in NUMBERS:
                yield f"{entry.name}:{argument.name}={number}{rest}"


def never_a_bug(path, paramcli):
    """verify measures, or refuses and names the tensor."""
    told = paramcli("verify", path, code=None)
    assert told.code in (0, 1, 3), told.err
    assert told.code != 3 or "w" in re.findall(r"\w+", told.err.split(" (in ")[0]), told.err


@pytest.mark.parametrize("tensors", [ONE, TWO], ids=["one original", "two originals"])
def test_no_argument_of_a_chain_is_a_bug(tensors, tmp_path, paramcli):
    """Every argument of every parametrization, with numbers that none is for; verify measures or refuses."""
    for chain in specs(PARAMETRIZATIONS):
        record(tensors, tmp_path / "m.safetensors", chain)
        never_a_bug(tmp_path / "m.safetensors", paramcli)


@pytest.mark.parametrize("shape", [None, [0, 4], [1 << 31, 1 << 31]], ids=str)
def test_no_view_or_shape_is_a_bug(shape, tmp_path, paramcli):
    """Every parametrization through views and shapes that its tensors do not have."""
    for name, entry in PARAMETRIZATIONS.items():
        chain = name + "".join(f":{a.name}={2 if a.type == 'int' else 0.5}" for a in entry.arguments if a.required)
        for view in ("flatten", "heads=2", "blocks=3"):
            record(TWO if entry.originals == 2 else ONE, tmp_path / "m.safetensors", chain, view, None, shape)
            never_a_bug(tmp_path / "m.safetensors", paramcli)


def test_no_argument_of_a_constraint_is_a_bug(tmp_path, paramcli):
    """The same of what a baked tensor claims."""
    for constraint in specs(CONSTRAINTS):
        record({"w": torch.rand(4, 4)}, tmp_path / "m.safetensors", "skew", None, constraint)
        never_a_bug(tmp_path / "m.safetensors", paramcli)


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        ("factored:rank=999999999999999999", "must be from 1 to 1e+06"),
        ("block_diagonal:g=999999999", "must be from 1 to 1e+06"),
        ("block_diagonal:g=3", "block_diagonal"),
        ("interval:a=2", "interval needs a < b, and 2 is not below 1"),
        ("increasing:dim=7", "dim"),
        ("lora:rank=2:alpha=1e999", "must be a number"),
    ],
)
def test_what_is_absurd_is_said(chain, why, tmp_path, paramcli):
    """By the tensor's name and the number, in every command that reads it."""
    record(ONE, tmp_path / "m.safetensors", chain)
    for command in (["verify"], ["remove"], ["spectrum"]):
        told = paramcli(*command, tmp_path / "m.safetensors", code=3).err
        assert why in told and " w" in told.splitlines()[0]


def test_large_numbers_are_read_back_as_they_are_written():
    """1e+18 is how Python writes 999999999999999999.0, and a chain's text goes through a record."""
    for number in (1e18, 1e-18, 1.5e300, 0.1):
        chain = parse_chain(f"lora:rank=2:alpha={value_text(number)}")
        assert parse_chain(str(chain)) == chain and chain.links[0].arguments["alpha"] == number
    with pytest.raises(UsageError):
        parse_chain("lora:rank=2:alpha=1e+400")
