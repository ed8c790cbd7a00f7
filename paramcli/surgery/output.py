"""Where a result goes: its default name, and the sink that writes it."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..checkpoint.disk.atomic import ELSEWHERE, failures
from ..checkpoint.disk.hub import cache_of, is_cache, repository_name
from ..checkpoint.header import Slot
from ..checkpoint.read.folder import index_name, sibling_files
from ..checkpoint.read.parts import rank_sets
from ..checkpoint.read.recognise import DCP, PICKLE, RANKS, is_dcp
from ..checkpoint.read.sharded import files_in
from ..checkpoint.source import Source
from ..checkpoint.write.dcp import DcpSink, part_name
from ..checkpoint.write.folder import Run
from ..checkpoint.write.safetensors_file import SafetensorsSink
from ..checkpoint.write.sharded import SINGLE_NAME, ShardedSink, plan_shards
from ..checkpoint.write.torch_file import TorchSink, names_left_out
from ..checkpoint.write.writer import MetadataOf, Sink
from ..dtypes import dtype_name
from ..errors import PATH, OutputFailed, UsageError
from ..spelling import record as records
from ..spelling.companions import companions
from ..spelling.quantization_config import (
    CONFIG,
    QUANTIZATION_FILES,
    is_unreadable,
    quantization_files,
    unquantized_config,
)
from ..text import listing, printable, printable_path
from ..wording import given, shell_path
from .plan import Plan, Step

# Longest first: .pth.tar before .tar.
_EXTENSIONS = (".pth.tar", ".pt.tar", ".safetensors", ".pickle", ".ckpt", ".pth", ".bin", ".pkl", ".pt", ".tar")
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar")
# A folder of torch.distributed.checkpoint is asked for by its name, as every other container is.
DCP_SUFFIX = ".dcp"
# Names of formats that paramcli does not write.
FOREIGN_SUFFIXES = (
    ".h5",
    ".hdf5",
    ".keras",
    ".onnx",
    ".gguf",
    ".ggml",
    ".npz",
    ".npy",
    ".pkl",
    ".pickle",
    ".msgpack",
    ".json",
    ".zip",
    ".jit",
    ".pt2",
    ".distcp",
)
_SUFFIXES = (".parametrized", ".baked", ".unparametrized", ".migrated", ".edited", ".merged")


def default_output(path: Path, suffix: str, sharded: bool = True) -> Path:
    """ckpt.pt -> ckpt.parametrized.safetensors; an earlier such suffix is replaced, not stacked.

    A sharded checkpoint becomes a folder beside its own: model/ -> model.parametrized/; a folder of one file becomes a
    file there, since with two in it nothing would say which is meant.
    """
    path = Path(path)
    folder = os.path.isdir(path)
    if folder and path.name in ("", ".", ".."):
        path = Path(os.path.abspath(path))
    dcp = folder and is_dcp(path)
    # The split of a DCP folder, or of ranks, says nothing about ours.
    whole = folder and (dcp or not sharded or bool(rank_sets(files_in(path))))
    if path.name.endswith(".index.json"):
        path, folder = path.absolute().parent, True
    name, parent = path.name, path.parent
    if not folder:
        name = next((name[: -len(e)] for e in _EXTENSIONS if name.endswith(e) and len(name) > len(e)), name)
    elif dcp and len(name) > len(DCP_SUFFIX):
        name = name.removesuffix(DCP_SUFFIX)
    name = next((name[: -len(s)] for s in _SUFFIXES if name.endswith(s) and len(name) > len(s)), name)
    if (cache := path if is_cache(path) else cache_of(parent / name)) is not None:
        # Nothing goes into the hub's cache; a snapshot is named by a hash there.
        parent, name = Path(), repository_name(cache) if folder else name
    return parent / (f"{name}{suffix}" if folder and not whole else f"{name}{suffix}.safetensors")


def refuse_link_out(path: Path) -> None:
    """Raise OutputFailed where a name that nobody asked for leads out of its folder, by a stranger's link perhaps."""
    if os.path.islink(path):
        there = Path(os.path.realpath(path))
        if there.parent != Path(os.path.realpath(path.parent)):
            raise OutputFailed(
                f"{PATH} is a link out of its folder, to {printable_path(there)}: not followed unasked",
                hint=f"{given('output')} says where to write; rm {shell_path(path)} takes the link away",
                path=path,
            )


def shard_name(name: str) -> str:
    """pytorch_model-00001-of-00002.bin -> model-00001-of-00002.safetensors; a safetensors shard keeps its name."""
    if name.endswith(".safetensors"):
        return name
    stem = name[: -len(Path(name).suffix)] if Path(name).suffix else name
    return f"{stem.removeprefix('pytorch_')}.safetensors"


def split_like(source: Source, plan: Plan) -> dict[str, list[Slot]]:
    """The plan's slots over the input's shards: a copied tensor stays in its shard, an edited one in that of its first
    key.
    """
    home = {key: shard_name(shard) for shard, keys in source.shards.items() for key in keys}
    place = {name: home[key] for name, key in plan.copies}
    for step in plan.steps:
        first = home[next(iter(step.group.keys.values()))]
        place.update({slot.name: first for slot in step.writes})
    shards: dict[str, list[Slot]] = {name: [] for name in dict.fromkeys(home.values())}
    for slot in plan.slots:
        shards[place[slot.name]].append(slot)
    return shards


def tied_slots(source: Source, plan: Plan) -> dict[str, str]:
    """Slot -> the slot it is one tensor with: the results of one edit on groups whose every key is tied, in order."""
    first_of = {name: names[0] for names in source.tied() for name in names}
    seen: dict[tuple[object, ...], Step] = {}
    tied: dict[str, str] = {}
    for step in plan.steps:
        group = step.group
        if not step.computes or group.twin is None:
            continue
        # One with a key that is neither tied nor of an adapter, which several tensors may share, is like no other.
        edit = (
            step.action,
            step.chain,
            step.view,
            *((role, first_of.get(key, key)) for role, key in group.keys.items()),
        )
        first = seen.setdefault(edit, step)
        if first is not step:
            tied.update({slot.name: like.name for slot, like in zip(step.writes, first.writes, strict=True)})
    return tied


def is_torch(path: Path, source: Source) -> bool:
    """Is the result a torch checkpoint? By its name; in place, where it replaces the input, by what that is."""
    if path == source.path:
        return source.container in ("torch zip", "torch legacy")
    return path.name.lower().endswith(TORCH_SUFFIXES)


def is_dcp_folder(path: Path, source: Source) -> bool:
    """Is the result a folder of torch.distributed.checkpoint?"""
    return path != source.path and path.name.endswith(DCP_SUFFIX)


def is_file(output: Path) -> bool:
    """Does this output name ask for one file, where a folder as the input would otherwise give a folder?"""
    return output.name.lower().endswith((*TORCH_SUFFIXES, ".safetensors"))


def shards_of(
    output: Path, source: Source, plan: Plan, in_place: bool, max_shard_size: int | None, as_folder: bool
) -> dict[str, list[Slot]] | None:
    """The plan's slots by shard; None where the result is one file: by its name, or because the input is one.

    `as_folder`: the output was asked for as a folder, whatever the input is.
    """
    to_dcp = is_dcp_folder(output, source)
    if source.container in (DCP, RANKS) or (to_dcp and not source.shards):
        max_shard_size = max_shard_size or DEFAULT_SHARD_SIZE
    # In place one file stays one, unless the configuration beside it changes: then both are written, as of shards.
    from_folder = bool(source.shards or (siblings_of(source, plan)[1] if in_place else as_folder or source.home))
    if is_torch(output, source) or (is_file(output) and not in_place) or not (from_folder or max_shard_size):
        return None
    if max_shard_size:
        shards = plan_shards(plan.slots, max_shard_size)
    elif source.shards:
        shards = split_like(source, plan)
    else:
        shards = {own_name(source) or SINGLE_NAME: list(plan.slots)}
    return (
        {part_name(number): slots for number, slots in enumerate(filter(None, shards.values()))} if to_dcp else shards
    )


def own_name(source: Source) -> str | None:
    """What the one file of the folder that was given is called, written as safetensors: loaders go by it."""
    one = source.home is not None and source.path != source.home and not source.shards
    return shard_name(source.path.name) if one else None


# Records of so many tensors may be larger than what can be read again.
_WORTH_A_LOOK = 50_000
# Containers whose other contents a result could not hold, and what each is.
NOT_IN_PLACE = {
    "sharded torch": "of torch's own shards",
    DCP: "a folder of torch.distributed.checkpoint",
    RANKS: "of the files of FSDP's ranks",
    PICKLE: "a pickle of another kind",
}
# What convert takes for a folder, and every command where the input's own split cannot be kept.
DEFAULT_SHARD_SIZE = 5 * 10**9


def open_sink(
    output: Path,
    source: Source,
    plan: Plan,
    metadata: MetadataOf,
    *,
    overwrite: bool,
    in_place: bool,
    sync: bool = True,
    max_shard_size: int | None = None,
    as_folder: bool = False,
    run: Run,
    owner: Mapping[str, int] | None = None,
    longest: MetadataOf | None = None,
) -> Sink:
    """The sink for a plan: a torch file, a DCP folder or one safetensors file by the output's name, else a folder of
    shards.

    `metadata`: of a safetensors file with the keys it is given; `longest`: as long as the data can make it. `owner`:
    the rank that writes each shard, in a `run` of several.
    """
    if not in_place:
        same_place(output, source, plan.command != "convert" and source.container not in NOT_IN_PLACE)
    copies = [*plan.copies, *(pair for step in plan.steps for pair in step.renames.items())]
    if is_torch(output, source):
        renamed = dict(plan.copies)
        for step in plan.steps:
            renamed.update({slot.name: next(iter(step.group.keys.values())) for slot in step.writes})
        tied = tied_slots(source, plan)
        return TorchSink(output, source, plan.slots, copies, renamed, tied, overwrite=overwrite, sync=sync)
    shards = shards_of(output, source, plan, in_place, max_shard_size, as_folder)
    # Bytes with a checksum to compare go through memory in any case.
    runs = {name: source.tensors[key].run for name, key in copies if source.tensors[key].storage.crc is None}
    origins = {name: run[1] for name, run in runs.items() if run is not None}
    if len(plan.record) + len(plan.longest) > _WORTH_A_LOOK:
        records.record_text({**plan.record, **plan.longest}, "")  # of all shards together: what is too much is refused
    if shards is None:
        names = [slot.name for slot in plan.slots]
        return SafetensorsSink(
            output,
            plan.slots,
            metadata(names),
            overwrite=overwrite,
            sync=sync,
            origins=origins,
            longest=longest(names) if longest else None,
        )
    folder = source.folder if in_place else output
    siblings, rewritten = siblings_of(source, plan)
    if is_dcp_folder(output, source):
        return DcpSink(
            output, shards, siblings, run=run, overwrite=overwrite, sync=sync, owner=owner, rewritten=rewritten
        )
    name = index_name(source.path, own_name(source))
    return ShardedSink(
        folder,
        shards,
        metadata,
        index_metadata(source, plan),
        siblings,
        run=run,
        overwrite=overwrite,
        sync=sync,
        index_name=name,
        owner=owner,
        origins=origins,
        longest=longest,
        rewritten=rewritten,
    )


def same_place(path: str | os.PathLike[str], source: Source, replaceable: bool) -> None:
    """Raise UsageError where the output is one of the input's files, or its folder, under any name.

    `replaceable`: the command has an --in-place that takes this input.
    """
    if is_input(path, source):
        hint = f"{given('in-place', True)} replaces it, or {ELSEWHERE}" if replaceable else ELSEWHERE
        raise UsageError(f"{PATH} is the input itself", hint=hint, path=path, option="output")


def foretell_place(path: Path, source: Source, command: str) -> None:
    """Raise what the run itself would of where it writes: for --dry-run, which opens nothing there."""
    same_place(path, source, command != "convert" and source.container not in NOT_IN_PLACE)
    with failures(path):
        if not os.path.isdir(path.absolute().parent):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def is_input(path: str | os.PathLike[str], source: Source) -> bool:
    """Is this one of the input's files, or its folder, under any name?"""

    def is_at(place: str | os.PathLike[str]) -> bool:
        try:
            return os.path.samefile(place, path)
        except OSError:
            return False

    if os.path.isdir(path):
        return any(map(is_at, {file.path.absolute().parent for file in source.files}))
    return is_at(source.path) or any(is_at(file.path) for file in source.files)


def siblings_of(source: Source, plan: Plan) -> tuple[list[Path], dict[str, bytes]]:
    """(the files that belong beside the result, the new contents of some): a model that is quantized no more is not
    described as one that is. A file that was given by its own name has none.
    """
    if source.home is None:
        return [], {}
    siblings, dtype = sibling_files(source.home), unquantized_to(source, plan)
    if dtype is None:
        return siblings, {}
    kept = [path for path in siblings if path.name not in QUANTIZATION_FILES]
    made = unquantized_config(source.home, dtype)
    return kept, {} if made is None else {CONFIG: made}


def still_described(output: Path, source: Source, plan: Plan) -> list[str]:
    """What a person should know of a configuration that goes on saying that decoded weights are quantized."""
    if unquantized_to(source, plan) is None:
        return []
    if source.home is not None:
        unreadable = is_unreadable(source.home) and not is_file(output)
        what = f"{printable_path(source.home / CONFIG)} is no JSON object: it stays as it is, whatever it says of codes"
        return [what] if unreadable else []
    # One file of a folder, in its own place: nothing beside it is touched.
    names = quantization_files(output.parent) if output == source.path else []
    if not names:
        return []
    files, it = listing([printable_path(output.parent / name) for name in names], 3), "them" if names[1:] else "it"
    return [
        f"{files} still {'say' if names[1:] else 'says'} that its weights are quantized: take that out of {it} (the "
        "folder, given in place of the file, has it taken out)"
    ]


def unquantized_to(source: Source, plan: Plan) -> str | None:
    """The dtype of the weights that were stored in codes, where the plan decodes all of those; None where some stay, or
    there were none.
    """
    decoded = {slot.dtype for step in plan.steps for slot in step.writes if step.decodes}
    left = {key for _, key in plan.copies} | {key for step in plan.steps for key in step.renames.values()}
    if len(decoded) != 1 or companions({key: source.tensors[key] for key in left}):
        return None
    return dtype_name(decoded.pop())


def index_metadata(source: Source, plan: Plan) -> dict[str, object]:
    """The input index's own entries that hold for the output too; total_size is the sink's to say."""
    kept = {key: value for key, value in source.index_metadata.items() if _is_scalar(value)}
    before = sum(info.numel for name, info in source.tensors.items() if name not in source.beside)
    if before != sum(math.prod(slot.shape) for slot in plan.slots):
        kept.pop("total_parameters", None)
    return kept


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def has_record(output: Path, source: Source) -> bool:
    """Has the result a place for metadata, and so for the record? torch's containers have none."""
    return not is_torch(output, source) and not is_dcp_folder(output, source)


def lost(output: Path, source: Source, plan: Plan) -> list[str]:
    """What the input holds beside tensors and the output does not, by name."""
    to_torch = is_torch(output, source)
    keeps_rest = to_torch and source.tree is not None
    names = [extra.name for extra in source.extras if not (keeps_rest and extra.carried)]
    if keeps_rest:
        names += names_left_out(source)
    if not has_record(output, source):
        names += [
            f"metadata {name}"
            for name in sorted(
                {*source.metadata, *([records.KEY] if plan.record or plan.longest or source.shard_records else [])}
                - {"format"}
            )
        ]
    kept = {} if is_file(output) or is_dcp_folder(output, source) else index_metadata(source, plan)
    return names + [f"index metadata {name}" for name in source.index_metadata if name not in kept]


def untied(output: Path, source: Source, plan: Plan) -> list[str]:
    """Groups of names that were one tensor and have each their own in the output."""
    if is_torch(output, source):
        return []
    copied, edited = {key for _, key in plan.copies}, {key for step in plan.steps for key in step.group.keys.values()}
    # Of a tie that an edit has parted, those names are told that still are equal.
    groups = [[name for name in names if name in alike] for names in source.tied() for alike in (copied, edited)]
    return [" = ".join(map(printable, names)) for names in groups if len(names) > 1]
