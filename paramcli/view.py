"""Views: what the maths sees of a stored tensor, for the whole chain.

    none        the last two dimensions are the matrix, the ones before them a batch (as in torch)
    flatten     (out, everything else): a convolution kernel as one matrix
    blocks=N    dimension 0 split into N equal matrices: the gates of an LSTM or GRU cell, the heads of q, k and v
    heads=N     the last dimension split into N equal matrices: the heads of an attention's output projection
    transpose   the last two dimensions exchanged: what holds for rows then holds for columns

A view never changes the stored shape. Its text is what the command line, the record and the
library take; this module needs no torch, since reshaping is a method of any tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import InputRefused, UsageError
from .text import printable, shape_text
from .wording import LEAVE_OUT

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("flatten", "blocks=N", "heads=N", "transpose")


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
            raise InputRefused(
                f"the view {self} needs two dimensions or more; the tensor is {shape_text(shape)}",
                hint=LEAVE_OUT,
            )
        if self.name == "flatten":
            return shape[0], math.prod(shape[1:])
        if self.name == "transpose":
            return *shape[:-2], shape[-1], shape[-2]
        dimension = 0 if self.name == "blocks" else len(shape) - 1
        size, odd = divmod(shape[dimension], self.count)
        if odd:
            raise InputRefused(
                f"the view {self} splits dimension {dimension} into {self.count} equal parts; "
                f"{shape[dimension]} does not divide by it"
            )
        return (self.count, size, *shape[1:]) if self.name == "blocks" else (self.count, *shape[:-1], size)

    def keeps_rows(self, shape: Sequence[int]) -> bool:
        """Is a row of what the maths sees, an index of dimension 0, the view of that row of a stored tensor of this
        shape?
        """
        return self.name in (None, "flatten") or (self.name == "transpose" and len(shape) > 2)

    def into(self, tensor: Tensor) -> Tensor:
        """The stored tensor as the maths sees it."""
        if self.name is None:
            return tensor
        shape = self.shape(tensor.shape)
        if self.name == "transpose":
            return tensor.mT
        if self.name == "heads":
            return tensor.reshape(*tensor.shape[:-1], self.count, shape[-1]).movedim(-2, 0)
        return tensor.reshape(shape)

    def back(self, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """A value of the maths in the stored shape."""
        if self.name is None:
            return tensor
        if self.name == "transpose":
            return tensor.mT
        if self.name == "heads":
            return tensor.movedim(0, -2).reshape(tuple(shape))
        return tensor.reshape(tuple(shape))


IDENTITY = View()


def parse_view(text: str | None) -> View:
    """'blocks=4' -> View; None and '' are the plain view. Raises UsageError."""
    if not text or text == "none":
        return IDENTITY
    name, equals, number = text.partition("=")
    if name in ("flatten", "transpose") and not equals:
        return View(name)
    if name in ("blocks", "heads") and number.isascii() and number.isdigit() and len(number) <= 6 and int(number):
        return View(name, int(number))
    raise UsageError(f"no view named '{printable(text)}'", hint=f"views: {', '.join(NAMES)}", option="view")
