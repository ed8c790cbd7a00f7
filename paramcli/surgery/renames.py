"""Edits that only rename keys: their bytes are copied as they are, and torch is never imported."""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint.forms import Group
from ..checkpoint.header import Slot
from ..errors import InputRefused
from ..text import printable
from .plan import Step


@dataclass(frozen=True)
class Unparametrize:
    """`remove --no-bake`: the original in place of the parametrization, byte for byte."""

    def plan(self, group: Group) -> Step:
        if "original" not in group.keys:
            several = ", ".join(sorted(role for role in group.keys if role.startswith("original")))
            raise InputRefused(
                f"{printable(group.tensor)} has several originals ({several or 'none complete'}); none of them alone is the weight",
                hint="remove --bake keeps the value",
            )
        renames = {group.tensor: group.keys["original"]}
        return Step(group, "unparametrize", (Slot(group.tensor, group.dtype, group.shape),), group.chain, group.view, renames=renames)
