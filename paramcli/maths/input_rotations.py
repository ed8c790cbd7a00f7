"""Adapters that turn the inputs of a layer among each other, or its outputs in pairs: OFT, BOFT, HRA and RoAd of PEFT.

`oft` in `adapters.py` turns the outputs, by (I + K)(I - K)^{-1}, and those of `lycoris.py` do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputRefused
from .adapters import draw, matrix_shape, require_matrix
from .base import Parametrization

# Blocks of this side are quick to turn by. The work of larger ones, done again for each block of rows, would be long.
SMALL = 64
# Below so many rows kernels round otherwise than above, on some processors; so rows of zeros are added.
FEW = 128


def skew_of(above: Tensor, size: int) -> Tensor:
    """Skew matrices from the entries above their diagonals, row by row: (blocks, size (size - 1) / 2) ->
    (blocks, size, size).
    """
    row, column = torch.triu_indices(size, size, 1, device=above.device)
    K = above.new_zeros(above.size(0), size, size)
    K[:, row, column] = above
    return K - K.mT


def cayley(K: Tensor) -> Tensor:
    """(I - K)(I + K)^{-1}"""
    I = torch.eye(K.size(-1), dtype=K.dtype, device=K.device)
    return torch.linalg.solve(I + K, I - K, left=False)


def neumann(K: Tensor, terms: int) -> Tensor:
    """The first terms of (I + K)(I - K)^{-1} = I + 2K + 2K^2 + ..., as peft sums them: the last one once, and of 3
    as of 4.
    """
    R = torch.eye(K.size(-1), dtype=K.dtype, device=K.device).expand_as(K)
    if terms == 1:
        return R
    R = R + 2 * K
    if terms == 2:
        return R
    power = K @ K
    R = R + 2 * power
    for _ in range(3, terms - 1):
        power = power @ K
        R = R + 2 * power
    return R + power @ K


class PeftOFT(Parametrization):
    r"""W0 to W0 diag(R_1, ...)^T, R_i a rotation of `size` inputs made of a skew K_i.

    R = (I - K)(I + K)^{-1}, or with `terms` the first terms of the series of (I + K)(I - K)^{-1}, which turn the other
    way and are no exact rotation. `shared`: one R for all blocks. `bound`: K is scaled to at most this, over the root
    of the number of its blocks, in the Frobenius norm. `transposed`: R in the place of R^T.

    Inverse: W0 = W, K = 0.
    Cost:    a solve, or `terms` products, for each block, and one product.
    Source:  Qiu et al. 2023, arXiv:2306.07280, 2506.19847; peft 0.21, tuners/oft.
    """

    whole = True

    def __init__(self, K: Tensor, size: int, terms: int, bound: float, transposed: bool):
        super().__init__()
        self.oft_R = nn.Parameter(K)
        self.size, self.terms, self.bound, self.transposed = size, terms, bound, transposed

    @classmethod
    def by_rows(cls, shape: torch.Size, size: int, **_: Any) -> frozenset[str]:
        return frozenset({"original"} if size <= SMALL else ())

    @classmethod
    def threads_matter(cls, *_: Any, size: int, **arguments: Any) -> bool:
        return size > SMALL

    @classmethod
    def check_shape(cls, shape: torch.Size, size: int, **_: Any) -> None:
        require_size(shape, size, "peft.oft")

    @classmethod
    def make(
        cls,
        value: Tensor,
        size: int,
        terms: int = 0,
        shared: bool = False,
        bound: float = 0.0,
        transposed: bool = False,
    ) -> PeftOFT:
        blocks = 1 if shared else matrix_shape(value.shape)[1] // size
        K = torch.zeros(blocks, math.comb(size, 2), dtype=value.dtype, device=value.device)
        return cls(K, size, terms, bound, transposed)

    def rotations(self, dtype: torch.dtype) -> Tensor:
        K = skew_of(self.oft_R.to(dtype), self.size)
        if self.bound:
            most = self.bound / math.sqrt(K.size(0))
            length = torch.linalg.matrix_norm(K, keepdim=True)
            K = K * (most / length.clamp(min=most))
        return neumann(K, self.terms) if self.terms else cayley(K)

    def map(self, X: Tensor) -> Tensor:
        R = self.rotations(X.dtype)
        return turned(X, R if self.transposed else R.mT)

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.oft_R.zero_()
        return W


def turned(X: Tensor, R: Tensor) -> Tensor:
    """Rows of X, in blocks as long as R is wide, times R: one for each block, or one for all."""
    rows = X.size(0)
    blocks = nn.functional.pad(X.reshape(rows, -1, R.size(-1)), (0, 0, 0, 0, 0, max(FEW - rows, 0))).transpose(0, 1)
    # As a batch: whether `@` folds one for all into a single product hangs on whether a gradient is wanted.
    return torch.bmm(blocks, R.expand(len(blocks), -1, -1)).transpose(0, 1)[:rows].reshape(X.shape)


def require_size(shape: torch.Size, size: int, who: str) -> None:
    require_matrix(shape, who)
    if matrix_shape(shape)[1] % size:
        raise InputRefused(f"{who}:size={size} does not divide the {matrix_shape(shape)[1]} inputs")


class PeftBOFT(Parametrization):
    r"""W0 to diag(s) W0 (M_N ... M_1)^T, M_i = P_i diag(R_i1, ...) P_i^T with rotations R of `size` inputs, P_i
    permutations that bring together inputs ever farther apart.

    R = (I - K)(I + K)^{-1}, K half of what is stored minus its transpose. P_i takes runs of size 2^(i-1) inputs, and of
    each its even pieces of size / 2 before its odd ones; with one factor nothing is permuted.

    Inverse: W0 = W, K = 0, s = 1.
    Cost:    a solve for each block of each factor, and a thin product for each factor.
    Source:  Liu et al. 2023, arXiv:2311.06243; peft 0.21, tuners/boft.
    """

    whole = True

    def __init__(self, R: Tensor, s: Tensor):
        super().__init__()
        self.boft_R, self.boft_s = nn.Parameter(R), nn.Parameter(s)

    @classmethod
    def by_rows(cls, shape: torch.Size, size: int, factors: int = 1) -> frozenset[str]:
        return frozenset({"original", "boft_s"} if size <= SMALL else ())

    @classmethod
    def threads_matter(cls, *_: Any, size: int, **arguments: Any) -> bool:
        return size > SMALL

    @classmethod
    def check_shape(cls, shape: torch.Size, size: int, factors: int = 1) -> None:
        require_size(shape, size, "peft.boft")
        blocks = matrix_shape(shape)[1] // size
        if factors > 1 and (size % 2 or factors > 32 or blocks % (1 << (factors - 1))):
            raise InputRefused(
                f"peft.boft:size={size}:factors={factors} needs an even size, and blocks by 2^{factors - 1}; there are "
                f"{blocks}"
            )

    @classmethod
    def make(cls, value: Tensor, size: int, factors: int = 1) -> PeftBOFT:
        out, inputs = matrix_shape(value.shape)
        R = torch.zeros(factors, inputs // size, size, size, dtype=value.dtype, device=value.device)
        return cls(R, torch.ones(out, 1, dtype=value.dtype, device=value.device))

    def map(self, X: Tensor) -> Tensor:
        factors, _, size, _ = self.boft_R.shape
        R = self.boft_R.to(X.dtype)
        R = cayley((R - R.mT) / 2)
        Y = X.flatten(1)
        for number in range(factors):
            if factors == 1:
                Y = turned(Y, R[number].mT)
            else:
                order = gathered(Y.size(1), size << number, size // 2, Y.device)
                Y = turned(Y[:, order.argsort()], R[number].mT)[:, order]
        return (Y * self.boft_s.to(X.dtype)).reshape(X.shape)

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.boft_R.zero_()
            self.boft_s.fill_(1.0)
        return W


def gathered(count: int, run: int, piece: int, device: torch.device) -> Tensor:
    """Numbers up to `count`, of each run the even pieces before the odd ones."""
    pieces = torch.arange(count, device=device).reshape(-1, run // piece, piece)
    return torch.cat([pieces[:, ::2], pieces[:, 1::2]], dim=1).flatten()


class HRA(Parametrization):
    r"""W0 to W0 H_1 ... H_rank, H_i = I - 2 u_i u_i^T with u_i of length 1: inputs mirrored one after another.

    `orthonormal`: the u_i are made orthogonal first, one after another.

    Inverse: W0 = W H_rank ... H_1, u random.
    Cost:    rank passes.
    Source:  Yuan et al. 2024, arXiv:2405.17484; peft 0.21, tuners/hra.
    """

    whole = True

    def __init__(self, u: Tensor, orthonormal: bool):
        super().__init__()
        self.hra_u, self.orthonormal = nn.Parameter(u), orthonormal

    @classmethod
    def by_rows(cls, shape: torch.Size, *_: Any, **arguments: Any) -> frozenset[str]:
        return frozenset({"original"})

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        return False

    @classmethod
    def check_shape(cls, shape: torch.Size, rank: int, orthonormal: bool = False) -> None:
        require_matrix(shape, "hra")
        if orthonormal and rank > matrix_shape(shape)[1]:
            raise InputRefused(f"hra:rank={rank}:orthonormal=true is more than the {matrix_shape(shape)[1]} inputs")

    @classmethod
    def make(cls, value: Tensor, rank: int, orthonormal: bool = False) -> HRA:
        return cls(draw(value.new_empty(rank, matrix_shape(value.shape)[1])).T.contiguous(), orthonormal)

    def mirrors(self, dtype: torch.dtype) -> list[Tensor]:
        found: list[Tensor] = []
        for u in self.hra_u.to(dtype).T:
            for before in found if self.orthonormal else ():
                u = u - (before @ u) * before
            found.append(u / u.norm())
        return found

    def mirrored(self, X: Tensor, mirrors: list[Tensor]) -> Tensor:
        Y = start = X.flatten(1)
        for u in mirrors:
            # Mirrors that are orthogonal do not see what the others did.
            Y = Y - 2 * ((start if self.orthonormal else Y) * u).sum(1, keepdim=True) * u
        return Y.reshape(X.shape)

    def map(self, X: Tensor) -> Tensor:
        return self.mirrored(X, self.mirrors(X.dtype))

    def inverse(self, W: Tensor) -> Tensor:
        return self.mirrored(W, self.mirrors(W.dtype)[::-1])


class RoAd(Parametrization):
    r"""W0 to R W0, which turns and stretches outputs in pairs: the i-th of a group's first half with the i-th of its
    second.

    (y, z) becomes (a cos t y - a sin t z, a sin t y + a cos t z), with one a and t for each pair (variant 1), for each
    output (2), or for each entry (4: those of the cosines first, in each group).

    Inverse: W0 = W, t = 0, a = 1.
    Cost:    one pass.
    Source:  Liao and Monz 2024, arXiv:2409.00119; peft 0.21, tuners/road.
    """

    whole = True

    def __init__(self, theta: Tensor, alpha: Tensor, group: int, variant: str):
        super().__init__()
        self.road_theta, self.road_alpha = nn.Parameter(theta), nn.Parameter(alpha)
        self.group, self.variant = group, variant

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        return False

    @classmethod
    def check_shape(cls, shape: torch.Size, group: int, variant: str = "1") -> None:
        if group % 2 or (len(shape) and shape[0] % group):
            raise InputRefused(f"road:group={group} is odd, or does not divide the {shape[0]} outputs")

    @classmethod
    def make(cls, value: Tensor, group: int, variant: str = "1") -> RoAd:
        size = value.size(0) * int(variant) // 2
        return cls(value.new_zeros(size), value.new_ones(size), group, variant)

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(a cos t, a sin t) of each output, in groups of two halves."""
        t, a = (T.to(dtype) for T in (self.road_theta, self.road_alpha))
        half = self.group // 2
        if self.variant == "4":
            t, a = (T.reshape(-1, 2, 2, half) for T in (t, a))
            return a[:, 0] * t[:, 0].cos(), a[:, 1] * t[:, 1].sin()
        t, a = (T.reshape(-1, 1 if self.variant == "1" else 2, half) for T in (t, a))
        return (a * t.cos()).expand(-1, 2, half), (a * t.sin()).expand(-1, 2, half)

    def map(self, X: Tensor) -> Tensor:
        straight, across = (T.unsqueeze(-1) for T in self.factors(X.dtype))
        pairs = X.reshape(-1, 2, self.group // 2, math.prod(X.shape[1:]))
        others = torch.stack([-pairs[:, 1], pairs[:, 0]], dim=1)
        return (straight * pairs + across * others).reshape(X.shape)

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.road_theta.zero_()
            self.road_alpha.fill_(1.0)
        return W
