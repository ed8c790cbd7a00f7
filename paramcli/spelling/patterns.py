r"""Regular expressions from a file, matched in time that no text can make long.

Python's `re` goes back: `(a*)*b` takes it for ever. Here all ways to match are followed at once (Thompson, 1968), so a
match costs at most the length of the pattern times that of the text. What is known: characters, `.`, classes (`[0-9]`,
`\d`), groups, `|`, `* + ? {m,n}`, `^` and `$`; what is not (looking ahead, references) is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

LONGEST, MOST_STATES, DEEPEST = 512, 2048, 32
_REPEAT = re.compile(r"\{(\d{0,3})(?:(,)(\d{0,3}))?\}", re.ASCII)
_PLAIN = re.compile(r"(?:[\w-]|\\?\.)*", re.ASCII)
# Of states: one character, the same state again and another, the begin, the end, done.
_Char = Callable[[str], bool]
_State = tuple[str, "_Char | None", int, int]


class Unknown(ValueError):
    """A pattern that is not matched here."""


@dataclass
class Budget:
    """How many steps matching may still take, for all patterns of a file together."""

    steps: int = 4_000_000

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise Unknown("too much to match")


@dataclass
class Pattern:
    """What `re.match(rf"{before}({text})$", path)` matches: a pattern for the end of a module's path, as of PEFT."""

    text: str
    budget: Budget
    before: str = r"(.*\.)?"
    _states: list[_State] = field(default_factory=list)
    _plain: re.Pattern[str] | None = None
    # From these states, by this character: those that are reached. Few are met, so each is worked out once.
    _steps: dict[tuple[frozenset[int], str], frozenset[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST:
            raise Unknown("too long")
        whole = f"{self.before}({self.text})$"
        if _PLAIN.fullmatch(self.text):
            self._plain = re.compile(whole)
        else:
            self._states = [*_Parser(whole).parsed(), ("done", None, 0, 0)]

    def matches(self, path: str) -> bool:
        if self._plain is not None:
            self.budget.spend(1 + len(path) // 256)
            return self._plain.match(path) is not None
        self.budget.spend(1 + len(path) // 16)
        done = len(self._states) - 1
        here = self._reached({0}, begin=True, end=path in ("", "\n"))
        for at, text in enumerate(path, 1):
            if done in here or not here:
                return bool(here)
            if at < len(path) - 1 or path[at:] not in ("", "\n"):
                if (there := self._steps.get((here, text))) is None:
                    there = self._reached(self._read(here, text))
                    if len(self._steps) < MOST_STATES:
                        self._steps[here, text] = there
                here = there
            else:
                here = self._reached(self._read(here, text), end=True)
        return done in here

    def _read(self, states: frozenset[int], text: str) -> set[int]:
        """The states after those that this character leads on from."""
        return {state + 1 for state in states if (known := self._states[state][1]) is not None and known(text)}

    def _reached(self, states: set[int], *, begin: bool = False, end: bool = False) -> frozenset[int]:
        """The states from which the next character is read, by way of those that read none."""
        todo, seen = list(states), set[int]()
        while todo:
            state = todo.pop()
            if state in seen:
                continue
            seen.add(state)
            kind, _, one, other = self._states[state]
            if kind == "split":
                todo += (state + one, state + other)
            elif begin if kind == "begin" else kind == "end" and end:
                todo.append(state + 1)
        self.budget.spend(len(seen))
        return frozenset(state for state in seen if self._states[state][0] in ("char", "done"))


class _Parser:
    """A pattern's text -> states, each of which goes on to those at a distance from it."""

    def __init__(self, text: str):
        self.text, self.at, self.depth = text, 0, 0

    def parsed(self) -> list[_State]:
        states = self._choices()
        if self.at < len(self.text):
            raise Unknown("a bracket too many")
        return states

    def _next(self) -> str:
        return self.text[self.at : self.at + 1]

    def _choices(self) -> list[_State]:
        states = self._sequence()
        while self._next() == "|":
            self.at += 1
            other = self._sequence()
            states = [
                ("split", None, 1, len(states) + 2),
                *states,
                ("split", None, len(other) + 1, len(other) + 1),
                *other,
            ]
        return states

    def _sequence(self) -> list[_State]:
        states: list[_State] = []
        while self._next() not in ("", "|", ")"):
            states += self._repeated(self._atom())
            if len(states) > MOST_STATES:
                raise Unknown("too many states")
        return states

    def _repeated(self, states: list[_State]) -> list[_State]:
        least, most = 1, 1
        if (sign := self._next()) and sign in "*+?":
            least, most = {"*": (0, -1), "+": (1, -1), "?": (0, 1)}[sign]
            self.at += 1
        elif sign == "{":
            found = _REPEAT.match(self.text, self.at)
            if found is None or not (found[1] or found[3]):
                raise Unknown("a brace")
            least = int(found[1] or 0)
            most = (int(found[3]) if found[3] else -1) if found[2] else least
            self.at = found.end()
        else:
            return states
        if self._next() == "?":  # as few as possible: the same texts match
            self.at += 1
        if self._next() in ("*", "+", "?", "{") and self._next():
            raise Unknown("a repetition of a repetition")
        if any(kind in ("begin", "end") for kind, *_ in states) or not states or 0 <= most < least:
            raise Unknown("a repetition of nothing")
        if len(states) * max(least + 1, most) > MOST_STATES:
            raise Unknown("too many states")
        size = len(states)
        if most < 0:
            more: list[_State] = [("split", None, 1, size + 2), *states, ("split", None, -size - 1, -size - 1)]
        else:
            more = [
                state
                for left in range(most - least, 0, -1)
                for state in (("split", None, 1, left * (size + 1)), *states)
            ]
        return states * least + more

    def _atom(self) -> list[_State]:
        sign = self._next()
        if sign == "(":
            return self._group()
        if sign == "[":
            return [self._class()]
        self.at += 1
        if sign in "^$":
            return [("begin" if sign == "^" else "end", None, 0, 0)]
        if sign in "*+?{":
            raise Unknown("a repetition of nothing")
        if sign == "\\":
            sign = self._next()
            self.at += 1
            if sign and sign in "dDwWsS":
                return [_char(re.compile("\\" + sign).match)]
            if not sign or sign.isalnum():
                raise Unknown("an escape")
        elif sign == ".":
            return [_char(lambda text: text != "\n")]
        return [_char(lambda text: text == sign)]

    def _group(self) -> list[_State]:
        self.at += 3 if self.text.startswith("(?:", self.at) else 1
        self.depth += 1
        if self._next() == "?" or self.depth > DEEPEST:
            raise Unknown("a group of another kind")
        states = self._choices()
        if self._next() != ")":
            raise Unknown("a bracket is missing")
        self.at += 1
        self.depth -= 1
        return states or [("split", None, 1, 1)]

    def _class(self) -> _State:
        end = self.at + 2 if self.text.startswith("[^", self.at) else self.at + 1
        first = end
        while end < len(self.text) and (self.text[end] != "]" or end == first):
            end += 2 if self.text[end] == "\\" else 1
        text = self.text[self.at : end + 1]
        # What Python warns of may mean something else one day.
        if not text.endswith("]") or "[" in text[1:] or any(twice in text for twice in ("--", "&&", "||", "~~")):
            raise Unknown("a class")
        self.at = end + 1
        try:
            return _char(re.compile(text).match)
        except re.error:
            raise Unknown("a class") from None


def _char(matches: Callable[[str], object]) -> _State:
    return "char", lambda text: bool(matches(text)), 0, 0
