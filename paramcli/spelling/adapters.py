"""An adapter's file or folder, of whichever format, as an `Adapter`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import UsageError
from ..text import count_text
from ..wording import given
from .adapter import Adapter, parse_prefix
from .peft import is_peft, open_peft


def open_adapter(path: Path, strength: float = 1.0) -> Adapter:
    """A PEFT folder or the weights in it, or a kohya file. InputRefused for what is neither. Close its source."""
    return open_peft(path, strength)


def adapter_at(path: Path) -> Adapter | None:
    """The adapter that lies there, as of `open_adapter`; None where something else does."""
    return open_adapter(path) if is_peft(path) else None


def strengths_of(paths: Sequence[str], strength: float | Sequence[float]) -> list[float]:
    """One for each adapter: a number is that of all, and none said is 1. Raises UsageError."""
    strength = [float(strength)] * len(paths) if isinstance(strength, (int, float)) else strength
    if strength and len(strength) != len(paths):
        raise UsageError(
            f"{count_text(len(strength), 'strength')} for {count_text(len(paths), 'adapter')}",
            hint=f"one {given('strength')} for each {given('adapter')}",
            option="strength",
        )
    wrong = next((factor for factor in strength if not math.isfinite(factor)), None)
    if wrong is not None:
        raise UsageError(f"{given('strength', wrong)}: a finite number is wanted", option="strength")
    return list(strength) or [1.0] * len(paths)


@contextmanager
def open_adapters(
    paths: Sequence[str], strength: float | Sequence[float] = 1.0, prefixes: Sequence[str] = ()
) -> Iterator[list[Adapter]]:
    """The adapters, open, each with its strength and its names as the base has them."""
    strengths = strengths_of(paths, strength)
    renamed = [parse_prefix(text) for text in prefixes]
    with ExitStack() as stack:
        found = []
        for path, factor in zip(paths, strengths, strict=True):
            adapter = open_adapter(Path(path), factor)
            stack.enter_context(adapter.source)
            found.append(adapter.with_prefix(renamed))
        yield found
