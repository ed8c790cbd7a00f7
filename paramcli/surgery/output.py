"""Where a result goes: its default name, and the sink that writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..checkpoint.atomic import same_place
from ..checkpoint.header import Slot
from ..checkpoint.read_sharded import index_name, sibling_files
from ..checkpoint.source import Source
from ..checkpoint.write_torch import TorchSink
from ..checkpoint.writer import SafetensorsSink, ShardedSink, plan_shards
from .plan import Plan

# Longest first: .pth.tar before .tar.
_EXTENSIONS = (".pth.tar", ".pt.tar", ".safetensors", ".ckpt", ".pth", ".bin", ".pt", ".tar")
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar")
_SUFFIXES = (".parametrized", ".baked", ".unparametrized", ".migrated", ".edited")


def default_output(path: Path, suffix: str) -> Path:
    """ckpt.pt -> ckpt.parametrized.safetensors; an earlier such suffix is replaced, not stacked.

    A sharded checkpoint becomes a folder beside its own: model/ -> model.parametrized/.
    """
    path = Path(path)
    folder = path.is_dir()
    if path.name.endswith(".index.json"):
        path, folder = path.absolute().parent, True
    name = path.absolute().name if folder else path.name
    parent = path.absolute().parent if folder and path.name in ("", ".", "..") else path.parent
    if not folder:
        name = next((name[: -len(e)] for e in _EXTENSIONS if name.endswith(e) and len(name) > len(e)), name)
    name = next((name[: -len(s)] for s in _SUFFIXES if name.endswith(s) and len(name) > len(s)), name)
    return parent / (f"{name}{suffix}" if folder else f"{name}{suffix}.safetensors")


def shard_name(name: str) -> str:
    """pytorch_model-00001-of-00002.bin -> model-00001-of-00002.safetensors; a safetensors shard keeps its name."""
    if name.endswith(".safetensors"):
        return name
    stem = name[: -len(Path(name).suffix)] if Path(name).suffix else name
    return f"{stem.removeprefix('pytorch_')}.safetensors"


def split_like(source: Source, plan: Plan) -> dict[str, list[Slot]]:
    """The plan's slots over the input's shards: a copied tensor stays in its shard, an edited one in that of its first key."""
    home = {key: shard_name(shard) for shard, keys in source.shards.items() for key in keys}
    place = {name: home[key] for name, key in plan.copies}
    for step in plan.steps:
        first = home[next(iter(step.group.keys.values()))]
        place.update({slot.name: first for slot in step.writes})
    shards: dict[str, list[Slot]] = {name: [] for name in dict.fromkeys(home.values())}
    for slot in plan.slots:
        shards[place[slot.name]].append(slot)
    return shards


def is_torch(path: Path) -> bool:
    """Does this output name ask for a torch checkpoint?"""
    return path.name.endswith(TORCH_SUFFIXES)


def open_sink(
    output: Path, source: Source, plan: Plan, metadata: Mapping[str, str], *, overwrite: bool, in_place: bool, max_shard_size: int | None = None
):  # fmt: skip
    """The sink for a plan: a torch file or one safetensors file by the output's name, else a folder of shards."""
    if not in_place:
        same_place(output, source)
    if is_torch(output):
        renamed = {name: key for name, key in plan.copies}
        for step in plan.steps:
            renamed.update({slot.name: next(iter(step.group.keys.values())) for slot in step.writes})
        return TorchSink(output, source, plan.slots, plan.copies, renamed, overwrite=overwrite)
    if output.name.endswith(".safetensors") and not in_place or not (source.shards or max_shard_size):
        return SafetensorsSink(output, plan.slots, metadata, overwrite=overwrite)
    folder = source.folder if in_place else output
    shards = plan_shards(plan.slots, max_shard_size) if max_shard_size else split_like(source, plan)
    siblings = sibling_files(source.path) if source.shards else []
    name = index_name(source.path)
    return ShardedSink(folder, shards, metadata, siblings=siblings, overwrite=overwrite, index_name=name)
