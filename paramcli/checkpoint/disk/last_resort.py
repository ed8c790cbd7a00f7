"""What is done where a library below ends the process: no exception comes then, and no `finally` runs.

libgomp calls exit(1) where the system starts no thread for it, and other libraries of linear algebra do likewise where
they get no memory: of `verify` that would read as "does not hold", and a file half written would stay. C's exit runs
what was registered with it, the latest first. So while the command line works there is registered, in this order,

    _exit(70)            the last thing done: no verdict, and nothing of other libraries, which may be in any state
    warnx(WHY)           the line for the user
    unlink(temporary)    for each file that is being written, and rmdir of a folder that is being built

and as the very last, when all is done and said, _exit with the command's own code. A program that uses paramcli as a
library decides for itself how it ends; for it nothing is registered.

abort, where what C++ throws ends if nobody catches it, runs none of this. Leading it to exit is no way: handlers of
libraries that were loaded later would run first, and wait for locks that the aborting thread holds (torch's did).
"""

from __future__ import annotations

import functools
import os
from typing import Any

# As of a bug: no verdict.
CODE = 70
# warnx puts the program's name in front of it, which is made to be the word "error".
WHY = b"""a library that paramcli computes with ended it: it got no memory, or no thread; nothing was left half written
  try: close other programs, or raise the limits (ulimit -v, ulimit -u)"""
_armed = False
# What is there at present, in the order it came: the address of its path, and the function that removes it.
_remains: dict[int, str] = {}


def arm() -> None:
    """From here on the process is a command's."""
    global _armed
    _armed = True


def renew() -> None:
    """Register all again, before what libraries have registered since."""
    if _armed:
        _begin()
        for address, function in _remains.items():
            _at_exit(function, address)


def end_with(code: int) -> None:
    """All is done and said: the process ends with this code, whatever else is registered."""
    if _armed and _library.cache_info().currsize:
        _at_exit("_exit", code)


def remember(path: str | os.PathLike[str], folder: bool = False) -> int:
    """A file that is being written, or a folder that is being built; gives the number to forget it by."""
    if not _armed or _library() is None:
        return 0
    if not (address := _kept(os.fsencode(os.path.abspath(path)))):
        return 0
    if not _remains:
        _begin()
    _remains[address] = "rmdir" if folder else "unlink"
    _at_exit(_remains[address], address)
    return address


def forget(number: int) -> None:
    """It has its name, or is gone."""
    if _remains.pop(number, None) is not None:
        import ctypes

        ctypes.memset(number, 0, 1)  # no path at all is removed by nobody


def _begin() -> None:
    """What is done last of all."""
    _at_exit("_exit", CODE)
    if why := _why():
        _at_exit("warnx", why)


@functools.lru_cache(1)
def _why() -> int:
    """WHY where warnx finds it, with the name that it begins with; 0 where there is no such name to set."""
    import ctypes

    try:
        name = ctypes.c_void_p.in_dll(_library(), "__progname")
    except ValueError:
        return 0
    name.value = _kept(b"error")
    return _kept(WHY)


def _kept(text: bytes) -> int:
    """The address of a copy that is never freed, as it is read after Python is gone; 0 where there is no room."""
    import ctypes

    address: int | None = _library().malloc(len(text) + 1)
    if address:
        ctypes.memmove(address, text + b"\0", len(text) + 1)
    return address or 0


def _at_exit(function: str, argument: int) -> None:
    if (libc := _library()) is not None:
        libc.__cxa_atexit(getattr(libc, function), argument, None)


@functools.cache
def _library() -> Any:
    """C's library; None where it has no such functions."""
    import ctypes

    try:
        libc = ctypes.CDLL(None)
        register = libc.__cxa_atexit
    except (OSError, AttributeError):
        return None
    pointer = ctypes.c_void_p
    register.argtypes = [pointer, pointer, pointer]
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], pointer
    return libc
