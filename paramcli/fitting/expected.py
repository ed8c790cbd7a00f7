"""A tensor that adapters change: what it should be, what it is, and how far one is from the other.

    W   the base's value      E(k)   the value with the adapters at k times their strengths      M   what is there

Everything is computed in double precision, a block of rows at a time where the chain goes by rows, and told to
`strengths.Allowed`, which knows what rounding explains. Nothing is known of any family but its chain at two strengths.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..allocator import Holes
from ..chain import Chain
from ..checkpoint.source import Rows, Source
from ..errors import error_context
from ..maths.numbers import eps, smallest
from ..maths.rows import Share
from ..spelling.forms import PARAMETRIZED, Group
from ..view import View
from . import measure
from .blocks import Batch, bake_ranges, sliced_roles
from .evaluate import chain_of, effective, naming, read_role, read_state, settle, weight_of
from .originals import widened
from .strengths import PART, Allowed, Arithmetic, half_spacing, roundoff

# The step by which a chain's derivative by its strength is taken.
STEP = 2.0**-10
# Where a block of a large tensor is what a merge computes, bit for bit, one row in so many is looked at more closely.
FEWER = 16
# Half precision is looked for in one part of so many.
SOME = 8
# What a transform (FFT) is off by in every entry, as a share of the largest: the unit roundoff of float32.
SPREAD = 2.0**-24
# How exactly a change is the same on two weights, in double precision, where it does not depend on the weight.
SAME = 1e-9


@dataclass(frozen=True)
class Side:
    """One tensor of one file."""

    source: Source
    group: Group


@dataclass
class Touched:
    """One tensor that adapters change.

    `group`: the adapters' parametrizations alone, on the base's value as their original; `at`: the chain at so many
    times their strengths, None where it has none.
    """

    group: Group
    base: Side
    merged: Side
    source: Source
    at: Callable[[float], Chain | None]
    device: torch.device | str = "cpu"
    # Strengths that others of the file were found at, which are tried first.
    known: list[float] = field(default_factory=list)
    # Chain, view and shape -> is the change the same whatever the weight? Known once it was asked of a block.
    kinds: dict[tuple[Chain, View, tuple[int, ...]], bool] = field(default_factory=dict)
    holes: Holes = field(default_factory=Holes)

    @property
    def adds(self) -> bool | None:
        return self.kinds.get(self._kind)

    @adds.setter
    def adds(self, found: bool) -> None:
        self.kinds[self._kind] = found

    @property
    def _kind(self) -> tuple[Chain, View, tuple[int, ...]]:
        return self.chain, self.group.view, tuple(self.group.shape)

    @property
    def chain(self) -> Chain:
        return chain_of(self.group)

    @functools.cached_property
    def factors(self) -> torch.dtype:
        """The widest dtype of the adapters' tensors."""
        from ..dtypes import torch_dtype

        found = [torch_dtype(info.dtype) for role, info in self.group.infos.items() if role != "original"]
        return min((dtype for dtype in found if dtype.is_floating_point), key=eps, default=torch.float32)


@dataclass(frozen=True)
class Block:
    """Some rows of a tensor, or all of it: its values as stored, and the base's before it was rounded."""

    group: Group
    base: Tensor
    exact: Tensor
    state: Mapping[str, Tensor]
    merged: Tensor
    first_row: int = 0
    # The adapters' tensors that have a share of each of these rows.
    sliced: Mapping[str, Share] = field(default_factory=dict)

    def fewer(self) -> Block:
        """The first of its rows."""
        step = math.lcm(*(share.each for share in self.sliced.values()))
        count = max(1, self.group.shape[0] // FEWER // step) * step
        if count >= self.group.shape[0]:
            return self
        return replace(
            self,
            group=replace(self.group, shape=(count, *self.group.shape[1:])),
            base=self.base[:count],
            exact=self.exact[:count],
            state={
                role: self.sliced[role].part(tensor, 0, count) if role in self.sliced else tensor
                for role, tensor in self.state.items()
            },
            merged=self.merged[:count],
        )


def of_adapters(group: Group, before: int) -> Group:
    """A group that adapters are attached to, without the first so many links, which are the base's own."""
    assert group.chain is not None
    roles = {role: _moved(role, before) for role in group.keys if _index(role) >= before}
    return replace(
        group,
        form=PARAMETRIZED,
        keys={"original": group.tensor, **{new: group.keys[role] for role, new in roles.items()}}
        if before
        else dict(group.keys),
        infos={new: group.infos[role] for role, new in roles.items()} if before else dict(group.infos),
        chain=Chain(group.chain.links[before:]),
        nested={},
    )


def _index(role: str) -> int:
    """-1 of what is no link's own."""
    number = role.partition(".")[0]
    return int(number) if number.isdigit() else -1


def _moved(role: str, by: int) -> str:
    number, _, name = role.partition(".")
    return f"{int(number) - by}.{name}"


def without(group: Group, keys: set[str]) -> Group | None:
    """The group without the links whose tensors these are; None where none is left."""
    assert group.chain is not None
    gone = {_index(role) for role, key in group.keys.items() if key in keys}
    kept = [index for index in range(len(group.chain)) if index not in gone]
    if not kept:
        return None
    place = {old: new for new, old in enumerate(kept)}
    roles = {
        role: role if role == "original" else _moved(role, _index(role) - place[_index(role)])
        for role in group.keys
        if role == "original" or _index(role) in place
    }
    return replace(
        group,
        keys={new: group.keys[role] for role, new in roles.items()},
        infos={new: group.infos[role] for role, new in roles.items() if role in group.infos},
        chain=Chain(tuple(group.chain.links[index] for index in kept)),
    )


def blocks(touched: Touched) -> Iterator[Block]:
    """The tensor, a block of rows after another where the chain goes by rows, or whole.

    Raises InputRefused for NaN and infinity in the base or in the adapters, as a merge does.
    """
    group, base, merged = touched.group, touched.base, touched.merged
    with torch.no_grad():
        ranges = bake_ranges(group, touched.chain, group.view) if base.group.is_plain else ()
        sliced = sliced_roles(touched.chain, group.view, group.shape) if ranges else None
        for info in group.infos.values() if ranges else ():
            touched.source.check_storage(info.storage)
        rows_of = _rows_of(merged, ranges)
        if base.group.is_plain:
            batch = Batch(touched.source, [group], group.view, touched.device, ranges, sliced or {})
            for rows in ranges or (None,):
                with error_context(tensor=group.tensor, path=base.source.path):
                    state = batch.on_device(batch.read(rows))
                    _require_finite(touched.source, group, state)
                shape = group.shape if rows is None else (rows[1] - rows[0], *group.shape[1:])
                W, first = state.pop("original"), 0 if rows is None else rows[0]
                part, M = replace(group, shape=shape), rows_of(rows).to(W.device)
                yield Block(part, W, W.to(torch.float64), state, M, first, sliced or {})
                touched.holes.tidy(8 * W.numel())
            return
        with error_context(tensor=group.tensor, path=base.source.path):
            W, exact = _values(base, touched.device)
            roles = [role for role in group.own_roles if role != "original"]
            state = {role: read_role(touched.source, group, role).to(touched.device) for role in roles}
            _require_finite(touched.source, group, {"original": W, **state})
        yield Block(group, W, exact, state, rows_of(None).to(W.device))


def _require_finite(source: Source, group: Group, state: Mapping[str, Tensor]) -> None:
    for role, tensor in state.items():
        with naming(source, group, role) as key:
            measure.require_finite(tensor, f"its {key}")


def _rows_of(side: Side, ranges: Sequence[tuple[int, int]]) -> Callable[[Rows], Tensor]:
    """Rows of the value that a file has; read as they are asked for where it is a plain tensor."""
    group, source = side.group, side.source
    if ranges and group.is_plain and group.infos["value"].run is not None:
        source.check_storage(group.infos["value"].storage)
        return lambda rows: source.read_rows(group.keys["value"], *rows) if rows else source.read(group.keys["value"])
    with error_context(tensor=group.tensor, path=source.path):
        whole = effective(source, group)
    return lambda rows: whole if rows is None else whole[rows[0] : rows[1]]


def _values(side: Side, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(the value of a parametrized tensor as stored, the same in double precision)"""
    state = read_state(side.source, side.group, device)
    chain, view = settle(side.group, state)
    return weight_of(side.group, state, chain, view), weight_of(side.group, widened(state, torch.float64), chain, view)


class Model:
    """E(k) of one block, as one arithmetic has its W and its adapters' tensors."""

    def __init__(self, touched: Touched, block: Block, arithmetic: Arithmetic):
        self.touched, self.block, self.view = touched, block, touched.group.view
        cast = arithmetic.change if arithmetic.cast else None
        self.state = {role: tensor if cast is None else tensor.to(cast) for role, tensor in block.state.items()}
        narrower = eps(arithmetic.sum) > eps(block.base.dtype)
        self.W = block.exact.to(arithmetic.sum).to(torch.float64) if narrower else block.exact
        self._made: dict[float, tuple[Tensor, Tensor | None, float]] = {}

    def value(self, chain: Chain, W: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """The chain on a weight, in one dtype throughout."""
        state = widened({"original": W, **self.state}, dtype)
        return weight_of(self.block.group, state, chain, self.view).to(torch.float64)

    def of(self, group: Group) -> Tensor:
        """The same of another group over these tensors, which has fewer links, or another view."""
        block, roles = self.block, {key: role for role, key in self.touched.group.keys.items()}
        part = replace(group, shape=block.group.shape)
        tensors = {role: self.state[roles[key]] for role, key in group.keys.items() if role != "original"}
        state = widened({"original": self.W, **tensors}, torch.float64)
        return weight_of(part, state, chain_of(part), part.view)

    def at(self, strength: float) -> tuple[Tensor, Tensor | None, float]:
        """(E, its derivative by the strength, how far float32 is off)"""
        if self.adds():
            D, off = self._added
            return self.W + strength * D, D, off
        if strength not in self._made:
            chain = self.touched.chain if strength == 1 else self.touched.at(strength)
            assert chain is not None  # asked for where there is one
            E = self.value(chain, self.W)
            off = _largest(self.value(chain, self.W, torch.float32) - E)
            more = self.touched.at(strength + STEP)
            slope = None if more is None else (self.value(more, self.W) - E) / STEP
            self._made = {strength: (E, slope, off)}
        return self._made[strength]

    @functools.cached_property
    def _added(self) -> tuple[Tensor, float]:
        zero = torch.zeros_like(self.W)
        D = self.value(self.touched.chain, zero)
        return D, _largest(self.value(self.touched.chain, zero, torch.float32) - D) + SPREAD * _largest(D)

    def adds(self) -> bool:
        """Is the change the same whatever the weight? Asked of a weight of the block's size that is not the block's."""
        known = self.touched.adds
        if known is None:
            size = _largest(self.W) or 1.0
            probe = size * torch.arange(self.W.numel(), dtype=torch.float64, device=self.W.device).cos()
            probe = probe.reshape(self.W.shape)
            D = self._added[0]
            off = _largest(self.value(self.touched.chain, probe) - probe - D)
            self.touched.adds = known = off <= SAME * (size + _largest(D))
        return known


def _largest(values: Tensor) -> float:
    return values.abs().max().item() if values.numel() else 0.0


@dataclass
class Look:
    """What one pass over a tensor has seen: what each arithmetic allows, and sums."""

    at: float
    allowed: dict[Arithmetic, Allowed]
    # Is every bit the base's, and every entry finite?
    unchanged: bool = True
    finite: bool = True
    entries: int = 0
    differing: int = 0
    # Squares and products: M - W with itself and with E - W, that with itself, M - E with itself.
    moved: float = 0.0
    along: float = 0.0
    wanted: float = 0.0
    off: float = 0.0
    # M - round(E) and E's derivative: their product, and the latter's square.
    pull: float = 0.0
    slope: float = 0.0

    @property
    def residual(self) -> float:
        """||M - E|| / ||E - W||"""
        return 0.0 if self.off == 0 else math.sqrt(self.off / self.wanted) if self.wanted else math.inf

    @property
    def explained(self) -> float:
        """How much of M - W is along E - W: a share of its square."""
        return self.along**2 / (self.moved * self.wanted) if self.moved and self.wanted else 0.0

    def within(self) -> Arithmetic | None:
        """The first arithmetic that explains every entry."""
        return next((how for how, allowed in self.allowed.items() if allowed.within), None)


def look(touched: Touched, ways: Sequence[Arithmetic], strength: float = 1.0, closely: bool = True) -> Look:
    """Compare every entry with E(strength), as each of these arithmetics may have rounded it.

    Not `closely`: of blocks that are bit for bit what a merge computes (E in single precision, rounded once), which is
    within what rounding explains, strengths and sums are those of some rows.
    """
    seen = Look(strength, {how: Allowed(strength) for how in ways})
    for block in blocks(touched):
        M, W = block.merged.reshape(-1), block.base.reshape(-1)
        if not measure.all_finite(M):
            return replace(seen, finite=False, unchanged=False)
        same = _same_bits(M, W.to(M.dtype))
        differing = len(M) - int(same.sum())
        seen.unchanged = seen.unchanged and not differing
        seen.differing += differing
        seen.entries += len(M)
        if not closely and block.sliced and _is_computed(touched, block, strength):
            block = block.fewer()
        for number, (model, how) in enumerate(_models(touched, block, ways)):
            _compare(seen, block, model, how, strength, not number)
    return seen


def _is_computed(touched: Touched, block: Block, strength: float) -> bool:
    """Is the block what merging gives, bit for bit?"""
    chain = touched.chain if strength == 1 else touched.at(strength)
    if chain is None or block.merged.dtype != block.base.dtype:
        return False
    made = weight_of(block.group, {"original": block.base, **block.state}, chain, touched.group.view)
    return bool(_same_bits(made.reshape(-1), block.merged.reshape(-1)).all())


def _compare(seen: Look, block: Block, model: Model, how: Arithmetic, strength: float, sums: bool) -> None:
    E, slope, off = model.at(strength)
    adds, allowed, M = model.adds(), seen.allowed[how], block.merged.reshape(-1)
    typical = 0.0 if slope is None or adds else slope.square().mean().sqrt().item()
    every = M, model.W.reshape(-1), E.reshape(-1), None if slope is None else slope.reshape(-1)
    for number, (M_part, W_part, E_part, slope_part) in enumerate(_parts(*every)):
        part = Part(M_part.to(torch.float64), W_part, E_part, slope_part, M.dtype)
        tolerance, change = part.tolerance(how, strength, off, adds, typical)
        allowed.add(part.M - part.E, part.slope, tolerance, part.M - part.W)
        if how.change is None and number % SOME == 0:
            part.count_coarse(allowed, tolerance, change)
        if sums:
            part.sum_up(seen)


def _models(touched: Touched, block: Block, ways: Sequence[Arithmetic]) -> Iterator[tuple[Model, Arithmetic]]:
    """The model of each arithmetic; those that compute the same values share one, and one at a time is kept."""
    model, made = None, None
    for how in ways:
        key = how.cast, how.change if how.cast else None, how.sum
        if model is None or key != made:
            model, made = Model(touched, block, how), key
        yield model, how


def _same_bits(one: Tensor, other: Tensor) -> Tensor:
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return one.contiguous().view(kind) == other.contiguous().view(kind)


def _parts(*tensors: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    M, W, E, slope = tensors
    assert M is not None and W is not None and E is not None
    for at in range(0, len(M), PART):
        place = slice(at, at + PART)
        yield M[place], W[place], E[place], None if slope is None else slope[place]


@dataclass
class Part:
    """Entries that are compared at once, flat, in double precision; M was stored as `stored`."""

    M: Tensor
    W: Tensor
    E: Tensor
    slope: Tensor | None
    stored: torch.dtype

    def tolerance(
        self, how: Arithmetic, strength: float, off: float, adds: bool, typical: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """(t as `strengths` derives it, the sizes of the change)"""
        u, scale = roundoff(how.computed), max(1.0, abs(strength))
        size = self.E.abs()
        t = half_spacing(self.M, self.stored)
        if how.sum != self.stored:
            t += half_spacing(self.M, how.sum)
        t += size * (u if adds else 8 * u)
        t += 8 * off * (scale if adds else 1.0) * (u / roundoff(torch.float32))
        change = torch.zeros_like(size) if self.slope is None else self.slope.abs() * scale
        if how.change is not None:
            t += 4 * roundoff(how.change) * (change + typical * scale) + 4 * smallest(how.change) * scale
        if how.throughout:
            t += 4 * roundoff(how.sum) * size
        return t, change

    def count_coarse(self, allowed: Allowed, tolerance: Tensor, change: Tensor) -> None:
        """Count the entries in which half precision would show, and those of them that are astray."""
        off = (self.M - self.E).abs() > tolerance
        for (half, throughout), (shown, astray) in allowed.coarse.items():
            size, least = (self.E.abs(), tolerance) if throughout else (change, 4 * tolerance)
            visible = size * roundoff(half) >= least
            allowed.coarse[half, throughout] = shown + int(visible.sum()), astray + int((visible & off).sum())

    def sum_up(self, seen: Look) -> None:
        moved, wanted, gap = self.M - self.W, self.E - self.W, self.M - self.E
        seen.moved += torch.dot(moved, moved).item()
        seen.along += torch.dot(moved, wanted).item()
        seen.wanted += torch.dot(wanted, wanted).item()
        seen.off += torch.dot(gap, gap).item()
        if self.slope is not None:
            rounded = self.M - self.E.to(self.stored).to(torch.float64)
            seen.pull += torch.dot(rounded, self.slope).item()
            seen.slope += torch.dot(self.slope, self.slope).item()
