"""Structured and N:M sparsity: the value is the original under the stored mask."""

LITERALS = [
    ("prune_structured:amount=1", {"original": [[1, 2], [3, 4]], "0.mask": [[0, 0], [1, 1]]}, [[0, 0], [3, 4]]),
    ("nm:n=1:m=2", {"original": [[1, -2, 3, 4]], "0.mask": [[0, 1, 0, 1]]}, [[0, -2, 0, 4]]),
]
