"""Text for people: escaping what comes from files, sizes, and the closest known name."""

from __future__ import annotations

import difflib
import heapq
import os
import unicodedata
from collections.abc import Iterable

# Control, format (bidi overrides, zero-width), surrogate, private use, unassigned, and the two
# line separators: none of these may reach a terminal from a file's name or content.
_UNPRINTABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def printable(text: object, limit: int = 300) -> str:
    """`text` on one line with every character that could steer a terminal escaped.

    Bytes of a path that are no UTF-8 (surrogate escapes) come out as ``\\xNN``; what is longer
    than `limit` characters is cut with an ellipsis, so that a hostile name cannot flood a screen.
    """
    text = str(text)
    # Most names are plain, and a checkpoint can have a hundred thousand of them.
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text
    out = []
    for character in text[: limit + 1]:
        if unicodedata.category(character) not in _UNPRINTABLE:
            out.append(character)
        else:
            point = ord(character)
            if 0xDC80 <= point <= 0xDCFF:
                out.append(f"\\x{point - 0xDC00:02x}")
            elif point < 0x100:
                out.append(f"\\x{point:02x}")
            elif point < 0x10000:
                out.append(f"\\u{point:04x}")
            else:
                out.append(f"\\U{point:08x}")
    if len(out) > limit:
        out[limit:] = ["…"]
    return "".join(out)


def printable_path(path: str | os.PathLike[str]) -> str:
    return printable(os.fspath(path))


def size_text(count: int) -> str:
    """1536 -> '1.5 KiB'; binary units, one decimal above a KiB."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def shape_text(shape: Iterable[int]) -> str:
    """(4, 3) -> '4x3'; a 0-d tensor is 'scalar'."""
    return "x".join(map(str, shape)) or "scalar"


def number_text(value: float) -> str:
    """A residual or distance with two significant digits: '3.6e-08', '0.12', '0'."""
    return "0" if value == 0 else f"{value:.2g}"


def decimal_text(value: float) -> str:
    """A decimal of an option for a person: '8', '0.0625'; of one that takes more room six digits, and '…' for the rest,
    which no parser takes for the number: '0.333333…'.
    """
    exact = repr(value).removesuffix(".0")
    if len(exact) <= 9:
        return exact
    digits, e, exponent = f"{value:.6g}".partition("e")
    return f"{digits}{'' if float(digits + e + exponent) == value else '…'}{e}{exponent}"


# So many names are compared with a mistyped one in a tenth of a second.
MANY = 1000


def _alike(a: str, b: str) -> int:
    """How many characters they begin with alike."""
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def closest(word: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known words nearest to a mistyped one, best first; [] when nothing is near."""
    known = list(known)
    if len(known) > MANY:
        # Each comparison takes a while: those that begin or end alike are enough.
        near = heapq.nlargest(MANY, known, key=lambda name: _alike(word, name) + _alike(word[::-1], name[::-1]))
    else:
        near = known
    found = difflib.get_close_matches(word, near, n=count, cutoff=0.6)
    if not found:
        found = [name for name in known if name.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]][:count]
    if not found:
        found = [name for name in known if word and word in name][:count]
    return found


def listing(words: Iterable[str], limit: int = 8) -> str:
    """'a, b, c and 4 more', each word escaped."""
    words = list(words)
    shown = ", ".join(printable(word) for word in words[:limit])
    return shown if len(words) <= limit else f"{shown} and {len(words) - limit} more"


def count_text(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
