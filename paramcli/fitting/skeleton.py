"""A chain's modules without data, made once for tensors of one kind: what it stores, and the modules with tensors in
them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..chain import Chain
from ..errors import InputRefused
from ..maths.base import Parametrization
from ..view import IDENTITY, View
from .torch_module import generators_kept

Module = TypeVar("Module", bound=nn.Module)
# The start of the roles of originals.
_ORIGINAL = "original"


class OtherState(RuntimeError):
    """The tensors are not those that the chain has, by their names or shapes."""


@dataclass(frozen=True)
class Loaded:
    """A chain's modules in order, and its originals, as torch's `ParametrizationList` has them."""

    parts: Sequence[Parametrization]
    originals: tuple[Tensor, ...]

    def __iter__(self) -> Iterator[Parametrization]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


@dataclass(frozen=True)
class Skeleton:
    """The modules of a chain, for weights of one shape and dtype; their tensors have shapes, dtypes and no data."""

    parts: Sequence[Parametrization]
    # In the order of torch's state dict: the originals, then what each module stores.
    tensors: Mapping[str, Tensor]
    # May they be loaded again, with other tensors?
    kept: bool

    def loaded(self, state: Mapping[str, Tensor]) -> Loaded:
        """The modules with these tensors, by role; OtherState where they are others by role or shape."""
        if state.keys() != self.tensors.keys():
            raise OtherState(f"the tensors are {', '.join(state)}, and should be {', '.join(self.tensors)}")
        held = {role: _as(state[role], tensor, role) for role, tensor in self.tensors.items()}
        parts = [_copy(part) if self.kept else part for part in self.parts]
        for index, part in enumerate(parts):
            _fill(part, held, f"{index}.")
        return Loaded(parts, tuple(tensor for role, tensor in held.items() if role.startswith(_ORIGINAL)))


def skeleton(chain: Chain, view: View, shape: Sequence[int], dtype: torch.dtype) -> Skeleton:
    """The modules of a chain as torch's own registration makes them on a tensor without data.

    Registered on no module: that costs more than a small matrix, and makes cycles that keep every tensor alive until
    the collector runs.
    """
    # Of a mask from a file none is kept; and a plug-in's module may remember more than it stores.
    if any(link.tensors or isinstance(link.entry.target, type) for link in chain.links):
        return _made(chain, view, tuple(shape), dtype, kept=False)
    return _kept(chain, view, tuple(shape), dtype)


def _made(chain: Chain, view: View, shape: tuple[int, ...], dtype: torch.dtype, kept: bool = True) -> Skeleton:
    start = torch.empty(shape, dtype=dtype, device="meta")
    parts = []
    with generators_kept(start.device):
        for link in chain.links:
            part = link.make(view.into(start))
            part.view, part.stored_shape = view, shape
            parts.append(part.eval())
        originals = parts[0].right_inverse(start)
    if isinstance(originals, Tensor):
        tensors = {_ORIGINAL: originals}
    else:
        tensors = {f"{_ORIGINAL}{index}": X for index, X in enumerate(originals)}
    for index, part in enumerate(parts):
        tensors.update({f"{index}.{name}": tensor for name, tensor in part.state_dict().items()})
    return Skeleton(parts, tensors, kept)


# Many tensors share a chain and a shape, and a block of rows is computed hundreds of times.
_kept = functools.lru_cache(256)(_made)


def outline(chain: Chain, shape: Sequence[int], dtype: torch.dtype, view: View = IDENTITY) -> Mapping[str, Tensor]:
    """Role -> what torch has for it, with its shape and dtype and no data. Of codes the dtype is not the chain's to
    say.
    """
    if chain.decodes and (stored := chain.stores(view.shape(shape))) is not None:
        return {role: torch.empty(size, dtype=dtype, device="meta") for role, (_, size) in stored.items()}
    return skeleton(chain, view, shape, dtype).tensors


def loaded(
    chain: Chain, view: View, shape: Sequence[int], state: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> Loaded:
    """The chain's modules for a weight of this shape, with their tensors from `state`, by role. OtherState where the
    state has other roles or shapes. `dtype`: of the weight, where its originals are codes.
    """
    return skeleton(chain, view, shape, dtype or dtype_of(state)).loaded(state)


def dtype_of(state: Mapping[str, Tensor]) -> torch.dtype:
    """The weight's dtype: that of its originals. Buffers may be integers (a row order, a version), and come first in a
    file.
    """
    return next(tensor.dtype for role, tensor in state.items() if role.startswith(_ORIGINAL))


def weight_dtype(state: Mapping[str, Tensor]) -> torch.dtype:
    """That which a value is rounded to: of its original, or of the last of several, which is the weight-like one."""
    originals = sorted(role for role in state if role.startswith(_ORIGINAL))
    return state[originals[0] if originals[0] == _ORIGINAL else originals[-1]].dtype


def _as(tensor: Tensor, wanted: Tensor, role: str) -> Tensor:
    """The tensor in the shape of the skeleton's; one number may be kept as a tensor of one."""
    if not wanted.ndim and tensor.shape == (1,):
        tensor = tensor[0]
    if tensor.shape != wanted.shape:
        raise OtherState(f"{role} is {tuple(tensor.shape)}, and should be {tuple(wanted.shape)}")
    return tensor


def _copy(module: Module) -> Module:
    """The module with tensors and parts of its own to be replaced; what else it has it shares."""
    made: Module = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    made._parameters, made._buffers = dict(module._parameters), dict(module._buffers)
    made._modules = {name: None if part is None else _copy(part) for name, part in module._modules.items()}
    return made


def _fill(module: nn.Module, held: Mapping[str, Tensor], prefix: str) -> None:
    """Put the tensors in place of the module's own. InputRefused for one that no state dict has, and no data."""
    for name, tensor in module._parameters.items():
        if tensor is not None:
            module._parameters[name] = nn.Parameter(held[prefix + name], requires_grad=False)
    for name, buffer in module._buffers.items():
        if buffer is not None and prefix + name in held:
            module._buffers[name] = held[prefix + name]
        elif buffer is not None and buffer.is_meta:
            raise InputRefused(
                f"{type(module).__name__} makes its buffer {name} of the weight, and stores it nowhere",
                hint="a plug-in registers such a buffer with persistent=True",
            )
    for name, part in module._modules.items():
        if part is not None:
            _fill(part, held, f"{prefix}{name}.")
