"""One kind of PEFT's adapters, as the reader has it: its tensors after a module's path, and the changes they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.source import Source, TensorInfo
from ..errors import TENSOR, InputRefused
from ..text import printable, shape_text
from ..view import IDENTITY, View
from .adapter import TRANSPOSE, Change, half_a_change, not_of_shape
from .forms import Group
from .peft_config import Config


@dataclass(frozen=True)
class Module:
    """The tensors that an adapter has of one module: `keys` by part, such as lora_A, or lora_B.bias.

    `path`: where the module is in the base; `written`: the same as the adapter has it; `shared`: tensors that all
    modules have in common, by name.
    """

    path: str
    written: str
    keys: Mapping[str, str]
    source: Source
    shared: Mapping[str, str]

    def info(self, part: str) -> TensorInfo:
        return self.source.tensors[self.keys[part]]

    def shape(self, part: str) -> tuple[int, ...]:
        return tuple(self.info(part).shape)

    def require(self, *parts: str) -> None:
        """InputRefused where one of them is missing."""
        if missing := [part for part in parts if part not in self.keys]:
            there = next((part for part in parts if part in self.keys), next(iter(self.keys)))
            raise half_a_change(self.written, missing, self.keys[there], self.source)

    def refusal(self, part: str, why: str) -> InputRefused:
        """`why` goes on from the tensor's name and shape: 'is 3x4, ...'."""
        shape = shape_text(self.shape(part))
        return InputRefused(f"{TENSOR} is {shape}, {why}", tensor=self.keys[part], path=self.source.path)


def _nothing(config: Config) -> None:
    pass


@dataclass(frozen=True)
class Family:
    """A `peft_type`.

    `parts`: the names of its tensors after a module's path, without `.weight` and `.bias`; `shared`: of those that are
    there once, after `base_model.`; `changes`: what a module's tensors do, in order; `check` refuses configurations.
    """

    peft_type: str
    title: str | Callable[[Config], str]
    parts: tuple[str, ...]
    changes: Callable[[Module, Config], list[Change]]
    check: Callable[[Config], None] = _nothing
    shared: tuple[str, ...] = ()

    def titled(self, config: Config) -> str:
        return f"PEFT {self.title if isinstance(self.title, str) else self.title(config)}"


def require_whole_strength(config: Config) -> None:
    """InputRefused for a strength where the change is no sum that could be added in part."""
    if config.strength != 1:
        raise config.refusal(f"{config.peft_type} is merged as it is, and not at strength {config.strength:g}")


def look_at_base(config: Config) -> Callable[[Mapping[str, Group]], None]:
    """What tells how the base stores its weights, beside the tensors that are changed."""

    def look(groups: Mapping[str, Group]) -> None:
        for name, group in groups.items():
            bias = groups.get(f"{name[:-6]}bias") if name.endswith(".weight") else None
            if bias is not None:
                config.with_bias.add(name)
            if bias is not None and len(group.shape) == 2 and group.shape[0] != group.shape[1]:
                for side in (0, 1):
                    if bias.shape == (group.shape[side],):
                        config.stored[name] = side == 1

    return look


def matrix_view(
    group: Group, sides: tuple[int, int], config: Config, what: str, shapes: Iterable[Sequence[int]]
) -> View:
    """How a change of an (out, in) matrix sees the base's weight: a Conv1D of transformers is stored (in, out).

    By its shape; of a square one, which comes after all others, the configuration tells, where none of those
    contradicts it. `what` and `shapes` say of what size the change is.
    """
    straight, across = group.shape == sides, group.shape == sides[::-1]
    if not straight and not across:
        raise not_of_shape(group, what, shapes)
    if straight != across:
        config.seen[group.tensor] = across
        return TRANSPOSE if across else IDENTITY
    other = _other_way(group, config)
    if other is not None:
        raise InputRefused(
            f"{TENSOR} is square, and the configuration's fan_in_fan_out is wrong for {printable(other)}: nothing "
            "tells whether it is stored (out, in) or (in, out)",
            hint=f"set it to {str(not config.fan_in_fan_out).lower()} if it is stored as that is",
            tensor=group.tensor,
            path=config.path,
        )
    if config.fan_in_fan_out and group.tensor not in config.with_bias:
        # PEFT itself takes the flag back for a linear layer.
        raise InputRefused(
            f"{TENSOR} is square and has no bias, which every layer that is stored (in, out) has, and the "
            "configuration's fan_in_fan_out says that it is one",
            hint="set it to false if the base has linear layers only",
            tensor=group.tensor,
            path=config.path,
        )
    return TRANSPOSE if config.fan_in_fan_out else IDENTITY


def _other_way(group: Group, config: Config) -> str | None:
    """A tensor that the configuration's one flag is wrong for: one that is changed too, or of those of the base the
    ones of this tensor's last name, or all.
    """
    flag, last = config.fan_in_fan_out, group.tensor.split(".")[-2:]
    alike = {name: seen for name, seen in config.stored.items() if name.split(".")[-2:] == last} or config.stored
    wrong = [name for name, seen in alike.items() if seen != flag]
    return next((name for name, seen in config.seen.items() if seen != flag), None) or (
        wrong[0] if wrong and (alike is not config.stored or len(wrong) == len(alike)) else None
    )
