"""Orthogonal matrices beyond torch's own, and complex ones."""

from math import cos, cosh, e, sin, sinh

LITERALS = [
    # [[0, -2], [3, 0]] is a quarter turn times diag(3, 2): U V^T is the quarter turn.
    ("polar", {"original": [[0, -2], [3, 0]]}, [[0, -1], [1, 0]]),
    # [[0, 2i], [2, 0]] is twice a unitary matrix.
    ("polar", {"original": [[0, 2j], [2, 0]]}, [[0, 1j], [1, 0]]),
    # The first column over its length 5 is (3, 4) / 5; the second minus its shadow (7 along the first) is
    # (1, 7) - 31/5 (3, 4) / 5 = (-68, 51) / 25, of length 17/5: (-4, 3) / 5. A negative R_22 would flip it.
    ("qr", {"original": [[3, 1], [4, 7]]}, [[0.6, -0.8], [0.8, 0.6]]),
    # One row: L = 5.
    ("qr", {"original": [[3, -4]]}, [[0.6, -0.8]]),
    ("hermitian", {"original": [[9 + 5j, 2 + 3j], [5j, 7 + 1j]]}, [[9 + 0j, 2 + 3j], [2 - 3j, 7]]),
    ("skew_hermitian", {"original": [[9 + 5j, 2 + 3j], [5j, 7 + 1j]]}, [[5j, 2 + 3j], [-2 + 3j, 1j]]),
    # (1 + i) / (1 - i) = i and (1 - i) / (1 + i) = -i on the diagonal.
    ("skew_hermitian,cayley", {"original": [[1j, 0], [0, -1j]]}, [[1j, 0], [0, -1j]]),
    # exp(i S) = cos 1 + i S sin 1 for S = [[0, 1], [1, 0]], as S^2 = I.
    ("skew_hermitian,matrix_exp", {"original": [[0, 1j], [0, 0]]}, [[cos(1), 1j * sin(1)], [1j * sin(1), cos(1)]]),
    # exp(H) = cosh 1 + H sinh 1 for H = [[0, i], [-i, 0]], as H^2 = I.
    ("hermitian,matrix_exp", {"original": [[0, 1j], [0, 0]]}, [[cosh(1), 1j * sinh(1)], [-1j * sinh(1), cosh(1)]]),
    ("hermitian,matrix_exp", {"original": [[1 + 0j]]}, [[e + 0j]]),
]
