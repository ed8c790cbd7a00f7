"""A large tensor a block of rows at a time: memory then follows the block, and not the tensor.

For chains all of whose links act on each row (an index of dimension 0) alone, and whose constraint can be measured so.
What is written is what `Step.run` writes, bit for bit, and what is told is the same. A refusal may come at a late
block, when others are written already; nothing of that is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..chain import Chain
from ..checkpoint.source import Source
from ..dtypes import DTYPES, nbytes_of, torch_dtype
from ..errors import ParamcliError
from ..maths.base import MEMBER, Check, compute_dtype, row_blocks, wide
from ..registry import constraint, target_class
from ..spelling.forms import Group
from ..surgery.plan import Rows
from ..view import View
from . import measure
from . import torch_module as hosting
from .evaluate import explain_infinite, weight_of
from .fit import keeper, require_change, require_member
from .originals import evaluate, invert, register_raw, require_preimage, widened
from .reach import require_reached

# Tensors of this many bytes and more are taken in blocks of about so many. Larger blocks are not quicker, and the heap
# keeps several of them: baking 512 MB took 200 MB in all with blocks of 4 MB (150 of them torch), 500 MB with 16.
LARGE, BLOCK_BYTES = 64 << 20, 4 << 20


def sliced_roles(chain: Chain, view: View, shape: Sequence[int]) -> frozenset[str] | None:
    """The roles whose tensors have a row for each row of the weight, the others being given whole to every block.

    None where a link needs other rows too, or the constraint cannot be measured by rows.
    """
    if not shape or not view.keeps_rows:
        return None
    seen = torch.Size(view.shape(shape))
    if chain.constraint is not None and not constraint(chain.constraint).by_rows(seen):
        return None
    roles = set()
    for index, link in enumerate(chain.links):
        names = target_class(link.entry).by_rows(seen, **link.arguments)
        if not names:
            return None
        originals = {name for name in names if name.startswith("original")}
        roles |= originals if index == 0 else set()
        roles |= {f"{index}.{name}" for name in names - originals}
    return frozenset(roles)


def made_by_rows(chain: Chain, view: View, shape: Sequence[int]) -> bool:
    """Can the chain be put on a weight of this shape by rows, where its values can be computed so?"""
    seen = torch.Size(view.shape(shape))
    last = target_class(chain.links[-1].entry)
    # A weight that is off is moved to its nearest point, unless the last map is that move itself.
    projects = chain.constraint is None or last.is_projection or constraint(chain.constraint).projects_by_rows
    return projects and all(target_class(link.entry).made_by_rows(seen, **link.arguments) for link in chain.links)


def row_ranges(group: Group) -> tuple[tuple[int, int], ...]:
    """The blocks of a large tensor; none for one that is not, or has too few rows."""
    if nbytes_of(group.dtype, group.shape) < LARGE or not all(group.shape):
        return ()
    ranges = row_blocks(group.shape, 8 * BLOCK_BYTES // DTYPES[group.dtype].bits)
    return tuple(ranges) if len(ranges) > 1 else ()


def bake_rows(group: Group, chain: Chain, view: View, say: Callable[[Check | None], dict[str, object]]) -> Rows | None:
    """`remove --bake` by rows; None where it cannot be. `say`: what is told of the value's check."""
    roles = sliced_roles(chain, view, group.shape) if (ranges := row_ranges(group)) else None
    if roles is None or not readable(group, roles):
        return None
    stored = hosting.outline(chain, group.shape, torch_dtype(group.dtype), view)
    if {role: tuple(tensor.shape) for role, tensor in stored.items()} != {
        role: tuple(info.shape) for role, info in group.infos.items()
    }:
        return None  # what is wrong with them is said of the whole
    return Rows(
        ranges, lambda source, device, compute: _Baking(source, group, roles, ranges, device, compute, chain, view, say)
    )


def fit_rows(group: Group, chain: Chain, view: View, **how: object) -> Rows | None:
    """`add` by rows on a plain tensor; None where it cannot be. `how`: as `_Fitting` takes it."""
    roles = sliced_roles(chain, view, group.shape) if (ranges := row_ranges(group)) else None
    if roles is None or not made_by_rows(chain, view, group.shape) or not readable(group, frozenset({"value"})):
        return None
    if roles != set(hosting.outline(chain, group.shape, torch_dtype(group.dtype), view)):
        return None  # something that it stores belongs to all rows
    return Rows(
        ranges, lambda source, device, compute: _Fitting(source, group, ranges, device, compute, chain, view, **how)
    )


def readable(group: Group, roles: frozenset[str]) -> bool:
    """Do the sliced tensors lie row after row in the file, as many as the weight has?"""
    infos = [group.infos[role] for role in roles if role in group.infos]
    return len(infos) == len(roles) and all(
        info.run is not None and info.shape and info.shape[0] == group.shape[0] for info in infos
    )


class _Work:
    """Reading a group's tensors by rows, in order and again where something is wrong."""

    def __init__(
        self,
        source: Source,
        group: Group,
        roles: frozenset[str],
        ranges: Sequence[tuple[int, int]],
        device: object,
        compute: str,
    ):
        self.source, self.group, self.ranges, self.device, self.compute = source, group, ranges, device, compute
        self.sliced = roles
        self._whole = {role: source.read(key) for role, key in group.keys.items() if role not in roles}

    def read(self, first: int, end: int) -> dict[str, Tensor]:
        """The group's tensors by role, the sliced ones of these rows."""
        return {
            role: self.source.read_rows(key, first, end) if role in self.sliced else self._whole[role]
            for role, key in self.group.keys.items()
        }

    def on_device(self, block: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {role: tensor.to(self.device) for role, tensor in block.items()}

    def blocks(self, after: int = -1) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Every block, or those after the one that begins at row `after`, each with its first row."""
        for first, end in self.ranges:
            if first > after:
                yield first, self.read(first, end)

    def parts(self, role: str) -> Iterator[Tensor]:
        """One tensor, in its blocks."""
        if role not in self.sliced:
            yield self._whole[role]
            return
        for first, end in self.ranges:
            yield self.source.read_rows(self.group.keys[role], first, end)


class _Baking(_Work):
    """`Bake`'s run, by rows."""

    def __init__(self, source, group, roles, ranges, device, compute, chain: Chain, view: View, say: Callable):
        super().__init__(source, group, roles, ranges, device, compute)
        self.chain, self.view, self.say = chain, view, say
        stored = torch_dtype(group.dtype)
        self.check = measure.GatheredCheck(
            chain.constraint, torch.Size(view.shape(group.shape)), stored, compute_dtype(stored, compute)
        )

    def make(self, first: int, block: Mapping[str, Tensor]) -> dict[str, Tensor]:
        state = self.on_device(block)
        if not all(measure.all_finite(tensor) for tensor in state.values()):
            self._refuse()
        part = replace(self.group, shape=(len(state[min(self.sliced)]), *self.group.shape[1:]))
        value = weight_of(part, state, self.chain, self.view, self.compute)
        self.check.add(self.view.into(value))
        if not self.check.finite:
            self._refuse()
        return {self.group.tensor: value}

    def _refuse(self) -> None:
        """Say of the whole what is wrong with a block: first of the originals, then of the value."""
        for role in self.group.keys:
            measure.require_finite_parts(self.parts(role), f"'{role}'")
        explain_infinite(self.group, self.blocks())

    def told(self) -> dict[str, object]:
        return self.say(self.check.result())


class _Fitting(_Work):
    """`fit` of a plain tensor, by rows."""

    def __init__(
        self,
        source: Source,
        group: Group,
        ranges: Sequence[tuple[int, int]],
        device: object,
        compute: str,
        chain: Chain,
        view: View,
        *,
        init: str,
        seed: int,
        max_change: float | None,
        keeps_zeros: bool,
        give: Callable,
        say: Callable,
    ):
        """`give`: the block's tensors by role -> by key; `say(moved, check, note, finite, full)`: what is told of them."""
        super().__init__(source, group, frozenset({"value"}), ranges, device, compute)
        self.chain, self.view, self.init, self.seed, self.max_change, self.give, self.say = (
            chain,
            view,
            init,
            seed,
            max_change,
            give,
            say,
        )
        self.stored = torch_dtype(group.dtype)
        seen = torch.Size(view.shape(group.shape))
        self.projects = target_class(chain.links[-1].entry).is_projection
        self.before = measure.GatheredCheck(chain.constraint, seen, self.stored, compute_dtype(self.stored))
        self.check = measure.GatheredCheck(chain.constraint, seen, self.stored, compute_dtype(self.stored, compute))
        self.moved, self.kept, self.missed = measure.Moved(), measure.Moved(), measure.Moved()
        self.trips = {index: measure.Moved() for index in range(len(chain))}
        self.full = keeps_zeros  # asked of a mask alone: does it keep every entry?

    def make(self, first: int, block: Mapping[str, Tensor]) -> dict[str, Tensor]:
        W = block["value"].to(self.device)
        try:
            measure.require_finite(W)
            with torch.no_grad(), hosting.generators_kept(W.device):
                state = self._state(W, first)
                value = evaluate(self.chain, self.view, W.shape, state, W.dtype, self.compute)
        except ParamcliError:
            # What would be said of the whole before it: how many entries are not finite, or that it is no member.
            measure.require_finite_parts(self.parts("value"))
            if self.init != "raw":
                for _, rest in self.blocks(after=first):
                    self._look(rest["value"].to(self.device))
                self._require_member()
            raise
        self.moved.add(value, W)
        self.check.add(self.view.into(value))
        if self._target is not None:
            self.missed.add(self.view.into(value), self._target)
            self._target = None
        self.full = self.full and bool(value.all())
        return self.give(state)

    def _state(self, W: Tensor, first: int) -> dict[str, Tensor]:
        self._target = None
        if self.init == "raw":
            return widened(register_raw(W, self.chain, self.view, self.seed, self.compute), W.dtype)
        seen, residual = self._look(W)
        if residual > MEMBER and not self.projects:
            seen = measure.project(self.chain.constraint, seen)
        state = widened(
            invert(self.chain, seen, self.seed, self.view, W.shape, first_row=first, judge=self._judge), W.dtype
        )
        self._target = None if self.projects else seen
        return state

    def _look(self, W: Tensor) -> tuple[Tensor, float]:
        """A block as the maths sees it, in double precision, and how far it is from the constraint."""
        shown = self.view.into(W)
        self.before.add(shown)
        residual = 0.0 if self.projects else self.before.last(shown.shape)
        seen = shown.to(wide(W.dtype, W.device))
        if self.init == "strict":
            hosting.start_generators(self.seed, W.device)
            self.kept.add(self.chain.links[-1].make(seen).map(seen) if self.projects else seen, seen)
        return seen, residual

    def _judge(self, index: int, back: Tensor, wanted: Tensor) -> None:
        self.trips[index].add(back, wanted)

    def _require_member(self) -> None:
        if self.init != "strict":
            return
        held = self.before.result()
        if held is None or held.ok:
            require_member(held, self.kept.result(), self.stored)
            return
        # Why it is off, and which chain keeps it, can be said of the whole alone; nothing more is to be made of it.
        W, spec = torch.cat(list(self.parts("value"))).to(self.device), self.chain.constraint
        require_member(
            measure.check(spec, W, self.view), self.kept.result(), self.stored, lambda: keeper(spec, W, self.view)
        )

    def told(self) -> dict[str, object]:
        self._require_member()
        for index in reversed(self.trips):
            require_preimage(self.chain.links[index], self.trips[index].result())
        change, check = self.moved.result(), self.check.result()
        require_change(change, self.max_change)
        note = None if self.init == "raw" else require_reached(self.chain, self.stored, self.missed.result, check)
        return self.say(change, check, note, self.check.finite, self.full)
