"""extract as a function: it writes an adapter of two checkpoints, and edits neither."""

from __future__ import annotations

from ..dtypes import CastDtype
from ..spec import path_of
from ..spelling.opened import open_groups
from ..spelling.written import AdapterSpelling
from ..surgery.extract import Extract
from ..surgery.extract import extract as extracted
from ..surgery.extracted import ExtractResult
from ..surgery.run import Target
from ..watch import NOBODY, Watch
from .common import FilePath, Names, ends_in_slash, path_or_none, patterns, ready


def extract(
    tuned: FilePath,
    base: FilePath,
    tensor: Names = (),
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_error: float | None = None,
    whole: Names = (),
    spelling: AdapterSpelling = "peft",
    prefix: str = "lora_unet_",
    dtype: CastDtype | None = None,
    output: FilePath | None = None,
    force: bool = False,
    sync: bool = True,
    dry_run: bool = False,
    root: str | None = None,
    root_base: str | None = None,
    device: str = "cpu",
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> ExtractResult:
    """Write the nearest low-rank adapter of what `tuned` changes in `base`: a PEFT folder, or a kohya file.

    Args:
        rank: of every change; or `energy`: the least rank with this share of its squared norm; or `max_error`: the
            least rank that loses no more than this share of its norm.
        whole: patterns of tensors that are not to be factored.
        prefix: what a kohya file's keys begin with.
        dtype: of the factors; by default float32, float64 where both checkpoints are.

    What no factors can hold, or would hold in no fewer numbers, goes whole. Raises InputRefused where nothing changed,
    and for what the adapter cannot hold, UsageError, OutputFailed; nothing is written then.
    """
    ready()
    job = Extract(
        rank=rank,
        energy=energy,
        max_error=max_error,
        tensor=patterns(tensor),
        whole=patterns(whole),
        spelling=spelling,
        prefix=prefix,
        dtype=dtype,
    )
    target = Target(
        output=path_or_none(output, "output"),
        slash=ends_in_slash(output),
        force=force,
        sync=sync,
        dry_run=dry_run,
        device=device,
        ignore_record=ignore_record,
    )
    path = path_of(tuned, "tuned")
    with (
        open_groups(path, root, ignore_record, watch.note) as one,
        open_groups(path_of(base, "base"), root_base, ignore_record, watch.note) as two,
    ):
        return extracted(job, one, two, path, target, watch)
