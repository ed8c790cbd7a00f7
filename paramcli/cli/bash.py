"""Words as bash completes them: `:` and `=` are words of their own there, and what stands behind the last is replaced.

    --chain weight_norm:d      bash: --chain  weight_norm  :  d      typed: --chain  weight_norm:d

The parser's own completion takes bash's words for those that were typed, so that behind a `:` it knows nothing.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable

_BREAK = re.compile(r"[:=]+")


def answer(run: Callable[[], int]) -> int:
    """Let `run` answer for the words as they were typed, and give bash what it is to put for its own last word."""
    between = "\n" if "\n" in os.environ["COMP_WORDS"] else " "
    words, cursor = os.environ["COMP_WORDS"].split(between), int(os.environ["COMP_CWORD"])
    typed, last = joined(words[: cursor + 1])
    os.environ.update(COMP_WORDS=between.join(typed), COMP_CWORD=str(len(typed) - 1))
    option, equals, value = typed[-1].partition("=")
    whole = value if equals and option.startswith("-") else typed[-1]
    offers = _Offers(len(whole) - len(last))
    try:
        return run()
    finally:
        offers.show()


def joined(words: list[str]) -> tuple[list[str], str]:
    """The words as they were typed, and what bash takes for the last of them; it is the one at the cursor."""
    typed: list[str] = []
    for before, word in zip([" ", *words], words, strict=False):
        if typed and (_BREAK.fullmatch(word) or _BREAK.fullmatch(before)):
            typed[-1] += word
        else:
            typed.append(word)
    return typed, "" if _BREAK.fullmatch(words[-1]) else words[-1]


class _Offers:
    """Takes what the parser prints, in stdout's place, and prints of each line what follows the part that is known."""

    def __init__(self, known: int):
        self._out, self._known, self._text = sys.stdout, known, ""
        sys.stdout = self

    def write(self, text: str) -> int:
        self._text += text
        return len(text)

    def flush(self) -> None:
        pass

    def show(self) -> None:
        sys.stdout = self._out
        for line in self._text.splitlines():
            print(line[self._known :])
