"""Patterns from files: Python's re is the oracle, and no text takes long."""

import random
import re
from pathlib import Path

import pytest

from paramcli.spelling.patterns import Budget, Pattern, Unknown
from paramcli.spelling.peft_config import Config

PATTERNS = [
    "q_proj",
    r"^model\.layers\.(0|1)\..*q_proj",
    "^q_proj",
    r"layers\.[0-9]+\.(?:self_attn|mlp)\.q_proj",
    r"layers\.\d+\..*_proj",
    "q_proj|v_proj",
    "(q|v)_proj$",
    "lay?ers.[^2-9]*.mlp",
    r"[\w.]+",
    "layers{1,2}.{1,3}mlp",
    "l{2}|(a|ab){2,}|x{,3}",
    "(a*)*b",
    "(a|)+?c",
    "[]a-]x?",
    "a)|(b",
    "()",
    "",
    "^",
]
PATHS = ["", "q_proj", "xq_proj", "a.b", "ll", "abab", "xxx", "-x", "]", "b\n", "a\nb", "é.q_proj", "aab", "mlp", "c"]
PATHS += [f"model.layers.{i}.{part}" for i in (0, 1, 12) for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp")]


@pytest.mark.parametrize("text", PATTERNS)
def test_a_pattern_matches_what_peft_matches(text):
    """`re.match(rf"(.*\\.)?({pattern})$", path)`, as peft's get_pattern_key has it."""
    pattern, wanted = Pattern(text, Budget()), re.compile(rf"(.*\.)?({text})$")
    for path in PATHS:
        assert pattern.matches(path) == bool(wanted.match(path)), path


def drawn(chance, depth=0):
    """A pattern, drawn."""
    kind = chance.randrange(3 if depth < 4 else 1)
    if kind == 0:
        return chance.choice(["a", "b", ".", r"\.", "[ab]", "[^a]", r"\w", "^", "$"])
    if kind == 1:
        return drawn(chance, depth + 1) + chance.choice(["", "|"]) + drawn(chance, depth + 1)
    inner = drawn(chance, depth + 1)
    return f"({inner})" + ("" if set("^$") & set(inner) else chance.choice(["*", "+", "?", "{1,2}", "{2}", "{,2}"]))


def test_drawn_patterns_match_what_re_matches():
    """Groups in groups, repeated, on drawn texts."""
    chance = random.Random(0)
    texts = ["".join(chance.choice("ab.\n") for _ in range(chance.randrange(7))) for _ in range(200)]
    for _ in range(300):
        text = drawn(chance)
        pattern, wanted = Pattern(text, Budget()), re.compile(rf"(.*\.)?({text})$")
        for path in chance.sample(texts, 10):
            assert pattern.matches(path) == bool(wanted.match(path)), (text, path)


@pytest.mark.parametrize(
    "text",
    [
        "(?=a)",
        r"(a)\1",
        "(?i)a",
        "(?P<n>a)",
        "a**",
        "a*+",
        "(",
        ")",
        "[a",
        "[[a]",
        "[b-a]",
        "*a",
        "a{",
        r"\bq",
        "x{1000}",
        "(x{99}){99}",
        "(" * 40 + ")" * 40,
        "a" * 600,
        "\\",
    ],
)
def test_what_is_not_known_is_refused(text):
    """No part of a pattern is skipped."""
    with pytest.raises(Unknown):
        Pattern(text, Budget())


def test_no_text_takes_long():
    """re would take 2^200 steps for the first; all patterns of a file share what may be spent."""
    assert not Pattern("(a*)*b", Budget(1_000_000)).matches("a" * 200)
    budget = Budget(1000)
    Pattern("(a|b)*c", budget).matches("abab")
    with pytest.raises(Unknown):
        for _ in range(100):
            Pattern("(a|b)*c", budget).matches("abab")


def test_a_module_s_own_name_is_its_pattern_where_none_matches():
    """peft 0.21, utils/other.get_pattern_key: a key that as a pattern matches nothing is looked up as it is."""
    values = {"lora_alpha": 1, "alpha_pattern": {"m.a+b": 2, "m.aab": 3}}
    config = Config(Path("adapter_config.json"), values, 1.0)
    found = {
        module: config.of_module("lora_alpha", "alpha_pattern", module) for module in ("m.a+b", "m.aab", "m.ab", "x")
    }
    assert found == {"m.a+b": 2, "m.aab": 2, "m.ab": 2, "x": 1}
