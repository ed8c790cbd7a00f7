"""The tutorial's maps, torch's own parametrizations, and masks."""

from math import cos, cosh, e, sin, sinh

SQUARE = [[9, 2], [5, 7]]

LITERALS = [
    ("symmetric", {"original": SQUARE}, [[9, 2], [2, 7]]),
    ("skew", {"original": SQUARE}, [[0, 2], [-2, 0]]),
    # (I + X)(I - X)^-1 of [[0, 1], [-1, 0]] is a quarter turn; torch's half-scaled map would turn less.
    ("skew,cayley", {"original": [[0, 1], [0, 0]]}, [[0, 1], [-1, 0]]),
    ("skew,matrix_exp", {"original": [[0, 1], [0, 0]]}, [[cos(1), sin(1)], [-sin(1), cos(1)]]),
    ("symmetric,matrix_exp", {"original": [[0, 1], [0, 0]]}, [[cosh(1), sinh(1)], [sinh(1), cosh(1)]]),
    ("matrix_exp", {"original": [[1, 1], [0, 1]]}, [[e, e], [0, e]]),
    # The lower triangle counts: A = [[0, -2], [2, 0]], and (I + A/2)(I - A/2)^-1 is a quarter turn.
    ("orthogonal:map=cayley:triv=false", {"original": [[5, 7], [2, 5]]}, [[0, -1], [1, 0]]),
    ("orthogonal:map=matrix_exp:triv=false", {"original": [[5, 7], [1, 5]]}, [[cos(1), -sin(1)], [sin(1), cos(1)]]),
    # Reflectors v = (1, 1) and (0, 1): (I - v v^T) diag(1, -1) = [[0, 1], [-1, 0]], its columns times the diagonal's
    # signs.
    ("orthogonal:map=householder:triv=false", {"original": [[1, 7], [1, -1]]}, [[0, -1], [-1, 0]]),
    (
        "orthogonal:map=cayley",
        {"original": [[0, 0], [0, 0]], "0.base": [[0, 1], [1, 0]]},
        [[0, 1], [1, 0]],
    ),
    ("weight_norm", {"original0": [[10], [-1]], "original1": [[3, 4], [0, 2]]}, [[6, 8], [0, -1]]),
    ("weight_norm:dim=1", {"original0": [[10, 1]], "original1": [[3, 0], [4, 2]]}, [[6, 0], [8, 1]]),
    ("weight_norm:dim=none", {"original0": 10, "original1": [[3, 0], [0, 4]]}, [[6, 0], [0, 8]]),
    ("spectral_norm", {"original": [[4, 0], [0, 2]], "0._u": [1, 0], "0._v": [1, 0]}, [[1, 0], [0, 0.5]]),
    ("mask", {"original": SQUARE, "0.mask": [[1, 0], [0, 1]]}, [[9, 0], [0, 7]]),
    ("prune_random:amount=2", {"original": SQUARE, "0.mask": [[1, 0], [0, 1]]}, [[9, 0], [0, 7]]),
    ("prune_l1:amount=2", {"original": SQUARE, "0.mask": [[1, 0], [0, 1]]}, [[9, 0], [0, 7]]),
]
