"""A PEFT model's own state dict: a base and its adapters in one file, as training saves them without save_pretrained.

    base_model.model.X.base_layer.weight                      the base's X.weight
    base_model.model.X.lora_A.NAME.weight                     X.lora_A of the adapter NAME
    base_model.model.X.original_module.weight                 the base's X.weight, in whose place
    base_model.model.X.modules_to_save.NAME.weight            the adapter NAME has this
    base_model.model.Y.weight                                 the base's Y.weight

The scale of a change is in none of them, so an adapter of such a file is given by its configuration alone. The file is
taken apart into a base with the names of its model, and adapters with the names that save_pretrained gives.
Source: peft 0.21, utils/save_and_load.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from ..checkpoint.source import Source, TensorInfo
from ..errors import PATH, TENSOR, InputRefused
from ..text import listing, printable
from ..wording import call, given
from .adapter import Adapter
from .forms import detect
from .opened import Opened
from .peft_config import Config

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Inside:
    """An adapter whose tensors are in the base's file: `parts` are the names that they have of any family, `read` makes
    an adapter of those that are its own.
    """

    config: Config
    parts: Collection[str]
    read: Callable[[Source], Adapter]

    def within(self, base: Opened) -> tuple[Opened, Adapter]:
        """(the base without it, the adapter). InputRefused where there is none, or nothing tells which of several."""
        own, adapters = _apart(base.source.tensors, self.parts)
        mine = adapters.pop(self._name(adapters))
        others = {key: base.source.tensors[key] for keys in adapters.values() for key in keys.values()}
        clash = next((name for name in own if name in others), None)
        if clash is not None or len(set(own.values())) < len(own):
            raise InputRefused("two of its tensors would have one name", tensor=clash, path=base.source.path)
        new = {key: name for name, key in own.items()} | {key: key for key in others}
        alone = replace(
            base.source,
            tensors={name: _named(base.source.tensors[key], name) for key, name in new.items()},
            shards={shard: [new[key] for key in keys if key in new] for shard, keys in base.source.shards.items()},
            tree=None,
            parts=(),
        )
        tensors = {name: _named(base.source.tensors[key], name) for name, key in mine.items()}
        return Opened(alone, detect(alone.tensors)), self.read(replace(base.source, tensors=tensors, shards={}))

    def require_none_left(self, base: Opened) -> None:
        """InputRefused where the base's file holds adapters beside those that were taken."""
        _, adapters = _apart(base.source.tensors, self.parts)
        for name, keys in adapters.items():
            raise InputRefused(
                f"{TENSOR} is of the adapter {printable(name)}, which is in the file too",
                hint=f"merge it along ({given('adapter', f'{name}/adapter_config.json')}), or take it out first "
                f"({call('convert', PATH, drop=f'*.{name}.*')})",
                tensor=next(iter(keys.values())),
                path=base.source.path,
            )

    def _name(self, adapters: Collection[str]) -> str:
        if not adapters:
            raise self.config.refusal(
                "it is given without adapter_model.safetensors, and the base holds no adapter itself",
                hint="put the weights beside it, or give the folder that has both",
            )
        wanted = self.config.path.parent.name if len(adapters) > 1 else next(iter(adapters))
        found = next((name for name in (wanted, "default") if name in adapters), None)
        if found is None:
            raise self.config.refusal(
                f"the base holds the adapters {listing(sorted(adapters), 6)}, and nothing tells of which this is",
                hint="put it in a folder of that name",
            )
        return found


def _named(info: TensorInfo, name: str) -> TensorInfo:
    return replace(info, name=name)


def _apart(tensors: Iterable[str], parts: Collection[str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """(name -> key of the base's own tensors, adapter -> name -> key), each with the name that it has by itself."""
    change = re.compile(rf"(.+)\.({'|'.join(sorted(parts))})\.([^.]+)(\.weight|\.bias)?", re.S)
    saved = re.compile(r"(.+)\.modules_to_save\.([^.]+)\.(.+)", re.S)
    own: dict[str, str] = {}
    adapters: dict[str, dict[str, str]] = {}
    tensors = list(tensors)
    outer = _outer(tensors)
    for key in tensors:
        plain = key.removeprefix(outer).removeprefix(_PREFIX)
        if found := change.fullmatch(plain):
            # What all modules share is above them.
            where = found[1] if found[1] == "base_model" else f"{_PREFIX}{found[1]}"
            adapters.setdefault(found[3], {})[f"{where}.{found[2]}{found[4] or ''}"] = key
        elif found := saved.fullmatch(plain):
            adapters.setdefault(found[2], {})[f"{_PREFIX}{found[1]}.{found[3]}"] = key
        else:
            own[".".join(part for part in plain.split(".") if part not in ("base_layer", "original_module"))] = key
    return own, adapters


def _outer(keys: Sequence[str]) -> str:
    """What stands before the PEFT model's own prefix where a trainer holds that model: the same before all of them."""
    found = {key[: key.index(_PREFIX)] for key in keys if _PREFIX in key}
    outer = found.pop() if len(found) == 1 else ""
    return outer if all(key.startswith(outer) for key in keys) else ""
