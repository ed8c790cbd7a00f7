"""Worked examples of every entry by hand: (chain, tensors by role, the weight). One file a family, as in the catalogue."""

from . import adapters, core, orthogonal, quantized, sparse, structured

LITERALS = [case for family in (core, orthogonal, structured, sparse, quantized, adapters) for case in family.LITERALS]
