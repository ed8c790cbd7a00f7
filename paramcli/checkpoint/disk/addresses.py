"""What is typed in the place of a path and is none: an address, a ~ that the shell left alone, a hub's repository."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...errors import PATH
from ...wording import shell_word, word

# Of one letter it is a drive.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_HUB = re.compile(r"(?:(?:www\.)?(?:huggingface\.co|hf\.co)/)(?!datasets/|spaces/)([\w.-]+/[\w.-]+)(?:/.*)?")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FETCH = {"http": "curl -LO {}", "https": "curl -LO {}", "s3": "aws s3 cp {} .", "gs": "gcloud storage cp {} ."}


def not_a_path(path: str | os.PathLike[str]) -> tuple[str, str] | None:
    """(what it is instead of a path, with PATH for its name; that name as it was typed). None where it is one, or
    something is there under this name.
    """
    text = os.fspath(path)
    if os.path.lexists(text.partition("/")[0]):
        return None
    if found := _ADDRESS.fullmatch(text):
        return f"{PATH} is an address, not a path: paramcli reads and writes files", _spelt(found)
    if text.startswith("~"):
        return f"{PATH} is no path: a shell puts a home folder for ~ only where an unquoted word begins with it", text
    return None


def instead_of(path: str | os.PathLike[str]) -> str | None:
    """What to do where something was to be read there; None where nothing is known."""
    text = os.fspath(path)
    if found := _ADDRESS.fullmatch(text):
        scheme, rest = found[1].lower(), found[2]
        on_hub = _HUB.fullmatch(rest) if scheme in ("http", "https") else None
        if on_hub or scheme == "hf":
            return _from_hub(on_hub[1] if on_hub else "/".join(rest.split("/")[:2]))
        if scheme == "file":
            return word(f"/{rest}")
        command = _FETCH.get(scheme)
        return command.format(shell_word(_spelt(found))) if command else "copy it to this machine first"
    if text.startswith("~"):
        home = os.path.expanduser(text)
        return word(home) if home != text else "write the path from / on"
    if _REPOSITORY.fullmatch(text) and not os.path.lexists(Path(text).parent):
        return f"check the path; a model of the hub: {_from_hub(text)}"
    return None


def _spelt(address: re.Match[str]) -> str:
    """As it was typed: pathlib makes one slash of two."""
    return f"{address[1]}:{'///' if address[1] == 'file' else '//'}{address[2]}"


def _from_hub(repository: str) -> str:
    return f"hf download {shell_word(repository)}, and give the folder that it names"
