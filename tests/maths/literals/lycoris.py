"""The changes of LyCORIS by hand."""

EPS = 2**-23
# Of rank 2 with one entry, core[0, 1] = 1: the first of the outputs' numbers meets the second of the inputs'.
ONE = [[[0], [1]], [[0], [0]]]
# K = [[0, 1], [-1, 0]] gives the quarter turn R = [[0, 1], [-1, 0]].
QUARTER, NONE = [[0, 1], [0, 0]], [[0, 0], [0, 0]]

LITERALS = [
    # (alpha / rank) B T A = 2 [[1], [0]] [1, 2] 3 along the kernel.
    (
        "tucker:rank=1:alpha=2",
        {
            "original": [[[1, 0]], [[0, 1]]],
            "0.lora_down": [[3]],
            "0.lora_mid": [[[1, 2]]],
            "0.lora_up": [[1], [0]],
        },
        [[[7, 12]], [[0, 1]]],
    ),
    (
        "tucker:rank=2:alpha=2",
        {"original": [[[1]]], "0.lora_down": [[5], [7]], "0.lora_mid": ONE, "0.lora_up": [[1, 2]]},
        [[[8]]],
    ),
    # 2 [[3, 4], [6, 8]] * [[1, 2], [0.5, 1]], entry by entry.
    (
        "loha:rank=1:alpha=2",
        {
            "original": [[1, 0], [0, 1]],
            "0.hada_w1_a": [[1], [2]],
            "0.hada_w1_b": [[3, 4]],
            "0.hada_w2_a": [[1], [0.5]],
            "0.hada_w2_b": [[1, 2]],
        },
        [[7, 16], [6, 17]],
    ),
    # 1 * 7 times 2 * 2: cores with an entry (0, 1) and (1, 0).
    (
        "loha:rank=2:alpha=2:tucker=true",
        {
            "original": [[[1]]],
            "0.hada_w1_a": [[1], [2]],
            "0.hada_w1_b": [[5], [7]],
            "0.hada_t1": ONE,
            "0.hada_w2_a": [[1], [2]],
            "0.hada_w2_b": [[2], [3]],
            "0.hada_t2": [[[0], [0]], [[1], [0]]],
        },
        [[[29]]],
    ),
    (
        "lokr:p=1:q=2:scale=0.5",
        {"original": [[1, 0], [0, 1]], "0.lokr_w1": [[2, 4]], "0.lokr_w2": [[1], [3]]},
        [[2, 2], [3, 7]],
    ),
    # Of a kernel W1 counts the blocks of inputs; `left` has it count blocks of the kernel.
    (
        "lokr:p=1:q=2",
        {"original": [[[0, 0]] * 4], "0.lokr_w1": [[2, 4]], "0.lokr_w2": [[[1, 3], [5, 7]]]},
        [[[2, 6], [10, 14], [4, 12], [20, 28]]],
    ),
    (
        "lokr:p=1:q=2:left=true",
        {"original": [[[0, 0]] * 4], "0.lokr_w1": [[2, 4]], "0.lokr_w2": [[[1, 3], [5, 7]]]},
        [[[2, 6], [4, 12], [10, 14], [20, 28]]],
    ),
    (
        "lokr:p=2:q=1:w1=factored:w2=factored",
        {
            "original": [[1, 0], [0, 1]],
            "0.lokr_w1_a": [[1], [2]],
            "0.lokr_w1_b": [[3]],
            "0.lokr_w2_a": [[2]],
            "0.lokr_w2_b": [[1, 5]],
        },
        [[7, 30], [12, 61]],
    ),
    (
        "lokr:p=1:q=1:rank=2:w2=tucker",
        {
            "original": [[[1]]],
            "0.lokr_w1": [[3]],
            "0.lokr_w2_a": [[1], [2]],
            "0.lokr_w2_b": [[5], [7]],
            "0.lokr_t2": ONE,
        },
        [[[22]]],
    ),
    # W A1 A2 = [[0, 1], [0, 3]], B1 B2 = [[5, 0], [0, 0]].
    (
        "glora:rank=1:alpha=2",
        {
            "original": [[1, 2], [3, 4]],
            "0.a1": [[1], [0]],
            "0.a2": [[0, 1]],
            "0.b1": [[1], [0]],
            "0.b2": [[5, 0]],
        },
        [[11, 4], [3, 10]],
    ),
    # The inputs of a kernel are its second axis.
    (
        "glora:rank=1:alpha=2",
        {
            "original": [[[1, 2], [3, 4]]],
            "0.a1": [[1], [0]],
            "0.a2": [[0, 1]],
            "0.b1": [[1]],
            "0.b2": [[1, 0, 0, 0]],
        },
        [[[3, 2], [5, 8]]],
    ),
    (
        "lycoris.dora",
        {"original": [[3, 4], [0, 0]], "0.dora_scale": [[10], [1]]},
        [[30 / (5 + EPS), 40 / (5 + EPS)], [0, 0]],
    ),
    (
        "lycoris.dora:strength=0.5:axis=in",
        {"original": [[3, 0], [4, 2]], "0.dora_scale": [[10, 1]]},
        [[1.5 + 15 / (5 + EPS), 0], [2 + 20 / (5 + EPS), 1 + 1 / (2 + EPS)]],
    ),
    # The whole change first: V = [[3, 6], [0, 1]].
    (
        "lora:rank=1:alpha=2,lycoris.dora:strength=0.0",
        {"original": [[1, 0], [0, 1]], "0.lora_A": [[1, 3]], "0.lora_B": [[1], [0]], "1.dora_scale": [[1], [1]]},
        [[3, 6], [0, 1]],
    ),
    ("lycoris.ia3:strength=0.5", {"original": [[1, 2], [3, 4]], "0.weight": [2, -2]}, [[2, 4], [0, 0]]),
    ("lycoris.ia3:strength=0.5:axis=in", {"original": [[1, 2], [3, 4]], "0.weight": [2, -2]}, [[2, 0], [6, 0]]),
    # R^T W; half of the way; and half of the angle's tangent, which gives cos 0.6 and sin 0.8.
    ("lycoris.oft", {"original": [[1, 2], [3, 4]], "0.oft_blocks": [QUARTER]}, [[-3, -4], [1, 2]]),
    (
        "lycoris.oft:strength=0.5:rescale=true",
        {"original": [[1, 2], [3, 4]], "0.oft_blocks": [QUARTER], "0.rescale": [[2], [3]]},
        [[-2, -2], [6, 9]],
    ),
    (
        f"lycoris.oft:constraint={(2**0.5 + 1e-8) / 4!r}",
        {"original": [[1, 2], [3, 4]], "0.oft_blocks": [QUARTER]},
        [[0.6 - 2.4, 1.2 - 3.2], [0.8 + 1.8, 1.6 + 2.4]],
    ),
    # R W, not R^T W.
    ("lycoris.boft:blocks=1:stages=1", {"original": [[1, 2], [3, 4]], "0.oft_blocks": [[QUARTER]]}, [[3, 4], [-1, -2]]),
    # First the outputs 0 and 1, then of (0, 2) and (1, 3) the second pair.
    (
        "lycoris.boft:blocks=2:stages=2",
        {"original": [[1], [2], [3], [4]], "0.oft_blocks": [[QUARTER, NONE], [NONE, QUARTER]]},
        [[2], [4], [3], [1]],
    ),
]
