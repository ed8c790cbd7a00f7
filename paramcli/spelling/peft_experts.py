"""LORA of PEFT on parameters by name (`target_parameters`): the fused experts of a mixture, above all.

    MODULE.lora_A.weight (E r, in), .lora_B.weight (out, r E)     one parameter of MODULE, (E, out, in) or (E, in, out)
    MODULE.base_layer.lora_A.weight, ...                          another one of it

The expert index is the outermost of A's rows and the innermost of B's columns. Which parameter a pair belongs to is in
no name: of several the one that comes first in the model is wrapped innermost. Shapes decide, and where they leave it
open the order in which transformers has them.

A base may hold the experts apart (`experts.3.up_proj.weight`), as transformers saves most models: the rows of a fused
gate_up_proj are then those of gate_proj, and after them those of up_proj.

Source: peft 0.21, tuners/lora (ParamWrapper).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from ..checkpoint.source import TensorInfo
from ..dtypes import nbytes_of
from ..errors import TENSOR, InputRefused
from ..text import listing, printable, shape_text
from ..view import IDENTITY, View
from .adapter import DEEPEST, TRANSPOSE, Change, Found, Rename, lora_item, not_of_shape
from .forms import Group
from .peft_config import Config
from .peft_family import Module

Groups = Mapping[str, Group]
Targets = Mapping[str, Sequence[str]]
# The order of these in a model.
ORDER = ("gate_up_proj", "gate_proj", "up_proj", "down_proj", "w1", "w3", "w2")
# What the fused parameters are where each expert has its own: (gate, up, down), by model.
APART = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
# Mixtral's experts have another module's name in the files than in the model.
OTHER_MODULES = (("mlp.experts", "block_sparse_moe.experts"),)
MOST_PARAMETERS = 4


@dataclass(frozen=True)
class Wrapper:
    """A pair of factors of a module, of a parameter that is yet to be found."""

    A: TensorInfo
    B: TensorInfo

    @property
    def sides(self) -> tuple[int, int]:
        return self.B.shape[0], self.A.shape[1]

    def experts(self, rank: int) -> int:
        """How many there are, where each has this rank; 0 where it divides them by none."""
        return 0 if rank < 1 or self.A.shape[0] % rank else self.A.shape[0] // rank

    def stacked(self, rank: int) -> tuple[TensorInfo, TensorInfo]:
        """A and B as (experts, rank, in) and (experts, out, rank): other strides of the same memory."""
        (out, inputs), experts = self.sides, self.experts(rank)
        (row, column), (each_out, step) = _strides(self.A), _strides(self.B)
        by_rows = None if self.A.stride is None else (rank * row, row, column)
        A = replace(self.A, shape=(experts, rank, inputs), stride=by_rows)
        return A, replace(self.B, shape=(experts, out, rank), stride=(step, each_out, experts * step))

    def of_expert(self, rank: int, expert: int, begin: int, end: int) -> tuple[TensorInfo, TensorInfo]:
        """A and B of one, rows [begin, end) of its outputs."""
        (A, B), row = self.stacked(rank), _strides(self.A)[0]
        assert B.stride is not None
        first_A = expert * rank * row * nbytes_of(A.dtype, (1,))
        first_B = (expert * B.stride[0] + begin * B.stride[1]) * nbytes_of(B.dtype, (1,))
        return (
            replace(A, shape=A.shape[1:], stride=A.stride and A.stride[1:], offset=A.offset + first_A),
            replace(B, shape=(end - begin, rank), stride=B.stride[1:], offset=B.offset + first_B),
        )


def _strides(matrix: TensorInfo) -> tuple[int, int]:
    """How many entries lie from row to row, and from column to column."""
    rows, columns = matrix.stride or (matrix.shape[1], 1)
    return rows, columns


@dataclass
class Experts:
    """The wrapped parameters of an adapter: `modules` by their path in the base, the outermost wrapper first."""

    modules: Mapping[str, Sequence[Module]]
    config: Config
    targets: Targets

    @classmethod
    def of(cls, wrapped: Sequence[Module], config: Config, targets: Targets) -> Experts:
        modules: dict[str, list[Module]] = {}
        for module in sorted(wrapped, key=lambda module: module.written.count(".base_layer")):
            modules.setdefault(module.path, []).append(module)
        return cls(modules, config, targets)

    def on(self, groups: Groups, rename: Rename) -> Found:
        """What they change of a base; InputRefused where that cannot be told, or is not there."""
        placed = [one for path, wrapped in self.modules.items() for one in self._placed(path, wrapped, groups, rename)]
        changes: list[Change] = []
        tensors: dict[str, TensorInfo] = {}
        shared: set[str] = set()
        # How a base stores its experts the ones that are not square tell of all.
        across = {place.is_across for place in placed} - {None}
        for place in placed:
            for change, made, common in place.changes(across):
                changes.append(change)
                tensors.update(made)
                shared |= common
        replaced = {key for wrapped in self.modules.values() for module in wrapped for key in module.keys.values()}
        return Found(tuple(changes), tensors, frozenset(replaced), frozenset(shared))

    def _placed(self, path: str, wrapped: Sequence[Module], groups: Groups, rename: Rename) -> Iterator[Place]:
        """A place in the base for each wrapper of a module."""
        names = parameters_of(path, self.targets)
        if len(names) > MOST_PARAMETERS or len(wrapped) > len(names):
            raise self.config.refusal(
                f"target_parameters names {len(names)} of {printable(path)}, and the weights change {len(wrapped)}"
            )
        fits = {
            (module.written, name): place
            for module in wrapped
            for name in names
            if (place := self._place(path, name, module, groups, rename)) is not None
        }
        ways = [
            way
            for way in permutations(names, len(wrapped))
            if all((module.written, name) in fits for module, name in zip(wrapped, way, strict=True))
        ]
        # The one that comes first in the model is wrapped first, and so innermost.
        ordered = [way for way in ways if list(way) == sorted(way, key=_rank_in_model, reverse=True)]
        if len(ways) > 1 and len(ordered) == 1 and all(name in ORDER for name in names):
            ways = ordered
        if not ways:
            raise self._nowhere(path, names, wrapped, groups, rename)
        if len(ways) > 1:
            raise InputRefused(
                f"{TENSOR} may be a change of {listing(names, 4)}: nothing tells of which",
                tensor=wrapped[0].keys["lora_A"],
                path=wrapped[0].source.path,
            )
        for module, name in zip(wrapped, ways[0], strict=True):
            yield fits[module.written, name]

    def _place(self, path: str, name: str, module: Module, groups: Groups, rename: Rename) -> Place | None:
        """Where the pair goes, if it is one of this parameter."""
        module.require("lora_A", "lora_B")
        more = next((part for part in module.keys if part not in ("lora_A", "lora_B")), None)
        if more is not None:
            raise module.refusal(more, "and a parameter that is changed by name has lora_A and lora_B alone")
        wrapper = Wrapper(module.info("lora_A"), module.info("lora_B"))
        if len(wrapper.A.shape) != 2 or len(wrapper.B.shape) != 2 or wrapper.A.shape[0] != wrapper.B.shape[1]:
            raise module.refusal("lora_B", f"which takes no A of {shape_text(wrapper.A.shape)}")
        full = f"{path}.{name}"
        rank = self.config.number("r", full, "rank_pattern")
        if rank != int(rank) or not (experts := wrapper.experts(int(rank))):
            return None
        scale = self.config.scale(full, int(rank))
        place = Place(wrapper, module, int(rank), scale, rename(full))
        (out, inputs), group = wrapper.sides, groups.get(rename(full))
        if group is not None:
            shape = tuple(group.shape)
            fused = len(shape) == 3 and shape[0] == experts and shape[1:] in ((out, inputs), (inputs, out))
            plain = experts == 1 and shape == (out, inputs)
            return replace(place, shape=shape) if fused or plain else None
        return next((found for part in self._apart(path, name, rename) if (found := place.on(part, groups))), None)

    def _apart(self, path: str, name: str, rename: Rename) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(module, the names of the tensors that a fused parameter is made of) where each expert has its own."""
        paths = [path] + [path.replace(inside, outside) for inside, outside in OTHER_MODULES if inside in path]
        for where in paths:
            for gate, up, down in APART:
                parts = {"gate_up_proj": (gate, up), "down_proj": (down,)}.get(name)
                if parts is not None:
                    yield rename(where), parts

    def _nowhere(
        self, path: str, names: Sequence[str], wrapped: Sequence[Module], groups: Groups, rename: Rename
    ) -> InputRefused:
        there = [groups[full] for name in names if (full := rename(f"{path}.{name}")) in groups]
        key, source = wrapped[0].keys["lora_A"], wrapped[0].source
        if there:
            error = not_of_shape(there[0], "A and B are", [wrapped[0].shape("lora_A"), wrapped[0].shape("lora_B")])
            error.path = source.path
            return error
        return InputRefused(
            f"{TENSOR} is a change of {listing([f'{path}.{name}' for name in names], 4)}, which the base has neither "
            "fused nor by expert",
            hint="is it an adapter of this base?",
            tensor=key,
            path=source.path,
        )


def targets_of(config: Config) -> Targets:
    """The end of a module's path -> the parameters there that the configuration names."""
    targets = config.values.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(text, str) for text in targets):
        raise config.refusal("target_parameters is no list of names")
    found: dict[str, list[str]] = {}
    for text in dict.fromkeys(targets):
        module, _, name = text.rpartition(".")
        found.setdefault(module, []).append(name)
    return found


def parameters_of(path: str, targets: Targets) -> list[str]:
    """The parameters of a module that are named."""
    parts = path.split(".")
    ends = (".".join(parts[at:]) for at in range(max(0, len(parts) - DEEPEST), len(parts))) if targets else ()
    return [name for end in ends for name in targets.get(end, ())]


def _rank_in_model(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


@dataclass(frozen=True)
class Place:
    """A pair of factors and the parameter that it changes: in one tensor of this `shape`, or `apart`: the tensors that
    each expert has, with the rows of the fused one that each is.
    """

    wrapper: Wrapper
    module: Module
    rank: int
    scale: float
    tensor: str
    shape: tuple[int, ...] = ()
    apart: tuple[tuple[tuple[str, int, int], ...], ...] = ()

    def on(self, parts: tuple[str, tuple[str, ...]], groups: Groups) -> Place | None:
        """The place in a base that holds the experts apart; None where it has them not, or in other sizes."""
        (where, names), (out, inputs) = parts, self.wrapper.sides
        found = []
        for expert in range(self.wrapper.experts(self.rank)):
            at, rows = 0, []
            for name in names:
                full = f"{where}.{expert}.{name}.weight"
                if full not in groups or len(shape := groups[full].shape) != 2 or shape[1] != inputs:
                    return None
                rows.append((full, at, at := at + shape[0]))
            if at != out:
                return None
            found.append(tuple(rows))
        return replace(self, apart=tuple(found))

    @property
    def is_across(self) -> bool | None:
        """Is it stored (experts, in, out)? None where the shape leaves it open, or it is not fused."""
        out, inputs = self.wrapper.sides
        return self.shape[1:] == (inputs, out) if len(self.shape) == 3 and out != inputs else None

    def changes(self, across: set[bool | None]) -> Iterator[tuple[Change, dict[str, TensorInfo], set[str]]]:
        """Each with its tensors, and those of them that others have too."""
        A, B = self.module.keys["lora_A"], self.module.keys["lora_B"]
        if not self.apart:
            view, name = self._view(across), "expert_lora" if len(self.shape) == 3 else "lora"
            item = lora_item(name, self.rank, self.scale)
            infos = self.wrapper.stacked(self.rank) if len(self.shape) == 3 else (self.wrapper.A, self.wrapper.B)
            yield (
                Change(self.tensor, {"lora_A": A, "lora_B": B}, lambda group: (item, view)),
                dict(zip((A, B), infos, strict=True)),
                set(),
            )
            return
        item = lora_item("lora", self.rank, self.scale)
        for expert, parts in enumerate(self.apart):
            for full, begin, end in parts:
                keys = {"lora_A": f"{A}[{expert}]", "lora_B": f"{B}[{expert}, {begin}:{end}]"}
                infos = self.wrapper.of_expert(self.rank, expert, begin, end)
                common = {keys["lora_A"]} if len(parts) > 1 else set()
                yield (
                    Change(full, keys, lambda group: (item, IDENTITY)),
                    dict(zip(keys.values(), infos, strict=True)),
                    common,
                )

    def _view(self, across: set[bool | None]) -> View:
        own = self.is_across
        if len(self.shape) == 3 and own is None and len(across) != 1:
            raise InputRefused(
                f"{TENSOR} is square for each expert, and nothing tells whether it is stored (out, in) or (in, out)",
                tensor=self.tensor,
                path=self.module.source.path,
            )
        is_across = own if own is not None or len(self.shape) != 3 else next(iter(across))
        return TRANSPOSE if is_across else IDENTITY
