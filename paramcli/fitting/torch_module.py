"""A bare host module for one tensor: torch's own parametrize does the bookkeeping.

`register` puts a chain on any module's tensor. The other functions work on a host that holds nothing
but one weight; the names after `parametrizations.weight.` in its state dict are the roles that a
checkpoint's keys spell (`original`, `original0`, `1.base`, ...).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..chain import Chain, Link
from ..errors import InputRefused
from ..registry import ANY, constraint, target_class
from ..view import IDENTITY, View
from ..wording import LEAVE_OUT, given

_PREFIX = "parametrizations.weight."


def tensor_seed(seed: int, tensor: str) -> int:
    """The generator's seed for one tensor: of --seed and its name, so that no choice of other tensors matters."""
    return (
        int.from_bytes(hashlib.sha256(f"{seed}:{tensor}".encode("utf-8", "surrogatepass")).digest()[:8], "little") >> 1
    )


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """torch's generators go on afterwards as if nothing had been drawn or seeded in between."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def start_generators(seed: int | None, device: torch.device) -> None:
    """torch.manual_seed for what is drawn on this device or on the CPU; the generators of other devices are not ours.

    Without a seed they go on.
    """
    if seed is None:
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def bare(weight: Tensor) -> nn.Module:
    """A module with one parameter, `weight`, in eval mode: spectral norm then takes no power step."""
    host = nn.Module()
    host.weight = nn.Parameter(weight, requires_grad=False)
    return host.eval()


def register(module: nn.Module, name: str, chain: Chain, view: View = IDENTITY, seed: int | None = None) -> nn.Module:
    """Register the chain's links one after another, as a user of torch would.

    With a seed, torch's generator starts from it before each step that can draw: the module's own
    start (u and v of spectral norm, a mask) and the registration (the columns that complete a base).
    The caller's random numbers go on afterwards as they would have.
    """
    start = getattr(module, name).detach()
    with generators_kept(start.device):
        for link in chain.links:
            # Maps keep shape and dtype, and without data there is nothing to evaluate.
            value = start if start.is_meta else getattr(module, name).detach()
            start_generators(seed, value.device)
            part = link.make(view.into(value))
            part.view = view
            part.stored_shape = tuple(value.shape)
            part.train(module.training)
            start_generators(seed, value.device)
            # Shapes and dtypes are ours to promise, so torch need not evaluate every map to check them.
            parametrize.register_parametrization(module, name, part, unsafe=not part.evaluated_on_registration)
    return module


def parametrizations_of(module: nn.Module, name: str) -> parametrize.ParametrizationList:
    """What torch keeps of a module's parametrized tensor: the maps in order, and the originals beside them."""
    found = parametrized(module)[name]
    assert isinstance(found, parametrize.ParametrizationList)
    return found


def parametrized(module: nn.Module) -> nn.ModuleDict:
    """The parametrized tensors of a module that has some, by name, as torch keeps them."""
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    return lists


def roles(host: nn.Module, name: str = "weight") -> dict[str, Tensor]:
    """Role -> tensor, in torch's order."""
    return dict(parametrizations_of(host, name).state_dict())


def require_numbers(link: Link, dtype: torch.dtype) -> None:
    """Raise InputRefused where the link's maths is not for numbers of this kind."""
    name, kind = link.entry.name, str(dtype).removeprefix("torch.")
    if dtype.is_complex and not link.complex:
        before = "" if link.domain == ANY else f" after {link.domain} values"
        raise InputRefused(
            f"{name} has no complex form{before}, and this tensor is {kind}",
            hint="for complex tensors: hermitian, skew_hermitian, and cayley or matrix_exp after them; orthogonal",
        )
    if not dtype.is_complex and not link.real:
        raise InputRefused(
            f"{name} is for complex tensors, and this one is {kind}",
            hint="the real forms: symmetric, skew, and cayley or matrix_exp after them; orthogonal",
        )


def require_fit(chain: Chain, view: View, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Raise InputRefused where a link has no complex form, or the sets it maps between have no tensors of this
    shape.
    """
    seen = torch.Size(view.shape(shape))
    for link in chain.at(seen).links:
        name = link.entry.name
        require_numbers(link, dtype)
        for spec in (link.domain, link.image):
            wanted = constraint(spec)
            wanted.name = name  # what is said of the set is said of the map
            try:
                wanted.check_shape(seen)
            except InputRefused as error:
                # A matrix is flat as it is.
                view_of = given("view", "flatten") + " or blocks=N" if len(shape) > 2 else given("view", "blocks=N")
                views = f"{view_of} shows it other matrices; or {LEAVE_OUT}"
                error.advice = error.advice or (views if len(shape) > 1 else LEAVE_OUT)
                raise
        target_class(link.entry).check_shape(seen, **link.arguments)
        if link.domain == ANY and link.image == ANY and not seen:
            raise InputRefused(f"{name} needs a tensor with dimensions; this one is a scalar")


def load(chain: Chain, view: View, shape: Sequence[int], state: Mapping[str, Tensor]) -> nn.Module:
    """A host with the chain registered and its tensors set from `state`, by role."""
    dtype = state["original" if "original" in state else "original0"].dtype
    host = register(bare(torch.empty(tuple(shape), dtype=dtype, device="meta")), "weight", chain, view)
    host.load_state_dict({_PREFIX + role: tensor for role, tensor in state.items()}, strict=True, assign=True)
    return host


def release(host: nn.Module) -> None:
    """Let go of a host's tensors now: torch's property holds the module in a cycle, which lives until the collector
    runs.

    Without it the peak of an edit grows with the number of tensors.
    """
    host._modules.clear()


def parts(host: nn.Module, name: str = "weight") -> list[nn.Module]:
    """The parametrization modules in the order they apply."""
    return list(parametrizations_of(host, name))
