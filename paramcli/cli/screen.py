"""Where a command's answer and messages go; of the processes of a run the first alone speaks."""

from __future__ import annotations

from .. import ranks
from ..show.console import Screen


def open_screen(quiet: bool = False) -> Screen:
    """stdout and stderr as they are now."""
    return Screen(quiet, speaks=ranks.current().leads)
