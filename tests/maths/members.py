"""Members of the sets, made independently of the package: random ones, and those whose rounding errors line up."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def rotation(n: int, seed: int, batch: tuple[int, ...] = (), sign: int = 1) -> Tensor:
    """A Haar-random orthogonal matrix with the given determinant."""
    g = torch.Generator().manual_seed(seed)
    Q, R = torch.linalg.qr(torch.randn(*batch, n, n, generator=g, dtype=torch.float64))
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
    flip = torch.linalg.det(Q) * sign < 0
    Q[..., 0] = torch.where(flip[..., None], -Q[..., 0], Q[..., 0])
    return Q


def spd(n: int, seed: int, spread: float = 2.0) -> Tensor:
    """A symmetric positive definite matrix with eigenvalues within exp(+-spread)."""
    g = torch.Generator().manual_seed(seed + 1000)
    Q = rotation(n, seed)
    values = ((torch.rand(n, generator=g, dtype=torch.float64) * 2 - 1) * spread).exp()
    return symmetric((Q * values) @ Q.T)


def symmetric(A: Tensor) -> Tensor:
    return (A + A.T) / 2


def normal(n: int, k: int, seed: int) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(n: int, values: Tensor, seed: int) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    Q = rotation(n, seed)
    return symmetric((Q * values) @ Q.T)


def kernel(n: int) -> Tensor:
    """exp(-|i - j| / n): positive definite, all entries positive and few of them different, so that errors line up."""
    i = torch.arange(n, dtype=torch.float64)
    return (-(i[:, None] - i).abs() / n).exp()


def flat(n: int, equal: int, size: float) -> Tensor:
    """n x n, every row with so many equal entries and zeros: all are rounded the same way."""
    W = torch.zeros(n, n, dtype=torch.float64)
    W[:, :equal] = size
    return W


def reflection(n: int) -> Tensor:
    """I - 2 J / n: orthogonal, with two different entries."""
    return torch.eye(n, dtype=torch.float64) - 2 / n


def partial_reflection(n: int, left: int) -> Tensor:
    """The reflection of the first n - left directions: entries 2 / (n - left), all rounded the same way."""
    W = torch.eye(n, dtype=torch.float64)
    W[: n - left, : n - left] -= 2 / (n - left)
    return W


def even(n: int, left: int) -> Tensor:
    """The singular correlation matrix of n - left variables that are as far from each other as they can be, beside
    others.
    """
    k, C = n - left, torch.eye(n, dtype=torch.float64)
    C[:k, :k] = -1 / (k - 1)
    return C.fill_diagonal_(1.0)


def few_and_turned(n: int, rank: int, seed: int) -> Tensor:
    """Of this rank: a block of rank 1 of few different numbers, and an orthogonal one of half its size."""
    W, k = torch.zeros(n, n, dtype=torch.float64), n - rank + 1
    W[:k, :k] = few_values(k, seed)
    W[k:, k:] = rotation(rank - 1, seed) * torch.linalg.matrix_norm(W) / 2
    return W


def turns(n: int, angle: float = 1.0) -> Tensor:
    """n / 2 planes turned by one angle: a rotation with two different sizes of entries beside zeros."""
    c, s = torch.tensor(angle, dtype=torch.float64).cos(), torch.tensor(angle, dtype=torch.float64).sin()
    return torch.kron(torch.eye(n // 2, dtype=torch.float64), torch.stack([torch.stack([c, -s]), torch.stack([s, c])]))


def few_values(n: int, seed: int = 0) -> Tensor:
    """A product of rank 1 of few different positive numbers: its errors line up, and are the largest of those that
    round.
    """
    a = 1 + (0.1 + 0.037 * seed) * (torch.arange(n) % 5).double()
    return a[:, None] * (1 + (0.13 + 0.029 * seed) * (torch.arange(n) % 7).double())


def two_blocks(n: int, seed: int) -> Tensor:
    """x x^T for an x of two numbers: positive semidefinite of rank 1, rounded to a matrix of rank 2."""
    x = torch.where(torch.arange(n) < n // 2, 1.0, 1.05 + 0.02 * seed).double() * (1.03 + 0.07 * seed)
    return x[:, None] * x


def rows_of(W: Tensor) -> Tensor:
    return torch.linalg.vector_norm(W, dim=-1, keepdim=True)


def sinkhorn(W: Tensor) -> Tensor:
    P = W.exp()
    for _ in range(300):
        P = P / P.sum(-1, keepdim=True)
        P = P / P.sum(-2, keepdim=True)
    return P


def two_valued(n: int) -> Tensor:
    """Rows of mean 0 and deviation 1 with two different entries, three of ten the larger."""
    k = max(1, round(0.3 * n))
    row = torch.full((n,), -((k / (n - k)) ** 0.5), dtype=torch.float64)
    row[:k] = ((n - k) / k) ** 0.5
    return row.expand(n, n).contiguous()


def centered(W: Tensor, c: float) -> Tensor:
    # Twice: the first mean is rounded to the size of the entries, the second to what is left.
    W = W - W.mean(-1, keepdim=True)
    return W - W.mean(-1, keepdim=True) + c / W.size(-1)


def correlation(n: int, seed: int) -> Tensor:
    """A singular one: the Gram matrix of unit vectors in half the dimensions."""
    X = normal(n, max(n // 2, 1), seed)
    X = X / rows_of(X)
    C = symmetric(X @ X.T)
    return C.fill_diagonal_(1.0)


def unit_spectral(W: Tensor) -> Tensor:
    return W / torch.linalg.svdvals(W)[0]


def aol(W: Tensor) -> Tensor:
    return W / torch.linalg.eigvalsh((W.T @ W).abs())[-1].sqrt()


def unit_determinant(n: int, seed: int) -> Tensor:
    values = (0.3 * normal(1, n, seed + 7)[0]).exp()
    return (rotation(n, seed) * (values / values.log().mean().exp())) @ rotation(n, seed + 1).T


def low_rank(n: int, rank: int, seed: int) -> Tensor:
    return rotation(n, seed)[:, :rank] @ rotation(n, seed + 1)[:rank]


def psd(n: int, rank: int, seed: int) -> Tensor:
    return with_values(n, (torch.arange(n) < rank).double(), seed)


def eighth(n: int) -> int:
    return max(n // 8, 2)


# Spec -> members n x n of the set, for each seed. A spec takes the rank from n where it has one.
Members = Callable[[int, int], Iterator[Tensor]]
MEMBERS: dict[str, Members] = {
    "orthogonal": lambda n, seed: iter((rotation(n, seed), reflection(n))),
    "special_orthogonal": lambda n, seed: iter((rotation(n, seed), turns(n, 0.3 + seed))),
    "positive_definite": lambda n, seed: iter((spd(n, seed), kernel(n) + n / 8 * torch.eye(n, dtype=torch.float64))),
    "unit_spectral_norm": lambda n, seed: iter(
        (unit_spectral(normal(n, n, seed)), rotation(n, seed), *(partial_reflection(n, left) for left in range(1, 6)))
    ),
    "low_rank:rank={r}": lambda n, seed: iter((low_rank(n, eighth(n), seed),)),
    "low_rank:rank=1": lambda n, seed: iter((few_values(n, seed), two_blocks(n, seed))),
    "fixed_rank:rank={r}": lambda n, seed: iter((low_rank(n, eighth(n), seed),)),
    "fixed_rank:rank=1": lambda n, seed: iter((few_values(n, seed), two_blocks(n, seed))),
    "invertible": lambda n, seed: iter((rotation(n, seed), spd(n, seed))),
    "special_linear": lambda n, seed: iter((unit_determinant(n, seed), rotation(n, seed))),
    "almost_orthogonal": lambda n, seed: iter((1.1 * rotation(n, seed), 0.9 * rotation(n, seed), 1.1 * reflection(n))),
    "psd": lambda n, seed: iter(
        (psd(n, n // 2, seed), symmetric(few_values(n) @ few_values(n).T), two_blocks(n, seed))
    ),
    "psd_low_rank:rank={r}": lambda n, seed: iter((psd(n, eighth(n), seed),)),
    "psd_fixed_rank:rank={r}": lambda n, seed: iter((psd(n, eighth(n), seed),)),
    "hurwitz:alpha=0.5": lambda n, seed: iter((with_values(n, -0.5 - (torch.arange(n) > n // 2).double(), seed),)),
    "schur_stable:gamma=0.9": lambda n, seed: iter(
        (with_values(n, 0.9 * torch.arange(n).remainder(2).mul(2).sub(1).double(), seed),)
    ),
    "unit_norm": lambda n, seed: iter(
        (
            normal(n, n, seed) / rows_of(normal(n, n, seed)),
            flat(n, n - 1, (n - 1) ** -0.5),
            flat(n, n - 3, (n - 3) ** -0.5),
        )
    ),
    "unit_rms": lambda n, seed: iter(
        (normal(n, n, seed) * n**0.5 / rows_of(normal(n, n, seed)), flat(n, n - 1, (n / (n - 1)) ** 0.5))
    ),
    "max_norm": lambda n, seed: iter(
        (
            normal(n, n, seed) / rows_of(normal(n, n, seed)),
            flat(n, n - 1, (n - 1) ** -0.5),
            flat(n, n - 3, (n - 3) ** -0.5),
        )
    ),
    "ball": lambda n, seed: iter(
        (0.99999 * normal(n, n, seed) / rows_of(normal(n, n, seed)), flat(n, n - 1, 0.99999 * (n - 1) ** -0.5))
    ),
    "sum_to": lambda n, seed: iter((centered(normal(n, n, seed), 0.0),)),
    "sum_to:c=3.0": lambda n, seed: iter((centered(normal(n, n, seed), 3.0), flat(n, n - 1, 3 / (n - 1)))),
    "standardized": lambda n, seed: iter(
        (two_valued(n), centered(normal(n, n, seed), 0.0) * n**0.5 / rows_of(centered(normal(n, n, seed), 0.0)))
    ),
    "spectral_cap": lambda n, seed: iter((rotation(n, seed), reflection(n))),
    "aol": lambda n, seed: iter((aol(normal(n, n, seed)), rotation(n, seed))),
    "simplex": lambda n, seed: iter(
        (normal(n, n, seed).softmax(-1), flat(n, n - 1, 1 / (n - 1)), flat(n, n - 3, 1 / (n - 3)))
    ),
    "stochastic": lambda n, seed: iter((normal(n, n, seed).softmax(-1), flat(n, n - 1, 1 / (n - 1)))),
    "doubly_stochastic": lambda n, seed: iter(
        (sinkhorn(normal(n, n, seed)), (1 - torch.eye(n, dtype=torch.float64)) / (n - 1))
    ),
    "correlation": lambda n, seed: iter(
        (correlation(n, seed), kernel(n), 0.3 + 0.7 * torch.eye(n, dtype=torch.float64), even(n, 1), even(n, 3))
    ),
    "kronecker:p=2:q=2": lambda n, seed: iter(
        (
            torch.kron(normal(2, 2, seed), normal(n // 2, n // 2, seed + 1)),
            torch.kron(few_values(2, seed), few_values(n // 2, seed)),
        )
    ),
}


# Further members whose rounding is the worst; one sign of theirs may make no difference.
WORST: dict[str, Members] = {
    "low_rank:rank={r}": lambda n, seed: iter((few_and_turned(n, eighth(n), seed),)),
    "fixed_rank:rank={r}": lambda n, seed: iter((few_and_turned(n, eighth(n), seed),)),
}


def members(spec: str, n: int, seeds: int) -> Iterator[Tensor]:
    for seed in range(seeds):
        yield from MEMBERS[spec](n, seed)


def specs(n: int) -> dict[str, str]:
    """Key of MEMBERS -> the spec for matrices n x n."""
    return {key: key.format(r=eighth(n)) for key in MEMBERS}
