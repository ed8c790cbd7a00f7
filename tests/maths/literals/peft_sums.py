"""More adapters of PEFT by hand."""

I = [[1, 0], [0, 1]]
W = [[1, 2], [3, 4]]
LITERALS = [
    # A has length 5, B length 2: lambda / 10 B A = 10 / 10 [[6, 8], [0, 0]], columns times 1 and 2, half of it.
    (
        "delora:rank=1:scale=0.5",
        {
            "original": I,
            "0.delora_A": [[3, 4]],
            "0.delora_B": [[2], [0]],
            "0.delora_lambda": [10],
            "0.delora_w_norm": [1, 2],
        },
        [[4, 8], [0, 1]],
    ),
    # Block (m, n) of one entry is A[n, 0, m] B[m, n, 0]: [[1 5, 3 6], [2 7, 4 8]]; and [[1], [1]] [[1, 2]].
    (
        "gralora:rank=2:hybrid=1",
        {
            "original": I,
            "0.gralora_A": [[[1, 2]], [[3, 4]]],
            "0.gralora_B": [[[5], [6]], [[7], [8]]],
            "0.gralora_A_general": [[1, 2]],
            "0.gralora_B_general": [[1], [1]],
        },
        [[7, 20], [15, 35]],
    ),
    # Rows of the block: (0, 1, 2), (2, 0, 1), (1, 2, 0) of the kernel, over 3 inputs.
    (
        "c3a:size=3",
        {"original": [[0, 0, 0]] * 3, "0.c3a_kernel": [[[3, 6, 9]]]},
        [[1, 2, 3], [3, 1, 2], [2, 3, 1]],
    ),
    ("hira:rank=1", {"original": W, "0.hira_A": [[1, 2]], "0.hira_B": [[1], [2]]}, [[2, 6], [9, 20]]),
    # Equal logits share alike, and the smallest is left out: A = (1, 3), B = (4, 0).
    (
        "vblora:rank=1:vectors=3:length=2",
        {
            "original": I,
            "0.vblora_logits_A": [[[5, 5, 1]]],
            "0.vblora_logits_B": [[[0, 7, 7]]],
            "0.vblora_vector_bank": [[0, 4], [2, 2], [6, -2]],
        },
        [[5, 12], [0, 1]],
    ),
    (
        "shira:count=2:scale=2",
        {"original": W, "0.shira_weight": [5, 6], "0.shira_indices": [[0, 1], [1, 0]]},
        [[1, 12], [15, 4]],
    ),
    # Row j modulo 2 of D is added to column j.
    (
        "miss:rank=2",
        {"original": [[0, 0, 0], [0, 0, 0]], "0.miss_block": [[1, 2], [3, 4]]},
        [[1, 3, 1], [2, 4, 2]],
    ),
    (
        "miss:rank=2:kind=mini:outputs=1",
        {"original": [[0, 0, 0], [0, 0, 0]], "0.miss_block": [[1], [3]]},
        [[1, 3, 1], [1, 3, 1]],
    ),
    # I + I D + D = I + 2 D.
    ("miss:rank=2:kind=bat", {"original": I, "0.miss_block": [[[1, 2], [3, 4]]]}, [[3, 4], [6, 9]]),
    # The first mirror takes the sign of input 0, the second exchanges both and their signs.
    ("hra:rank=2", {"original": W, "0.hra_u": [[2, 3], [0, 3]]}, [[-2, 1], [-4, 3]]),
    # Made orthogonal, the second mirror takes the sign of input 1.
    ("hra:rank=2:orthonormal=true", {"original": W, "0.hra_u": [[2, 3], [0, 3]]}, [[-1, -2], [-3, -4]]),
    # cos 0 = 1 stretches; in variant 4 the sines have their own factor, and sin(pi / 2) = 1.
    ("road:group=2", {"original": W, "0.road_theta": [0], "0.road_alpha": [3]}, [[3, 6], [9, 12]]),
    ("road:group=2:variant=2", {"original": W, "0.road_theta": [0, 0], "0.road_alpha": [3, 2]}, [[3, 6], [6, 8]]),
    (
        "road:group=2:variant=4",
        {
            "original": W,
            "0.road_theta": [0, 0, 1.5707963267948966, 1.5707963267948966],
            "0.road_alpha": [1, 2, 3, 4],
        },
        [[1 - 9, 2 - 12], [6 + 4, 8 + 8]],
    ),
]
