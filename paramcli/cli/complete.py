"""What the shell offers on Tab: tensor names from the file's header, registry names, the words an option takes.

Everything here must be quick and silent: no torch, no message, and for a file that cannot be read no offers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from ..spec import Argument

# The shell puts an offer on the command line as it is, and a name from a file could be anything, `$(...)` too:
# only what every shell reads as one plain word is offered.
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@%+/:-]*")
MOST = 2000


def words(*choices: str) -> Callable[[str], list[str]]:
    """The words an option takes."""

    def offer(incomplete: str) -> list[str]:
        return [word for word in choices if word.startswith(incomplete)]

    return offer


def tensors(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the checkpoint that is already on the line."""
    # An option without its value, which is being typed, ends the parser's work: the path is still among the words.
    path = ctx.params.get("ckpt") or ctx.params.get("a") or next(iter(ctx.args), None)
    if path is None:
        return []
    from ..checkpoint.read.open import open_checkpoint
    from ..spelling.forms import detect

    try:
        with open_checkpoint(path, ctx.params.get("root")) as source:
            found = list(detect(source.tensors))
    except Exception:  # whatever is wrong with the file, the command itself will say it
        return []
    return [name for name in found if name.startswith(incomplete) and _PLAIN_WORD.fullmatch(name)][:MOST]


def chain(incomplete: str) -> list[str]:
    """skew,ca -> skew,cayley; weight_norm: -> its arguments; orthogonal:map= -> its choices."""
    from ..registry import PARAMETRIZATIONS

    before, comma, item = incomplete.rpartition(",")
    name, *arguments = item.split(":")
    head = before + comma
    if not arguments:
        return [head + known for known in PARAMETRIZATIONS if known.startswith(name)]
    entry = PARAMETRIZATIONS.get(name)
    head += ":".join((name, *arguments[:-1])) + ":"
    offers = [f"{a.name}={choice}" for a in (entry.arguments if entry else ()) for choice in _values(a)]
    return [head + offer for offer in offers if offer.startswith(arguments[-1])]


def _values(argument: Argument) -> Iterable[str]:
    """Those there are, or none yet and the default: of two offers a shell puts no space behind what they share."""
    if argument.type == "bool":
        return "true", "false"
    from ..spec import value_text

    return argument.choices or ("", *(() if argument.default is None else [value_text(argument.default)]))


def constraint(incomplete: str) -> list[str]:
    from ..registry import CONSTRAINTS

    return [name for name in CONSTRAINTS if name.startswith(incomplete)]


def entries(incomplete: str) -> list[str]:
    from ..registry import CONSTRAINTS, MEASURES, PARAMETRIZATIONS

    return [name for name in dict.fromkeys((*PARAMETRIZATIONS, *CONSTRAINTS, *MEASURES)) if name.startswith(incomplete)]


def families(incomplete: str) -> list[str]:
    from ..registry import PARAMETRIZATIONS

    return sorted({entry.family for entry in PARAMETRIZATIONS.values() if entry.family.startswith(incomplete)})


def views(incomplete: str) -> list[str]:
    from ..view import NAMES

    return [name.removesuffix("N") for name in NAMES if name.startswith(incomplete)]


def initialisers(incomplete: str) -> list[str]:
    from ..surgery.edits.assign import INITS

    return [name for name in INITS if name.startswith(incomplete)]
