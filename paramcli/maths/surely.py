"""What is surely true of large spectra, at a fraction of what the spectra cost: for those who look whether a set may be
near. Where nothing can be said, nothing is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .facts import gram, moments
from .numbers import with_added

# Shares of the root mean square of a matrix' columns, over which a real eigenvalue is looked for. Of n random numbers
# about sqrt(2 n / pi) eigenvalues are real, and lie up to there.
SHIFTS = tuple(0.97 - 0.045 * k for k in range(16))


def evenly_spread(W: Tensor, least: float) -> bool:
    """Is the smallest singular value of every matrix surely more than `least` of the largest? False where it is not
    known.

    G = W W^H of the shorter side has the eigenvalues s_i^2 and ||G||_F >= s_1^2, so where G - 1.5 least^2 ||G||_F I has
    a Cholesky factor, s_n > least s_1. Rounding takes n eps of ||G||_F, far less than the half of least^2 that is left.
    Cost: one product and O(n^3 / 3), where singular values take thirty times as long.
    """
    G, _ = gram(W)
    less = 1.5 * least**2 * torch.linalg.matrix_norm(G)
    return not bool(torch.linalg.cholesky_ex(with_added(G, -less)).info.any())


def surely_many(W: Tensor, least: float) -> int:
    r"""So many singular values of one matrix are surely more than `least` of the largest.

    By the first four moments m_k = tr G^k / n of G = W W^H, scaled to m_1 = 1: with p_0, p_1, p_2 orthogonal for them
    and h_j = E p_j^2, the polynomial q(x) = K(x) / K(a), K(x) = sum_j p_j(a) p_j(x) / h_j, has q(a) = 1 and
    E q^2 = 1 / K(a). Where it falls on [0, a], q^2 is 1 or more there, and no larger share of the eigenvalues is at or
    below a (Chebyshev and Markov); for a least^2 (tr G^4)^{1/4} is taken, which is no less than the largest. Of a
    random square matrix the share is 0.33 to 0.4, where the truth is 0.06.

    Cost: that of `moments`.
    """
    n, (_, m2, m3, m4, _) = min(W.shape), moments(W)
    a = least**2 * (m4 * n) ** 0.25 * (1 + 1e-9)
    h1 = m2 - 1
    if not h1 > 1e-6:
        return 0
    b = -1 - (m3 - 2 * m2 + 1) / h1
    c = -b - 1 - h1
    h2 = m4 + 2 * b * m3 + (b * b + 2 * c) * m2 + 2 * b * c + c * c
    if not h2 > 1e-6:
        return 0
    first, second = (a - 1) / h1, (a * a + b * a + c) / h2
    whole = 1 + first * (a - 1) + second * (a * a + b * a + c)
    # The derivative of K is linear, so its ends tell.
    falls = all(first + second * (2 * x + b) <= 0 for x in (0.0, a))
    return int(n * (1 - 1.001 / whole)) if falls else 0


def surely_invertible(W: Tensor, least: float) -> bool:
    """Is the smallest singular value of one square matrix surely more than `least` of the largest?

    1 / ||W^{-1}||_F is no larger, and W^{-1} = X (I - R)^{-1} where R = I - W X. Cost: about four products.
    """
    X, info = torch.linalg.inv_ex(W)
    if bool(info.any()):
        return False
    R = with_added(-(W @ X), 1.0)
    left = 1 - torch.linalg.matrix_norm(R)
    return bool((left > 0.5) & (left > 1.01 * least * torch.linalg.matrix_norm(X) * moments(W)[-1]))


def surely_right_of(A: Tensor) -> float:
    r"""s / ||A||_2 or less, for an s > 0 that a real eigenvalue of one matrix is surely above; 0 where none is found.

    det(s I - A) is positive for large s, and changes its sign at real eigenvalues: where it is negative, one is above
    s. An LU decomposition gives the sign of a matrix that rounding has moved by some n eps ||A||, and an eigenvalue by
    up to eps^{-1/2} times that, below 1e-4 ||A||; rounding of A itself to a half type moves it by up to 4e-3 ||A||
    (`certain_excess`). Both are taken off.

    Cost: an LU decomposition, a third of a product, for each s that is tried: two on average for a random matrix,
    where half of all determinants are negative, and sixteen where none is. An eigendecomposition takes some hundred
    products.
    """
    size = torch.linalg.matrix_norm(A).item() / A.size(-1) ** 0.5
    for share in SHIFTS:
        if torch.linalg.slogdet(with_added(-A, share * size)).sign.item() < 0:
            return max(0.0, share * size / moments(A)[-1] - 5e-3)
    return 0.0
