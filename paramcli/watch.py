"""What long work tells whoever waits for it: nothing, unless a screen is put in its place."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Meter(Protocol):
    """How far it is."""

    def advance(self, nbytes: int, tensors: int = 1) -> None: ...


class _Still:
    def advance(self, nbytes: int, tensors: int = 1) -> None:
        pass


class Watch:
    """Nobody looks. A terminal's screen has the same methods, and shows them."""

    def note(self, text: str) -> None:
        """A message for the person who waits."""

    def warn(self, text: str) -> None:
        """One that a script that silences messages wants all the same."""

    def meter(self, what: str, tensors: int, nbytes: int) -> AbstractContextManager[Meter]:
        """Of work on so many tensors and bytes."""
        return nullcontext(_Still())


NOBODY = Watch()
