"""Matrices of stable linear systems: every eigenvalue at least alpha to the left of the imaginary axis."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import CannotReach, Check, Constraint, Edge, Parametrization, Part, first_of_batch, square
from .decompositions import SMALL, eig, eigenvalues, eigh, made_of_eigh
from .eigenvalues import FRAMES_COMPUTED, certain_excess, surely_positive
from .facts import largest_singular_value
from .frames import lower_skew
from .numbers import eps, identity, per_matrix, relative, unit_roundoff, wide
from .semidefinite import SoftplusEigenvalues
from .softplus import SOFTPLUS_FLOOR
from .surely import surely_right_of

# The set that the map reaches is open. Points given by `project` keep this share of ||A + alpha I|| from its edge,
# where the solution of the Lyapunov equation is still well conditioned.
MARGIN = 1e-3


def abscissa(A: Tensor) -> Tensor:
    """The largest real part of an eigenvalue."""
    return eigenvalues(A).real.amax(-1)


def shifted(A: Tensor, by: Tensor | float) -> Tensor:
    return A + by * torch.eye(A.size(-1), dtype=A.dtype, device=A.device)


class Hurwitz(Constraint):
    r"""{A : Re l <= -alpha for every eigenvalue l}.

    Residual: (max Re l + alpha) / ||A||_2, at least 0, less what computing and rounding may have put into that
    eigenvalue (`certain_excess`). Tolerance: what a product of frames in its own dtype leaves. Point given by
    `project`: the nearer of two that are stable for sure, A shifted along the identity, and A with its symmetric part
    cut to eigenvalues <= -alpha; both with a margin. The nearest stable matrix of all is a hard problem.
    """

    name = "hurwitz"
    projection = "inside"

    def __init__(self, alpha: float = 0.0):
        self.alpha = alpha

    def residual(self, W: Tensor) -> Tensor:
        return self._excess(W)

    def _is_dissipative(self, W: Tensor) -> bool:
        """The real part of an eigenvalue is a Rayleigh quotient of the symmetric part, which is negative at most points
        that `project` gives: a proof that costs a hundredth of the eigenvalues.
        """
        S = -shifted((W + W.mT) / 2, self.alpha)
        return bool(surely_positive(S, 4 * eps(W.dtype) * per_matrix(W)).all())

    def _excess(self, W: Tensor, rounded: float = 0.0) -> Tensor:
        if self._is_dissipative(W):
            return torch.zeros_like(W[..., 0, 0])
        values, vectors = eig(W)
        return certain_excess(W, values, vectors, values.real + self.alpha, rounded)

    def at_least(self, W: Tensor) -> float:
        """By a real eigenvalue of the first matrix, where it is a large one."""
        A = first_of_batch(W).reshape(W.shape[-2:])
        if self.alpha or A.size(0) <= SMALL or self._is_dissipative(A):
            return 0.0
        return surely_right_of(A)

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        return FRAMES_COMPUTED * shape[-1] ** 0.5 * eps(computed)

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        return [Part("", self._excess(W, 1.02 * unit_roundoff(stored)), self.tolerance(W.shape, stored, computed))]

    def project(self, W: Tensor) -> Tensor:
        B = shifted(W, self.alpha)
        margin = MARGIN * largest_singular_value(B)
        largest = abscissa(W) + self.alpha
        by_shift = shifted(W, -(largest + margin)[..., None, None])
        l, Q = torch.linalg.eigh((B + B.mT) / 2)
        by_cut = (W - W.mT) / 2 + (Q * (torch.minimum(l, -margin.unsqueeze(-1)) - self.alpha).unsqueeze(-2)) @ Q.mT
        shift, cut = (torch.linalg.matrix_norm(P - W) for P in (by_shift, by_cut))
        moved = torch.where((cut < shift)[..., None, None], by_cut, by_shift)
        # The norm at most doubles, so that a quarter of the margin keeps what was projected before.
        return torch.where((largest <= -margin / 4)[..., None, None], W, moved)

    def detail(self, W: Tensor) -> str | None:
        return f"largest real part {abscissa(W).max().item():.4g}"

    def check_shape(self, shape: torch.Size) -> None:
        square(shape, self.name)

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        X = torch.randn(shape, generator=generator, dtype=dtype)
        # Not on the edge, from which rounding a matrix that is far from normal may move it.
        return shifted(X, -(abscissa(X) + self.alpha + 0.1 * torch.linalg.matrix_norm(X, 2))[..., None, None])

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        size = torch.linalg.matrix_norm(W, 2)
        unstable = shifted(W, (size - abscissa(W))[..., None, None])
        return {"negative": -W, "shifted right": unstable, **({"zero": 0 * W} if self.alpha > 0 else {})}

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        return [cls()] if W.ndim > 1 and W.size(-1) == W.size(-2) else []


def lyapunov(A: Tensor, Q: Tensor, steps: int = 60) -> Tensor:
    r"""P with A^T P + P A = -Q for stable A, by Newton's iteration for the matrix sign function.

    A_{i+1} = (A_i / c + c A_i^{-1}) / 2 goes to -I while Q_{i+1} = (Q_i / c + c A_i^{-T} Q_i A_i^{-1}) / 2 goes to 2 P;
    c = |det A_i|^{1/n} speeds up the beginning. Roberts, 1980 (Int. J. Control 32:677); O(n^3) a step, batched.
    """
    n = A.size(-1)
    I = torch.eye(n, dtype=A.dtype, device=A.device)
    for _ in range(steps):
        B, info = torch.linalg.inv_ex(A)
        distance = torch.linalg.matrix_norm(A + I).amax()
        if bool(info.any()) or not bool(torch.isfinite(distance)) or bool(distance <= 1e3 * n * eps(A.dtype)):
            break
        c = torch.linalg.slogdet(A).logabsdet.div(n).exp()[..., None, None] if bool(distance > 1e-2) else 1.0
        A, Q = (A / c + c * B) / 2, (Q / c + c * (B.mT @ Q @ B)) / 2
        Q = (Q + Q.mT) / 2
    return Q / 2


class Factor(SoftplusEigenvalues):
    """One of the two positive definite factors of a stable matrix."""

    otherwise = "its Lyapunov equation is too ill-conditioned for this map; a smaller alpha leaves it more room"


class AlphaStable(Parametrization):
    r"""(X1, X2, X3) to A = P (S - Q / 2) - alpha I, with Q = spd(X1), P = spd(X2), S = L - L^T, L = tril(X3, -1).

    In plain words, energy x^T P^{-1} x falls along every path of x' = A x, faster than exp(-2 alpha t).

    Shapes:  three originals of the weight's shape (..., n, n); buffers `In` (the identity), `alpha`, and the bases.
    Inverse: with B = A + alpha I: P = I where B + B^T is negative definite, else P^{-1} from the Lyapunov equation
             B^T P^{-1} + P^{-1} B = -Q. Raises CannotReach where an eigenvalue lies on the edge or beyond.
    Cost:    two matrix_exp and a few products; the inverse about 15 inversions and two eigendecompositions.
    Source:  geotorch 0.4 Hurwitz.
    """

    stored_originals = (0, 1, 2)

    In: Tensor
    alpha: Tensor

    def __init__(self, value: Tensor, alpha: float = 0.001, triv: str = "expm"):
        super().__init__()
        n = value.size(-1)
        self.asked = alpha
        self.register_buffer("In", identity(value, n).expand(value.shape).contiguous())
        self.register_buffer("alpha", torch.full((), alpha, dtype=value.dtype, device=value.device))
        self.add_module("0", Factor(value, n, triv))
        self.add_module("1", Factor(value, n, triv))

    @classmethod
    def make(cls, value: Tensor, alpha: float = 0.001, triv: str = "expm") -> AlphaStable:
        return cls(value, alpha, triv)

    def map(self, X1: Tensor, X2: Tensor, X3: Tensor) -> Tensor:
        Q, P = getattr(self, "0").map(X1), getattr(self, "1").map(X2)
        return P @ (lower_skew(X3) - Q / 2) - self.alpha.to(X1.dtype) * self.In.to(X1.dtype)

    def inverse(self, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Through the Lyapunov equation rounding grows with its condition: never in single precision.
        A = A.to(wide(A.dtype, A.device))
        B = shifted(A, self.alpha.to(A.dtype))
        size = largest_singular_value(B).clamp(min=1e-300)[..., None, None]
        I = torch.eye(A.size(-1), dtype=A.dtype, device=A.device).expand(A.shape)
        P, M, Q = I, B, -(B.mT + B)
        dissipative = eigh(Q)[0][..., :1, None] > 2 * SOFTPLUS_FLOOR * size.clamp(min=1)
        if bool(dissipative.all()):
            P = made_of_eigh(torch.ones_like(A[..., 0]), I)
        else:
            inverse = torch.where(dissipative, I, self._solved(B / size))
            P, M = torch.linalg.inv(inverse), inverse @ B
            Q = -(M.mT + M)
        S = M + Q / 2
        X1, X2 = getattr(self, "0").inverse(Q), getattr(self, "1").inverse(P)
        return X1, X2, ((S - S.mT) / 2).tril(-1)

    def edge(self, A: Tensor) -> Edge:
        r"""The line Re l = -alpha. A point at a distance d from it (a share of ||A + alpha I||) has a Lyapunov equation
        of condition 1 / d, so that rounding by r moves the value by about r / d: equal to the shift at d = sqrt(r).
        """
        B = shifted(A, self.alpha.to(A.dtype))
        largest, size = abscissa(A) + self.alpha.to(A.dtype), largest_singular_value(B)

        def inside(noise: Tensor) -> Tensor:
            over = torch.where(noise > 0, (largest + noise.sqrt() * size).clamp(min=0), torch.zeros_like(largest))[
                ..., None, None
            ]
            return torch.where(over > 0, shifted(A, -over), A)

        return Edge(
            self.asked - largest,
            lambda distance: f"its largest real part is {0 - distance:.3g}",
            inside,
            "a smaller alpha leaves it more room",
        )

    def outline(self, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.empty_like(A), torch.empty_like(A), torch.empty_like(A)

    @staticmethod
    def _solved(B: Tensor) -> Tensor:
        I = torch.eye(B.size(-1), dtype=B.dtype, device=B.device)
        P = lyapunov(B, I.expand(B.shape))
        M = P.nan_to_num() @ B
        left = M.mT + M + I
        values = torch.linalg.eigvalsh(P.nan_to_num())
        # Lyapunov's theorem: B is stable where P and -(B^T P + P B) are positive definite.
        proven = bool((per_matrix(left) < 1).all()) and bool((values[..., 0] > 0).all())
        if not proven or not relative(left, P).max().item() < eps(B.dtype) ** 0.5:
            raise CannotReach(
                f"alpha_stable reaches only eigenvalues left of -alpha, and this tensor's are on that line or too near "
                f"(largest real part {abscissa(B).max().item():.2g} of ||A|| from it)",
                hint="a smaller alpha leaves it more room",
            )
        # A condition number is shared between P and its inverse: both factors stay within reach of the softplus.
        return P / (values[..., :1] * values[..., -1:]).sqrt()[..., None]

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        """The decay rate that is stored is the one the chain states, or faster."""
        lacking = max(0.0, self.asked - self.alpha.item()) / max(self.asked, 1e-300)
        return [
            Check(
                "alpha", lacking, eps(self.stored_dtype), f"stored alpha {self.alpha.item():.4g}" if lacking else None
            )
        ]
