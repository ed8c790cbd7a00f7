"""verify of small tensors that are measured together: what each is told alone, to the last digit, and the words of
those that are off.
"""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import paramcli as library
from paramcli.answers import measured
from paramcli.errors import ParamcliError
from paramcli.registry import PARAMETRIZATIONS

# More than one part of a stack, and a part that is not full.
COUNT = 37


def verdicts(path, together, monkeypatch):
    """(what `verify` says of each tensor, how many were measured alone)."""
    alone = []
    real = measured.verify_group
    with monkeypatch.context() as patch:
        patch.setattr(measured, "verify_group", lambda *given: alone.append(given) or real(*given))
        if not together:
            patch.setattr(measured, "_kind", lambda group: None)
        return json.dumps(library.verify(path).document()), len(alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_together_each_is_told_what_it_is_told_alone(name, dtype, tmp_path, monkeypatch):
    """Every entry of the registry, as its first example has it, over two parts of a stack."""
    monkeypatch.setattr(measured, "PART", 16 * 64)
    generator = torch.Generator().manual_seed(0)
    tensors = {f"l.{i}.weight": (torch.randn(8, 8, generator=generator) / 3).to(dtype) for i in range(COUNT)}
    save_file(tensors, tmp_path / "a.safetensors")
    entry = PARAMETRIZATIONS[name]
    chain = entry.examples[0] if entry.examples else name
    try:
        library.add(tmp_path / "a.safetensors", "*", chain=chain, output=tmp_path / "b.safetensors")
        told, alone = verdicts(tmp_path / "b.safetensors", True, monkeypatch)
    except ParamcliError:
        pytest.skip("takes no such tensors, or claims nothing of them")
    by_itself, all_of_them = verdicts(tmp_path / "b.safetensors", False, monkeypatch)
    assert told == by_itself and all_of_them == COUNT and alone in (0, COUNT)


def rotations():
    generator = torch.Generator().manual_seed(0)
    return {
        f"l.{i}.weight": torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))
        .Q.float()
        .contiguous()
        for i in range(COUNT)
    }


def test_what_is_off_is_told_with_its_words(tmp_path, monkeypatch, paramcli):
    """Originals that were changed among good ones: NaN, infinite, and a value that is off its set."""
    save_file(rotations(), tmp_path / "a.safetensors")
    paramcli("add", tmp_path / "a.safetensors", "-t", "*", "--chain", "polar", "-o", tmp_path / "b.safetensors")
    stored = load_file(tmp_path / "b.safetensors")
    key = "l.{}.parametrizations.weight.original".format
    stored[key(3)][0, 0] = float("nan")
    stored[key(20)] = torch.zeros(8, 8)
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        save_file(stored, tmp_path / "c.safetensors", file.metadata())
    said = []
    for together in (True, False):
        with pytest.raises(ParamcliError) as refused:
            verdicts(tmp_path / "c.safetensors", together, monkeypatch)
        said.append((str(refused.value), refused.value.tensor, refused.value.hint))
    assert said[0] == said[1] and said[0][1] == "l.3.weight"


def test_a_wrong_value_among_others_is_measured_again_alone(tmp_path, monkeypatch, paramcli):
    """With the detail that a stack has no room for; the others are not."""
    save_file(rotations(), tmp_path / "a.safetensors")
    paramcli("add", tmp_path / "a.safetensors", "-t", "*", "--chain", "orthogonal", "-o", tmp_path / "b.safetensors")
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        stored = load_file(tmp_path / "b.safetensors")
        stored["l.7.parametrizations.weight.0.base"][0] *= 1.5
        save_file(stored, tmp_path / "c.safetensors", file.metadata())
    told, alone = verdicts(tmp_path / "c.safetensors", True, monkeypatch)
    by_itself, _ = verdicts(tmp_path / "c.safetensors", False, monkeypatch)
    assert told == by_itself and alone == 1
    [wrong] = [one for one in json.loads(told)["tensors"] if not one["ok"]]
    assert wrong["tensor"] == "l.7.weight" and wrong["checks"][0]["detail"]


def test_what_is_asked_otherwise_is_measured_alone(tmp_path, monkeypatch):
    """--constraint, --tol and --view are of each; of one tensor there is nothing to stack."""
    save_file(rotations(), tmp_path / "a.safetensors")
    library.add(tmp_path / "a.safetensors", "*", chain="orthogonal", output=tmp_path / "b.safetensors")
    kinds = []
    real = measured._kind
    monkeypatch.setattr(measured, "_kind", lambda group: kinds.append(group) or real(group))
    for asked in ({"constraint": "orthogonal"}, {"tolerance": 1e-3}, {"view": "transpose"}):
        library.verify(tmp_path / "b.safetensors", **asked)
        assert not kinds
    library.verify(tmp_path / "b.safetensors", "l.3.weight")
    assert len(kinds) == 1
