"""Entry by entry, sorted vectors, probabilities."""

from math import e, log

LITERALS = [
    # softplus(0) = log 2, and softplus(log(e - 1)) = log(1 + e - 1) = 1.
    ("positive", {"original": [[0, log(e - 1)]]}, [[log(2), 1]]),
    ("positive:f=exp", {"original": [[0, log(5)]]}, [[1, 5]]),
    ("positive:f=square:floor=0.5", {"original": [[-2, 0]]}, [[4.5, 0.5]]),
    ("positive:f=abs", {"original": [[-2, 3]]}, [[2, 3]]),
    # 1 / (1 + exp(-log 3)) = 3/4.
    ("interval:a=-1:b=3", {"original": [[0, log(3)]]}, [[1, 2]]),
    ("increasing", {"original": [[5, 0, log(e - 1)]]}, [[5, 5 + log(2), 6 + log(2)]]),
    ("increasing:dim=0", {"original": [[5], [0]]}, [[5], [5 + log(2)]]),
    ("simplex", {"original": [[0, log(3)]]}, [[0.25, 0.75]]),
    ("simplex:dim=0", {"original": [[0], [log(4)]]}, [[0.2], [0.8]]),
    # exp(X) = diag(2, 1) [[3, 1], [1, 3]], whose rows and columns sum to 4.
    ("doubly_stochastic", {"original": [[log(6), log(2)], [0, log(3)]]}, [[0.75, 0.25], [0.25, 0.75]]),
    ("identity", {"original": [[9, 2], [5, 7]]}, [[9, 2], [5, 7]]),
]
