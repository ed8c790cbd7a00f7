"""The edits by the name of their command: what recipes and the plan know them by."""

from __future__ import annotations

from collections.abc import Collection

from .edits.add import Add
from .edits.assign import Assign
from .edits.base import Edit
from .edits.merge import Attach, Merge
from .edits.migrate import Migrate
from .edits.remove import Remove

EDITS: dict[str, type[Edit]] = {edit.command: edit for edit in (Add, Assign, Remove, Migrate, Merge)}


def edit_of(command: str, options: Collection[str]) -> type[Edit]:
    """The edit that a command is with these options: `add` with an adapter in place of a chain is one of its own."""
    return Attach if command == Attach.command and "adapter" in options else EDITS[command]
