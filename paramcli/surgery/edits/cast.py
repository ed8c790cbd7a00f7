"""Casts: floating tensors in another dtype, rounded once; what means something only with others stays as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...checkpoint.header import Slot
from ...checkpoint.source import TensorInfo
from ...dtypes import CAST_DTYPES, CODE_OF_TORCH, CastDtype, dtype_name, kind_of, torch_dtype
from ...spec import check_choice
from ...spelling.companions import companions, names_scale
from ...spelling.forms import Group
from ...text import count_text, listing
from ...wording import call
from ..plan import Made, Step, Told, once

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...fitting.evaluate import Tensors


def check_dtype(name: str | None) -> CastDtype | None:
    return None if name is None else check_choice("dtype", name, CAST_DTYPES)


@dataclass(frozen=True)
class Cast:
    """A dtype, and the tensors that no cast may touch."""

    dtype: CastDtype
    together: frozenset[str]

    @classmethod
    def of(cls, dtype: CastDtype, tensors: Mapping[str, TensorInfo]) -> Cast:
        return cls(dtype, frozenset(companions(tensors)))

    @property
    def code(self) -> str:
        return CODE_OF_TORCH[self.dtype]

    def changes(self, key: str, info: TensorInfo) -> bool:
        """Is this a floating tensor of another dtype, that means something by itself?"""
        return kind_of(info.dtype) in ("float", "half") and info.dtype != self.code and key not in self.together

    def step(self, group: Group, names: Mapping[str, str]) -> Step:
        """The step that writes a group's tensors, those that the cast changes in the dtype; `names`: key -> its name
        there.
        """
        code = self.code
        infos = {group.keys[role]: info for role, info in group.infos.items()}
        changed = {key for key, info in infos.items() if self.changes(key, info)}
        slots = tuple(
            Slot(names[key], code if key in changed else info.dtype, info.shape) for key, info in infos.items()
        )

        def run(source: Tensors, device: str, compute: str) -> Made:
            made, notes = {}, []
            for key in infos:
                before = source.read(key)
                after = made[names[key]] = before.to(torch_dtype(code)) if key in changed else before
                notes.append(lost_text(lost(before, after), before.shape, after.dtype))
            return made, Told(note="; ".join(filter(None, notes)) or None)

        return Step(group, "cast", slots, group.chain, group.view, once(run), record=group.record)

    def left(self, keys: Mapping[str, TensorInfo], path: Path | None = None) -> str | None:
        """What is said of tensors that it leaves as they are, because they mean something only together. `path`: of the
        file, where another command makes of it what was asked for.
        """
        left = [key for key in keys if key in self.together]
        if not left:
            return None
        dtypes = sorted({dtype_name(keys[key].dtype) for key in left})
        # Of codes without a scale there is no weight to bake.
        scaled = path is not None and any(names_scale(key.rpartition(".")[2]) for key in left)
        bake = f": {call('remove', path, dtype=self.dtype)} bakes what they stand for" if scaled else ""
        return (
            f"the file is quantized ({', '.join(dtypes)}): {count_text(len(left), 'tensor')} that mean something only "
            f"together stay as they are: {listing(left, 4)}; a cast decodes nothing{bake}"
        )


def lost(before: Tensor, after: Tensor) -> int:
    """How many values the new dtype has no room for."""
    finite = after.isfinite()
    return 0 if finite.all() else int((before.isfinite() & ~finite).sum())


def lost_text(count: int, shape: Sequence[int], dtype: torch.dtype) -> str | None:
    """What is said of a tensor of which a dtype has no room for so many values."""
    what = f"{count_text(count, 'value')} of {math.prod(shape)} too large for {str(dtype).removeprefix('torch.')}"
    return f"{what}: infinite now" if count else None
