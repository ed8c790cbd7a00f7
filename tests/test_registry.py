"""The table itself: complete cards, targets that exist, no torch."""

import ast
import inspect
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import paramcli
from paramcli.catalogue.entry import Entry
from paramcli.chain import parse_chain
from paramcli.maths.base import Constraint, Parametrization
from paramcli.registry import (
    _FAMILIES,
    CONSTRAINTS,
    DECODERS,
    MEASURES,
    PARAMETRIZATIONS,
    parse_constraint,
    target_class,
)
from paramcli.show.cards import registry_card


@pytest.mark.parametrize("entry", PARAMETRIZATIONS.values(), ids=lambda e: e.name)
def test_every_card_is_complete(entry):
    """Law, maps, right inverse, cost, source and a class that is a Parametrization."""
    assert all((entry.law, entry.maps, entry.right_inverse, entry.cost, entry.source, entry.summary))
    assert issubclass(target_class(entry), Parametrization)
    for domain, image in entry.maps:
        assert domain in CONSTRAINTS
        assert callable(image) or parse_constraint(image)


@pytest.mark.parametrize("entry", PARAMETRIZATIONS.values(), ids=lambda e: e.name)
def test_every_card_fits_a_terminal(entry):
    """No line of a card is wider than 80 columns, and the summary fits the table's line."""
    assert max(map(len, registry_card(entry).splitlines())) <= 80
    assert len(entry.summary) <= 64


@pytest.mark.parametrize("entry", CONSTRAINTS.values(), ids=lambda e: e.name)
def test_every_constraint_has_its_class(entry):
    """The class carries the table's name, and the supersets exist."""
    assert issubclass(target_class(entry), Constraint) and target_class(entry).name == entry.name
    assert all(name in CONSTRAINTS for name in entry.within) and entry.residual


def test_entries_name_entries_that_exist():
    """Sets that a set implies or closes, and the parametrization that keeps its members: all of the table."""
    for entry in CONSTRAINTS.values():
        assert {*entry.implies, *filter(None, [entry.closure])} <= set(CONSTRAINTS), entry.name
        if entry.keeper:
            needed = {argument.name for argument in entry.arguments if argument.required}
            taken = {argument.name for argument in PARAMETRIZATIONS[entry.keeper].arguments}
            assert needed <= taken, entry.name
    with pytest.raises(TypeError):
        Entry("w")


def test_no_code_decides_by_the_name_of_an_entry():
    """What is special about an entry is a field of it, so that an entry of a plug-in can have it too.

    `spelling` tells the spellings of foreign files apart, each of which means an entry.
    """
    names = {*PARAMETRIZATIONS, *CONSTRAINTS, *MEASURES}
    root = Path(paramcli.__file__).parent
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0] not in ("catalogue", "maths", "spelling"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Compare):
                    compared = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                    assert not names & compared, f"{path}:{node.lineno}"


def test_an_entry_under_another_name_has_all_that_is_special_about_it(paramcli, tmp_path, monkeypatch):
    """A mask from a file, the word on a weight without zeros, one threshold over all tensors, torch's own function."""
    for name in ("mask", "prune_l1", "weight_norm"):
        monkeypatch.setitem(PARAMETRIZATIONS, f"my_{name}", replace(PARAMETRIZATIONS[name], name=f"my_{name}"))
    a, b, m, out = (tmp_path / f"{name}.safetensors" for name in "abmo")
    save_file({"a.weight": torch.arange(1.0, 5).reshape(2, 2), "b.weight": torch.arange(5.0, 9).reshape(2, 2)}, a)
    save_file({"a.weight": torch.eye(2)}, m)
    paramcli("add", a, "-t", "a.weight", "--chain", "my_mask", "--mask", m, "-o", b)
    assert torch.equal(load_file(b)["a.parametrizations.weight.0.mask"], torch.eye(2).bool())
    told = paramcli("add", a, "-t", "a.weight", "--chain", "my_mask", "-o", b, "-f")
    assert "nothing is masked" in told.out + told.err
    paramcli("add", a, "-t", "*", "--chain", "my_prune_l1:amount=0.5:scope=global", "-o", out)
    masks = [load_file(out)[f"{name}.parametrizations.weight.0.mask"] for name in "ab"]
    assert not masks[0].any() and masks[1].all()
    told = paramcli("add", a, "-t", "*", "--chain", "skew,my_prune_l1:amount=0.5:scope=global", "-n", code=2).err
    assert "scope=global prunes" in told and "--chain my_prune_l1:amount=0.3:scope=global" in told
    paramcli("add", a, "-t", "a.weight", "--chain", "my_weight_norm", "-o", out, "-f")
    assert "parametrizations.weight_norm(model.get_submodule('a'), 'weight', dim=0)" in paramcli("snippet", out).out


def test_no_family_takes_a_name_of_another():
    """Families are merged into one table, where the second of a name would silently win."""
    assert len(CONSTRAINTS) == sum(len(family.CONSTRAINTS) for family in _FAMILIES)
    assert len(PARAMETRIZATIONS) == sum(len(family.PARAMETRIZATIONS) for family in _FAMILIES)


def test_complex_maps_have_complex_sets():
    """What takes complex tensors maps between sets that complex tensors can lie in, or its values could not be
    verified.
    """
    for entry in PARAMETRIZATIONS.values():
        for chain in () if entry.same_as else entry.examples or (entry.name,):
            for link in parse_chain(chain).links:
                sets = [CONSTRAINTS[spec.partition(":")[0]] for spec in (link.domain, link.image)]
                assert link.real or link.complex
                assert not link.complex or all(one.complex for one in sets), chain


def test_another_name_is_the_same_entry():
    """An entry under another name has the class, the arguments, the maps and the law of the one it names."""
    twins = [entry for entry in PARAMETRIZATIONS.values() if entry.same_as]
    for entry in twins:
        first = PARAMETRIZATIONS[entry.same_as]
        assert first.same_as is None and entry.source != first.source
        for name in ("target", "arguments", "maps", "law", "right_inverse", "originals", "complex", "spelt", "compact"):
            assert getattr(entry, name) == getattr(first, name)
    assert twins


def test_the_table_imports_no_torch():
    """Reading the catalogue, parsing chains and detecting forms leave torch alone."""
    modules = "paramcli.chain, paramcli.spelling.forms, paramcli.spelling.record"
    code = f"import {modules}, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("entry", PARAMETRIZATIONS.values(), ids=lambda e: e.name)
def test_what_verify_measures_is_on_the_card(entry):
    """Each name that its table can show beside the image's residual."""
    own = [kind for kind in target_class(entry).__mro__ if "checks" in vars(kind) and kind is not Parametrization]
    shown = {name for kind in own[:1] for name in re.findall(r'Check\(\s*f?"(\w+)', inspect.getsource(kind.checks))}
    told = {text.partition(":")[0] for text in entry.verifies.split("; ") if text}
    assert shown <= told <= set(MEASURES) and bool(shown) == bool(told)


@pytest.mark.parametrize("entry", MEASURES.values(), ids=lambda e: e.name)
def test_what_is_measured_beside_the_sets_has_a_card(entry, paramcli):
    """registry NAME says what it measures, its tolerance, and what that proves and does not prove."""
    told = " ".join(paramcli("registry", entry.name).out.split())
    for text in (entry.summary, entry.residual, entry.tolerance, entry.proves, entry.not_proved):
        assert text in told
    listed = paramcli("registry", entry.name, "--json").json["measures"]
    assert [measure["name"] for measure in listed] == [entry.name]
    every = [*PARAMETRIZATIONS.values(), *DECODERS.values()]
    assert [e.name for e in every if str(entry) in e.verifies.split("; ")]
