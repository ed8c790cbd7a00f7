"""A folder that is built under a hidden name, held by whoever builds it, and swept away when nobody does any more.

A process that is killed can remove nothing. What it built stays under a name that says on which running system it was
made, as that alone knows the locks: a later run there that finds it unlocked takes it away. Elsewhere it is left alone.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from . import last_resort
from .atomic import TEMPORARY_PREFIX, hidden_name, rename_to_new
from .input_file import above_standard_streams

# How long a process that was killed may still hold its folder, on a machine that is busy.
GOING_SECONDS = 2.0
_BOOT = "/proc/sys/kernel/random/boot_id"


def _system() -> str:
    """What tells this running system from others; empty where nothing does."""
    with suppress(OSError), open(_BOOT) as file:
        return file.read(8)
    return ""


class Building:
    """A folder being built. Close it when it has its own name, or is removed."""

    def __init__(self, path: Path):
        """One that another process has made; raises OSError where it is not there."""
        self.path = path
        self._remains = 0
        self._descriptor = above_standard_streams(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        with suppress(OSError):  # a file system without locks has none that are swept, either
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    @classmethod
    def new(cls, parent: Path) -> Building:
        """An empty one; what others left of theirs is swept away."""
        sweep(parent)
        unheld = hidden_name(parent, ".new")
        os.mkdir(unheld, 0o777)  # the mode follows the umask
        building = None
        try:
            building = cls(unheld)
            # It gets the name that is swept when it is held.
            building.path = unheld.with_name(f"{unheld.stem}-{_system()}.tmp")
            rename_to_new(unheld, building.path)
            building._remains = last_resort.remember(building.path, folder=True)
        except BaseException:
            shutil.rmtree(unheld, ignore_errors=True)
            if building is not None:
                building.close()
            raise
        return building

    def close(self) -> None:
        last_resort.forget(self._remains)
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def sweep(parent: Path) -> bool:
    """Remove the folders in it that were built on this system by processes that are gone; True where others are held by
    one that is not.
    """
    if not (system := _system()):
        return False
    held = False
    name = re.compile(re.escape(TEMPORARY_PREFIX) + "[0-9a-f]{8}" + re.escape(f"-{system}.tmp"))
    with suppress(OSError), os.scandir(parent) as entries:
        for path in [Path(entry.path) for entry in entries if name.fullmatch(entry.name)]:
            try:
                _remove_unheld(path)
            except BlockingIOError:
                held = True
            except OSError:
                pass  # gone meanwhile, or not ours
    return held


def sweep_after_run(parent: Path) -> None:
    """`sweep` where a run of several processes has failed: its first may be killed, and takes a moment to go."""
    until = time.monotonic() + GOING_SECONDS
    while sweep(parent) and time.monotonic() < until:
        time.sleep(0.05)


def _remove_unheld(path: Path) -> None:
    descriptor = above_standard_streams(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)
