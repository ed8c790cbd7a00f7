"""An adapter's file or folder, of whichever format, as an `Adapter`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import UsageError
from ..wording import given
from .adapter import Adapter, parse_prefix
from .peft import open_peft


def open_adapter(path: Path, strength: float = 1.0) -> Adapter:
    """A PEFT folder or the weights in it, or a kohya file. InputRefused for what is neither. Close its source."""
    return open_peft(path, strength)


@contextmanager
def open_adapters(
    paths: Sequence[str], strength: float | Sequence[float], prefixes: Sequence[str]
) -> Iterator[list[Adapter]]:
    """The adapters, open, each with its strength and its names as the base has them."""
    strengths = [strength] * len(paths) if isinstance(strength, (int, float)) else list(strength)
    if not paths:
        raise UsageError(
            f"merge needs {given('adapter')}: what is to be merged", hint=given("adapter", "FOLDER"), option="adapter"
        )
    if len(strengths) != len(paths):
        raise UsageError(
            f"{len(strengths)} strengths for {len(paths)} adapters",
            hint=f"one {given('strength')} for each {given('adapter')}",
            option="strength",
        )
    renamed = [parse_prefix(text) for text in prefixes]
    with ExitStack() as stack:
        found = []
        for path, factor in zip(paths, strengths, strict=True):
            adapter = open_adapter(Path(path), factor)
            stack.enter_context(adapter.source)
            found.append(adapter.with_prefix(renamed))
        yield found
