"""Weight norm and spectral norm: torch's own modules, with exact inverses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm

from ..errors import InputRefused
from ..wording import LEAVE_OUT
from .base import NEARLY, CannotReach, Check, Constraint, Parametrization, Singular
from .decompositions import first_pair, remember, svd
from .eigenvalues import surely_positive
from .facts import gram, largest_singular_value
from .numbers import compute_dtype, eps, norm, wide, with_added

# Spectral norms up to which singular values of 1 come from the Gram matrix, to 1e-12.
FAR = 64.0


class AnyTensor(Constraint):
    """All tensors with finite entries: nothing to hold but that."""

    name = "any"
    whole = True

    def by_rows(self, shape: torch.Size) -> bool:
        return True

    def residual(self, W: Tensor) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=W.device)

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return 0.0

    def project(self, W: Tensor) -> Tensor:
        return W

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        return {
            "NaN": torch.full_like(W, float("nan")),
            "one infinite": W.index_fill(0, torch.tensor([0]), float("inf")),
        }


class UnitSpectralNorm(Constraint):
    r"""{W : 1 <= sigma_max <= 1 + within}, the tensor flattened to a matrix with `dim` in front.

    `within` is 0 unless the record of a baked weight says what the u and v that it was divided by had left of it
    (`SpectralNorm.slack`): u^T W v = 1 for u and v of length 1 leaves sigma_max at 1 or above.

    Residual: max(sigma_max - 1 - within, 1 - sigma_max, 0). Nearest point: singular values above 1 + within cut to
    that; where all are below 1, the largest raised to it.

    Rounding moves sigma_max by u^T E v (u, v its singular vectors, E the errors, |E_ij| <= eps/2 |W_ij|), to first
    order. Of independent errors that is far below ||E||_2, some 0.3 eps; where all entries have one size (signs,
    Hadamard matrices) their errors are one number, and it is up to eps/2. Measured in half types, in eps: rounded
    members 0.2 (Gaussian, n = 8) to 0.01 (n = 1024), 0.5 for signs at any n, up to 1.24 for reflections of some of the
    directions (I - 2 J / m), and 0.8 for values of stored u and v, whose lengths are rounded. So 1.3 eps. Computing
    u^T W v in float32 adds up to 2 eps (n = 8 to 4096). sigma_max comes from the Gram matrix in double precision, whose
    own error is up to 6, 10, 43 and 160 eps at n = 8, 64, 512 and 1024, for such reflections (sums of equal terms round
    alike). So 6 + n / 4, n the longer side.
    """

    name = "unit_spectral_norm"
    whole = True
    tells = True

    def __init__(self, dim: int = 0, within: float = 0.0):
        self.dim, self.within = dim, within
        self._last: tuple[Tensor, Tensor] | None = None

    def _sigma(self, W: Tensor) -> Tensor:
        """The largest singular value; `residual` and `detail` of one tensor come after each other, and share it."""
        if self._last is None or self._last[0] is not W:
            self._last = W, largest_singular_value(as_matrix(W, self.dim))
        return self._last[1]

    def check_shape(self, shape: torch.Size) -> None:
        check_dim(shape, self.dim, self.name)

    def residual(self, W: Tensor) -> Tensor:
        above = self._sigma(W) - 1
        return torch.maximum(above - self.within, -above).clamp(min=0)

    def at_least(self, W: Tensor) -> float:
        """By ||W||_F >= sigma_max >= ||W||_F / sqrt(rank), and no row is longer than sigma_max."""
        M = as_matrix(W, self.dim)
        rows = norm(M, (1,))
        size, longest = norm(rows, (0,)).item(), rows.amax().item()
        return max(size / min(M.shape) ** 0.5 - 1 - self.within, longest - 1 - self.within, 1 - size)

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        longer = max(flattened(shape, self.dim))
        return 1.3 * eps(stored) + 2.0 * eps(computed) + (6 + longer / 4) * eps(torch.float64)

    def detail(self, W: Tensor) -> str | None:
        return f"sigma {self._sigma(W).item():.8g}"

    def project(self, W: Tensor) -> Tensor:
        M = as_matrix(W, self.dim)
        U, S, Vh = svd(M)
        if S[0] == 0:
            raise Singular("the zero tensor has no nearest tensor of spectral norm 1", hint=LEAVE_OUT)
        S = S.clamp(max=1 + self.within)
        S[0] = S[0].clamp(min=1)
        P = from_matrix((U * S) @ Vh, W.shape, self.dim)
        remember("svd", as_matrix(P, self.dim), (U, S, Vh), one_by_one=P.is_contiguous())
        return P

    def nearest(self, W: Tensor, stored: torch.dtype | None) -> tuple[Tensor, str | None]:
        """For single precision and half types by the eigenvectors of the Gram matrix, at two thirds of an SVD: a
        singular value s above 1 is then known to eps sigma_max^2 / s of double precision.
        """
        if stored is None or eps(stored) < eps(torch.float32) or eps(W.dtype) > eps(torch.float64):
            return self.project(W), None
        M = as_matrix(W, self.dim)
        A = M if M.size(0) <= M.size(1) else M.mH
        G, size = gram(A)
        l, U = torch.linalg.eigh(G)
        S = l.clamp(min=0).sqrt() * size.squeeze(-1)
        if not 0 < S[-1] <= FAR * (1 + self.within):
            return self.project(W), None
        # Those to be cut; or the largest alone, to be raised.
        first = min(int((1 + self.within >= S).sum()), len(S) - 1)
        U, S = U[:, first:], S[first:]
        rows = U.mH @ A
        P = A + (U * (S.clamp(1, 1 + self.within) / S - 1)) @ rows
        u, v = U[:, -1].contiguous(), (rows[-1] / torch.linalg.vector_norm(rows[-1])).conj().resolve_conj()
        point = from_matrix(P if A is M else P.mH, W.shape, self.dim)
        pair = (u, v) if A is M else (v, u)
        remember("first pair", as_matrix(point, self.dim), pair, one_by_one=point.is_contiguous())
        return point, None

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        farther = 1 + self.within
        return {"times 1.05": 1.05 * farther * W, "times 0.95": 0.95 / farther * W, "zero": 0 * W}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        made, M = cls(), as_matrix(W, 0)
        if W.ndim < 2 or min(M.shape) < 2:
            return []
        explained = made.tolerance(W.shape, stored, compute_dtype(stored))
        return [] if surely_apart(M, 1, 1.02 * max(NEARLY, explained)) else [made]


def surely_apart(M: Tensor, sigma: float, off: float) -> bool:
    r"""Is the largest singular value of a matrix farther than `off` from `sigma`, for sure? False where it is not
    known.

    G = M M^H of the shorter side (k by k) has the largest eigenvalue sigma_max^2. That is below a where a I - G has a
    Cholesky factor, and above it where it has none: in both cases whatever rounding did, where a leaves room for d =
    (n + k) u ||M||_F^2 of G (n the longer side) and 2 (k + 1)^2 u a of the factorization (`surely_positive`; Higham,
    2002, theorem 10.7).

    Cost: the product, which other sets ask for as well, and O(k^3 / 3), where eigenvalues take four times as long.
    """
    G, scale = gram(M)
    unit, square = eps(G.dtype) / 2, scale.square().item()
    trace, length = (part.item() * square for part in (G.diagonal().real.sum(), torch.linalg.matrix_norm(G)))
    rounded = sum(M.shape) * unit * trace
    low, high = max(sigma - off, 0.0) ** 2, (sigma + off) ** 2 + rounded
    # The sum of squares of eigenvalues is no less than the largest square, and no more than the largest times them all.
    if length + rounded < low or length**2 > high * trace:
        return True
    less = G * -square
    if low and bool(surely_positive(with_added(less, low), rounded)):
        return True
    most = (1 + 2 * (G.size(-1) + 1) ** 2 * unit) * high
    return bool(torch.linalg.cholesky_ex(with_added(less, most)).info)


def check_dim(shape: torch.Size | tuple[int, ...], dim: int | None, who: str) -> None:
    """Raise InputRefused where a tensor of this shape has no such dimension."""
    if dim is not None and not -len(shape) <= dim < len(shape):
        seen = "x".join(map(str, shape)) or "a scalar"
        last = len(shape) - 1
        hint = ("dim=0" if last == 0 else f"from dim=0 to dim={last}") if shape else LEAVE_OUT
        raise InputRefused(f"{who} has no dimension {dim} in a tensor that the maths sees as {seen}", hint=hint)


def as_matrix(W: Tensor, dim: int) -> Tensor:
    """(dim, everything else), as torch's spectral norm flattens; a vector becomes one column."""
    return W.reshape(-1, 1) if W.ndim < 2 else W.movedim(dim, 0).flatten(1)


def flattened(shape: torch.Size | tuple[int, ...], dim: int) -> tuple[int, int]:
    """The shape of `as_matrix`."""
    if len(shape) < 2:
        return math.prod(shape), 1
    return shape[dim], math.prod(shape) // max(shape[dim], 1)


def from_matrix(M: Tensor, shape: torch.Size, dim: int) -> Tensor:
    if len(shape) < 2:
        return M.reshape(shape)
    moved = list(shape)
    front = moved.pop(dim)
    return M.reshape(front, *moved).movedim(0, dim).contiguous()


# Whatever rounding may explain of very long sums, a length that is off by this much is off.
MOST = 1e-2


def length_error(lengths: Tensor, wanted: Tensor, entries: int, stored: torch.dtype) -> tuple[float, float]:
    """(the largest relative difference, its tolerance) of lengths of m = `entries` numbers each from those that are
    stored.

    Rounding the entries moves a length by up to eps/2 (measured 0.2 to 0.5). The map divides by a length of m squares
    added in the dtype it computes in, and squares of one size round alike in a plain sum: measured m / 18 eps at worst,
    for equal entries (sqrt(m) / 4 for Gaussian ones). Below the smallest normal number an entry has its absolute
    rounding, so no length counts as less than sqrt(m) of those.
    """
    error = (lengths - wanted).abs() / wanted.clamp(min=math.sqrt(entries) * torch.finfo(stored).tiny)
    return error.max().item(), min(eps(stored) + (4 + entries / 16) * eps(compute_dtype(stored)), MOST)


class WeightNorm(Parametrization, _WeightNorm):
    r"""(g, v) to g v / ||v||, the norm over every dimension but `dim`; over the whole tensor with dim=none.

    In plain words, a length and a direction for each output.

    Shapes:  g has v's rank with ones except at `dim` (0-d for dim=none); v has the weight's shape.
    Inverse: (||W||, W), exact to rounding. A zero slice has no direction: raises CannotReach.
    Cost:    one pass over the tensor.
    Source:  torch.nn.utils.parametrizations.weight_norm; Salimans and Kingma, 2016, arXiv:1602.07868.
    """

    stored_originals = (1,)
    whole = True

    @classmethod
    def threads_matter(cls, dim: int | None = 0) -> bool:
        # Only the norm of a whole tensor is summed by several threads, and its bits depend on how many.
        return dim is None

    @classmethod
    def by_rows(cls, shape: torch.Size, dim: int | None = 0) -> frozenset[str]:
        return frozenset({"original0", "original1"} if dim == 0 else ())

    @classmethod
    def made_by_rows(cls, shape: torch.Size, dim: int | None = 0) -> bool:
        return dim == 0

    def __init__(self, dim: int | None = 0):
        _WeightNorm.__init__(self, dim)

    @classmethod
    def check_shape(cls, shape: torch.Size, dim: int | None = 0) -> None:
        check_dim(shape, dim, "weight_norm")

    def map(self, g: Tensor, v: Tensor) -> Tensor:
        if v.is_cuda and v.dtype == torch.float64:
            # torch's kernel for CUDA sums the squares in single precision and is off by 3e-8.
            return v * (g / torch.norm_except_dim(v, 2, self.dim))
        return _WeightNorm.forward(self, g, v)

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        # torch's kernel has half precision of its own.
        return self.view.back(self.map(g, self.view.into(v)), v.shape)

    @classmethod
    def weight_shape(cls, g: tuple[int, ...], v: tuple[int, ...], **arguments: Any) -> tuple[int, ...]:
        return v

    def right_inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.view.into(W)
        if seen.is_meta and -1 <= self.dim < seen.ndim:
            # Its shape is known; computing a norm without data would load sympy, half a second and 30 MB.
            kept = [] if self.dim == -1 else [size if d == self.dim else 1 for d, size in enumerate(seen.shape)]
            return W.new_empty(kept), W
        g, v = _WeightNorm.right_inverse(self, seen)
        return g, self.view.back(v, W.shape)

    def inverse(self, W: Tensor) -> tuple[Tensor, Tensor]:
        g, v = _WeightNorm.right_inverse(self, W)
        zero = (g == 0).reshape(-1).nonzero().reshape(-1).tolist()
        if zero and not W.is_meta:
            row = zero[0] + (self.first_row or 0)
            where = (
                "the whole tensor is zero"
                if g.numel() == 1 and self.first_row is None
                else f"slice {row} of dimension {self.dim} is zero"
            )
            raise CannotReach(f"weight_norm needs a direction, and {where}", hint=LEAVE_OUT)
        return g, v

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        """Every slice has the length that g says."""
        lengths, entries = torch.norm_except_dim(value, 2, self.dim), value.numel() // originals[0].numel()
        return [Check("norm", *length_error(lengths, originals[0].abs(), entries, self.stored_dtype))]


# Above this residual u and v are no singular vectors of anything, and nothing follows from them.
CONVERGED = 0.1


class SpectralNorm(Parametrization, _SpectralNorm):
    r"""W to W / (u^T W v), with u and v the stored first singular vectors; the largest singular value becomes 1.

    Shapes:  any with 1 dimension or more, flattened to (dim, everything else).
    Inverse: W itself where its norm is 1, with u and v its exact singular vectors.
    Cost:    one matrix-vector product; the inverse one SVD.
    Source:  torch.nn.utils.parametrizations.spectral_norm; Miyato et al., 2018, arXiv:1802.05957.
    """

    evaluated_on_registration = True
    unpromised = (
        "its u and v are far from the largest singular value: more steps of the power method (forward passes in "
        "training) bring them there"
    )
    whole = True
    # u and v are those of the weight it started from until training moves them along.
    onto_image = False

    def __init__(self, weight: Tensor, n_power_iterations: int = 1, dim: int = 0):
        if not weight.is_meta or weight.ndim < 2:
            _SpectralNorm.__init__(self, weight, n_power_iterations, dim)
            return
        # Without data there is nothing to find: drawing u and v on the meta device imports torch's compiler, half a
        # second, and 15 power steps through Python's kernels take another 90 ms.
        _SpectralNorm.__init__(self, weight.new_empty(1))
        self.dim, self.n_power_iterations = dim % weight.ndim, n_power_iterations
        rows, columns = self._reshape_weight_to_matrix(weight).shape
        self.register_buffer("_u", weight.new_empty(rows))
        self.register_buffer("_v", weight.new_empty(columns))

    @classmethod
    def check_shape(cls, shape: torch.Size, dim: int = 0, n_power_iterations: int = 1) -> None:
        check_dim(shape, dim, "spectral_norm")

    @classmethod
    def make(cls, value: Tensor, dim: int = 0, n_power_iterations: int = 1) -> SpectralNorm:
        return cls(value, n_power_iterations, dim)

    @classmethod
    def to_invert(cls, value: Tensor, **arguments: Any) -> Parametrization:
        """Without the power method, where u and v are all that it leaves."""
        replaced = value.ndim > 1 and cls.inverse is SpectralNorm.inverse
        return cls.make(value.to("meta") if replaced else value, **arguments)

    def map(self, W: Tensor) -> Tensor:
        return _SpectralNorm.forward(self, W)

    def forward(self, W: Tensor) -> Tensor:
        return torch.empty_like(W) if W.is_meta else self.view.back(self.map(self.view.into(W)), W.shape)

    def right_inverse(self, W: Tensor) -> Tensor:
        return W

    def inverse(self, W: Tensor) -> Tensor:
        if W.ndim > 1 and not W.is_meta:
            self._u, self._v = first_pair(as_matrix(W, self.dim))
        return W

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        """u and v have length 1.

        Their entries are rounded to the stored dtype, which moves a length by up to 0.3 eps (measured, n = 8 to 4096).
        They are divided by a length that is computed in float32 or wider: up to 1.2 eps of that, and for equal entries,
        whose squares round alike in a sum, up to n / 300. Those of an SVD in double precision are off by up to 6 eps of
        that, 17 for equal entries.
        """
        if not hasattr(self, "_u"):
            return []
        error = max(abs(torch.linalg.vector_norm(x.to(wide(x.dtype, x.device))).item() - 1) for x in (self._u, self._v))
        longer, stored = max(len(self._u), len(self._v)), self.stored_dtype
        tolerance = eps(stored) + (2 + longer / 128) * eps(compute_dtype(stored)) + 32 * eps(torch.float64)
        return [Check("unit_u_v", error, tolerance)]

    def slack(self, image: Constraint, value: Tensor) -> float:
        r"""How far beyond rounding |sigma_max - 1| may be with this u: what a power method that has not ended leaves.

        Of the value W = X / (u^T X v), u of length 1, let theta = ||W^T u||, v' = W^T u / theta and
        r = ||W v' - theta u|| / sqrt(2), which is sqrt((||W v' - theta u||^2 + ||W^T u - theta v'||^2) / 2).

        1. Some singular value lies within r of theta: theta is the Rayleigh quotient of (u, v') / sqrt(2) in the
        Hermitian
           matrix [[0, W], [W^T, 0]], whose eigenvalues are the singular values and their negatives, and r its residual
           (Weyl). And theta <= sigma_max.
        2. Let w_i = (u^T u_i)^2 be u's shares of the singular directions. The sigma_i^2, weighed by w_i, have mean
        theta^2 and
           variance 2 r^2 theta^2. A single weight w at sigma_max^2 allows (Cantelli)
           sigma_max - theta <= r sqrt((1 - w) / w) / sqrt(2), which is 2 r for w = 1/9.

        So sigma_max lies in [theta, theta + 2 r] unless u has lost the largest direction (|cos| < 1/3 with it), and
        then u promises nothing that a file could rely on. What is promised is |theta - 1| + 2 r, where
          - r <= 1/10: torch's registration (15 steps from a random u) leaves r = 0.03 at n = 1024, 0.04 at 256, 0.06 at
          64 and at
            8 (99 of 100 Gaussian matrices; the worst of 20,000 at n = 4 0.19) and sigma_max - 1 = 0.03 to 0.08; of
            these 95 of 100 at n = 64, and 98 to 100 of 100 at other sizes, lie within 2 r. An unrelated u and v leave r
            = 0.7 to 20;
          - |theta - 1| <= 2 r^2 plus rounding: u^T W v is 1 by the division, and theta is the same for v' = v, or of
          the next half
            step, where u is younger than v (the spelling from before parametrize).
        Trained u and v, and those of an SVD, have an r of some 0.4 eps of their dtype, and promise no more than that.
        """
        if not hasattr(self, "_u"):
            return 0.0
        W, u = as_matrix(value, self.dim), self._u.to(value.dtype)
        u = u / torch.linalg.vector_norm(u)
        v = W.mH @ u
        theta = torch.linalg.vector_norm(v).item()
        if not 0 < theta < math.inf:
            return 0.0
        r = torch.linalg.vector_norm(W @ (v / theta) - theta * u).item() / math.sqrt(2)
        rounding = image.tolerance(value.shape, self.stored_dtype, compute_dtype(self.stored_dtype))
        summing = 4 * rounding + sum(W.shape) / 16 * eps(compute_dtype(self.stored_dtype))
        if not (r <= CONVERGED and abs(theta - 1) <= 2 * r**2 + summing):
            return 0.0
        return abs(theta - 1) + 2 * r
