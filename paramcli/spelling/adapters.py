"""An adapter's file or folder, of whichever format, as an `Adapter`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..checkpoint.read.open import open_checkpoint
from ..checkpoint.read.parts import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from ..errors import PATH, InputRefused, UsageError
from ..text import count_text
from ..wording import call, given
from .adapter import Adapter, Prefixes
from .kohya import is_kohya, read_kohya
from .peft import is_peft, open_peft

# What diffusers calls the file in the folder of an adapter.
_DIFFUSERS = "pytorch_lora_weights.safetensors"


def open_adapter(path: Path, strength: float = 1.0) -> Adapter:
    """A folder of PEFT or a file of weights in it, or a file of kohya, LyCORIS or diffusers. InputRefused for what is
    neither. Close its source.
    """
    file = (
        path / _DIFFUSERS if os.path.isdir(path) and not is_peft(path) and os.path.exists(path / _DIFFUSERS) else path
    )
    if os.path.isdir(file) or file.name == ADAPTER_CONFIG:
        return open_peft(file, strength)
    source = open_checkpoint(file)
    try:
        if is_kohya(source.tensors):
            return read_kohya(source, strength)
        of_peft = file.name in ADAPTER_WEIGHTS or any(key.startswith("base_model.") for key in source.tensors)
        if not (of_peft and is_peft(file.parent)):
            raise InputRefused(
                f"{PATH} is of a PEFT adapter, whose scale is in the adapter_config.json that is not beside it"
                if of_peft
                else f"{PATH} is no adapter that is read: a folder of PEFT, or a file of kohya, LyCORIS or diffusers",
                hint=given("adapter", "FOLDER") if of_peft else f"{call('inspect', PATH)} shows what it holds",
                path=file,
            )
    except BaseException:
        source.close()
        raise
    source.close()
    return open_peft(file, strength)


def adapter_at(path: Path, keys: Iterable[str]) -> Adapter | None:
    """The adapter that lies there with these tensors, as of `open_adapter`; None where something else does."""
    return open_adapter(path) if is_peft(path) or is_kohya(keys) else None


def strengths_of(paths: Sequence[str], strength: float | Sequence[float]) -> list[float]:
    """One for each adapter: a number is that of all, and none said is 1. Raises UsageError."""
    strength = [strength] * len(paths) if isinstance(strength, (int, float)) else strength
    if strength and len(strength) != len(paths):
        raise UsageError(
            f"{count_text(len(strength), 'strength')} for {count_text(len(paths), 'adapter')}",
            hint=f"one {given('strength')} for each {given('adapter')}",
            option="strength",
        )
    # (A whole number may be beyond what a float can be.)
    wrong = next((factor for factor in strength if not abs(factor) <= sys.float_info.max), None)
    if wrong is not None:
        raise UsageError(f"{given('strength', wrong)}: a finite number is wanted", option="strength")
    return [float(factor) for factor in strength] or [1.0] * len(paths)


@contextmanager
def open_adapters(
    paths: Sequence[str], strength: float | Sequence[float] = 1.0, prefixes: Prefixes | None = None
) -> Iterator[list[Adapter]]:
    """The adapters, open, each with its strength and its names as the base has them."""
    strengths = strengths_of(paths, strength)
    with ExitStack() as stack:
        found = []
        for path, factor in zip(paths, strengths, strict=True):
            adapter = open_adapter(Path(path), factor)
            stack.enter_context(adapter.source)
            found.append(adapter.with_prefix(prefixes or Prefixes([])))
        yield found
