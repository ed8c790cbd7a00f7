"""The values that `assign` sets: a torch.nn.init by name, or the effective weight of another checkpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...checkpoint.read.open import open_checkpoint
from ...checkpoint.source import Source
from ...dtypes import dtype_name, kind_of, torch_dtype
from ...errors import TENSOR, InputRefused, error_context
from ...fitting.evaluate import effective
from ...fitting.torch_module import generators_kept, start_generators, tensor_seed
from ...registry import ANY, parse_constraint
from ...spec import path_of, select
from ...spelling import record as records
from ...spelling.forms import Group, detect
from ...spelling.keys import parametrized_key
from ...text import printable, printable_path, shape_text
from ...wording import given, words


class Values(Protocol):
    """Where the values come from."""

    def check(self, group: Group) -> None:
        """Raise InputRefused where there is none for this tensor, as far as headers tell."""

    def __call__(self, group: Group, device: str) -> Tensor:
        """The value for a group, of its shape and any floating dtype."""


@dataclass(frozen=True)
class Initialised:
    """torch.nn.init.NAME_ on each tensor, each block of `blocks=N` or `heads=N` by itself; seeded by tensor name."""

    name: str
    seed: int

    @property
    def _function(self) -> Callable[[Tensor], Tensor]:
        return getattr(torch.nn.init, self.name.removesuffix("_") + "_")

    def check(self, group: Group) -> None:
        """Raise InputRefused where the initialiser has no values of this shape; nothing is drawn."""
        if torch_dtype(group.dtype).is_complex and self._function is torch.nn.init.orthogonal_:
            raise InputRefused(
                "torch.nn.init.orthogonal_ has no complex values",
                hint=f"{given('with', 'normal')} gives some, which the chain then projects",
            )
        self._fill(group, torch.empty(group.shape, device="meta"))

    def __call__(self, group: Group, device: str) -> Tensor:
        cpu = torch.device("cpu")
        with generators_kept(cpu):
            start_generators(tensor_seed(self.seed, group.twin or group.tensor), cpu)
            # Drawn on the CPU in float32 or wider, so that every device and half type gets the same numbers.
            value = torch.empty(group.shape, dtype=torch.promote_types(torch_dtype(group.dtype), torch.float32))
            self._fill(group, value)
            return value.to(device)

    def _wants_rotation(self, group: Group) -> bool:
        """Half of all orthogonal draws have determinant -1, which chains onto rotations cannot take: turn one row of
        those.
        """
        return self._function is torch.nn.init.orthogonal_ and parse_constraint(group.constraint or ANY)[0].rotations

    def _fill(self, group: Group, value: Tensor) -> None:
        view = group.view
        try:
            for block in list(view.into(value)) if view.count else [value]:
                # Blocks of the last dimension are no contiguous tensors, which some initialisers want.
                filled = block.contiguous()
                rotation = self._wants_rotation(group)
                # A chain onto rotations takes a batch of matrices; the initialiser would see one wide matrix.
                for matrix in filled.flatten(0, -3) if rotation and filled.dim() > 2 else [filled]:
                    self._function(matrix)
                    if rotation and not value.is_meta and bool(torch.linalg.slogdet(matrix).sign < 0):
                        matrix[0] *= -1
                block.copy_(filled)
        except ValueError as error:
            raise InputRefused(
                f"{self.name} does not fit a tensor of shape {shape_text(group.shape)}: {error}"
            ) from None


class TakenFrom:
    """The effective weight of the tensor of the same name (or of `name`) in another checkpoint."""

    def __init__(self, source: Source, name: str | None, compute: str):
        self.source, self.name, self.compute = source, name, compute
        with error_context(path=source.path):
            self.groups = detect(source.tensors, records.record_in(source))

    def check(self, group: Group) -> None:
        """Raise where the other checkpoint has no such tensor, or one of another shape."""
        wanted = self._wanted(group)
        if wanted.problem:
            raise wanted.refusal(self.source.path)
        name = TENSOR if wanted.tensor == group.tensor else printable(wanted.tensor)
        kinds = ("float", "half", "complex") if kind_of(group.dtype) == "complex" else ("float", "half")
        if kind_of(wanted.dtype) not in kinds:
            raise InputRefused(
                f"{name} in {printable_path(self.source.path)} is {dtype_name(wanted.dtype)}, which no tensor of "
                f"{dtype_name(group.dtype)} holds"
            )
        if tuple(wanted.shape) != tuple(group.shape):
            raise InputRefused(
                f"{name} in {printable_path(self.source.path)} is {shape_text(wanted.shape)}, "
                f"not {shape_text(group.shape)}"
            )

    def __call__(self, group: Group, device: str) -> Tensor:
        return effective(self.source, self._wanted(group), device, self.compute)

    def _wanted(self, group: Group) -> Group:
        with error_context(option="from"):
            wanted = select(list(self.groups), [self.name or group.tensor], printable_path(self.source.path))
        return self.groups[wanted[0]]


@contextmanager
def masks_from(spec: str | None) -> Iterator[Callable[[Group], Tensor] | None]:
    """FILE[:NAME] -> the mask of each tensor: NAME, or what the file holds as its pruning mask or under its name."""
    if spec is None:
        yield None
        return
    path, name = split_file(spec, "mask")
    with open_checkpoint(path) as source:

        def mask_for(group: Group) -> Tensor:
            # A file with both has the weight under its own name.
            masks = [f"{group.tensor}_mask", parametrized_key(group.tensor, "0.mask"), group.tensor]
            names = [name] if name else masks
            found = next((key for key in names if key in source.tensors), None)
            if found is None:
                raise InputRefused(
                    f"no mask for {TENSOR} in {printable_path(path)}",
                    hint=f"it holds {words(source.tensors, 4)}; {given('mask', 'FILE:NAME')} says which",
                )
            with error_context(tensor=found, path=path):
                mask = source.read(found)
            if tuple(mask.shape) != tuple(group.shape):
                shapes = f"{shape_text(mask.shape)}, not {shape_text(group.shape)}"
                shown = TENSOR if found == group.tensor else printable(found)
                raise InputRefused(f"the mask {shown} in {printable_path(path)} is {shapes}")
            if odd := int(((mask != 0) & (mask != 1)).sum()):
                raise InputRefused(
                    f"the mask of {TENSOR} in {printable_path(path)} has {odd} of {mask.numel()} entries that are "
                    "neither 0 nor 1, and a mask keeps an entry or drops it"
                )
            return mask

        yield mask_for


def split_file(text: str, option: str) -> tuple[Path, str | None]:
    """FILE or FILE:NAME; a file that exists under the whole text is meant as a file, and so is an address."""
    if ":" not in text or "://" in text or os.path.exists(text):
        return path_of(text, option), None
    file, _, name = text.rpartition(":")
    return path_of(file, option), name


@contextmanager
def taken_from(spec: str, compute: str) -> Iterator[TakenFrom]:
    path, name = split_file(spec, "from")
    with open_checkpoint(path) as source:
        yield TakenFrom(source, name, compute)
