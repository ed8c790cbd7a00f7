"""A chain's value from the tensors that it stores, and the originals of a value through right inverses.

Tensors in, tensors out; names and files are the caller's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..chain import Chain, Link
from ..maths.base import CannotReach, Parametrization
from ..maths.decoders import Decoder
from ..maths.numbers import compute_dtype, in_precision
from ..text import number_text
from ..view import View
from ..wording import given
from . import measure
from . import torch_module as hosting
from .several import Each, Seeds, Stored, loaded_together, made, tensors_of
from .skeleton import Loaded, loaded

# A right inverse that is off by more than this in double precision has no preimage there.
EXACT = 1e-6


def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The same row by row, as files have it."""
    return in_precision(tensor, dtype).contiguous()


def widened(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {role: rounded(tensor, dtype) for role, tensor in state.items()}


def evaluate(
    chain: Chain,
    view: View,
    shape: Sequence[int],
    state: Mapping[str, Tensor],
    stored: torch.dtype,
    compute: str = "same",
    *,
    together: bool = False,
) -> Tensor:
    """The chain's value from its stored tensors: computed in one dtype, rounded once to `stored`; row by row in memory.
    `together`: the values of several tensors, along the first dimension of each.
    """
    dtype = compute_dtype(stored, compute)
    # In the order in memory that they have: some maps round by it. Codes are taken as they are stored.
    codes = {"original"} if chain.decodes else set()
    wide = {role: tensor if role in codes else in_precision(tensor, dtype) for role, tensor in state.items()}
    parts = (
        loaded_together(chain, wide, shape)
        if together
        else loaded(chain, view, shape, wide, dtype if chain.decodes else None)
    )
    return value_of(parts, dtype, stored).contiguous()


def value_of(parts: Loaded, dtype: torch.dtype, stored: torch.dtype) -> Tensor:
    """The value that loaded modules have, computed in `dtype` and rounded to `stored`."""
    first, *others = parts
    with torch.no_grad():
        if isinstance(first, Decoder):
            value: Tensor = first.decode(parts.originals[0], dtype, dtype if others else stored)
        else:
            value = first(*parts.originals)
        for part in others:
            value = part(value)
        return value.detach().to(stored)


def register_raw(W: Tensor, chain: Chain, view: View, seed: int | None, compute: str = "same") -> dict[str, Tensor]:
    """What registering the links one after another on a live module gives, bit for bit."""
    # In training mode, as a new module is: spectral norm takes a power step while it is registered.
    host = hosting.bare(W.to(compute_dtype(W.dtype, compute))).train()
    state = hosting.roles(hosting.register(host, "weight", chain, view, seed))
    hosting.release(host)
    return state


def invert(
    chain: Chain,
    Y: Tensor,
    seed: Seeds,
    view: View,
    shape: Sequence[int],
    existing: Sequence[Parametrization] | None = None,
    first_row: int | None = None,
    judge: Callable[[int, Tensor, Tensor], None] | None = None,
    stored: Stored = None,
    later: list[Trip] | None = None,
) -> dict[str, Tensor]:
    """Right inverses from the last link to the first, in double precision; Y is what the view shows.

    Returns tensors by role, the originals in the stored `shape`. Y is expected on the last link's image. With
    `existing` modules their buffers (a mask) stay in use. Raises CannotReach where a link has no preimage: `judge` is
    given each link's index, the value that its inverse comes back with, and the one it was asked for. Of a block of
    rows Y starts at `first_row` of the whole. `stored` is the dtype that Y was rounded to, where it is no point that
    was computed. Where `seed` has one for each, Y is several tensors, along its first dimension. What is to be judged
    goes into `later`, where that is given, for who may know better.
    """
    judge = judge or functools.partial(require_back, chain)
    state: dict[str, Tensor] = {}
    originals: Tensor | tuple[Tensor, ...] = Y
    for index in range(len(chain) - 1, -1, -1):
        assert isinstance(originals, Tensor), "several originals are the first link's only"
        part = made(chain.links[index], originals, seed, to_invert=True) if existing is None else existing[index]
        part.first_row = first_row
        if isinstance(part, Each):
            part.stored_of = stored
        elif not isinstance(stored, Sequence):
            part.stored = stored
        if not isinstance(seed, Sequence):
            hosting.start_generators(seed, Y.device)
        wanted = originals
        originals = part.inverse(wanted)
        if not part.is_projection:
            part.eval()
            inverted = originals if isinstance(originals, tuple) else (originals,)
            trip = Trip(judge, index, part, inverted, wanted)
            if later is None:
                trip.judge()
            else:
                later.append(trip)
        state.update({f"{index}.{name}": tensor for name, tensor in tensors_of(part).items()})
    several = originals if isinstance(originals, tuple) else (originals,)
    stored_so = tuple(view.back(X, shape) if i in part.stored_originals else X for i, X in enumerate(several))
    if isinstance(originals, Tensor):
        return {"original": stored_so[0], **state}
    return {**{f"original{index}": X for index, X in enumerate(stored_so)}, **state}


@dataclass(frozen=True)
class Trip:
    """The way back from what a link's right inverse gave to what it was asked for, and who judges it."""

    judged_by: Callable[[int, Tensor, Tensor], None]
    index: int
    part: Parametrization
    originals: Sequence[Tensor]
    wanted: Tensor

    def judge(self, among: Sequence[int] | None = None) -> None:
        """`among`: those of several tensors that it is asked of; others may be judged too."""
        originals, wanted = self.originals, self.wanted
        if among is not None and not isinstance(self.part, Each) and not self.part.state_dict():
            at = torch.tensor(among, device=wanted.device)
            originals, wanted = [X[at] for X in originals], wanted[at]
        if not self.part.proves(wanted, EXACT, *originals):
            self.judged_by(self.index, self.part.map(*originals), wanted)


def require_back(chain: Chain, index: int, back: Tensor, wanted: Tensor, several: bool = False) -> None:
    """`require_preimage` of the tensor, or of each of several."""
    trip = measure.Moved(len(wanted) if several else 1)
    trip.add(back, wanted)
    for error in trip.result():
        require_preimage(chain.links[index], error)


def require_preimage(link: Link, error: float) -> None:
    """Raise CannotReach where a link's value of its right inverse is so far from what was asked for."""
    if not error <= EXACT:
        raise CannotReach(
            f"{link.entry.name} cannot reach this tensor: its right inverse comes back {number_text(error)} away",
            hint=f"{given('init', 'raw')} registers it as it is",
        )
