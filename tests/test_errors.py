"""Errors: the fact and its fields, and the one line that is made of them."""

import re

import pytest
import torch
from safetensors.torch import save_file

from paramcli.errors import FILE, PATH, TENSOR, CheckFailed, InputRefused, Known, Place, UsageError, error_context
from paramcli.recipe import read_recipe
from paramcli.surgery.plan import together
from paramcli.text import printable

SQUARE = "skew needs a square matrix"


@pytest.mark.parametrize(
    ("fact", "fields", "line"),
    [
        (SQUARE, {}, SQUARE),
        (SQUARE, {"tensor": "w", "path": "m.pt"}, f"w: {SQUARE} (in m.pt)"),
        (SQUARE, {"tensor": "skew", "path": "a"}, f"skew: {SQUARE} (in a)"),
        (f"{TENSOR} is plain", {"tensor": "a", "path": "i"}, "a is plain (in i)"),
        (f"{TENSOR} is plain", {"path": "i"}, "the tensor is plain (in i)"),
        (f"{PATH} is cut short", {"path": "a/b.pt"}, "a/b.pt is cut short"),
        (f"{FILE} is no recipe", {"path": "a/b.toml"}, "b.toml is no recipe"),
        (f"{PATH} is cut short", {}, "the file is cut short"),
        ("its pickle is broken", {"path": "a/b.pt", "of_file": True}, "a/b.pt: its pickle is broken"),
        ("it is another", {"tensor": "w", "part": "0.distcp", "path": "d"}, "w in 0.distcp: it is another (in d)"),
        ("no such view", {"origin": Place("a/r.toml", 1, 4), "path": "m.pt"}, "r.toml line 4: no such view (in m.pt)"),
        ("no such view", {"origin": Place("a/r.json", 2), "path": "a/r.json"}, "r.json edit 2: no such view"),
        (f"{TENSOR}\nis plain", {"tensor": "a\x1b[1m\x01\n"}, r"a\x1b[1m\x01\x0a is plain"),
    ],
)
def test_the_line_says_tensor_and_file_once(fact, fields, line):
    """In the sentence where it has a place for them, else around it, whatever the names and the words are."""
    error = InputRefused(fact, **fields)
    assert str(error) == line and line.isprintable()


def test_the_message_is_the_bare_fact():
    """Without what stands around it; the fields are what low code gave and what the way up added."""
    outer, inner = error_context(tensor="w", path="m.pt", option="chain"), error_context(tensor="v")
    with pytest.raises(CheckFailed) as caught, outer, inner:
        raise CheckFailed(f"it moves {TENSOR}")
    error = caught.value
    assert (error.message, error.tensor, error.path, error.option) == ("it moves v", "v", "m.pt", "chain")
    assert repr(error) == "CheckFailed('it moves v (in m.pt)')" and error.line is None
    with pytest.raises(AttributeError):
        error.message = "another"


def test_nothing_from_a_file_can_stand_for_a_name():
    """Text that is shown has none of the characters that stand for a tensor's or a file's name."""
    assert not set(printable(TENSOR + PATH + FILE)) & {TENSOR, PATH, FILE}


def test_what_else_is_wrong_is_told_behind_the_first():
    """Tensors by their names, mistakes in full; of many the first."""
    refused = [InputRefused(SQUARE, tensor=name) for name in "abcde"]
    assert str(together(refused[:1])) == f"a: {SQUARE}"
    assert str(together(refused)) == f"a: {SQUARE} (4 more tensors refused too: b, c, d and 1 more)"
    mistakes = [UsageError(f"no {n}", origin=Place("r.toml", n, n)) for n in range(1, 8)]
    assert str(together(mistakes[:2])) == "r.toml line 1: no 1; r.toml line 2: no 2"
    assert str(together(mistakes)).endswith("; r.toml line 5: no 5; and 2 more")


@pytest.mark.parametrize("name", ["e", "m", "no", "in", "nothing"])
def test_a_file_is_named_whatever_it_is_called(name, tmp_path, monkeypatch, paramcli):
    """Also one whose name is a letter or a word of the message."""
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.eye(2)}, name)
    assert paramcli("verify", name, code=3).err.splitlines()[0].endswith(f"(in {name})")


@pytest.mark.parametrize("name", ["the", "chain", "move", "fc.the"])
def test_a_tensor_is_named_whatever_it_is_called(name, tmp_path, paramcli):
    """Also one whose name is the message's first word."""
    save_file({name: torch.diag(torch.tensor([3.0, 1.0]))}, tmp_path / "m.safetensors")
    add = ("add", tmp_path / "m.safetensors", "-t", name, "--chain", "orthogonal", "--max-change", "0.001")
    assert paramcli(*add, code=1).err.startswith(f"error: {name}: the chain would move it")


def test_what_is_not_known_of_a_tensor_is_told_with_its_name(tmp_path, paramcli):
    """In the document as in each refusal, and once."""
    for name, value in (("a", 1.0), ("b", 2.0)):
        save_file({"fc.weight_g": torch.full((3, 1), value)}, tmp_path / f"{name}.safetensors")
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    half = "fc.weight is not whole: fc.weight_g is there, and without fc.weight_v it is no weight norm"
    assert paramcli("inspect", a, "--json").json["tensors"][0]["problem"] == half
    assert paramcli("remove", a, code=3).err.startswith(f"error: {half} (in {a})")
    assert paramcli("snippet", a, code=3).err.startswith(f"error: {half} (in {a})")
    assert paramcli("diff", a, b, code=3).err.startswith(
        "error: fc.weight: the stored tensors differ, and their weight"
    )
    assert half in paramcli("diff", a, b, code=3).err


@pytest.mark.parametrize(
    ("edit", "line", "option"),
    [
        ('view = "skw"\nchain = "skw"', 5, "chain"),
        ('compute-dtype = "float32"\nchain = "skew:float32=1"', 5, "chain"),
        ('init = "raw"\nchain = "interval:a=2:b=1:c=3"', 5, "chain"),
        ('chain = "skew"\nview = "skew"', 5, "view"),
        ('mask = "--init x"\ninit = "x"', 5, "init"),
        ('mask = "--seed"\n\nseed = -1', 6, "seed"),
    ],
)
def test_a_recipe_blames_the_line_of_the_option(edit, line, option, tmp_path):
    """Not another one whose value, or whose name, is in the message."""
    (tmp_path / "r.toml").write_text(f'[[edit]]\ncommand = "add"\ntensor = "w"\n{edit}\n')
    with pytest.raises(UsageError) as caught:
        read_recipe(tmp_path / "r.toml")
    assert (caught.value.line, caught.value.option) == (line, option)
    assert str(caught.value).startswith(f"r.toml line {line}: ")


def test_edits_that_meet_nothing_are_told_in_full(tmp_path, paramcli):
    """A pattern without a match is no tensor that could be counted among those refused."""
    save_file({"w": torch.eye(2)}, tmp_path / "m.safetensors")
    edits = [f'[[edit]]\ncommand = "add"\ntensor = "{pattern}"\nchain = "skew"\n' for pattern in ("a*", "b*")]
    (tmp_path / "r.toml").write_text("".join(edits))
    said = paramcli("apply", tmp_path / "r.toml", tmp_path / "m.safetensors", code=2).err
    assert re.match(
        r"error: r.toml line 1: no tensor matches 'a\*' in .*; r.toml line 5: no tensor matches 'b\*' in", said
    )


def test_a_hint_says_what_to_try_or_what_there_is(tmp_path, monkeypatch, paramcli):
    """A file called `closest:` is no answer to which names are close."""
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.eye(2)}, "m.safetensors")
    assert isinstance(_hint("m.safetensors", "v"), Known)
    assert "\n  tensors there: w\n" in paramcli("add", "m.safetensors", "-t", "v", "--chain", "skew", code=2).err
    assert "\n  try: -o FILE" in paramcli("convert", "m.safetensors", code=2).err


def _hint(path, name):
    from pathlib import Path

    from paramcli.spec import select

    with pytest.raises(UsageError) as caught:
        select(["w"], [name], Path(path))
    return caught.value.hint
