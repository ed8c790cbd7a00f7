"""What to do next, in the words of whoever asks: options of a command line, or keywords of a Python call.

    given("force", True)           --force                  force=True
    given("root", "a b")           --root 'a b'             root="a b"
    given("rename", {"a": "b"})    --rename a=b             rename={"a": "b"}
    call("inspect", PATH)          paramcli inspect a.pt    paramcli.inspect("a.pt")

A text holds what is given and called as it was said, between control characters that `text.printable` lets through from
nowhere; `in_shell` and `in_python` put it in words, once, where it is shown. A name from a file is one word there, as
the shell or Python quotes it, so that a line can be pasted whatever is in the file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from typing import NamedTuple, TypeAlias, TypeVar

from .text import printable

# In a text: the tensor's name, the file's path, and the path without its folder.
TENSOR, PATH, FILE = "\x01", "\x02", "\x03"
_BEGIN, _END = "\x04", "\x05"
_SAID = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}")

Text = TypeVar("Text", bound=str)
Said: TypeAlias = "str | int | float | dict[str, str] | None"

# Options that have a letter, and keywords of the library that are called otherwise.
_LETTERS = {"tensor": "-t", "output": "-o"}
_KEYWORDS = {"from": "from_", "with": "with_", "tol": "tolerance"}
# Commands without a function of the library.
_SHELL_ONLY = ("registry",)
# A name that is longer is cut, as everywhere.
_LIMIT = 300


def given(option: str, value: object = None) -> str:
    """An option by its long name, with its value; a flag's is True, or False for its opposite."""
    return _said("given", option, _plain(value))


def call(command: str, *arguments: object, **options: object) -> str:
    """A command with its arguments and options; `PATH` among them is the path that the text is told of."""
    named = {name.strip("_").replace("_", "-"): _plain(value) for name, value in options.items()}
    return _said("call", command, list(map(_plain, arguments)), named)


def word(name: str | PathLike[str]) -> str:
    """A name as it is typed."""
    return _said("word", _plain(name))


def words(names: Iterable[str], limit: int = 8) -> str:
    """'a, b, c and 4 more', each as it is typed."""
    names = list(names)
    shown = ", ".join(map(word, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def keyword(option: str) -> str:
    """What an option is called in Python: max-shard-size -> max_shard_size."""
    return _KEYWORDS.get(option, option.replace("-", "_"))


def in_shell(text: Text, path: str | PathLike[str] | None = None, root: str | None = None) -> Text:
    """The text for a command line. `path` is the file that it is told of, `root` the state dict of several in it."""

    def called(name: str, arguments: list[Said], options: dict[str, Said]) -> str:
        typed = [shell_path(str(argument)) for argument in arguments]
        return " ".join(["paramcli", name, *typed, *(_option(*pair) for pair in options.items())])

    return _put(text, _Place(path, root), shell_word, _option, called)


def in_python(text: Text, path: str | PathLike[str] | None = None, root: str | None = None) -> Text:
    """The text for who called a function."""

    def called(name: str, arguments: list[Said], options: dict[str, Said]) -> str:
        if name in _SHELL_ONLY:
            return in_shell(_said("call", name, arguments, options))
        typed = [*map(_literal, arguments), *(_keyword(*pair) for pair in options.items())]
        return f"paramcli.{name}({', '.join(typed)})" if typed else f"paramcli.{name}"

    return _put(text, _Place(path, root), printable, _keyword, called)


def shell_word(text: str) -> str:
    """One word of a shell with exactly this text, and nothing in it that could steer a terminal."""
    if len(text) > _LIMIT or printable(text) == text:
        return shlex.quote(printable(text, _LIMIT))
    pieces = []
    for character in text:
        if printable(character) == character and character not in "\\'":
            pieces.append(character)
        else:
            pieces += (f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
    return f"$'{''.join(pieces)}'"


def shell_path(path: str | PathLike[str]) -> str:
    """A path as one word that no command takes for an option."""
    text = os.fspath(path)
    return shell_word(f"./{text}" if text.startswith("-") else text)


def _said(*what: object) -> str:
    return f"{_BEGIN}{json.dumps(what)}{_END}"


class _Place(NamedTuple):
    """What `PATH` stands for."""

    path: str | PathLike[str] | None
    root: str | None

    def put(self, arguments: list[Said], options: dict[str, Said]) -> tuple[list[Said], dict[str, Said]]:
        path = "FILE" if self.path is None else os.fspath(self.path)
        root = {"root": self.root} if self.root is not None and PATH in arguments else {}

        def filled(said: Said) -> Said:
            return said.replace(PATH, path) if isinstance(said, str) else said

        return list(map(filled, arguments)), {**{key: filled(said) for key, said in options.items()}, **root}


def _put(
    text: Text,
    place: _Place,
    named: Callable[[str], str],
    optional: Callable[..., str],
    called: Callable[[str, list[Said], dict[str, Said]], str],
) -> Text:
    def put(found: re.Match[str]) -> str:
        kind, name, *rest = json.loads(found[1])
        if kind == "call":
            return called(name, *place.put(*rest))
        return named(name) if kind == "word" else optional(name, *rest)

    return type(text)(_SAID.sub(put, text)) if _BEGIN in text else text


def _plain(value: object) -> Said:
    if isinstance(value, PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(old): str(new) for old, new in value.items()}
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _option(name: str, value: object = None) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    if isinstance(value, dict):
        return " ".join(_option(name, f"{old}={new}") for old, new in value.items())
    typed = _LETTERS.get(name, f"--{name}")
    if value is None:
        return typed
    if isinstance(value, (int, float)):
        return f"{typed} {_number(value)}"
    value = str(value)
    return f"--{name}={shell_word(value)}" if value.startswith("-") else f"{typed} {shell_word(value)}"


def _number(value: float) -> str:
    """As short as it can be typed, and still the same."""
    if isinstance(value, int):
        return printable(value, _LIMIT)
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _keyword(name: str, value: object = None) -> str:
    return f"{keyword(name)}={'...' if value is None else _literal(value)}"


def _literal(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(old)}: {_literal(new)}' for old, new in value.items())}}}"
    if not isinstance(value, str):
        return repr(value)
    text = value if len(value) <= _LIMIT else printable(value, _LIMIT)
    return json.dumps(text, ensure_ascii=False) if printable(text) == text else ascii(text)


# What helps with a tensor that nothing else helps with, and with what another container has no place for.
LEAVE_OUT = f"leave it out with {given('tensor')}"
AS_SAFETENSORS = given("output", "FILE.safetensors")
