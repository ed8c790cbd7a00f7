"""geotorch's symmetric, skew and sphere; its other names are those of `manifolds`."""

SQUARE = [[9, 2], [5, 7]]

LITERALS = [
    ("geotorch.symmetric", {"original": SQUARE}, [[9, 5], [5, 7]]),
    ("geotorch.symmetric:lower=false", {"original": SQUARE}, [[9, 2], [2, 7]]),
    ("geotorch.skew", {"original": SQUARE}, [[0, -5], [5, 0]]),
    ("geotorch.skew:lower=false", {"original": SQUARE}, [[0, 2], [-2, 0]]),
    ("geotorch.sphere", {"original": [[0, 0]], "0.base": [[0.6, 0.8]]}, [[0.6, 0.8]]),
    ("geotorch.sphere:embedded=true:radius=10", {"original": [[3, 4]]}, [[6, 8]]),
]
