"""(Source, group) -> singular values and eigenvalues, of the weight and of the original it is made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.source import Source
from ..dtypes import DTYPES, dtype_name
from ..errors import InputRefused, error_context
from ..fitting import measure
from ..fitting.evaluate import read_state, settle, weight_of
from ..maths.base import wide
from ..spelling.forms import Group
from ..text import shape_text
from ..view import parse_view

# A batch of more matrices than this is told as one: a panel each would say nothing.
MAX_MATRICES = 16


@dataclass(frozen=True)
class Spectrum:
    """One matrix: `of` is "value", or the role of the original before the chain; `block` its place in a batch.

    Where `count` is not 1, that many matrices of a batch are taken together: all their values, sorted, the
    worst condition number and the mean stable rank.
    """

    of: str
    block: int | None
    count: int
    shape: tuple[int, int]
    singular: tuple[float, ...]
    eigen: tuple[complex, ...] | None
    condition: float
    stable_rank: float

    @property
    def largest(self) -> float:
        return self.singular[0]

    @property
    def smallest(self) -> float:
        return self.singular[-1]

    @property
    def radius(self) -> float | None:
        return None if self.eigen is None else max(map(abs, self.eigen))


@dataclass(frozen=True)
class Spectra:
    """One tensor: its matrices, before (where the file has a chain) and after."""

    tensor: str
    form: str
    chain: str | None
    view: str | None
    shape: tuple[int, ...]
    dtype: str
    matrices: tuple[Spectrum, ...]

    @property
    def title(self) -> str:
        seen = f" ({self.view})" if self.view else ""
        return f"{shape_text(self.shape)} {self.dtype}" + (f", {self.chain}" if self.chain else "") + seen


def spectra(source: Source, group: Group, view: str | None = None, device: str = "cpu") -> Spectra:
    """Every matrix the view shows of one tensor; InputRefused for what is no matrix of finite numbers."""
    with error_context(tensor=group.tensor, path=source.path), torch.no_grad():
        if DTYPES[group.dtype].kind not in ("float", "half", "complex"):
            raise InputRefused(f"{dtype_name(group.dtype)} tensors have no spectrum here")
        if len(group.shape) < 2 or not all(group.shape):
            raise InputRefused(
                f"a spectrum needs a matrix; this one is {shape_text(group.shape)}",
                hint="-t '*.weight' picks what usually has one",
            )
        state = read_state(source, group, device)
        chain, seen = (None, parse_view(group.view)) if group.is_plain else settle(group, state)
        stages = []
        if chain is not None:
            stages += [
                (role, state[role])
                for role in ("original", "original1")
                if role in state and tuple(state[role].shape) == group.shape
            ]
        stages.append(("value", state["value"] if group.is_plain else weight_of(group, state, chain, seen)))
        seen = parse_view(view) if view is not None else seen
        shown = [(of, _matrices(seen.into(W))) for of, W in stages]
        # Block by block, so that before stands beside after.
        matrices = tuple(
            spectrum for parts in zip(*(_spectra_of(of, batch) for of, batch in shown)) for spectrum in parts
        )
        return Spectra(
            group.tensor,
            group.form,
            str(chain) if chain else group.chain,
            seen.text,
            group.shape,
            dtype_name(group.dtype),
            matrices,
        )


def _matrices(seen: Tensor) -> Tensor:
    """(how many, rows, columns), in double precision."""
    measure.require_finite(seen)
    return seen.reshape(-1, *seen.shape[-2:]).to(wide(seen.dtype, seen.device))


def _spectra_of(of: str, batch: Tensor) -> list[Spectrum]:
    count, rows, columns = batch.shape
    singular = torch.linalg.svdvals(batch).cpu()
    eigen = torch.linalg.eigvals(batch).cpu() if rows == columns else None
    places = [[i] for i in range(count)] if count <= MAX_MATRICES else [list(range(count))]
    return [
        _one(
            of,
            place[0] if 1 < count <= MAX_MATRICES else None,
            (rows, columns),
            singular[place],
            None if eigen is None else eigen[place],
        )
        for place in places
    ]


def _one(of: str, block: int | None, shape: tuple[int, int], singular: Tensor, eigen: Tensor | None) -> Spectrum:
    largest, smallest = singular[:, 0], singular[:, -1]
    condition = torch.where(smallest > 0, largest / smallest, torch.full_like(largest, math.inf)).max().item()
    rank = torch.where(largest > 0, (singular**2).sum(-1) / largest**2, torch.zeros_like(largest)).mean().item()
    values = tuple(sorted(singular.flatten().tolist(), reverse=True))
    return Spectrum(
        of,
        block,
        len(singular),
        shape,
        values,
        None if eigen is None else tuple(eigen.flatten().tolist()),
        condition,
        rank,
    )


def choose_groups(groups: Sequence[Group], named: bool) -> list[Group]:
    """What can have a spectrum; without -t only what is parametrized or recorded."""
    if named:
        return list(groups)
    return [group for group in groups if (not group.is_plain or group.record is not None) and not group.problem]
