"""A small plug-in: tensors with entries in steps of one half, and the map that rounds to them."""

import torch
from torch import Tensor

from paramcli.plugin import Constraint, ConstraintEntry, Entry, Parametrization


class Halves(Constraint):
    """{W : 2 W is whole}. Residual: the largest distance of 2 W from whole numbers."""

    name = "halves"
    whole = True

    def residual(self, W: Tensor) -> Tensor:
        return (2 * W - (2 * W).round()).abs().max()

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return 0.0

    def project(self, W: Tensor) -> Tensor:
        return (2 * W).round() / 2

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        return {"off by a quarter": W + 0.25}


class RoundToHalves(Parametrization):
    """X to round(2 X) / 2."""

    is_projection = True
    differentiable = False

    def map(self, X: Tensor) -> Tensor:
        return (2 * X).round() / 2


CONSTRAINTS = (
    ConstraintEntry(name="halves", summary="2 W is whole", target=Halves, residual="max |2 W - round(2 W)|"),
)
PARAMETRIZATIONS = (
    Entry(
        name="to_halves",
        family="example",
        summary="rounded to the nearest half",
        law="W = round(2 X) / 2",
        maps=(("any", "halves"),),
        right_inverse="W itself",
        source="tests/plugin",
        target=RoundToHalves,
        cost="one pass",
    ),
)
