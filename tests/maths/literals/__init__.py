"""Worked examples of every entry by hand: (chain, tensors by role, the weight). One file a family, as in the catalogue."""

from . import adapters, core, geotorch, manifolds, quantized, sparse

LITERALS = [case for family in (core, sparse, quantized, adapters, manifolds, geotorch) for case in family.LITERALS]
