"""Frames, ranks, determinants, definiteness, stability and spheres, from the stored tensors of geotorch."""

from math import cos, e, exp, log, log1p, pi, sin, sqrt

I2 = [[1, 0], [0, 1]]
SWAP = [[0, 1], [1, 0]]
# softplus(0) + 1e-6, and softplus(1) + 1e-6.
SP0, SP1 = log(2) + 1e-6, log1p(e) + 1e-6
# exp(A) of A = [[0, -1], [1, 0]] turns by 1 radian; only what lies below the diagonal counts.
TURN = [[cos(1), -sin(1)], [sin(1), cos(1)]]

LITERALS = [
    ("so", {"original": [[5, 7], [1, 5]], "0.base": I2}, TURN),
    # (I - A/2)^-1 (I + A/2) of A = [[0, -2], [2, 0]] is a quarter turn; base @ it exchanges its rows for SWAP.
    ("so:triv=cayley", {"original": [[5, 7], [2, 5]], "0.base": SWAP}, [[1, 0], [0, -1]]),
    # A 2 x 1 frame: the first column of base @ exp(A); a wide one is its transpose.
    ("stiefel", {"original": [[5], [1]], "0.base": I2}, [[cos(1)], [sin(1)]]),
    ("stiefel:triv=cayley", {"original": [[5, 2]], "0.base": SWAP}, [[1, 0]]),
    # The upper 1 x 1 block, 5, is not used; of a square X nothing is.
    ("grassmannian", {"original": [[5], [1]], "0.base": I2}, [[cos(1)], [sin(1)]]),
    ("grassmannian", {"original": [[5, 7], [1, 5]], "0.base": SWAP}, SWAP),
    # s = 3 on the diagonal; below it 1 turns U's first column, above it pi/2 turns V's: 3 (cos 1, sin 1)^T (0, 1).
    (
        "low_rank:rank=1",
        {"original": [[3, pi / 2], [1, 9]], "0.0.base": I2, "0.2.base": I2},
        [[0, 3 * cos(1)], [0, 3 * sin(1)]],
    ),
    ("fixed_rank:rank=1", {"original": [[1, 0], [0, 9]], "0.0.base": SWAP, "0.2.base": I2}, [[0, 0], [SP1, 0]]),
    # 1 + 0.3 sin(pi/2) and 1 + 0.3 sin(0); tanh(log 2) = 3/5; 2 sigmoid(log 3) - 1 = 1/2.
    (
        "almost_orthogonal:lam=0.3",
        {"original": [[pi / 2, 0], [0, 0]], "0.0.base": I2, "0.2.base": I2},
        [[1.3, 0], [0, 1]],
    ),
    (
        "almost_orthogonal:f=tanh",
        {"original": [[log(2), 0], [0, 0]], "0.0.base": I2, "0.2.base": I2},
        [[1.06, 0], [0, 1]],
    ),
    (
        "almost_orthogonal:f=scaled_sigmoid:lam=0.5",
        {"original": [[log(3), 0], [0, 0]], "0.0.base": I2, "0.2.base": I2},
        [[1.25, 0], [0, 1]],
    ),
    ("invertible", {"original": [[0, 0], [0, 1]], "0.0.base": SWAP, "0.2.base": I2}, [[0, SP1], [SP0, 0]]),
    # p = (SP1, SP0) over sqrt(SP1 SP0).
    (
        "sln",
        {"original": [[1, 0], [0, 0]], "0.0.base": I2, "0.2.base": I2},
        [[sqrt(SP1 / SP0), 0], [0, sqrt(SP0 / SP1)]],
    ),
    # Q is the turn by 1: Q diag(SP1, SP0) Q^T.
    (
        "spd",
        {"original": [[1, 7], [1, 0]], "0.0.base": I2},
        [
            [SP1 * cos(1) ** 2 + SP0 * sin(1) ** 2, (SP1 - SP0) * sin(1) * cos(1)],
            [(SP1 - SP0) * sin(1) * cos(1), SP1 * sin(1) ** 2 + SP0 * cos(1) ** 2],
        ],
    ),
    ("psd", {"original": [[-3, 7], [0, 2]], "0.0.base": SWAP}, [[2, 0], [0, 3]]),
    ("psd_low_rank:rank=1", {"original": [[-3, 7], [0, 2]], "0.0.base": SWAP}, [[0, 0], [0, 3]]),
    ("psd_fixed_rank:rank=1", {"original": [[1, 7], [0, 2]], "0.0.base": I2}, [[SP1, 0], [0, 0]]),
    # l with softplus(l) + 1e-6 = 2 for both Q and P: A = 2 (S - I) - 0.5 I with S = [[0, -1], [1, 0]].
    (
        "alpha_stable:alpha=0.5",
        {
            **{f"original{i}": [[log(exp(2 - 1e-6) - 1), 0], [0, log(exp(2 - 1e-6) - 1)]] for i in (0, 1)},
            "original2": [[5, 7], [1, 5]],
            "0.In": I2,
            "0.alpha": 0.5,
            "0.0.0.base": I2,
            "0.1.0.base": SWAP,
        },
        [[-2.5, -2], [2, -2.5]],
    ),
    # From x = (1, 0) along u = (0, pi/2), what lies along x (7) taken off: a quarter of the circle of radius 2.
    ("sphere_exp:radius=2", {"original": [7, pi / 2], "0.base": [1, 0]}, [0, 2]),
]
