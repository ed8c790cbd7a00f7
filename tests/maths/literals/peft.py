"""Adapters of PEFT by hand."""

W = [[1, 2], [3, 4]]
# K = [[0, 1], [-1, 0]] turns by a quarter: (I - K)(I + K)^-1 = [[0, -1], [1, 0]].
QUARTER = [[1.0]]
LITERALS = [
    # (alpha / rank) B diag(E) A = 2 [[1], [0]] 0.5 [[1, 3]].
    (
        "adalora:rank=1:alpha=2",
        {"original": [[1, 0], [0, 1]], "0.lora_A": [[1, 3]], "0.lora_B": [[1], [0]], "0.lora_E": [[0.5]]},
        [[2, 3], [0, 1]],
    ),
    # diag(b) B = [[1], [-2]], diag(d) A = [[2, 6]]; the 9s are of longer weights.
    (
        "vera:rank=1:inputs=3:outputs=3",
        {
            "original": [[1, 0], [0, 1]],
            "0.vera_A": [[1, 3, 9]],
            "0.vera_B": [[1], [2], [9]],
            "0.vera_lambda_d": [2],
            "0.vera_lambda_b": [1, -1],
        },
        [[3, 6], [-4, -11]],
    ),
    ("peft.ia3", {"original": W, "0.ia3_l": [[2], [-1]]}, [[2, 4], [-3, -4]]),
    ("peft.ia3:axis=in", {"original": W, "0.ia3_l": [[2, -1]]}, [[2, -2], [6, -4]]),
    ("peft.ia3:axis=in:groups=2", {"original": W, "0.ia3_l": [[1, 2, 3, 4]]}, [[1, 4], [9, 16]]),
    (
        "saved_rows:count=2",
        {"original": [*W, [5, 6]], "0.saved_rows": [[7, 8], [9, 10]], "0.which": [1, -1, 0]},
        [[9, 10], [3, 4], [7, 8]],
    ),
    ("peft.oft:size=2", {"original": W, "0.oft_R": QUARTER}, [[-2, 1], [-4, 3]]),
    (
        "peft.oft:size=2:shared=true",
        {"original": [[1, 2, 3, 4]], "0.oft_R": QUARTER},
        [[-2, 1, -4, 3]],
    ),
    # K / 2 has the powers K / 2, -I / 4, -K / 8, I / 16: I + K - I / 2 - K / 4 + I / 16.
    (
        "peft.oft:size=2:terms=5",
        {"original": [[1, 0], [0, 1]], "0.oft_R": [[0.5]]},
        [[0.5625, -0.75], [0.75, 0.5625]],
    ),
    # I + K - I / 2 - K / 8, of 3 terms as of 4.
    (
        "peft.oft:size=2:terms=4:transposed=true",
        {"original": [[1, 0], [0, 1]], "0.oft_R": [[0.5]]},
        [[0.5, 0.875], [-0.875, 0.5]],
    ),
    (
        "peft.oft:size=2:terms=3",
        {"original": [[1, 0], [0, 1]], "0.oft_R": [[0.5]]},
        [[0.5, -0.875], [0.875, 0.5]],
    ),
    # K has the norm sqrt(2), and is brought to half of that: I + 2 K / 2. Of two blocks, to half of 1 / sqrt(2) each.
    (
        "peft.oft:size=2:terms=2:bound=0.7071067811865476",
        {"original": [[1, 0], [0, 1]], "0.oft_R": QUARTER},
        [[1, -1], [1, 1]],
    ),
    (
        "peft.oft:size=2:terms=2:bound=1",
        {"original": [[1, 0, 1, 0]], "0.oft_R": [[1.0], [0.25]]},
        [[1, -1, 1, -0.5]],
    ),
    # s doubles the second output.
    ("peft.boft:size=2", {"original": W, "0.boft_R": [[[[0, 2], [0, 0]]]], "0.boft_s": [[1], [2]]}, [[-2, 1], [-8, 6]]),
    # The second factor brings inputs 0 and 2 together, and turns them.
    (
        "peft.boft:size=2:factors=2",
        {
            "original": [[1, 2, 3, 4]],
            "0.boft_R": [[[[0, 0], [0, 0]]] * 2, [[[0, 2], [0, 0]], [[0, 0], [0, 0]]]],
            "0.boft_s": [[1]],
        },
        [[-3, 2, 1, 4]],
    ),
]
