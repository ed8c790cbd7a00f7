"""One kind of PEFT's adapters, as the reader has it: its tensors after a module's path, and the changes they make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..checkpoint.source import Source, TensorInfo
from ..errors import TENSOR, InputRefused
from ..text import printable, shape_text
from ..view import IDENTITY, View
from .adapter import TRANSPOSE, Change, not_of_shape
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
        for part in parts:
            if part not in self.keys:
                raise InputRefused(
                    f"{TENSOR} is half a change: {printable(self.written)}.{part} is missing",
                    tensor=next(iter(self.keys.values())),
                    path=self.source.path,
                    hint="the file is incomplete",
                )

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
    for name, seen in config.seen.items():
        if seen != config.fan_in_fan_out:
            raise InputRefused(
                f"{TENSOR} is square, and the configuration's fan_in_fan_out is wrong for {printable(name)}: nothing "
                "tells whether it is stored (out, in) or (in, out)",
                tensor=group.tensor,
                path=config.path,
            )
    return TRANSPOSE if config.fan_in_fan_out else IDENTITY
