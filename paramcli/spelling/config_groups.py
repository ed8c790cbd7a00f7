"""`config_groups` of compressed-tensors: which modules' weights were quantized how, several ways in one file.

A group's `targets` are names of modules, `re:` and a pattern that a name begins with, or names of classes, which no
checkpoint tells. Patterns are matched in bounded time (`patterns.py`); a group that has one which is not known there
may be meant of any module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .patterns import Budget, Pattern, Unknown

MOST = 1 << 20


@dataclass(frozen=True)
class Settings:
    """How weights are quantized, as far as a configuration says it in words and numbers that are known."""

    type: str | None = None
    bits: int | None = None
    strategy: str | None = None
    size: int | None = None
    block: tuple[int, int] | None = None
    symmetric: bool | None = None


@dataclass
class _Target:
    """One of a group's targets: does it name this module? None: it may."""

    text: str
    pattern: Pattern | None

    def names(self, module: str) -> bool | None:
        if not self.text.startswith("re:"):
            return self.text == module
        try:
            return self.pattern.matches(module) if self.pattern is not None else None
        except Unknown:
            return None

    @property
    def is_class(self) -> bool:
        return self.text[:1].isupper() and "." not in self.text


@dataclass
class ConfigGroups:
    """The groups of a configuration. `of` a module gives all settings that may be meant."""

    values: Mapping[str, object]
    _groups: list[tuple[Settings, list[_Target]]] = field(default_factory=list)
    # For four patterns and a hundred thousand modules.
    _budget: Budget = field(default_factory=lambda: Budget(8_000_000))
    _known: dict[str, tuple[Settings, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        groups = self.values.get("config_groups")
        for group in groups.values() if isinstance(groups, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            targets = group.get("targets") if isinstance(group, dict) else None
            if isinstance(weights, dict) and isinstance(targets, list):
                texts = [text for text in targets if isinstance(text, str)]
                self._groups.append((_settings(weights), [self._target(text) for text in texts]))

    def _target(self, text: str) -> _Target:
        try:
            # Matched from the begin of a name, to anywhere in it.
            pattern = (
                Pattern(f"(?:{text.removeprefix('re:')}).*", self._budget, before="") if text[:3] == "re:" else None
            )
        except (Unknown, RecursionError):
            pattern = None
        return _Target(text, pattern)

    def of(self, module: str) -> tuple[Settings, ...]:
        """By a target that names it, or may; else by one that names its class, which may be any."""
        if len({settings for settings, _ in self._groups}) < 2:
            return tuple(settings for settings, _ in self._groups[:1])
        if module not in self._known:
            self._known[module] = self._meant(module)
        return self._known[module]

    def _meant(self, module: str) -> tuple[Settings, ...]:
        found = [(s, [target.names(module) for target in targets]) for s, targets in self._groups]
        sure = any(True in named for _, named in found)
        maybe = [s for s, named in found if True in named or None in named]
        if not sure:
            maybe += [s for s, targets in self._groups if any(target.is_class for target in targets)]
        return tuple(dict.fromkeys(maybe))


def transforms_activations(values: Mapping[str, object]) -> bool:
    """Does a `transform_config` turn what is computed with the weights as well? What is done to weights alone
    (weight_input, weight_output) is in them already.
    """
    said = values.get("transform_config")
    groups = said.get("config_groups") if isinstance(said, dict) else None
    for scheme in groups.values() if isinstance(groups, dict) else ():
        places = scheme.get("apply") if isinstance(scheme, dict) else None
        for place in places if isinstance(places, list) else ():
            where = place.get("location") if isinstance(place, dict) else None
            if not isinstance(where, str) or not where.startswith("weight_"):
                return True
    return False


def _settings(weights: Mapping[str, object]) -> Settings:
    kind, strategy, symmetric = (weights.get(name) for name in ("type", "strategy", "symmetric"))
    size = whole(weights.get("group_size"))
    if not isinstance(strategy, str):
        strategy = "group" if size else None
    return Settings(
        kind if isinstance(kind, str) else None,
        whole(weights.get("num_bits")),
        strategy,
        size,
        block_of(weights.get("block_structure")),
        symmetric if isinstance(symmetric, bool) else None,
    )


def whole(value: object) -> int | None:
    """A number of rows, columns or bits."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST else None


def block_of(value: object) -> tuple[int, int] | None:
    """Rows and columns of a block: a list of two, or "128x128"."""
    if isinstance(value, str):
        value = [
            int(side) if side.isdecimal() and side.isascii() and len(side) < 8 else None for side in value.split("x")
        ]
    if isinstance(value, list) and len(value) == 2 and (rows := whole(value[0])) and (columns := whole(value[1])):
        return rows, columns
    return None
