"""What is computed at once: a tensor whole, one that is large a block of rows at a time, or many small ones together.

Memory then follows the block, and not the tensor; and what surrounds the maths of a 64 x 64 matrix, ten times the
maths itself, is spent once for many. What is written is what each tensor gets whole and alone, bit for bit, and what
is told is the same, but for the last digit of a distance. A refusal may come at a late block, when others are written
already; nothing of that is published.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from ..chain import Chain
from ..checkpoint.columns import read_columns
from ..checkpoint.source import Rows, Source, TensorInfo
from ..dtypes import DTYPES, nbytes_of, torch_dtype
from ..maths.numbers import compute_dtype
from ..maths.rows import Share, row_blocks
from ..registry import constraint, target_class
from ..spelling.forms import Group
from ..view import IDENTITY, View
from .evaluate import Tensors, as_held, read_role, read_state
from .skeleton import outline

# Tensors of this many bytes and more are taken in blocks of about so many, counted in 4 bytes an entry or more, as they
# are computed with. Larger blocks are not quicker, and the heap keeps several of them: baking 512 MB took 200 MB in all
# with blocks of 4 MB (150 of them torch), 500 MB with 16. And what is made of a block has to stay below
# `allocator.LARGE`: from there on memory is faulted in anew for every block, at several times what the maths costs.
LARGE, BLOCK_BYTES = 8 << 20, 4 << 20
# What has the weight's rows in columns is read whole up to so many bytes: to read columns takes a call for each row.
HELD = 32 << 20
# Up to this side the batched kernels give every matrix the bits that it gets alone; above it there is nothing to gain.
SIDE = 128
# Of a batch every matrix has to begin where one alone may: before a multiple of so many bytes LAPACK's kernels take
# entries by other code, which rounds otherwise. (With an odd side, in float64 from 9 on and in float32 from 17 on.)
ALIGNED = 16
# And where torch has every tensor begin.
ALLOCATED = 64


def stackable(chain: Chain, view: View, shape: Sequence[int], dtype: torch.dtype) -> bool:
    """Can tensors of this shape and dtype be computed together, stacked as the view shows them?

    Links that have a module for each (`several.Each`) see them as they are stored, and at addresses as good as those of
    a tensor by itself.
    """
    seen = view.shape(shape)
    if len(seen) < 2 or not 0 < max(seen[-2:]) <= SIDE or 0 in seen or not dtype.is_floating_point:
        return False
    classes = [target_class(link.entry) for link in chain.links]
    each = not all(kind.stacks for kind in classes)
    if math.prod(seen) * compute_dtype(dtype).itemsize % (ALLOCATED if each else ALIGNED):
        return False
    # As one matrix too a tensor is small: of large ones decompositions are kept, which several would push out.
    if each and max(min(size, math.prod(seen) // size) for size in seen) > SIDE:
        return False
    own = any(link.tensors or isinstance(link.entry.target, type) for link in chain.links)
    return not each or not (own or chain.decodes or view != IDENTITY)


def evaluated_together(group: Group, chain: Chain) -> Hashable | None:
    """Groups of which this is the same have values that can be computed, and claims that can be measured, together;
    None where the group's own can be computed alone.
    """
    if group.alternatives or group.nested or group.twice or group.constraint not in (None, chain.constraint):
        return None
    view, dtype = group.view, torch_dtype(group.dtype)
    if not stackable(chain, view, group.shape, dtype):
        return None
    # What is stored otherwise is made sense of alone.
    there = {role: tuple(group.infos[role].shape) for role in group.own_roles}
    if there != {role: tuple(tensor.shape) for role, tensor in outline(chain, group.shape, dtype, view).items()}:
        return None
    return chain, view, group.shape, *((role, group.infos[role].dtype) for role in sorted(there))


def sliced_roles(chain: Chain, view: View, shape: Sequence[int]) -> dict[str, Share] | None:
    """The roles whose tensors have a row for each row of the weight, or what else belongs to so many rows; the others
    are given whole to every block.

    None where a link needs other rows too, or the constraint cannot be measured by rows.
    """
    if not shape or not view.keeps_rows(shape):
        return None
    seen = torch.Size(view.shape(shape))
    if chain.constraint is not None and not constraint(chain.constraint).by_rows(seen):
        return None
    roles: dict[str, Share] = {}
    for index, link in enumerate(chain.links):
        found = target_class(link.entry).by_rows(seen, **link.arguments)
        if not found:
            return None
        for name, each in (found if isinstance(found, Mapping) else dict.fromkeys(found, 1)).items():
            share = each if isinstance(each, Share) else Share(each)
            if not name.startswith("original"):
                roles[f"{index}.{name}"] = share
            elif index == 0:
                roles[name] = share
    return roles


def made_by_rows(chain: Chain, view: View, shape: Sequence[int]) -> bool:
    """Can the chain be put on a weight of this shape by rows, where its values can be computed so?"""
    seen = torch.Size(view.shape(shape))
    last = target_class(chain.links[-1].entry)
    # A weight that is off is moved to its nearest point, unless the last map is that move itself.
    projects = chain.constraint is None or last.is_projection or constraint(chain.constraint).projects_by_rows
    return projects and all(target_class(link.entry).made_by_rows(seen, **link.arguments) for link in chain.links)


def bake_ranges(group: Group, chain: Chain, view: View) -> tuple[tuple[int, int], ...]:
    """The blocks of rows in which the value of a large tensor is computed; none where it is computed whole."""
    roles = sliced_roles(chain, view, group.shape) if _ranges(group) else None
    if roles is None or not _readable(group, roles):
        return ()
    ranges = _ranges(group, math.lcm(*(share.each for share in roles.values())))
    stored = outline(chain, group.shape, torch_dtype(group.dtype), view)
    # One number may be kept as a tensor of one. What is wrong with the others is said of the whole.
    as_stored = {role: tuple(tensor.shape) or (1,) for role, tensor in stored.items()}
    there = {role: tuple(group.infos[role].shape) or (1,) for role in group.own_roles}
    return ranges if as_stored == there else ()


def fit_ranges(group: Group, chain: Chain, view: View) -> tuple[tuple[int, int], ...]:
    """The same for putting the chain on a plain tensor."""
    roles = sliced_roles(chain, view, group.shape) if (ranges := _ranges(group)) else None
    if roles is None or not made_by_rows(chain, view, group.shape) or not _readable(group, {"value": Share()}):
        return ()
    # Something that it stores may belong to all rows.
    return ranges if set(roles) == set(outline(chain, group.shape, torch_dtype(group.dtype), view)) else ()


def block_entries(code: str) -> int:
    """How many entries of this dtype are a block."""
    return 8 * BLOCK_BYTES // max(DTYPES[code].bits, 32)


def _ranges(group: Group, multiple: int = 1) -> tuple[tuple[int, int], ...]:
    """The blocks of a large tensor, of a multiple of so many rows; none for one that is not, or has too few rows."""
    if nbytes_of(group.dtype, group.shape) < LARGE or not all(group.shape):
        return ()
    ranges = row_blocks(group.shape, block_entries(group.dtype), multiple)
    return tuple(ranges) if len(ranges) > 1 else ()


def _readable(group: Group, roles: Mapping[str, Share]) -> bool:
    """Do the sliced tensors have what belongs to the weight's rows, and lie row after row in the file? Those that are
    decoded, or lie otherwise, where they are small beside the weight: they are held whole. So are those that have its
    rows in columns, up to `HELD`.
    """
    infos = [(group.infos[role], share) for role, share in roles.items() if role in group.infos]
    size = nbytes_of(group.dtype, group.shape)
    small = max(BLOCK_BYTES, size // 16)
    return len(infos) == len(roles) and all(
        (
            (info.run is not None and not share.dim)
            or (not info.pieces and info.nbytes <= (max(HELD, size // 2) if share.dim else small))
        )
        and len(info.shape) > share.dim
        and info.shape[share.dim] == share.of(group.shape[0])
        for info, share in infos
    )


def _is_held(info: TensorInfo, share: Share) -> bool:
    """Is a sliced tensor read once, and whole?"""
    by_columns = share.dim == 1 and len(info.shape) == 2 and info.nbytes > HELD
    return info.run is None or (share.dim > 0 and not by_columns)


class Batch:
    """The tensors of groups of one kind, by role, in blocks: of one group by rows, of one or several whole.

    Blocks of rows come in order, and again where something is wrong.
    """

    def __init__(
        self,
        source: Tensors,
        groups: Sequence[Group],
        view: View,
        device: torch.device | str,
        ranges: Sequence[tuple[int, int]] = (),
        sliced: Mapping[str, Share] = MappingProxyType({}),
    ):
        """`ranges`: none for whole tensors; `sliced`: the roles that have a share of each row."""
        self.source, self.groups, self.device, self.ranges, self.sliced = source, groups, device, ranges, sliced
        self.several = len(groups) > 1
        # How the maths sees a block, and the shape of all blocks: several tensors are stacked as their view shows them.
        self.view, self.shape = view, tuple(groups[0].shape)
        self._each = view
        if self.several:
            self.view, self.shape = IDENTITY, (len(groups), *view.shape(self.shape))
        own = groups[0].own_roles if ranges else []
        infos = groups[0].infos
        self._whole = {
            role: read_role(source, groups[0], role)
            for role in own
            if role not in sliced or _is_held(infos[role], sliced[role])
        }

    def read(self, rows: Rows) -> dict[str, Tensor]:
        """The tensors of a block by role, those that are sliced of these rows."""
        if rows is None and not self.several:
            return read_state(self.source, self.groups[0], self.device)
        if rows is None:
            return {role: self._stacked(role) for role in self.groups[0].own_roles}
        return {
            role: self._read_rows(role, *rows) if role in self.sliced else self._whole[role]
            for role in self.groups[0].own_roles
        }

    def _stacked(self, role: str) -> Tensor:
        each = [as_held(self.source, group, role, self.source.read(group.keys[role])) for group in self.groups]
        each = [self._each.into(tensor) for tensor in each]
        # Some maps round by the order in memory.
        if each[0].ndim > 1 and all(tensor.mT.is_contiguous() for tensor in each):
            return torch.stack([tensor.mT for tensor in each]).mT
        return torch.stack(each)

    def on_device(self, block: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {role: tensor.to(self.device) for role, tensor in block.items()}

    def apart(self, tensor: Tensor) -> list[Tensor]:
        """What was made of a block for a role -> of each of its tensors, in its stored shape. What has another shape
        than the weight has no view, where there are several.
        """
        shape = self.groups[0].shape
        return [self._each.back(part, shape) for part in tensor] if self.several else [tensor]

    def is_last(self, rows: Rows) -> bool:
        return rows is None or rows == self.ranges[-1]

    def again(self, block: Mapping[str, Tensor], after: int = -1) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        """Every block, or those after the one that begins at row `after`, each with its first row; `block`: what was
        read of whole tensors.
        """
        if not self.ranges:
            yield 0, block
        for rows in self.ranges:
            if rows[0] > after:
                yield rows[0], self.read(rows)

    def parts(self, role: str, block: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """One tensor, in its blocks."""
        if role not in self.sliced:
            yield block[role]
            return
        for rows in self.ranges:
            yield self._read_rows(role, *rows)

    def _read_rows(self, role: str, begin: int, end: int) -> Tensor:
        assert isinstance(self.source, Source)  # what stands for one is read whole
        share = self.sliced[role]
        if role in self._whole:
            return share.part(self._whole[role], begin, end)
        first, last = share.of(begin), share.of(end)
        if share.dim:
            return read_columns(self.source, self.groups[0].infos[role], first, last)
        return self.source.read_rows(self.groups[0].keys[role], first, last, self.groups[0].infos[role])
