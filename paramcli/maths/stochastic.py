"""Probability vectors and doubly stochastic matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Constraint, Parametrization, Part, square, started
from .moments import lost_below
from .norm import check_dim
from .numbers import eps, unit_roundoff

# Zeros have no logarithm: they start from this probability, which no entry of a float64 result shows.
ZERO = 1e-13


# Roundings of exp, a sum of such, and a quotient.
SUM_STEPS = 5


def sum_tolerance(n: int, stored: torch.dtype, computed: torch.dtype) -> float:
    r"""What rounding explains of |sum p_i - 1| for n numbers p_i >= 0.

    Entries p_i (1 + d_i) with |d_i| <= u = eps / 2 sum to 1 + sum p_i d_i, a weighted mean of the d_i: never more than
    u off, whatever n, and u itself where all entries are equal. (Entries below the normal numbers of `stored`, in
    float16 6e-5, the probabilities of a large vocabulary, are off by up to half of its smallest number each:
    `lost_below`.) A map adds the roundings of its quotients, and those of sums, which grow with the root of n at most:
    11 eps were measured at n = 512.
    """
    return 1.02 * unit_roundoff(stored) + (SUM_STEPS + n**0.5) * unit_roundoff(computed)


class Simplex(Constraint):
    r"""{P : vectors along `dim` are non-negative and sum to 1}.

    Residual: max |sum - 1|, and the most negative entry. Nearest point: max(p - t, 0), t such that the sum is 1.
    Tolerance: `sum_tolerance` for the sums; 0 for the signs, which rounding keeps.
    """

    name = "simplex"
    whole = True

    def __init__(self, dim: int = -1):
        self.dim = dim

    def check_shape(self, shape: torch.Size) -> None:
        check_dim(shape, self.dim, self.name)

    def residual(self, W: Tensor) -> Tensor:
        return (W.sum(self.dim) - 1).abs().amax().maximum(W.amin().clamp(max=0).abs())

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return sum_tolerance(shape[self.dim], stored, computed)

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        sums = ((W.sum(self.dim, keepdim=True) - 1).abs() - lost_below(W, (self.dim,), stored)).clamp(min=0).amax()
        return [
            Part("sum", sums, self.tolerance(W.shape, stored, computed)),
            Part("sign", W.amin().clamp(max=0).abs(), 0.0),
        ]

    def project(self, W: Tensor) -> Tensor:
        sorted_down = W.movedim(self.dim, -1).sort(dim=-1, descending=True).values
        counts = torch.arange(1, W.size(self.dim) + 1, dtype=W.dtype, device=W.device)
        thresholds = (sorted_down.cumsum(-1) - 1) / counts
        kept = (sorted_down > thresholds).sum(-1, keepdim=True).clamp(min=1)
        P = (W - thresholds.gather(-1, kept - 1).movedim(-1, self.dim)).clamp(min=0)
        # What rounding of the cumulated sums left, shared by the entries that are not zero.
        return torch.where(
            P > 0, P + ((1 - P.sum(self.dim, keepdim=True)) / (P > 0).sum(self.dim, keepdim=True)), P
        ).clamp(min=0)

    def detail(self, W: Tensor) -> str | None:
        sums = W.sum(self.dim)
        return f"sums from {sums.amin().item():.4g} to {sums.amax().item():.4g}, least entry {W.amin().item():.4g}"

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        misses = {"times 1.05": 1.05 * W, "zero": 0 * W, "negative": -W}
        if W.size(self.dim) > 1:
            # The sum stays 1, and one entry is negative.
            shift = torch.zeros_like(W)
            shift.select(self.dim, 0).fill_(-1.1)
            shift.select(self.dim, -1).fill_(1.1)
            misses["one entry negative"] = W + shift
        return misses

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        if bool((W < -0.01).any()):
            return []
        found = [cls(dim) for dim in (-1, -2) if W.ndim >= -dim and W.size(dim) > 1]
        return [c for c in found if bool(c.residual(W) < 0.05)]


class Stochastic(Simplex):
    """Stochastic matrices (rows of probabilities, or columns with dim=-2): the name that matrices use for `simplex`."""

    name = "stochastic"

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return []


class DoublyStochastic(Constraint):
    r"""{P : non-negative, rows and columns sum to 1}: Birkhoff's polytope.

    Residual: max |row or column sum - 1|, and the most negative entry. Nearest point: by Newton's method on the dual
    (Li, Sun and Toh, 2018, arXiv:1702.05934).
    Tolerance: `sum_tolerance` for the sums; 0 for the signs, which rounding keeps.
    """

    name = "doubly_stochastic"

    def _off(self, W: Tensor, stored: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        rows, columns = (
            ((W.sum(d, keepdim=True) - 1).abs() - lost_below(W, (d,), stored)).clamp(min=0).amax((-2, -1))
            for d in (-1, -2)
        )
        return torch.maximum(rows, columns), W.amin((-1, -2)).clamp(max=0).abs()

    def residual(self, W: Tensor) -> Tensor:
        return torch.maximum(*self._off(W))

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return sum_tolerance(shape[-1], stored, computed)

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        sums, negative = self._off(W, stored)
        return [Part("sums", sums, self.tolerance(W.shape, stored, computed)), Part("sign", negative, 0.0)]

    def project(self, W: Tensor) -> Tensor:
        flat = W.reshape(-1, *W.shape[-2:])
        return torch.stack([nearest_doubly_stochastic(X) for X in flat]).reshape(W.shape) if len(flat) else W

    def detail(self, W: Tensor) -> str | None:
        row, column = (W.sum(-1) - 1).abs().amax().item(), (W.sum(-2) - 1).abs().amax().item()
        return f"row sums off by {row:.2g}, column sums by {column:.2g}, least entry {W.amin().item():.4g}"

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        misses = {"times 1.05": 1.05 * W, "zero": 0 * W}
        if W.size(-1) > 1:
            # Sums stay 1, with one negative entry.
            swap = torch.zeros_like(W)
            swap[..., 0, 0] = swap[..., -1, -1] = -1.1
            swap[..., 0, -1] = swap[..., -1, 0] = 1.1
            misses["one entry negative"] = W + swap
            rows_only = W.clone()
            rows_only[..., 0, :] = 0
            rows_only[..., 0, 0] = 1
            rows_only[..., 1:, :] = W[..., 1:, :].flip(-1)
            rows_only[..., -1, :] = rows_only[..., 0, :]
            misses["rows only"] = rows_only
        return misses

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        if W.ndim < 2 or W.size(-1) != W.size(-2) or W.size(-1) < 2 or bool((W < -0.01).any()):
            return []
        return [cls()] if bool((cls().residual(W) < 0.05).all()) else []


def nearest_doubly_stochastic(X: Tensor) -> Tensor:
    """max(X + u 1^T + 1 v^T, 0) with u, v such that rows and columns sum to 1: the projection's dual, piecewise
    quadratic.
    """
    n = X.size(-1)
    # The projection onto the sums alone; every row then has a positive entry to start from.
    u = (1 - X.sum(1)) / n
    v = (1 - (X + u.unsqueeze(1)).sum(0)) / n
    z = torch.cat([u, v])

    def primal(z: Tensor) -> Tensor:
        return (X + z[:n].unsqueeze(1) + z[n:]).clamp(min=0)

    def dual(P: Tensor, z: Tensor) -> Tensor:
        return P.square().sum() / 2 - z.sum()

    def gap(P: Tensor) -> Tensor:
        return 1 - torch.cat([P.sum(1), P.sum(0)])

    def solve(M: Tensor, ridge: Tensor | float, g: Tensor) -> Tensor:
        """What to add to u and v so that the sums change by g, where just the entries in M follow."""
        M = M.to(X.dtype)
        H = torch.cat([torch.cat([M.sum(1).diag(), M], 1), torch.cat([M.mT, M.sum(0).diag()], 1)])
        # H is singular: u + t, v - t give the same P, and far from the solution whole rows of M are zero.
        return torch.linalg.solve(H + ridge * torch.eye(2 * n, dtype=X.dtype, device=X.device), g)

    P = primal(z)
    for _ in range(200):
        g = gap(P)
        error = g.abs().amax()
        if error <= 1e-14 * n:
            break
        # The ridge shrinks with the error, which keeps the last steps quadratic.
        d = solve(P > 0, 1e-10 + 0.01 * error.clamp(max=1), g)
        step, here = 1.0, dual(P, z)
        # What the last steps gain of the dual is less than its rounding; there the sums tell whether a step is good.
        while step > 1e-6:
            Q = primal(z + step * d)
            if dual(Q, z + step * d) <= here - 1e-4 * step * (g @ d) or gap(Q).abs().amax() <= error / 2:
                break
            step /= 2
        if step <= 1e-6:
            # Rounding of the sums is larger than what is left to gain.
            break
        z = z + step * d
        P = primal(z)
    # X + u + v is rounded to the size of X, and entries that small are zeros. The others take up what the sums lack:
    # from here on P, whose entries are 1 at most, is added to. Scaling would do it only where no entry has to become
    # zero.
    P = torch.where(8 * eps(X.dtype) * (1 + X.abs().amax()) < P, P, torch.zeros_like(P))
    for _ in range(20):
        g = gap(P)
        if g.abs().amax() <= 4 * eps(X.dtype):
            break
        d = solve(P > 0, 1e-10, g)
        P = torch.where(P > 0, P + d[:n].unsqueeze(1) + d[n:], P).clamp(min=0)
    return P


class ToSimplex(Parametrization):
    r"""X to exp(x) / sum(exp(x)) for every vector x along `dim`: softmax.

    Inverse: log p, with zeros as 1e-13 (training hardly moves those).
    Cost:    one pass over the tensor.
    Source:  torch.softmax; torch.distributions.transforms.SoftmaxTransform.
    """

    whole = True

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def map(self, X: Tensor) -> Tensor:
        return X.softmax(self.dim)

    def inverse(self, P: Tensor) -> Tensor:
        return started(Simplex(self.dim), P).clamp(min=ZERO).log()


class Sinkhorn(Parametrization):
    r"""X to exp(X) with rows, then columns divided by their sums, `iterations` times.

    In plain words, D1 exp(X) D2 with the scalings that make all sums 1, up to what the iterations leave.

    Shapes:  (..., n, n) -> (..., n, n).
    Inverse: log P, with zeros as 1e-13.
    Cost:    2 passes over the matrix for each iteration.
    Source:  Sinkhorn and Knopp, 1967; Mena et al., 2018, arXiv:1802.08665. In logarithms, so that nothing overflows.
    """

    # Widely different entries need more iterations than are given; verify then tells how far the sums are off.
    onto_image = False

    def __init__(self, iterations: int = 50):
        super().__init__()
        self.iterations = iterations

    def map(self, X: Tensor) -> Tensor:
        for _ in range(self.iterations):
            X = X - X.logsumexp(-1, keepdim=True)
            X = X - X.logsumexp(-2, keepdim=True)
        return X.exp()

    def inverse(self, P: Tensor) -> Tensor:
        return started(DoublyStochastic(), P).clamp(min=ZERO).log()
