"""The cache of huggingface_hub: a model's folder, with the snapshots of a repository and the blobs their links lead to.

    models--org--name/refs/main        a text, the name of a snapshot
    models--org--name/snapshots/HASH   a folder of links that are named as in the repository
    models--org--name/blobs/HASH       the files, named by what is in them

Other programs share it, and take a blob for what its name says: nothing is ever written into it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from ...errors import PATH, InputRefused, OutputFailed
from ...wording import given, words
from .input_file import InputFile

# A commit's hash, or a branch's name where a snapshot is named by it.
_REVISION = re.compile(rb"[0-9A-Za-z_][0-9A-Za-z._-]{0,99}")
_REPOSITORY = re.compile(r"(?:models|datasets|spaces)--(?:.*--)?([^/]+)")


def is_cache(folder: Path) -> bool:
    """Is it the cache's folder of one repository?"""
    return os.path.isdir(folder / "snapshots") and any(os.path.isdir(folder / part) for part in ("blobs", "refs"))


def snapshot_in(folder: Path) -> Path:
    """The snapshot that refs/main names, or the only one; InputRefused where neither tells one."""
    try:
        with os.scandir(folder / "snapshots") as entries:
            there = sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise InputRefused(f"cannot read the folder {PATH}: {error.strerror}", path=folder) from None
    if os.path.lexists(folder / "refs" / "main"):
        with closing(InputFile(folder / "refs" / "main")) as file:
            said = bytes(file.read(0, min(file.size, 200))).strip()
        if not _REVISION.fullmatch(said) or (name := said.decode("ascii")) not in there:
            raise InputRefused(
                f"{PATH} is a folder of the hub's cache without the snapshot that its refs/main names",
                hint=_which(folder, there),
                path=folder,
                code="incomplete",
            )
        return folder / "snapshots" / name
    if len(there) != 1:
        raise InputRefused(
            f"{PATH} is a folder of the hub's cache with {len(there)} snapshots, and without a refs/main that says "
            "which",
            hint=_which(folder, there),
            path=folder,
            code="ambiguous" if there else "incomplete",
        )
    return folder / "snapshots" / there[0]


def _which(folder: Path, there: Sequence[str]) -> str:
    if not there:
        return "download the model again"
    return f"give one of its snapshots: {words((str(folder / 'snapshots' / name) for name in there), 3)}"


def cache_of(path: str | os.PathLike[str]) -> Path | None:
    """The repository's folder of the cache that a place lies in, wherever links lead; None outside of any."""
    return next((above for above in Path(os.path.realpath(path)).parents if is_cache(above)), None)


def refuse_cache(path: str | os.PathLike[str]) -> None:
    """Raise OutputFailed for a place in a cache, which a link may lead to as well."""
    if cache_of(path) is not None:
        raise OutputFailed(
            f"{PATH} lies in the hub's cache, which other programs share: nothing is written there",
            hint=f"{given('output')} a place of your own",
            path=path,
        )


def repository_name(cache: Path) -> str:
    """models--org--name -> name."""
    found = _REPOSITORY.fullmatch(cache.name)
    return found[1] if found else cache.name
