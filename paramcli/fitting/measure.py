"""Measuring a tensor against a constraint, in double precision on the value as stored."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..chain import Chain
from ..errors import InputRefused
from ..maths.base import Check, Part, compute_dtype, norm, wide
from ..registry import CONSTRAINTS, constraint
from ..text import shape_text
from ..view import IDENTITY, View

# Entries that are compared at once.
BLOCK = 1 << 18


def check(
    spec: str, W: Tensor, view: View = IDENTITY, tolerance: float | None = None, computed: torch.dtype | None = None
) -> Check:
    """How far W (in its stored dtype and shape) is from the constraint, against what rounding explains.

    Raises InputRefused for a shape that cannot lie in the set, and for a tensor without entries.
    """
    wanted = constraint(spec).as_stored(W.dtype)
    if W.numel() == 0:
        raise InputRefused(f"the tensor has no entries (it is {shape_text(W.shape)}): nothing to measure")
    require_scalars(spec, W.dtype)
    seen = view.into(W)
    wanted.check_shape(seen.shape)
    kinds = W.dtype, computed or compute_dtype(W.dtype)
    if not all_finite(W):
        explained = wanted.tolerance(seen.shape, *kinds) if tolerance is None else tolerance
        return Check(spec, float("nan"), explained, "NaN or infinity in the tensor")
    seen = seen.to(wide(W.dtype, W.device))
    parts = wanted.parts(seen, *kinds)
    if tolerance is not None:
        parts = [replace(part, tolerance=tolerance) for part in parts]
    found = judged(parts)
    worst = max(range(len(found)), key=lambda index: _weight(found[index]))
    made = Check(spec, *found[worst])
    if made.ok and not wanted.tells:
        return made
    detail = wanted.detail(seen)
    if detail is None and len(found) > 1:
        detail = f"matrix {worst} of {len(found)} is the worst"
    return replace(made, detail=detail)


def checks(spec: str, stack: Tensor, computed: torch.dtype) -> list[Check]:
    """`check` of each tensor of a stack, as the view shows it; details are left to who measures one alone."""
    parts = (
        constraint(spec).as_stored(stack.dtype).parts(stack.to(wide(stack.dtype, stack.device)), stack.dtype, computed)
    )
    found = judged(parts)
    matrices = len(found) // len(stack)
    return [Check(spec, *max(found[first : first + matrices], key=_weight)) for first in range(0, len(found), matrices)]


def judged(parts: Sequence[Part]) -> list[tuple[float, float]]:
    """(residual, tolerance) of each matrix of the batch: those of the condition that it is worst at."""
    by_part = [[(residual, part.tolerance) for residual in part.residual.reshape(-1).tolist()] for part in parts]
    return by_part[0] if len(parts) == 1 else [max(of_matrix, key=_weight) for of_matrix in zip(*by_part)]


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
        raise InputRefused(
            f"{entry.name} is a set of {'real' if dtype.is_complex else 'complex'} tensors, and this one is {str(dtype)[6:]}"
        )


class GatheredCheck:
    """`image_check` of a value of which a block of rows is seen at a time, for constraints that can be measured so."""

    def __init__(self, spec: str | None, shape: torch.Size, stored: torch.dtype, computed: torch.dtype):
        """`shape`: the whole tensor's, as the view shows it."""
        self.spec, self.shape, self.finite = spec, shape, True
        self._wanted = constraint(spec or "any").as_stored(stored)
        self._tolerance = self._wanted.tolerance(shape, stored, computed)
        self._parts: list = []  # numbers, as in `Moved`

    def add(self, block: Tensor) -> None:
        """Take note of a block (in its stored dtype, as the view shows it), where all is finite so far."""
        self.finite = self.finite and all_finite(block)
        if self.finite and self.spec is not None:
            self._parts.append(self._wanted.part(block.to(wide(block.dtype, block.device))).tolist())

    def last(self, shape: torch.Size) -> float:
        """The residual of the last block, of this shape, as a tensor by itself: for sets that each row is in or not.

        A count of entries over the whole tensor says nothing of a block, so this is asked only where blocks are
        projected.
        """
        if not self._parts:
            return 0.0
        return self._wanted.joined(torch.tensor(self._parts[-1:], dtype=torch.float64, device="cpu"), shape).item()

    def result(self) -> Check | None:
        if not self.finite:
            return Check(self.spec or "any", float("nan"), self._tolerance, "NaN or infinity in the tensor")
        if self.spec is None:
            return None
        return Check(
            self.spec,
            self._wanted.joined(torch.tensor(self._parts, dtype=torch.float64, device="cpu"), self.shape).item(),
            self._tolerance,
        )


def image_check(chain: Chain, value: Tensor, view: View, compute: str = "same") -> Check | None:
    """The chain's own claim on its value; None where there is nothing to measure: any finite tensor, or no entry."""
    chain = chain.at(view.shape(value.shape))
    if not value.numel() or (chain.constraint is None and all_finite(value)):
        return None
    return check(chain.constraint or "any", value, view, computed=compute_dtype(value.dtype, compute))


def project(spec: str, W: Tensor) -> Tensor:
    """The nearest point of the constraint to W (as the view shows it, in double precision)."""
    return constraint(spec).project(W)


def nearest(spec: str, W: Tensor, stored: torch.dtype) -> tuple[Tensor, str | None]:
    """(the same for a W that was rounded to `stored`, what had to be assumed of what rounding took away)"""
    return constraint(spec).nearest(W, stored)


class Moved:
    """`moved` of tensors of which one part after another is seen; the same number however they are parted."""

    def __init__(self):
        # Of each BLOCK of entries. No tensors: small ones that stay, between large ones that go, would leave holes in
        # the heap that no large one fits into again, a gigabyte of them for a tensor of half that size.
        self._distances: list[float] = []
        self._sizes: list[float] = []
        # Entries that do not fill a block yet.
        self._rest: tuple[Tensor, Tensor] | None = None

    def add(self, after: Tensor, before: Tensor) -> None:
        after, before = after.flatten(), before.flatten()
        if self._rest is not None:
            missing = BLOCK - len(self._rest[0])
            first = tuple(torch.cat([rest, more[:missing]]) for rest, more in zip(self._rest, (after, before)))
            after, before, self._rest = after[missing:], before[missing:], None
            self._take(*first)
        self._take(after, before)

    def _take(self, after: Tensor, before: Tensor) -> None:
        full = len(after) - len(after) % BLOCK
        self._measure(after[:full], before[:full])
        if full < len(after):
            self._rest = after[full:].clone(), before[full:].clone()  # no view, which would keep all of it in memory

    def _measure(self, after: Tensor, before: Tensor) -> None:
        double = wide(before.dtype, before.device)
        distances, sizes = [], []
        # In blocks: a whole tensor in double precision, three times over, would be the peak of most edits.
        for a, b in zip(after.split(BLOCK), before.split(BLOCK)):
            b = b.to(double)
            distances.append(_length(a.to(double) - b))
            sizes.append(_length(b))
        if len(after):
            self._distances += torch.stack(distances).tolist()
            self._sizes += torch.stack(sizes).tolist()

    def result(self) -> float:
        if self._rest is not None:
            self._measure(*self._rest)
            self._rest = None
        distance, size = (
            _length(torch.tensor(parts, dtype=torch.float64, device="cpu")).item()
            for parts in (self._distances, self._sizes)
        )
        return 0.0 if distance == 0 else distance / size if size else float("inf")


def _length(values: Tensor) -> Tensor:
    """The norm of a vector; where its squares leave the range of numbers, with a scale taken out first."""
    plain = torch.linalg.vector_norm(values)
    return plain if 1e-140 < plain.item() < 1e140 else norm(values, (0,))


def moved(after: Tensor, before: Tensor) -> float:
    """||after - before||_F / ||before||_F in double precision; 0 for equal tensors, inf where before is zero."""
    both = Moved()
    both.add(after, before)
    return both.result()


def moved_of_each(after: Tensor, before: Tensor) -> list[float]:
    """`moved` of each tensor of a stack."""
    double = wide(before.dtype, before.device)
    after, before = after.to(double).flatten(1), before.to(double).flatten(1)
    distances, sizes = norm(after - before, (1,)).tolist(), norm(before, (1,)).tolist()
    return [0.0 if not d else d / size if size else float("inf") for d, size in zip(distances, sizes)]


def all_finite(W: Tensor) -> bool:
    """Is no entry NaN or infinite? By the extremes: one pass, twenty times quicker than asking every entry."""
    if not W.numel() or not (W.is_floating_point() or W.is_complex()):
        return True
    # A conjugate or an 8-bit float has no extremes of its own.
    seen = torch.view_as_real(W.resolve_conj()) if W.is_complex() else W.float() if W.element_size() == 1 else W
    return all(math.isfinite(extreme) for extreme in torch.stack(torch.aminmax(seen)).tolist())


def require_finite(W: Tensor, what: str = "the tensor") -> None:
    """Raise InputRefused naming how many entries are NaN or infinite."""
    require_finite_parts([W], what)


def require_finite_parts(parts: Iterable[Tensor], what: str = "the tensor") -> None:
    """The same for a tensor that is seen part by part."""
    bad = nans = entries = 0
    for W in parts:
        entries += W.numel()
        if not all_finite(W):
            bad += int((~torch.isfinite(W)).sum())
            nans += int(torch.isnan(W).sum())
    if bad:
        kinds = "NaN" if nans == bad else "infinite" if not nans else "NaN or infinite"
        raise InputRefused(
            f"{what} has {bad} {kinds} of {entries} entries", hint="leave it out with -t, or mend it first"
        )
