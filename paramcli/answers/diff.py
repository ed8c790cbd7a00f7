"""diff: two checkpoints by their effective weights, whatever the spelling."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from ..checkpoint.disk.interrupts import import_torch
from ..checkpoint.same_bytes import same_bytes
from ..checkpoint.source import Source
from ..dtypes import dtype_name, kind_of
from ..errors import InputRefused
from ..spelling.forms import PLAIN, Group
from ..spelling.opened import Opened, choose_any
from ..text import number_text, shape_text
from ..watch import NOBODY, Watch
from ..wording import LEAVE_OUT, call, in_python

# Two evaluations of one chain (another device, another thread count) differ by this many eps at most: in float32 they
# are sums of another order. Halves are computed in float32 and rounded: each of two is within eps / 2 of that, and one
# that other code computed in half precision within eps. Sixteen of them are an eighth of the weight in bfloat16.
DEFAULT_EPS, HALF_EPS = 16, 2
HALF = 2**-11


@dataclass(frozen=True)
class Difference:
    """One tensor of both files. Distances are None where the tensors cannot be subtracted."""

    tensor: str
    equal: bool
    max_abs: float | None = None
    relative: float | None = None
    detail: str | None = None


@dataclass(frozen=True)
class DiffResult:
    """Two checkpoints by their effective weights. `tensors`: of those that both have, in the order of the first."""

    tensors: tuple[Difference, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    # What explains it, as it was said: another spelling, or a wrapper's prefix and what to type next.
    said: str | None = None

    @property
    def advice(self) -> str | None:
        """What explains it, and what to do next."""
        return self.said and in_python(self.said)

    @property
    def equal(self) -> bool:
        return not self.only_in_a and not self.only_in_b and all(d.equal for d in self.tensors)

    def __bool__(self) -> bool:
        """`assert paramcli.diff(...)` must not pass what differs."""
        return self.equal

    def document(self) -> dict[str, object]:
        """As --json prints it."""
        return {
            "equal": self.equal,
            "tensors": [
                {
                    "tensor": d.tensor,
                    "max_abs": d.max_abs,
                    "relative": d.relative,
                    "equal": d.equal,
                    "detail": d.detail,
                }
                for d in self.tensors
            ],
            "only_in_a": list(self.only_in_a),
            "only_in_b": list(self.only_in_b),
        }

    def summary(self) -> str:
        unequal = [d for d in self.tensors if not d.equal]
        worst = max((d.relative for d in unequal if d.relative is not None), default=None)
        parts = [f"{len(self.tensors) - len(unequal)} equal", f"{len(unequal)} different"]
        only = (("A", self.only_in_a), ("B", self.only_in_b))
        parts += [f"{len(names)} only in {label}" for label, names in only if names]
        if worst is None:  # what was taken for rounding is told too
            worst = max((d.relative for d in self.tensors if d.relative), default=None)
        farthest = f"; largest relative distance {number_text(worst)}" if worst is not None else ""
        return ("equal: " if self.equal else "different: ") + ", ".join(parts) + farthest


def diff(
    one: Opened,
    two: Opened,
    tensor: Sequence[str] = (),
    *,
    tolerance: float | None = None,
    exact: bool = False,
    watch: Watch = NOBODY,
) -> DiffResult:
    """Compare what `tensor` names, or everything. As `paramcli.diff` has it."""
    names = choose_any(tensor, (one, two)) if tensor else {*one.groups, *two.groups}
    groups_a = {name: group for name, group in one.groups.items() if name in names}
    groups_b = {name: group for name, group in two.groups.items() if name in names}
    shared = [name for name in groups_a if name in groups_b]
    found = []
    with watch.meter("diff", len(shared), sum(groups_a[name].nbytes for name in shared)) as meter:
        for name in shared:
            sides = one.source, groups_a[name], two.source, groups_b[name]
            found.append(compare_one(name, *sides, tolerance, exact))
            meter.advance(groups_a[name].nbytes)
    one.source.check_unchanged()
    two.source.check_unchanged()
    only_a = tuple(name for name in groups_a if name not in groups_b)
    only_b = tuple(name for name in groups_b if name not in groups_a)
    result = DiffResult(tuple(found), only_a, only_b)
    return replace(result, said=what_to_say(one, two, names, result))


def same_state(a: Source, one: Group, b: Source, other: Group) -> bool:
    """Are the stored tensors the same, role by role and bit by bit?"""
    if set(one.keys) != set(other.keys):
        return False
    return all(same_bytes(a, key, b, other.keys[role]) for role, key in one.keys.items())


def compare_one(
    name: str, a: Source, one: Group, b: Source, other: Group, tolerance: float | None, exact: bool
) -> Difference:
    """The effective weights of one tensor of two files: equal to the bit, or within the tolerance."""
    spelling = f"{one.form} / {other.form}" if one.form != other.form else None
    if one.shape != other.shape:
        return Difference(name, False, detail=f"shapes {shape_text(one.shape)} / {shape_text(other.shape)}")
    dtypes = f"dtypes {dtype_name(one.dtype)} / {dtype_name(other.dtype)}" if one.dtype != other.dtype else None
    if exact and dtypes:
        return Difference(name, False, detail=dtypes)
    # A plain tensor of an odd name is read as any other.
    unknown = next((group for group in (one, other) if group.problem and not (group.is_plain and group.odd)), None)
    comparable = (
        unknown is not None or (one.is_plain and other.is_plain) or (one.chain, one.view) == (other.chain, other.view)
    )
    if not dtypes and comparable and same_state(a, one, b, other):
        return Difference(name, True, 0.0, 0.0, "compared as stored" if unknown else spelling)
    if unknown is not None:
        # Other originals may still give the same weight: only the chain could tell.
        raise InputRefused(
            f"the stored tensors differ, and their weight is not known: {unknown.problem}",
            hint=LEAVE_OUT,
            tensor=name,
        )
    if not all(kind_of(g.dtype) in ("float", "half", "complex") for g in (one, other)):
        return Difference(name, False, detail=dtypes or f"{dtype_name(one.dtype)} tensors with different bytes")
    return _distance(name, a, one, b, other, tolerance, exact, dtypes or spelling)


def _distance(
    name: str, a: Source, one: Group, b: Source, other: Group, tolerance: float | None, exact: bool, detail: str | None
) -> Difference:
    import_torch()
    import torch

    from ..fitting.evaluate import effective
    from ..fitting.measure import all_finite, length

    with torch.no_grad():
        x, y = effective(a, one), effective(b, other)
        same_bits = exact and torch.equal(*(W.contiguous().reshape(-1).view(torch.uint8) for W in (x, y)))
        eps = max(torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps)
        wide = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
        finite = all_finite(x) and all_finite(y)
        x, y = x.to(wide), y.to(wide)
        if finite:
            size, gap = length(x), x - y
        else:
            if wide.is_complex:
                x, y = torch.view_as_real(x), torch.view_as_real(y)  # a number with one NaN in it has another part
            if not bool(torch.equal(torch.isnan(x), torch.isnan(y))):
                return Difference(name, False, detail="NaN in different places")
            # Equal infinities are no distance apart.
            gap = torch.where((x == y) | torch.isnan(x), torch.zeros_like(x), x - y)
            size = length(torch.where(torch.isfinite(x), x, torch.zeros_like(x)))
        largest = gap.abs().max().item() if gap.numel() else 0.0
        distance = length(gap) if largest else 0.0
    relative = 0.0 if distance == 0 else distance / size if size else float("inf")
    if exact:
        bits = (
            "the same numbers in other bits (the sign of a zero, a NaN's payload)"
            if distance == 0 and not same_bits
            else None
        )
        return Difference(name, same_bits, largest, relative, bits or detail)
    limit = tolerance if tolerance is not None else (DEFAULT_EPS if eps < HALF else HALF_EPS) * eps
    return Difference(name, relative <= limit, largest, relative, detail)


def what_to_say(
    one: Opened, two: Opened, names: Collection[str], result: DiffResult, labels: tuple[str, str] = ("A", "B")
) -> str | None:
    """What explains the result: another spelling, which is no difference, or a wrapper's prefix, and its cure.

    `labels`: what the two are called.
    """
    groups_a, groups_b = ({name: side.groups[name] for name in side.groups if name in names} for side in (one, two))
    shared = [name for name in groups_a if name in groups_b]
    forms = {(groups_a[n].form, groups_b[n].form) for n in shared if groups_a[n].form != groups_b[n].form}
    if result.equal and forms and one.source.beside | two.source.beside:
        return "same weights: what adapters add on one side is in the weights of the other"
    if result.equal and forms:
        if any(PLAIN in pair for pair in forms):
            return "same weights: one file holds them baked, the other parametrized"
        spelt = (", ".join(sorted({pair[side] for pair in forms})) for side in range(2))
        return "same tensors, other spelling: {} in A; {} in B".format(*spelt)
    sides = (
        (result.only_in_b, result.only_in_a, labels[0], one),
        (result.only_in_a, result.only_in_b, labels[1], two),
    )
    for prefix in ("module.", "_orig_mod.", "model."):
        for few, many, label, side in sides:
            if few and {f"{prefix}{name}" for name in few} & set(many):
                convert = call("convert", side.source.path, strip_prefix=prefix, output="OUT")
                return f"the names of {label} carry the prefix {prefix}: {convert}"
    return None
