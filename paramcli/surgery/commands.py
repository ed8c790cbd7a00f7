"""The edits by the name of their command: what recipes and the plan know them by."""

from __future__ import annotations

from .edits.add import Add
from .edits.assign import Assign
from .edits.base import Edit
from .edits.migrate import Migrate
from .edits.remove import Remove

EDITS: dict[str, type[Edit]] = {edit.command: edit for edit in (Add, Assign, Remove, Migrate)}
