"""The commands that ask and change nothing, as functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ..devices import torch_device
from ..dtypes import ComputeDtype
from ..errors import UsageError
from ..spec import path_of
from ..spelling.opened import Opened, open_groups
from ..text import printable_path
from ..watch import NOBODY, Watch
from ..wording import given
from .common import FilePath, Names, Paths, path_or_none, paths, patterns, prefix_texts, ready, typed
from .opening import open_second

if TYPE_CHECKING:
    from torch import nn

    from ..answers.diff import DiffResult
    from ..answers.discover import DiscoverResult
    from ..answers.inspect import InspectResult
    from ..answers.spectrum import SpectrumResult
    from ..answers.verdict import VerifyResult
    from ..spelling.adapter import Prefixes


def inspect(
    ckpt: FilePath,
    tensor: Names = (),
    *,
    adapter: Paths = (),
    adapter_prefix: Names | Mapping[str, str] = (),
    root: str | None = None,
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> InspectResult:
    """What a checkpoint holds, from its headers: how each tensor is spelt, its chain, shape and dtype.

    With adapters, the tensors that they change, as they would be with them.
    """
    ready()
    from ..answers.inspect import adapter_facts
    from ..answers.inspect import inspect as answer

    with open_groups(path_of(ckpt), root, ignore_record, watch.note) as opened:
        if not (files := paths(adapter)):
            return answer(opened, patterns(tensor), adapter_facts(path_of(ckpt), opened.source.tensors))
        from ..spelling.adapter import parse_prefixes
        from ..spelling.adapters import open_adapters
        from ..spelling.attached import attach

        prefixes = parse_prefixes(prefix_texts(adapter_prefix))
        with open_adapters(files, prefixes=prefixes) as adapters:
            attached, names = attach(opened, adapters)
            prefixes.require_used(files)
            shown = attached.groups if tensor else {name: attached.groups[name] for name in names}
            return answer(Opened(attached.source, shown), patterns(tensor))


def verify(
    ckpt: FilePath | nn.Module,
    tensor: Names = (),
    *,
    constraint: str | None = None,
    tolerance: float | None = None,
    chain: str | None = None,
    view: str | None = None,
    root: str | None = None,
    device: str = "cpu",
    compute_dtype: ComputeDtype = "same",
    ignore_record: bool = False,
    report: FilePath | None = None,
    force: bool = False,
    sha256: bool = False,
    command: Sequence[str] | None = None,
    watch: Watch = NOBODY,
) -> VerifyResult:
    """Measure what tensors claim against what rounding explains; without `tensor`, all that claim something.

    Of a live model, what its parametrized tensors claim: `tensor`, `constraint` and `tolerance` are for it too.

    Args:
        constraint: a set to hold them to instead of their own, e.g. "orthogonal".
        tolerance: in place of the constraint's own.
        chain, view: how the named tensors are to be read.
        report: an HTML page that is written too; `force` replaces one that is there.
        sha256: the result's `evidence` says which files were read, by their SHA-256.
        command: the command line that evidence names.

    Raises InputRefused where there is nothing to verify: that is never a pass.
    """
    from .. import ranks
    from ..answers.verify import check_options
    from ..answers.verify import verify as answer
    from ..dtypes import COMPUTE_DTYPES
    from ..show.reports import check_report, facts, gathering, spectra_for_report, write_page
    from ..spec import check_choice
    from .pages import require_elsewhere

    ready()
    if not isinstance(ckpt, (str, PathLike)):
        from ..live import verify_model

        return verify_model(ckpt, patterns(tensor), constraint=constraint, tolerance=tolerance)
    read_as, seen = check_options(constraint, chain, view, tolerance)
    check_choice("compute-dtype", compute_dtype, COMPUTE_DTYPES)
    page_path = check_report(report, force)
    run = ranks.current()
    proves = (report is not None or sha256) and run.leads
    with (
        open_groups(path_of(ckpt), root, ignore_record, watch.note) as opened,
        gathering(proves, typed(command), opened.source) as gathered,
    ):
        require_elsewhere({"report": page_path}, opened.source)
        result = answer(
            opened,
            path_of(ckpt),
            patterns(tensor),
            constraint=constraint,
            tolerance=tolerance,
            chain=read_as,
            view=seen,
            device=device,
            compute_dtype=compute_dtype,
            run=run,
            watch=watch,
        )
        if gathered is None:
            return result
        where = torch_device(device)
        drawn = None
        if page_path is not None:
            drawn = spectra_for_report(opened.source, [(v.group, seen) for v in result], where)
        evidence = gathered.evidence(where)
        if page_path is not None and drawn is not None:
            from ..show.html import verify_page

            page = verify_page(printable_path(ckpt), result, drawn, evidence, facts(opened.source))
            write_page(page_path, page, force)
        return replace(result, evidence=evidence) if sha256 else result


def diff(
    a: FilePath,
    b: FilePath,
    tensor: Names = (),
    *,
    tolerance: float | None = None,
    exact: bool = False,
    adapter: Paths = (),
    strength: float | Sequence[float] = 1.0,
    adapter_b: Paths = (),
    strength_b: float | Sequence[float] = 1.0,
    adapter_prefix: Names | Mapping[str, str] = (),
    root: str | None = None,
    root_b: str | None = None,
    ignore_record: bool = False,
    report: FilePath | None = None,
    force: bool = False,
    command: Sequence[str] | None = None,
    watch: Watch = NOBODY,
) -> DiffResult:
    """Compare effective weights: plain, baked, old and new spellings of one model are equal.

    Args:
        tolerance: the relative distance that counts as equal, by default 16 eps of the dtype, 2 of a half.
        exact: every bit.
        adapter, adapter_b: what is attached to A and to B before they are compared; `strength` and `strength_b` as of
            `merge`, and `adapter_prefix` for the names of all of them.
    """
    ready()
    from ..answers.diff import diff as answer
    from ..answers.verify import check_tolerance
    from ..show.reports import check_report, gathering, spectra_of_pairs, write_page
    from ..spelling.adapter import parse_prefixes
    from .pages import require_elsewhere

    page_path = check_report(report, force)
    check_tolerance(tolerance)
    prefixes = parse_prefixes(prefix_texts(adapter_prefix))
    if prefixes.pairs and not (paths(adapter) or paths(adapter_b)):
        raise UsageError(f"{given('adapter-prefix')} is for an adapter, and none is given", option="adapter-prefix")
    with (
        open_groups(path_of(a, "a"), root, ignore_record, watch.note) as plain,
        open_second(b, root, root_b, ignore_record, watch) as other,
        ExitStack() as stack,
        _attached(plain, adapter, strength, prefixes, stack) as one,
        _attached(other, adapter_b, strength_b, prefixes, stack) as two,
        gathering(report is not None, typed(command), one.source, two.source) as gathered,
    ):
        prefixes.require_used((*paths(adapter), *paths(adapter_b)))
        require_elsewhere({"report": page_path}, one.source, two.source)
        result = answer(one, two, patterns(tensor), tolerance=tolerance, exact=exact, watch=watch)
        if page_path is not None and gathered is not None:
            from ..show.html import diff_page

            drawn = spectra_of_pairs(one, two, [d.tensor for d in result.tensors if not d.equal])
            write_page(page_path, diff_page(one.where, two.where, result, drawn, gathered.evidence("cpu")), force)
        return result


def _attached(
    opened: Opened, adapter: Paths, strength: float | Sequence[float], prefixes: Prefixes, stack: ExitStack
) -> Opened:
    """The checkpoint with adapters on its tensors, which are closed with `stack`; as it is where there are none."""
    if not paths(adapter):
        return opened
    from ..spelling.adapters import open_adapters
    from ..spelling.attached import attach

    return attach(opened, stack.enter_context(open_adapters(paths(adapter), strength, prefixes)))[0]


def discover(
    ckpt: FilePath,
    tensor: Names = (),
    *,
    view: str | None = None,
    root: str | None = None,
    device: str = "cpu",
    ignore_record: bool = False,
    report: FilePath | None = None,
    force: bool = False,
    command: Sequence[str] | None = None,
    watch: Watch = NOBODY,
) -> DiscoverResult:
    """Which constraints each tensor already satisfies, or nearly: symmetric, orthogonal, low rank, N:M sparse, ..."""
    ready()
    from ..show.reports import check_report, facts, gathering, spectra_for_report, write_page
    from ..view import parse_view
    from .pages import require_elsewhere

    seen = parse_view(view) if view is not None else None
    page_path = check_report(report, force)
    with (
        open_groups(path_of(ckpt), root, ignore_record, watch.note) as opened,
        gathering(report is not None, typed(command), opened.source) as gathered,
    ):
        opened.choose(patterns(tensor))  # a name that is not there is said before torch is asked for a device
        require_elsewhere({"report": page_path}, opened.source)
        where = torch_device(device)
        from ..answers.discover import discover as answer

        result = answer(opened, patterns(tensor), view=seen, device=where, watch=watch)
        if page_path is not None and gathered is not None:
            from ..show.html import discover_page

            shown = [(opened.groups[f.tensor], seen) for f in result.structured]
            drawn = spectra_for_report(opened.source, shown, where)
            page = discover_page(opened.where, result, drawn, gathered.evidence(where), facts(opened.source))
            write_page(page_path, page, force)
        return result


def spectrum(
    ckpt: FilePath,
    tensor: Names = (),
    *,
    view: str | None = None,
    chain: str | None = None,
    root: str | None = None,
    device: str = "cpu",
    ignore_record: bool = False,
    svg: FilePath | None = None,
    png: FilePath | None = None,
    report: FilePath | None = None,
    force: bool = False,
    command: Sequence[str] | None = None,
    watch: Watch = NOBODY,
) -> SpectrumResult:
    """Singular values and, of square matrices, eigenvalues: of the value, and of the original before a chain.

    Without `tensor`, of all that is parametrized or recorded. `svg`, `png`, `report`: pictures that are written too.
    """
    ready()
    from ..checkpoint.disk.atomic import refuse_existing
    from ..checkpoint.disk.interrupts import import_torch
    from ..show.reports import check_report, facts, gathering, require_suffix, write_page
    from ..surgery.edits.base import reading
    from ..view import parse_view
    from .pages import require_elsewhere

    chosen_view = parse_view(view) if view is not None else None
    read_as = reading(chain, view)
    for option, picture in (("svg", svg), ("png", png)):
        if picture is not None:
            require_suffix(option, Path(picture), option)
            refuse_existing(Path(picture), force)
    page_path = check_report(report, force)
    with (
        open_groups(path_of(ckpt), root, ignore_record, watch.note) as opened,
        gathering(report is not None, typed(command), opened.source) as gathered,
    ):
        require_elsewhere({"svg": svg, "png": png, "report": page_path}, opened.source)
        import_torch()
        from ..answers.spectrum import spectrum as answer

        result = answer(
            opened,
            path_of(ckpt),
            patterns(tensor),
            chain=read_as[0],
            view=read_as[1],
            chosen_view=chosen_view,
            device=device,
            watch=watch,
        )
        if svg is not None or png is not None:
            from ..show.pictures import write_pictures

            write_pictures(result, path_or_none(svg, "svg"), path_or_none(png, "png"), force)
        if page_path is not None and gathered is not None:
            from ..show.html import spectrum_page

            evidence = gathered.evidence(torch_device(device))
            write_page(page_path, spectrum_page(opened.where, result, evidence, facts(opened.source)), force)
        return result


def snippet(
    ckpt: FilePath,
    tensor: Names = (),
    *,
    root: str | None = None,
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> str:
    """The Python that registers the file's chains on a live model and loads it."""
    ready()
    from ..answers.snippet import snippet as answer

    with open_groups(path_of(ckpt), root, ignore_record, watch.note) as opened:
        return answer(opened, path_of(ckpt), patterns(tensor))
