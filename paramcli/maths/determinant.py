"""Matrices of determinant 1, and the map onto |det| = 1."""

from __future__ import annotations

import torch
from torch import Tensor

from ..wording import given
from .base import Constraint, Part, Singular, row_scaled, square, started
from .decompositions import SMALL, is_shared, made_of_svd, svd
from .eigenvalues import NO_VALUE, beyond_zero, eigenvalue_tolerance
from .low_rank import SoftplusValues, with_singular_values
from .nearest_orthogonal import RANK
from .numbers import eps, per_matrix, ratio, unit_roundoff
from .orthogonal import MATRIX_EXP_SMALL
from .softplus import SOFTPLUS_FLOOR, floored_softplus

# Off in log |det|: by rounding, in u, and for n^{3/2} in eps of the dtype that computed the frames, of which each
# column adds its own error and matrix_exp of angles up to two turns about n^{1/2} of them (measured: 12,000 eps at n =
# 512, 39,000 at 1024).
DETERMINANT_ROUNDED, DETERMINANT_COMPUTED = 4.0, 2.0


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
        return self._off(W, NO_VALUE)[0]

    def _off(self, W: Tensor, explained: float) -> tuple[Tensor, Tensor, Tensor]:
        """The residual, the smallest singular value and the largest; or bounds of these two that are farther apart,
        where a share of more than is `explained` is left between them.
        """
        if W.size(-1) > SMALL and not is_shared("svd", W):
            # A fifth of the work: s_n >= 1 / ||A^{-1}||_F, s_1 <= ||A||_F.
            inverse, failed = torch.linalg.inv_ex(W)
            last, largest = 1 / per_matrix(inverse), per_matrix(W)
            if not bool(failed.any()) and bool((last > max(explained, NO_VALUE) * largest).all()):
                sign, log = torch.linalg.slogdet(W)
                off = ratio(log, per_matrix(inverse.mT * W))
                return torch.where(sign > 0, off, torch.ones_like(off)), last, largest
        U, S, Vh = svd(W)
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
        explained = eigenvalue_tolerance(W.size(-1), stored, computed, singular=True) / 4
        off, last, largest = self._off(W, explained)
        return [
            Part("determinant", off, self.tolerance(W.shape, stored, computed)),
            Part("full", beyond_zero(last, largest, explained), 0.0),
        ]

    def project(self, W: Tensor) -> Tensor:
        U, S, Vh = svd(W)
        if bool((S[..., -1:] <= RANK * S[..., :1]).any()):
            raise Singular(
                f"no multiple of it has determinant 1: singular values from {S.max().item():.2g} down to "
                f"{S.min().item():.2g}",
                hint=f"{given('chain', 'invertible')} takes singular values that small",
            )
        signs = torch.linalg.slogdet(U @ Vh).sign
        U = torch.cat([U[..., :-1], U[..., -1:] * signs[..., None, None]], dim=-1)
        return made_of_svd(U, S / S.log().mean(-1, keepdim=True).exp(), Vh)

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


class UnitDeterminant(SoftplusValues):
    r"""U diag(p / (p_1 ... p_n)^{1/n}) V^T with p = softplus(s) + 1e-6: |det| = 1, the sign that of the bases.

    Inverse: as `invertible`; the map does not see a common factor of p, so any condition number is reached.
    Source:  geotorch 0.4 SL.
    """

    def values(self, s: Tensor) -> Tensor:
        log = floored_softplus(s).log()
        return (log - log.mean(-1, keepdim=True)).exp()

    def inverse(self, W: Tensor) -> Tensor:
        return super().inverse(started(SpecialLinear(), W))

    def values_inverse(self, S: Tensor) -> Tensor:
        return super().values_inverse(S * (2 * SOFTPLUS_FLOOR / S[..., -1:]).clamp(min=1))

    def edge(self, W: Tensor) -> None:
        return None
