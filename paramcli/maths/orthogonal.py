"""Orthogonal matrices, rotations, and torch's three maps onto them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.parametrizations import _OrthMaps, _Orthogonal

from ..errors import InputRefused
from ..wording import LEAVE_OUT, given
from .base import CannotReach, Constraint, Edge, Parametrization, first_of_batch, row_scaled, square
from .nearest_orthogonal import gram_difference, polar
from .numbers import compute_dtype, eps, farthest, per_matrix, relative, spectral_norm
from .rotation import cayley_inverse, exponential_proves, half_turn_edge, require_rotation_sign, rotation_log

# torch.matrix_exp of one matrix takes a polynomial of degree 8 with a wrong coefficient (pytorch issue 196592, up to
# 2.14) for 1-norms up to 0.58 in float32 and 0.05 in float64; with rotations of that angle the residual is 3.6e-5 and
# 1.6e-11. A live module has the same values, so they are accepted.
MATRIX_EXP_SMALL = {torch.float32: 4e-5, torch.float64: 2e-11}


# In eps of the stored dtype, and for each column in eps of the one it was computed in.
FRAME_ROUNDED, FRAME_COMPUTED = 4.0, 3.0


def gram_error(Q: Tensor) -> Tensor:
    r"""||Q^H Q - I||_2 (Q Q^H - I if wide) of each matrix, from above (`spectral_norm`): max |s^2 - 1| over its
    singular values.

    The one norm of Q^H Q - I in which no error can hide: that of I - J / n, a singular matrix, is 1, where each of
    its columns is off by n^{-1/2}.
    """
    return spectral_norm(gram_difference(Q))


def _least_gram_error(Q: Tensor) -> Tensor:
    """A number that `gram_error` is not below, by one product."""
    return per_matrix(gram_difference(Q)) / min(Q.shape[-2:]) ** 0.5


def frame_tolerance(k: int, computed: torch.dtype) -> float:
    """What `gram_error` may be of k columns that a map computed in this dtype."""
    return max(FRAME_COMPUTED * k * eps(computed), MATRIX_EXP_SMALL.get(computed.to_real(), 0.0))


class OrthogonalMatrices(Constraint):
    r"""{Q : Q^H Q = I} (Q Q^H = I if wide): orthonormal columns, or rows.

    Residual: ||Q^H Q - I||_2. Nearest point: the polar factor U V^H.
    Tolerance: entries Q_ij (1 + d_ij) with |d_ij| <= u = eps / 2 make an E of Q with ||E||_2 <= 0.4 u (1 + sqrt(k / n))
    where the d_ij are as good as independent, and a residual of 2 ||E||_2, about 0.8 eps for every n. The most that
    errors that line up were found to make is 3 eps (a reflection I - 2 J / n, whose entries have two values); 4 eps is
    allowed. Maps computed in their own dtype add what grows with the number k of columns: the condition of I - X in a
    Cayley map is about that of its largest angle, pi - pi / k for the nearest rotation to a random matrix.
    """

    name = "orthogonal"

    def residual(self, W: Tensor) -> Tensor:
        return gram_error(W)

    def at_least(self, W: Tensor) -> float:
        """Of a sixteenth of the columns of the first matrix: their block of Q^H Q - I has no larger norm than all of
        it.
        """
        W = first_of_batch(W).reshape(W.shape[-2:])
        tall = W if W.size(0) >= W.size(1) else W.mH
        return _least_gram_error(tall[:, : max(1, tall.size(1) // 16)]).item()

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return FRAME_ROUNDED * eps(stored) + frame_tolerance(min(shape[-2:]), computed)

    def project(self, W: Tensor) -> Tensor:
        return self.nearest(W, None)[0]

    def nearest(self, W: Tensor, stored: torch.dtype | None) -> tuple[Tensor, str | None]:
        return polar(W, stored=stored)

    def detail(self, W: Tensor) -> str | None:
        """The worst entry of Q^H Q - I: a norm or an angle, for the worst matrix."""
        what, tall = ("column", W) if W.size(-2) >= W.size(-1) else ("row", W.mH)
        flat = tall.reshape(-1, *tall.shape[-2:])
        G, k = flat.mH @ flat, tall.size(-1)
        index, place = divmod(farthest((G - torch.eye(k, dtype=W.dtype, device=W.device)).abs()), k * k)
        i, j = divmod(place, k)
        where = "" if len(flat) == 1 else f" in matrix {index} of {len(flat)}"
        size = G[index, i, j].abs().item()
        return (
            f"{what} {i} has length {size**0.5:.7g}{where}"
            if i == j
            else f"{what}s {i} and {j} have the product {size:.3g}{where}"
        )

    def check_shape(self, shape: torch.Size) -> None:
        if len(shape) < 2:
            seen = f"a vector of {shape[0]}" if shape else "a scalar"
            raise InputRefused(
                f"{self.name} needs a matrix (or a batch of them); the maths sees {seen}",
                hint=(f"a vector has no columns to make orthogonal: unit_norm gives it length 1; or {LEAVE_OUT}"),
            )

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        return {"times 1.05": 1.05 * W, "zero": 0 * W, "last row times 1.05": row_scaled(W)}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()]


class Rotations(OrthogonalMatrices):
    r"""{Q : Q^T Q = I, det Q = +1}. Residual as `orthogonal`, or |det Q - 1| = 2 where the sign is wrong."""

    name = "special_orthogonal"

    def residual(self, W: Tensor) -> Tensor:
        signs, error = torch.linalg.slogdet(W).sign, gram_error(W)
        return torch.where(signs < 0, error.clamp(min=2.0), error)

    def nearest(self, W: Tensor, stored: torch.dtype | None) -> tuple[Tensor, str | None]:
        # An orthogonal matrix with determinant -1 is no badly rounded rotation: moving it would
        # replace a good weight by another one, so it is refused with the chain that keeps it.
        signs, size = torch.linalg.slogdet(W).sign, torch.linalg.matrix_norm(gram_difference(W))
        # The spectral norm is not below this one over the root of n.
        if bool((signs < 0).any()) and bool((size < 1e-2 * W.size(-1) ** 0.5).any()):
            error = gram_error(W)
            orthogonal = error < 1e-2
            if bool(orthogonal.any()):
                require_rotation_sign(
                    W[orthogonal] if W.ndim > 2 else W, "the chain", near=error[orthogonal].max().item() / 2
                )
        return polar(W, rotation=True, stored=stored, signs=signs, error=size)

    def detail(self, W: Tensor) -> str | None:
        signs = torch.linalg.slogdet(W).sign.reshape(-1)
        wrong = (signs < 0).nonzero().reshape(-1).tolist()
        if not wrong:
            return super().detail(W)
        return "determinant -1" if signs.numel() == 1 else f"determinant -1 in matrix {wrong[0]} of {signs.numel()}"

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        mirrored = W.clone()
        mirrored[..., 0, :] *= -1
        return {**super().near_misses(W), "determinant -1": mirrored}


class Cayley(Parametrization):
    r"""Skew-symmetric X to the rotation Q = (I + X)(I - X)^{-1}, det Q = 1.

    In plain words, a rotation that turns no direction by exactly half a turn (no eigenvalue -1).

    Shapes:  (..., n, n) -> (..., n, n).
    Inverse: X = (Q + I)^{-1} (Q - I). Raises CannotReach for det -1 and near eigenvalue -1, the edge of the image.
    Cost:    one LU solve, O(n^3); about 4 products of n x n.
    Source:  PyTorch's Parametrizations Tutorial; Helfrich, Willmott and Ye, 2018, arXiv:1707.09520.
             torch's own `orthogonal` scales X by 1/2 and takes the lower triangle.
    """

    stacks = True
    safe_share = 0.75
    identities = ("Id",)  # of the tutorial's module

    def map(self, X: Tensor) -> Tensor:
        I = torch.eye(X.size(-1), dtype=X.dtype, device=X.device)
        return torch.linalg.solve(I - X, I + X)

    def inverse(self, Q: Tensor) -> Tensor:
        return cayley_inverse(Q)

    def proves(self, value: Tensor, within: float, *originals: Tensor) -> bool:
        return cayley_proves(value, originals[0], within)

    def edge(self, Q: Tensor) -> Edge:
        return cayley_edge(Q)


def cayley_proves(Q: Tensor, X: Tensor, within: float) -> bool:
    r"""Is (I - X)^{-1} (I + X) within that of Q, relatively, for skew-symmetric (skew-Hermitian) X?

    It is off by (I - X)^{-1} R with R = (I + X) - (I - X) Q, and I - X shortens no vector. Cost: one product.
    """
    if not torch.equal(X, -X.mH):
        return False
    I = torch.eye(X.size(-1), dtype=X.dtype, device=X.device)
    return bool((relative((I + X) - (I - X) @ Q, Q) <= within).all())


def cayley_edge(Q: Tensor) -> Edge:
    r"""The half turns: X = tan(theta / 2) has no value there, and size x = 2 / m at an angle pi - m.

    Rounding X by a share r of itself moves Q by about 0.3 r x / sqrt(n), relatively, and an angle cut to pi - m moves
    it by up to 1.4 m / sqrt(n). The two are equal at m = sqrt(0.4 r). Where nothing else lies beside x, as in -I, its
    rounding moves nothing, and the least m that double precision can invert is best, 8e-8.
    """
    gaps, kept = half_turn_edge(Q)
    other = "skew_hermitian" if Q.is_complex() else "skew"
    return Edge(
        2 * (gaps / 2).sin(),
        lambda distance: f"its eigenvalue nearest to -1 is {distance:.2g} from it",
        lambda noise: kept((0.4 * noise).sqrt()),
        f"{given('chain', other + ',matrix_exp')} takes half turns; "
        f"{given('chain', 'orthogonal')} stores the weight itself as its base",
        begins=gaps.square() / 0.4,
        finest=2.0**-46,
    )


class Orthogonal(Parametrization, _Orthogonal):
    r"""torch's `orthogonal`: any X to orthonormal columns (rows if wide), by one of three maps.

    With L = tril(X) and A = L - L^H: matrix_exp gives exp(A), cayley (I + A/2)(I - A/2)^{-1}; householder a product
    of reflectors. With `triv` the result is base @ f(X), where base is the weight it started from.

    Shapes:  (..., n, k); tensors with more dimensions are batches of matrices.
    Inverse: base = the weight (completed to square by torch's random columns), X = -I. Without base: householder by
             `geqrf`; matrix_exp and cayley for square rotations only.
    Cost:    as the map; for tall tensors matrix_exp and cayley work on max(n, k) squared.
    Source:  torch.nn.utils.parametrizations.orthogonal; Lezcano-Casado, 2019, arXiv:1909.09501.
    """

    # LAPACK's order, in which torch's QR of the weight leaves it. (A square weight that was orthogonal to begin with is
    # copied row by row.)
    by_columns = ("base",)

    def __init__(self, weight: Tensor, map: str, triv: bool):
        # The private class is the one that torch's function registers: its forward is the law here.
        _Orthogonal.__init__(self, weight, _OrthMaps[map], use_trivialization=triv)
        if triv:
            # Where it is not the first of its chain torch gives it no base to start from, and fails.
            n = max(weight.shape[-2:])
            self.base = weight.new_empty(*weight.shape[:-2], n, n).mT
            if not weight.is_meta:
                self.base.copy_(torch.eye(n, dtype=weight.dtype, device=weight.device))

    @classmethod
    def make(cls, value: Tensor, map: str | None = None, triv: bool = True) -> Orthogonal:
        if map is None:
            map = "matrix_exp" if value.size(-1) == value.size(-2) or value.is_complex() else "householder"
        return cls(value, map, triv)

    def map(self, X: Tensor) -> Tensor:
        return _Orthogonal.forward(self, X)

    def forward(self, X: Tensor) -> Tensor:
        wider = compute_dtype(X.dtype)
        if wider != X.dtype:
            # torch has these maps in half precision not at all, or wrong (matrix_exp); the base is widened with X.
            buffers = {name: tensor.to(wider) for name, tensor in self.named_buffers()}
            return functional_call(self, buffers, (X.to(wider),)).to(X.dtype)
        return self.view.back(self.map(self.view.into(X)), X.shape)

    def right_inverse(self, Q: Tensor) -> Tensor:
        seen = self.view.into(Q)
        if seen.is_meta:
            return self.view.back(self._start(seen), Q.shape)
        X = _Orthogonal.right_inverse(self, seen.to(compute_dtype(Q.dtype))).to(Q.dtype)
        if hasattr(self, "base"):
            self.base = self.base.to(Q.dtype)
        return self.view.back(X, Q.shape)

    def _start(self, Q: Tensor) -> Tensor:
        """torch's starting point without its arithmetic, for tensors that have a shape only."""
        if hasattr(self, "base"):
            n = max(Q.shape[-2:])
            self.base = Q.new_empty(*Q.shape[:-2], n, n).mT
        return Q.new_empty(Q.shape)

    def inverse(self, Q: Tensor) -> Tensor:
        if hasattr(self, "base"):
            tall = Q if Q.size(-2) >= Q.size(-1) else Q.mT
            self.base = _complete(tall)
            return -torch.eye(*Q.shape[-2:], dtype=Q.dtype, device=Q.device).expand(Q.shape).contiguous()
        if self.orthogonal_map == _OrthMaps.householder:
            return _Orthogonal.right_inverse(self, Q)
        if Q.size(-1) != Q.size(-2):
            raise CannotReach(
                f"orthogonal with triv=false and map={self.orthogonal_map.name} has no inverse for a rectangular "
                "tensor",
                hint=f"{given('chain', 'orthogonal')} stores a base; "
                f"{given('chain', 'orthogonal:map=householder:triv=false')} needs none",
            )
        # A = L - L^T with L = tril(X), so L = tril(A, -1) is a preimage; cayley works with A/2.
        A = rotation_log(Q) if self.orthogonal_map == _OrthMaps.matrix_exp else 2 * cayley_inverse(Q)
        return A.tril(-1)

    def proves(self, value: Tensor, within: float, *originals: Tensor) -> bool:
        if hasattr(self, "base") or value.size(-1) != value.size(-2):
            return False
        A = originals[0].tril()
        A = A - A.mH
        if self.orthogonal_map == _OrthMaps.matrix_exp:
            return exponential_proves(value, A, within)
        return self.orthogonal_map == _OrthMaps.cayley and cayley_proves(value, A / 2, within)

    def edge(self, Q: Tensor) -> Edge | None:
        free = not hasattr(self, "base") and self.orthogonal_map == _OrthMaps.cayley and Q.size(-1) == Q.size(-2)
        return cayley_edge(Q) if free else None


def _complete(Q: Tensor) -> Tensor:
    """Orthonormal columns (n, k) completed to an orthogonal (n, n), with torch's random columns."""
    n, k = Q.shape[-2:]
    if n == k:
        return Q.clone()
    N = torch.randn(*Q.shape[:-2], n, n - k, dtype=Q.dtype, device=Q.device)
    # Twice: one pass of Gram-Schmidt leaves rounding of the size of the discarded part.
    for _ in range(2):
        N = torch.linalg.qr(N - Q @ (Q.mH @ N)).Q
    return torch.cat([Q, N], dim=-1)
