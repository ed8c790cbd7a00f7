"""Tables of the documents that are made from the code."""

from __future__ import annotations

# Family -> what its entries are for, in the reader's words; a family that is missing here is a failing test.
FAMILIES = {
    "symmetric": "symmetric and skew-symmetric matrices",
    "orthogonal": (
        "rotations, orthogonal and (semi-)orthogonal matrices; `matrix_exp` of a symmetric one is positive definite"
    ),
    "norm": "length and direction, largest singular value, unit rows, balls",
    "mask": "pruning: masks that are stored, by size, at random, by slices, N of every M",
    "complex": "Hermitian matrices; with `cayley` or `matrix_exp` unitary ones",
    "manifolds": "geotorch's laws around the trained weight: Stiefel, low rank, positive definite, stable",
    "moments": "zero mean, fixed sum, fixed variance",
    "spectral": "bounded singular values or eigenvalues, Lipschitz layers",
    "elementwise": "positive, bounded, increasing, probabilities",
    "definite": "Cholesky, correlation and LU factors",
    "structured": "triangular, banded, block, Toeplitz, circulant, Kronecker, low rank",
    "quantized": "grids: integers, ternary, binary, fp8",
    "adapter": "adapters: LoRA, DoRA, LoHa, LoKr, OFT and others",
    "geotorch": "geotorch's own tensors, both ways",
}


def families() -> str:
    """| family | names |, in the order of the table."""
    from paramcli.registry import ORIGINS, PARAMETRIZATIONS

    found: dict[str, list[str]] = {}
    for entry in PARAMETRIZATIONS.values():
        if entry.name not in ORIGINS:
            found.setdefault(entry.family, []).append(entry.name)
    rows = [f"| {FAMILIES[family]} | {', '.join(f'`{name}`' for name in names)} |" for family, names in found.items()]
    return "\n".join(["| for | names |", "|---|---|", *rows]) + "\n"


def decoders() -> str:
    """| entry | what it stores | the weight |, in the order of the table."""
    from paramcli.registry import DECODERS

    rows = [f"| `{entry.name}` | {entry.summary} | {entry.law} |" for entry in DECODERS.values()]
    return "\n".join(["| entry | what a file stores | the weight |", "|---|---|---|", *rows]) + "\n"
