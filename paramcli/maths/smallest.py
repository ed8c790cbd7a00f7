"""The smallest singular values of a large matrix, and their directions, from its polar factors: by products and solves
of a few columns, where an SVD would find them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .eigenvalues import surely_positive
from .numbers import eps

# So many are looked for at once; where more are below what was asked, an SVD is.
COLUMNS, STEPS = 64, 30
# In eps ||H||_F: what rounding leaves of H v - s v.
ROUNDING = 32.0


@dataclass(frozen=True)
class Smallest:
    """Of W = Q H: the singular values, ascending, with the left and right vectors of each in a column."""

    S: Tensor
    U: Tensor
    V: Tensor


def smallest(Q: Tensor, H: Tensor, below: float, least: int) -> Smallest | None:
    r"""All singular values of one W = Q H that are below `below`, or so many where those are fewer: surely all, and
    their directions to rounding. Q has orthonormal columns, H is Hermitian and positive definite. None where that is
    not proven.

    Inverse iteration on COLUMNS columns, with the Cholesky factor of H. What it gives is no less than the eigenvalues
    in their order; and where H + 2 b V V^H - b I is positive definite for the c columns V, no more than c eigenvalues
    of H are below b (interlacing). So they are all of them.

    Cost: two Cholesky factorizations, a sixth of a product each, and solves of COLUMNS columns, four for a random
    matrix.
    """
    H = (H + H.mH) / 2
    n, size = H.size(-1), torch.linalg.matrix_norm(H)
    L, failed = torch.linalg.cholesky_ex(H)
    if bool(failed) or n <= 2 * COLUMNS:
        return None
    # Drawn on the CPU, so that every device has the same.
    start = torch.randn(n, COLUMNS, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    V = torch.linalg.qr(start.to(H.device, H.dtype)).Q
    for _ in range(STEPS):
        V = torch.linalg.qr(torch.cholesky_solve(V, L)).Q
        HV = H @ V
        S, R = torch.linalg.eigh(V.mH @ HV)
        V, HV = V @ R, HV @ R
        count = max(int((below > S).sum()), least)
        if count >= COLUMNS:
            return None
        off = torch.linalg.vector_norm(HV[:, :count] - V[:, :count] * S[:count], dim=0)
        if bool((off <= ROUNDING * eps(H.dtype) * size).all()):
            break
    else:
        return None
    b = max(below, ((S[count - 1] + S[count]) / 2).item())
    V, S = V[:, :count], S[:count]
    raised = H + (2 * b * V) @ V.mH
    I = torch.eye(n, dtype=H.dtype, device=H.device)
    if not bool(surely_positive(raised - b * I, ROUNDING * eps(H.dtype) * size)):
        return None
    return Smallest(S, Q @ V, V)
