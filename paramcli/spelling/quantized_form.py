"""What the readers of quantized weights are given, and what they make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..checkpoint.source import Source, TensorInfo
from ..dtypes import EDITABLE
from .quantization_config import Quantization

if TYPE_CHECKING:
    from ..chain import Chain

FP8 = ("F8_E4M3", "F8_E5M2")
SCALES = (*EDITABLE, "F8_E8M0")


@dataclass(frozen=True)
class Parts:
    """A tensor of codes, what stands beside it by the last part of its name, and all plain tensors of the file."""

    name: str
    codes: TensorInfo
    beside: Mapping[str, TensorInfo]
    everything: Mapping[str, TensorInfo]
    config: Quantization
    source: Source

    @property
    def module(self) -> str:
        return self.name.rpartition(".")[0]

    @property
    def is_weight(self) -> bool:
        return self.name.rpartition(".")[2] == "weight"

    def named(self, leaf: str) -> str:
        """The name that a tensor of the module has."""
        return f"{self.module}.{leaf}" if self.module else leaf

    def at(self, ending: str) -> TensorInfo | None:
        """What has the ending: after the codes' own name where it begins with '_' or '.', else in its place; '' has the
        codes themselves.
        """
        if ending[:1] in ("", "_", "."):
            return self.everything.get(self.name + ending)
        return self.beside.get(ending)


@dataclass(frozen=True)
class Reading:
    """What such tensors are: role -> key, the weight's shape and chain, or why that is not known.

    `tensor`: the weight's name, where it is not the codes'; `dtype`: the code of the one that it had, where its own
    tensors say so and the configuration does not. `seen`: role -> (dtype, shape) that its bytes are read as, where they
    are stored as another.
    """

    form: str
    keys: Mapping[str, str]
    shape: tuple[int, ...]
    chain: Chain | None
    unknown: str | None = None
    hint: str | None = None
    tensor: str | None = None
    dtype: str | None = None
    seen: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Form:
    """A way to store codes: the last part of their name, the endings of what stands beside it (as of `Parts.at`; one of
    them is enough), and the reading of them; None where it is another form.

    `leaf`: '' for any name, and '_blocks' for all that end so.
    """

    endings: tuple[str, ...]
    read: Callable[[Parts], Reading | None]
    leaf: str = "weight"

    def fits(self, leaf: str) -> bool:
        return leaf == self.leaf or (self.leaf[:1] in ("", "_") and leaf.endswith(self.leaf))
