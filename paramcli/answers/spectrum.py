"""(Source, group) -> singular values and eigenvalues, of the weight and of the original it is made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..chain import Chain
from ..checkpoint.source import Source
from ..devices import torch_device
from ..dtypes import dtype_name, kind_of
from ..errors import PATH, InputRefused, ParamcliError, UsageError, error_context
from ..fitting import measure
from ..fitting.evaluate import read_state, settle, weight_of
from ..maths.numbers import wide
from ..spelling.forms import Group
from ..spelling.given import require_parametrized, with_chain
from ..spelling.opened import Opened
from ..spelling.unparametrized import instead_of_chains
from ..text import count_text, number_text, shape_text
from ..view import IDENTITY, View
from ..watch import NOBODY, Watch
from ..wording import call, given

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

    def document(self) -> dict[str, object]:
        return {
            "of": self.of,
            "block": self.block,
            "count": self.count,
            "shape": list(self.shape),
            "sigma_max": self.largest,
            "sigma_min": self.smallest,
            "condition": self.condition,
            "stable_rank": self.stable_rank,
            "spectral_radius": self.radius,
            "singular_values": list(self.singular),
            "eigenvalues": None if self.eigen is None else [[z.real, z.imag] for z in self.eigen],
        }


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

    def document(self) -> dict[str, object]:
        return {
            "tensor": self.tensor,
            "form": self.form,
            "chain": self.chain,
            "view": self.view,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "matrices": [matrix.document() for matrix in self.matrices],
        }


@dataclass(frozen=True)
class SpectrumResult:
    """The spectra of each tensor; `skipped`: those that have none, with the error that says why."""

    checkpoint: Path
    tensors: tuple[Spectra, ...]
    skipped: tuple[tuple[str, ParamcliError], ...] = ()

    def summary(self) -> str:
        matrices = [matrix for found in self.tensors for matrix in found.matrices]
        least, most = min(m.smallest for m in matrices), max(m.largest for m in matrices)
        count = count_text(len(self.tensors), "tensor")
        return f"{count}: singular values from {number_text(least)} to {number_text(most)}"

    def document(self) -> dict[str, object]:
        """As --json prints it."""
        return {"checkpoint": str(self.checkpoint), "tensors": [found.document() for found in self.tensors]}


def spectrum(
    opened: Opened,
    path: Path,
    tensor: Sequence[str] = (),
    *,
    chain: Chain | None = None,
    view: View = IDENTITY,
    chosen_view: View | None = None,
    device: str = "cpu",
    watch: Watch = NOBODY,
) -> SpectrumResult:
    """Of what `tensor` names, else of all that is parametrized or recorded. As `paramcli.spectrum` has it.

    `chain`, `view`: what the tensors named are read as; `chosen_view`: the view that was asked for, also of others.
    """
    chosen = choose_groups(
        with_chain(opened.choose(tensor, asked=chain is not None), chain, view, named=bool(tensor)), bool(tensor)
    )
    if chain is not None and tensor:
        require_parametrized(chosen, f"without {given('chain')} its own values are shown")
    if not chosen:
        raise UsageError(
            f"spectrum needs {given('tensor')}: no tensor is parametrized; {instead_of_chains(opened.groups).what}",
            hint=f"{call('inspect', PATH)} lists them",
            path=path,
            option="tensor",
        )
    where = torch_device(device)
    found, skipped = [], []
    with watch.meter("spectrum", len(chosen), sum(group.nbytes for group in chosen)) as meter:
        for group in chosen:
            try:
                found.append(spectra(opened.source, group, chosen_view, where))
            except InputRefused as error:
                skipped.append((group.tensor, error))
            meter.advance(group.nbytes)
    if not found:
        raise skipped[0][1]
    opened.source.check_unchanged()
    return SpectrumResult(path, tuple(found), tuple(skipped))


def spectra(source: Source, group: Group, view: View | None = None, device: str = "cpu") -> Spectra:
    """Every matrix the view shows of one tensor; InputRefused for what is no matrix of finite numbers."""
    with error_context(tensor=group.tensor, path=source.path), torch.no_grad():
        if kind_of(group.dtype) not in ("float", "half", "complex"):
            raise InputRefused(f"{dtype_name(group.dtype)} tensors have no spectrum here")
        if len(group.shape) < 2 or not all(group.shape):
            raise InputRefused(
                f"a spectrum needs a matrix; this one is {shape_text(group.shape)}",
                hint=f"{given('tensor', '*.weight')} picks what usually has one",
            )
        state = read_state(source, group, device)
        chain, seen = (None, group.view) if group.is_plain else settle(group, state)
        stages: list[tuple[str, Tensor]] = []
        if chain is not None:
            stages += [
                (role, state[role])
                for role in ("original", "original1")
                if role in state and tuple(state[role].shape) == group.shape
            ]
        stages.append(("value", state["value"] if chain is None else weight_of(group, state, chain, seen)))
        seen = seen if view is None else view
        shown = [(of, _matrices(seen.into(W))) for of, W in stages]
        # Block by block, so that before stands beside after.
        known = group.chain if chain is None else chain
        matrices = tuple(
            spectrum
            for parts in zip(*(_spectra_of(of, batch) for of, batch in shown), strict=True)
            for spectrum in parts
        )
        return Spectra(
            group.tensor,
            group.form,
            None if known is None else str(known),
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
