"""Sets given by rank, and the maps U f(S) V^T onto them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputRefused
from ..wording import LEAVE_OUT, given
from .base import NEARLY, Constraint, Edge, Parametrization, Part, Singular, first_of_batch, matrix, square
from .decompositions import SMALL, made_of_svd, singular_values, svd
from .edges import singular_value_edge
from .eigenvalues import MARGIN, NO_VALUE, beyond_zero, eigenvalue_tolerance
from .facts import gram
from .frames import Frame, tall
from .numbers import compute_dtype, ratio
from .softplus import SOFTPLUS_FLOOR, floored_softplus, floored_softplus_inverse
from .surely import evenly_spread, surely_invertible, surely_many

# How far the first value beyond a rank has to be below the last one within, for `discover` to speak of it.
RANK_GAP = 0.3
# Where singular values as small as they are can be kept.
SMALLER = f"{given('chain', 'low_rank:rank=N')} reaches smaller ones"


def with_singular_values(W: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """U change(S) V^T."""
    U, S, Vh = svd(W)
    return made_of_svd(U, change(S), Vh)


def _values(W: Tensor, explained: float) -> Tensor:
    """Singular values. Where only those above `explained`, as a share of the largest, are more than rounding of a half
    type, they are the roots of the Gram matrix' eigenvalues, a quarter of the work: right to n eps / explained.
    """
    if explained < 1e-3:
        return torch.linalg.svdvals(W)
    G, size = gram(W)
    return torch.linalg.eigvalsh(G).flip(-1).clamp(min=0).sqrt() * size.squeeze(-1)


def _surely_full(W: Tensor, explained: float) -> bool:
    """Are surely all singular values of a large square matrix more than rounding, and more than half of them more than
    NEARLY of the largest, so that none in the first half drops?
    """
    n = W.size(-1)
    M = W.reshape(W.shape[-2:])
    large = W.size(-2) == n > SMALL
    return large and surely_many(M, NEARLY) > n // 2 + 1 and surely_invertible(M, explained)


class LowRank(Constraint):
    r"""{W : rank W <= r}. Residual s_{r+1} / s_1; nearest point the r largest singular values (Eckart-Young).

    Tolerance: `eigenvalue_tolerance`: what rounding may leave of a zero.
    """

    name = "low_rank"

    def __init__(self, rank: int):
        self.rank = rank

    def residual(self, W: Tensor) -> Tensor:
        return self._above(singular_values(W))

    def _above(self, S: Tensor) -> Tensor:
        """The first singular value beyond the rank, as a share of the largest."""
        return ratio(S[..., self.rank], S[..., 0]) if self.rank < S.size(-1) else torch.zeros_like(S[..., 0])

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return eigenvalue_tolerance(min(shape[-2:]), stored, computed, singular=True)

    def project(self, W: Tensor) -> Tensor:
        return with_singular_values(W, self._kept) if self.rank < min(W.shape[-2:]) else W

    def _kept(self, S: Tensor) -> Tensor:
        return torch.where(torch.arange(S.size(-1), device=S.device) < self.rank, S, torch.zeros_like(S))

    def detail(self, W: Tensor) -> str | None:
        S = torch.linalg.svdvals(W).reshape(-1, min(W.shape[-2:]))
        ranks = (1e-3 * S[:, :1] < S).sum(-1)
        return f"rank {int(ranks.max())} above 0.1 % of the largest singular value"

    def check_shape(self, shape: torch.Size) -> None:
        matrix(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        if self.rank >= min(W.shape[-2:]):
            return {}
        here = torch.zeros(min(W.shape[-2:]), dtype=W.dtype, device=W.device)
        here[self.rank] = 0.2
        return {"one rank more": with_singular_values(W, lambda S: self._kept(S) + here * S[..., :1])}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        if W.ndim < 2 or min(W.shape[-2:]) < 2:
            return []
        explained = cls(1).tolerance(W.shape, stored, compute_dtype(stored))
        if explained < NEARLY and evenly_spread(first_of_batch(W), NEARLY):
            return []  # no value of that matrix drops, and what is told is true of all
        if explained < NEARLY and _surely_full(first_of_batch(W), explained):
            return []
        S = _values(W, explained).reshape(-1, min(W.shape[-2:]))
        # Of several in a batch the highest rank holds for all. What rounding leaves of a zero counts as one.
        rank = int((explained * S[:, :1] < S).sum(-1).max())
        # The spectrum of any large matrix comes down to that in the end; a rank that is there ends at once.
        if 0 < rank < S.size(-1) and bool((S[:, rank] <= RANK_GAP * S[:, rank - 1]).all()):
            return [cls(rank)]
        if rank == 0:
            return []
        # Nearly so: in the first half of the spectrum it drops at once; the last values of any square matrix are small.
        half = S.size(-1) // 2
        drops = (S[:, 1 : half + 1] / S[:, :half]).amax(0)
        return [cls(1 + int(drops.argmin()))] if half and bool(drops.min() < NEARLY) else []


class FixedRank(LowRank):
    r"""{W : rank W = r, and the r-th singular value at least `least`}.

    Residual: s_{r+1} / s_1, and how far s_r is below what it must be, as a share of s_1.
    Tolerance: as `low_rank`, for `least` too. The rank is strict: rounding could have made a singular value of that
    size of a zero, so s_r must be above it, and nothing explains less. Of two ranks a matrix has one. Nearest point:
    the r largest singular values, raised to at least 1e-6 of the largest (and twice `least`).
    """

    name = "fixed_rank"
    projection = "inside"

    def __init__(self, rank: int, least: float = 0.0):
        super().__init__(rank)
        self.least = least

    def rank_of(self, shape: torch.Size | tuple[int, ...]) -> int:
        return self.rank

    def residual(self, W: Tensor) -> Tensor:
        above, last, largest = self._values(W)
        low = torch.maximum(ratio((self.least - last).clamp(min=0), largest), beyond_zero(last, largest, NO_VALUE))
        return torch.maximum(above, low)

    def _values(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """s_{r+1} / s_1, s_r and s_1."""
        S, r = singular_values(W), self.rank_of(W.shape)
        above = ratio(S[..., r], S[..., 0]) if r < S.size(-1) else torch.zeros_like(S[..., 0])
        return above, S[..., r - 1], S[..., 0]

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        above, last, largest = self._values(W)
        explained = self.tolerance(W.shape, stored, computed)
        found = [Part("full", beyond_zero(last, largest, explained), 0.0)]
        if self.rank_of(W.shape) < min(W.shape[-2:]):
            found = [Part("rank", above, explained), *found]
        return (
            [*found, Part("least", ratio((self.least - last).clamp(min=0), largest), explained)]
            if self.least
            else found
        )

    def project(self, W: Tensor) -> Tensor:
        r = self.rank_of(W.shape)

        def raised(S: Tensor) -> Tensor:
            if bool((S[..., 0] == 0).any()):
                raise Singular("the zero matrix has no nearest matrix of full rank", hint=LEAVE_OUT)
            kept = torch.maximum(S, (MARGIN * S[..., :1]).clamp(min=2 * self.least))
            return torch.where(torch.arange(S.size(-1), device=S.device) < r, kept, torch.zeros_like(S))

        return with_singular_values(W, raised)

    def detail(self, W: Tensor) -> str | None:
        S, r = torch.linalg.svdvals(W), self.rank_of(W.shape)
        ends = [f"number {r} is {S[..., r - 1].min().item():.3g}"]
        if r < S.size(-1):
            ends.append(f"number {r + 1} is {S[..., r].max().item():.3g}")
        return f"of its singular values the largest is {S.max().item():.3g}, {', '.join(ends)}"

    def check_shape(self, shape: torch.Size) -> None:
        matrix(shape, self.name)
        if self.rank_of(shape) > min(shape[-2:]):
            raise InputRefused(
                f"{self.name}:rank={self.rank} needs {self.rank} rows and columns; "
                f"the maths sees {shape[-2]}x{shape[-1]}"
            )

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        W = torch.randn(shape, generator=generator, dtype=dtype)
        wanted = torch.arange(min(shape[-2:])) < self.rank_of(shape)
        # Well above zero: half precision could not tell a tiny singular value from none.
        return with_singular_values(W, lambda S: torch.where(wanted, S + 0.3 * S[..., :1], torch.zeros_like(S)))

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        self_rank, fewer = self.rank_of(W.shape), W.clone()
        fewer[..., self_rank - 1 :, :] = 0
        return {
            "one rank less": fewer,
            "zero": 0 * W,
            **(super().near_misses(W) if self_rank < min(W.shape[-2:]) else {}),
        }

    # Nearly every matrix has full rank, and of the others `low_rank` tells.
    candidates = Constraint.candidates


class Invertible(FixedRank):
    r"""{W square : det W != 0, and no singular value below `least`}, either sign of the determinant.

    Residual: how far s_n is below what it must be, as a share of s_1: `least`, and, strictly, what rounding may leave
    of a zero, as in `fixed_rank`.
    Nearest point: singular values raised to at least 1e-6 of the largest (and twice `least`).
    """

    name = "invertible"

    def __init__(self, least: float = 0.0):
        super().__init__(0, least)

    def rank_of(self, shape: torch.Size | tuple[int, ...]) -> int:
        return shape[-1]

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)


class SingularValues(Parametrization):
    r"""X to U diag(f(s)) V^T, r singular values: the pattern of the maps below, and with f(s) = s `low_rank` itself.

    The tensor X holds all three: below the diagonal the frame U, on it s, above it (transposed) the frame V;
    columns past r are not used. U and V are `Frame`s with bases of their own, `0.base` (n, n) and `2.base` (k, k).

    Shapes:  (..., n, k) -> (..., n, k); a wide matrix is the transpose of a tall one.
    Inverse: the singular value decomposition: bases from U and V, X = diag(f^-1(s)). Exact to rounding.
    Cost:    f on max(n, k) squared and min(n, k) squared, two products.
    Source:  geotorch 0.4 LowRank; Lezcano-Casado, 2019, arXiv:1909.09501.
    """

    def __init__(self, value: Tensor, rank: int, triv: str = "expm"):
        super().__init__()
        self.rank = rank
        like = tall(value)
        self.add_module("0", Frame(like, triv))
        self.add_module("2", Frame(like.mT, triv))

    @classmethod
    def make(cls, value: Tensor, rank: int | None = None, **arguments: Any) -> SingularValues:
        return cls(value, min(value.shape[-2:]) if rank is None else rank, **arguments)

    @classmethod
    def check_shape(cls, shape: torch.Size, rank: int | None = None, **arguments: Any) -> None:
        matrix(shape, "a singular value decomposition")
        if rank is not None and rank > min(shape[-2:]):
            raise InputRefused(
                f"rank={rank} is more than the {min(shape[-2:])} that a {shape[-2]}x{shape[-1]} matrix can have",
                hint=f"rank={min(shape[-2:])} or less",
            )

    def values(self, s: Tensor) -> Tensor:
        """f: what the diagonal holds -> singular values."""
        return s

    def values_inverse(self, S: Tensor) -> Tensor:
        return S

    def map(self, X: Tensor) -> Tensor:
        r, T = self.rank, tall(X)
        U = getattr(self, "0")(T.tril(-1)[..., :r])
        S = self.values(T.diagonal(dim1=-2, dim2=-1)[..., :r])
        V = getattr(self, "2")(T.triu(1).mT[..., :r])
        W = (U * S.unsqueeze(-2)) @ V.mT
        return W if X.size(-2) >= X.size(-1) else W.mT

    def inverse(self, value: Tensor) -> Tensor:
        r = self.rank
        U, S, Vh = svd(value)
        if value.size(-2) < value.size(-1):
            U, Vh = Vh.mT, U.mT
        getattr(self, "0").start(U[..., :r])
        getattr(self, "2").start(Vh.mT[..., :r])
        X = torch.zeros_like(tall(value))
        X.diagonal(dim1=-2, dim2=-1)[..., :r] = self.values_inverse(S[..., :r])
        return X if value.size(-2) >= value.size(-1) else X.mT


class SoftplusValues(SingularValues):
    r"""U diag(softplus(s) + 1e-6) V^T: exactly rank r (`fixed_rank`), or square and never singular (`invertible`).

    Inverse: s = log(exp(S - 1e-6) - 1). Raises CannotReach for a singular value of 1e-6 or less.
    Source:  geotorch 0.4 FixedRank, GLp.
    """

    def values(self, s: Tensor) -> Tensor:
        return floored_softplus(s)

    def values_inverse(self, S: Tensor) -> Tensor:
        return floored_softplus_inverse(S, "singular values", SMALLER)

    def edge(self, W: Tensor) -> Edge | None:
        return singular_value_edge(W, self.rank, SOFTPLUS_FLOOR, SMALLER)
