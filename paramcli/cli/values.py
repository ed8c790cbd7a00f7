"""What the words of a command line become, as the annotations of the command's function say.

Typer could do that too, but from 0.29 on it imports pydantic for it, which makes a start longer by two thirds, and a
word that does not fit is then told in pydantic's words.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from ..errors import UsageError
from ..text import printable

if TYPE_CHECKING:
    from typer._click.core import Command, Context, Parameter

# What a word becomes.
Value = str | Path | int | float | bool | None
# What a word can become, and what one that cannot is told not to be.
WANTED = {str: "a text", Path: "a path", int: "a whole number", float: "a number"}


def kinds(command: Command) -> dict[str, type]:
    """Parameter -> what each of its words becomes: of Optional and of a list, what is inside."""
    found = {}
    for name, kind in get_type_hints(command.callback).items():
        while inner := get_args(kind):
            kind = inner[0]
        found[name] = kind
    return found


def read_values(command: Command, context: Context) -> None:
    """Let `value_of` make the values of a command's parameters from their words, in the parser's place."""
    known = kinds(command)
    for parameter in command.get_params(context):
        # The parser's own (--help, and those for the shell's completion) are not among the known; they are flags.
        process = functools.partial(value_of, parameter, known.get(parameter.name or "", bool))
        parameter.process_value = process  # type: ignore[method-assign]  # that is how to take its place


def value_of(parameter: Parameter, kind: type, context: Context, words: Any) -> Any:
    """The value of a parameter; `words` is what stands on the command line, or its default.

    Raises UsageError for a word that does not fit, and for one that is missing.
    """
    value: Value | tuple[Value, ...]
    if parameter.multiple:
        value = tuple(_read(parameter, kind, context, word) for word in words or ())
    else:
        value = None if words is None else _read(parameter, kind, context, words)
    if parameter.required and parameter.value_is_missing(value):
        raise UsageError(
            f"{context.command_path} needs {parameter.metavar}",
            hint=f"{context.command_path} --help",
            option=_name(parameter),
        )
    return value if parameter.callback is None else parameter.callback(context, parameter, value)


def _read(parameter: Parameter, kind: type, context: Context, word: Value) -> Value:
    if kind not in WANTED:
        return word  # of a flag, which the parser has made True or False
    made: Value
    try:
        made = kind(word)
    except ValueError:
        raise _unfit(parameter, f"{word!r} is not {WANTED[kind]}", context) from None
    if kind is Path and word == "":
        # pathlib takes it for the working folder.
        raise _unfit(parameter, "'' is an empty path", context)
    return made


def _name(parameter: Parameter) -> str:
    """The long name, without its dashes."""
    return max(parameter.opts, key=len).lstrip("-")


def _unfit(parameter: Parameter, why: str, context: Context) -> UsageError:
    shown = parameter.metavar if parameter.param_type_name == "argument" else max(parameter.opts, key=len)
    return UsageError(printable(f"{shown} {why}"), hint=f"{context.command_path} --help", option=_name(parameter))
