"""Worked examples of every entry by hand: (chain, tensors by role, the weight). One file a family, as in
the catalogue.
"""

from . import (
    adapters,
    core,
    definite,
    elementwise,
    geotorch,
    lycoris,
    manifolds,
    norms,
    orthogonal,
    peft,
    peft_sums,
    quantized,
    sparse,
    structured,
)

_FAMILIES = (
    core,
    orthogonal,
    manifolds,
    norms,
    elementwise,
    definite,
    structured,
    sparse,
    quantized,
    adapters,
    lycoris,
    peft,
    peft_sums,
    geotorch,
)
LITERALS = [case for family in _FAMILIES for case in family.LITERALS]
