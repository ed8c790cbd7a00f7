"""What verify measures of a parametrization's own tensors, beside the set its values lie in: the names that its table
shows.
"""

from __future__ import annotations

from .entry import MeasureEntry

UNIT_U_V = MeasureEntry(
    name="unit_u_v",
    summary="the stored u and v have length 1",
    residual="the larger of | ||u|| - 1 | and | ||v|| - 1 |",
    tolerance="eps of the stored dtype and 2 + n / 128 of the one it is computed in, n the longer of u and v",
    proves="u^T W v is no larger than the largest singular value, so dividing by it left that at 1 or above",
    not_proved="that u and v belong to W, or to its largest singular value: the set unit_spectral_norm measures that",
)
SIGMA = MeasureEntry(
    name="sigma",
    summary="the spectral norm of the value is the stored gamma",
    residual="| sigma(W) - |gamma| | / |gamma|",
    tolerance="that of unit_spectral_norm, and what the stored u promises of a power method that has not ended",
    proves="the learned number is the weight's largest singular value",
    not_proved="any bound on it: gamma may be any number",
)
NORM = MeasureEntry(
    name="norm",
    summary="every slice of the value has the length that g says",
    residual="largest | ||W_i|| - |g_i| | / |g_i|",
    tolerance=(
        "eps of the stored dtype and 4 + m / 16 eps of the one it is computed in, m the entries of a slice; "
        "at most 0.01"
    ),
    proves="v has no zero slice, and the value is what g and v say",
    not_proved="anything of the weight: every tensor has lengths, and a baked one makes no claim",
)
MASK = MeasureEntry(
    name="mask",
    summary="the value is zero wherever the stored mask is",
    residual="share of the entries outside the mask that are not zero",
    tolerance="0",
    proves="the pruned entries stay pruned",
    not_proved="how many there are: the set sparse counts zeros",
)
CHANGE_OF_RANK = MeasureEntry(
    name="change_of_rank",
    summary="the change from the stored original has the rank R that the chain says (change_of_rank:R)",
    residual="singular value R + 1 of W - original / the largest of either",
    tolerance="8 eps of the stored dtype",
    proves="the change is as small as an adapter's",
    not_proved="anything of the weight itself",
)
NORMS = MeasureEntry(
    name="norms",
    summary="every output of the value has the stored magnitude",
    residual="largest | ||W_i|| - |m_i| | / |m_i|",
    tolerance=NORM.tolerance,
    proves="the value is what magnitude and direction say",
    not_proved="anything of the weight: every tensor has lengths",
)
GRAM_KEPT = MeasureEntry(
    name="gram_kept",
    summary="the angles and lengths of the original's columns are kept",
    residual="||W^T W - W0^T W0||_F / ||W0^T W0||_F",
    tolerance="4 eps of the stored dtype and 4 (n + 64) of the one it is computed in, n the side of a rotation",
    proves="the outputs were only turned among each other",
    not_proved="anything of the weight itself",
)
GRID = MeasureEntry(
    name="grid",
    summary="the value lies on the grid of its stored scale",
    residual="largest distance of q = W / scale from a whole number, over 1 + |q|",
    tolerance="4 eps of the stored dtype",
    proves="the value quantizes to itself",
    not_proved="how many levels are used: the set levels counts them",
)
ORTHONORMAL_U_V = MeasureEntry(
    name="orthonormal_u_v",
    summary="the stored U and V have orthonormal columns",
    residual="the larger residual of orthogonal",
    tolerance="4 eps of the stored dtype and 4 (n + 64) of float64, n the longer side",
    proves="the stored numbers are the value's singular values",
    not_proved="anything of the weight itself",
)
ALPHA = MeasureEntry(
    name="alpha",
    summary="the stored decay rate is the one that the chain states, or faster",
    residual="max(0, alpha of the chain - alpha stored) / alpha of the chain",
    tolerance="eps of the stored dtype",
    proves="hurwitz:alpha of the chain is what the stored numbers make",
    not_proved="the eigenvalues themselves: the set hurwitz measures them",
)

DECODABLE = MeasureEntry(
    name="decodable",
    summary="every code and every scale is a number",
    residual="how many codes and scales are NaN or infinite",
    tolerance="0",
    proves="the weight is one",
    not_proved="that it is the weight that was quantized: verify --round-trip compares a baked file with the codes",
)
ROUND_TRIP = MeasureEntry(
    name="round_trip",
    summary="the weight, quantized onto the stored scales, has the stored codes",
    residual="share of the codes that differ",
    tolerance="0",
    proves="the weight is what the codes stand for, to less than half a step of their grid",
    not_proved="the weight's bits below that",
)
PRODUCT = MeasureEntry(
    name="product",
    summary="the weight is the product of the stored codes and scales, rounded",
    residual="share of the entries that are not the product in float32, rounded once to either of two as near, and 0 "
    "where the whole weight is, to the bit, what multiplying in a half gives, or rounding to one first",
    tolerance="0",
    proves="the scales are those that the weight was made with, to its rounding",
    not_proved="a change of a scale that rounding the weight hides",
)
# What verify measures of every weight in codes.
OF_CODES = f"{DECODABLE}; {ROUND_TRIP}; {PRODUCT}"
MEASURES = {
    entry.name: entry
    for entry in (
        UNIT_U_V,
        SIGMA,
        NORM,
        MASK,
        CHANGE_OF_RANK,
        NORMS,
        GRAM_KEPT,
        GRID,
        ORTHONORMAL_U_V,
        ALPHA,
        DECODABLE,
        ROUND_TRIP,
        PRODUCT,
    )
}
