"""What codes of four bits stand for, by code. Without torch: a reader compares a file's own tables with them."""

from __future__ import annotations

# The quantiles of a normal distribution, and a float of its own, as bitsandbytes has them. Of the float's second zero
# its table makes 0.0; with the sign, which changes no number, the codes come back from the values.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
_THIRDS = (0.0, 0.0625 / 12, 8 / 12, 1.0, 4 / 12, 0.5, 2 / 12, 0.25)
FP4 = (*_THIRDS, *(-value for value in _THIRDS))
TABLES = {"nf4": NF4, "fp4": FP4}
