"""Worked examples of every entry by hand: (chain, tensors by role, the weight). One file a family, as in the catalogue."""

from . import core

LITERALS = [case for family in (core,) for case in family.LITERALS]
