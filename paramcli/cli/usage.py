"""How the commands are listed and helped, and what is said of a command line that does not parse."""

from __future__ import annotations

import typer

from ..errors import Known, UsageError
from ..text import closest, printable

# Where a command's context keeps the names of its options as they were typed.
ORDER = "paramcli.order"
# Panel -> command -> what the list of commands says of it. In the order of use.
PANELS = {
    "Look": {
        "inspect": "tensors, chains, shapes and sizes of a checkpoint",
        "discover": "the structure each tensor already has",
        "spectrum": "singular values and eigenvalues, drawn",
        "registry": "the parametrizations and constraints there are",
    },
    "Edit": {
        "add": "put a chain of parametrizations on tensors",
        "assign": "set tensors to a value, through their chains",
        "remove": "bake parametrizations into plain weights, or take them off",
        "merge": "bake adapters into the base they belong to",
        "extract": "an adapter of what one checkpoint changes in another",
        "apply": "many edits in one pass, from a recipe",
    },
    "Prove": {
        "verify": "measure the constraints against what rounding explains",
        "diff": "compare two checkpoints by their effective weights",
    },
    "Carry": {
        "convert": "between containers, shards, names and dtypes",
        "migrate": "between the older spellings and torch's parametrize",
        "snippet": "the Python that registers a file's chains on a live model",
    },
}
# Command -> its short text.
COMMANDS = {name: short for commands in PANELS.values() for name, short in commands.items()}
GLOBAL_FLAGS = ("--debug", "--no-color")


def with_examples_first(docstring: str) -> str:
    """The first sentence, the examples as they are typed, then the rest."""
    first, *rest = docstring.split("\n\n")
    examples = [paragraph for paragraph in rest if paragraph.startswith("paramcli ")]
    others = [paragraph for paragraph in rest if paragraph not in examples]
    return "\n\n".join([first, "\b\n" + "\n".join(examples), *others])


def hoisted(arguments: list[str]) -> list[str]:
    """--debug, --no-color and --plugin FILE work wherever they stand: in front of the command is where the parser wants
    them.

    What follows `--` is a name, whatever it looks like.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    front, rest, words = [], [], iter(arguments[:end])
    for word in words:
        if word in GLOBAL_FLAGS or word.startswith("--plugin="):
            front.append(word)
        elif word == "--plugin":
            front.append(word)
            if (file := next(words, None)) is None:
                return front  # alone, so that the parser misses the file, and Tab offers one
            front.append(file)
        else:
            rest.append(word)
    return [*front, *rest, *arguments[end:]]


def typed(context: typer.Context) -> list[str]:
    """The command line as it was typed, before it was put in order."""
    return ["paramcli", *context.obj]


def no_such_command(name: str, where: str) -> UsageError:
    near = closest(name, COMMANDS, 1)
    hint = f"closest: {where} {near[0]}" if near else f"known: {', '.join(COMMANDS)}"
    return UsageError(f"no command '{printable(name)}'", hint=Known(hint), option="command")


def usage_error(error: typer.TyperException) -> UsageError:
    """The parser's complaint in our words: what is wrong, and the nearest thing that would be right."""
    context = getattr(error, "ctx", None)
    where = context.command_path if context else "paramcli"
    message = printable(error.format_message().rstrip("."))
    hint = f"{where} --help"
    option: str = getattr(error, "option_name", "")
    known = [parameter.opts for parameter in context.command.params] if context else []
    if hasattr(error, "possibilities"):  # an option that there is not
        near = closest(option, [name for names in known for name in names], 1)
        return UsageError(
            f"{where} has no option '{printable(option)}'",
            hint=Known(f"closest: {near[0]}") if near else hint,
            option=option.lstrip("-"),
        )
    if context and ["--adapter", "-a"] in known and "unexpected extra argument" in message:
        hint = f"{where} BASE --adapter ADAPTER"
    long = next((max(names, key=len) for names in known if option in names), option)
    return UsageError(message[:1].lower() + message[1:], hint=hint, option=long.lstrip("-") or None)
