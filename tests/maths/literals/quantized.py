"""Grids by hand."""

LITERALS = [
    # s = 0.5, q = 3 for 3 bits: 0.8 -> 1.6 -> 2; -0.3 -> -0.6 -> -1; -5 is cut to -3; 0.2 -> 0.4 -> 0.
    ("fake_quant:bits=3", {"original": [[0.8, -0.3], [-5, 0.2]], "0.scale": [0.5]}, [[1, -0.5], [-1.5, 0]]),
    # s = mean |X| = 2: 0.5/2 -> 0, -3/2 -> -2 (ties to even) -> -1, 4/2 -> 1.
    ("ternary", {"original": [[0.5, -3], [4, 0.5]]}, [[0, -2], [2, 0]]),
    ("ternary:dim=0", {"original": [[0.5, -3.5], [4, 2]]}, [[0, -2], [3, 3]]),
    ("binary", {"original": [[0.5, -3], [4, 0.5]]}, [[2, -2], [2, 2]]),
    # 3 bits of mantissa: 1.3 lies between 1.25 and 1.375; 1000 is beyond 448; 17 between 16 and 18 (ties to even: 16).
    ("fp8", {"original": [[1.3, 1000], [17, -0.1]]}, [[1.25, 448], [16, -0.1015625]]),
    ("fp8:format=e5m2", {"original": [[1.3, 1e6], [17, -0.1]]}, [[1.25, 57344], [16, -0.09375]]),
]
