"""--root: every state dict that a torch file holds can be named, by the same words that lists and refusals use."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import pytest
import torch

from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.errors import InputRefused, UsageError
from paramcli.wording import in_shell

A, B = torch.arange(6.0).reshape(2, 3), torch.arange(4.0).reshape(2, 2)
STATE, OTHER = {"fc.weight": A, "fc.bias": torch.ones(2)}, {"fc.weight": A + 1, "fc.bias": torch.zeros(2)}


class Trainer:
    """An object of the author's, with whatever it is given as attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("model",)

    def __init__(self, model):
        self.model = model


NESTED = {"enc": {"a": OrderedDict(weight=A)}, "dec": {"b": {"w.weight": B}, "scale": torch.ones(3)}}
JOINED = {"enc.a.weight": A, "dec.b.w.weight": B, "dec.scale": torch.ones(3)}
# label: (what torch.save gets, --root, the tensors that it names)
NAMED = {
    "in a list": ([{"model": STATE}, {"model": OTHER}], "1.model", OTHER),
    "a list's entry that holds one": ([{"model": STATE}, {"model": OTHER}], "1", OTHER),
    "in a tuple": ((STATE, OTHER), "0", STATE),
    "under whole numbers": ({0: STATE, 10: OTHER}, "10", OTHER),
    "in a list in a dict": ({"models": [STATE, OTHER], "kind": "bag"}, "models.1", OTHER),
    "an attribute": ({"trainer": Trainer(model=STATE, lr=1), "other": OTHER}, "trainer.model", STATE),
    "an attribute of an attribute": (Trainer(inner=Trainer(ema=OTHER, model=STATE)), "inner.ema", OTHER),
    "a slot": ({"x": Slotted(OTHER), "model": STATE}, "x.model", OTHER),
    "an ignored name": ({"state_dict": STATE, "callbacks": {"EMA": OTHER}}, "callbacks.EMA", OTHER),
    "below an ignored name": ({"state_dict": STATE, "callbacks": {"EMA": {"sd": OTHER}}}, "callbacks", OTHER),
    "beside the only one": ({"model": STATE, "best_state": [OTHER]}, "best_state", OTHER),
    "of the same dict": ({"model": STATE, "alias": STATE}, "alias", STATE),
    "a key with dots": ({"a.b": {"c": STATE}, "a": {"x": OTHER}}, "a.b.c", STATE),
    "an optimizer's moments": (
        {"model": STATE, "optimizer": {"state": {0: {"exp_avg": A}}, "param_groups": []}},
        "optimizer.state.0",
        {"exp_avg": A},
    ),
    "above several": ({"model": NESTED, "args": 1}, "model", JOINED),
    "above several, in a list": ([NESTED, 3], "0", JOINED),
    "some of several": ({"model": NESTED}, "model.dec", {"w.weight": B}),
    "all of several": ({"model": NESTED}, "model.dec.*", {"b.w.weight": B, "scale": torch.ones(3)}),
    "the top": (
        {"g": STATE, "d": OTHER},
        ".",
        {f"{k}.{n}": t for k, s in (("g", STATE), ("d", OTHER)) for n, t in s.items()},
    ),
    "everything, lists too": (
        {"g": STATE, "more": [OTHER]},
        "*",
        {f"{k}.{n}": t for k, s in (("g", STATE), ("more.0", OTHER)) for n, t in s.items()},
    ),
    "itself, not what is below": ({"net": {**STATE, "ema": OTHER}}, "net", STATE),
    "itself and what is below": (
        {"net": {"fc.weight": A, "ema": {"fc.weight": B}}},
        "net.*",
        {"fc.weight": A, "ema.fc.weight": B},
    ),
    "one dict under two names": (
        {"m": {"a": STATE, "b": STATE}},
        "m.*",
        {f"{k}.{n}": t for k in "ab" for n, t in STATE.items()},
    ),
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("what", NAMED)
def test_it_can_be_named(what, legacy, tmp_path):
    """Through dicts, lists, tuples, whole numbers, attributes and ignored names; a root above several joins them."""
    saved, root, wanted = NAMED[what]
    torch.save(saved, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    with open_checkpoint(tmp_path / "m.pt", root) as source:
        assert {name: source.read(name).tolist() for name in source.tensors} == {
            n: t.tolist() for n, t in wanted.items()
        }
        named, again = source.root, list(source.tensors)
    with open_checkpoint(tmp_path / "m.pt", named or ".") as source:
        assert source.root == named and list(source.tensors) == again


# label: (what torch.save gets, the root that is taken)
TAKEN = {
    "a list of one": ([STATE], "0"),
    "a tuple's only one": ((3, {"model": STATE}), "1.model"),
    "an attribute": (Trainer(model=STATE), "model"),
    "a dict before a list": ({"model": STATE, "history": [OTHER, OTHER]}, "model"),
    "one under a number": ({"epochs": {7: STATE}}, "epochs.7"),
}


@pytest.mark.parametrize("what", TAKEN)
def test_the_only_one_is_taken(what, tmp_path):
    """Where the dicts have none, what is in lists, under numbers and in objects counts."""
    saved, root = TAKEN[what]
    torch.save(saved, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt") as source:
        assert source.root == root and torch.equal(source.read("fc.weight"), A)


# label: (what torch.save gets, words of the refusal, of the hint)
REFUSED = {
    "a list of two": ([STATE, OTHER], "2 state dicts: 0 (2 tensors); 1 (2 tensors)", "--root 0 for that one, --root ."),
    "nested": ({"model": NESTED}, "model.enc.a (1 tensor)", "--root model for all of them as one model"),
    "itself and below": ({"n": {"w.w": A, "e": {"w.w": B}}}, "n (1 tensor); n.e (1 tensor)", "--root 'n.*' for all"),
    "only where none belongs": ({"callbacks": {"EMA": STATE}}, "there are callbacks.EMA", "--root callbacks.EMA"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refusals_list_what_can_be_named(what, tmp_path):
    """Each place with its size, and the words that take one or all of them."""
    saved, said, hint = REFUSED[what]
    torch.save(saved, tmp_path / "m.pt")
    with pytest.raises(InputRefused) as caught:
        open_checkpoint(tmp_path / "m.pt")
    assert said in caught.value.message and hint in caught.value.advised(in_shell)


def test_an_unknown_root_lists_all_there_are(tmp_path):
    """Those in lists and under ignored names too."""
    torch.save({"model": STATE, "models": [OTHER], "callbacks": {"EMA": {**OTHER}}}, tmp_path / "m.pt")
    with pytest.raises(UsageError) as caught:
        open_checkpoint(tmp_path / "m.pt", "nothing")
    assert caught.value.hint == "known: model, models.0, callbacks.EMA"


@pytest.mark.parametrize("saved", [{"a.b": STATE, "a": {"b": OTHER}}, {"a.b": {7: STATE, "7": OTHER}}])
def test_two_at_one_place_are_not_told_apart(saved, tmp_path):
    """A name that leads to two different dicts takes neither."""
    torch.save(saved, tmp_path / "m.pt")
    with pytest.raises(InputRefused, match="both at a"):
        open_checkpoint(tmp_path / "m.pt", "a.b.7" if "a" not in saved else "a.b")


def test_names_that_meet_in_a_join_are_refused(tmp_path):
    """Two tensors are never one: which, and nothing is read."""
    torch.save({"m": {"a": {"b.c": A}, "a.b": {"c": B}}}, tmp_path / "m.pt")
    with pytest.raises(InputRefused, match=r"both named a\.b\.c"):
        open_checkpoint(tmp_path / "m.pt", "m")
    with open_checkpoint(tmp_path / "m.pt", "m.a") as source:
        assert torch.equal(source.read("b.c"), A)


def test_objects_that_know_their_parents_end(tmp_path):
    """A ring of objects is walked once, however it is named."""
    ring = Trainer(model=STATE)
    ring.owner = Trainer(child=ring, tensors=OTHER)
    torch.save({"ring": ring}, tmp_path / "m.pt")
    with open_checkpoint(tmp_path / "m.pt", "ring.owner.child.owner.tensors") as source:
        assert torch.equal(source.read("fc.weight"), A + 1)
    with pytest.raises(InputRefused, match=r"ring\.model"):
        open_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("wide", ["list", "dict"])
def test_what_stands_in_many_places_is_looked_at_for_so_much(wide, tmp_path):
    """All of a dict's state dicts: what is shared is paid for each time, a large file of its own parts once."""
    part = [0] * 2000 if wide == "list" else dict.fromkeys(range(2000))
    torch.save({"fc": STATE, "own": [0] * 1_100_000}, tmp_path / "own.pt")
    with open_checkpoint(tmp_path / "own.pt", "*") as source:
        assert torch.equal(source.read("fc.fc.weight"), STATE["fc.weight"])
    torch.save({"fc": STATE, "shared": [part] * 600}, tmp_path / "m.pt")
    with pytest.raises(InputRefused, match="too many places"):
        open_checkpoint(tmp_path / "m.pt", "*")


def test_a_root_of_many_dots_is_looked_for_once(tmp_path):
    """Each part of a hostile tree is looked at once for each dot, not once for each way to it."""
    tree: object = STATE
    for _ in range(24):
        tree = {"a": tree, "a.a": tree}
    torch.save(tree, tmp_path / "m.pt", pickle_protocol=pickle.HIGHEST_PROTOCOL)
    with pytest.raises(UsageError):
        open_checkpoint(tmp_path / "m.pt", ".".join("a" * 47) + ".b")
