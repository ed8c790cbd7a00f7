"""Chain specs, arguments and tensor patterns: text only."""

import pytest

from paramcli.chain import extend, parse_chain
from paramcli.errors import UsageError
from paramcli.spec import parse_items, select
from paramcli.text import closest
from paramcli.view import IDENTITY, View, parse_view

from .pace import calls


def test_items_carry_their_arguments():
    """name:key=value, comma-separated, no quotes needed."""
    items = parse_items("weight_norm:dim=0,prune_l1:amount=0.5")
    assert [(item.name, dict(item.arguments)) for item in items] == [
        ("weight_norm", {"dim": "0"}),
        ("prune_l1", {"amount": "0.5"}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no name"),
        ("skew,,cayley", "is no name"),
        ("Skew", "is no name"),
        ("os.system('x')", "is no name"),
        ("weight_norm:dim", "not key=value"),
        ("weight_norm:dim=", "not key=value"),
        ("weight_norm:dim=0:dim=1", "given twice"),
        ("weight_norm:dim=zero", "whole number"),
        ("weight_norm:dim=65", "from -64 to 63"),
        ("weight_norm:axis=0", "no argument 'axis'"),
        ("prune_l1", "needs amount"),
        ("prune_l1:amount=1.5", "fraction"),
        ("prune_l1:amount=nan", "must be a number"),
        ("orthogonal:map=exp", "one of matrix_exp, cayley, householder"),
        ("orthogonal:triv=yes", "true or false"),
        ("a" * 3000, "the limit"),
    ],
)
def test_bad_specs_say_what_is_wrong(text, message):
    """Each mistake has its own message, and none is an exception of another kind."""
    with pytest.raises(UsageError, match=message):
        parse_chain(text)


def test_unknown_names_show_the_closest():
    """A typo is answered with what was meant."""
    with pytest.raises(UsageError) as caught:
        parse_chain("caley")
    assert "cayley" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "wants", "works"),
    [
        ("symmetric,cayley", "cayley wants skew", "skew,cayley"),
        ("cayley", "nothing before", "skew,cayley"),
        ("skew,cayley,cayley", "after cayley it gets special_orthogonal", "skew,cayley"),
    ],
)
def test_ill_typed_chains_name_both_sides_and_chains_that_work(text, wants, works):
    """The message says what the item wants, what it gets, and what to type instead."""
    with pytest.raises(UsageError, match=wants) as caught:
        parse_chain(text)
    assert works in caught.value.hint


def test_types_follow_the_chain():
    """matrix_exp's image depends on what comes before it."""
    assert parse_chain("skew,matrix_exp").constraint == "special_orthogonal"
    assert parse_chain("symmetric,matrix_exp").constraint == "positive_definite"
    assert parse_chain("matrix_exp").constraint == "positive_determinant"
    assert parse_chain("weight_norm").constraint is None
    assert parse_chain("prune_l1:amount=0.25").constraint == "sparse:amount=0.25"
    assert parse_chain("orthogonal:map=cayley:triv=false").constraint == "special_orthogonal"
    assert parse_chain("orthogonal:map=cayley").constraint == "orthogonal"


@pytest.mark.parametrize(
    "text", ["skew,cayley", "weight_norm:dim=none", "orthogonal:map=householder:triv=false", "prune_random:amount=3"]
)
def test_canonical_text_reads_back(text):
    """str(chain) is the spec it was parsed from, arguments in the table's order."""
    assert str(parse_chain(text)) == text
    assert str(parse_chain("orthogonal:triv=false:map=householder")) == "orthogonal:map=householder:triv=false"
    assert str(parse_chain("weight_norm")) == "weight_norm:dim=0"


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("lora:rank=4:alpha=8.0", "lora:rank=4:alpha=8"),
        ("lora:rank=3:alpha=3.6373066958946425", "lora:rank=3:alpha=3.63731…"),
        ("lora:rank=3:alpha=2.4000000000000004", "lora:rank=3:alpha=2.4…"),
        ("lora:rank=3:alpha=1.2345678e-12", "lora:rank=3:alpha=1.23457…e-12"),
        ("lora:rank=3:alpha=33554432.0", "lora:rank=3:alpha=33554432"),
        ("prune_l1:amount=1.0", "prune_l1:amount=1.0"),
        ("prune_l1:amount=1", "prune_l1:amount=1"),
    ],
)
def test_text_for_a_person_is_the_same_chain_or_none(text, short):
    """A table's chain is parsed as the chain that it is of, or it has an ellipsis and is refused."""
    chain = parse_chain(text)
    assert chain.short == short and str(chain) == text
    if "…" in short:
        with pytest.raises(UsageError, match="must be a number"):
            parse_chain(short)
    else:
        assert parse_chain(short) == chain


def test_several_originals_come_first():
    """torch allows several originals for the first parametrization only."""
    with pytest.raises(UsageError, match="first"):
        parse_chain("skew,weight_norm")


def test_appending_type_checks_the_whole_chain():
    """skew then cayley is well typed also when cayley is appended later."""
    whole, more = extend(parse_chain("skew"), "cayley")
    assert (str(whole), str(more), more.constraint) == ("skew,cayley", "cayley", "special_orthogonal")
    with pytest.raises(UsageError):
        extend(parse_chain("symmetric"), "cayley")


def test_patterns_choose_by_name_glob_and_regex():
    """Names in file order; a glob crosses dots; re: matches the whole name."""
    names = ["a.weight", "a.bias", "b.0.weight", "weight"]
    assert select(names, ["weight"], "f") == ["weight"]
    assert select(names, ["*weight"], "f") == ["a.weight", "b.0.weight", "weight"]
    assert select(names, ["re:[ab]\\..*weight", "weight"], "f") == ["a.weight", "b.0.weight", "weight"]


def test_a_pattern_that_matches_nothing_shows_the_closest():
    """fc.wieght is answered with fc.weight."""
    with pytest.raises(UsageError, match=r"no tensor named 'fc\.wieght' in f") as caught:
        select(["fc.weight", "fc.bias"], ["fc.wieght"], "f")
    assert caught.value.hint == "closest: fc.weight"
    with pytest.raises(UsageError, match="regular expression"):
        select(["a"], ["re:("], "f")


def test_a_name_with_glob_characters_means_itself_too():
    """A tensor whose name holds brackets can be chosen by that name; what the pattern means for others it still
    means.
    """
    assert select(["a[0].w", "a0.w", "b"], ["a[0].w"], "f") == ["a[0].w", "a0.w"]
    assert select(["a[0].w", "a0.w", "b"], [r"re:a\[0\]\.w"], "f") == ["a[0].w"]


def test_views_parse_and_print():
    """The text of a view is what the record stores."""
    assert parse_view(None) is IDENTITY and parse_view("none") is IDENTITY and IDENTITY.text is None
    assert parse_view("blocks=4") == View("blocks", 4) and View("blocks", 4).text == "blocks=4"
    assert parse_view("flatten").shape((8, 3, 2, 2)) == (8, 12)
    for text in ("block=4", "blocks", "blocks=0", "blocks=-1", "blocks=4x", "flatten=2"):
        with pytest.raises(UsageError):
            parse_view(text)


def test_the_closest_of_very_many_is_found_in_some_calls_each():
    """A hundred thousand names are not compared one by one, letter by letter."""
    known = [f"model.layers.{i}.mlp.{part}.weight" for i in range(25_000) for part in ("up", "down", "gate", "norm")]
    found: list[str] = []
    count = calls(lambda: found.extend(closest("model.layers.17.mlp.gat.weight", known)))
    assert "model.layers.17.mlp.gate.weight" in found and count < 100 * len(known)
