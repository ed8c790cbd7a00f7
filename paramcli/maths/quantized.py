"""Quantization: values on a grid, with straight-through gradients."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..wording import LEAVE_OUT, given
from .base import FARTHER, CannotReach, Check, Constraint, Parametrization, is_near
from .facts import FEW, SAMPLE, any_entry
from .norm import check_dim
from .numbers import eps, ratio
from .rows import is_row

FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def straight_through(value: Tensor, X: Tensor) -> Tensor:
    """`value`, exactly, with the gradient of X."""
    return value.detach() + (X - X.detach())


def slices(W: Tensor, dim: int | None) -> Tensor:
    """(slices, entries): one row for each slice along `dim`, one in all for None."""
    return W.reshape(1, -1) if dim is None else W.movedim(dim, 0).reshape(W.size(dim), -1)


def unslice(rows: Tensor, shape: torch.Size, dim: int | None) -> Tensor:
    if dim is None:
        return rows.reshape(shape)
    moved = list(shape)
    front = moved.pop(dim)
    return rows.reshape(front, *moved).movedim(0, dim)


# More different values than this are no levels to speak of.
MOST_LEVELS = 256


class Levels(Constraint):
    r"""{W : at most `count` different values in each slice along `dim`}, in the whole tensor for dim=none.

    Residual: max(0, values - count) / entries of the worst slice. There is no cheap nearest point (k-means), so none is
    given.
    """

    name = "levels"
    projection = "none"
    whole = True

    def __init__(self, count: int, dim: int | None = None):
        self.count, self.dim = count, dim

    def by_rows(self, shape: torch.Size) -> bool:
        return is_row(shape, self.dim)

    def _values(self, W: Tensor) -> Tensor:
        ordered = slices(W, self.dim).sort(dim=1).values
        return 1 + (ordered.diff(dim=1) != 0).sum(1)

    def residual(self, W: Tensor) -> Tensor:
        rows = slices(W, self.dim)
        return ((self._values(W) - self.count).clamp(min=0).to(torch.float64) / rows.size(1)).amax()

    def project(self, W: Tensor) -> Tensor:
        if bool(self.residual(W) > 0):
            raise CannotReach(
                f"the tensor has {int(self._values(W).max())} different values, more than {self.count}",
                hint=f"{given('chain', 'fake_quant')} rounds it to a grid",
            )
        return W

    def detail(self, W: Tensor) -> str | None:
        return f"up to {int(self._values(W).max())} different values, {self.count} allowed"

    def check_shape(self, shape: torch.Size) -> None:
        check_dim(shape, self.dim, self.name)

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        # Whole numbers, so that rounding to bfloat16 does not merge or split any.
        return torch.randint(-(self.count // 2), self.count - self.count // 2, shape, generator=generator).to(dtype)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        steps = torch.arange(slices(W, self.dim).size(1), dtype=W.dtype, device=W.device)
        return (
            {"all different": unslice(steps.expand(slices(W, self.dim).shape), W.shape, self.dim)}
            if len(steps) > self.count
            else {}
        )

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        most = min(MOST_LEVELS, W.numel() // 8)
        if most < 2:
            return []
        # A sort is dear, and the first entries often have more values than that.
        for count in (2 * most, SAMPLE, W.numel()):
            values = int(cls(1)._values(W.reshape(-1)[:count]).max())
            if values > most:
                return []
        return [cls(values)] if values > 1 else []


class FakeQuant(Parametrization):
    r"""X to s clamp(round(X / s), -q, q), q = 2^(bits-1) - 1: the values a symmetric `bits`-bit integer tensor can
    have.

    In plain words, what a quantized kernel would compute with, kept in floating point; s is stored.

    Shapes:  any; one scale for each slice along `dim` (none: the whole tensor).
    Inverse: X itself where it lies on the grid of its own range.
    Gradient: straight through, as in quantization-aware training.
    Cost:    one pass.
    Source:  torch.fake_quantize_per_channel_affine; Jacob et al. 2018, arXiv:1712.05877.
    """

    is_projection = True
    differentiable = False
    whole = True
    # Its values have few levels, and those are evenly spaced, which a set that rounding may not leave cannot ask for.
    fills_image = False
    scale: Tensor

    def __init__(self, scale: Tensor, bits: int, dim: int | None):
        super().__init__()
        self.largest, self.dim = 2 ** (bits - 1) - 1, dim
        self.register_buffer("scale", scale)

    @classmethod
    def threads_matter(cls, **arguments: Any) -> bool:
        return False

    @classmethod
    def by_rows(cls, shape: torch.Size, bits: int = 8, dim: int | None = None) -> frozenset[str]:
        # The scales along another dimension, or the one there is, belong to every row.
        return frozenset({"original", "scale"} if is_row(shape, dim) else {"original"})

    @classmethod
    def made_by_rows(cls, shape: torch.Size, bits: int = 8, dim: int | None = None) -> bool:
        return is_row(shape, dim)

    @classmethod
    def check_shape(cls, shape: torch.Size, bits: int = 8, dim: int | None = None) -> None:
        check_dim(shape, dim, "fake_quant")

    @classmethod
    def make(cls, value: Tensor, bits: int = 8, dim: int | None = None) -> FakeQuant:
        if value.is_meta:
            return cls(slices(value, dim)[:, 0], bits, dim)
        scale = slices(value, dim).abs().amax(1) / (2 ** (bits - 1) - 1)
        # A slice of zeros has no range; any scale keeps it.
        return cls(scale.where(scale != 0, 1.0), bits, dim)

    def map(self, X: Tensor) -> Tensor:
        s = self.scale.to(X.dtype).unsqueeze(1)
        q = (slices(X, self.dim) / s).round().clamp(-self.largest, self.largest)
        return straight_through(unslice(q * s, X.shape, self.dim), X)

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        steps = slices(value, self.dim) / self.scale.to(value.dtype).unsqueeze(1)
        # A value q s is rounded once where it is stored: |q| eps of a step at most.
        distance = ((steps - steps.round()).abs() / (1 + steps.abs())).amax()
        return [Check("grid", distance.item(), 4 * eps(self.stored_dtype))]


class Ternary(Constraint):
    r"""{s T : s > 0, T in {-1, 0, 1}}, with one s for each slice along `dim` (none: the whole tensor).

    Residual: (the largest magnitude - the smallest that is not zero) / the largest. Tolerance 0: equal magnitudes are
    rounded to equal ones.
    Nearest point: of the magnitudes in order, the first k with the largest (sum of k)^2 / k, all set to their mean.
    """

    name = "ternary"
    whole = True

    def __init__(self, dim: int | None = None):
        self.dim = dim

    def residual(self, W: Tensor) -> Tensor:
        sizes = slices(W, self.dim).abs()
        largest = sizes.amax(1)
        least = torch.where(sizes != 0, sizes, largest.unsqueeze(1)).amin(1)
        # s > 0: a slice of zeros is no member.
        return torch.where(largest == 0, 1.0, ratio(largest - least, largest)).amax()

    def detail(self, W: Tensor) -> str | None:
        sizes = slices(W, self.dim).abs()
        if bool((sizes.amax(1) == 0).any()):
            return "a slice is zero and has no scale" if self.dim is not None else "it is zero and has no scale"
        return f"magnitudes from {sizes[sizes != 0].min().item():.6g} to {sizes.max().item():.6g}"

    def project(self, W: Tensor) -> Tensor:
        rows = slices(W, self.dim)
        sizes, order = rows.abs().sort(dim=1, descending=True, stable=True)
        sums, counts = sizes.cumsum(1), torch.arange(1, rows.size(1) + 1, dtype=W.dtype, device=W.device)
        best = self._best(sums, counts)
        if bool((sums[:, -1] == 0).any()):
            raise CannotReach("a zero slice has no scale", hint=LEAVE_OUT)
        s = sums.gather(1, best) / (best + 1)
        kept = torch.arange(rows.size(1), device=W.device) <= best
        mask = torch.zeros_like(rows, dtype=torch.bool).scatter(1, order, kept)
        return unslice(torch.where(mask, s * rows.sign(), 0.0), W.shape, self.dim)

    def _best(self, sums: Tensor, counts: Tensor) -> Tensor:
        return (sums.square() / counts).argmax(1, keepdim=True)

    def check_shape(self, shape: torch.Size) -> None:
        check_dim(shape, self.dim, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        off = W.clone().reshape(-1)
        off[0] = 1.5 * W.abs().max()
        return (
            {"zero": 0 * W, "one entry longer": off.reshape(W.shape)}
            if slices(W, self.dim).size(1) > 1
            else {"zero": 0 * W}
        )

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        if W.numel() <= 8 or W.ndim < 2:
            return []
        # Of zeros nothing follows for the tensor, and of others the magnitudes are among all of their slice.
        sizes = W[0].reshape(-1)[:FEW].abs()
        sizes = sizes[sizes != 0]
        if sizes.numel() and bool(sizes.amin() < (1 - FARTHER) * sizes.amax()):
            return []
        part = W[:1] if any_entry(W[:1], lambda X: X != 0) else W
        return [found for found in (cls(), cls(0)) if is_near(found, W, part)]


class Binary(Ternary):
    r"""{s T : s > 0, T in {-1, 1}}. Residual as `ternary`, and 1 where an entry is zero. Nearest: s = mean |W|, T =
    sign(W).
    """

    name = "binary"

    def residual(self, W: Tensor) -> Tensor:
        return torch.where((W == 0).any(), 1.0, super().residual(W))

    def _best(self, sums: Tensor, counts: Tensor) -> Tensor:
        return torch.full_like(sums[:, :1], sums.size(1) - 1, dtype=torch.long)

    def project(self, W: Tensor) -> Tensor:
        # Either sign is equally near to a zero.
        return super().project(torch.where(W == 0, torch.full_like(W, torch.finfo(W.dtype).tiny), W))

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        zero = W.clone().reshape(-1)
        zero[0] = 0
        return {**super().near_misses(W), "one zero": zero.reshape(W.shape)}


class ToTernary(Parametrization):
    r"""X to s clip(round(X / s), -1, 1), s = mean |X|, straight-through gradient; s anew for each slice along `dim`.

    Inverse: Y n / k for a ternary Y with k of n entries not zero, whose mean magnitude is then Y's scale.
    Cost:    two passes.
    Source:  BitNet b1.58; Ma et al. 2024, arXiv:2402.17764.
    """

    differentiable = False
    whole = True
    onto = Ternary

    def __init__(self, dim: int | None = None):
        super().__init__()
        self.dim = dim

    @classmethod
    def check_shape(cls, shape: torch.Size, dim: int | None = None) -> None:
        check_dim(shape, dim, cls.onto.name)

    def map(self, X: Tensor) -> Tensor:
        rows = slices(X, self.dim)
        s = rows.abs().mean(1, keepdim=True)
        return straight_through(unslice(self.grid(rows, s) * s, X.shape, self.dim), X)

    def grid(self, rows: Tensor, s: Tensor) -> Tensor:
        return (rows / s.where(s != 0, 1.0)).round().clamp(-1, 1)

    def inverse(self, Y: Tensor) -> Tensor:
        if bool(self.onto(self.dim).residual(Y) > 1e-2):
            # Any other tensor starts as the latent weight that is rounded, as quantization-aware training has it.
            return Y
        rows = slices(Y, self.dim)
        some = (rows != 0).sum(1, keepdim=True).to(rows.dtype)
        return unslice(rows * (rows.size(1) / some), Y.shape, self.dim)


class ToBinary(ToTernary):
    r"""X to s sign(X), s = mean |X|, straight-through gradient; the sign of 0 is +1.

    Inverse: Y itself.  Cost: two passes.  Source: Rastegari et al. 2016, arXiv:1603.05279 (XNOR-Net).
    """

    onto = Binary

    def grid(self, rows: Tensor, s: Tensor) -> Tensor:
        return torch.where(rows < 0, -1.0, 1.0).to(rows.dtype)


class Float8(Constraint):
    r"""{W : every entry is a number of an 8-bit float format}. Residual: max |W - cast(W)| / |W|. Nearest: the cast,
    saturated.

    Tolerance 0: every wider format holds these numbers exactly. A grid says something of each number that occurs; where
    that is one (a norm's ones), it says nothing of the tensor, and `discover` calls it constant and no more.
    """

    name = "fp8"
    whole = True

    def __init__(self, format: str = "e4m3"):
        self.format = format

    def by_rows(self, shape: torch.Size) -> bool:
        return True

    def residual(self, W: Tensor) -> Tensor:
        return ratio(W - cast_float8(W, self.format), W).amax() if W.numel() else W.new_zeros(())

    def project(self, W: Tensor) -> Tensor:
        return cast_float8(W, self.format)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        return {"between two": torch.full_like(W, 1 + 2.0**-5), "times 1.05": W * 1.0625}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        if W.numel() <= 8:
            return []
        parts = [W.reshape(-1)[:count] for count in (FEW, SAMPLE, W.numel())]
        formats = (cls("e5m2"), cls("e4m3"))
        return list(islice((one for one in formats if all(torch.equal(one.project(part), part) for part in parts)), 1))


def cast_float8(X: Tensor, format: str) -> Tensor:
    """To the nearest number of the format (ties to even), the largest for what lies beyond it, and back."""
    dtype = FLOAT8[format]
    largest = torch.finfo(dtype).max
    # By way of float32, which every device converts; doubles that lie near a tie are settled there.
    return X.clamp(-largest, largest).float().to(dtype).float().to(X.dtype)


class ToFloat8(Parametrization):
    r"""X to the nearest 8-bit float, saturated, kept in its own dtype; straight-through gradient.

    Inverse: X itself.  Cost: one pass.  Source: Micikevicius et al. 2022, arXiv:2209.05433.
    """

    is_projection = True
    differentiable = False

    @classmethod
    def threads_matter(cls, **arguments: Any) -> bool:
        return False

    @classmethod
    def by_rows(cls, shape: torch.Size, **arguments: Any) -> frozenset[str]:
        return frozenset({"original"})

    @classmethod
    def made_by_rows(cls, shape: torch.Size, **arguments: Any) -> bool:
        return True

    def __init__(self, format: str = "e4m3"):
        super().__init__()
        self.format = format

    def map(self, X: Tensor) -> Tensor:
        return straight_through(cast_float8(X, self.format), X)
