"""Measuring a tensor against a constraint, in double precision on the value as stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from ..errors import InputRefused
from ..maths.base import Check, Part
from ..maths.decompositions import stacked
from ..maths.numbers import compute_dtype, norm, wide
from ..registry import ANY, CONSTRAINTS, constraint
from ..text import shape_text
from ..view import IDENTITY, View
from ..wording import LEAVE_OUT

# Numbers as a tensor's `tolist` gives them.
Nested: TypeAlias = "float | list[Nested]"
# Entries that are compared at once.
BLOCK = 1 << 18


def check(
    spec: str,
    W: Tensor,
    view: View = IDENTITY,
    tolerance: float | None = None,
    computed: torch.dtype | None = None,
    double: Tensor | None = None,
) -> Check:
    """How far W (in its stored dtype and shape) is from the constraint, against what rounding explains. `double`: W in
    double precision, as the view shows it, where it is at hand.

    Raises InputRefused for a shape that cannot lie in the set, and for a tensor without entries.
    """
    if W.numel() == 0:
        raise InputRefused(f"the tensor has no entries (it is {shape_text(W.shape)}): nothing to measure")
    seen = view.into(W)
    measured = Measured(spec, seen.shape, W.dtype, computed or compute_dtype(W.dtype), details=True)
    measured.add(seen, [tolerance], double)
    [found] = measured.result()
    assert found is not None  # there is a constraint
    return found


class Measured:
    """How far the tensors of a batch are from a constraint, against what rounding explains.

    They are seen at once, or one tensor a block of `rows` after another, where the constraint can be measured so.
    Without a constraint it is only asked whether they are finite. `details` are left to who measures one tensor alone.
    """

    def __init__(
        self,
        spec: str | None,
        shape: torch.Size,
        stored: torch.dtype,
        computed: torch.dtype,
        *,
        count: int = 1,
        rows: bool = False,
        details: bool = False,
    ):
        """`shape`: of all that is measured, as the view shows it; of several tensors it begins with their `count`.

        Raises InputRefused for a shape, or for numbers, that cannot lie in the set.
        """
        self.spec, self.shape, self.kinds = spec, shape, (stored, computed)
        self.count, self.rows, self.details = count, rows, details
        self.finite = True
        self._name = spec or ANY
        self._wanted = constraint(self._name).as_stored(stored)
        # Is each of several measured by itself?
        self._apart = count > 1 and (self._wanted.whole or not self._wanted.stacks)
        if self._apart:
            self.shape = shape[1:]
        if spec is not None:
            require_scalars(spec, stored)
            self._wanted.check_shape(self.shape)
        # Of each block of rows what it has to say, as numbers (see `Moved`), and the shape of the last one.
        self._parts: list[Nested] = []
        self._last = shape
        self._found: list[Check | None] = []

    def add(self, block: Tensor, tolerances: Sequence[float | None] | None = None, seen: Tensor | None = None) -> None:
        """Take note of a block, in its stored dtype, as the view shows it. `tolerances`: of each tensor, in place of
        the set's own where it has one; `seen`: the block in double precision, where it is at hand.
        """
        sound = finite_of_each(block, self.count)
        self.finite = self.finite and all(sound)
        if not self.rows:
            self._found = self._judged(block, sound, tolerances or [None] * self.count, seen)
        elif self.finite and self.spec is not None:
            self._parts.append(self._wanted.part(block.to(wide(block.dtype, block.device))).tolist())
            self._last = block.shape

    def _judged(
        self, block: Tensor, sound: Sequence[bool], tolerances: Sequence[float | None], seen: Tensor | None
    ) -> list[Check | None]:
        """The check of each tensor of a batch that is seen at once."""
        if self.spec is None or not any(sound):
            return [None if kept else self._not_finite(own) for kept, own in zip(sound, tolerances, strict=True)]
        if not all(sound):
            kept = torch.tensor(sound, device=block.device).reshape(-1, *[1] * (block.ndim - 1))
            block, seen = torch.where(kept, block, torch.zeros_like(block)), None
        seen = block.to(wide(block.dtype, block.device)) if seen is None else seen
        each = self._of_each(seen, tolerances)
        return [
            self._worst(found, seen) if kept else self._not_finite(own)
            for found, kept, own in zip(each, sound, tolerances, strict=True)
        ]

    def _of_each(self, seen: Tensor, tolerances: Sequence[float | None]) -> list[list[tuple[float, float]]]:
        """(residual, tolerance) of each matrix of each tensor."""
        if self.count == 1 or self._apart or any(own is not None for own in tolerances):
            return [
                judged(self._wanted.parts(one, *self.kinds), own)
                for one, own in zip(seen if self.count > 1 else [seen], tolerances, strict=True)
            ]
        found = judged(self._wanted.parts(seen, *self.kinds))
        size = len(found) // self.count
        return [found[first : first + size] for first in range(0, len(found), size)]

    def _worst(self, found: Sequence[tuple[float, float]], seen: Tensor) -> Check:
        """The check of a tensor from those of its matrices."""
        worst = max(range(len(found)), key=lambda index: _weight(found[index]))
        made = Check(self._name, *found[worst])
        if not self.details or (made.ok and not self._wanted.tells):
            return made
        detail = self._wanted.detail(seen)
        if detail is None and len(found) > 1:
            detail = f"matrix {worst} of {len(found)} is the worst"
        return replace(made, detail=detail)

    def _not_finite(self, tolerance: float | None = None) -> Check:
        explained = self._wanted.tolerance(self.shape, *self.kinds) if tolerance is None else tolerance
        return Check(self._name, float("nan"), explained, "NaN or infinity in the tensor")

    def _joined(self, parts: Sequence[Nested], shape: torch.Size) -> float:
        return self._wanted.joined(torch.tensor(parts, dtype=torch.float64, device="cpu"), shape).item()

    def last(self) -> list[float]:
        """The residual of each tensor of the last block, as tensors by themselves: of rows, for sets that each row is
        in or not.

        A count of entries over the whole tensor says nothing of a block, so this is asked only where blocks are
        projected.
        """
        if self.rows:
            return [self._joined(self._parts[-1:], self._last)]
        return [0.0 if check is None else check.residual for check in self._found]

    def result(self) -> list[Check | None]:
        """The check of each tensor; None where it is finite and there is no constraint."""
        if not self.rows:
            return self._found
        if not self.finite:
            return [self._not_finite()]
        if self.spec is None:
            return [None]
        return [
            Check(self.spec, self._joined(self._parts, self.shape), self._wanted.tolerance(self.shape, *self.kinds))
        ]


def judged(parts: Sequence[Part], tolerance: float | None = None) -> list[tuple[float, float]]:
    """(residual, tolerance) of each matrix of the batch: those of the condition that it is worst at. `tolerance`: in
    place of the conditions' own.
    """
    by_part = [
        [
            (residual, part.tolerance if tolerance is None else tolerance)
            for residual in part.residual.flatten().tolist()
        ]
        for part in parts
    ]
    return by_part[0] if len(parts) == 1 else [max(of_matrix, key=_weight) for of_matrix in zip(*by_part, strict=True)]


def _weight(pair: tuple[float, float]) -> tuple[bool, float]:
    """What fails counts before what holds: by how far it is off, a NaN and numbers below 0 as farthest; what holds by
    its share.
    """
    residual, tolerance = pair
    if not 0 <= residual <= tolerance:
        return True, residual if residual > 0 else math.inf
    return False, residual / tolerance if residual else 0.0


def require_scalars(spec: str, dtype: torch.dtype) -> None:
    """Raise InputRefused for real tensors and a set of complex ones, and the other way round."""
    entry = CONSTRAINTS[spec.partition(":")[0]]
    if not (entry.complex if dtype.is_complex else entry.real):
        kind = "real" if dtype.is_complex else "complex"
        raise InputRefused(f"{entry.name} is a set of {kind} tensors, and this one is {str(dtype)[6:]}")


def nearest(spec: str, W: Tensor, stored: torch.dtype | None, count: int = 1) -> tuple[Tensor, str | None]:
    """(the nearest point of the constraint to a W that was rounded to `stored`, if it was; what had to be assumed of
    what rounding took away). W as the view shows it, in double precision; `count` of them along the first dimension.
    """
    wanted = constraint(spec)
    if count == 1 or (wanted.stacks and not wanted.whole):
        return wanted.nearest(W, stored)
    points, assumed = zip(*(wanted.nearest(one, stored) for one in W), strict=True)
    return stacked(points), next((what for what in assumed if what is not None), None)


class Moved:
    """||after - before||_F / ||before||_F of each tensor of a batch, in double precision: 0 for equal tensors, inf
    where before is zero.

    One tensor may be seen part after part: the number is the same however it is parted.
    """

    def __init__(self, count: int = 1):
        self._count = count
        # Of each BLOCK of entries. No tensors: small ones that stay, between large ones that go, would leave holes in
        # the heap that no large one fits into again, a gigabyte of them for a tensor of half that size.
        self._distances: list[list[float]] = []
        self._sizes: list[list[float]] = []
        # Entries that do not fill a block yet.
        self._rest: tuple[Tensor, Tensor] | None = None

    def add(self, after: Tensor, before: Tensor) -> None:
        """Take note of tensors of one shape; several of them lie along the first dimension, and are seen at once. A
        small one is held until `result`, and must not change before.
        """
        after, before = (W.reshape(self._count, W.numel() // self._count) for W in (after, before))
        if self._count > 1:
            self._measure(after, before, max(after.size(1), 1))
            return
        if self._rest is not None:
            missing = BLOCK - self._rest[0].size(1)
            filled = (
                torch.cat([self._rest[0], after[:, :missing]], 1),
                torch.cat([self._rest[1], before[:, :missing]], 1),
            )
            after, before, self._rest = after[:, missing:], before[:, missing:], None
            self._take(*filled)
        self._take(after, before)

    def _take(self, after: Tensor, before: Tensor) -> None:
        full = after.size(1) - after.size(1) % BLOCK
        if full:
            self._measure(after[:, :full], before[:, :full], BLOCK)
        if full < after.size(1):
            # No view of a larger one, which would keep all of it in memory.
            rest = after[:, full:], before[:, full:]
            self._rest = (rest[0].clone(), rest[1].clone()) if full else rest

    def _measure(self, after: Tensor, before: Tensor, entries: int) -> None:
        double = wide(before.dtype, before.device)
        # In blocks: a whole tensor in double precision, three times over, would be the peak of most edits. In memory
        # that stays: to fault new in takes as long as the sums.
        shape = (self._count, min(entries, after.size(1)))
        was, is_now = (torch.empty(shape, dtype=double, device=before.device) for _ in range(2))
        for a, b in zip(torch.split(after, entries, 1), torch.split(before, entries, 1), strict=True):
            size = was.copy_(b)
            distance = is_now.copy_(a).sub_(was)
            self._sizes.append(_lengths(size))
            self._distances.append(_lengths(distance))

    def result(self) -> list[float]:
        """The number of each tensor."""
        if self._rest is not None:
            self._measure(*self._rest, BLOCK)
            self._rest = None
        distances, sizes = (
            parts[0]
            if len(parts) == 1
            else _lengths(torch.tensor(parts, dtype=torch.float64, device="cpu").reshape(-1, self._count).mT)
            for parts in (self._distances, self._sizes)
        )
        return [0.0 if d == 0 else d / size if size else float("inf") for d, size in zip(distances, sizes, strict=True)]


def _lengths(values: Tensor) -> list[float]:
    """The norm of each row. Of a single one by a quicker sum, unless its squares leave the range of numbers; else with
    a scale taken out first.
    """
    if len(values) == 1:
        plain = torch.linalg.vector_norm(values[0]).item()
        if 1e-140 < plain < 1e140:
            return [plain]
    return norm(values, (1,)).tolist()


def length(values: Tensor) -> float:
    """The Euclidean norm of all entries, of any size."""
    return _lengths(values.reshape(1, -1))[0]


def moved(after: Tensor, before: Tensor) -> float:
    """`Moved` of one tensor that is there."""
    return moved_of_each(after.unsqueeze(0), before.unsqueeze(0))[0]


def moved_of_each(after: Tensor, before: Tensor) -> list[float]:
    """`Moved` of each tensor of a stack that is there."""
    both = Moved(len(after))
    both.add(after, before)
    return both.result()


# Their sums seldom leave their range.
SUMMED = (torch.float32, torch.float64, torch.bfloat16)


def all_finite(W: Tensor) -> bool:
    """Is no entry NaN or infinite? By the sum, which is quickest and finite of nothing else; where it leaves the range,
    by the extremes: twenty times quicker than asking every entry.
    """
    if not W.numel() or not (W.is_floating_point() or W.is_complex()):
        return True
    if W.dtype in SUMMED and math.isfinite(W.sum().item()):
        return True
    # A conjugate or an 8-bit float has no extremes of its own.
    seen = torch.view_as_real(W.resolve_conj()) if W.is_complex() else W.float() if W.element_size() == 1 else W
    return all(math.isfinite(extreme) for extreme in torch.stack(torch.aminmax(seen)).tolist())


def finite_of_each(W: Tensor, count: int) -> list[bool]:
    """The same of each of so many tensors along the first dimension."""
    if all_finite(W):
        return [True] * count
    return torch.isfinite(W).reshape(count, -1).all(1).tolist() if count > 1 else [False]


def require_finite(W: Tensor, what: str = "the tensor") -> None:
    """Raise InputRefused naming how many entries are NaN or infinite."""
    require_finite_parts([W], what)


def require_finite_parts(parts: Iterable[Tensor], what: str = "the tensor") -> None:
    """The same for a tensor that is seen part by part."""
    bad = nans = entries = 0
    for W in parts:
        entries += W.numel()
        if not all_finite(W):
            seen = W.float() if W.element_size() == 1 else W
            bad += int((~torch.isfinite(seen)).sum())
            nans += int(torch.isnan(seen).sum())
    if bad:
        kinds = "NaN" if nans == bad else "infinite" if not nans else "NaN or infinite"
        raise InputRefused(f"{what} has {bad} {kinds} of {entries} entries", hint=f"{LEAVE_OUT}, or mend it first")
