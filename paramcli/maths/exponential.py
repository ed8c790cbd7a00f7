"""The matrix exponential and its inverses, and the sets it reaches."""

from __future__ import annotations

import torch
from torch import Tensor

from ..wording import given
from .base import CannotReach, Constraint, Edge, Parametrization, Part, Singular, one_entry, square
from .decompositions import eigenvalues_of_symmetric_part, eigh, made_of_eigh
from .edges import eigenvalue_edge
from .eigenvalues import beyond_zero, eigenvalue_tolerance, symmetric_tolerance
from .nearest_orthogonal import gram_difference
from .numbers import asymmetry, eps, per_matrix, ratio, relative
from .orthogonal import gram_error
from .rotation import exponential_proves, rotation_log, unitary_log
from .symmetric import asymmetry_at_least

# The positive definite matrices are open, so nothing is nearest to a matrix outside; the nearest
# with eigenvalues at least this share of the largest is taken.
SPD_FLOOR = 1e-6


def exp_asymmetry(n: int) -> float:
    """What torch.matrix_exp leaves of symmetry, in eps of the dtype it computes in: up to 2.4 at n = 8, 5.5 at 64, 72
    at 512 were measured.
    """
    return 2 + n / 5


class PositiveDefinite(Constraint):
    r"""{A : A = A^T, x^T A x > 0 for x != 0}, and with `least` no eigenvalue below it.

    Residual: max_i ||row i of A - A^T|| / max_i ||row i of A||, and how far lambda_min is below what it must be, as a
    share of max |lambda|.
    Tolerance: `symmetric_tolerance` for the rows, `eigenvalue_tolerance` for `least`. The sign is strict: rounding
    could have made an eigenvalue of that size of a zero, so lambda_min must be above it, and nothing explains less.
    Nearest point: eigenvalues of (A + A^T)/2 raised to at least 1e-6 of the largest (and twice `least`).
    """

    name = "positive_definite"
    projection = "inside"

    def __init__(self, least: float = 0.0):
        self.least = least

    def residual(self, W: Tensor) -> Tensor:
        smallest, largest = self._ends(W)
        return torch.maximum(
            asymmetry(W),
            torch.maximum(beyond_zero(smallest, largest, 0.0), ratio((self.least - smallest).clamp(min=0), largest)),
        )

    def at_least(self, W: Tensor) -> float:
        return asymmetry_at_least(W)

    def _ends(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest eigenvalue, and the largest magnitude of one."""
        values = eigenvalues_of_symmetric_part(W)
        return values[..., 0], values.abs().amax(-1)

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return eigenvalue_tolerance(shape[-1], stored, computed)

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        smallest, largest = self._ends(W)
        explained = self.tolerance(W.shape, stored, computed)
        found = [
            Part(
                "symmetric", asymmetry(W), symmetric_tolerance(W.size(-1), stored, computed, exp_asymmetry(W.size(-1)))
            ),
            Part("positive", beyond_zero(smallest, largest, explained), 0.0),
        ]
        return (
            [*found, Part("least", ratio((self.least - smallest).clamp(min=0), largest), explained)]
            if self.least
            else found
        )

    def project(self, W: Tensor) -> Tensor:
        values, V = eigh(W)
        if bool((values[..., -1] <= 0).any()):
            raise Singular(
                f"no positive definite matrix is near: the largest eigenvalue is {values[..., -1].min().item():.2g}",
                hint=f"{given('init', 'raw')} registers the tensor as it is",
            )
        values = torch.maximum(values, (SPD_FLOOR * values[..., -1:]).clamp(min=2 * self.least))
        return made_of_eigh(values, V)

    def detail(self, W: Tensor) -> str | None:
        smallest, largest = (ends.reshape(-1) for ends in self._ends(W))
        worst = int(ratio(smallest, largest).mul(smallest.sign()).argmin())
        where = "" if len(smallest) == 1 else f" in matrix {worst} of {len(smallest)}"
        off = asymmetry(W).max().item()
        return (
            f"the smallest eigenvalue of its symmetric part is {smallest[worst].item():.3g}{where}, "
            f"the largest {largest[worst].item():.3g}" + (f"; rows are off symmetry by up to {off:.2g}" if off else "")
        )

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        X = torch.randn(shape, generator=generator, dtype=dtype)
        A = X @ X.mH / shape[-1] + 0.1 * torch.eye(shape[-1], dtype=dtype)
        return (A + A.mH) / 2

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        I = torch.eye(W.size(-1), dtype=W.dtype, device=W.device)
        values = torch.linalg.eigvalsh(W)
        # Below zero by a share of the largest eigenvalue that bfloat16 can tell.
        shift = (values[..., :1] + 0.1 * values[..., -1:]).unsqueeze(-1)
        misses = {"negative": -W, "zero": 0 * W, "one eigenvalue negative": W - shift * I}
        return {**misses, "one entry": one_entry(W)} if W.size(-1) > 1 else misses

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()]


class PositiveDeterminant(Constraint):
    r"""{A : det A > 0}. Residual 0 or 1, by the sign; an open set, so nothing outside has a nearest point."""

    name = "positive_determinant"
    projection = "none"

    def residual(self, W: Tensor) -> Tensor:
        return (torch.linalg.slogdet(W).sign <= 0).to(W.dtype)

    def project(self, W: Tensor) -> Tensor:
        if bool((torch.linalg.slogdet(W).sign <= 0).any()):
            raise Singular(
                "matrix_exp reaches only positive determinants, and this tensor's is not",
                hint=f"{given('chain', 'skew,matrix_exp')} moves it to the nearest rotation; "
                f"{given('init', 'raw')} registers it as it is",
            )
        return W

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        X = torch.randn(shape, generator=generator, dtype=dtype)
        X[..., 0, :] *= torch.linalg.slogdet(X).sign[..., None]
        return X

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        mirrored = W.clone()
        mirrored[..., 0, :] *= -1
        return {"mirrored": mirrored, "zero": 0 * W}


class MatrixExp(Parametrization):
    r"""X to exp(X) = I + X + X^2/2 + ...

    In plain words, skew-symmetric X becomes a rotation, symmetric X a positive definite matrix; in complex numbers
    skew-Hermitian X becomes unitary, Hermitian X positive definite.

    Shapes:  (..., n, n) -> (..., n, n).
    Inverse: by input: the logarithm of a rotation (angles up to and including half a turn) or unitary matrix, or of
             a symmetric (Hermitian) positive definite one. Anything else raises CannotReach.
    Cost:    about 12 products of n x n; the inverse one symmetric eigendecomposition and a few products.
    Source:  PyTorch's Parametrizations Tutorial; Lezcano-Casado and Martinez-Rubio, 2019, arXiv:1901.08428.
    """

    _assigned: torch.dtype | None = None

    def map(self, X: Tensor) -> Tensor:
        # Its own kernel takes no strides but those of matrices in a row.
        return torch.matrix_exp(X.contiguous())

    def inverse(self, value: Tensor) -> Tensor:
        kind = self._kind(value)
        if kind == "rotation":
            return unitary_log(value) if value.is_complex() else rotation_log(value)
        if kind == "symmetric":
            return symmetric_log(value)
        first, second = ("skew_hermitian", "hermitian") if value.is_complex() else ("skew", "symmetric")
        raise CannotReach(
            "matrix_exp has a right inverse for rotations and for symmetric positive definite matrices "
            "(unitary and Hermitian ones if complex), and this tensor is neither",
            hint=f"{given('chain', first + ',matrix_exp')} or {given('chain', second + ',matrix_exp')}",
        )

    def right_inverse(self, value: Tensor) -> Tensor | tuple[Tensor, ...]:
        self._assigned = value.dtype
        try:
            return super().right_inverse(value)
        finally:
            self._assigned = None

    def proves(self, value: Tensor, within: float, *originals: Tensor) -> bool:
        return exponential_proves(value, originals[0], within)

    def edge(self, value: Tensor) -> Edge | None:
        return eigenvalue_edge(value) if self._kind(value) == "symmetric" else None

    def inverts_together(self, values: Tensor) -> bool:
        """Where each is surely a rotation; what kind others are is found of each."""
        small = self._near(values)
        turned = relative(values - values.mH, values) > small
        return bool((turned & (per_matrix(gram_difference(values)) <= small)).all()) and not values.is_complex()

    def _near(self, value: Tensor) -> float:
        """How far from its set a matrix may be: 1e4 eps n of the dtype that it is in, and what rounding to the one that
        it was assigned in leaves of a member, ||Q^H Q - I||_F of eps sqrt(n) at most.
        """
        n = max(value.size(-1), 1)
        return max(1e4 * eps(value.dtype) * n, eps(self._assigned) * n**0.5 if self._assigned else 0.0)

    def _kind(self, value: Tensor) -> str | None:
        """Which logarithm it has: 'symmetric' (Hermitian), 'rotation' (unitary) or none."""
        # The identity is near both sets, so the nearer one counts; half turns are symmetric too, but not positive.
        asymmetric = relative(value - value.mH, value).max().item()
        small = self._near(value)
        if asymmetric > small and bool((per_matrix(gram_difference(value)) <= small).all()):
            return "rotation"  # the Frobenius norm is never below the spectral one
        off = gram_error(value).max().item()
        if asymmetric <= min(small, off) and bool((torch.linalg.eigvalsh(value) > 0).all()):
            return "symmetric"
        if off <= small:
            return "rotation"
        return "symmetric" if asymmetric <= small else None


def symmetric_log(A: Tensor) -> Tensor:
    """V log(lambda) V^H of a symmetric (Hermitian) positive definite A; raises CannotReach with the eigenvalue
    otherwise.
    """
    values, V = eigh(A)
    smallest = values[..., 0].min().item()
    if smallest <= 0:
        raise CannotReach(
            f"matrix_exp of a symmetric matrix reaches only positive eigenvalues, and this one has {smallest:.3g}",
            hint=f"{given('init', 'project')} moves it to the nearest positive definite matrix",
        )
    X = (V * values.log().unsqueeze(-2)) @ V.mH
    return (X + X.mH) / 2
