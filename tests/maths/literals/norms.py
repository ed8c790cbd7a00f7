"""Norms, means and spectral bounds."""

from math import e, log, sqrt

LITERALS = [
    # Rows of norm 5 and 2.
    ("unit_norm", {"original": [[3, 4], [0, 2]]}, [[0.6, 0.8], [0, 1]]),
    ("unit_norm:dim=0:r=10", {"original": [[3, 0], [4, 2]]}, [[6, 0], [8, 10]]),
    ("unit_norm:dim=none:r=10", {"original": [[3, 0], [0, 4]]}, [[6, 0], [0, 8]]),
    # x sqrt(4) / 5: squares 1.44 and 2.56 have mean 1.
    ("mp_norm", {"original": [[3, 4, 0, 0]]}, [[1.2, 1.6, 0, 0]]),
    # tanh(log(3) / 2) = (3 - 1) / (3 + 1).
    ("ball", {"original": [[log(3) / 2, 0], [0, 0]]}, [[0.5, 0], [0, 0]]),
    ("ball:c=2.0", {"original": [[0, -log(3)]]}, [[0, -1]]),
    ("max_norm", {"original": [[3, 4], [0.3, 0.4], [0, 0]]}, [[0.6, 0.8], [0.3, 0.4], [0, 0]]),
    ("centered", {"original": [[1, 2, 6]]}, [[-2, -1, 3]]),
    ("sum_to:c=6", {"original": [[1, 2, 0]]}, [[2, 3, 1]]),
    # Mean 2 and deviation sqrt((1 + 1) / 2) = 1; mean 2 and deviation 2.
    ("weight_std", {"original": [[1, 3], [0, 4]]}, [[-1, 1], [-1, 1]]),
    ("spectral_cap:c=2", {"original": [[0, 3], [4, 0]]}, [[0, 1.5], [2, 0]]),
    ("spectral_cap:c=2", {"original": [[0, 1], [-1, 0]]}, [[0, 1], [-1, 0]]),
    # Singular values 3 and 0.25: only the first is cut.
    ("schur_stable:gamma=0.5", {"original": [[0, 3], [-0.25, 0]]}, [[0, 0.5], [-0.25, 0]]),
    # X^T X = [[1, -1], [-1, 2]]: absolute sums 2 and 3.
    ("aol", {"original": [[1, -1], [0, 1]]}, [[1 / sqrt(2), -1 / sqrt(3)], [0, 1 / sqrt(3)]]),
    (
        "sigma_reparam",
        {"original0": -3, "original1": [[4, 0], [0, 2]], "0._u": [1, 0], "0._v": [1, 0]},
        [[-3, 0], [0, -1.5]],
    ),
    # softplus(log(e - 1)) = 1, so the factor is (1 + 0.5) / (4 + 1).
    (
        "spectral_reparam:alpha=0.5:eps=1",
        {"original": [[4, 0], [0, 2]], "0._u": [1, 0], "0._v": [1, 0], "0.scale": [[log(e - 1)]], "0._sn_version": 2},
        [[1.2, 0], [0, 0.6]],
    ),
    # Version 1 takes the scale as it is.
    (
        "spectral_reparam:alpha=0.5:eps=0",
        {"original": [[4, 0], [0, 2]], "0._u": [1, 0], "0._v": [1, 0], "0.scale": [[3]], "0._sn_version": 1},
        [[3, 0], [0, 1.5]],
    ),
    # sigma = 4 above the bound 2 halves it; below the bound 8 nothing happens, but for eps.
    (
        "soft_spectral_norm:coeff=2",
        {"original": [[4, 0], [0, 2]], "0._u": [1, 0], "0._v": [1, 0], "0._sigma": [7]},
        [[2, 0], [0, 1]],
    ),
    (
        "soft_spectral_norm:coeff=8:eps=1",
        {"original": [[4, 0], [0, 2]], "0._u": [1, 0], "0._v": [1, 0], "0._sigma": [7]},
        [[2, 0], [0, 1]],
    ),
]
