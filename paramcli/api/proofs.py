"""Proofs of one file by another, as functions: a merge by its base and adapters, a bake by the codes it came of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from ..devices import torch_device
from ..errors import UsageError
from ..spec import path_of
from ..spelling.opened import Opened, open_groups
from ..watch import NOBODY, Watch
from ..wording import given
from .common import FilePath, Names, Paths, paths, patterns, prefix_texts, ready, typed
from .opening import open_pair, open_second

if TYPE_CHECKING:
    from ..answers.merge_verdict import MergeResult
    from ..answers.verdict import VerifyResult


def verify_merge(
    merged: FilePath,
    base: FilePath,
    adapter: Paths,
    tensor: Names = (),
    *,
    strength: float | Sequence[float] = 1.0,
    adapter_prefix: Names | Mapping[str, str] = (),
    root: str | None = None,
    device: str = "cpu",
    ignore_record: bool = False,
    report: FilePath | None = None,
    force: bool = False,
    sha256: bool = False,
    command: Sequence[str] | None = None,
    watch: Watch = NOBODY,
) -> MergeResult:
    """What `verify MERGED --base BASE --adapter A` does: is a merge base plus adapter, and nothing else?

    A function of its own: it asks another question than `verify`, of three files, and answers with other verdicts.

    Args:
        adapter, strength, adapter_prefix: as of `merge`.
        root: which state dict; one of the two files may have a single one.
        report, force, sha256, command: as of `verify`.

    Raises InputRefused for an adapter of another base, and where the merge has none of the tensors that it changes.
    """
    from .. import ranks
    from ..answers.merged import Asked
    from ..answers.merged import verify_merge as answer
    from ..show.reports import check_report, facts, gathering, write_page
    from ..spelling.adapter import parse_prefixes
    from ..spelling.adapters import open_adapters, strengths_of
    from ..spelling.attached import beside
    from .pages import require_elsewhere

    ready()
    if not paths(adapter):
        raise UsageError("no adapter is given", hint=given("adapter", "FOLDER"), option="adapter")
    prefixes = parse_prefixes(prefix_texts(adapter_prefix))
    asked = Asked(paths(adapter), strengths_of(paths(adapter), strength), prefixes)
    page_path = check_report(report, force)
    with (
        open_pair(merged, base, root, ignore_record, watch) as (opened, plain),
        open_adapters(asked.paths, asked.strengths, prefixes) as adapters,
        gathering(
            (report is not None or sha256) and ranks.current().leads,
            typed(command),
            opened.source,
            plain.source,
            *(one.source for one in adapters),
        ) as gathered,
    ):
        require_elsewhere({"report": page_path}, opened.source, plain.source, *(one.source for one in adapters))
        where = torch_device(device)
        if where == "mps":
            raise UsageError("Metal has no double precision", hint=given("device", "cpu"), option="device")
        # What codes stand for is the float32 product: a merge adds to that, and not to what a bake would round it to.
        exact = {n: replace(group, dtype="F32") if group.in_codes else group for n, group in plain.groups.items()}
        plain = Opened(plain.source, exact)
        attached = beside(plain, adapters)
        prefixes.require_used(asked.paths)
        result = answer(opened, plain, attached, asked, path_of(merged), patterns(tensor), device=where, watch=watch)
        if gathered is None:
            return result
        evidence = gathered.evidence(where)
        if page_path is not None:
            from ..show.html_merge import merge_page

            write_page(page_path, merge_page(opened.where, result, evidence, facts(opened.source)), force)
        return replace(result, evidence=evidence) if sha256 else result


def round_trip(
    ckpt: FilePath,
    tensor: Names = (),
    *,
    base: FilePath | None = None,
    chain: str | None = None,
    view: str | None = None,
    root: str | None = None,
    device: str = "cpu",
    ignore_record: bool = False,
    watch: Watch = NOBODY,
) -> VerifyResult:
    """Do quantized weights, quantized again onto the stored scales, give the stored codes? Of each weight the share of
    codes that differ.

    `base`: the quantized file, where `ckpt` is what was baked from it; without it, `ckpt` itself is quantized. `chain`
    and `view`: what the codes are, where nothing in the quantized file tells.
    """
    from ..answers.round_trip import round_trip as answer
    from ..chain import parse_chain
    from ..view import parse_view

    ready()
    if view is not None and chain is None:
        raise UsageError(f"{given('view')} needs {given('chain')}: codes that are known have their own", option="view")
    told, seen = parse_chain(chain) if chain else None, parse_view(view)
    with ExitStack() as stack:
        first = stack.enter_context(open_groups(path_of(ckpt), root, ignore_record, watch.note))
        quantized, where, baked = first, path_of(ckpt), None
        if base is not None:
            quantized = stack.enter_context(open_second(base, root, None, ignore_record, watch, "base"))
            where, baked = path_of(base), first
        names, on = patterns(tensor), torch_device(device)
        return answer(quantized, where, baked, names, chain=told, view=seen, device=on, watch=watch)
