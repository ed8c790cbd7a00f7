"""The values that `assign` sets: a torch.nn.init by name, or the effective weight of another checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import record as records
from ..checkpoint.forms import Group, detect
from ..checkpoint.keys import parametrized_key
from ..checkpoint.open import open_checkpoint
from ..dtypes import torch_dtype
from ..errors import InputRefused, UsageError
from ..host import tensor_seed
from ..spec import select
from ..text import closest, listing, printable, printable_path, shape_text
from ..view import parse_view
from .evaluate import effective

ValueFor = Callable[[Group, object], Tensor]

# The initialisers that need nothing but the tensor.
INITS = (
    "dirac", "eye", "kaiming_normal", "kaiming_uniform", "normal", "ones", "orthogonal", "trunc_normal",
    "uniform", "xavier_normal", "xavier_uniform", "zeros",
)  # fmt: skip


@contextmanager
def initialised(name: str, seed: int) -> Iterator[ValueFor]:
    """torch.nn.init.NAME_ on each tensor, each block of `blocks=N` by itself; seeded by tensor name."""
    if name.removesuffix("_") not in INITS:
        near = closest(name, INITS)
        raise UsageError(
            f"no initialiser named '{printable(name)}'", hint=f"closest: {', '.join(near)}" if near else f"known: {', '.join(INITS)}"
        )
    function = getattr(torch.nn.init, name.removesuffix("_") + "_")

    def value_for(group: Group, device: object) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(tensor_seed(seed, group.twin or group.tensor))
            # Drawn on the CPU in float32 or wider, so that every device and half type gets the same numbers.
            wide = torch.promote_types(torch_dtype(group.dtype), torch.float32)
            value = torch.empty(group.shape, dtype=wide)
            view = parse_view(group.view)
            seen = list(view.into(value)) if view.name == "blocks" else [value]
            try:
                for block in seen:
                    function(block)
            except ValueError as error:
                raise InputRefused(f"{name} does not fit a tensor of shape {shape_text(group.shape)}: {error}") from None
            return value.to(device)

    yield value_for


@contextmanager
def masks_from(spec: str | None) -> Iterator[Callable[[Group], Tensor] | None]:
    """FILE[:NAME] -> the mask of each tensor: NAME, or what the file holds under the tensor's name or as its pruning mask."""
    if spec is None:
        yield None
        return
    path, name = split_file(spec)
    with open_checkpoint(path) as source:

        def mask_for(group: Group) -> Tensor:
            names = [name] if name else [group.tensor, f"{group.tensor}_mask", parametrized_key(group.tensor, "0.mask")]
            found = next((key for key in names if key in source.tensors), None)
            if found is None:
                raise InputRefused(
                    f"no mask for {printable(group.tensor)} in {printable_path(path)}",
                    hint=f"it holds {listing(source.tensors, 4)}; --mask FILE:NAME says which",
                )
            mask = source.read(found)
            if tuple(mask.shape) != tuple(group.shape):
                shapes = f"{shape_text(mask.shape)}, not {shape_text(group.shape)}"
                raise InputRefused(f"the mask {printable(found)} in {printable_path(path)} is {shapes}")
            return mask

        yield mask_for


def split_file(text: str) -> tuple[Path, str | None]:
    """FILE or FILE:NAME; a file that exists under the whole text is meant as a file."""
    if Path(text).exists() or ":" not in text:
        return Path(text), None
    file, _, name = text.rpartition(":")
    return Path(file), name


@contextmanager
def taken_from(path: Path, name: str | None, compute: str) -> Iterator[ValueFor]:
    """The effective weight of the tensor of the same name (or of `name`) in another checkpoint."""
    with open_checkpoint(path) as source:
        groups = detect(source.tensors, records.parse_record(source.metadata.get(records.KEY)))

        def value_for(group: Group, device: object) -> Tensor:
            wanted = select(list(groups), [name or group.tensor], printable_path(path))[0]
            value = effective(source, groups[wanted], device, compute)
            if tuple(value.shape) != tuple(group.shape):
                raise InputRefused(
                    f"{printable(wanted)} in {printable_path(path)} is {shape_text(value.shape)}, not {shape_text(group.shape)}"
                )
            return value

        yield value_for
