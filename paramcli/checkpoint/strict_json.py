"""JSON objects read one value at a time, so that a hostile document is refused where it first goes wrong.

`json.loads` builds everything before anyone can look at it: 100 MB of brackets become gigabytes of
lists. Here a caller walks an object key by key, reads each value as the one thing it may be, and
nothing else is ever built. Stricter than `json`: a key that appears twice, NaN, a fraction, a
negative number, a number of more than 20 digits and a lone surrogate are all refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from json.decoder import scanstring  # type: ignore[attr-defined]  # the module's own, which no stub names

from ..text import printable

_SPACE = r"[ \t\n\r]*"
_space = re.compile(_SPACE).match
_colon = re.compile(f"{_SPACE}:{_SPACE}").match
_comma_or_brace = re.compile(f"{_SPACE}([,}}]){_SPACE}").match
_list_in_list = re.compile(r"\[[^\]]*\[").search
_long_number = re.compile(r"[0-9]{21}").search
# A tensor's entry: 64 sizes of 20 digits and some room for spaces.
MAX_SMALL_OBJECT = 4096


class BrokenJson(ValueError):
    """Why a text was refused, as a clause that follows a colon."""


def decode_utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise BrokenJson("it is not UTF-8") from None


def _past_space(text: str, at: int) -> int:
    found = _space(text, at)
    assert found is not None, "no space at all is found, too"
    return found.end()


def walk_document(text: str, value: Callable[[str, int], int]) -> None:
    """Walk a text that is one object and nothing more."""
    if _past_space(text, walk_object(text, _past_space(text, 0), value)) != len(text):
        raise BrokenJson("text follows its last brace")


def walk_object(text: str, at: int, value: Callable[[str, int], int]) -> int:
    """Walk the object whose brace is at `at`; returns the place behind its closing brace.

    `value(key, place)` reads one value and returns the place behind it.
    """
    if text[at : at + 1] != "{":
        raise BrokenJson("an object was expected")
    at = _past_space(text, at + 1)
    if text[at : at + 1] == "}":
        return at + 1
    seen: set[str] = set()
    while True:
        key, at = read_text(text, at)
        if key in seen:
            raise BrokenJson(f"'{printable(key, 80)}' appears twice")
        seen.add(key)
        colon = _colon(text, at)
        if colon is None:
            raise BrokenJson(f"a colon is missing after '{printable(key, 80)}'")
        mark = _comma_or_brace(text, value(key, colon.end()))
        if mark is None:
            raise BrokenJson(f"a comma or brace is missing after '{printable(key, 80)}'")
        at = mark.end()
        if mark[1] == "}":
            return at


def read_text(text: str, at: int) -> tuple[str, int]:
    """The string at `at`, and the place behind it."""
    if text[at : at + 1] != '"':
        raise BrokenJson("a text in quotes was expected")
    try:
        found, at = scanstring(text, at + 1)
        if not found.isascii():
            found.encode("utf-8")
    except UnicodeEncodeError:
        raise BrokenJson(f"'{printable(found, 60)}' is no Unicode text") from None
    except ValueError:
        raise BrokenJson("a text is not closed, or holds a raw control character or a wrong escape") from None
    return found, at


def read_small_object(text: str, at: int) -> tuple[dict[str, object], int]:
    """An object without objects inside and lists at most one deep, in a few thousand characters."""
    if text[at : at + 1] != "{":
        raise BrokenJson("an object was expected")
    end = text.find("}", at, at + MAX_SMALL_OBJECT) + 1
    part = text[at:end]
    if not end or part.count("{") != 1 or _list_in_list(part):
        raise BrokenJson("it is not closed, too long, or nested too deep")
    if "-" in part or _long_number(part):
        raise BrokenJson("a number is negative, or has more than 20 digits")
    try:
        # One brace opens and one closes, at the end: whatever it reads ends there.
        return _DECODER.raw_decode(part)[0], end
    except BrokenJson:
        raise
    except (ValueError, RecursionError):
        raise BrokenJson("it is not JSON") from None


def read_any(text: str, at: int, limit: int = 1 << 16) -> tuple[object, int]:
    """Any JSON value of at most `limit` characters, and the place behind it."""
    try:
        found, end = _LENIENT.raw_decode(text[at : at + limit])
    except (ValueError, RecursionError):
        raise BrokenJson("a value is not JSON, or too large") from None
    return found, at + end


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise BrokenJson(f"'{printable(twice, 80)}' appears twice")
    return found


def _refuse_number(text: str) -> None:
    raise BrokenJson(f"{printable(text, 40)} is not a whole number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_refuse_number, parse_constant=_refuse_number)
# For values that are only looked at, such as other tools' metadata in an index.
_LENIENT = json.JSONDecoder()
