"""What verify measures of a parametrization's own tensors, beside the set its values lie in: the names that its table
shows.
"""

from __future__ import annotations

from .entry import MeasureEntry

UNIT_U_V = MeasureEntry(
    "unit_u_v",
    "the stored u and v have length 1",
    "the larger of | ||u|| - 1 | and | ||v|| - 1 |",
    "eps of the stored dtype and 2 + n / 128 of the one it is computed in, n the longer of u and v",
    "u^T W v is no larger than the largest singular value, so dividing by it left that at 1 or above",
    "that u and v belong to W, or to its largest singular value: the set unit_spectral_norm measures that",
)
SIGMA = MeasureEntry(
    "sigma",
    "the spectral norm of the value is the stored gamma",
    "| sigma(W) - |gamma| | / |gamma|",
    "that of unit_spectral_norm, and what the stored u promises of a power method that has not ended",
    "the learned number is the weight's largest singular value",
    "any bound on it: gamma may be any number",
)
NORM = MeasureEntry(
    "norm",
    "every slice of the value has the length that g says",
    "largest | ||W_i|| - |g_i| | / |g_i|",
    "eps of the stored dtype and 4 + m / 16 eps of the one it is computed in, m the entries of a slice; at most 0.01",
    "v has no zero slice, and the value is what g and v say",
    "anything of the weight: every tensor has lengths, and a baked one makes no claim",
)
MASK = MeasureEntry(
    "mask",
    "the value is zero wherever the stored mask is",
    "share of the entries outside the mask that are not zero",
    "0",
    "the pruned entries stay pruned",
    "how many there are: the set sparse counts zeros",
)
CHANGE_OF_RANK = MeasureEntry(
    "change_of_rank",
    "the change from the stored original has the rank R that the chain says (change_of_rank:R)",
    "singular value R + 1 of W - original / the largest of either",
    "8 eps of the stored dtype",
    "the change is as small as an adapter's",
    "anything of the weight itself",
)
NORMS = MeasureEntry(
    "norms",
    "every output of the value has the stored magnitude",
    "largest | ||W_i|| - |m_i| | / |m_i|",
    NORM.tolerance,
    "the value is what magnitude and direction say",
    "anything of the weight: every tensor has lengths",
)
GRAM_KEPT = MeasureEntry(
    "gram_kept",
    "the angles and lengths of the original's columns are kept",
    "||W^T W - W0^T W0||_F / ||W0^T W0||_F",
    "4 eps of the stored dtype and 4 (n + 64) of the one it is computed in, n the side of a rotation",
    "the outputs were only turned among each other",
    "anything of the weight itself",
)
GRID = MeasureEntry(
    "grid",
    "the value lies on the grid of its stored scale",
    "largest distance of q = W / scale from a whole number, over 1 + |q|",
    "4 eps of the stored dtype",
    "the value quantizes to itself",
    "how many levels are used: the set levels counts them",
)
ORTHONORMAL_U_V = MeasureEntry(
    "orthonormal_u_v",
    "the stored U and V have orthonormal columns",
    "the larger residual of orthogonal",
    "4 eps of the stored dtype and 4 (n + 64) of float64, n the longer side",
    "the stored numbers are the value's singular values",
    "anything of the weight itself",
)
ALPHA = MeasureEntry(
    "alpha",
    "the stored decay rate is the one that the chain states, or faster",
    "max(0, alpha of the chain - alpha stored) / alpha of the chain",
    "eps of the stored dtype",
    "hurwitz:alpha of the chain is what the stored numbers make",
    "the eigenvalues themselves: the set hurwitz measures them",
)

MEASURES = {
    entry.name: entry
    for entry in (UNIT_U_V, SIGMA, NORM, MASK, CHANGE_OF_RANK, NORMS, GRAM_KEPT, GRID, ORTHONORMAL_U_V, ALPHA)
}
