"""Adapters by hand."""

LITERALS = [
    # (alpha / rank) B A = 2 [[1], [0]] [[1, 3]].
    (
        "lora:rank=1:alpha=2",
        {"original": [[1, 0], [0, 1]], "0.lora_A": [[1, 3]], "0.lora_B": [[1], [0]]},
        [[3, 6], [0, 1]],
    ),
    # The first expert gets 2 [[1], [0]] [[1, 3]], the second 2 [[0], [1]] [[1, 1]].
    (
        "expert_lora:rank=1:alpha=2",
        {
            "original": [[[1, 0], [0, 1]], [[0, 0], [0, 0]]],
            "0.lora_A": [[[1, 3]], [[1, 1]]],
            "0.lora_B": [[[1], [0]], [[0], [1]]],
        },
        [[[3, 6], [0, 1]], [[0, 0], [2, 2]]],
    ),
    # The change is 1.25 [1.0078125, 3]; bfloat16 has 1.2578125 for 1.259765625.
    (
        "lora:rank=1:alpha=1.25:rounds=bfloat16",
        {"original": [[1, 0], [0, 1]], "0.lora_A": [[1.0078125, 3]], "0.lora_B": [[1], [0]]},
        [[2.2578125, 3.75], [0, 1]],
    ),
    (
        "minlora:rank=1:alpha=2",
        {"original": [[1, 0], [0, 1]], "0.lora_A": [[1, 3]], "0.lora_B": [[1], [0]], "0.lora_dropout_mask": [[1, 1]]},
        [[3, 6], [0, 1]],
    ),
    (
        "minlora:rank=1:alpha=2:embedding=true",
        {"original": [[1, 0], [0, 1]], "0.lora_A": [[1], [0]], "0.lora_B": [[1, 3]], "0.lora_dropout_mask": [[1], [1]]},
        [[3, 6], [0, 1]],
    ),
    # V = [[3, 4], [0, 2]] has outputs of length 5 and 2, brought to 10 and 1.
    (
        "dora:rank=1:alpha=1",
        {"original": [[1, 0], [0, 2]], "0.lora_A": [[2, 4]], "0.lora_B": [[1], [0]], "0.magnitude": [10, 1]},
        [[6, 8], [0, 1]],
    ),
    # K = [[0, 1], [-1, 0]] gives the quarter turn [[0, 1], [-1, 0]], which exchanges the outputs.
    ("oft", {"original": [[1, 2], [3, 4]], "0.oft_K": [[[0, 1], [0, 0]]]}, [[3, 4], [-1, -2]]),
    ("saved", {"original": [[1, 0], [0, 2]], "0.saved": [[5, 6], [7, 8]]}, [[5, 6], [7, 8]]),
    ("shifted:scale=0.5", {"original": [[1, 0], [0, 2]], "0.diff": [[2, 4], [6, 8]]}, [[2, 2], [3, 6]]),
]
