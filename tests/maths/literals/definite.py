"""Cholesky factors, correlation matrices, LU."""

from math import e, exp, log

# softplus(ONE) = 1, softplus(FOUR) = 4.
ONE, FOUR = log(e - 1), log(exp(4) - 1)

LITERALS = [
    # L = [[1, 0], [2, 1]]; the entry above the diagonal is not used.
    ("spd_cholesky", {"original": [[ONE, 7], [2, ONE]]}, [[1, 2], [2, 5]]),
    ("spd_cholesky:eps=1", {"original": [[ONE, 7], [2, ONE]]}, [[2, 2], [2, 6]]),
    # The second row (3, 4) is scaled to (0.6, 0.8), the first to (1, 0).
    ("correlation", {"original": [[5, 7], [3, FOUR]]}, [[1, 0.6], [0.6, 1]]),
    # [[1, 0], [3, 1]] [[1, 2], [0, -5]] = [[1, 2], [3, 1]], with its rows exchanged.
    ("lu", {"original": [[0, 2], [3, log(5)]], "0.rows": [1, 0], "0.signs": [1, -1]}, [[3, 1], [1, 2]]),
]
