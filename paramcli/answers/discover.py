"""discover: which constraints each tensor already satisfies, or nearly does."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from ..catalogue.entry import ConstraintEntry
from ..checkpoint.source import Source, tensor_bytes
from ..dtypes import dtype_name, kind_of
from ..errors import InputRefused, error_context
from ..fitting import measure
from ..fitting.evaluate import effective
from ..fitting.threads import threads_for
from ..maths.base import NEARLY, Check, Constraint, first_of_batch
from ..maths.facts import any_entry, kept
from ..maths.numbers import compute_dtype, eps, wide
from ..registry import ANY, CONSTRAINTS, spec_of, target_class, within
from ..spelling.forms import Group
from ..spelling.opened import Opened
from ..spelling.recurrent import stacked
from ..text import count_text, listing
from ..view import IDENTITY, View
from ..watch import NOBODY, Watch
from ..wording import call, in_python

# Tensors of more entries are looked at by all threads.
LOOK_ALONE = 1 << 22
# The table with the classes behind it.
Sets: TypeAlias = Sequence[tuple[ConstraintEntry, type[Constraint]]]
# Bytes of which a digest is taken before one of all.
BEGINNING = 4096
# A tensor of equal entries: a finding, and no set of the table.
_CONSTANT = "constant"


@dataclass(frozen=True)
class Finding:
    """The structure of one tensor."""

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    holds: tuple[Check, ...]
    nearly: tuple[Check, ...]

    def document(self) -> dict[str, object]:
        def checks(found: Sequence[Check]) -> list[dict[str, object]]:
            return [{"constraint": c.constraint, "residual": c.residual, "tolerance": c.tolerance} for c in found]

        return {
            "tensor": self.tensor,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "holds": checks(self.holds),
            "nearly": checks(self.nearly),
        }


@dataclass(frozen=True)
class DiscoverResult:
    """A finding for each floating tensor; `skipped`: those that could not be looked at, with the reason; `left_out`:
    those of other dtypes, with theirs; `not_tried`: the sets that no look suggests, which only `verify` measures.
    """

    tensors: tuple[Finding, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    not_tried: tuple[str, ...] = ()
    # What else to look at, as it was said.
    said: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What else to look at."""
        return tuple(map(in_python, self.said))

    @property
    def structured(self) -> tuple[Finding, ...]:
        """Those with something to tell."""
        return tuple(finding for finding in self.tensors if finding.holds or finding.nearly)

    def summary(self) -> str:
        return f"{count_text(len(self.structured), 'tensor')} of {len(self.tensors)} with structure"

    def gaps(self, most: int) -> list[tuple[str, str]]:
        """What the findings say nothing of: (heading, text); the first `most` of the sets by name."""
        counts = sorted(Counter(dtype for _, dtype in self.left_out).items())
        dtypes = listing(f"{count} {dtype}" for dtype, count in counts)
        parts = (
            ("left out", len(self.left_out), "tensor", dtypes),
            ("not tried", len(self.not_tried), "set", listing(self.not_tried, most)),
        )
        return [(heading, f"{count_text(count, noun)} ({which})") for heading, count, noun, which in parts if count]

    def document(self) -> dict[str, object]:
        """As --json prints it."""
        left_out = [*((tensor, f"it is {dtype}") for tensor, dtype in self.left_out), *self.skipped]
        return {
            "tensors": [finding.document() for finding in self.tensors],
            "left_out": [{"tensor": tensor, "why": why} for tensor, why in left_out],
            "not_tried": list(self.not_tried),
        }


def discover(
    opened: Opened,
    tensor: Sequence[str] = (),
    *,
    view: View | None = None,
    device: str = "cpu",
    watch: Watch = NOBODY,
) -> DiscoverResult:
    """Look at the tensors that `tensor` names, or at all; `view`: as it shows them alone."""
    chosen = opened.choose(tensor)
    with watch.meter("discover", len(chosen), sum(group.nbytes for group in chosen)) as meter:
        result = findings(opened.source, chosen, device, meter.advance, view)
    opened.source.check_unchanged()
    said = (
        [] if view is not None else list(stacked([g.tensor for g in chosen], opened.groups, "looks at each by itself"))
    )
    if coded := [group.tensor for group in chosen if group.in_codes and not group.problem]:
        bakes = call("remove", opened.source.path)
        said.append(f"looked at is what the codes of {listing(coded, 3)} stand for; {bakes} bakes it")
    return replace(result, said=tuple(said))


@torch.no_grad()
def findings(
    source: Source,
    groups: Sequence[Group],
    device: str = "cpu",
    progress: Callable[[int], None] = lambda nbytes: None,
    view: View | None = None,
) -> DiscoverResult:
    found, skipped, left_out = [], [], []
    every = [(entry, target_class(entry)) for entry in CONSTRAINTS.values()]
    sets = [(entry, cls) for entry, cls in every if _is_tried(cls)]
    seen = _Alike(lambda group: effective(source, group, device))
    for group in groups:
        progress(group.nbytes)
        if kind_of(group.dtype) not in ("float", "half", "complex") and group.odd is None:
            if kind_of(group.dtype) == "packed" and group.is_plain and group.nbytes:
                why = f"it is in codes ({dtype_name(group.dtype)}), and no scale beside it says what they stand for"
                skipped.append((group.tensor, why))
            else:
                left_out.append((group.tensor, dtype_name(group.dtype)))
            continue
        try:
            with error_context(tensor=group.tensor, path=source.path):
                W = effective(source, group, device)
                checks = _checks(W, view, sets)
        except InputRefused as error:
            skipped.append((group.tensor, error.message))
            continue
        same = seen.before(group, W)
        if same is not None and W.numel() > 1 and any_entry(W, lambda part: part != 0):
            checks.append(Check(f"duplicate of {same}", 0.0, 0.0))
        holds = tuple(check for check in checks if check.ok)
        nearly = tuple(check for check in checks if not check.ok and check.residual <= NEARLY)
        found.append(Finding(group.tensor, group.shape, dtype_name(group.dtype), *_strongest(holds, nearly)))
    untried = sorted(entry.name for entry, cls in every if not _is_tried(cls) and entry.name != ANY)
    return DiscoverResult(tuple(found), tuple(skipped), tuple(left_out), tuple(untried))


def _is_tried(cls: type[Constraint]) -> bool:
    """Does a look at a tensor ever suggest the set?"""
    return cls.candidates.__func__ is not Constraint.candidates.__func__  # type: ignore[attr-defined]


class _Alike:
    """Which tensor of those that came before has the same shape, dtype and bytes.

    A digest of all bytes is taken only of those that begin alike: of the first of them then, which is read again.
    """

    def __init__(self, read: Callable[[Group], Tensor]):
        self._read = read
        # Shape, dtype, digest of the beginning -> digest of all, None where it was not needed yet -> the first tensor.
        self._seen: dict[tuple[torch.Size, torch.dtype, bytes], dict[bytes | None, Group]] = {}

    def before(self, group: Group, W: Tensor) -> str | None:
        key = (W.shape, W.dtype, _digest(W.reshape(-1)[: BEGINNING // W.element_size()]))
        alike = self._seen.setdefault(key, {})
        if not alike:
            alike[None] = group
            return None
        if None in alike:
            first = alike.pop(None)
            alike[_digest(self._read(first))] = first
        first = alike.setdefault(_digest(W), group)
        return None if first is group else first.tensor


def _digest(W: Tensor) -> bytes:
    return hashlib.sha256(tensor_bytes(W.cpu().contiguous())).digest()


def _strongest(holds: tuple[Check, ...], nearly: tuple[Check, ...]) -> tuple[tuple[Check, ...], tuple[Check, ...]]:
    """Without what a stronger finding implies: a rotation is orthogonal, has spectral norm 1 and unit rows."""

    def without(found: tuple[Check, ...], by: tuple[Check, ...]) -> tuple[Check, ...]:
        gone = {(implied, view) for name, view in map(_name, by) for implied in _weaker(name)}
        return tuple(check for check in found if _name(check) not in gone)

    holds = without(holds, holds)
    named = {_name(check) for check in holds}
    # A singular one is nearly definite, which says no more than that it is semidefinite.
    named |= {(entry.name, view) for entry in CONSTRAINTS.values() for name, view in named if name == entry.closure}
    return holds, tuple(c for c in without(without(nearly, holds), nearly) if _name(c) not in named)


def _name(check: Check) -> tuple[str, str]:
    """The set without its arguments, and the view that it was seen through."""
    text, _, view = check.constraint.partition(" (")
    return text.partition(":")[0], view


def _weaker(name: str) -> set[str]:
    """The names of every set that contains this one, for some arguments of it."""
    if name == _CONSTANT:
        return {entry.name for entry in CONSTRAINTS.values() if entry.of_constants}
    if name not in CONSTRAINTS:
        return set()
    above = {other for other in CONSTRAINTS if other != name and within(name, other)}
    return above.union(*(CONSTRAINTS[one].implies for one in (name, *above)))


def _checks(W: Tensor, view: View | None, sets: Sets) -> list[Check]:
    if not W.numel() or not measure.all_finite(W):
        return []
    if not any_entry(W, lambda part: part != 0):
        return [Check("zero", 0.0, 0.0)]
    double = W.to(wide(W.dtype, W.device))
    with kept():
        found = [*_of_the_table(W, double, view or IDENTITY, sets)]
        if W.ndim > 2 and view is None:
            # A convolution is one matrix to most who ask, and a batch of small ones to torch.
            found += _of_the_table(W, double, View("flatten"), sets)
    return found + _constant(double, W.dtype)


def _of_the_table(W: Tensor, double: Tensor, view: View, sets: Sets) -> Iterator[Check]:
    """The sets that a look at the tensor suggests, measured as verify measures them."""
    seen = view.into(double)
    # None of the many short looks gives a number that is told, and threads that wait for each other between them take
    # five times the CPU, and on a busy machine far longer.
    with threads_for(seen.shape, small=LOOK_ALONE) as threads:
        alone = threads > torch.get_num_threads()
        near = [one for one in _near_sets(W, seen, view, sets) if not _is_far(one, seen, W.dtype, alone)]
    for candidate in near:
        check = measure.check(spec_of(candidate), W, view, double=seen)
        yield replace(check, constraint=f"{check.constraint} ({view})") if view.name else check


def _near_sets(W: Tensor, seen: Tensor, view: View, sets: Sets) -> Iterator[Constraint]:
    """The sets of the table that a look suggests."""
    several = seen.ndim > 1 and min(seen.shape[-2:]) > 1
    for entry, cls in sets:
        if not (entry.complex if W.is_complex() else entry.real):
            continue
        # One row is symmetric, orthogonal or of rank one for no reason; sets of whole tensors see the same in any view.
        if view.name is not None if cls.whole else not several:
            continue
        for candidate in cls.candidates(seen, W.dtype):
            try:
                candidate.check_shape(seen.shape)
            except InputRefused:
                continue
            yield candidate


def _is_far(candidate: Constraint, seen: Tensor, stored: torch.dtype, alone: bool) -> bool:
    """Does a cheap bound, one matrix of a batch, or one thread where it is `alone`, tell that the set is far?

    A batch is judged by the worst of its matrices, so it is no nearer than the first of them. Bounds are believed where
    they pass by a hundredth, which no rounding explains.
    """
    computed = compute_dtype(stored)
    limit = 1.01 * max(NEARLY, candidate.tolerance(seen.shape, stored, computed))
    if candidate.at_least(seen) > limit:
        return True
    first = seen if candidate.whole else first_of_batch(seen)
    if first.numel() == seen.numel() and not alone:
        return False
    measured = measure.Measured(spec_of(candidate), first.shape, stored, computed)
    measured.add(first)
    [found] = measured.result()
    return found is not None and not found.ok and found.residual > limit


def _constant(double: Tensor, dtype: torch.dtype) -> list[Check]:
    first = double.reshape(-1)[0]

    def differs(part: Tensor) -> Tensor:
        return (part - first).abs() / first.abs().clamp(min=1e-300)

    if double.numel() < 2 or any_entry(double, lambda part: differs(part) > eps(dtype)):
        return []
    gap = differs(double).max().item()
    value = f"{first.item():.6g}" if not dtype.is_complex else str(first.item())
    return [Check(f"{_CONSTANT}:value={value}", gap, eps(dtype))]
