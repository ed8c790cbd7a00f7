"""Positive semidefinite matrices, their ranks, and the maps Q f(l) Q^T onto them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputRefused
from ..wording import given
from .base import Constraint, Edge, Parametrization, Part, Singular, one_entry, square
from .decompositions import eigenvalues_of_symmetric_part, eigh, made_of_eigh
from .edges import eigenvalue_edge
from .eigenvalues import MARGIN, NO_VALUE, beyond_zero, eigenvalue_tolerance, symmetric_tolerance
from .frames import Frame
from .numbers import asymmetry, ratio
from .softplus import SOFTPLUS_FLOOR, floored_softplus, floored_softplus_inverse
from .symmetric import asymmetry_at_least


def with_eigenvalues(W: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Q change(l) Q^T of the symmetric part of W, eigenvalues descending."""
    l, Q = eigh(W)
    return made_of_eigh(change(l.flip(-1)).flip(-1), Q)


class Semidefinite(Constraint):
    r"""{A : A = A^T, no eigenvalue below 0, at most `rank` above}.

    Residual: max_i ||row i of A - A^T|| / max_i ||row i of A||, and (the eigenvalue furthest off) / max |l|.
    Tolerance: `symmetric_tolerance` and `eigenvalue_tolerance`.
    Nearest point: the `rank` largest eigenvalues of (A + A^T)/2 that are positive.
    """

    name = "psd"
    rank: int | None = None

    def rank_of(self, shape: torch.Size | tuple[int, ...]) -> int:
        return shape[-1] if self.rank is None else min(self.rank, shape[-1])

    def residual(self, W: Tensor) -> Tensor:
        return torch.maximum(asymmetry(W), self._off(eigenvalues_of_symmetric_part(W).flip(-1)))

    def at_least(self, W: Tensor) -> float:
        return asymmetry_at_least(W)

    def _off(self, l: Tensor) -> Tensor:
        """Of eigenvalues in descending order: the largest that should not be there, as a share of the
        largest of all.
        """
        off, rank = (-l[..., -1]).clamp(min=0), self.rank_of(l.shape)
        if rank < l.size(-1):
            off = torch.maximum(off, l[..., rank].clamp(min=0))
        return ratio(off, l.abs().amax(-1))

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return eigenvalue_tolerance(shape[-1], stored, computed)

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        return self._parts_of(W, eigenvalues_of_symmetric_part(W).flip(-1), stored, computed)

    def _parts_of(self, W: Tensor, l: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        return [
            Part("eigenvalues", self._off(l), self.tolerance(W.shape, stored, computed)),
            Part("symmetric", asymmetry(W), symmetric_tolerance(W.size(-1), stored, computed)),
        ]

    def _kept(self, l: Tensor, r: int) -> Tensor:
        return torch.where(torch.arange(l.size(-1), device=l.device) < r, l.clamp(min=0), torch.zeros_like(l))

    def project(self, W: Tensor) -> Tensor:
        return with_eigenvalues(W, lambda l: self._kept(l, self.rank_of(W.shape)))

    def detail(self, W: Tensor) -> str | None:
        l = torch.linalg.eigvalsh((W + W.mT) / 2)
        return f"eigenvalues of its symmetric part from {l.min().item():.3g} to {l.max().item():.3g}"

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        r, n = self.rank_of(W.shape), W.size(-1)
        at = torch.zeros(n, dtype=W.dtype, device=W.device)
        at[-1] = 0.2
        # In the last direction an eigenvalue of either sign too many; without room above, a negative one only.
        misses = {"one eigenvalue negative": with_eigenvalues(W, lambda l: torch.where(at > 0, -at * l[..., :1], l))}
        if r < n:
            misses["one eigenvalue more"] = with_eigenvalues(
                W, lambda l: l + 0.2 * (torch.arange(n, device=l.device) == r) * l[..., :1]
            )
        return {**misses, "negative": -W, **({"one entry": one_entry(W)} if n > 1 else {})}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()]


class SemidefiniteLowRank(Semidefinite):
    name = "psd_low_rank"
    rank: int

    def __init__(self, rank: int):
        self.rank = rank

    # `psd` and `low_rank` tell of it.
    candidates = Constraint.candidates


class SemidefiniteFixedRank(SemidefiniteLowRank):
    r"""{A : A = A^T, exactly `rank` eigenvalues above 0 (at least `least`), the others 0}.

    Residual: as `psd_low_rank`, and how far l_r is below what it must be, as a share of l_1: `least`, and, strictly,
    what rounding may leave of a zero.
    Nearest point: the r largest eigenvalues raised to at least 1e-6 of the largest (and twice `least`).
    """

    name = "psd_fixed_rank"
    projection = "inside"

    def __init__(self, rank: int, least: float = 0.0):
        super().__init__(rank)
        self.least = least

    def residual(self, W: Tensor) -> Tensor:
        l = eigenvalues_of_symmetric_part(W).flip(-1)
        last, largest = self._last(l)
        low = torch.maximum(ratio((self.least - last).clamp(min=0), largest), beyond_zero(last, largest, NO_VALUE))
        return torch.maximum(asymmetry(W), self._off(l)).maximum(low)

    def _last(self, l: Tensor) -> tuple[Tensor, Tensor]:
        """The r-th eigenvalue, and the largest magnitude of one."""
        return l[..., self.rank_of(l.shape) - 1], l.abs().amax(-1)

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        l = eigenvalues_of_symmetric_part(W).flip(-1)
        last, largest = self._last(l)
        explained = self.tolerance(W.shape, stored, computed)
        found = [*self._parts_of(W, l, stored, computed), Part("rank", beyond_zero(last, largest, explained), 0.0)]
        return (
            [*found, Part("least", ratio((self.least - last).clamp(min=0), largest), explained)]
            if self.least
            else found
        )

    def project(self, W: Tensor) -> Tensor:
        def raised(l: Tensor) -> Tensor:
            if bool((l[..., 0] <= 0).any()):
                raise Singular(
                    f"no positive matrix of that rank is near: the largest eigenvalue is {l[..., 0].min().item():.2g}",
                    hint=f"{given('init', 'raw')} registers the tensor as it is",
                )
            return self._kept(torch.maximum(l, (MARGIN * l[..., :1]).clamp(min=2 * self.least)), self.rank)

        return with_eigenvalues(W, raised)

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)
        if self.rank > shape[-1]:
            raise InputRefused(
                f"{self.name}:rank={self.rank} needs {self.rank} rows and columns; "
                f"the maths sees {shape[-2]}x{shape[-1]}"
            )

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        X = torch.randn(shape, generator=generator, dtype=dtype)
        return with_eigenvalues(X @ X.mT / shape[-1], lambda l: self._kept(l + 0.3 * l[..., :1], self.rank))

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        fewer = W.clone()
        fewer[..., self.rank - 1 :, :] = 0
        fewer[..., :, self.rank - 1 :] = 0
        return {**super().near_misses(W), "one rank less": fewer, "zero": 0 * W}


class Eigenvalues(Parametrization):
    r"""X to Q diag(|l|) Q^T, r eigenvalues: `psd` and its low ranks.

    The tensor X holds both: below the diagonal the frame Q, on it l; the rest is not used. Q is a `Frame` with the
    base `0.base` (n, n).

    Shapes:  (..., n, n) -> (..., n, n).
    Inverse: the eigendecomposition: base from Q, X = diag(l). Exact to rounding. At an eigenvalue 0 its gradient is 0.
    Cost:    f on n squared, two products.
    Source:  geotorch 0.4 SymF, PSSD, PSSDLowRank.
    """

    def __init__(self, value: Tensor, rank: int, triv: str = "expm"):
        super().__init__()
        self.rank = rank
        self.add_module("0", Frame(value, triv))

    @classmethod
    def make(cls, value: Tensor, rank: int | None = None, **arguments: Any) -> Eigenvalues:
        return cls(value, value.size(-1) if rank is None else rank, **arguments)

    @classmethod
    def check_shape(cls, shape: torch.Size, rank: int | None = None, **arguments: Any) -> None:
        square(shape, "an eigendecomposition")
        if rank is not None and rank > shape[-1]:
            raise InputRefused(
                f"rank={rank} is more than the {shape[-1]} that a {shape[-2]}x{shape[-1]} matrix can have",
                hint=f"rank={shape[-1]} or less",
            )

    def values(self, l: Tensor) -> Tensor:
        """f: what the diagonal holds -> eigenvalues."""
        return l.abs()

    def values_inverse(self, L: Tensor) -> Tensor:
        return L.clamp(min=0)

    def map(self, X: Tensor) -> Tensor:
        r = self.rank
        # The frame uses what is below the diagonal of these columns.
        Q = getattr(self, "0")(X[..., :r])
        L = self.values(X.diagonal(dim1=-2, dim2=-1)[..., :r])
        return (Q * L.unsqueeze(-2)) @ Q.mT

    def inverse(self, A: Tensor) -> Tensor:
        L, Q = eigh(A)
        L, Q = L.flip(-1)[..., : self.rank], Q.flip(-1)[..., : self.rank]
        getattr(self, "0").start(Q)
        X = torch.zeros_like(A)
        X.diagonal(dim1=-2, dim2=-1)[..., : self.rank] = self.values_inverse(L)
        return X


class SoftplusEigenvalues(Eigenvalues):
    r"""X to Q diag(softplus(l) + 1e-6) Q^T: positive definite (`spd`), or of exactly rank r (`psd_fixed_rank`).

    Inverse: l = log(exp(L - 1e-6) - 1). Raises CannotReach for an eigenvalue of 1e-6 or less.
    Source:  geotorch 0.4 PSD, PSSDFixedRank.
    """

    otherwise = (
        f"{given('chain', 'symmetric,matrix_exp')} reaches every positive one; {given('chain', 'psd')} takes zeros"
    )

    def values(self, l: Tensor) -> Tensor:
        return floored_softplus(l)

    def values_inverse(self, L: Tensor) -> Tensor:
        return floored_softplus_inverse(L, "eigenvalues", self.otherwise)

    def edge(self, A: Tensor) -> Edge:
        return eigenvalue_edge(A, self.rank, SOFTPLUS_FLOOR, self.otherwise)
