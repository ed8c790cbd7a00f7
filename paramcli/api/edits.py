"""The editing commands as functions. Each writes one output, whole or not at all, and says what became of each
tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..dtypes import CastDtype, ComputeDtype
from ..spec import path_of
from ..surgery.edits.add import Add, Init
from ..surgery.edits.assign import Assign
from ..surgery.edits.base import Spelling, Tied
from ..surgery.edits.cast import check_dtype
from ..surgery.edits.convert import Convert
from ..surgery.edits.merge import Attach, Like, Merge
from ..surgery.edits.migrate import Migrate
from ..surgery.edits.names import NewNames
from ..surgery.edits.remove import Remove
from ..surgery.result import EditResult
from ..surgery.run import Target, edit
from ..surgery.run import convert as converted
from ..watch import NOBODY, Watch
from .common import FilePath, Names, Paths, ends_in_slash, path_or_none, paths, patterns, prefix_texts, ready, strengths


def add(
    ckpt: FilePath,
    tensor: Names,
    chain: str,
    *,
    view: str | None = None,
    init: Init = "project",
    mask: str | None = None,
    max_change: float | None = None,
    spelling: Spelling = "new",
    seed: int = 0,
    tied: Tied | None = None,
    compute_dtype: ComputeDtype = "same",
    output: FilePath | None = None,
    force: bool = False,
    in_place: bool = False,
    check: bool = False,
    sync: bool = True,
    verify: bool = False,
    dry_run: bool = False,
    root: str | None = None,
    device: str = "cpu",
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> EditResult:
    """Put a chain of parametrizations on tensors of a checkpoint, and write the result beside it or to `output`.

    A weight that satisfies the constraint is kept; another moves to its nearest point, and `moved` says how far.
    Raises CheckFailed (`init="strict"`, `max_change`, `verify`), UsageError, InputRefused, OutputFailed; nothing is
    written then.
    """
    ready()
    job = Add(
        tensor=patterns(tensor),
        chain=chain,
        view=view,
        init=init,
        mask=mask,
        max_change=max_change,
        spelling=spelling,
        seed=seed,
        tied=tied,
        compute_dtype=compute_dtype,
    )
    target = Target(
        output=path_or_none(output, "output"),
        slash=ends_in_slash(output),
        force=force,
        in_place=in_place,
        check=check,
        sync=sync,
        verify=verify,
        dry_run=dry_run,
        root=root,
        device=device,
        ignore_record=ignore_record,
    )
    return edit("add", [job], job.suffix, path_of(ckpt), target, watch)


def assign(
    ckpt: FilePath,
    tensor: Names,
    *,
    from_: str | None = None,
    with_: str | None = None,
    chain: str | None = None,
    view: str | None = None,
    seed: int = 0,
    tied: Tied | None = None,
    compute_dtype: ComputeDtype = "same",
    output: FilePath | None = None,
    force: bool = False,
    in_place: bool = False,
    check: bool = False,
    sync: bool = True,
    verify: bool = False,
    dry_run: bool = False,
    root: str | None = None,
    device: str = "cpu",
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> EditResult:
    """Set tensors, as `layer.weight = X` does: through the chain's right inverse where there is one.

    `from_`: FILE or FILE:NAME, the effective weight of another checkpoint; `with_`: an initialiser of torch.nn.init.
    """
    ready()
    job = Assign(
        tensor=patterns(tensor),
        from_=from_,
        with_=with_,
        chain=chain,
        view=view,
        seed=seed,
        tied=tied,
        compute_dtype=compute_dtype,
    )
    target = Target(
        output=path_or_none(output, "output"),
        slash=ends_in_slash(output),
        force=force,
        in_place=in_place,
        check=check,
        sync=sync,
        verify=verify,
        dry_run=dry_run,
        root=root,
        device=device,
        ignore_record=ignore_record,
    )
    return edit("assign", [job], job.suffix, path_of(ckpt), target, watch)


def remove(
    ckpt: FilePath,
    tensor: Names = (),
    *,
    bake: bool = True,
    chain: str | None = None,
    view: str | None = None,
    dtype: CastDtype | None = None,
    tied: Tied | None = None,
    compute_dtype: ComputeDtype = "same",
    output: FilePath | None = None,
    force: bool = False,
    in_place: bool = False,
    check: bool = False,
    sync: bool = True,
    verify: bool = False,
    dry_run: bool = False,
    root: str | None = None,
    device: str = "cpu",
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> EditResult:
    """Bake parametrized tensors into plain weights, or with `bake=False` go back to their originals."""
    ready()
    job = Remove(
        tensor=patterns(tensor),
        bake=bake,
        chain=chain,
        view=view,
        dtype=dtype,
        tied=tied,
        compute_dtype=compute_dtype,
    )
    target = Target(
        output=path_or_none(output, "output"),
        slash=ends_in_slash(output),
        force=force,
        in_place=in_place,
        check=check,
        sync=sync,
        verify=verify,
        dry_run=dry_run,
        root=root,
        device=device,
        ignore_record=ignore_record,
    )
    return edit("remove", [job], job.suffix, path_of(ckpt), target, watch)


def merge(
    base: FilePath,
    adapter: Paths,
    *,
    strength: float | Sequence[float] = 1.0,
    adapter_prefix: Names | Mapping[str, str] = (),
    like: Like | None = None,
    dtype: CastDtype | None = None,
    tied: Tied | None = None,
    compute_dtype: ComputeDtype = "same",
    output: FilePath | None = None,
    force: bool = False,
    in_place: bool = False,
    check: bool = False,
    sync: bool = True,
    dry_run: bool = False,
    root: str | None = None,
    device: str = "cpu",
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> EditResult:
    """Attach adapters to the tensors they belong to, in order, and bake: the base's files come out as they came in.

    Args:
        adapter: PEFT folders, or files of kohya, LyCORIS or diffusers; every tensor of each is used, once.
        strength: what the change of each is multiplied by; one number for all, or one for each.
        adapter_prefix: "OLD=NEW" or {OLD: NEW}, how the adapters' names begin and how the base's do.
        like: "peft-bf16", as PEFT merges with the adapter in half precision: the change is rounded too.
        dtype: of every floating tensor of the result; what means something only with others stays as it is.

    Computed in float32 or wider and rounded once. Raises InputRefused for an adapter of another base, UsageError,
    OutputFailed; nothing is written then.
    """
    ready()
    job = Merge(
        adapter=paths(adapter),
        strength=strengths(adapter, strength),
        adapter_prefix=prefix_texts(adapter_prefix),
        like=like,
        dtype=dtype,
        tied=tied,
        compute_dtype=compute_dtype,
    )
    target = Target(
        output=path_or_none(output, "output"),
        slash=ends_in_slash(output),
        force=force,
        in_place=in_place,
        check=check,
        sync=sync,
        dry_run=dry_run,
        root=root,
        device=device,
        ignore_record=ignore_record,
    )
    return edit("merge", [job], job.suffix, path_of(base), target, watch)


def attach(
    base: FilePath,
    adapter: Paths,
    *,
    strength: float | Sequence[float] = 1.0,
    adapter_prefix: Names | Mapping[str, str] = (),
    like: Like | None = None,
    tied: Tied | None = None,
    output: FilePath | None = None,
    force: bool = False,
    in_place: bool = False,
    check: bool = False,
    sync: bool = True,
    dry_run: bool = False,
    root: str | None = None,
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> EditResult:
    """What `add --adapter` does: base and adapters in one parametrized file with a record, byte for byte.

    `remove` bakes it into what `merge` gives, `remove(bake=False)` gives the base back. Arguments as of `merge`.
    """
    ready()
    job = Attach(
        adapter=paths(adapter),
        strength=strengths(adapter, strength),
        adapter_prefix=prefix_texts(adapter_prefix),
        like=like,
        tied=tied,
    )
    target = Target(
        output=path_or_none(output, "output"),
        slash=ends_in_slash(output),
        force=force,
        in_place=in_place,
        check=check,
        sync=sync,
        dry_run=dry_run,
        root=root,
        ignore_record=ignore_record,
    )
    return edit("add", [job], job.suffix, path_of(base), target, watch)


def migrate(
    ckpt: FilePath,
    tensor: Names = (),
    *,
    to: Spelling,
    tied: Tied | None = None,
    output: FilePath | None = None,
    force: bool = False,
    in_place: bool = False,
    check: bool = False,
    sync: bool = True,
    dry_run: bool = False,
    root: str | None = None,
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> EditResult:
    """Rename weight norm, spectral norm and pruning between the old spelling and the new one, byte for byte."""
    ready()
    job = Migrate(to=to, tensor=patterns(tensor), tied=tied)
    target = Target(
        output=path_or_none(output, "output"),
        slash=ends_in_slash(output),
        force=force,
        in_place=in_place,
        check=check,
        sync=sync,
        dry_run=dry_run,
        root=root,
        ignore_record=ignore_record,
    )
    return edit("migrate", [job], job.suffix, path_of(ckpt), target, watch)


def apply(
    recipe: FilePath,
    ckpt: FilePath,
    *,
    output: FilePath | None = None,
    force: bool = False,
    in_place: bool = False,
    check: bool = False,
    sync: bool = True,
    verify: bool = False,
    dry_run: bool = False,
    root: str | None = None,
    device: str = "cpu",
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> EditResult:
    """Make many edits in one pass over the data, from a recipe: TOML, or the document of an earlier edit."""
    ready()
    from ..recipe import read_recipe

    target = Target(
        output=path_or_none(output, "output"),
        slash=ends_in_slash(output),
        force=force,
        in_place=in_place,
        check=check,
        sync=sync,
        verify=verify,
        dry_run=dry_run,
        root=root,
        device=device,
        ignore_record=ignore_record,
    )
    return edit("apply", read_recipe(path_of(recipe, "recipe")), ".edited", path_of(ckpt), target, watch)


def convert(
    ckpt: FilePath,
    output: FilePath | None = None,
    *,
    max_shard_size: str | None = None,
    strip_prefix: Names = (),
    rename: Mapping[str, str] | None = None,
    add_prefix: str | None = None,
    keep: Names = (),
    drop: Names = (),
    dtype: CastDtype | None = None,
    force: bool = False,
    check: bool = False,
    sync: bool = True,
    dry_run: bool = False,
    root: str | None = None,
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> EditResult:
    """Write the same tensors in another container, split or merged, renamed or cast; nothing else changes.

    Of names first prefixes are taken off, then tensors and modules renamed, then one is put before all.
    `max_shard_size`: e.g. "5GB", a folder of shards of at most this size.
    """
    ready()
    names = NewNames(patterns(strip_prefix), rename or {}, add_prefix)
    job = Convert(names, patterns(keep), patterns(drop), check_dtype(dtype))
    target = Target(
        output=path_or_none(output, "output"),
        slash=ends_in_slash(output),
        force=force,
        check=check,
        sync=sync,
        dry_run=dry_run,
        root=root,
        ignore_record=ignore_record,
    )
    return converted(job, path_of(ckpt), target, max_shard_size, watch)
