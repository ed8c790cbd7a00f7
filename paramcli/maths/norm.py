"""Weight norm and spectral norm: torch's own modules, with exact inverses."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm

from ..errors import InputRefused
from .base import CannotReach, Check, Constraint, Parametrization, Singular

# A registered spectral norm divides by u^T W v, which the power method approaches from below: torch's
# 15 warm-up steps leave the true norm up to 2 % above 1.
POWER_METHOD = 2e-2
# Lengths stored or recomputed in half precision: a few eps of bfloat16.
NORM_TOLERANCE = 2e-2


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
        return {"NaN": torch.full_like(W, float("nan")), "one infinite": W.index_fill(0, torch.tensor([0]), float("inf"))}


class UnitSpectralNorm(Constraint):
    r"""{W : largest singular value 1}, the tensor flattened to a matrix with `dim` in front.

    Residual: |sigma_max - 1|. Nearest point: singular values above 1 cut to 1; where all are below, the largest
    raised to 1.
    """

    name = "unit_spectral_norm"
    whole = True

    def __init__(self, dim: int = 0):
        self.dim = dim

    def check_shape(self, shape: torch.Size) -> None:
        check_dim(shape, self.dim, self.name)

    def residual(self, W: Tensor) -> Tensor:
        return (largest_singular_value(as_matrix(W, self.dim)) - 1).abs()

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return POWER_METHOD + super().tolerance(shape, stored, computed)

    def project(self, W: Tensor) -> Tensor:
        M = as_matrix(W, self.dim)
        U, S, Vh = torch.linalg.svd(M, full_matrices=False)
        if S[0] == 0:
            raise Singular("the zero tensor has no nearest tensor of spectral norm 1")
        S = S.clamp(max=1)
        S[0] = 1
        return from_matrix((U * S) @ Vh, W.shape, self.dim)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        return {"times 1.06": 1.06 * W, "times 0.94": 0.94 * W, "zero": 0 * W}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()] if W.ndim > 1 and min(as_matrix(W, 0).shape) > 1 else []


def check_dim(shape: torch.Size | tuple[int, ...], dim: int | None, who: str) -> None:
    """Raise InputRefused where a tensor of this shape has no such dimension."""
    if dim is not None and not -len(shape) <= dim < len(shape):
        seen = "x".join(map(str, shape)) or "a scalar"
        raise InputRefused(f"{who} has no dimension {dim} in a tensor that the maths sees as {seen}")


def as_matrix(W: Tensor, dim: int) -> Tensor:
    """(dim, everything else), as torch's spectral norm flattens; a vector becomes one column."""
    return W.reshape(-1, 1) if W.ndim < 2 else W.movedim(dim, 0).flatten(1)


def from_matrix(M: Tensor, shape: torch.Size, dim: int) -> Tensor:
    if len(shape) < 2:
        return M.reshape(shape)
    moved = list(shape)
    front = moved.pop(dim)
    return M.reshape(front, *moved).movedim(0, dim).contiguous()


def largest_singular_value(M: Tensor) -> Tensor:
    """By the Gram matrix of the shorter side: one product and one eigvalsh; relative error about eps."""
    G = M @ M.mH if M.size(-2) <= M.size(-1) else M.mH @ M
    return torch.linalg.eigvalsh(G).amax(-1).clamp(min=0).sqrt()


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
    def weight_shape(cls, g: tuple[int, ...], v: tuple[int, ...], **arguments) -> tuple[int, ...]:
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
            where = "the whole tensor is zero" if g.numel() == 1 and self.first_row is None else f"slice {row} of dimension {self.dim} is zero"
            raise CannotReach(f"weight_norm needs a direction, and {where}", hint="leave this tensor out with -t")
        return g, v

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        g = originals[0].abs()
        error = (torch.norm_except_dim(value, 2, self.dim) - g).abs().max() / g.max().clamp(min=1e-300)
        return [Check("norm", error.item(), NORM_TOLERANCE)]


class SpectralNorm(Parametrization, _SpectralNorm):
    r"""W to W / (u^T W v), with u and v the stored first singular vectors; the largest singular value becomes 1.

    Shapes:  any with 1 dimension or more, flattened to (dim, everything else).
    Inverse: W itself where its norm is 1, with u and v its exact singular vectors.
    Cost:    one matrix-vector product; the inverse one SVD.
    Source:  torch.nn.utils.parametrizations.spectral_norm; Miyato et al., 2018, arXiv:1802.05957.
    """

    evaluated_on_registration = True
    whole = True
    # u and v are those of the weight it started from until training moves them along.
    onto_image = False

    def __init__(self, weight: Tensor, n_power_iterations: int = 1, dim: int = 0):
        _SpectralNorm.__init__(self, weight, n_power_iterations, dim)

    @classmethod
    def check_shape(cls, shape: torch.Size, dim: int = 0, n_power_iterations: int = 1) -> None:
        check_dim(shape, dim, "spectral_norm")

    @classmethod
    def make(cls, value: Tensor, dim: int = 0, n_power_iterations: int = 1) -> SpectralNorm:
        return cls(value, n_power_iterations, dim)

    def map(self, W: Tensor) -> Tensor:
        return _SpectralNorm.forward(self, W)

    def forward(self, W: Tensor) -> Tensor:
        return self.view.back(self.map(self.view.into(W)), W.shape)

    def right_inverse(self, W: Tensor) -> Tensor:
        return W

    def inverse(self, W: Tensor) -> Tensor:
        if W.ndim > 1 and not W.is_meta:
            U, _, Vh = torch.linalg.svd(as_matrix(W, self.dim), full_matrices=False)
            self._u, self._v = U[:, 0].contiguous(), Vh[0].conj().contiguous()
        return W

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        if not hasattr(self, "_u"):
            return []
        error = max(abs(torch.linalg.vector_norm(x.double()).item() - 1) for x in (self._u, self._v))
        return [Check("unit_u_v", error, NORM_TOLERANCE)]
