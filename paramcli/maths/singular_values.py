"""Sets given by singular values, and the maps U f(S) V^T onto them: rank, near-orthogonality, determinant."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputRefused
from .base import (
    CannotReach,
    Constraint,
    Edge,
    Parametrization,
    Part,
    Singular,
    compute_dtype,
    eps,
    matrix,
    per_matrix,
    ratio,
    square,
    unit_roundoff,
)
from .edges import singular_value_edge
from .eigenvalues import beyond_zero, eigenvalue_tolerance
from .elementwise import inverse_softplus
from .frames import Frame, tall
from .orthogonal import MATRIX_EXP_SMALL, RANK, frame_tolerance, require_directions, row_scaled

# geotorch's softplus never gives less than this, so that no direction is lost.
SOFTPLUS_FLOOR = 1e-6
# In sets with a strict inequality (full rank, eigenvalues above a bound) nothing is nearest to a tensor outside:
# the nearest with at least this share of the largest value, and twice the bound, is taken.
MARGIN = 1e-6
# Off in log |det|: by rounding, in u, and for n^{3/2} in eps of the dtype that computed the frames, of which each
# column adds its own error and matrix_exp of angles up to two turns about n^{1/2} of them (measured: 12,000 eps at n =
# 512, 39,000 at 1024).
DETERMINANT_ROUNDED, DETERMINANT_COMPUTED = 4.0, 2.0
# Below this share of the largest, a singular value in double precision is rounding of zero.
NO_VALUE = 1e-14
# How far the first value beyond a rank has to be below the last one within, for `discover` to speak of it.
RANK_GAP = 0.3
# Where singular values as small as they are can be kept.
SMALLER = "--chain low_rank:rank=N reaches smaller ones"


def softplus(x: Tensor) -> Tensor:
    return torch.nn.functional.softplus(x) + SOFTPLUS_FLOOR


def softplus_inverse(y: Tensor, what: str, otherwise: str) -> Tensor:
    """x with softplus(x) + 1e-6 = y; raises CannotReach naming the value that is too small."""
    smallest = y.min().item() if y.numel() else 1.0
    if smallest <= SOFTPLUS_FLOOR:
        raise CannotReach(
            f"its softplus reaches {what} above {SOFTPLUS_FLOOR:g} only, and this tensor has {smallest:.3g}",
            hint=otherwise if smallest > 0 else "--init project moves it to the nearest tensor that the chain reaches",
        )
    return inverse_softplus(y - SOFTPLUS_FLOOR)


def with_singular_values(W: Tensor, change) -> Tensor:
    """U change(S) V^T."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return (U * change(S).unsqueeze(-2)) @ Vh


class LowRank(Constraint):
    r"""{W : rank W <= r}. Residual s_{r+1} / s_1; nearest point the r largest singular values (Eckart-Young).

    Tolerance: `eigenvalue_tolerance`: what rounding may leave of a zero.
    """

    name = "low_rank"

    def __init__(self, rank: int):
        self.rank = rank

    def residual(self, W: Tensor) -> Tensor:
        return self._above(torch.linalg.svdvals(W))

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
        S = torch.linalg.svdvals(W).reshape(-1, min(W.shape[-2:]))
        # Of several in a batch the highest rank holds for all. What rounding leaves of a zero counts as one.
        rank = int((cls(1).tolerance(W.shape, stored, compute_dtype(stored)) * S[:, :1] < S).sum(-1).max())
        # The spectrum of any large matrix comes down to that in the end; a rank that is there ends at once.
        if 0 < rank < S.size(-1) and bool((S[:, rank] <= RANK_GAP * S[:, rank - 1]).all()):
            return [cls(rank)]
        if rank == 0:
            return []
        # Nearly so: in the first half of the spectrum it drops at once; the last values of any square matrix are small.
        half = S.size(-1) // 2
        drops = (S[:, 1 : half + 1] / S[:, :half]).amax(0)
        return [cls(1 + int(drops.argmin()))] if half and bool(drops.min() < 0.05) else []


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
        S, r = torch.linalg.svdvals(W), self.rank_of(W.shape)
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
                raise Singular("the zero matrix has no nearest matrix of full rank", hint="leave it out with -t")
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

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return []


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


class AlmostOrthogonal(Constraint):
    r"""{W : every singular value within lam of 1}. Residual max(|s - 1|) - lam, at least 0; nearest point s clipped.

    Tolerance: (1 + lam) times `eigenvalue_tolerance`, and half of that where two stored frames are rounded before the
    value is, and half of what frames may be off in s^2 (`frame_tolerance`).
    """

    name = "almost_orthogonal"

    def __init__(self, lam: float = 0.1):
        self.lam = lam

    def residual(self, W: Tensor) -> Tensor:
        return ((torch.linalg.svdvals(W) - 1).abs().amax(-1) - self.lam).clamp(min=0)

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        k = min(shape[-2:])
        return (1 + self.lam) * (
            1.5 * eigenvalue_tolerance(k, stored, computed, singular=True) + frame_tolerance(k, computed) / 2
        )

    def project(self, W: Tensor) -> Tensor:
        return self.nearest(W, None)[0]

    def nearest(self, W: Tensor, stored: torch.dtype | None) -> tuple[Tensor, str | None]:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
        unique = "no unique nearest matrix with singular values near 1"
        assumed = require_directions(W, U, S, Vh, stored, 0, unique) if self.lam < 1 else None
        return (U * S.clamp(1 - self.lam, 1 + self.lam).unsqueeze(-2)) @ Vh, assumed

    def detail(self, W: Tensor) -> str | None:
        S = torch.linalg.svdvals(W)
        return f"singular values from {S.min().item():.4g} to {S.max().item():.4g}"

    def check_shape(self, shape: torch.Size) -> None:
        matrix(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        scaled = with_singular_values(W, lambda S: S / S[..., :1] * (1 + self.lam) * 1.05)
        return {"largest 1.05 too large": scaled, **({"zero": 0 * W} if self.lam < 0.9 else {})}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return []


class SpecialLinear(Constraint):
    r"""{A : det A = 1}.

    Residual: |log |det A|| / ||A^{-T} o A||_F (o entry by entry), the size of log |det A| that independent relative
    errors of size 1 in the entries of A make: d log |det A| = sum (A^{-T})_ij A_ij d_ij. 1 where det A <= 0.
    Tolerance: the d_ij of rounding have a root mean square of 0.4 u, u = eps / 2, and 4 u is ten times that; frames
    that a map computed add to it. Errors that line up may leave more, 0.25 eps sqrt(n) where n / 2 planes are turned by
    one angle: such a matrix, kept in few bits, is told its determinant as any other. A singular value that rounding
    could have made of a zero is refused, as in `invertible`. Point given by `project`: A / det(A)^{1/n}, the multiple
    of A in the set, with the smallest singular direction mirrored where det A < 0. The nearest point is of no use: for
    det A > 1 it is nearly singular (that of 10 I, n = 2, has singular values 9.9 and 0.1).
    """

    name = "special_linear"
    projection = "inside"

    def residual(self, W: Tensor) -> Tensor:
        return self._off(W)[0]

    def _off(self, W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The residual, the smallest singular value and the largest."""
        U, S, Vh = torch.linalg.svd(W)
        # A^{-T} = U S^{-1} V^T.
        size = per_matrix(((U / S.unsqueeze(-2)) @ Vh) * W)
        good = (torch.linalg.slogdet(W).sign > 0) & (S[..., -1] > NO_VALUE * S[..., 0])
        return torch.where(good, ratio(S.log().sum(-1), size), torch.ones_like(size)), S[..., -1], S[..., 0]

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        frames = max(DETERMINANT_COMPUTED * shape[-1] ** 1.5 * eps(computed), 0.9 * MATRIX_EXP_SMALL.get(computed, 0.0))
        return DETERMINANT_ROUNDED * unit_roundoff(stored) + frames

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        # Near a singular matrix any determinant is a rounding away, to first order. What rounding leaves of one zero is
        # u^T E v, far below ||E||_2.
        off, last, largest = self._off(W)
        explained = eigenvalue_tolerance(W.size(-1), stored, computed, singular=True) / 4
        return [
            Part("determinant", off, self.tolerance(W.shape, stored, computed)),
            Part("full", beyond_zero(last, largest, explained), 0.0),
        ]

    def project(self, W: Tensor) -> Tensor:
        U, S, Vh = torch.linalg.svd(W)
        if bool((S[..., -1:] <= RANK * S[..., :1]).any()):
            raise Singular(
                f"no multiple of it has determinant 1: singular values from {S.max().item():.2g} down to "
                f"{S.min().item():.2g}",
                hint="--chain invertible takes singular values that small",
            )
        signs = torch.linalg.slogdet(U @ Vh).sign
        S = torch.cat([S[..., :-1], S[..., -1:] * signs.unsqueeze(-1)], dim=-1)
        return (U * (S / S.abs().log().mean(-1, keepdim=True).exp()).unsqueeze(-2)) @ Vh

    def detail(self, W: Tensor) -> str | None:
        sign, log = torch.linalg.slogdet(W)
        worst = int(torch.where(sign > 0, log.abs(), torch.full_like(log, float("inf"))).reshape(-1).argmax())
        return f"determinant {sign.reshape(-1)[worst].item():g} * exp({log.reshape(-1)[worst].item():.3g})"

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        W = torch.randn(shape, generator=generator, dtype=dtype)
        return self.project(
            with_singular_values(W, lambda S: (0.3 * torch.randn(S.shape, generator=generator, dtype=dtype)).exp())
        )

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        mirrored = W.clone()
        mirrored[..., 0, :] *= -1
        return {"times 1.05": 1.05 * W, "zero": 0 * W, "mirrored": mirrored, "last row times 1.5": row_scaled(W, 1.5)}


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
    def make(cls, value: Tensor, rank: int | None = None, **arguments) -> SingularValues:
        return cls(value, min(value.shape[-2:]) if rank is None else rank, **arguments)

    @classmethod
    def check_shape(cls, shape: torch.Size, rank: int | None = None, **arguments) -> None:
        matrix(shape, "a singular value decomposition")
        if rank is not None and rank > min(shape[-2:]):
            raise InputRefused(
                f"rank={rank} is more than the {min(shape[-2:])} that a {shape[-2]}x{shape[-1]} matrix can have"
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
        U, S, Vh = torch.linalg.svd(tall(value), full_matrices=False)
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
        return softplus(s)

    def values_inverse(self, S: Tensor) -> Tensor:
        return softplus_inverse(S, "singular values", SMALLER)

    def edge(self, W: Tensor) -> Edge | None:
        return singular_value_edge(W, self.rank, SOFTPLUS_FLOOR, SMALLER)


class UnitDeterminant(SoftplusValues):
    r"""U diag(p / (p_1 ... p_n)^{1/n}) V^T with p = softplus(s) + 1e-6: |det| = 1, the sign that of the bases.

    Inverse: as `invertible`; the map does not see a common factor of p, so any condition number is reached.
    Source:  geotorch 0.4 SL.
    """

    def values(self, s: Tensor) -> Tensor:
        log = softplus(s).log()
        return (log - log.mean(-1, keepdim=True)).exp()

    def values_inverse(self, S: Tensor) -> Tensor:
        return super().values_inverse(S * (2 * SOFTPLUS_FLOOR / S[..., -1:]).clamp(min=1))

    def edge(self, W: Tensor) -> None:
        return None


def _scaled_sigmoid(x: Tensor) -> Tensor:
    return torch.tanh(x / 2)


# Shapes of the way from -1 to 1, with their inverses. tanh and the sigmoid only approach the ends, so their
# inverses stop this far short of them.
_SHORT = 1e-10
_ODD = {
    "sin": (torch.sin, torch.asin),
    "tanh": (torch.tanh, lambda y: torch.atanh(y.clamp(-1 + _SHORT, 1 - _SHORT))),
    "scaled_sigmoid": (_scaled_sigmoid, lambda y: 2 * torch.atanh(y.clamp(-1 + _SHORT, 1 - _SHORT))),
}


class BoundedValues(SingularValues):
    r"""U diag(1 + lam f(s)) V^T with f = sin, tanh or 2 sigmoid - 1: singular values within lam of 1.

    Inverse: s = f^{-1}((S - 1) / lam). Where a singular value lies on the bound f is flat, and its gradient 0.
    Source:  geotorch 0.4 AlmostOrthogonal.
    """

    def __init__(self, value: Tensor, rank: int, lam: float = 0.1, f: str = "sin", triv: str = "expm"):
        super().__init__(value, rank, triv)
        self.lam, self.f = lam, f

    def values(self, s: Tensor) -> Tensor:
        return 1 + self.lam * _ODD[self.f][0](s)

    def values_inverse(self, S: Tensor) -> Tensor:
        return _ODD[self.f][1](((S - 1) / self.lam).clamp(-1, 1)) if self.lam else torch.zeros_like(S)
