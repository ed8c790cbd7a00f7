"""Bounds on the spectral norm and the spectral radius."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..wording import LEAVE_OUT
from .base import CannotReach, Constraint, Parametrization, Part, Singular, matrix, square
from .decompositions import SMALL, eig, eigenvalues
from .eigenvalues import FRAMES_COMPUTED, certain_excess, eigenvalue_tolerance, measuring, surely_positive
from .facts import largest_singular_value
from .numbers import eps, identity, per_matrix, scale_of, unit_roundoff

# A step is a hundredth of a product.
PERRON_STEPS = 100
# In eps of the stored dtype and of the one a map computed in.
AOL_ROUNDED, AOL_COMPUTED = 0.7, 0.8
# What U min(S, c) V^H is off by where it is computed, in eps: 5.7 at n = 8, 11 at 64, 27 at 512 were measured in
# float32, and more at n = 6 on a GPU, whose SVD of small matrices is another.
CUT, CUT_GROWTH = 12.0, 1.5


def cut_tolerance(n: int, computed: torch.dtype) -> float:
    """How far the largest singular value of U min(S, c) V^H may be from c as it is computed, as a share of it."""
    return (CUT + CUT_GROWTH * n**0.5) * eps(computed)


class SpectralCap(Constraint):
    r"""{W : largest singular value at most c}, for each matrix. Residual max(sigma / c - 1, 0); nearest: larger ones
    cut to c.

    Tolerance: `eigenvalue_tolerance`, and what an SVD or eigendecomposition in its own dtype leaves (`cut_tolerance`).
    """

    name = "spectral_cap"

    def __init__(self, c: float = 1.0):
        self.c = c

    def check_shape(self, shape: torch.Size) -> None:
        matrix(shape, self.name)

    def residual(self, W: Tensor) -> Tensor:
        return (largest_singular_value(W) / self.c - 1).clamp(min=0)

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return eigenvalue_tolerance(min(shape[-2:]), stored, computed) + cut_tolerance(min(shape[-2:]), computed)

    def project(self, W: Tensor) -> Tensor:
        return cut_singular_values(W, self.c)

    def detail(self, W: Tensor) -> str | None:
        return f"largest singular value {largest_singular_value(W).max().item():.4g}"

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        at_bound = self.c * W / largest_singular_value(W)[..., None, None]
        return {"sigma 1.05 c": 1.05 * at_bound}


class AolBound(Constraint):
    r"""{W : the largest eigenvalue of |W^T W| (entrywise absolute values) is 1}: what AOL layers reach.

    It bounds the spectral norm: sigma(W)^2 <= rho(|W^T W|) = 1, so every member has sigma <= 1, and orthonormal columns
    are members. (The values of `aol` are the members whose columns can be weighed: |W^T W| s = s for some s > 0.)
    Residual: |sqrt(rho) - 1|. The nearest member is not known; project scales the matrix by 1 / sqrt(rho).
    Tolerance: grows with the root of the number k of columns: where W^T W is I, rounding puts about 0.3 eps k^{-1/2}
    into each place that was 0, and their absolute values add up over k columns.
    """

    name = "aol"
    projection = "near"

    def check_shape(self, shape: torch.Size) -> None:
        matrix(shape, self.name)

    def residual(self, W: Tensor) -> Tensor:
        return (aol_size(W) - 1).abs()

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        growth = 1 + shape[-1] ** 0.5 / 4
        return growth * (AOL_ROUNDED * eps(stored) + AOL_COMPUTED * eps(computed)) + 6 * measuring(shape[-1])

    def project(self, W: Tensor) -> Tensor:
        sizes = aol_size(W)
        if bool((sizes == 0).any()):
            raise Singular("a zero matrix cannot be scaled to the bound", hint=LEAVE_OUT)
        return W / sizes[..., None, None]

    def detail(self, W: Tensor) -> str | None:
        return f"sqrt(rho(|W^T W|)) = {aol_size(W).max().item():.4g}"

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        return {"times 1.05": 1.05 * W, "times 0.94": 0.94 * W, "zero": 0 * W}


def aol_size(W: Tensor) -> Tensor:
    """sqrt(rho(|W^T W|)): W divided by it is the value of `aol` that has W's proportions."""
    size = scale_of(W, (-2, -1))
    W = W / size
    A = (W.mT @ W).abs()
    found = perron(A)
    rho = found[0] if found else torch.linalg.eigvalsh(A).amax(-1)
    return rho.clamp(min=0).sqrt() * size.reshape(size.shape[:-2])


class SchurStable(Constraint):
    r"""{A : every eigenvalue has absolute value at most gamma}: x <- A x does not grow.

    Residual: (max |l| - gamma) / ||A||_2, at least 0, less what computing and rounding may have put into that
    eigenvalue (`certain_excess`). Tolerance: what a product of frames in its own dtype leaves. The nearest stable
    matrix is not known in closed form; project scales an unstable matrix down to radius gamma.
    """

    name = "schur_stable"
    projection = "near"

    def __init__(self, gamma: float = 0.99):
        self.gamma = gamma

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def residual(self, W: Tensor) -> Tensor:
        return self._excess(W)

    def _excess(self, W: Tensor, rounded: float = 0.0) -> Tensor:
        # No eigenvalue is larger than the largest singular value.
        G = self.gamma**2 * identity(W, W.size(-1)) - W.mH @ W
        if bool(surely_positive(G, W.size(-1) * eps(W.dtype) * per_matrix(W).square()).all()):
            return torch.zeros_like(G[..., 0, 0])
        values, vectors = eig(W)
        return certain_excess(W, values, vectors, values.abs() - self.gamma, rounded)

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return FRAMES_COMPUTED * shape[-1] ** 0.5 * eps(computed)

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        return [Part("", self._excess(W, 1.02 * unit_roundoff(stored)), self.tolerance(W.shape, stored, computed))]

    def project(self, W: Tensor) -> Tensor:
        return W * (self.gamma / spectral_radius(W).clamp(min=self.gamma))[..., None, None]

    def detail(self, W: Tensor) -> str | None:
        return f"spectral radius {spectral_radius(W).max().item():.4g}"

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        # Not on the edge, where rounding of a matrix far from normal shows more than of a symmetric one.
        W = torch.randn(shape, generator=generator, dtype=dtype)
        return 0.9 * self.gamma * W / spectral_radius(W)[..., None, None]

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        return {"radius 1.05 gamma": 1.05 * self.gamma * W / spectral_radius(W)[..., None, None]}


def spectral_radius(A: Tensor) -> Tensor:
    return eigenvalues(A).abs().amax(-1)


class CutSingularValues(torch.autograd.Function):
    r"""U min(S, c) V^H of X = U S V^H, with a derivative that equal singular values do not break.

    The derivative of an SVD divides by differences of singular values, which at an orthogonal matrix are all zero;
    that of the whole map has divided differences of min(s, c) instead (Daleckii and Krein).
    """

    @staticmethod
    def forward(ctx: Any, X: Tensor, c: float) -> Tensor:
        U, S, Vh = torch.linalg.svd(X, full_matrices=False)
        ctx.save_for_backward(U, S, Vh)
        ctx.c = c
        return (U * S.clamp(max=c).unsqueeze(-2)) @ Vh

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None]:
        U, S, Vh = ctx.saved_tensors
        cut = S.clamp(max=ctx.c)
        gaps = S.unsqueeze(-1) - S.unsqueeze(-2)
        equal = gaps.abs() <= 1e-6 * S.amax(-1)[..., None, None]
        slope = ((S.unsqueeze(-1) + S.unsqueeze(-2)) / 2 < ctx.c).to(S.dtype)
        even = torch.where(
            equal, slope, (cut.unsqueeze(-1) - cut.unsqueeze(-2)) / torch.where(equal, torch.ones_like(gaps), gaps)
        )
        sums = S.unsqueeze(-1) + S.unsqueeze(-2)
        odd = torch.where(sums > 0, (cut.unsqueeze(-1) + cut.unsqueeze(-2)) / sums, torch.ones_like(sums))
        H = U.mH @ G @ Vh.mH
        inner = even * (H + H.mH) / 2 + odd * (H - H.mH) / 2
        # Outside the range of U and V (one of them where X is not square) each direction is scaled by min(s, c) / s.
        scale = (ctx.c / S.clamp(min=ctx.c)).unsqueeze(-2)
        left = (G @ Vh.mH - U @ H) * scale
        right = (U * scale) @ (U.mH @ G - H @ Vh)
        return U @ inner @ Vh + left @ Vh + right, None


cut_singular_values: Callable[[Tensor, float], Tensor] = CutSingularValues.apply


class ScaledToCap(Parametrization):
    r"""X to X min(1, c / sigma), sigma its largest singular value: a Lipschitz bound c on x -> W x.

    In plain words, the whole matrix is scaled down where its norm is above c. The nearest point cuts singular values
    instead, and that is where a fit starts from; on the set both leave everything as it is.

    Shapes:  (..., n, k) -> (..., n, k); --view flatten for a convolution as one matrix.
    Inverse: W itself.
    Cost:    the Gram matrix of the shorter side and its eigenvalues.
    Source:  Gouk et al., 2018, arXiv:1804.04368.
    """

    def __init__(self, c: float = 1.0):
        super().__init__()
        self.c = c

    def map(self, X: Tensor) -> Tensor:
        G = X @ X.mH if X.size(-2) <= X.size(-1) else X.mH @ X
        # Clamped before the root, whose derivative at a zero matrix is infinite.
        sigma = torch.linalg.eigvalsh(G).amax(-1).clamp(min=self.c**2).sqrt()
        return X * (self.c / sigma).unsqueeze(-1).unsqueeze(-1)


class CutToCap(Parametrization):
    r"""X = U S V^H to U min(S, gamma) V^H: spectral norm at most gamma, so every eigenvalue within gamma too.

    In plain words, the nearest matrix that shrinks (or keeps) every vector; powers of it do not grow.
    Stable matrices whose spectral norm is above gamma are not among its values.

    Shapes:  (..., n, n) -> (..., n, n).
    Inverse: W itself.
    Cost:    one SVD.
    Source:  the nearest point of a spectral norm ball; stable recurrent networks: Miller and Hardt, 2018,
             arXiv:1805.10369.
    """

    is_projection = True

    def __init__(self, gamma: float = 0.99):
        super().__init__()
        self.gamma = gamma

    @classmethod
    def check_shape(cls, shape: torch.Size, gamma: float = 0.99) -> None:
        square(shape, "schur_stable")

    def map(self, X: Tensor) -> Tensor:
        return cut_singular_values(X, self.gamma)


class AlmostOrthogonal(Parametrization):
    r"""X to X D with D = diag(sum_j |X^T X|_ij)^(-1/2): spectral norm at most 1, orthonormal columns kept.

    Shapes:  (..., n, k) -> (..., n, k); the columns are scaled, so in a linear layer the inputs.
    Inverse: X = W diag(s) with |W^T W| s = s, s > 0, which gives W back: exact where the largest eigenvalue rho of
             |W^T W| is 1. Any other weight keeps its proportions and is divided by sqrt(rho). Starting from X = W
             instead would scale every column differently. Columns that s cannot weigh (zero, or orthogonal to all
             longer ones) raise CannotReach.
    Cost:    the Gram matrix; the inverse another, and 20 products of k x k where columns are nearly orthogonal.
    Source:  Prach and Lampert, 2022, arXiv:2208.03160.
    """

    def map(self, X: Tensor) -> Tensor:
        return X * (X.mT @ X).abs().sum(-1).rsqrt().unsqueeze(-2)

    def inverse(self, W: Tensor) -> Tensor:
        s = perron_vector((W.mT @ W).abs())
        small = (s < 1e-9 * s.amax(-1, keepdim=True)).any(0) if s.ndim > 1 else s < 1e-9 * s.amax()
        if bool(small.any()):
            column = int(small.reshape(-1, small.shape[-1]).any(0).nonzero()[0])
            raise CannotReach(
                f"aol cannot reach this matrix: its column {column} is zero, or orthogonal to the others and shorter",
                hint="spectral_cap:c=1 bounds the same norm and keeps the proportions",
            )
        X = W * s.unsqueeze(-2)
        return X * (torch.linalg.matrix_norm(W) / torch.linalg.matrix_norm(X))[..., None, None]


def perron(A: Tensor) -> tuple[Tensor, Tensor] | None:
    r"""(rho, s), A s = rho s with s > 0, of large symmetric non-negative matrices A; None where PERRON_STEPS powers do
    not tell.

    For every s > 0 rho lies between the least and the largest (A s)_i / s_i (Collatz, 1942; Wielandt, 1950); at what is
    given the two are equal but for rounding of those sums. Of random columns A is nearly a multiple of 1 1^T beside a
    diagonal, and ten steps are enough; of nearly orthonormal ones all its eigenvalues are alike, and no number is.
    """
    if A.size(-1) <= SMALL:
        return None
    s, narrow = torch.ones_like(A[..., 0]), 2 * A.size(-1) ** 0.5 * eps(A.dtype)
    rho, found = torch.zeros_like(A[..., 0, 0]), torch.zeros_like(A[..., 0, 0], dtype=torch.bool)
    for _ in range(PERRON_STEPS):
        image = (A @ s.unsqueeze(-1)).squeeze(-1)
        least, most = (image / s).aminmax(dim=-1)
        # Each matrix stops by itself; where one of a batch tells nothing, all are asked the other way.
        rho = torch.where(found, rho, (least + most) / 2)
        s = torch.where(found.unsqueeze(-1), s, image / image.amax(-1, keepdim=True).clamp(min=1e-300))
        if not bool((s > 0).all()):
            return None
        found = found | (most - least <= narrow * most)
        if bool(found.all()):
            return rho, s
    return None


def perron_vector(A: Tensor) -> Tensor:
    """A positive s with A s = rho s of a symmetric non-negative A, one for each block where A falls apart: by `perron`,
    or by squaring.
    """
    if found := perron(A):
        return found[1]
    M = A / A.amax((-1, -2), keepdim=True).clamp(min=1e-300)
    for _ in range(20):
        M = M @ M
        M = M / M.amax((-1, -2), keepdim=True).clamp(min=1e-300)
    s = M.sum(-1)
    for _ in range(10):
        s = (A @ s.unsqueeze(-1)).squeeze(-1)
        s = s / s.amax(-1, keepdim=True).clamp(min=1e-300)
    return s
