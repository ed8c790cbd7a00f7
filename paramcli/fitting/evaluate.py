"""The effective weight of any group of keys: what a model that loads the file computes with."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ..chain import Chain
from ..checkpoint.disk.input_file import InputFile
from ..dtypes import dtype_name, nbytes_of, torch_dtype
from ..errors import TENSOR, InputRefused, ParamcliError, error_context
from ..maths.decoders import Decoder, no_exponents
from ..maths.norm import as_matrix
from ..maths.numbers import column_major, wide
from ..registry import target_class
from ..spelling.forms import Group
from ..text import number_text, printable, shape_text, size_text
from ..view import View
from ..wording import LEAVE_OUT, given
from .originals import evaluate
from .skeleton import OtherState, outline, weight_dtype
from .spectral_keys import with_v, without_value
from .torch_module import require_fit

# u and W v / ||W v|| of a spectral norm that ran once agree exactly; an unrelated pair is near 1. Without v, u is
# compared with one power step of its own, which a young u is still some way from.
AGREES, AGREES_ALONE = 0.1, 0.5
# Two factors may stand for a weight thousands of times their size. A weight this large, and this many times as large as
# what is stored of it, is none that anybody trains.
LARGE, EXPANSION = 4 << 30, 1 << 14


class Tensors(Protocol):
    """What tensors are read from: a checkpoint (`Source`), or what stands for one."""

    @property
    def path(self) -> Path: ...

    @property
    def tells_strides(self) -> bool: ...

    @property
    def files(self) -> list[InputFile]: ...

    @property
    def beside(self) -> frozenset[str]: ...

    def read(self, name: str) -> Tensor: ...


def read_state(source: Tensors, group: Group, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The group's tensors by role, in their stored dtypes, on the device; in memory as a module that loads them has
    them. InputRefused for what other keys of the file spell as well: which of the two is the weight, nothing says.
    """
    if group.twice:
        raise group.refusal()
    own = [role for role in group.own_roles if "/" not in role]
    state = {role: read_role(source, group, role).to(device) for role in own}
    state.update({role: effective(source, part, device) for role, part in group.nested.items()})
    return {role: as_held(source, group, role, tensor) for role, tensor in state.items()}


def read_role(source: Tensors, group: Group, role: str) -> Tensor:
    """One of the group's own tensors: in the dtype and shape that the group sees, which codes may be stored in another
    of.
    """
    return as_seen(source.read(group.keys[role]), group, role)


def as_seen(stored: Tensor, group: Group, role: str) -> Tensor:
    """What was read of a role's tensor as the group sees the bytes; of some of its rows those rows."""
    info = group.infos[role]
    dtype = torch_dtype(info.dtype)
    if stored.dtype == dtype and stored.shape[1:] == info.shape[1:] and stored.ndim == len(info.shape):
        return stored
    rest = info.shape[1:]
    flat = stored.reshape(-1).view(dtype)
    return flat.reshape(flat.numel() // max(1, math.prod(rest)), *rest) if info.shape else flat.reshape(())


def as_held(source: Tensors, group: Group, role: str, tensor: Tensor) -> Tensor:
    """What was read of a role, in memory as a module that loads it has it."""
    if role not in _by_columns(group) or (source.tells_strides and role in group.infos and group.infos[role].run):
        return tensor
    return column_major(tensor)


def _by_columns(group: Group) -> set[str]:
    """The roles of tensors that torch's module holds column by column."""
    links = group.chain.links if group.chain is not None and not group.is_plain else ()
    return {f"{index}.{name}" for index, link in enumerate(links) for name in target_class(link.entry).by_columns}


@contextmanager
def naming(source: Tensors, group: Group, role: str) -> Iterator[str]:
    """The name of the key that spells this role; an error is of the file that it lies in, where that is an adapter's
    and not the group's.
    """
    key, path = group.key_of(role), None
    if key in source.beside:
        key, path = key.partition("/")[2], source.files[group.infos[role].storage.file].path
    with error_context(path=path):
        yield printable(key)


def require_chain(group: Group) -> None:
    """Raise InputRefused with the group's own reason where its chain is not known."""
    if group.problem:
        raise group.refusal()


def chain_of(group: Group) -> Chain:
    """The group's chain, which is known, for tensors of its shape; InputRefused for a decoder of other codes."""
    assert group.chain is not None
    chain = group.chain.at(group.view.shape(group.shape))
    decoder, codes = target_class(chain.links[0].entry), group.infos.get("original")
    if issubclass(decoder, Decoder) and codes is not None and decoder.of_floats != codes.dtype.startswith("F8"):
        raise _other_keys(group, chain)
    return chain


def require_proportion(group: Group) -> None:
    """Raise InputRefused where a few numbers stand for a weight of many gigabytes: a slip, or a file made to fill
    memory.
    """
    weight, stored = nbytes_of(group.dtype, group.shape), sum(info.nbytes for info in group.infos.values())
    if weight > LARGE and weight > EXPANSION * stored:
        raise InputRefused(
            f"{TENSOR} stores {size_text(stored)} and stands for a weight of {size_text(weight)} "
            f"({shape_text(group.shape)})",
            hint=LEAVE_OUT,
            tensor=group.tensor,
        )


def settle(group: Group, state: dict[str, Tensor]) -> tuple[Chain, View]:
    """The group's chain, asking u against W v where keys and shapes leave several dims open."""
    require_chain(group)
    if 0 in group.shape:
        raise InputRefused(f"{TENSOR} has no entries ({shape_text(group.shape)})", hint=LEAVE_OUT, tensor=group.tensor)
    if not group.alternatives:
        return chain_of(group), group.view
    scores = {
        chain: _disagreement(state["original"], state["0._u"], state.get("0._v"), _dim_of(chain))
        for chain in group.alternatives
    }
    best, second = sorted(scores, key=scores.__getitem__)[:2]
    if scores[best] > (AGREES if "0._v" in state else AGREES_ALONE) or scores[second] < 3 * scores[best]:
        fits = " and ".join(f"{chain} ({number_text(score)})" for chain, score in scores.items())
        raise InputRefused(
            f"{TENSOR} is a spectral norm whose dim neither shapes nor u and v decide: {fits}",
            hint=f"say which with {given('chain')}",
            tensor=group.tensor,
            code="unrecognised",
        )
    return best, group.view


def _dim_of(chain: Chain) -> int:
    """The dim of a chain that is a spectral norm."""
    dim = chain.links[0].arguments["dim"]
    assert isinstance(dim, int)
    return dim


def _disagreement(W: Tensor, u: Tensor, v: Tensor | None, dim: int) -> float:
    """||W v / ||W v|| - u||, or for a file without v the angle that one power step moves u by."""
    double = wide(W.dtype, W.device)
    M, u = as_matrix(W.to(double), dim), u.to(double)
    right = M.mT @ u if v is None else v.to(double)
    step = torch.nn.functional.normalize(M @ right, dim=0)
    return torch.linalg.vector_norm(step - u).item()


def identities(chain: Chain, roles: Iterable[str]) -> set[str]:
    """Those of the roles that are identity matrices other code stores beside this chain: the tutorial's `1.Id`."""
    return {f"{i}.{name}" for i, link in enumerate(chain.links) for name in target_class(link.entry).identities} & set(
        roles
    )


def complete(group: Group, state: dict[str, Tensor], chain: Chain, exact: bool = False) -> dict[str, Tensor]:
    """The state as torch's current modules have it: without identity matrices, with the v that the oldest spectral
    norm lacks (`exact`: before it is rounded as u is stored), and with a g that other code stores as [C] or [C, 1] in
    the shape that torch gives it.
    """
    for role in identities(chain, state):
        if not torch.equal(
            state[role], torch.eye(*state[role].shape[-2:], dtype=state[role].dtype, device=state[role].device)
        ):
            raise InputRefused(
                f"{printable(group.keys[role])} is no identity matrix, so this is another map than {chain}",
                tensor=group.tensor,
            )
        state = {name: tensor for name, tensor in state.items() if name != role}
    state = _unsqueezed(group, state, chain)
    if "value" not in state:
        return state
    if "0._v" in state:
        return without_value(group, state, str(chain), _dim_of(chain))
    made = with_v(group, state, _dim_of(chain))
    return made if exact else {**made, "0._v": made["0._v"].to(made["0._u"].dtype)}


def _unsqueezed(group: Group, state: dict[str, Tensor], chain: Chain) -> dict[str, Tensor]:
    """The state in the shapes that the chain has, where other code keeps the same entries in the same order: norms g as
    [C] or [C, 1], the factors of a convolution's adapter as kernels.
    """
    wanted = chain.stores(group.view.shape(group.shape)) or {}
    # What has the weight's own shape is stored as that, and not as the view shows it.
    own = {"original", *(f"original{i}" for i in target_class(chain.links[0].entry).stored_originals)}
    other = {
        role: shape
        for role, (_, shape) in wanted.items()
        if role not in own and role in state and tuple(state[role].shape) != shape and _merges(state[role].shape, shape)
    }
    return {**state, **{role: state[role].reshape(shape) for role, shape in other.items()}} if other else state


def _merges(shape: Sequence[int], wanted: Sequence[int]) -> bool:
    """Is `wanted` the shape with neighbouring dimensions made one, or with others of size 1?"""
    sizes, target = [size for size in shape if size != 1], [size for size in wanted if size != 1]
    for goal in target:
        size = 1
        while sizes and size < goal:
            size *= sizes.pop(0)
        if size != goal:
            return False
    return not sizes


def effective(source: Tensors, group: Group, device: torch.device | str = "cpu", compute: str = "same") -> Tensor:
    """The weight in its stored dtype and shape."""
    with error_context(tensor=group.tensor, path=source.path):
        state = read_state(source, group, device)
        if group.is_plain:
            return state["value"]
        chain, view = settle(group, state)
        return weight_of(group, state, chain, view, compute)


def weight_of(
    group: Group,
    state: dict[str, Tensor],
    chain: Chain,
    view: View,
    compute: str = "same",
) -> Tensor:
    """The chain's value on this state, as of `evaluate`; a shape the chain cannot have is refused with the keys it
    wants.
    """
    require_proportion(group)
    state = complete(group, state, chain, exact=True)
    if not any(role.startswith("original") for role in state):
        raise InputRefused(
            f"{TENSOR} has no original here, only {', '.join(map(printable, group.keys.values()))}",
            hint="if this is a shard, give its folder or index",
            tensor=group.tensor,
        )
    dtype = torch_dtype(group.dtype) if chain.decodes else weight_dtype(state)
    with error_context(tensor=group.tensor):
        _fits(chain, view, group.shape, dtype)

    def made_up() -> bool:
        there = {role: tensor.shape for role, tensor in state.items()}
        return _stored(chain, view, group.shape, dtype) != there

    with keys_fit(group, chain, made_up):
        return evaluate(chain, view, group.shape, state, dtype, compute)


@contextmanager
def keys_fit(group: Group, chain: Chain, made_up: Callable[[], bool]) -> Iterator[None]:
    """Within it a chain that stores other tensors than the group has is refused, with the keys; so is one whose map
    stumbles, in any way, where the chain or the shapes are `made_up`, by who asked or by a file.
    """
    try:
        yield
    except ParamcliError:
        raise
    except OtherState:
        raise _other_keys(group, chain) from None
    except Exception:
        if made_up():
            raise _other_keys(group, chain) from None
        raise


def _other_keys(group: Group, chain: Chain) -> InputRefused:
    stored = [
        f"{printable(key)} ({shape_text(info.shape)} {dtype_name(info.dtype)})"
        for role, key in group.keys.items()
        if (info := group.infos.get(role)) is not None
    ]
    return InputRefused(
        f"{chain} does not fit the keys of {TENSOR}: {', '.join(stored[:5])}{', ...' if stored[5:] else ''}",
        hint=f"give the chain and the view it was made with: {given('chain')}, {given('view')}",
        tensor=group.tensor,
    )


# Many tensors share a chain and a shape.
_fits = functools.lru_cache(1024)(require_fit)


def _stored(chain: Chain, view: View, shape: Sequence[int], dtype: torch.dtype) -> dict[str, torch.Size] | None:
    """What the chain stores of a weight of this shape; None where it cannot be registered on one."""
    try:
        return {role: tensor.shape for role, tensor in outline(chain, shape, dtype, view).items()}
    except Exception:
        return None


# Why finite originals can have such a value.
NOT_FINITE = "it is beyond the range of {}, or divided by a norm that is zero"


def explain_infinite(group: Group, states: Iterable[tuple[int, Mapping[str, Tensor]]]) -> None:
    """Raise InputRefused: the originals are finite and the value is not. `states`: blocks of rows, each with its first
    row.
    """
    hint = f"{LEAVE_OUT}, or mend the originals"
    if set(group.keys) == {"original0", "original1"} and group.shape == tuple(group.infos["original1"].shape):
        g, v = group.infos["original0"].shape, group.shape
        dims = [d for d in range(len(v)) if len(g) == len(v) and g[d] == v[d] and v[d] > 1]
        zero = _zero_slice(((first, state["original1"]) for first, state in states), dims[0] if dims else None)
        if zero is not None:
            where = f"slice {zero} of dimension {dims[0]}" if dims else "it"
            raise InputRefused(f"its direction v is zero ({where} has no length to divide by)", hint=hint)
    elif group.chain is not None:
        names = [
            f"{i}.{name}" for i, link in enumerate(group.chain.links) for name in target_class(link.entry).exponents
        ]
        if bad := sum(no_exponents(state[name]) for _, state in states for name in names):
            raise InputRefused(f"{bad} of its scales are exponents of 255, which stand for no number", hint=hint)
    raise InputRefused(
        f"its value is NaN or infinite though its originals are finite: {NOT_FINITE.format(dtype_name(group.dtype))}",
        hint=hint,
    )


def _zero_slice(blocks: Iterable[tuple[int, Tensor]], dim: int | None) -> int | None:
    """The first slice along `dim` (of rows, where there are several blocks) whose norm is zero; 0 for a whole tensor
    that is.
    """
    if dim is None:
        return None if any(bool(v.any()) for _, v in blocks) else 0
    for first, v in blocks:
        norms = torch.linalg.vector_norm(v.abs().double().movedim(dim, 0).reshape(v.size(dim), -1), dim=-1)
        zero = (norms == 0).nonzero().flatten().tolist()
        if zero:
            return first + zero[0]
    return None
