"""Worked examples of every entry by hand: (chain, tensors by role, the weight). One file a family, as in the catalogue."""

from . import adapters, core, geotorch, manifolds, orthogonal, quantized, sparse, structured

_FAMILIES = (core, orthogonal, manifolds, structured, sparse, quantized, adapters, geotorch)
LITERALS = [case for family in _FAMILIES for case in family.LITERALS]
