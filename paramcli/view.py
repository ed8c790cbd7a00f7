"""Views: what the maths sees of a stored tensor, for the whole chain.

    none        the last two dimensions are the matrix, the ones before them a batch (as in torch)
    flatten     (out, everything else): a convolution kernel as one matrix
    blocks=N    dimension 0 split into N equal matrices: the gates of an LSTM or GRU cell

A view never changes the stored shape. Its text is what the command line, the record and the
library take; this module needs no torch, since reshaping is a method of any tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import InputRefused, UsageError
from .text import printable, shape_text

NAMES = ("flatten", "blocks=N")


@dataclass(frozen=True)
class View:
    """One view. `into` and `back` are inverse to each other and copy nothing where they can."""

    name: str | None = None
    count: int = 0

    def __str__(self) -> str:
        return f"{self.name}={self.count}" if self.count else self.name or "none"

    @property
    def text(self) -> str | None:
        """As it is written in the record: None for the plain view."""
        return None if self.name is None else str(self)

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape the maths sees; raises InputRefused for a tensor that has no such view."""
        shape = tuple(shape)
        if self.name is None:
            return shape
        if len(shape) < 2:
            raise InputRefused(f"--view {self} needs two dimensions or more; the tensor is {shape_text(shape)}")
        if self.name == "flatten":
            rest = 1
            for size in shape[1:]:
                rest *= size
            return shape[0], rest
        if shape[0] % self.count:
            raise InputRefused(
                f"--view {self} splits dimension 0 into {self.count} equal blocks; {shape[0]} does not divide by it"
            )
        return self.count, shape[0] // self.count, *shape[1:]

    def into(self, tensor):
        """The stored tensor as the maths sees it."""
        return tensor if self.name is None else tensor.reshape(self.shape(tensor.shape))

    def back(self, tensor, shape: Sequence[int]):
        """A value of the maths in the stored shape."""
        return tensor if self.name is None else tensor.reshape(tuple(shape))


IDENTITY = View()


def parse_view(text: str | None) -> View:
    """'blocks=4' -> View; None and '' are the plain view. Raises UsageError."""
    if not text or text == "none":
        return IDENTITY
    name, equals, number = text.partition("=")
    if name == "flatten" and not equals:
        return View("flatten")
    if name == "blocks" and number.isascii() and number.isdigit() and 0 < int(number[:10]) < 1_000_000:
        return View("blocks", int(number))
    raise UsageError(f"no view named '{printable(text)}'", hint=f"views: {', '.join(NAMES)}")
