"""Probability vectors and doubly stochastic matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ..wording import given
from .base import MEMBER, Constraint, Parametrization, Part, Singular, square, started
from .conjugate_gradients import conjugate_gradients
from .facts import any_entry
from .moments import lost_below
from .norm import check_dim
from .numbers import eps, unit_roundoff

# Zeros have no logarithm: they start from this probability, which no entry of a float64 result shows.
ZERO = 1e-13


# Of Newton's method on the dual: some ten steps for entries up to 1, 75 for entries of 1000.
STEPS, LEAST_STEP = 1000, 1e-9
RIDGE, RIDGE_SHARE = 1e-12, 0.1
# How far from 1 the sums may be after Newton's steps, however much of it rounding explains.
FOUND = 1e-6

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


def _below(W: Tensor) -> Tensor:
    """Entries that no rounding of a probability explains."""
    return W < -0.01


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
        if any_entry(W, _below):
            return []
        found = [cls(dim) for dim in (-1, -2) if W.ndim >= -dim and W.size(dim) > 1]
        return [c for c in found if bool(c.residual(W) < 0.05)]


class Stochastic(Simplex):
    """Stochastic matrices (rows of probabilities, or columns with dim=-2): the name that matrices use for `simplex`."""

    name = "stochastic"

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return []  # told as `simplex`


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
        if W.ndim < 2 or W.size(-1) != W.size(-2) or W.size(-1) < 2 or any_entry(W, _below):
            return []
        return [cls()] if bool((cls().residual(W) < 0.05).all()) else []


def nearest_doubly_stochastic(X: Tensor) -> Tensor:
    r"""P = max(X + u 1^T + 1 v^T, 0) with u, v such that rows and columns sum to 1, by Newton's method on the dual
    theta(u, v) = ||P||_F^2 / 2 - sum(u) - sum(v), which is convex and piecewise quadratic.

    Raises Singular where STEPS of them leave more of the sums than rounding does.
    Cost: a few passes over the matrix for each of some ten steps, and two for each of the ten conjugate gradients that
          one takes: together 3 products at n = 1024, where dense systems of 2 n equations took 90.
    """
    n = X.size(-1)
    # The projection onto the sums alone; every row then has a positive entry to start from.
    u = (1 - X.sum(1)) / n
    v = (1 - (X + u.unsqueeze(1)).sum(0)) / n
    z, largest = torch.cat([u, v]), X.abs().amax().item()
    P = _cut(X, z)
    for _ in range(STEPS):
        g = _lacking(P)
        error = g.abs().amax().item()
        if error <= 1e-14 * n:
            break
        # The ridge shrinks with the error, and so does what is left of the system: the last steps stay quadratic.
        ridge = RIDGE + RIDGE_SHARE * min(error, 1.0) / max(largest, 1.0) ** 0.5
        step = _searched(X, z, P, g, _moves(P > 0, ridge, g, min(1e-3, error)))
        if step is None:
            # Rounding of the sums is larger than what is left to gain.
            break
        z, P = step
    if not error <= min(MEMBER * (1 + largest), FOUND):
        raise _not_found(error)
    # X + u + v is rounded to the size of X, and entries that small are zeros. The others take up what the sums lack:
    # from here on P, whose entries are 1 at most, is added to. Scaling would do it only where no entry has to become
    # zero.
    P = torch.where(8 * eps(X.dtype) * (1 + largest) < P, P, torch.zeros_like(P))
    for _ in range(20):
        g = _lacking(P)
        if g.abs().amax() <= 4 * eps(X.dtype):
            break
        d = _moves(P > 0, 1e-10, g, 1e-3)
        P = torch.where(P > 0, P + d[:n].unsqueeze(1) + d[n:], P).clamp(min=0)
    if not (error := _lacking(P).abs().amax().item()) <= MEMBER:
        raise _not_found(error)
    return P


def _not_found(error: float) -> Singular:
    return Singular(
        f"its nearest doubly stochastic matrix was not found: sums are {error:.2g} from 1",
        hint=f"{given('init', 'raw')} registers the tensor as it is",
    )


def _cut(X: Tensor, z: Tensor) -> Tensor:
    """The primal point of a dual one."""
    n = X.size(-1)
    return (X + z[:n].unsqueeze(1) + z[n:]).clamp(min=0)


def _lacking(P: Tensor) -> Tensor:
    """What the sums lack of 1: the dual's gradient, downhill."""
    return 1 - torch.cat([P.sum(1), P.sum(0)])


def _moves(kept: Tensor, ridge: float, g: Tensor, left: float) -> Tensor:
    """What to add to u and v so that the sums change by g, up to this share of it, where just the entries that are kept
    follow.

    The system is singular without a ridge: u + t, v - t give the same P, and far from the solution no entry of some
    rows is kept.
    """
    M, n = kept.to(g.dtype), kept.size(-1)
    diagonal = torch.cat([M.sum(1), M.sum(0)]) + ridge

    def apply(h: Tensor) -> Tensor:
        return torch.cat([M @ h[n:], h[:n] @ M]) + diagonal * h

    return conjugate_gradients(apply, diagonal, g, left * torch.linalg.vector_norm(g).item())


def _searched(X: Tensor, z: Tensor, P: Tensor, g: Tensor, step: Tensor) -> tuple[Tensor, Tensor] | None:
    """(dual point, primal point) after the largest of the step, its half, ... that makes theta smaller.

    theta is convex, so it falls as long as its slope along the step does not turn. What the last steps gain of it is
    less than its rounding; there half of the error will do.
    """

    def theta(P: Tensor, z: Tensor) -> Tensor:
        return P.square().sum() / 2 - z.sum()

    here, slope, error, length = theta(P, z), g @ step, g.abs().amax(), 1.0
    while length > LEAST_STEP:
        y = z + length * step
        Q = _cut(X, y)
        lacking = _lacking(Q)
        falls = lacking @ step >= 0 or theta(Q, y) <= here - 1e-4 * length * slope
        if bool(falls) or bool(lacking.abs().amax() <= error / 2):
            return y, Q
        length /= 2
    return None


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
