"""Sets of numbers entry by entry, and sorted vectors: positive, within an interval, increasing; and the identity."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .base import Constraint, Parametrization, first_along, started
from .bounded import EDGE, MARGIN
from .norm import check_dim
from .numbers import rounded_bound
from .softplus import inverse_softplus


def one_set_to(W: Tensor, value: Tensor | float) -> Tensor:
    off = W.clone()
    off.view(-1)[-1] = value
    return off


class Positive(Constraint):
    r"""{W : every entry is above `floor`}, an open set.

    Residual: how far the least entry is below the floor, as a share of the floor, or where it is 0 of the largest
    entry. Tolerance 0: rounding keeps order, so entries above the floor are stored at the rounded floor or above it.
    With floor 0 an exact zero is not positive (an entry so small that its dtype stores zero is found too).
    Entries at the floor or below go a thousandth of the tensor's size above it.
    """

    name = "positive"
    projection = "inside"
    whole = True

    def __init__(self, floor: float = 0.0):
        self.floor = floor
        # Rounding may put what is above the floor on it.
        self.reached = False

    def as_stored(self, stored: torch.dtype) -> Positive:
        made = copy(self)
        made.floor, made.reached = rounded_bound(self.floor, stored), self.floor > 0
        return made

    def by_rows(self, shape: torch.Size) -> bool:
        return True

    def part(self, W: Tensor) -> Tensor:
        return torch.stack([W.amin(), W.abs().amax()])

    def joined(self, parts: Tensor, shape: torch.Size) -> Tensor:
        least, size = parts[..., 0].amin(), parts[..., 1].amax()
        unit = self.floor if self.floor > 0 else size.clamp(min=torch.finfo(parts.dtype).tiny)
        below = (self.floor - least) / unit
        inside = (least >= self.floor) if self.reached else (least > self.floor)
        return torch.where(inside, torch.zeros_like(below), below.clamp(min=EDGE))

    def residual(self, W: Tensor) -> Tensor:
        return self.joined(self.part(W), W.shape)

    def project(self, W: Tensor) -> Tensor:
        size = W.abs().amax()
        size = torch.where(size > 0, size, torch.ones_like(size))
        return torch.where(self.floor < W, W, self.floor + MARGIN * size)

    def detail(self, W: Tensor) -> str | None:
        count = int((self.floor >= W).sum())
        return f"{count} of {W.numel()} entries are not above {self.floor:g}, the least {W.amin().item():.4g}"

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.floor + 0.01 + torch.randn(shape, generator=generator, dtype=dtype).abs()

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        below = one_set_to(W, 0.9 * self.floor - 0.05 * W.abs().amax())
        return {"one entry below": below, "one entry zero": one_set_to(W, 0.0), "negative": -W, "zero": 0 * W}


class Interval(Constraint):
    r"""{W : every entry is strictly between a and b}, an open set.

    Residual: the largest violation over b - a. Tolerance 0: rounding keeps order, so entries are stored between the
    rounded ends, or at one of them. Entries outside or at an end go a thousandth of b - a inside.
    """

    name = "interval"
    projection = "inside"
    whole = True
    projects_by_rows = True

    def __init__(self, a: float = 0.0, b: float = 1.0):
        self.a, self.b, self.width = a, b, b - a
        # Rounding may put what is inside on an end.
        self.reached = False

    def as_stored(self, stored: torch.dtype) -> Interval:
        made = copy(self)
        made.a, made.b, made.reached = rounded_bound(self.a, stored), rounded_bound(self.b, stored), True
        return made

    def by_rows(self, shape: torch.Size) -> bool:
        return True

    def residual(self, W: Tensor) -> Tensor:
        violation = torch.maximum(self.a - W.amin(), W.amax() - self.b) / self.width
        inside = (violation <= 0) if self.reached else (violation < 0)
        return torch.where(inside, torch.zeros_like(violation), violation.clamp(min=EDGE))

    def project(self, W: Tensor) -> Tensor:
        inside = MARGIN * (self.b - self.a)
        return torch.where(self.a >= W, self.a + inside, torch.where(self.b <= W, self.b - inside, W))

    def detail(self, W: Tensor) -> str | None:
        count = int(((self.a >= W) | (self.b <= W)).sum())
        return (
            f"{count} of {W.numel()} entries are outside; they run from {W.amin().item():.4g} to {W.amax().item():.4g}"
        )

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        return self.a + (self.b - self.a) * (0.02 + 0.96 * torch.rand(shape, generator=generator, dtype=dtype))

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        off = 0.1 * max(self.b - self.a, abs(self.a), abs(self.b))
        return {"one entry above": one_set_to(W, self.b + off), "one entry below": one_set_to(W, self.a - off)}


class Increasing(Constraint):
    r"""{W : entries grow strictly along `dim`}, an open set.

    Residual: the largest step down over the vector's largest entry. Tolerance 0: rounding keeps order. It may make
    neighbours equal, so as stored those are no step down. A vector that is off goes to the nearest one whose steps are
    at least a thousandth of its range over n, by pooling adjacent violators.
    """

    name = "increasing"
    projection = "inside"
    whole = True

    def __init__(self, dim: int = -1):
        self.dim = dim
        # Rounding may put neighbours on one number.
        self.reached = False

    def as_stored(self, stored: torch.dtype) -> Increasing:
        made = copy(self)
        made.reached = True
        return made

    def check_shape(self, shape: torch.Size) -> None:
        check_dim(shape, self.dim, self.name)

    def errors(self, W: Tensor) -> Tensor:
        """For each vector; its dimension is gone."""
        if W.size(self.dim) < 2:
            return torch.zeros_like(W).amax(self.dim)
        down = -W.diff(dim=self.dim).amin(self.dim)
        size = W.abs().amax(self.dim).clamp(min=torch.finfo(W.dtype).tiny)
        inside = (down <= 0) if self.reached else (down < 0)
        return torch.where(inside, torch.zeros_like(down), (down / size).clamp(min=EDGE))

    def residual(self, W: Tensor) -> Tensor:
        return self.errors(W).amax()

    def project(self, W: Tensor) -> Tensor:
        vectors = W.movedim(self.dim, -1)
        flat, off = vectors.reshape(-1, vectors.size(-1)).clone(), (self.errors(W) > 0).reshape(-1)
        wrong = flat[off]
        if wrong.numel():
            n = wrong.size(-1)
            spread = wrong.amax(-1, keepdim=True) - wrong.amin(-1, keepdim=True)
            # A constant vector has no range to take a share of, nor a zero vector a size.
            spread = torch.where(spread > 0, spread, wrong.abs().amax(-1, keepdim=True))
            spread = torch.where(spread > 0, spread, torch.ones_like(spread))
            # Steps of at least m: W_i - i m is non-decreasing, and that has the pooled averages as its nearest point.
            ramp = MARGIN * spread / n * torch.arange(n, dtype=W.dtype, device=W.device)
            pooled = [pool_adjacent_violators(row) for row in (wrong - ramp).tolist()]
            flat[off] = torch.tensor(pooled, dtype=W.dtype, device=W.device) + ramp
        return flat.reshape(vectors.shape).movedim(-1, self.dim).contiguous()

    def detail(self, W: Tensor) -> str | None:
        if W.size(self.dim) < 2:
            return None
        steps = W.diff(dim=self.dim)
        return f"{int((steps <= 0).sum())} of {steps.numel()} steps are not upwards"

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        steps = 0.1 + torch.rand(shape, generator=generator, dtype=dtype)
        return steps.cumsum(self.dim) - 2

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        if W.size(self.dim) < 2:
            return {}
        first, *middle, last = range(W.size(self.dim))
        ends = torch.tensor([last, *middle, first], device=W.device)
        return {"reversed": W.flip(self.dim), "negative": -W, "ends exchanged": W.index_select(self.dim, ends)}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        # Eight entries of a random vector are in order once in 40,000 times.
        found = [cls(dim) for dim in (-1, -2) if W.ndim >= -dim and W.size(dim) >= 8]
        return [c for c in found if _grow(first_along(W, c.dim)[:8].tolist()) and bool(c.residual(W) == 0)]


def _grow(values: list[float]) -> bool:
    return all(one < next_one for one, next_one in pairwise(values))


def pool_adjacent_violators(values: list[float]) -> list[float]:
    """The nearest non-decreasing sequence: blocks that go down are replaced by their averages, in one pass."""
    sums: list[float] = []
    counts: list[int] = []
    for value in values:
        total, count = value, 1
        # Compared by cross multiplication: average of the block before > average of this one.
        while sums and sums[-1] * count > total * counts[-1]:
            total, count = total + sums.pop(), count + counts.pop()
        sums.append(total)
        counts.append(count)
    return [total / count for total, count in zip(sums, counts, strict=True) for _ in range(count)]


# Maps of numbers to positive ones, with their inverses.
_POSITIVE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "softplus": (softplus, inverse_softplus),
    "exp": (torch.exp, torch.log),
    "square": (torch.square, torch.sqrt),
    "abs": (torch.abs, torch.abs),
}


class ToPositive(Parametrization):
    r"""X to floor + f(X) entry by entry: f is softplus, exp, square or abs.

    In plain words, softplus is log(1 + exp(x)): nearly x for large x, never quite 0. square and abs reach the floor
    itself where X is exactly 0.

    Inverse: of W - floor: w + log(1 - exp(-w)), log(w), sqrt(w), w. Entries at the floor or below are moved above it
    first.
    Cost:    one pass over the tensor.
    Source:  torch.distributions.transforms (SoftplusTransform, ExpTransform, PowerTransform, AbsTransform).
    """

    whole = True

    @classmethod
    def threads_matter(cls, **arguments: Any) -> bool:
        return False

    @classmethod
    def by_rows(cls, shape: torch.Size, **arguments: Any) -> frozenset[str]:
        return frozenset({"original"})

    def __init__(self, f: str = "softplus", floor: float = 0.0):
        super().__init__()
        self.f, self.floor = f, floor

    def map(self, X: Tensor) -> Tensor:
        return self.floor + _POSITIVE[self.f][0](X)

    def inverse(self, W: Tensor) -> Tensor:
        return _POSITIVE[self.f][1](started(Positive(self.floor), W) - self.floor)


class ToInterval(Parametrization):
    r"""X to a + (b - a) / (1 + exp(-X)) entry by entry.

    Inverse: log(u / (1 - u)) with u = (W - a) / (b - a).
    Cost:    one pass over the tensor.
    Source:  torch.distributions.transforms (SigmoidTransform).
    """

    whole = True

    @classmethod
    def threads_matter(cls, **arguments: Any) -> bool:
        return False

    @classmethod
    def by_rows(cls, shape: torch.Size, **arguments: Any) -> frozenset[str]:
        return frozenset({"original"})

    @classmethod
    def made_by_rows(cls, shape: torch.Size, **arguments: Any) -> bool:
        return True

    def __init__(self, a: float = 0.0, b: float = 1.0):
        super().__init__()
        self.a, self.b = a, b

    def map(self, X: Tensor) -> Tensor:
        return self.a + (self.b - self.a) * X.sigmoid()

    def inverse(self, W: Tensor) -> Tensor:
        W = started(Interval(self.a, self.b), W)
        # From both ends: b - W keeps the digits that 1 - u would lose near b.
        return torch.log(W - self.a) - torch.log(self.b - W)


class ToIncreasing(Parametrization):
    r"""X to W with W_1 = X_1, W_i = W_{i-1} + softplus(X_i) along `dim`.

    Inverse: the first entry, and the inverse softplus of the steps.
    Cost:    one pass over the tensor.
    Source:  monotone spline and calibration layers; torch.distributions.transforms has the same map as
             OrderedTransform of Stan with exp in place of softplus.
    """

    whole = True

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def map(self, X: Tensor) -> Tensor:
        first, rest = X.narrow(self.dim, 0, 1), X.narrow(self.dim, 1, X.size(self.dim) - 1)
        sums = torch.cat([first, softplus(rest)], dim=self.dim).cumsum(self.dim)
        # Sums that are taken in parallel, as on a GPU, may be rounded out of order.
        return sums.cummax(self.dim).values

    def inverse(self, W: Tensor) -> Tensor:
        W = started(Increasing(self.dim), W)
        return torch.cat([W.narrow(self.dim, 0, 1), inverse_softplus(W.diff(dim=self.dim))], dim=self.dim)


class Identity(Parametrization):
    r"""X to X: the weight under torch's parametrize, unchanged.

    In plain words, the key becomes `parametrizations.weight.original` and nothing else: for a live model that registers
    nn.Identity on this tensor (a switched-off parametrization, a place for one to come), and for trying the
    bookkeeping.

    Inverse: W itself.
    Cost:    none.
    Source:  torch.nn.Identity registered as a parametrization.
    """

    is_projection = True

    @classmethod
    def threads_matter(cls, **arguments: Any) -> bool:
        return False

    @classmethod
    def by_rows(cls, shape: torch.Size, **arguments: Any) -> frozenset[str]:
        return frozenset({"original"})

    @classmethod
    def made_by_rows(cls, shape: torch.Size, **arguments: Any) -> bool:
        return True

    def map(self, X: Tensor) -> Tensor:
        return X
