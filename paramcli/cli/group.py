"""The commands as the parser sees them: listed by name, and each built only when it is the one that runs.

What is listed (the help, Tab, "no command 'ad'") comes from the table of names and short texts; a command's module,
with all that it imports, waits until `resolve_command` has found that its name was typed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .help import page, wants_colour
from .usage import COMMANDS, ORDER, PANELS, hoisted, no_such_command, with_examples_first
from .values import read_values

if TYPE_CHECKING:
    from typer._click.core import Command as ParserCommand
    from typer._click.core import Context
    from typer._click.formatting import HelpFormatter

# Command -> its module in this package; two names would shadow the standard library's and the table's. No other name is
# imported.
MODULES = {**{name: f".{name}" for name in COMMANDS}, "inspect": ".inspect_command", "registry": ".registry_command"}


@contextmanager
def told_where(context: Context) -> Iterator[None]:
    """What the parser complains of without saying in which command."""
    try:
        yield
    except typer.TyperException as error:
        if getattr(error, "ctx", None) is None:
            error.ctx = context  # type: ignore[attr-defined]  # those that know it have it there
        raise


class Command(TyperCommand):
    """A command whose help is our page, and whose values we read."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        read_values(self, ctx)
        with told_where(ctx):
            if not ctx.resilient_parsing and any(parameter.name == "strength" for parameter in self.params):
                # Which of several adapters each belongs to is in their order alone.
                _, _, order = self.make_parser(ctx).parse_args(args=list(args))
                ctx.meta[ORDER] = [parameter.name for parameter in order]
            return super().parse_args(ctx, args)

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        ctx.color = wants_colour()
        formatter.write(page(self, ctx, {}))


class Group(TyperGroup):
    """All commands by name, without what they do."""

    def __init__(self, **settings: Any):
        listed = {name: Command(name, short_help=short) for name, short in COMMANDS.items()}
        super().__init__(**{**settings, "commands": listed})

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), color=ctx.color)
            raise typer.Exit(2)  # there is no mistake to name, but nothing was done either
        read_values(self, ctx)
        with told_where(ctx):
            return super().parse_args(ctx, hoisted(args))

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, ParserCommand | None, list[str]]:
        # What looks like an option is for the parser to refuse.
        if args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise no_such_command(args[0], ctx.command_path)
        name, listed, rest = super().resolve_command(ctx, args)
        return name, built(name) if listed and name else None, rest

    def format_help(self, ctx: Context, formatter: HelpFormatter) -> None:
        ctx.color = wants_colour()
        formatter.write(
            page(
                self,
                ctx,
                {title: [([name], short) for name, short in commands.items()] for title, commands in PANELS.items()},
            )
        )


@functools.cache
def built(name: str) -> ParserCommand:
    """The parser of one command; its module imports torch inside its function, if at all."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    import_module(MODULES[name], __package__).attach(alone)
    (command,) = alone.registered_commands
    command.cls = Command
    command.help = with_examples_first(inspect.getdoc(command.callback) or "")
    return typer.main.get_command(alone)
