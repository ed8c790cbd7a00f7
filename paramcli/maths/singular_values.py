"""Sets given by singular values, and the maps U f(S) V^T onto them: rank, near-orthogonality, determinant."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputRefused
from .base import COMPUTED, COMPUTED_SMALL, CannotReach, Constraint, Parametrization, Singular, eps, matrix, square
from .frames import Frame, tall
from .orthogonal import RANK, row_scaled

# geotorch's softplus never gives less than this, so that no direction is lost.
SOFTPLUS_FLOOR = 1e-6
# In sets with a strict inequality (full rank, eigenvalues above a bound) nothing is nearest to a tensor outside:
# the nearest with at least this share of the largest value, and twice the bound, is taken.
MARGIN = 1e-6
# Below this share of the largest, a singular value in double precision is rounding of zero.
NO_VALUE = 1e-14


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
    y = y - SOFTPLUS_FLOOR
    return y + (-(-y).expm1()).log()


def share(part: Tensor, largest: Tensor) -> Tensor:
    """part / largest, with 0 / 0 = 0."""
    return torch.where(part == 0, part, part / largest)


def with_singular_values(W: Tensor, change) -> Tensor:
    """U change(S) V^T."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return (U * change(S).unsqueeze(-2)) @ Vh


class LowRank(Constraint):
    r"""{W : rank W <= r}. Residual s_{r+1} / s_1; nearest point the r largest singular values (Eckart-Young)."""

    name = "low_rank"

    def __init__(self, rank: int):
        self.rank = rank

    def residual(self, W: Tensor) -> Tensor:
        S = torch.linalg.svdvals(W)
        return share(S[..., self.rank], S[..., 0]) if self.rank < S.size(-1) else torch.zeros_like(S[..., 0])

    def project(self, W: Tensor) -> Tensor:
        return with_singular_values(W, self._kept) if self.rank < min(W.shape[-2:]) else W

    def _kept(self, S: Tensor) -> Tensor:
        return torch.where(torch.arange(S.size(-1), device=S.device) < self.rank, S, torch.zeros_like(S))

    def detail(self, W: Tensor) -> str | None:
        S = torch.linalg.svdvals(W).reshape(-1, min(W.shape[-2:]))
        ranks = (S > 1e-3 * S[:, :1]).sum(-1)
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
    def candidates(cls, W: Tensor) -> list[Constraint]:
        if W.ndim < 2 or min(W.shape[-2:]) < 2:
            return []
        S = torch.linalg.svdvals(W).reshape(-1, min(W.shape[-2:]))
        # Of several in a batch the highest rank holds for all. What rounding leaves of a zero in float32 counts as one.
        rank = int((S > 4e-7 * S[:, :1]).sum(-1).max())
        if rank < S.size(-1):
            return [cls(rank)] if rank else []
        # Nearly so: in the first half of the spectrum it drops at once; the last values of any square matrix are small.
        half = S.size(-1) // 2
        drops = (S[:, 1 : half + 1] / S[:, :half]).amax(0)
        return [cls(1 + int(drops.argmin()))] if half and bool(drops.min() < 0.05) else []


class FixedRank(LowRank):
    r"""{W : rank W = r, and the r-th singular value at least `least`}.

    Residual: s_{r+1} / s_1 + max(0, least - s_r) / s_1; 1 where the rank is below r.
    Nearest point: the r largest singular values, raised to at least 1e-6 of the largest (and twice `least`).
    """

    name = "fixed_rank"
    projection = "inside"

    def __init__(self, rank: int, least: float = 0.0):
        super().__init__(rank)
        self.least = least

    def rank_of(self, shape: torch.Size | tuple[int, ...]) -> int:
        return self.rank

    def residual(self, W: Tensor) -> Tensor:
        S = torch.linalg.svdvals(W)
        r = self.rank_of(W.shape)
        last = S[..., r - 1]
        low = (self.least - last).clamp(min=0) / S[..., 0]
        above = share(S[..., r], S[..., 0]) if r < S.size(-1) else torch.zeros_like(last)
        return torch.where(last > NO_VALUE * S[..., 0], above + low, torch.ones_like(last))

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
            raise InputRefused(f"{self.name}:rank={self.rank} needs {self.rank} rows and columns; the maths sees {shape[-2]}x{shape[-1]}")

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        W = torch.randn(shape, generator=generator, dtype=dtype)
        wanted = torch.arange(min(shape[-2:])) < self.rank_of(shape)
        # Well above zero: half precision could not tell a tiny singular value from none.
        return with_singular_values(W, lambda S: torch.where(wanted, S + 0.3 * S[..., :1], torch.zeros_like(S)))

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        self_rank, fewer = self.rank_of(W.shape), W.clone()
        fewer[..., self_rank - 1 :, :] = 0
        return {"one rank less": fewer, "zero": 0 * W, **(super().near_misses(W) if self_rank < min(W.shape[-2:]) else {})}

    @classmethod
    def candidates(cls, W: Tensor) -> list[Constraint]:
        return []


class Invertible(FixedRank):
    r"""{W square : det W != 0, and no singular value below `least`}, either sign of the determinant.

    Residual: max(0, least - s_n) / s_1; 1 where a singular value is zero to rounding (1e-14 of the largest).
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
    r"""{W : every singular value within lam of 1}. Residual max(|s - 1|) - lam, at least 0; nearest point s clipped."""

    name = "almost_orthogonal"

    def __init__(self, lam: float = 0.1):
        self.lam = lam

    def residual(self, W: Tensor) -> Tensor:
        return ((torch.linalg.svdvals(W) - 1).abs().amax(-1) - self.lam).clamp(min=0)

    def project(self, W: Tensor) -> Tensor:
        def clipped(S: Tensor) -> Tensor:
            if self.lam < 1 and bool((S[..., -1:] <= RANK * S[..., :1]).any()):
                raise Singular(
                    "no unique nearest matrix with singular values near 1: the tensor is rank-deficient "
                    f"(singular values from {S.max().item():.2g} down to {S.min().item():.2g})",
                    hint="--init raw registers it as it is",
                )
            return S.clamp(1 - self.lam, 1 + self.lam)

        return with_singular_values(W, clipped)

    def detail(self, W: Tensor) -> str | None:
        S = torch.linalg.svdvals(W)
        return f"singular values from {S.min().item():.4g} to {S.max().item():.4g}"

    def check_shape(self, shape: torch.Size) -> None:
        matrix(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        scaled = with_singular_values(W, lambda S: S / S[..., :1] * (1 + self.lam) * 1.05)
        return {"largest 1.05 too large": scaled, **({"zero": 0 * W} if self.lam < 0.9 else {})}

    @classmethod
    def candidates(cls, W: Tensor) -> list[Constraint]:
        return []


class SpecialLinear(Constraint):
    r"""{A : det A = 1}.

    Residual: |log |det A|| / (||A||_F ||A^{-1}||_F), the relative distance to the set to first order, so that rounding
    counts alike for every condition number; 1 where det A <= 0.
    Point given by `project`: A / det(A)^{1/n}, the multiple of A in the set, with the smallest singular direction
    mirrored where det A < 0. The nearest point is of no use: for det A > 1 it is nearly singular (that of 10 I, n = 2,
    has singular values 9.9 and 0.1).
    """

    name = "special_linear"
    projection = "inside"

    def residual(self, W: Tensor) -> Tensor:
        S = torch.linalg.svdvals(W)
        distance = S.log().sum(-1).abs() / (torch.linalg.vector_norm(S, dim=-1) * torch.linalg.vector_norm(1 / S, dim=-1))
        good = (torch.linalg.slogdet(W).sign > 0) & (S[..., -1] > NO_VALUE * S[..., 0])
        return torch.where(good, distance, torch.ones_like(distance))

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        # Rounding to `stored` moves A by at most eps / 2 of itself, and the residual is such a share.
        return eps(stored) + COMPUTED * (max(shape[-2:], default=1) + COMPUTED_SMALL) * eps(computed)

    def project(self, W: Tensor) -> Tensor:
        U, S, Vh = torch.linalg.svd(W)
        if bool((S[..., -1:] <= RANK * S[..., :1]).any()):
            raise Singular(
                f"no multiple of it has determinant 1: singular values from {S.max().item():.2g} down to {S.min().item():.2g}",
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
        return self.project(with_singular_values(W, lambda S: (0.3 * torch.randn(S.shape, generator=generator, dtype=dtype)).exp()))

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
            raise InputRefused(f"rank={rank} is more than the {min(shape[-2:])} that a {shape[-2]}x{shape[-1]} matrix can have")

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
        return softplus_inverse(S, "singular values", "--chain low_rank:rank=N reaches smaller ones")


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
