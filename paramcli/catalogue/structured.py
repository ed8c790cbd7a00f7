"""Structured matrices: zeros in fixed places, constant diagonals, and products of smaller matrices."""

from __future__ import annotations

from ..spec import Argument, value_text
from .entry import ConstraintEntry, Entry
from .measures import ORTHONORMAL_U_V

_LINEAR = "linear algebra"
_KEPT = "W itself: what lies outside keeps its values until baked"
_BAND = Argument("b", "int", "how many diagonals on either side of the main one", required=True, minimum=0)
_GROUPS = Argument("g", "int", "the number of blocks; it divides rows and columns", required=True, minimum=1)
_GRID = (
    Argument("p", "int", "rows of A; they divide the weight's", required=True, minimum=1),
    Argument("q", "int", "columns of A; they divide the weight's", required=True, minimum=1),
)
_RANK = Argument("rank", "int", "columns of A, rows of B", required=True, minimum=1)


def _diag_set(name: str):
    spelt = {"free": "", "unit": ":diag=unit", "softplus": ":diag=positive"}
    return lambda arguments: name + spelt[arguments.get("diag") or "free"]


def _triangular_set(name: str, side: str, other: str) -> ConstraintEntry:
    return ConstraintEntry(
        name,
        f"zero {side} the diagonal; diag=unit ones on it, diag=positive positive",
        f"structured:{other}Matrices",
        arguments=(
            Argument("diag", "choice", "what is asked of the diagonal", "free", choices=("free", "unit", "positive")),
        ),
        residual=f"||{side} the diagonal||_F / ||W||_F, + max |W_ii - 1| or the share of W_ii <= 0",
        examples=(name, f"{name}:diag=unit", f"{name}:diag=positive"),
        complex=True,
    )


def _triangular(name: str, law: str, target: str) -> Entry:
    return Entry(
        name,
        "structured",
        f"{'lower' if law == 'tril' else 'upper'} triangle; its diagonal free, ones, or softplus",
        f"W = {law}(X); diag=unit: ones on the diagonal; diag=softplus: log(1 + e^x) there",
        (("any", _diag_set(name)),),
        "W itself; with softplus log(e^d - 1) on the diagonal, for d > 0",
        "LU layers: Kingma and Dhariwal 2018, arXiv:1807.03039 (Glow)",
        f"structured:{target}",
        (Argument("diag", "choice", "the diagonal", "free", choices=("free", "unit", "softplus")),),
        cost="one pass",
        examples=(name, f"{name}:diag=unit", f"{name}:diag=softplus"),
        complex=True,
    )


CONSTRAINTS = (
    _triangular_set("lower_triangular", "above", "LowerTriangular"),
    _triangular_set("upper_triangular", "below", "UpperTriangular"),
    ConstraintEntry(
        "diagonal",
        "W_ij = 0 where i != j",
        "structured:DiagonalMatrices",
        ("lower_triangular", "upper_triangular"),
        residual="||off the diagonal||_F / ||W||_F",
        complex=True,
    ),
    ConstraintEntry(
        "banded",
        "W_ij = 0 where |i - j| > b",
        "structured:BandedMatrices",
        arguments=(_BAND,),
        residual="||off the band||_F / ||W||_F",
        examples=("banded:b=1",),
        complex=True,
    ),
    ConstraintEntry(
        "block_diagonal",
        "zero outside g equal blocks along the diagonal",
        "structured:BlockDiagonalMatrices",
        arguments=(_GROUPS,),
        residual="||off the blocks||_F / ||W||_F",
        examples=("block_diagonal:g=2",),
        complex=True,
    ),
    ConstraintEntry(
        "toeplitz",
        "constant along each diagonal: T_ij depends on j - i",
        "toeplitz:ToeplitzMatrices",
        residual="||T - means of its diagonals||_F / ||T||_F",
        complex=True,
    ),
    ConstraintEntry(
        "circulant",
        "constant along wrapped diagonals: (j - i) modulo n",
        "toeplitz:CirculantMatrices",
        ("toeplitz",),
        residual="||C - means of its wrapped diagonals||_F / ||C||_F",
        complex=True,
    ),
    ConstraintEntry(
        "kronecker",
        "A kron B with A of size p x q",
        "factors:KroneckerProducts",
        arguments=_GRID,
        residual="row of W - P / row of W, the largest, columns too; P the nearest A kron B",
        examples=("kronecker:p=2:q=2",),
        complex=True,
    ),
)

PARAMETRIZATIONS = (
    _triangular("lower_triangular", "tril", "LowerTriangular"),
    _triangular("upper_triangular", "triu", "UpperTriangular"),
    Entry(
        "diagonal",
        "structured",
        "the main diagonal, zeros elsewhere",
        "W_ij = X_ij where i = j, else 0",
        (("any", "diagonal"),),
        _KEPT,
        _LINEAR,
        "structured:Diagonal",
        cost="one pass",
        complex=True,
    ),
    Entry(
        "banded",
        "structured",
        "2 b + 1 diagonals around the main one, zeros elsewhere",
        "W_ij = X_ij where |i - j| <= b, else 0",
        (("any", lambda a: f"banded:b={value_text(a['b'])}"),),
        _KEPT,
        _LINEAR,
        "structured:Banded",
        (_BAND,),
        cost="one pass",
        examples=("banded:b=1",),
        complex=True,
    ),
    Entry(
        "block_diagonal",
        "structured",
        "g blocks along the diagonal: a linear layer in g groups",
        "W = diag(X_1, ..., X_g), X_i the blocks of X",
        (("any", lambda a: f"block_diagonal:g={value_text(a['g'])}"),),
        _KEPT,
        "grouped layers, as torch.nn.Conv1d(groups=g) of kernel size 1",
        "structured:BlockDiagonal",
        (_GROUPS,),
        cost="one pass",
        examples=("block_diagonal:g=2",),
        complex=True,
    ),
    Entry(
        "toeplitz",
        "structured",
        "constant along each diagonal: a convolution as a matrix",
        "T_ij = the mean of X along the diagonal j - i",
        (("any", "toeplitz"),),
        "W itself: entries keep their values until baked",
        "Sindhwani, Sainath and Kumar 2015, arXiv:1510.01722",
        "toeplitz:Toeplitz",
        cost="a few passes",
        complex=True,
    ),
    Entry(
        "circulant",
        "structured",
        "constant along wrapped diagonals: a convolution that wraps",
        "C_ij = the mean of X along the wrapped diagonal (j - i) mod n",
        (("any", "circulant"),),
        "W itself: entries keep their values until baked",
        "Cheng et al. 2015, arXiv:1502.03436; CirCNN, Ding et al. 2017, arXiv:1708.08917",
        "toeplitz:Circulant",
        cost="a few passes",
        complex=True,
    ),
    Entry(
        "toeplitz_compact",
        "structured",
        "a first column and a first row, repeated along the diagonals",
        "T_ij = c_(i-j) if i >= j, else r_(j-i); original0 = c, original1 = r (r_0 unused)",
        (("any", "toeplitz"),),
        "the mean of each diagonal (nearest)",
        "scipy.linalg.toeplitz(c, r); Sindhwani, Sainath and Kumar 2015, arXiv:1510.01722",
        "toeplitz:ToeplitzCompact",
        cost="one pass",
        originals=2,
        complex=True,
        stores=None,
    ),
    Entry(
        "circulant_compact",
        "structured",
        "a first column, repeated along the wrapped diagonals",
        "C_ij = c_((i - j) mod n); original = c",
        (("any", "circulant"),),
        "the mean of each wrapped diagonal (nearest)",
        "scipy.linalg.circulant(c); Cheng et al. 2015, arXiv:1502.03436",
        "toeplitz:CirculantCompact",
        cost="one pass",
        reshapes=True,
        complex=True,
        stores=None,
    ),
    Entry(
        "kronecker",
        "structured",
        "A kron B: one pattern B repeated on a p x q grid, scaled by A",
        "W_ij = A_(i div n/p, j div k/q) B_(i mod n/p, j mod k/q); original0 = A, original1 = B",
        (("any", lambda a: f"kronecker:p={value_text(a['p'])}:q={value_text(a['q'])}"),),
        "the first singular pair of the rearranged weight, its size shared (nearest)",
        "Van Loan and Pitsianis 1993, Approximation with Kronecker products; LoKr, Yeh et al. 2023, arXiv:2309.14859",
        "factors:Kronecker",
        _GRID,
        cost="one pass; the inverse one SVD of a (p q) x (n k / p q) matrix",
        originals=2,
        examples=("kronecker:p=2:q=2", "kronecker:p=1:q=4"),
        complex=True,
        stores=None,
    ),
    Entry(
        "factored",
        "structured",
        "A B of a given rank, as two tensors: a smaller file",
        "W = A B; original0 = A (n x rank), original1 = B (rank x k)",
        (("any", lambda a: f"low_rank:rank={value_text(a['rank'])}"),),
        "the largest singular values, the root of each on either side (nearest)",
        "Eckart and Young 1936, The approximation of one matrix by another of lower rank",
        "factors:Factored",
        (_RANK,),
        cost="one product; the inverse one SVD",
        originals=2,
        examples=("factored:rank=2",),
        complex=True,
        stores=None,
    ),
    Entry(
        "rank_one",
        "structured",
        "x y^T of two vectors, as in torch's documentation",
        "W = x y^T; original0 = x, original1 = y",
        (("any", "low_rank:rank=1"),),
        "the largest singular value, its root on either side (nearest)",
        "RankOne in the documentation of torch.nn.utils.parametrize.register_parametrization",
        "factors:RankOne",
        cost="one pass; the inverse one SVD",
        originals=2,
        complex=True,
        stores=None,
    ),
    Entry(
        "svd_vals",
        "structured",
        "singular values alone train; U and V are frozen buffers",
        "W = U diag(s) V^H; original = s, buffers U and V",
        (("any", "any"),),
        "the SVD of W, which sets U and V",
        "SVDiff: Han et al. 2023, arXiv:2303.11305",
        "factors:SingularValues",
        cost="one product; the inverse one SVD",
        reshapes=True,
        complex=True,
        stores=None,
        verifies=str(ORTHONORMAL_U_V),
    ),
)
