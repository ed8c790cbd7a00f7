"""The nearest orthogonal matrix: the polar factor U V^H of W = U S V^H, and whether there is one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..wording import given
from .base import Singular
from .halley import polar_by_products
from .numbers import eps, times_adjoint
from .smallest import smallest

# Singular values below this share of the largest are rounding of float32 weights, and the directions that
# belong to them noise: a nearest point built on them would be arbitrary.
RANK = 1e-6
# Of float64 weights with digits beyond float32's: an SVD in float64 finds such a direction to about eps / 1e-10 for
# each root of n.
RANK_OF_DOUBLES = 1e-10
# Of a half type's weight this share of the directions may be noise: whatever they are, the point moves by sqrt(2 *
# 0.01) at most.
ARBITRARY = 0.01
# ||W^H W - I||_F below which Newton-Schulz steps take the place of an SVD: four of them leave nothing of it.
NEAR = 0.1

NOT_UNIQUE = "no unique nearest orthogonal matrix"

# From this side on, on a GPU.
BY_PRODUCTS = 512


def gram_difference(Q: Tensor) -> Tensor:
    """Q^H Q - I (Q Q^H - I if wide)."""
    Q = Q if Q.size(-2) >= Q.size(-1) else Q.mH
    return times_adjoint(Q.mH) - torch.eye(Q.size(-1), dtype=Q.dtype, device=Q.device)


def polar(
    W: Tensor,
    rotation: bool = False,
    stored: torch.dtype | None = None,
    signs: Tensor | None = None,
    error: Tensor | None = None,
) -> tuple[Tensor, str | None]:
    r"""(the nearest matrix with orthonormal columns, rows if wide: U V^H of W = U S V^H; what was assumed for it)

    With `rotation`, the nearest with determinant +1: the direction of the smallest singular value is flipped where U
    V^T has determinant -1. Raises Singular where the nearest point is not unique; of a W that was rounded to `stored`
    also where nothing but rounding is left of several of its directions (see `rounded_away`). Where they are at hand,
    `signs`: of its determinants, for a rotation, and `error`: ||W^H W - I||_F.

    Cost: an SVD; for a matrix that is nearly there, a few Newton-Schulz steps, four to ten times less; for a large one
    on a GPU `polar_by_products`, where that is proven. Which of them is decided matrix by matrix, so that a batch gives
    each what it gets alone.
    """
    batch = W.reshape(-1, *W.shape[-2:])
    tall = batch if W.size(-2) >= W.size(-1) else batch.mH
    error = torch.linalg.matrix_norm(gram_difference(tall)) if error is None else error.reshape(-1)
    near, assumed = error < NEAR, None
    turns = torch.ones_like(near)
    if rotation:
        signs = torch.linalg.slogdet(batch).sign if signs is None else signs.reshape(-1)
        turns = signs.real > 0
    near &= turns
    Q = torch.empty_like(batch)
    left = ~near
    if _by_products(tall):
        for index in left.nonzero().squeeze(-1).tolist():
            found = _polar_by_products(tall[index], bool(turns[index]), stored, free=int(rotation and W.size(-1) > 1))
            if found is not None:
                Q[index] = found[0] if tall is batch else found[0].mH
                left[index], assumed = False, assumed or found[1]
    if bool(left.any()):
        signs = signs[left] if rotation and signs is not None else None
        Q[left], told = _polar_by_svd(batch[left], signs, stored)
        assumed = told or assumed
    if bool(near.any()):
        X = _newton_schulz(tall[near], error[near])
        Q[near] = X if tall is batch else X.mH
    return Q.reshape(W.shape), assumed


def _by_products(W: Tensor) -> bool:
    """Is an SVD of such matrices dearer than products?"""
    return W.is_cuda and W.size(-1) >= BY_PRODUCTS


def _polar_by_products(
    W: Tensor, turns: bool, stored: torch.dtype | None, free: int
) -> tuple[Tensor, str | None] | None:
    """What `_polar_by_svd` gives of one tall matrix, without an SVD; None where that is not proven, or W is refused.

    It asks the smallest singular values: for the direction to flip where it does not turn, and in a half type for those
    that may be rounding (`rounded_away`). None can be that is above the bound for all directions together.
    """
    Q, H, sure = (found[0] for found in polar_by_products(W.unsqueeze(0)))
    if not bool(sure):
        return None
    coarse, k = is_coarse(stored), W.size(-1)
    if turns and not coarse:
        return Q, None
    below = (_rounding(W, stored).amax().sqrt() * (2 * W.size(-2) ** 0.5 + 3)).item() if coarse else 0.0
    last = smallest(Q, H, below, least=1)
    if last is None:
        return None
    lost = 0
    if coarse:
        U, S, Vh = last.U.flip(-1), last.S.flip(-1), last.V.mH.flip(-2)
        lost = int(rounded_away(W, U, S, Vh, stored, 1 - Q.square().sum(-1)))
    if lost >= max(2, ARBITRARY * k):
        return None
    if not turns:
        Q = Q - 2 * last.U[:, :1] @ last.V[:, :1].mH
    return Q, _told(lost, k) if lost > free else None


def _newton_schulz(X: Tensor, error: Tensor) -> Tensor:
    r"""X (3 I - X^H X) / 2 repeated: the error ||X^H X - I|| goes to 3/4 of its square with each step."""
    X, once = X.clone(), torch.ones_like(error, dtype=torch.long)
    steps = sum(((error > bound).long() for bound in (1e-8, 1e-4, 1e-2)), start=once)
    I = torch.eye(X.size(-1), dtype=X.dtype, device=X.device)
    for taken in range(int(steps.max())):
        now = steps > taken
        Y = X[now]
        X[now] = Y @ (3 * I - Y.mH @ Y) / 2
    return X


def _polar_by_svd(W: Tensor, signs: Tensor | None, stored: torch.dtype | None) -> tuple[Tensor, str | None]:
    """`signs`: of the determinants, for rotations."""
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    # With a free sign on the last direction, a rotation is unique up to rank n - 1.
    free = 1 if signs is not None and S.size(-1) > 1 else 0
    assumed = require_directions(W, U, S, Vh, stored, free, NOT_UNIQUE)
    if signs is None:
        return U @ Vh, assumed
    mirrored = signs.real < 0
    # Of a singular matrix' determinant rounding has the sign.
    unsure = _least_share(W, stored) * S[:, 0] >= S[:, -1]
    if bool(unsure.any()):
        mirrored[unsure] = torch.linalg.slogdet(U[unsure] @ Vh[unsure]).sign.real < 0
    last = torch.where(mirrored.unsqueeze(-1), -U[..., -1], U[..., -1]).unsqueeze(-1)
    return torch.cat([U[..., :-1], last], dim=-1) @ Vh, assumed


def require_unique_polar(W: Tensor, stored: torch.dtype | None) -> None:
    """Raise Singular where `polar` does. Cost: singular values alone, but for half types."""
    batch = W.reshape(-1, *W.shape[-2:])
    far = batch[~(torch.linalg.matrix_norm(gram_difference(batch)) < NEAR)]
    if is_coarse(stored):
        polar(far, stored=stored)
        return
    tall = far if W.size(-2) >= W.size(-1) else far.mH
    if len(far) and _by_products(far):
        tall = tall[~polar_by_products(tall)[2]]
    if len(tall):
        _require_all(torch.linalg.svdvals(tall), _least_share(tall, stored), None, 0, NOT_UNIQUE)


def require_directions(
    W: Tensor, U: Tensor, S: Tensor, Vh: Tensor, stored: torch.dtype | None, free: int, what: str
) -> str | None:
    """Raise Singular where more than `free` of the singular directions of W = U S V^H are rounding of zero, or zero.

    In a half type one such direction is no proof: every twentieth random matrix has it. Two are, and a share of
    ARBITRARY; fewer are taken as they are, and told.
    """
    rounding = rounded_away(W, U, S, Vh, stored) if is_coarse(stored) else None
    return _require_all(S, _least_share(W, stored), rounding, free, what)


def is_coarse(stored: torch.dtype | None) -> bool:
    """Is it a dtype whose rounding alone may be what a singular value of RANK and more is?"""
    return stored is not None and eps(stored) > eps(torch.float32)


def _least_share(W: Tensor, stored: torch.dtype | None) -> Tensor:
    """The share of the largest singular value below which those of each matrix are its rounding: float32's, also of a
    float64 weight all of whose entries are float32 numbers.
    """
    share = torch.full(W.shape[:-2], RANK, dtype=W.real.dtype, device=W.device)
    if stored is None or not eps(stored) < eps(torch.float32):
        return share
    single = torch.complex64 if W.is_complex() else torch.float32
    beyond = (W.to(single) != W).any(-1).any(-1)
    return torch.where(beyond, RANK_OF_DOUBLES, share)


def _require_all(S: Tensor, share: Tensor, rounding: Tensor | None, free: int, what: str) -> str | None:
    """`require_directions`, by the singular values, the share that is zero and how many of each matrix are rounding."""
    zero = (share.unsqueeze(-1) * S[..., :1] >= S).sum(-1)
    lost = zero if rounding is None else torch.maximum(zero, rounding)
    k = S.size(-1)
    refused = (zero > free) | (lost >= max(2, ARBITRARY * k))
    if bool(refused.any()):
        # Of the worst, not the extremes of different matrices.
        index = int(torch.where(refused, lost, torch.zeros_like(lost)).argmax())
        worst, least = S.reshape(-1, k)[index], share.reshape(-1)[index].item()
        few = f"{int(lost.max())} of {k} below"
        below = f"{few} what rounding leaves of zero" if bool((lost > zero).any()) else f"{few} {least:g} of the first"
        raise Singular(
            f"{what}: the tensor is rank-deficient (singular values from {worst[0].item():.2g} down to "
            f"{worst[-1].item():.2g}, {below})",
            hint=f"{given('init', 'raw')} registers it as it is",
        )
    most = int(lost.max())
    return _told(most, k) if most > free else None


def _told(lost: int, k: int) -> str:
    return f"{lost} of its {k} singular values may be rounding of zero: their directions are taken as they are"


def rounded_away(
    W: Tensor, U: Tensor, S: Tensor, Vh: Tensor, stored: torch.dtype | None, outside: Tensor | None = None
) -> Tensor:
    r"""How many of the last singular directions of each W = U S V^T are, together, no more than its rounding to
    `stored`.

    Rounding adds E with independent entries, uniform in +-ulp / 2: variance ulp(W_ij)^2 / 12, known from W itself. Were
    the last d singular values zero before, W has on the last n - r left and d = k - r right directions (r = k - d)
    nothing but E. A noise matrix with entries of deviation s has there values up to s (sqrt(n - r) + sqrt(d)), and
    beyond s (sqrt(n - r) + sqrt(d) + 3) one time in a hundred (Davidson and Szarek, 2001); s^2 is the mean variance on
    those directions. The d counted is the largest whose values all lie below that.

    In a full-rank Gaussian W the d-th smallest value is about pi d / (2 n) of the largest, above that bound from d = 2
    on for every n below 10^5 in bfloat16: of 7,000 (n = 2 to 1024) two directions were found in none, and one in 6 % at
    n = 64 and in about 20 % at n = 512. Of products of rank r the n - r lost directions were all found, exactly from r
    = n / 2 on.

    The last directions alone are enough, where all others are above the bound: `outside` is then what each row has
    outside of all left directions.
    """
    if W.size(-2) < W.size(-1):
        W, U, Vh = W.mT, Vh.mT, U.mT
    n, k = W.shape[-2:]
    variance = _rounding(W, stored)
    d = torch.arange(S.size(-1), 0, -1, device=W.device, dtype=W.dtype)
    squares = U.square()
    left = (1 - squares.sum(-1) if outside is None else outside).clamp(min=0).unsqueeze(-1) + _from_the_last(squares)
    right = _from_the_last(variance @ Vh.mT.square())
    deviation = ((left * right).sum(-2) / ((n - k + d) * d)).sqrt()
    below = deviation * ((n - k + d).sqrt() + d.sqrt() + 3) >= S
    return torch.where(below, d, torch.zeros_like(d)).amax(-1).long()


def _from_the_last(columns: Tensor) -> Tensor:
    return columns.flip(-1).cumsum(-1).flip(-1)


def _rounding(W: Tensor, stored: torch.dtype | None) -> Tensor:
    """The variance of what rounding to `stored` added to each entry."""
    assert stored is not None  # what is not rounded to a dtype has no rounding
    ulp = torch.ldexp(torch.full_like(W, eps(stored)), torch.frexp(W).exponent - 1).clamp(
        min=torch.finfo(stored).smallest_normal * eps(stored)
    )
    return torch.where(W == 0, torch.zeros_like(W), ulp.square() / 12)
