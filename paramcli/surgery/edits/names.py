"""New names for tensors: prefixes taken off, names given, a prefix put before; in this order, on whole segments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from ...checkpoint.source import Source
from ...errors import TENSOR, InputRefused, Known, UsageError
from ...spelling.forms import PARAMETRIZED, Group, detect
from ...spelling.keys import parametrized_key, split_parametrized
from ...text import closest, listing, printable
from ...wording import given, words

# What torch.compile, FSDP and activation checkpointing put around modules, at any depth: no module's own name.
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module")


def without(prefix: str, name: str) -> str:
    """The name without a leading prefix of whole segments, or a wrapper's segments wherever they stand; a name is
    never emptied.
    """
    segments = prefix.removesuffix(".").split(".")
    if set(segments) <= set(WRAPPERS):
        *above, leaf = name.split(".")
        return ".".join([segment for segment in above if segment not in segments] + [leaf])
    whole = f"{prefix.removesuffix('.')}."
    return name[len(whole) :] if name.startswith(whole) and len(name) > len(whole) else name


def respelt(key: str, tensor: str, new: str) -> str:
    """The key of a tensor under the tensor's new name: fc.weight_g of fc.weight as out.w -> out.w_g."""
    split = split_parametrized(key)
    if split is not None and split[0] == tensor:
        return parametrized_key(new, split[1])
    return new + key[len(tensor) :] if key.startswith(tensor) else key


@dataclass(frozen=True)
class NewNames:
    """The new names that are asked for. `rename`: the name of a tensor, or of a module that it is in -> another."""

    strip: Sequence[str] = ()
    rename: Mapping[str, str] = field(default_factory=dict)
    prefix: str | None = None

    def of(self, groups: Sequence[Group]) -> tuple[dict[str, str], dict[str, str], set[str]]:
        """(key -> new key, tensor -> its new name, the keys that `rename` gives theirs).

        Raises UsageError for what changes no name, InputRefused for names that meet.
        """
        new = {key: key for group in groups for key in group.keys.values()}
        tensors = {group.tensor: group.tensor for group in groups}
        for prefix in self.strip:
            if not self._map(new, tensors, partial(without, prefix)):
                raise _no_prefix(prefix, new)
        renamed: set[str] = set()
        for old, name in self.rename.items():
            renamed |= self._renamed(groups, new, tensors, old, check_name(name, "rename"))
        if self.prefix is not None:
            whole = f"{check_name(self.prefix.removesuffix('.'), 'add-prefix')}."
            self._map(new, tensors, lambda name: whole + name)
        # Keys apart can still meet in one tensor: m.w.weight_g stripped beside w.weight reads as neither.
        for names in (new, tensors):
            _refuse_meetings(names)
        return new, tensors, renamed

    @staticmethod
    def _map(new: dict[str, str], tensors: dict[str, str], change: Callable[[str], str]) -> bool:
        changed = False
        for names in (new, tensors):
            for key, name in names.items():
                names[key] = change(name)
                changed = changed or names[key] != name
        return changed

    @staticmethod
    def _renamed(
        groups: Sequence[Group], new: dict[str, str], tensors: dict[str, str], old: str, name: str
    ) -> set[str]:
        """Give one name; the keys that it reaches."""
        reached: set[str] = set()
        for group in groups:
            tensor = tensors[group.tensor]
            tensors[group.tensor] = _moved(tensor, old, name)
            for key in group.keys.values():
                before = new[key]
                moved = _moved(before, old, name)
                new[key] = moved if moved != before else respelt(before, tensor, tensors[group.tensor])
                if new[key] != before:
                    reached.add(key)
                    if not group.is_plain and tensors[group.tensor] == tensor:
                        raise UsageError(
                            f"{given('rename', old)}: it is a part of {printable(tensor)}",
                            hint=f"{given('rename', {tensor: 'NAME'})} renames all its parts",
                            option="rename",
                        )
        if not reached:
            near = closest(old, dict.fromkeys([*tensors.values(), *new.values()]))
            raise UsageError(
                f"{given('rename', old)}: no tensor and no module has this name",
                hint=Known(f"closest: {words(near)}") if near else None,
                option="rename",
            )
        return reached


def require_same_reading(
    source: Source, groups: Sequence[Group], names: Mapping[str, str], tensors: Mapping[str, str]
) -> None:
    """Raise UsageError where the new names no longer spell a parametrized tensor: plain ones would be read there."""
    # An older spelling without a record may get a name that only its own code knows.
    spelt = [
        group
        for group in groups
        if not (group.is_plain or group.twice) and (group.form == PARAMETRIZED or group.record is not None)
    ]
    if all(names[key] == key for group in spelt for key in group.keys.values()):
        return
    infos = {names[key]: source.tensors[key] for group in groups for key in group.keys.values()}
    record = {tensors[group.tensor]: group.record for group in groups if group.record is not None}
    found = detect(infos, record)
    for group in spelt:
        now = found.get(tensors[group.tensor])
        keys = {names[key] for key in group.keys.values()}
        if now is None or now.form != group.form or set(now.keys.values()) != keys:
            raise UsageError(
                f"under its new name {TENSOR} would be read as {listing(sorted(keys), 3)}, tensors of their own",
                hint=f"give it a name that ends in its own: {printable(group.tensor.rpartition('.')[2])}",
                tensor=group.tensor,
                option="rename",
            )


def _moved(name: str, old: str, new: str) -> str:
    return new if name == old else f"{new}{name[len(old) :]}" if name.startswith(f"{old}.") else name


def check_name(name: str, option: str) -> str:
    """The name, if a tensor can have it; UsageError otherwise."""
    fits = name and name != "__metadata__" and not name.startswith(".") and not name.endswith(".")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise UsageError(
            f"'{printable(name)}' is no name for a tensor", hint="a name as in layers.0.weight", option=option
        )
    return name


def parse_renames(texts: Sequence[str]) -> dict[str, str]:
    """['a=b'] -> {'a': 'b'}; UsageError for what is none, and for a name that is given twice."""
    found: dict[str, str] = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not equals or not old or not new:
            raise UsageError(f"{given('rename', text)}: not OLD=NEW", hint=given("rename", "OLD=NEW"), option="rename")
        if old in found:
            raise UsageError(f"{given('rename')} gives {printable(old)} two names", option="rename")
        found[old] = new
    return found


def _no_prefix(prefix: str, names: Mapping[str, str]) -> UsageError:
    near = closest(prefix, {name.partition(".")[0] for name in names.values()})
    return UsageError(
        f"no tensor's name begins with the prefix '{printable(prefix.removesuffix('.'))}.'",
        hint=Known(f"closest: {words(near)}") if near else None,
        option="strip-prefix",
    )


def _refuse_meetings(names: Mapping[str, str]) -> None:
    taken: dict[str, str] = {}
    for key, name in names.items():
        if name in taken:
            raise InputRefused(
                f"{TENSOR} and {printable(taken[name])} would both be named {printable(name)}",
                hint=f"drop one of them with {given('drop')}",
                tensor=key,
            )
        taken[name] = key
