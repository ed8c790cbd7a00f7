"""Orthogonal matrices beyond torch's own, and complex ones."""

from math import cos, cosh, e, sin, sinh

LITERALS = [
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
