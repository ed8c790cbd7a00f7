"""Entries of third parties: from installed packages, or from a file that the user names.

A family is anything with the tables that `paramcli.plugin` describes, a module as often as not. An
installed package offers it through the entry-point group `paramcli.parametrizations`;
`--plugin FILE.py:NAME` names one on the command line.
What a checkpoint holds never decides what is imported here: installed plug-ins load at every start,
before any file is opened, and no name in a record is ever looked for.
"""

from __future__ import annotations

import functools
import glob
import os
import sys
from importlib import util
from pathlib import Path

from .errors import UsageError
from .text import printable

GROUP = "paramcli.parametrizations"
# What the modules of --plugin files are called.
_MODULE = "paramcli_plugin_"


def load_installed() -> list[str]:
    """Add the families of all installed packages, once; returns a line for each that could not be loaded, once too."""
    problems = _loaded()
    told = list(problems)
    problems.clear()
    return told


@functools.cache
def _loaded() -> list[str]:
    if not any(map(_announces, sys.path)):
        return []
    from importlib import metadata

    from .registry import add_family

    problems = []
    for point in metadata.entry_points(group=GROUP):
        try:
            add_family(point.load(), f"plug-in {point.name}")
        except Exception as error:  # whatever a foreign package raises must not stop paramcli
            told = getattr(error, "message", None) or f"{type(error).__name__}: {error}"
            problems.append(
                f"the plug-in {printable(point.name)} ({printable(point.value)}) is left out: {printable(told)}"
            )
    return problems


def _announces(folder: str) -> bool:
    """Does some package in this folder name our group? importlib.metadata itself would cost every start 40 ms."""
    found = glob.iglob(os.path.join(glob.escape(folder), "*-info", "entry_points.txt")) if folder else ()
    for path in found:
        try:
            with open(path, "rb") as file:
                if GROUP.encode() in file.read():
                    return True
        except OSError:
            pass
    return False


def file_of_plugin(error: BaseException) -> str | None:
    """The file of a --plugin that raised the error, or called what did; None where none did."""
    found, at = None, error.__traceback__
    while at is not None:
        if str(at.tb_frame.f_globals.get("__name__")).startswith(_MODULE):
            found = at.tb_frame.f_code.co_filename
        at = at.tb_next
    return found


def load_plugin(spec: str) -> None:
    """Add the family that FILE.py:NAME holds; FILE.py alone stands for the file's own tables.

    Raises UsageError for a file or name that is not there, and for one that does not import.
    """
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, name = spec, ""
    if not path.endswith(".py") or not os.path.isfile(path):
        raise UsageError(
            f"--plugin {printable(spec)}: no such Python file", hint="--plugin FILE.py:NAME", option="plugin"
        )
    module_name = f"{_MODULE}{Path(path).stem}"
    found = util.spec_from_file_location(module_name, path)
    assert found is not None and found.loader is not None  # its name ends in .py
    module = util.module_from_spec(found)
    # Where dataclasses and pickling of its classes look for it.
    sys.modules[module_name] = module
    try:
        found.loader.exec_module(module)
        family = getattr(module, name) if name else module
    except UsageError:
        raise
    except AttributeError as error:
        raise UsageError(
            f"--plugin {printable(spec)}: {printable(error)}", hint="--plugin FILE.py:NAME", option="plugin"
        ) from None
    except Exception as error:
        raise UsageError(
            f"--plugin {printable(spec)} does not load: {type(error).__name__}: {printable(error)}", option="plugin"
        ) from None
    from .registry import add_family

    add_family(family, f"plug-in {Path(path).name}")
