"""Tensor names and the keys that spell them, in torch's layout and in the older ones.

fc.weight  <->  fc.parametrizations.weight.original        role "original"
                fc.parametrizations.weight.0._u            role "0._u"
"""

from __future__ import annotations

import re

_PARAMETRIZED = re.compile(
    r"(?:(?P<module>.*)\.)?parametrizations\.(?P<leaf>[^.]+)\.(?P<role>original[0-9]*|[0-9]+\..+)", re.S
)


def split_parametrized(key: str) -> tuple[str, str] | None:
    """'fc.parametrizations.weight.0.mask' -> ('fc.weight', '0.mask'); None for any other key."""
    found = _PARAMETRIZED.fullmatch(key)
    if not found:
        return None
    module, leaf, role = found.group("module", "leaf", "role")
    return (leaf if module is None else f"{module}.{leaf}"), role


def parametrized_key(tensor: str, role: str) -> str:
    """('fc.weight', 'original') -> 'fc.parametrizations.weight.original'."""
    module, dot, leaf = tensor.rpartition(".")
    return f"{module}{dot}parametrizations.{leaf}.{role}"
