"""Dale's law: every unit excites or inhibits, so its weights have one sign; the signs are stored."""

import torch
from torch import Tensor

from paramcli.plugin import (
    Argument,
    Check,
    Constraint,
    ConstraintEntry,
    Entry,
    MeasureEntry,
    Parametrization,
    image_of,
    matrix,
    norm,
    ratio,
)

DIM = Argument("dim", "int", "the dimension that counts the units: -1 inputs, -2 outputs", -1, minimum=-2, maximum=-1)


def parts(W: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The lengths of each unit's positive and of its negative weights."""
    across = (-3 - dim,)
    return norm(W.clamp(min=0), across, keepdim=True), norm(W.clamp(max=0), across, keepdim=True)


def signs(W: Tensor, dim: int) -> Tensor:
    """1 or -1 for each unit: the sign of its longer part."""
    positive, negative = parts(W, dim)
    return torch.where(positive >= negative, 1.0, -1.0).to(W.dtype)


class OneSign(Constraint):
    """{W : no unit has weights of both signs}. Residual: its shorter part over its longer one, of the worst unit."""

    name = "one_sign"

    def __init__(self, dim: int = -1):
        self.dim = dim

    def check_shape(self, shape: torch.Size) -> None:
        matrix(shape, self.name)

    def residual(self, W: Tensor) -> Tensor:
        positive, negative = parts(W, self.dim)
        return ratio(torch.minimum(positive, negative), torch.maximum(positive, negative)).amax((-2, -1))

    def project(self, W: Tensor) -> Tensor:
        return torch.where(W * signs(W, self.dim) > 0, W, 0.0)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        off, size = W.clone(), W.abs().amax((-2, -1))
        unit = off.select(self.dim, 0)
        unit[..., 0], unit[..., -1] = size, -size
        return {"one unit of both signs": off}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls(dim) for dim in (-1, -2)] if bool((W > 0).any() and (W < 0).any()) else []


class Dale(Parametrization):
    """X where it has its unit's sign, else 0; the buffer `sign` has 1 or -1 for each unit."""

    is_projection = True

    def __init__(self, sign: Tensor):
        super().__init__()
        self.register_buffer("sign", sign)

    @classmethod
    def make(cls, value: Tensor, dim: int = -1) -> "Dale":
        return cls(signs(value, dim))

    def map(self, X: Tensor) -> Tensor:
        return torch.where(X * self.sign > 0, X, 0.0)

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        count = int((value * self.sign < 0).sum())
        return [Check("signs", count / value.numel(), 0.0, f"{count} of the other sign" if count else None)]


def stored(shape: tuple[int, ...], arguments: dict) -> dict:
    """The weight as it was, and a sign for each unit, both in the weight's own dtype."""
    units = list(shape)
    units[-3 - arguments.get("dim", -1)] = 1
    return {"original": (None, shape), "sign": (None, tuple(units))}


SIGNS = MeasureEntry(
    name="signs",
    summary="every weight has the sign that is stored for its unit, or is 0",
    residual="share of the weights of the other sign",
    tolerance="0",
    proves="units excite or inhibit as they did at the start",
    not_proved="which of them do which",
)
MEASURES = (SIGNS,)
CONSTRAINTS = (
    ConstraintEntry(
        name="one_sign",
        summary="no unit has weights of both signs",
        target=OneSign,
        arguments=(DIM,),
        residual="||shorter part|| / ||longer part|| of a unit, the largest",
    ),
)
PARAMETRIZATIONS = (
    Entry(
        name="dale",
        family="example",
        summary="every unit excites or inhibits, as it does now",
        law="W = X where X sign > 0, else 0",
        maps=(("any", image_of("one_sign", "dim")),),
        right_inverse="W itself: weights of the other sign keep their values until baked",
        source="Song, Yang and Wang 2016, doi:10.1371/journal.pcbi.1004792",
        target=Dale,
        arguments=(DIM,),
        cost="one pass",
        verifies=str(SIGNS),
        stores=stored,
    ),
)
