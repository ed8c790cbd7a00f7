"""Structured matrices."""

from math import e, log

SQUARE = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
WIDE = [[1, 2, 3, 4], [5, 6, 7, 8]]

LITERALS = [
    ("lower_triangular", {"original": SQUARE}, [[1, 0, 0], [4, 5, 0], [7, 8, 9]]),
    ("lower_triangular:diag=unit", {"original": WIDE}, [[1, 0, 0, 0], [5, 1, 0, 0]]),
    # log(1 + e^x) is log 2 at x = 0 and 1 at x = log(e - 1).
    ("lower_triangular:diag=softplus", {"original": [[0, 3], [-4, log(e - 1)]]}, [[log(2), 0], [-4, 1]]),
    ("upper_triangular", {"original": WIDE}, [[1, 2, 3, 4], [0, 6, 7, 8]]),
    ("upper_triangular:diag=softplus", {"original": [[0, 3], [-4, log(e - 1)]]}, [[log(2), 3], [0, 1]]),
    ("diagonal", {"original": WIDE}, [[1, 0, 0, 0], [0, 6, 0, 0]]),
    ("banded:b=1", {"original": SQUARE}, [[1, 2, 0], [4, 5, 6], [0, 8, 9]]),
    ("block_diagonal:g=2", {"original": WIDE}, [[1, 2, 0, 0], [0, 0, 7, 8]]),
    # Diagonals of SQUARE: 7; 4, 8; 1, 5, 9; 2, 6; 3.
    ("toeplitz", {"original": SQUARE}, [[5, 4, 3], [6, 5, 4], [7, 6, 5]]),
    ("toeplitz", {"original": WIDE}, [[3.5, 4.5, 5.5, 4], [5, 3.5, 4.5, 5.5]]),
    # Wrapped: 1, 5, 9 at 0; 2, 6, 7 at 1; 3, 4, 8 at 2.
    ("circulant", {"original": SQUARE}, [[5, 5, 5], [5, 5, 5], [5, 5, 5]]),
    # 3, 0, 0 at 0; 6, 0, 0 at 1; 0, 0, 9 at 2: the second row is the first moved to the right.
    ("circulant", {"original": [[3, 6, 0], [0, 0, 0], [0, 9, 0]]}, [[1, 2, 3], [3, 1, 2], [2, 3, 1]]),
    # scipy.linalg.toeplitz([1, 2, 3], [1, 4, 5, 6]), its r_0 ignored, and scipy.linalg.circulant([1, 2, 3]).
    (
        "toeplitz_compact",
        {"original0": [1, 2, 3], "original1": [99, 4, 5, 6]},
        [[1, 4, 5, 6], [2, 1, 4, 5], [3, 2, 1, 4]],
    ),
    ("circulant_compact", {"original": [1, 2, 3]}, [[1, 3, 2], [2, 1, 3], [3, 2, 1]]),
    ("kronecker:p=1:q=2", {"original0": [[1, -2]], "original1": [[1, 2], [3, 4]]}, [[1, 2, -2, -4], [3, 4, -6, -8]]),
    ("kronecker:p=2:q=1", {"original0": [[1], [1j]], "original1": [[1, 2]]}, [[1, 2], [1j, 2j]]),
    (
        "factored:rank=2",
        {"original0": [[1, 0], [0, 1], [1, 1]], "original1": [[1, 2, 3], [4, 5, 6]]},
        [[1, 2, 3], [4, 5, 6], [5, 7, 9]],
    ),
    ("rank_one", {"original0": [1, 2], "original1": [3, 4, 5]}, [[3, 4, 5], [6, 8, 10]]),
    # U = I and V the exchange of two axes: 3 e_1 e_2^T + 2 e_2 e_1^T. V^H conjugates the i.
    ("svd_vals", {"original": [3, 2], "0.U": [[1, 0], [0, 1]], "0.V": [[0, 1], [1, 0]]}, [[0, 3], [2, 0]]),
    ("svd_vals", {"original": [3 + 0j, 2], "0.U": [[1 + 0j, 0], [0, 1]], "0.V": [[0, 1j], [1, 0]]}, [[0, 3], [-2j, 0]]),
]
