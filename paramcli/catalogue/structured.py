"""Structured matrices: zeros in fixed places, constant diagonals, and products of smaller matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..spec import Argument, Value, value_text
from .entry import ConstraintEntry, Entry
from .measures import ORTHONORMAL_U_V

_LINEAR = "linear algebra"
_KEPT = "W itself: what lies outside keeps its values until baked"
# Larger than any dimension of a weight.
MOST = 1e6
_BAND = Argument(
    "b", "int", "how many diagonals on either side of the main one", required=True, minimum=0, maximum=MOST
)
_GROUPS = Argument(
    "g", "int", "the number of blocks; it divides rows and columns", required=True, minimum=1, maximum=MOST
)
_GRID = (
    Argument("p", "int", "rows of A; they divide the weight's", required=True, minimum=1, maximum=MOST),
    Argument("q", "int", "columns of A; they divide the weight's", required=True, minimum=1, maximum=MOST),
)
_RANK = Argument("rank", "int", "columns of A, rows of B", required=True, minimum=1, maximum=MOST)


def _diag_set(name: str) -> Callable[[Mapping[str, Value]], str]:
    spelt = {"free": "", "unit": ":diag=unit", "softplus": ":diag=positive"}
    return lambda arguments: name + spelt[str(arguments.get("diag") or "free")]


def _triangular_set(name: str, side: str, other: str) -> ConstraintEntry:
    return ConstraintEntry(
        name=name,
        summary=f"zero {side} the diagonal; diag=unit ones on it, diag=positive positive",
        target=f"structured:{other}Matrices",
        arguments=(
            Argument("diag", "choice", "what is asked of the diagonal", "free", choices=("free", "unit", "positive")),
        ),
        residual=f"||{side} the diagonal||_F / ||W||_F, + max |W_ii - 1| or the share of W_ii <= 0",
        examples=(name, f"{name}:diag=unit", f"{name}:diag=positive"),
        complex=True,
        keeper=name,
        implies=("sparse",),
    )


def _triangular(name: str, law: str, target: str) -> Entry:
    return Entry(
        name=name,
        family="structured",
        summary=f"{'lower' if law == 'tril' else 'upper'} triangle; its diagonal free, ones, or softplus",
        law=f"W = {law}(X); diag=unit: ones on the diagonal; diag=softplus: log(1 + e^x) there",
        maps=(("any", _diag_set(name)),),
        right_inverse="W itself; with softplus log(e^d - 1) on the diagonal, for d > 0",
        source="LU layers: Kingma and Dhariwal 2018, arXiv:1807.03039 (Glow)",
        target=f"structured:{target}",
        arguments=(Argument("diag", "choice", "the diagonal", "free", choices=("free", "unit", "softplus")),),
        cost="one pass",
        examples=(name, f"{name}:diag=unit", f"{name}:diag=softplus"),
        complex=True,
    )


CONSTRAINTS = (
    _triangular_set("lower_triangular", "above", "LowerTriangular"),
    _triangular_set("upper_triangular", "below", "UpperTriangular"),
    ConstraintEntry(
        name="diagonal",
        summary="W_ij = 0 where i != j",
        target="structured:DiagonalMatrices",
        within=("lower_triangular", "upper_triangular"),
        residual="||off the diagonal||_F / ||W||_F",
        complex=True,
        implies=("symmetric", "lower_triangular", "upper_triangular", "banded", "block_diagonal", "sparse", "nm"),
    ),
    ConstraintEntry(
        name="banded",
        summary="W_ij = 0 where |i - j| > b",
        target="structured:BandedMatrices",
        arguments=(_BAND,),
        residual="||off the band||_F / ||W||_F",
        examples=("banded:b=1",),
        complex=True,
        implies=("sparse", "nm"),
    ),
    ConstraintEntry(
        name="block_diagonal",
        summary="zero outside g equal blocks along the diagonal",
        target="structured:BlockDiagonalMatrices",
        arguments=(_GROUPS,),
        residual="||off the blocks||_F / ||W||_F",
        examples=("block_diagonal:g=2",),
        complex=True,
        implies=("sparse", "nm"),
    ),
    ConstraintEntry(
        name="toeplitz",
        summary="constant along each diagonal: T_ij depends on j - i",
        target="toeplitz:ToeplitzMatrices",
        residual="||T - means of its diagonals||_F / ||T||_F",
        complex=True,
        keeper="toeplitz",
        of_constants=True,
    ),
    ConstraintEntry(
        name="circulant",
        summary="constant along wrapped diagonals: (j - i) modulo n",
        target="toeplitz:CirculantMatrices",
        within=("toeplitz",),
        residual="||C - means of its wrapped diagonals||_F / ||C||_F",
        complex=True,
        of_constants=True,
    ),
    ConstraintEntry(
        name="kronecker",
        summary="A kron B with A of size p x q",
        target="factors:KroneckerProducts",
        arguments=_GRID,
        residual="row of W - P / row of W, the largest, columns too; P the nearest A kron B",
        examples=("kronecker:p=2:q=2",),
        complex=True,
        of_constants=True,
    ),
)

PARAMETRIZATIONS = (
    _triangular("lower_triangular", "tril", "LowerTriangular"),
    _triangular("upper_triangular", "triu", "UpperTriangular"),
    Entry(
        name="diagonal",
        family="structured",
        summary="the main diagonal, zeros elsewhere",
        law="W_ij = X_ij where i = j, else 0",
        maps=(("any", "diagonal"),),
        right_inverse=_KEPT,
        source=_LINEAR,
        target="structured:Diagonal",
        cost="one pass",
        complex=True,
    ),
    Entry(
        name="banded",
        family="structured",
        summary="2 b + 1 diagonals around the main one, zeros elsewhere",
        law="W_ij = X_ij where |i - j| <= b, else 0",
        maps=(("any", lambda a: f"banded:b={value_text(a['b'])}"),),
        right_inverse=_KEPT,
        source=_LINEAR,
        target="structured:Banded",
        arguments=(_BAND,),
        cost="one pass",
        examples=("banded:b=1",),
        complex=True,
    ),
    Entry(
        name="block_diagonal",
        family="structured",
        summary="g blocks along the diagonal: a linear layer in g groups",
        law="W = diag(X_1, ..., X_g), X_i the blocks of X",
        maps=(("any", lambda a: f"block_diagonal:g={value_text(a['g'])}"),),
        right_inverse=_KEPT,
        source="grouped layers, as torch.nn.Conv1d(groups=g) of kernel size 1",
        target="structured:BlockDiagonal",
        arguments=(_GROUPS,),
        cost="one pass",
        examples=("block_diagonal:g=2",),
        complex=True,
    ),
    Entry(
        name="toeplitz",
        family="structured",
        summary="constant along each diagonal: a convolution as a matrix",
        law="T_ij = the mean of X along the diagonal j - i",
        maps=(("any", "toeplitz"),),
        right_inverse="W itself: entries keep their values until baked",
        source="Sindhwani, Sainath and Kumar 2015, arXiv:1510.01722",
        target="toeplitz:Toeplitz",
        cost="a few passes",
        complex=True,
    ),
    Entry(
        name="circulant",
        family="structured",
        summary="constant along wrapped diagonals: a convolution that wraps",
        law="C_ij = the mean of X along the wrapped diagonal (j - i) mod n",
        maps=(("any", "circulant"),),
        right_inverse="W itself: entries keep their values until baked",
        source="Cheng et al. 2015, arXiv:1502.03436; CirCNN, Ding et al. 2017, arXiv:1708.08917",
        target="toeplitz:Circulant",
        cost="a few passes",
        complex=True,
    ),
    Entry(
        name="toeplitz_compact",
        family="structured",
        summary="a first column and a first row, repeated along the diagonals",
        law="T_ij = c_(i-j) if i >= j, else r_(j-i); original0 = c, original1 = r (r_0 unused)",
        maps=(("any", "toeplitz"),),
        right_inverse="the mean of each diagonal (nearest)",
        source="scipy.linalg.toeplitz(c, r); Sindhwani, Sainath and Kumar 2015, arXiv:1510.01722",
        target="toeplitz:ToeplitzCompact",
        cost="one pass",
        originals=2,
        complex=True,
        stores=None,
    ),
    Entry(
        name="circulant_compact",
        family="structured",
        summary="a first column, repeated along the wrapped diagonals",
        law="C_ij = c_((i - j) mod n); original = c",
        maps=(("any", "circulant"),),
        right_inverse="the mean of each wrapped diagonal (nearest)",
        source="scipy.linalg.circulant(c); Cheng et al. 2015, arXiv:1502.03436",
        target="toeplitz:CirculantCompact",
        cost="one pass",
        reshapes=True,
        complex=True,
        stores=None,
    ),
    Entry(
        name="kronecker",
        family="structured",
        summary="A kron B: one pattern B repeated on a p x q grid, scaled by A",
        law="W_ij = A_(i div n/p, j div k/q) B_(i mod n/p, j mod k/q); original0 = A, original1 = B",
        maps=(("any", lambda a: f"kronecker:p={value_text(a['p'])}:q={value_text(a['q'])}"),),
        right_inverse="the first singular pair of the rearranged weight, its size shared (nearest)",
        source=(
            "Van Loan and Pitsianis 1993, Approximation with Kronecker products; LoKr, Yeh et al. 2023, "
            "arXiv:2309.14859"
        ),
        target="factors:Kronecker",
        arguments=_GRID,
        cost="one pass; the inverse one SVD of a (p q) x (n k / p q) matrix",
        originals=2,
        examples=("kronecker:p=2:q=2", "kronecker:p=1:q=4"),
        complex=True,
        stores=None,
    ),
    Entry(
        name="factored",
        family="structured",
        summary="A B of a given rank, as two tensors: a smaller file",
        law="W = A B; original0 = A (n x rank), original1 = B (rank x k)",
        maps=(("any", lambda a: f"low_rank:rank={value_text(a['rank'])}"),),
        right_inverse="the largest singular values, the root of each on either side (nearest)",
        source="Eckart and Young 1936, The approximation of one matrix by another of lower rank",
        target="factors:Factored",
        arguments=(_RANK,),
        cost="one product; the inverse one SVD",
        originals=2,
        examples=("factored:rank=2",),
        complex=True,
        stores=None,
    ),
    Entry(
        name="rank_one",
        family="structured",
        summary="x y^T of two vectors, as in torch's documentation",
        law="W = x y^T; original0 = x, original1 = y",
        maps=(("any", "low_rank:rank=1"),),
        right_inverse="the largest singular value, its root on either side (nearest)",
        source="RankOne in the documentation of torch.nn.utils.parametrize.register_parametrization",
        target="factors:RankOne",
        cost="one pass; the inverse one SVD",
        originals=2,
        complex=True,
        stores=None,
    ),
    Entry(
        name="svd_vals",
        family="structured",
        summary="singular values alone train; U and V are frozen buffers",
        law="W = U diag(s) V^H; original = s, buffers U and V",
        maps=(("any", "any"),),
        right_inverse="the SVD of W, which sets U and V",
        source="SVDiff: Han et al. 2023, arXiv:2303.11305",
        target="factors:SingularValues",
        cost="one product; the inverse one SVD",
        reshapes=True,
        complex=True,
        stores=None,
        verifies=str(ORTHONORMAL_U_V),
    ),
)
