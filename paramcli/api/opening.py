"""Two files that one question is about, each at its own root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from ..errors import ParamcliError, UsageError
from ..spec import path_of
from ..spelling.opened import Opened, open_groups
from ..watch import Watch
from .common import FilePath


def open_second(
    b: FilePath, root: str | None, root_b: str | None, ignore_record: bool, watch: Watch, name: str = "b"
) -> Opened:
    """B at root_b, else where root says, else at the only state dict it has: a result has fewer levels than its
    input.
    """
    try:
        return open_groups(path_of(b, name), root_b or root, ignore_record, watch.note)
    except UsageError as unknown:
        if root_b or not root:
            raise
        try:
            return open_groups(b, None, ignore_record, watch.note)
        except ParamcliError:
            raise unknown from None


@contextmanager
def open_pair(
    merged: FilePath, base: FilePath, root: str | None, ignore_record: bool, watch: Watch
) -> Iterator[tuple[Opened, Opened]]:
    """A merge and its base at the root; one of them may have no such level."""
    with ExitStack() as stack:
        try:
            one = stack.enter_context(open_groups(path_of(base, "base"), root, ignore_record, watch.note))
        except UsageError:
            if not root:
                raise
            two = stack.enter_context(open_groups(path_of(merged, "merged"), root, ignore_record, watch.note))
            one = stack.enter_context(open_groups(base, None, ignore_record, watch.note))
        else:
            two = stack.enter_context(open_second(merged, root, None, ignore_record, watch, "merged"))
        yield two, one
