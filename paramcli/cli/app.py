"""The Typer app, and the one place where an error becomes a message and an exit code."""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
import warnings
from contextlib import suppress
from typing import Annotated, TextIO

import typer

from .. import __version__, ranks
from ..checkpoint.disk import last_resort
from ..errors import InputRefused, OutputFailed, ParamcliError, UsageError, device_full
from ..plugins import file_of_plugin
from ..text import printable
from ..wording import in_shell
from .group import Group
from .outlet import Outlet
from .usage import usage_error

app = typer.Typer(
    name="paramcli",
    cls=Group,
    help="Put torch parametrizations on the tensors of a checkpoint file, bake them, and prove that they hold: "
    "no model code needed.\n\n\b\n"
    "paramcli add ckpt.pt -t fc.weight --chain skew,cayley\n"
    "paramcli remove ckpt.parametrized.safetensors --bake\n"
    "paramcli verify ckpt.baked.safetensors",
    epilog="Start with:  paramcli inspect ckpt.pt\n\n"
    "Many processes share out the shards of a folder (a single file is written by the first of them alone):\n\n"
    "torchrun --nproc-per-node 8 --no-python paramcli remove FOLDER --bake -o OUT\n\n"
    "Tab completes names after:  paramcli --install-completion",
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"paramcli {__version__}")
        raise typer.Exit()


# The commands that a run of several processes shares out. In any other each process is on its own.
SHARED = ("add", "apply", "assign", "convert", "merge", "migrate", "remove", "verify")


@app.callback()
def common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colour (NO_COLOR works too).")] = False,
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin",
            metavar="FILE.py:NAME",
            help="Add the parametrizations of a Python file; repeatable. Installed plug-ins load by themselves.",
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    _require_folder()
    if context.invoked_subcommand in SHARED:
        ranks.join()
        if not ranks.current().leads:
            sys.stdout = _nowhere()
    from ..plugins import load_installed, load_plugin

    for problem in load_installed():
        from .screen import open_screen

        open_screen().warn(problem)
    for spec in plugin or ():
        load_plugin(spec)


def _require_folder() -> None:
    """InputRefused where the working folder was removed: no path means anything there, and torch's libraries end the
    process where they find none.
    """
    try:
        os.getcwd()
    except OSError:
        raise InputRefused("the working folder is there no more", hint="cd to one that is", code="not_found") from None


# How long a thread that moves bytes waits for the interpreter's lock, in seconds. Python's own 5 ms are longer than a
# block takes: while torch is imported, copying and checksums would mostly wait.
SWITCH = 5e-5
# When garbage is collected. With Python's own numbers a third of a second of torch's import goes into looking for some
# among what the import makes, none of which is, and another at exit.
COLLECT = (20_000, 50, 1000)

# How often a thread of linear algebra looks for work before it sleeps, as libgomp reads it when torch is imported. By
# default it looks for milliseconds on a core that another program could have: a spectral norm on
# many tensors that takes 6 s alone took 30 to 50 s beside one busy program, and with this 6 to 20 s, alone still 6 s.
SPINS = "10000"


def main(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # A stream that was closed (`>&-`) is None here, and its number would go to the next file that is opened.
    sys.stdout = Outlet(sys.stdout or _nowhere(), answers=True)
    sys.stderr = Outlet(sys.stderr or _nowhere(), answers=False)
    if not sys.warnoptions and "--debug" not in arguments:
        # What libraries warn of (torch: that numpy is not installed) is nothing a user of the command can act on.
        warnings.simplefilter("ignore")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    last_resort.arm()
    sys.setswitchinterval(SWITCH)
    gc.set_threshold(*COLLECT)
    if os.environ.get("_PARAMCLI_COMPLETE") == "complete_bash" and "COMP_WORDS" in os.environ:
        from . import bash

        code = bash.answer(lambda: run(arguments))
    else:
        code = run(arguments)
    with suppress(OutputFailed):
        sys.stdout.flush()  # what the parser itself has shown: help, the version
    if (
        code == 0 and (lost := getattr(sys.stdout, "lost", None)) is not None
    ):  # of a run's processes only one has an Outlet
        code = _fail(lost, False)
    gc.freeze()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # all is done and said: what is left is the interpreter's own end
    if code == last_resort.CODE:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)  # without memory the interpreter's own end crashes too
    last_resort.end_with(code)
    sys.exit(code)


def _nowhere() -> TextIO:
    """A stream that is open to the end, for what nobody is to read."""
    return open(os.devnull, "w")


def run(arguments: list[str]) -> int:
    """The exit code of one command line; every error has been printed."""
    from ..checkpoint.disk.interrupts import Interrupted, signals_as_exceptions

    debug, as_json = "--debug" in arguments, "--json" in arguments

    def fail(error: ParamcliError) -> int:
        if debug:
            traceback.print_exc()
        return _fail(error, as_json)

    try:
        with signals_as_exceptions():
            code = _dispatch(arguments)
        # What the parser's library makes of a Ctrl-C.
        return _interrupted(code) if code == 130 else code
    except ParamcliError as error:
        return fail(error)
    except typer.TyperException as error:
        return fail(usage_error(error))
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(130)
    except Interrupted as stop:
        return _interrupted(128 + stop.signal)
    except MemoryError:
        return fail(_no_memory())
    except Exception as error:
        # Python 3.11 wraps what is raised while a class is being made, as in an import, in a RuntimeError.
        if isinstance(error.__cause__, (KeyboardInterrupt, Interrupted)):
            return _interrupted(128 + getattr(error.__cause__, "signal", 2))
        if (full := device_full(error)) is not None:
            return fail(full)
        if _is_starved(error):
            return fail(_no_memory())
        if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
            return fail(
                _Bug(
                    "this system lets no more threads start",
                    hint="raise the limit (ulimit -u), or close other programs",
                    code="out_of_memory",
                )
            )
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
        if (plugin := file_of_plugin(error)) is not None:
            said = f"--plugin {printable(plugin)}: its own code raised {printable(what)}"
            return fail(UsageError(said, hint="--debug shows where", option="plugin"))
        report = f"report it with this command line, what it prints with --debug, and the version, {__version__}"
        return fail(_Bug(f"a bug in paramcli: {printable(what)}", hint=report))
    finally:
        ranks.leave()


class _Bug(ParamcliError):
    pass


# What torch, and the loader of its libraries, raise in a MemoryError's place.
_STARVED = ("can't allocate memory", "std::bad_alloc", "failed to map segment", "Cannot allocate memory")


def _is_starved(error: Exception) -> bool:
    """Is it for want of memory? Under a limit of it a library that does not load, or loses an error, has met that."""
    from ..allocator import is_limited

    lost = isinstance(error, (ImportError, SystemError)) and is_limited()
    return lost or (isinstance(error, (RuntimeError, OSError)) and any(words in str(error) for words in _STARVED))


def _no_memory() -> _Bug:
    hint = "close other programs, or use a machine with more memory"
    return _Bug("out of memory", hint=hint, code="out_of_memory")


class _Interruption(ParamcliError):
    code = "interrupted"

    def __init__(self, exit_code: int):
        super().__init__("interrupted")
        self.exit_code = exit_code


def _dispatch(arguments: list[str]) -> int:
    if "--no-color" in arguments:  # before the parser, which shows a help or a mistake before it looks at other options
        os.environ["NO_COLOR"] = "1"
    # Commands find what was typed, before it was put in order, in their context.
    code = typer.main.get_command(app).main(args=arguments, obj=arguments, prog_name="paramcli", standalone_mode=False)
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


def _fail(error: ParamcliError, as_json: bool) -> int:
    from ..show.document import document, error_document
    from .screen import open_screen

    screen, run = open_screen(), ranks.current()
    # Of a run's processes the one that fails first says why, and the others fail in silence.
    tells = run.fail(error) if not isinstance(error, ranks.RunFailed) or not error.told else False
    # A closed or full stream must not hide the exit code, nor the other stream's word.
    if as_json:
        with suppress(OSError, ValueError, OutputFailed):
            screen.answer(document(error_document(error)))
            sys.stdout.flush()
    if tells:
        with suppress(OSError, ValueError, OutputFailed):
            screen.error(
                ("" if run.leads else f"rank {run.rank}: ") + error.in_words(in_shell), error.advised(in_shell)
            )
    return error.exit_code


def _interrupted(code: int) -> int:
    if not ranks.current().fail(_Interruption(code)):
        return code
    try:
        sys.stderr.write("error: interrupted; nothing was left half written\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
    return code
