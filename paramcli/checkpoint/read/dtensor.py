"""torch's DTensor as its pickle has it: the whole tensor's shape, one process's block of it, and where that belongs.

A mesh is a grid of processes, and each of them has a coordinate in it. For each dimension of the mesh a placement says
what it did to the tensor: Shard(d) cut dimension d as torch.chunk does, into pieces of one size of which the last are
short or empty; Replicate left it whole. Where two cut the same dimension the second cut what the first had left, or the
other way round where the first is a _StridedShard, as under FSDP on top of tensor parallelism.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from ...errors import TENSOR, InputRefused
from ...text import printable
from ..pickle.pickle_data import Opaque, TensorRef, broken, shown

_MODULE = "torch.distributed."
_PLAIN = "gather it where it was made: full_tensor() of every DTensor, then torch.save"


@dataclass(frozen=True)
class Distributed:
    """One process's part of a tensor.

    `mesh`: its sizes. `cuts`: for each of its dimensions the dimension of the tensor that it cut; None where it left it
    whole. `order`: the mesh's dimensions in the order in which they cut. `coordinate`: this process's place; None where
    it has none, and nothing of the tensor.
    """

    local: TensorRef
    shape: tuple[int, ...]
    dtype: str
    mesh: tuple[int, ...]
    cuts: tuple[int | None, ...]
    order: tuple[int, ...]
    coordinate: tuple[int, ...] | None

    @property
    def layout(self) -> tuple[object, ...]:
        """What all processes must say alike."""
        return self.shape, self.dtype, self.mesh, self.cuts, self.order

    @property
    def block(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(first entry, sizes) of this process's block."""
        assert self.coordinate is not None, "asked of a process in the mesh"
        begin, sizes = [0] * len(self.shape), list(self.shape)
        for mesh_dim in self.order:
            dim = self.cuts[mesh_dim]
            if dim is not None:
                piece = -(-sizes[dim] // self.mesh[mesh_dim])
                before = min(self.coordinate[mesh_dim] * piece, sizes[dim])
                begin[dim] += before
                sizes[dim] = min(piece, sizes[dim] - before)
        return tuple(begin), tuple(sizes)


def is_dtensor(value: object) -> bool:
    return (
        isinstance(value, Opaque) and value.cls.name == "DTensor" and value.cls.module.startswith("torch.distributed")
    )


def read_dtensor(value: object) -> Distributed:
    """Raises InputRefused for one that is broken, or whose layout is none of those above."""
    state = value.arguments[4] if isinstance(value, Opaque) and len(value.arguments) == 5 else None
    if isinstance(state, tuple) and len(state) == 2:
        state = state[1]
    fields = state if isinstance(state, dict) else {}
    local, spec = fields.get("_local_tensor"), _fields(fields.get("_spec"), "DTensorSpec")
    if not isinstance(local, TensorRef):
        raise InputRefused(f"{TENSOR} is a DTensor of {shown(local)}, and not of plain tensors", hint=_PLAIN)
    meta = spec.get("tensor_meta")
    shape = meta.arguments[0] if isinstance(meta, Opaque) and meta.arguments else None
    mesh = _fields(spec.get("mesh"), "DeviceMesh")
    sizes, coordinate = _mesh_sizes(mesh), mesh.get("_coordinate_on_dim")
    placements = spec.get("placements")
    if not _whole_numbers(shape) or sizes is None or not isinstance(placements, tuple) or len(placements) != len(sizes):
        raise broken("a DTensor without a shape, or whose mesh and placements do not fit together")
    if coordinate is not None and (
        not _whole_numbers(coordinate)
        or len(coordinate) != len(sizes)
        or any(at >= size for at, size in zip(coordinate, sizes, strict=True))
    ):
        raise broken("a DTensor whose process has no place in its mesh")
    cuts = tuple(_cut(placement, len(shape)) for placement in placements)
    return Distributed(
        local,
        tuple(shape),
        local.dtype,
        sizes,
        cuts,
        _order(placements, cuts, sizes, spec.get("shard_order")),
        None if coordinate is None else tuple(coordinate),
    )


def _fields(value: object, name: str) -> Mapping[object, object]:
    if not isinstance(value, Opaque) or value.cls.name != name or not isinstance(value.state, dict):
        raise broken(f"a DTensor without its {name}")
    return value.state


def _whole_numbers(value: object) -> TypeGuard[Sequence[int]]:
    if not isinstance(value, (list, tuple)) or len(value) > 64:
        return False
    return all(type(number) is int and 0 <= number < 1 << 62 for number in value)


def _mesh_sizes(mesh: Mapping[object, object]) -> tuple[int, ...] | None:
    """Of a tensor of ranks (torch to 2.8), or of a layout (after that)."""
    layout, ranks = mesh.get("_layout"), mesh.get("mesh")
    if isinstance(ranks, TensorRef):
        return ranks.shape
    if not isinstance(layout, Opaque) or not isinstance(layout.state, dict):
        return None
    axes, shape = layout.state.get("axes"), layout.state.get("shape")
    if isinstance(axes, tuple):
        shape = tuple(_field(axis, "shape") for axis in axes)
    sizes: list[int] = []
    for axis in shape if isinstance(shape, tuple) else (shape,):
        axis = (axis,) if type(axis) is int else axis  # of several numbers it is a flattened one
        if not _whole_numbers(axis):
            return None
        sizes.append(math.prod(axis))
    return tuple(sizes)


def _cut(placement: object, rank: int) -> int | None:
    """The dimension of the tensor that a placement cuts."""
    name = _name(placement)
    if name == "Replicate":
        return None
    if name not in ("Shard", "_StridedShard"):
        raise InputRefused(
            f"{TENSOR} is a DTensor with the placement {printable(name, 40)}, and no piece of the whole", hint=_PLAIN
        )
    dim = _field(placement, "dim")
    if type(dim) is not int or not -rank <= dim < rank:
        raise broken("a DTensor that is cut along no dimension")
    return dim % rank


def _name(placement: object) -> str:
    return placement.cls.name if isinstance(placement, Opaque) else shown(placement)


def _field(value: object, name: str) -> object:
    return value.state.get(name) if isinstance(value, Opaque) and isinstance(value.state, dict) else None


def _order(
    placements: Sequence[object], cuts: Sequence[int | None], sizes: Sequence[int], said: object
) -> tuple[int, ...]:
    """The mesh's dimensions in the order in which they cut: from left to right, where nothing says otherwise."""
    order = list(range(len(sizes)))
    strided = {at for at, placement in enumerate(placements) if _name(placement) == "_StridedShard"}
    for at in sorted(strided, reverse=True):
        later = [other for other in range(at + 1, len(sizes)) if cuts[other] == cuts[at]]
        if _field(placements[at], "split_factor") != math.prod(sizes[other] for other in later):
            raise InputRefused(f"{TENSOR} is a DTensor cut in strides, in an order that is not known", hint=_PLAIN)
        order = [other for other in order if other != at] + [at]
    for entry in said if isinstance(said, tuple) else ():
        dim, by = entry.arguments if isinstance(entry, Opaque) and len(entry.arguments) == 2 else (None, None)
        if not _whole_numbers(by) or sorted(by) != [at for at in range(len(sizes)) if cuts[at] == dim]:
            raise broken("a DTensor whose order of cuts is none")
        if strided.intersection(by) and list(by) != [at for at in order if at in by]:
            raise broken("a DTensor with two orders of its cuts")
        order = [at for at in order if at not in by] + list(by)
    return tuple(order)
