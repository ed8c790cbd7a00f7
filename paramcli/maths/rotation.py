"""Inverses of the two maps from skew-symmetric (skew-Hermitian) matrices to rotations (unitary matrices): logarithm and
Cayley.

Both take the nearest thing to care about: the half turn. A rotation with an eigenvalue -1 has many
real logarithms (any of them will do) and no Cayley preimage at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..wording import given
from .base import CannotReach
from .numbers import relative

# From this side on an exponential is proven by some of its columns.
PROVEN = 256
# Eigenvalues cos(theta) of (Q + Q^T) / 2 below a gap in this window are the near half turns.
_WINDOW = (-0.95, -0.2)


def skew_part(X: Tensor) -> Tensor:
    return (X - X.mH) / 2


def require_rotation_sign(Q: Tensor, who: str, near: float = 0.0) -> None:
    """Raise CannotReach when some real matrix of the batch has determinant -1; unitary ones are all connected. `near`:
    how far they are from orthogonal.
    """
    if Q.is_complex():
        return
    signs = torch.linalg.slogdet(Q).sign.reshape(-1)
    negative = (signs.real < 0).nonzero().reshape(-1).tolist()
    if negative:
        which = "" if signs.numel() == 1 else f" (matrix {negative[0]} of the batch of {signs.numel()})"
        what = f"this matrix, orthogonal to {near:.1g}," if near > 1e-6 else "this orthogonal matrix"
        raise CannotReach(
            f"{who} reaches only determinant +1, and {what} has determinant -1{which}: no rotation is nearest to it",
            hint=f"{given('chain', 'orthogonal')} keeps an orthogonal matrix as it is, with either determinant",
        )


def cayley_inverse(Q: Tensor) -> Tensor:
    r"""X = (Q + I)^{-1} (Q - I), the skew-symmetric (skew-Hermitian if complex) X with (I - X)^{-1} (I + X) = Q.

    Raises CannotReach for a real Q with determinant -1 and for an eigenvalue -1 (to about 1e-8 in float64).
    """
    I = torch.eye(Q.size(-1), dtype=Q.dtype, device=Q.device)
    X, info = torch.linalg.solve_ex(Q + I, Q - I)
    skew = skew_part(X)
    # A negative eigenvalue of Q, without which no determinant is negative, is one of X that is real and of magnitude 1
    # or more, and so is then the norm of X's symmetric part.
    if not bool((torch.linalg.matrix_norm(X - skew) < 0.5).all()):
        require_rotation_sign(Q, "cayley")
    # ||X||_2 = |1 - lambda| / |1 + lambda| at the eigenvalue nearest to -1.
    size = torch.linalg.matrix_norm(X)
    if bool(info.any()) or not bool((size < 1e8).all()):
        distance = torch.linalg.svdvals(Q + I)[..., -1].min().item()
        what, chain = ("unitary matrix", "skew_hermitian") if Q.is_complex() else ("rotation", "skew")
        raise CannotReach(
            f"cayley cannot reach a {what} with eigenvalue -1 (here {distance:.1e} from it)",
            hint=f"{given('chain', chain + ',matrix_exp')} reaches every {what}; "
            f"{given('chain', 'orthogonal')} every orthogonal matrix",
        )
    return skew


def rotation_log(Q: Tensor) -> Tensor:
    r"""A real skew-symmetric L with exp(L) = Q, rotation angles in [0, pi]. Raises CannotReach for det -1.

    Q = C + S with C = (Q + Q^T)/2 (cosines) and S = (Q - Q^T)/2 (sines), which commute. Away from half
    turns L = g(C) S with g(cos t) = t / sin t. On the invariant subspace of angles near pi, where that
    divides by zero, the sines' polar factor J (J^2 = -I) gives the planes and L = J (pi - asin |S|).

    Cost: one symmetric eigendecomposition and a few products; an SVD of the near-half-turn subspace.
    """
    require_rotation_sign(Q, "matrix_exp of a skew-symmetric matrix")
    C, S = (Q + Q.mT) / 2, (Q - Q.mT) / 2
    cosines, V = torch.linalg.eigh(C)
    near = _near_half_turn(cosines)
    x = (1 - cosines).clamp(0, 2)
    sines = (x * (2 - x)).sqrt()
    ratio = torch.where(sines > 0, 2 * torch.asin((x / 2).sqrt()) / sines, torch.ones_like(x))
    ratio = torch.where(near, torch.zeros_like(ratio), ratio)
    L = (V * ratio.unsqueeze(-2)) @ (V.mT @ S)
    flat = L.reshape(-1, *L.shape[-2:]).clone()
    for i, U, J, W, angles in _half_turn_planes(S, V, near):
        flat[i] += U @ skew_part(J @ (W * angles) @ W.mT) @ U.mT
    return skew_part(flat.reshape(L.shape))


def exponential_proves(Q: Tensor, L: Tensor, within: float) -> bool:
    r"""Is exp(L) within that of Q, relatively, for skew-symmetric (skew-Hermitian) L with angles of up to pi? No small
    ones are asked: their exponential is soon there.

    E = exp(L) - Q is seen by m = 16 columns of Gaussian numbers G: ||E G||^2 is m ||E||^2 on average, and for the most
    one-sided E, of rank one, with a chance of 1e-13 below a hundredth of that, so that a tenth of `within` is asked
    for. The terms of the series, L^k G / k!, end with one below that: 20, for angles of up to pi. Cost: one product.
    """
    n = Q.size(-1)
    if n < PROVEN or not torch.equal(L, -L.mH):
        return False
    generator = torch.Generator().manual_seed(n)
    G = torch.randn(n, 16, generator=generator, dtype=Q.dtype, device="cpu").to(Q.device).expand(*Q.shape[:-2], n, 16)
    term, turned, most = G, G, within / 10
    for k in range(1, 64):
        term = L @ term / k
        turned = turned + term
        if bool((relative(term, G) <= most / 100).all()):
            return bool((relative(turned - Q @ G, G) <= most).all())
    return False


def half_turn_edge(Q: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    r"""(for each rotation its largest angle's distance from pi; margins -> the nearest rotations that keep them).

    The angles above pi - margin become that, in their own planes: on the invariant subspace of angles near pi Q is cos
    A + J sin A, with A the angles and J^2 = -I (see `rotation_log`). Unitary matrices have one eigenvector for each
    angle. The margins are at most 0.31, so that no angle outside that subspace is above. Others come back as they are,
    to the bit.
    """
    require_rotation_sign(Q, "cayley")
    flat = Q.reshape(-1, *Q.shape[-2:])
    if Q.is_complex():
        V, theta = unitary_angles(flat)
        planes: list[tuple[int, Tensor, Tensor | None, Tensor | None, Tensor]] = [
            (i, V[i], None, None, theta[i]) for i in range(len(flat))
        ]
    else:
        C, S = (flat + flat.mT) / 2, (flat - flat.mT) / 2
        cosines, V = torch.linalg.eigh(C)
        planes = list(_half_turn_planes(S, V, _near_half_turn(cosines)))
    gaps = torch.full((len(flat),), math.pi, dtype=Q.dtype.to_real(), device=Q.device)
    for i, _, _, _, angles in planes:
        gaps[i] = math.pi - angles.abs().max()

    def kept(margins: Tensor) -> Tensor:
        made, most = flat.clone(), (math.pi - margins.expand(Q.shape[:-2])).reshape(-1)
        for i, U, J, W, angles in planes:
            if not bool(gaps[i] < math.pi - most[i]):
                continue
            less = torch.maximum(torch.minimum(angles, most[i]), -most[i])
            if J is None or W is None:
                turn = torch.polar(torch.ones_like(less), less) - torch.polar(torch.ones_like(angles), angles)
                made[i] += (U * turn) @ U.mH
            else:
                C, S = (W * (less.cos() - angles.cos())) @ W.mT, (W * (less.sin() - angles.sin())) @ W.mT
                made[i] += U @ (C + J @ S) @ U.mT
        return made.reshape(Q.shape)

    return gaps.reshape(Q.shape[:-2]), kept


def unitary_log(Q: Tensor) -> Tensor:
    r"""The skew-Hermitian L with exp(L) = Q for a unitary Q, eigenvalues i theta with theta in [-pi, pi].

    Q turned by a phase that puts -1 into the widest gap between its eigenvalues has the Hermitian Cayley
    transform H = i (I - Q)(I + Q)^{-1}, with eigenvalues tan(theta / 2): all different where Q's are, so H's
    eigenvectors are Q's. The cosines tell |theta|, and a gap between those is one on either side of 0, at least
    pi / (n + 1) wide, so H is of moderate size whatever Q is.

    Cost: two Hermitian eigendecompositions (of one the values only) and a solve.
    """
    V, theta = unitary_angles(Q)
    return skew_part((V * (1j * theta).unsqueeze(-2)) @ V.mH)


def unitary_angles(Q: Tensor) -> tuple[Tensor, Tensor]:
    """(eigenvectors V, angles theta in [-pi, pi]) with Q = V diag(exp(i theta)) V^H."""
    sizes = torch.linalg.eigvalsh((Q + Q.mH) / 2).clamp(-1, 1).acos()
    edges = torch.cat([torch.full_like(sizes[..., :1], math.pi), sizes, torch.zeros_like(sizes[..., :1])], dim=-1)
    widest = edges.diff(dim=-1).argmin(dim=-1, keepdim=True)
    cut = ((edges.gather(-1, widest) + edges.gather(-1, widest + 1)) / 2).unsqueeze(-1)
    turned = Q * torch.polar(torch.ones_like(cut), math.pi - cut)
    I = torch.eye(Q.size(-1), dtype=Q.dtype, device=Q.device)
    H = 1j * torch.linalg.solve(I + turned, I - turned)
    V = torch.linalg.eigh((H + H.mH) / 2).eigenvectors
    return V, (V.conj() * (Q @ V)).sum(dim=-2).angle()


def _near_half_turn(cosines: Tensor) -> Tensor:
    """Mask of the eigenvalues that count as near -1, cut at the widest gap so that no plane is split."""
    low, high = _WINDOW
    inside = cosines.clamp(low, high)
    edges = torch.cat([torch.full_like(inside[..., :1], low), inside, torch.full_like(inside[..., :1], high)], dim=-1)
    gaps = edges.diff(dim=-1)
    widest = gaps.argmax(dim=-1, keepdim=True)
    cut = (edges.gather(-1, widest) + edges.gather(-1, widest + 1)) / 2
    return cosines < cut


def _half_turn_planes(S: Tensor, V: Tensor, near: Tensor) -> Iterator[tuple[int, Tensor, Tensor, Tensor, Tensor]]:
    """For each matrix with `near` half turns: its index, an orthonormal basis of their subspace, and J, W, angles
    there.
    """
    flat_S, flat_V = S.reshape(-1, *S.shape[-2:]), V.reshape(-1, *V.shape[-2:])
    for i, chosen in enumerate(near.reshape(-1, near.size(-1))):
        if bool(chosen.any()):
            U = flat_V[i][:, chosen]
            yield i, U, *_half_turns(U.mT @ flat_S[i] @ U)


def _half_turns(S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(J, W, angles) of a subspace of angles above a quarter turn, from its sines S (skew-symmetric, even size).

    The logarithm there is J A with A = W diag(angles) W^T; J is skew-symmetric, orthogonal, and commutes with A.
    """
    m = S.size(-1)
    U, sines, Vh = torch.linalg.svd(S)
    # Exact half turns have sine zero, and any orthonormal pairing of their subspace is a logarithm.
    null = sines < 1e3 * m * torch.finfo(S.dtype).eps
    count = int(null.sum())
    J = skew_part(U[:, : m - count] @ Vh[: m - count])
    for a in range(m - count, m - 1, 2):
        first, second = Vh[a], Vh[a + 1]
        J = J + torch.outer(second, first) - torch.outer(first, second)
    # Newton's iteration X (3 I - X^T X) / 2 is odd in X, so it keeps the skewness exactly while
    # it makes J orthogonal; where sines nearly coincide with zero, J starts off by about eps / sine.
    # An error e becomes 3/4 of its square with each step.
    I = torch.eye(m, dtype=S.dtype, device=S.device)
    for _ in range(8):
        gram = J.mT @ J
        J = skew_part(J @ (3 * I - gram) / 2)
        if bool(torch.linalg.matrix_norm(gram - I) < 1e-9):
            break
    P = J.mT @ S
    sizes, W = torch.linalg.eigh((P + P.mT) / 2)
    return J, W, math.pi - torch.asin(sizes.clamp(0, 1))
